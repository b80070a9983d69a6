"""What a training run is told, apart from the model and the data. Progress is counted in optimiser steps everywhere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medisyn.errors import ConfigError
from medisyn.machine import choose_device, fast_dtype

PRECISIONS = ("auto", "bf16", "fp32")
SCHEDULES = ("constant", "cosine")

# Keys that may change when a run is resumed: they decide what is written when and how a sum is grouped, not what is
# learnt.
FREE_KEYS = ("micro_batch_size", "checkpoint_every", "keep_last", "preview_every", "log_every", "tensorboard")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One training run. The same settings, examples and start give the same weights, resumed or not."""

    num_steps: int = 0  # 0: `epochs` decides
    epochs: float = 0.0  # passes over the samples, where num_steps is 0
    batch_size: int  # effective: over all processes and accumulated passes
    micro_batch_size: int = 8  # rows in one forward pass of one process; a step accumulates the rest
    learning_rate: float = 1e-4
    schedule: str = "constant"  # "constant" or "cosine", both after warmup_steps of linear warm-up
    warmup_steps: int = 0
    final_lr_share: float = 0.0  # cosine ends at this share of learning_rate
    beta1: float = 0.9
    beta2: float = 0.999
    adam_epsilon: float = 1e-8
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0  # 0: gradients are not clipped
    precision: str = "auto"  # "bf16" is autocast, weights and optimiser stay float32; "auto": see `settled`
    ema_decay: float = 0.0  # per update; 0: no moving average
    ema_start: int = 0  # the average starts as a copy of the weights after this many steps
    ema_interval: int = 1  # and is updated every so many steps
    checkpoint_every: int = 1000  # 0: at the end of every epoch
    keep_last: int = 2  # checkpoints kept besides the best one
    preview_every: int = 0  # 0: none
    log_every: int = 1
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch_size", "keep_last", "log_every", "ema_interval"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("warmup_steps", "ema_start", "preview_every", "checkpoint_every", "weight_decay", "max_grad_norm"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(self.num_steps >= 0 and self.epochs >= 0, "num_steps and epochs", self.num_steps, "0 or more")
        _require(self.num_steps > 0 or self.epochs > 0, "num_steps or epochs", 0, "above 0")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0")
        _require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "at least 0 and below 1")
        _require(0 <= self.final_lr_share <= 1, "final_lr_share", self.final_lr_share, "between 0 and 1")
        _require(self.schedule in SCHEDULES, "schedule", self.schedule, " or ".join(SCHEDULES))
        if self.precision == "fp16":
            raise ConfigError(
                "precision fp16 is refused: it needs loss scaling, overflows in the SDXL autoencoder, and on a CPU "
                "is hundreds of times slower than float32. Use precision=auto, bf16 or fp32."
            )
        _require(self.precision in PRECISIONS, "precision", self.precision, " or ".join(PRECISIONS))

    def settled(self, num_samples: int) -> TrainSettings:
        """The same with what the run itself leaves open: epochs as steps, and the precision that is meant by "auto".

        Steps are rounded up; the effective batch may span two epochs. "auto" is bf16 on a GPU and on a processor that
        computes in bfloat16, else fp32, which is then far faster. A run keeps what it began with: going on with it on a
        machine of the other kind is refused until the precision is named.
        """
        steps = math.ceil(self.epochs * num_samples / self.batch_size)
        precision = _fast_precision() if self.precision == "auto" else self.precision
        return dataclasses.replace(self, num_steps=self.num_steps or steps, precision=precision)


def _fast_precision() -> str:
    return "bf16" if fast_dtype(choose_device("auto")) == "bfloat16" else "fp32"


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"{name} must be {allowed}, got {value!r}")


def resolved(settings: TrainSettings) -> dict[str, Any]:
    return dataclasses.asdict(settings)


def differing_keys(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Keys, dotted where nested, whose values differ between two resolved configurations."""
    keys = []
    for name in sorted(set(before) | set(now)):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            keys += differing_keys(old, new, f"{prefix}{name}.")
        elif old != new:
            keys.append(f"{prefix}{name}")
    return keys


def keys_that_forbid_resuming(before: Mapping[str, Any], now: Mapping[str, Any], schedule: str) -> list[str]:
    """The differing keys that would make a resumed run another run. More steps are fine when the rate is constant."""
    free = {*FREE_KEYS, "num_steps", "epochs"} if schedule == "constant" else set(FREE_KEYS)
    return [key for key in differing_keys(before, now) if key.rpartition(".")[2] not in free]
