"""The training objective of Stages B and C: a continuous cosine schedule, epsilon as the target, and its weight.

Shapes here: B samples, C latent channels, h, w latent rows and columns.
Time t runs from 0, the clean latents, to 1, almost pure noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medisyn.diffusion.cosine import FLOOR, OFFSET
from medisyn.families.wuerstchen.settings import WuerstchenConfig

FIRST_TIME = 0.001  # the earliest time of "original" sampling
STRETCH = 1.08  # of "original" sampling: times beyond 1 are 1, so that pure noise is met often


@dataclass(frozen=True)
class Draws:
    """All randomness of one step, on the CPU."""

    times_B: torch.Tensor
    noise_BChw: torch.Tensor
    dropped_B: torch.Tensor  # True: this step sees no caption

    def to(self, device: torch.device) -> Draws:
        return Draws(self.times_B.to(device), self.noise_BChw.to(device), self.dropped_B.to(device))


def alpha_bar(times: torch.Tensor) -> torch.Tensor:
    """cos^2(((t + 0.008) / 1.008) pi / 2) / cos^2((0.008 / 1.008) pi / 2), kept within [1e-4, 1 - 1e-4]; any shape.

    Würstchen divides by the value at 0 where MedSyn (diffusion/cosine.py) does not.
    """
    first = math.cos(OFFSET / (1 + OFFSET) * (math.pi / 2)) ** 2
    bars = torch.cos((times + OFFSET) / (1 + OFFSET) * (math.pi / 2)).square() / first
    return bars.clamp(FLOOR, 1 - FLOOR)


def draw(generators: Sequence[torch.Generator], shape: Sequence[int], config: WuerstchenConfig) -> Draws:
    """Row i from generators[i] alone, always in this order: time, noise, caption drop.

    `shape` is one row's latents (C, h, w). With drop_unit "batch" the first row's coin counts for all. The order is
    part of the format: changing it changes every seeded run.
    """
    times, noise, dropped = [], [], []
    for generator in generators:
        times.append(draw_time(generator, config.time_sampling))
        noise.append(torch.randn(tuple(shape), generator=generator))
        dropped.append(bool(torch.rand(1, generator=generator) < config.caption_dropout))
    if config.drop_unit == "batch":
        dropped = [dropped[0]] * len(dropped)
    return Draws(torch.cat(times), torch.stack(noise), torch.tensor(dropped))


def draw_time(generator: torch.Generator, time_sampling: str) -> torch.Tensor:
    """One time (1,): "uniform" in [0, 1), or "original", (1 - U) * 1.08 + 0.001 cut at 1."""
    uniform = torch.rand(1, generator=generator)
    if time_sampling == "uniform":
        return uniform
    return ((1 - uniform) * STRETCH + FIRST_TIME).clamp(FIRST_TIME, 1.0)


def add_noise(clean_BChw: torch.Tensor, noise_BChw: torch.Tensor, times_B: torch.Tensor) -> torch.Tensor:
    """sqrt(alpha_bar) * clean + sqrt(1 - alpha_bar) * noise."""
    bars = alpha_bar(times_B).view(-1, 1, 1, 1)
    return bars.sqrt() * clean_BChw + (1 - bars).sqrt() * noise_BChw


def loss_per_sample(
    predicted_BChw: torch.Tensor, noise_BChw: torch.Tensor, times_B: torch.Tensor, loss_weight: str
) -> torch.Tensor:
    """Mean squared error of each row's noise in float32, (B,), times its weight.

    "p2" is (1 + SNR)^-1 (Choi et al. 2022 with k = gamma = 1), which is 1 - alpha_bar; "none" is 1.
    """
    error_B = (predicted_BChw.float() - noise_BChw.float()).square().mean(dim=(1, 2, 3))
    return error_B * (1 - alpha_bar(times_B)) if loss_weight == "p2" else error_B
