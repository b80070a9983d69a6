"""From noise to latents: ancestral sampling on Würstchen's continuous schedule, for Stage C and for Stage B.

Shapes here: B requests, C latent channels, h, w latent rows and columns.
It is diffusers' DDPMWuerstchenScheduler in its order of operations, so that the same noise gives the same latents.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from medisyn.errors import ConfigError, closest
from medisyn.families.wuerstchen.objective import alpha_bar
from medisyn.families.wuerstchen.settings import SOLVERS

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # latents, times (B,) -> noise, float32


def times_for(solver: str, steps: int) -> torch.Tensor:
    """Times falling from 1 to 0, float32; the network is called at all of them but the last.

    ancestral: steps + 1 evenly spaced. ancestral-short: the published list, 20 times from 1 to 2/3 and 10 more to 0,
    whatever `steps` says. Raises ConfigError for another name, or fewer than 1 step.
    """
    if solver not in SOLVERS:
        raise ConfigError(f"solver {solver!r} is unknown, allowed: {', '.join(SOLVERS)}.{closest(solver, SOLVERS)}")
    if solver == "ancestral-short":
        early = torch.linspace(1.0, 2 / 3, 20, dtype=torch.float64)
        late = torch.linspace(2 / 3, 0.0, 11, dtype=torch.float64)
        return torch.cat([early, late[1:]]).float()
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, got {steps}")
    return torch.linspace(1.0, 0.0, steps + 1)


def unit_noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> torch.Tensor:
    """One row of unit noise from each generator, on the CPU."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


def ancestral_step(
    latents_BChw: torch.Tensor, noise_BChw: torch.Tensor, fresh_BChw: torch.Tensor, time: float, after: float
) -> torch.Tensor:
    """From time to the one after it; `noise` is what the network sees in the latents, `fresh` is drawn anew.

    mu = (x - (1 - a) / sqrt(1 - abar) * noise) / sqrt(a) with a = abar / abar', variance (1 - a) (1 - abar') /
    (1 - abar) (Ho et al. 2020); nothing is added where `after` is 0.
    """
    bar, bar_after = alpha_bar(latents_BChw.new_tensor([time])), alpha_bar(latents_BChw.new_tensor([after]))
    ratio = bar / bar_after
    mean = (1.0 / ratio).sqrt() * (latents_BChw - (1 - ratio) * noise_BChw / (1 - bar).sqrt())
    if after == 0:
        return mean
    return mean + ((1 - ratio) * (1.0 - bar_after) / (1.0 - bar)).sqrt() * fresh_BChw


def denoise(
    predict: Predict, noise_BChw: torch.Tensor, times: torch.Tensor, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Latents (B, C, h, w) float32 from unit noise. Row i's fresh noise comes from generators[i], once per step."""
    latents = noise_BChw
    shape = noise_BChw.shape[1:]
    for time, after in itertools.pairwise(times.tolist()):
        times_B = latents.new_full((len(latents),), time)
        fresh = unit_noise(generators, shape).to(latents.device)
        latents = ancestral_step(latents, predict(latents, times_B), fresh, time, after)
    return latents
