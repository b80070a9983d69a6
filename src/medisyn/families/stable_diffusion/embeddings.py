"""Learnt tokens in a text encoder: put there to sample with, or as the only weights that are trained.

Shapes here: V words of the vocabulary, N vectors of one token, R vectors of all new tokens, E width of one encoder,
L tokens of the window.
A token of N vectors is N entries of the tokenizer, `<x>`, `<x>_1`, ..., as diffusers has it; a prompt says `<x>`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from medisyn.errors import InputError, ModelError
from medisyn.families.stable_diffusion.embedding_files import Embedding
from medisyn.families.stable_diffusion.networks import Networks
from medisyn.seeding import generator_for

KNOWN_WIDTHS = {
    (768,): "Stable Diffusion 1",
    (1024,): "Stable Diffusion 2",
    (768, 1280): "Stable Diffusion XL",
}


class GrownEmbedding(torch.nn.Module):
    """A frozen embedding matrix (V, E), and new rows (R, E) as a parameter of its own.

    Ids below `first` are looked up in the matrix, `first` and above in the rows. Only the rows get gradients, so the
    optimiser never sees the matrix.
    """

    def __init__(self, matrix: torch.nn.Embedding, first: int, rows_RE: torch.Tensor) -> None:
        super().__init__()
        self.matrix, self.first = matrix, first
        self.rows = torch.nn.Parameter(rows_RE.float())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        known = self.matrix(ids.clamp(max=self.first - 1))
        learnt = F.embedding((ids - self.first).clamp(min=0), self.rows).to(known.dtype)
        return torch.where((ids >= self.first)[..., None], learnt, known)


def place(networks: Networks, embeddings: Sequence[Embedding]) -> Networks:
    """The networks with learnt tokens to sample with; the text encoders' matrices grow, the tokenizers are copies.

    Raises ModelError for an embedding of another encoder, InputError for a token that is known already or that does
    not fit the text window.
    """
    widths = tuple(int(encoder.config.hidden_size) for encoder in networks.text_encoders)
    for embedding in embeddings:
        check_fits(embedding, widths)
    tokenizers = with_tokens(networks, [(embedding.token, embedding.num_vectors) for embedding in embeddings])
    for number, (encoder, before, tokenizer) in enumerate(
        zip(networks.text_encoders, networks.tokenizers, tokenizers, strict=True)
    ):
        rows_RE = torch.cat([embedding.vectors[number] for embedding in embeddings])
        size = max(len(tokenizer), encoder.get_input_embeddings().num_embeddings)
        encoder.resize_token_embeddings(size, mean_resizing=False)
        matrix = encoder.get_input_embeddings().weight
        with torch.no_grad():
            matrix[len(before) : len(before) + len(rows_RE)] = rows_RE.to(matrix)
        encoder.eval().requires_grad_(False)
        _pool_at_the_end(encoder, tokenizer)
    return replace(networks, tokenizers=tokenizers)


def place_trainable(
    networks: Networks, tokens: Sequence[str], vectors: Sequence[torch.Tensor]
) -> tuple[Networks, list[torch.nn.Parameter]]:
    """The networks with new tokens whose vectors are trained, and these, one parameter (R, E) per encoder.

    `vectors` holds the first values of all tokens in turn, (R, E) per encoder, the same number for each token. Raises
    InputError as `place` does.
    """
    num_vectors = len(vectors[0]) // len(tokens)
    tokenizers = with_tokens(networks, [(token, num_vectors) for token in tokens])
    parameters = []
    for encoder, before, tokenizer, rows_RE in zip(
        networks.text_encoders, networks.tokenizers, tokenizers, vectors, strict=True
    ):
        grown = GrownEmbedding(encoder.get_input_embeddings(), len(before), rows_RE)
        encoder.set_input_embeddings(grown)
        _pool_at_the_end(encoder, tokenizer)
        parameters.append(grown.rows)
    return replace(networks, tokenizers=tokenizers), parameters


def check_fits(embedding: Embedding, widths: tuple[int, ...]) -> None:
    """Raise ModelError when the embedding was made for text encoders of another number or width."""
    if embedding.widths != widths:
        raise ModelError(
            f"{embedding.token} was made for another text encoder: its vectors are {_described(embedding.widths)} "
            f"wide, this model's are {_described(widths)}. Open it with the model that it was trained on."
        )


def _described(widths: tuple[int, ...]) -> str:
    name = f" ({KNOWN_WIDTHS[widths]})" if widths in KNOWN_WIDTHS else ""
    return " and ".join(map(str, widths)) + name


def with_tokens(networks: Networks, tokens: Sequence[tuple[str, int]]) -> tuple[Any, ...]:
    """Copies of the tokenizers that know each (token, number of vectors). Raises InputError as `place` does."""
    tokenizers = []
    for tokenizer in networks.tokenizers:
        vocabulary, grown = tokenizer.get_vocab(), copy.deepcopy(tokenizer)
        for token, num_vectors in tokens:
            _check_window(token, num_vectors, tokenizer.model_max_length)
            entries = entries_of(token, num_vectors)
            known = [entry for entry in entries if entry in vocabulary]
            if known or grown.add_tokens(entries) != num_vectors:
                raise InputError(
                    f"token {known[0] if known else token} is in the vocabulary already; choose another name"
                )
        tokenizers.append(grown)
    return tuple(tokenizers)


def _check_window(token: str, num_vectors: int, window: int) -> None:
    room = window - 2  # the start and the end token
    if not 1 <= num_vectors <= room:
        raise InputError(
            f"{token} has {num_vectors} vectors; the text encoder's window of {window} tokens has room for 1 to {room}"
        )


def entries_of(token: str, num_vectors: int) -> list[str]:
    """The tokenizer's entries of a token: `<x>`, `<x>_1`, `<x>_2`, ..."""
    return [token, *(f"{token}_{number}" for number in range(1, num_vectors))]


