"""Textual inversion as a family: a Stable Diffusion model of which only the vectors of new tokens are trained.

Shapes here: B samples, T new tokens, P templates, L tokens of the window, R vectors of all new tokens, E text width.
What `encode` returns, one row per sample: "mean", "logvar" (B, C, h, w) and for SDXL "time_ids" (B, 6) as its base
does, and "concept" (B,): which of the new tokens the picture shows. The text is encoded anew in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from medisyn.errors import ConfigError, InputError
from medisyn.families.base import ParamGroup
from medisyn.families.stable_diffusion import load
from medisyn.families.stable_diffusion.config import InversionConfig, StableDiffusionConfig
from medisyn.families.stable_diffusion.embedding_files import Embedding, as_token, own, write_embeddings
from medisyn.families.stable_diffusion.embeddings import (
    place_trainable,
    vectors_from_statistics,
    vectors_from_words,
)
from medisyn.families.stable_diffusion.model import StableDiffusion
from medisyn.families.stable_diffusion.networks import Networks
from medisyn.families.stable_diffusion.text import Captioned, lost_words

if TYPE_CHECKING:
    from medisyn.families.base import Encoded


class TextualInversion(StableDiffusion):
    """New tokens for a frozen model (Gal et al. 2022); implements families.base.Family.

    It takes the networks of `model` over: use that one no longer.
    """

    def __init__(self, model: StableDiffusion, inversion: InversionConfig) -> None:
        """Raises InputError for a token that is known already, does not fit the window or breaks the form <name>."""
        self.inversion = inversion
        self.tokens = tuple(map(as_token, inversion.tokens))
        dtype = load.DTYPES[inversion.frozen_dtype]
        for module in (model.networks.unet, *model.networks.text_encoders):
            torch.nn.Module.to(module, dtype)  # diffusers' own `to` warns of an empty list
        networks, self.rows = place_trainable(model.networks, self.tokens, _first_values(model.networks, inversion))
        config = StableDiffusionConfig(
            caption_dropout=0.0,
            train_text_encoder=True,  # the text is encoded in every step
            gradient_checkpointing=inversion.gradient_checkpointing,
        )
        super().__init__(networks, config, defaults=model.defaults, source=model.source)
        self.token_ids = {name: self._prompts(table) for name, table in self._template_ids().items()}

    def _prepare_training(self) -> None:
        """Freeze everything but the new vectors."""
        for module in self.networks.modules():
            module.requires_grad_(False)
            module.eval()
        for rows in self.rows:
            rows.requires_grad_(True)
        if self.config.gradient_checkpointing:
            self.networks.unet.enable_gradient_checkpointing()

    def _template_ids(self) -> dict[str, torch.Tensor]:
        """Token ids of every prompt, token by token. Raises InputError for a prompt beyond the text window."""
        prompts = [template.replace("{}", token) for token in self.tokens for template in self.inversion.templates]
        for prompt in prompts:
            if lost := lost_words(self.networks.tokenizers, prompt):
                raise InputError(
                    f"the prompt {prompt!r} with {self.inversion.num_vectors} vectors is longer than the text window: "
                    f"{lost!r} is lost. Take fewer vectors or a shorter template"
                )
        return self._text.tokens(prompts)

    def _prompts(self, ids: torch.Tensor) -> torch.Tensor:
        return ids.view(len(self.tokens), len(self.inversion.templates), -1)  # (T, P, L)

    def encode_captions(self, samples: Sequence[Captioned]) -> Encoded:
        """ "concept": a sample's caption is the token that it shows. Raises InputError for any other caption."""
        for sample in samples:
            if sample.caption not in self.tokens:
                raise InputError(f"caption {sample.caption!r} is none of the new tokens ({', '.join(self.tokens)})")
        return {"concept": torch.tensor([self.tokens.index(sample.caption) for sample in samples])}

    def loss(self, encoded: Encoded, draws: Sequence[torch.Generator]) -> torch.Tensor:
        """Loss per sample (B,), float32. Row i draws its template from draws[i], then what the base draws."""
        num_templates = len(self.inversion.templates)
        template_B = torch.cat([torch.randint(num_templates, (1,), generator=generator) for generator in draws])
        concept_B = encoded["concept"].cpu()
        rows = {name: tensor for name, tensor in encoded.items() if name != "concept"}
        rows |= {name: ids_TPL[concept_B, template_B] for name, ids_TPL in self.token_ids.items()}
        return super().loss(rows, draws)

    def trainable(self) -> list[ParamGroup]:
        """The new vectors (R, E) of each text encoder."""
        return [ParamGroup("embeddings", self.rows)]

    def embeddings(self) -> list[Embedding]:
        """What was learnt so far, token by token; copies on the CPU."""
        size = self.inversion.num_vectors
        return [
            Embedding(token, tuple(own(rows_RE[start : start + size]) for rows_RE in self.rows), base=self._base_name())
            for token, start in zip(self.tokens, range(0, size * len(self.tokens), size), strict=True)
        ]

    def _base_name(self) -> str | None:
        """The base without the folders above it: the file is for sharing."""
        return self.source if self.source is None or not Path(self.source).is_absolute() else Path(self.source).name

    def save(self, folder: Path | str, *, dtype: str | None = None) -> None:
        """Write the embeddings alone, the name of the base and the size of the pictures. `dtype` is not used: float32.

        Atomic. Raises ConfigError when the model was not opened from anywhere, so that there is no base to name.
        """
        if self.source is None:
            raise ConfigError("an embedding records its base model: save the base first and open it with from_folder")
        height, width = self.native_size
        defaults = {**asdict(self.defaults), "height": height, "width": width}
        write_embeddings(self.embeddings(), Path(folder), base=self.source, defaults=defaults)


def _first_values(networks: Networks, inversion: InversionConfig) -> list[torch.Tensor]:
    """(R, E) per encoder, all tokens in turn."""
    per_token = []
    for number, token in enumerate(inversion.tokens):
        if inversion.init:
            words = inversion.init[number % len(inversion.init)]
            per_token.append(vectors_from_words(networks, words, inversion.num_vectors))
        else:
            per_token.append(vectors_from_statistics(networks, inversion.num_vectors, inversion.seed, token))
    return [torch.cat(vectors) for vectors in zip(*per_token, strict=True)]
