"""The moving average of the trained weights (MediSyn v1 section 3.3: from step 1500, updated every 100 steps)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from medisyn.training.settings import TrainSettings


def effective_decay(decay: float, update: int) -> float:
    """Warm-up rule: update n (from 1) uses min(decay, (1 + n) / (10 + n)), so that the start is soon forgotten."""
    return min(decay, (1 + update) / (10 + update))


class Ema:
    """A float32 shadow of the parameters. Before `ema_start` there is none, and the weights themselves are exported."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], settings: TrainSettings) -> None:
        self.parameters = list(parameters)
        self.decay, self.start, self.interval = settings.ema_decay, settings.ema_start, settings.ema_interval
        self.shadow: list[torch.Tensor] | None = None

    @torch.no_grad()
    def update(self, steps_done: int) -> None:
        """To be called after every optimiser step with the number of steps done."""
        if self.decay == 0 or steps_done < self.start or (steps_done - self.start) % self.interval:
            return
        weights = [parameter.detach() for parameter in self.parameters]
        if self.shadow is None:
            self.shadow = [weight.clone() for weight in weights]
            return
        update = (steps_done - self.start) // self.interval
        torch._foreach_lerp_(self.shadow, weights, 1 - effective_decay(self.decay, update))

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within the block the model holds the average; afterwards its own weights again, bit for bit."""
        if self.shadow is None:
            yield
            return
        own = [parameter.data for parameter in self.parameters]
        for parameter, average in zip(self.parameters, self.shadow, strict=True):
            parameter.data = average
        try:
            yield
        finally:
            for parameter, weight in zip(self.parameters, own, strict=True):
                parameter.data = weight
