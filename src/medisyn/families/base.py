"""The family protocol: five words, and all that training and generation know of a model.

Shapes here: B batch. An `Encoded` holds one row per sample in each tensor, so that rows can be cached, shuffled and
collated without knowing what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from medisyn.types import Item, Request, Sample

if TYPE_CHECKING:
    import torch

    Encoded = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a learning rate: the run's times `lr_scale`. `name` stands in the log."""

    name: str
    parameters: Sequence[torch.nn.Parameter]
    lr_scale: float = 1.0
    weight_decay: float | None = None  # None: the run's value


class Family(Protocol):
    """A model that can be trained and sampled."""

    def encode(self, samples: Sequence[Sample]) -> Encoded:
        """Samples as latents and conditions, on the CPU, ready to be cached: it is frozen and draws nothing."""
        ...

    def loss(self, encoded: Encoded, draws: Sequence[torch.Generator]) -> torch.Tensor:
        """Loss per sample, (B,). All randomness of row i (timestep, noise, dropped caption) comes from `draws[i]`."""
        ...

    def sample(self, requests: Sequence[Request]) -> torch.Tensor:
        """Latents for requests of one size, steps and guidance; the noise of row i comes from `requests[i].seed`."""
        ...

    def decode(self, latents: torch.Tensor) -> list[Item]:
        """Latents as pictures (uint8 RGB), clips or volumes, with their value range."""
        ...

    def trainable(self) -> list[ParamGroup]:
        """What the optimiser updates; the modules behind it are in training mode."""
        ...
