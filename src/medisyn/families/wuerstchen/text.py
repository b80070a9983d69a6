"""Captions as the conditions of Stages C and B, and the words that do not fit a text encoder's window.

Shapes here: B prompts, L tokens of the window, E embedding width.
Both stages read the last hidden states of a CLIP text encoder after its final norm; C and B have one each. The padding
is masked inside the encoder and read by the networks, as in the published pipelines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

CAPTIONS_AT_ONCE = 8  # of embed_alike


class Captioned(Protocol):
    """A Sample, or a caption on its own."""

    @property
    def caption(self) -> str: ...


class TextReader:
    """A frozen CLIP text encoder with its tokenizer. "No text" is the embedding of the empty string, not zeros."""

    def __init__(self, encoder: Any, tokenizer: Any) -> None:
        self.encoder, self.tokenizer = encoder, tokenizer
        self._empty_1LE: torch.Tensor | None = None

    @property
    def device(self) -> torch.device:
        return next(iter(self.encoder.parameters())).device

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        """(B, L, E) in the encoder's type, on its device."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        ids_BL, real_BL = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        embedded: torch.Tensor = self.encoder(ids_BL, attention_mask=real_BL).last_hidden_state
        return embedded

    def embed_alike(self, prompts: Sequence[str]) -> torch.Tensor:
        """`embed`, always on CAPTIONS_AT_ONCE prompts: another number of rows would round differently."""
        parts = []
        for start in range(0, len(prompts), CAPTIONS_AT_ONCE):
            batch = list(prompts[start : start + CAPTIONS_AT_ONCE])
            parts.append(self.embed(batch + [""] * (CAPTIONS_AT_ONCE - len(batch)))[: len(batch)])
        return torch.cat(parts)

    def empty(self) -> torch.Tensor:
        """The embedding of "no text", (1, L, E); made once, without autocast."""
        if self._empty_1LE is None:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                self._empty_1LE = self.embed_alike([""])
        return self._empty_1LE.to(self.device)

    def negative(self, prompts: Sequence[str]) -> torch.Tensor:
        """What guidance moves away from: each negative prompt's embedding, "no text" where it is empty."""
        rows = self.empty().repeat(len(prompts), 1, 1)
        written = [i for i, prompt in enumerate(prompts) if prompt]
        if written:
            rows[written] = self.embed([prompts[i] for i in written])
        return rows

    def drop(self, text_BLE: torch.Tensor, dropped_B: torch.Tensor) -> torch.Tensor:
        """Dropped rows get "no text"."""
        return torch.where(dropped_B.view(-1, 1, 1), self.empty().to(text_BLE.dtype), text_BLE)

    def lost_words(self, prompt: str) -> str:
        """The end of the prompt that the encoder does not read, from the start of the first word cut; "" when none."""
        encoded = self.tokenizer(prompt, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        room = self.tokenizer.model_max_length - 2  # start and end tokens
        spans = encoded["offset_mapping"]
        if len(spans) <= room:
            return ""
        start = int(spans[room][0])
        while start > 0 and not prompt[start - 1].isspace():
            start -= 1
        return prompt[start:].strip()
