"""The training objective: what is drawn for each sample and step, and the loss it gives.

Shapes here: B samples, C latent channels, h, w latent rows and columns, T training timesteps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medisyn.diffusion.schedules import draw_logit_normal_timestep, draw_uniform_timestep, snr
from medisyn.diffusion.targets import min_snr_weight
from medisyn.families.stable_diffusion.config import StableDiffusionConfig


@dataclass(frozen=True)
class Draws:
    """All randomness of one step, on the CPU."""

    posterior_BChw: torch.Tensor  # unit noise of the autoencoder's posterior
    timesteps_B: torch.Tensor
    noise_BChw: torch.Tensor
    dropped_B: torch.Tensor  # True: this step sees no caption

    def to(self, device: torch.device) -> Draws:
        return Draws(
            self.posterior_BChw.to(device),
            self.timesteps_B.to(device),
            self.noise_BChw.to(device),
            self.dropped_B.to(device),
        )


def draw(
    generators: Sequence[torch.Generator], shape: Sequence[int], num_timesteps: int, config: StableDiffusionConfig
) -> Draws:
    """Row i from generators[i] alone, always in this order: posterior noise, timestep, noise, caption drop.

    `shape` is one row's latents (C, h, w). The order is part of the format: changing it changes every seeded run.
    """
    posterior, timesteps, noise, dropped = [], [], [], []
    for generator in generators:
        posterior.append(torch.randn(tuple(shape), generator=generator))
        timesteps.append(_draw_timestep(generator, num_timesteps, config))
        noise.append(torch.randn(tuple(shape), generator=generator))
        dropped.append(bool(torch.rand(1, generator=generator) < config.caption_dropout))
    return Draws(torch.stack(posterior), torch.tensor(timesteps), torch.stack(noise), torch.tensor(dropped))


def _draw_timestep(generator: torch.Generator, num_timesteps: int, config: StableDiffusionConfig) -> int:
    if config.timestep_sampling == "logit_normal":
        return draw_logit_normal_timestep(generator, num_timesteps, config.logit_mean, config.logit_deviation)
    return draw_uniform_timestep(generator, num_timesteps)


def loss_per_sample(
    prediction_BChw: torch.Tensor,
    target_BChw: torch.Tensor,
    alpha_bars_B: torch.Tensor,
    prediction_type: str,
    snr_gamma: float | None,
) -> torch.Tensor:
    """Mean squared error of each row in float32, (B,), weighted by min-SNR when `snr_gamma` is set."""
    error_B = (prediction_BChw.float() - target_BChw.float()).pow(2).mean(dim=(1, 2, 3))
    if snr_gamma is None:
        return error_B
    return error_B * min_snr_weight(prediction_type, snr(alpha_bars_B), snr_gamma)
