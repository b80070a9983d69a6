"""Captions as tokens and embeddings, and the words that do not fit the text encoder's window.

Shapes here: B prompts, L tokens of the window, E embedding width (summed over the encoders), P pooled width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

from medisyn.errors import InputError
from medisyn.families.stable_diffusion.embeddings import collapse, expand
from medisyn.families.stable_diffusion.networks import Networks
from medisyn.types import Sample

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
CAPTIONS_AT_ONCE = 8  # of embed_alike
SIZE_KEYS = ("original_size", "crop_top_left")  # metadata: rows and columns in pixels, before resizing and cropping


class Captioned(Protocol):
    """A Sample, or a caption on its own."""

    @property
    def caption(self) -> str: ...


class TextReader:
    """The text encoders of one model: captions to conditions, and what stands for "no text".

    "No text" is the embedding of the empty prompt, or zeros where the model was made so (SDXL base). Training drops
    captions to the same embedding that guidance uses, so that what is subtracted was trained.
    """

    def __init__(self, networks: Networks, *, cache_empty: bool) -> None:
        """`cache_empty`: the encoders are frozen, so the empty prompt is embedded once."""
        self.networks = networks
        self.cache_empty = cache_empty
        self._empty: dict[str, torch.Tensor] | None = None

    def tokens(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """ "token_ids" (B, L) and for SDXL "token_ids_2", cut and padded to each tokenizer's window."""
        names = ("token_ids", "token_ids_2")
        return {name: tokenize(t, prompts) for name, t in zip(names, self.networks.tokenizers, strict=False)}

    def embed(self, tokens: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """ "text" (B, L, E) and for SDXL "pooled" (B, P), on the encoders' device.

        Stable Diffusion 1 and 2 read the last hidden states after the final norm; SDXL the penultimate hidden states
        of both encoders side by side, and the second's pooled and projected text.
        """
        encoders = self.networks.text_encoders
        device = encoders[0].device
        if not self.networks.is_xl:
            return {"text": encoders[0](tokens["token_ids"].to(device))[0]}
        first = encoders[0](tokens["token_ids"].to(device), output_hidden_states=True)
        second = encoders[1](tokens["token_ids_2"].to(device), output_hidden_states=True)
        text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return {"text": text, "pooled": second.text_embeds}

    def embed_alike(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """`embed`, always on CAPTIONS_AT_ONCE prompts: another number of rows would round differently."""
        parts = []
        for start in range(0, len(prompts), CAPTIONS_AT_ONCE):
            batch = list(prompts[start : start + CAPTIONS_AT_ONCE])
            filled = batch + [""] * (CAPTIONS_AT_ONCE - len(batch))
            parts.append({name: row[: len(batch)] for name, row in self.embed(self.tokens(filled)).items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def empty(self) -> dict[str, torch.Tensor]:
        """The conditions of "no text", one row."""
        if self._empty is None or not self.cache_empty:
            # Without autocast: the cached rows do not depend on who asked first.
            with torch.no_grad(), torch.autocast(self.networks.text_encoders[0].device.type, enabled=False):
                embedded = self.embed(self.tokens([""]))
            if self.networks.zero_empty_prompt:
                embedded = {name: torch.zeros_like(row) for name, row in embedded.items()}
            self._empty = embedded
        device = self.networks.text_encoders[0].device
        return {name: row.to(device) for name, row in self._empty.items()}

    def negative(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """What guidance moves away from: each negative prompt's embedding, "no text" where it is empty."""
        rows = {name: row.expand(len(prompts), *row.shape[1:]).clone() for name, row in self.empty().items()}
        written = [i for i, prompt in enumerate(prompts) if prompt]
        if written:
            embedded = self.embed(self.tokens([prompts[i] for i in written]))
            for name, row in embedded.items():
                rows[name][written] = row
        return rows

    def drop(self, rows: Mapping[str, torch.Tensor], dropped_B: torch.Tensor) -> dict[str, torch.Tensor]:
        """Training conditions from cached embeddings or from token ids; dropped rows get "no text"."""
        if "token_ids" in rows:
            return self._drop_tokens(rows, dropped_B)
        empty = self.empty()
        return {name: _where(dropped_B, empty[name].to(rows[name].dtype), rows[name]) for name in empty}

    def _drop_tokens(self, rows: Mapping[str, torch.Tensor], dropped_B: torch.Tensor) -> dict[str, torch.Tensor]:
        blank = {name: ids.to(dropped_B.device) for name, ids in self.tokens([""]).items()}
        embedded = self.embed({name: _where(dropped_B, ids, rows[name]) for name, ids in blank.items()})
        if self.networks.zero_empty_prompt:
            embedded = {name: _where(dropped_B, torch.zeros_like(row), row) for name, row in embedded.items()}
        return embedded

    def require_gradients(self) -> None:
        """Ask gradients of every parameter that `embed` reads: SDXL never reads the first encoder's last layer."""
        for encoder in self.networks.text_encoders:
            encoder.requires_grad_(True)
        self.freeze_unread()

    def freeze_unread(self) -> None:
        """Ask no gradients of what `embed` does not read."""
        if self.networks.is_xl:
            first = self.networks.text_encoders[0]
            body: Any = getattr(first, "text_model", first)
            body.encoder.layers[-1].requires_grad_(False)
            body.final_layer_norm.requires_grad_(False)


def _where(rows_B: torch.Tensor, chosen: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    return torch.where(rows_B.view(-1, *[1] * (otherwise.ndim - 1)), chosen, otherwise)


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> torch.Tensor:
    """Token ids (B, L), cut and padded to the tokenizer's window."""
    encoded = tokenizer(
        [expand(tokenizer, prompt) for prompt in prompts],
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return encoded.input_ids


def size_conditioning(sample: Sample, height: int, width: int) -> list[float]:
    """SDXL's six numbers: original height, width, crop top, left, picture height, width (Podell et al. 2023)."""
    numbers: list[float] = []
    for name, otherwise in zip(SIZE_KEYS, ((height, width), (0, 0)), strict=True):
        pair = sample.metadata.get(name, otherwise)
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise InputError(
                f"sample {sample.key}: metadata {name!r} must be two numbers (rows, columns), got {pair!r}"
            )
        numbers += [float(number) for number in pair]
    return [*numbers, float(height), float(width)]


def lost_words(tokenizers: Sequence[Any], prompt: str) -> str:
    """The end of the prompt that an encoder does not read, from the start of the first word cut; "" when all fits.

    With two encoders: the longer loss. A learnt token of which a part is lost counts as lost.
    """
    return max((_lost_to(tokenizer, prompt) for tokenizer in tokenizers), key=len)


def _lost_to(tokenizer: Any, prompt: str) -> str:
    prompt = expand(tokenizer, prompt)
    encoded = tokenizer(prompt, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    room = tokenizer.model_max_length - 2  # start and end tokens
    spans = encoded["offset_mapping"]
    if len(spans) <= room:
        return ""
    start = int(spans[room][0])
    while start > 0 and not prompt[start - 1].isspace():
        start -= 1
    return collapse(tokenizer, prompt[start:].strip())


def train_tokenizer(captions: Iterable[str], *, vocab_size: int = 2000, window: int = 77) -> Any:
    """A CLIPTokenizer whose merges are learned from our own captions; every byte is known, so any prompt can be read.

    The vocabulary is CLIP's order: bytes, bytes that end a word, merges, start, end.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    blank = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[])
    learner = Tokenizer(models.BPE(unk_token=None, continuing_subword_prefix="", end_of_word_suffix=WORD_END))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, end_of_word_suffix=WORD_END, initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(captions, trainer)
    merges: list[Any] = [tuple(merge) for merge in _merges(learner)]
    symbols = sorted(alphabet)
    words = dict.fromkeys([*symbols, *(s + WORD_END for s in symbols), *("".join(m) for m in merges), START, END])
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=merges, model_max_length=window)


def _merges(learner: Any) -> list[Sequence[str]]:
    import json

    merges = json.loads(learner.to_str())["model"]["merges"]
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