def _pool_at_the_end(encoder: Any, tokenizer: Any) -> None:
    """Read the pooled text at the end token. Old checkpoints take the highest id, which a new token would be."""
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = tokenizer.eos_token_id
    encoder.config.eos_token_id = tokenizer.eos_token_id


# Prompts


def expand(tokenizer: Any, prompt: str) -> str:
    """The prompt with every token of several vectors written out as all its entries."""
    for token, num_vectors in _tokens_of_several(tokenizer).items():
        prompt = re.sub(
            rf"{re.escape(token)}(?!_\d)", " ".join(entries_of(token, num_vectors)), prompt, flags=re.IGNORECASE
        )
    return prompt


def collapse(tokenizer: Any, prompt: str) -> str:
    """`expand` undone for a person to read; a part of a token's entries is the token too."""
    for token in _tokens_of_several(tokenizer):
        prompt = re.sub(rf"(?:{re.escape(token)}(?:_\d+)?\s*)+", f"{token} ", prompt).strip()
    return prompt


def _tokens_of_several(tokenizer: Any) -> dict[str, int]:
    added = tokenizer.get_added_vocab()
    several = {}
    for token in added:
        num_vectors = 1
        while f"{token}_{num_vectors}" in added:
            num_vectors += 1
        if num_vectors > 1 and not re.search(r">_\d+$", token):
            several[token] = num_vectors
    return several


# First values


def vectors_from_words(networks: Networks, words: str, num_vectors: int) -> list[torch.Tensor]:
    """(N, E) per encoder: the vectors of the words' tokens, each repeated alike often, as AUTOMATIC1111 starts.

    Raises InputError when the words hold no token.
    """
    found = []
    for encoder, tokenizer in zip(networks.text_encoders, networks.tokenizers, strict=True):
        ids = tokenizer(words, add_special_tokens=False).input_ids
        if not ids:
            raise InputError(f"init {words!r} holds no word that the text encoder reads")
        chosen = [ids[number * len(ids) // num_vectors] for number in range(num_vectors)]
        found.append(_matrix(encoder)[chosen].float().clone())
    return found


def vectors_from_statistics(networks: Networks, num_vectors: int, seed: int, token: str) -> list[torch.Tensor]:
    """(N, E) per encoder: normal, with the mean and deviation that the vocabulary has in each of the E numbers."""
    drawn = []
    for number, encoder in enumerate(networks.text_encoders):
        matrix_VE = _matrix(encoder).float()
        generator = generator_for(seed, f"{token}/{number}")
        noise_NE = torch.randn(num_vectors, matrix_VE.shape[1], generator=generator)
        drawn.append(matrix_VE.mean(dim=0) + matrix_VE.std(dim=0) * noise_NE)
    return drawn


def _matrix(encoder: Any) -> torch.Tensor:
    weight: torch.Tensor = encoder.get_input_embeddings().weight
    return weight.detach().cpu()
