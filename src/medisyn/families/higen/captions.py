"""Captions as the text encoder's hidden states, and what stands for "no text".

Shapes here: B prompts, L tokens of the window, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from medisyn.errors import ConfigError

PROMPTS_AT_ONCE = 8  # of read_alike


class Captioned(Protocol):
    """A Sample, or a caption on its own."""

    @property
    def caption(self) -> str: ...


class CaptionReader:
    """A CLIP text encoder and its tokenizer. "No text" is the empty prompt, in training as in guidance (published)."""

    def __init__(self, encoder: Any, tokenizer: Any, *, layer: str, trained: bool) -> None:
        """layer: "penultimate" or "last" hidden states, both through the final norm. trained: its weights change."""
        if layer == "penultimate" and encoder.config.num_hidden_layers < 2:
            raise ConfigError("text_layer 'penultimate' needs a text encoder of at least 2 layers; set it to 'last'")
        self.encoder, self.tokenizer, self.layer, self.trained = encoder, tokenizer, layer, trained
        self._empty: torch.Tensor | None = None
        encoder.requires_grad_(trained)
        if trained and layer == "penultimate":
            self._body.encoder.layers[-1].requires_grad_(False)  # never read

    @property
    def _body(self) -> Any:
        return getattr(self.encoder, "text_model", self.encoder)

    def tokens(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token ids (B, L), cut and padded to the window."""
        return self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids

    def embed(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """(B, L, E) on the encoder's device."""
        ids_BL = ids_BL.to(self.encoder.device)
        if self.layer == "last":
            return self.encoder(ids_BL)[0]
        hidden = self.encoder(ids_BL, output_hidden_states=True).hidden_states[-2]
        return self._body.final_layer_norm(hidden)

    def read_alike(self, prompts: Sequence[str]) -> torch.Tensor:
        """`embed`, always on PROMPTS_AT_ONCE prompts: another number of rows would round differently."""
        parts = []
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            batch = list(prompts[start : start + PROMPTS_AT_ONCE])
            parts.append(self.embed(self.tokens(batch + [""] * (PROMPTS_AT_ONCE - len(batch))))[: len(batch)])
        return torch.cat(parts)

    def empty(self) -> torch.Tensor:
        """The states of the empty prompt, (1, L, E); without autocast, so that who asked first does not matter."""
        if self._empty is None or self.trained:
            with torch.no_grad(), torch.autocast(self.encoder.device.type, enabled=False):
                self._empty = self.embed(self.tokens([""]))
        return self._empty.to(self.encoder.device)

    def drop_states(self, states_BLE: torch.Tensor, dropped_B: torch.Tensor) -> torch.Tensor:
        """Cached states, with those of the empty prompt where a caption is dropped."""
        return torch.where(dropped_B[:, None, None], self.empty().to(states_BLE.dtype), states_BLE)

    def drop_tokens(self, ids_BL: torch.Tensor, dropped_B: torch.Tensor) -> torch.Tensor:
        """States (B, L, E) of token ids through the encoder at hand, of the empty prompt where dropped."""
        return self.embed(torch.where(dropped_B[:, None], self.tokens([""]).to(ids_BL.device), ids_BL))

    def lost_words(self, prompt: str) -> str:
        """The end of the prompt that the window cuts off, from the start of the first word cut; "" when all fits."""
        encoded = self.tokenizer(prompt, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        room, spans = self.tokenizer.model_max_length - 2, encoded["offset_mapping"]  # start and end tokens
        if len(spans) <= room:
            return ""
        start = int(spans[room][0])
        while start > 0 and not prompt[start - 1].isspace():
            start -= 1
        return prompt[start:].strip()
