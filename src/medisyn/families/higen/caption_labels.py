"""The text encoder learns what its captions say, before a small diffusion model reads it. Not HiGen's.

A diffusion loss teaches a new text encoder slowly, and what changes few pixels, such as how far a wall moves, hardly at
all. Where the corpus knows what is there, the encoder first learns to tell it from the mean of its states.
Shapes here: B captions, L tokens of the window, K labels. What `encode` returns: "token_ids" (B, L) and "labels" (B, K)
in [0, 1], NaN where one is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from medisyn.errors import InputError
from medisyn.families.base import ParamGroup
from medisyn.families.higen.captions import CaptionReader
from medisyn.types import Item, Request, Sample

if TYPE_CHECKING:
    from medisyn.families.base import Encoded


class CaptionLabels:
    """Implements `families.base.Family`; it makes no clips, so `sample` and `decode` refuse. Its head is not kept."""

    def __init__(self, encoder: Any, tokenizer: Any, *, layer: str, num_labels: int, seed: int = 0) -> None:
        """`layer` as CaptionReader's: the states that the diffusion model will read."""
        self.reader = CaptionReader(encoder, tokenizer, layer=layer, trained=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(encoder.config.hidden_size, num_labels)

    def to(self, device: str | torch.device) -> CaptionLabels:
        """Move the networks; returns self."""
        self.reader.encoder.to(device)
        self.head.to(device)
        return self

    def encode(self, samples: Sequence[Sample]) -> Encoded:
        """Captions, and metadata["labels"]. Raises InputError for another number of them, and outside [0, 1]."""
        labels_BK = torch.tensor([tuple(sample.metadata["labels"]) for sample in samples], dtype=torch.float32)
        known = labels_BK[~labels_BK.isnan()]
        if labels_BK.shape[1] != self.head.out_features or ((known < 0) | (known > 1)).any():
            raise InputError(f"captions need {self.head.out_features} labels each, in [0, 1] or NaN")
        return {"token_ids": self.reader.tokens([sample.caption for sample in samples]), "labels": labels_BK}

    def loss(self, encoded: Encoded, draws: Sequence[torch.Generator]) -> torch.Tensor:
        """Loss per caption (B,): binary cross-entropy of its known labels, added up. Nothing is drawn."""
        states_BLE = self.reader.embed(encoded["token_ids"])
        labels_BK = encoded["labels"].to(states_BLE.device)
        errors_BK = F.binary_cross_entropy_with_logits(
            self.head(states_BLE.mean(dim=1)).float(), labels_BK.nan_to_num(), reduction="none"
        )
        return (errors_BK * ~labels_BK.isnan()).sum(dim=1)

    def sample(self, requests: Sequence[Request]) -> torch.Tensor:
        """Refuses: a text encoder makes no clips."""
        raise InputError("a text encoder makes no clips; train a diffusion model that reads it")

    def decode(self, latents: torch.Tensor) -> list[Item]:
        """Refuses, as `sample` does."""
        raise InputError("a text encoder makes no clips; train a diffusion model that reads it")

    def trainable(self) -> list[ParamGroup]:
        """The encoder and the head; puts them in training mode."""
        self.reader.encoder.train()
        weights = [weight for weight in self.reader.encoder.parameters() if weight.requires_grad]
        return [ParamGroup("text_encoder", [*weights, *self.head.parameters()])]
