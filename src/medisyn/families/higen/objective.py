"""The training objective: v-prediction with zero terminal SNR and offset noise, its loss on real latents only.

Shapes here: B clips (or pictures: T = 1), C latent channels, T frames, H, W pixels, h, w latent rows and columns,
S training timesteps, f pixels per latent cell along each side.
The order of the draws is part of the format: changing it changes every seeded run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from medisyn.diffusion.schedules import alpha_bars_from_config, draw_uniform_timestep

# Published: VGen's "linear_sd", which is linear in sqrt(beta), rescaled so that the last timestep is pure noise.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}


def alpha_bars() -> torch.Tensor:
    """alpha_bar of every training timestep, (S,); the last is 0."""
    return alpha_bars_from_config(SCHEDULE)


def alpha_sigma(alpha_bars_S: torch.Tensor, timesteps_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar) at each row's timestep, both (B, 1, 1, 1, 1)."""
    bars_B = alpha_bars_S.to(timesteps_B.device)[timesteps_B].view(-1, 1, 1, 1, 1)
    return bars_B.sqrt(), (1 - bars_B).sqrt()


@dataclass(frozen=True)
class Draws:
    """All randomness of one step, on the CPU."""

    posterior_BCThw: torch.Tensor  # unit noise of the autoencoder's posterior
    timesteps_B: torch.Tensor
    noise_BCThw: torch.Tensor  # offset included
    dropped_B: torch.Tensor  # True: this step sees no caption

    def to(self, device: torch.device) -> Draws:
        return Draws(
            self.posterior_BCThw.to(device),
            self.timesteps_B.to(device),
            self.noise_BCThw.to(device),
            self.dropped_B.to(device),
        )


def draw(
    generators: Sequence[torch.Generator], shape: Sequence[int], *, offset_noise: float, caption_dropout: float
) -> Draws:
    """Row i from generators[i] alone: posterior noise, timestep, noise, its offset, caption drop.

    `shape` is one row's latents (C, T, h, w).
    """
    posterior, timesteps, noise, dropped = [], [], [], []
    for generator in generators:
        posterior.append(torch.randn(tuple(shape), generator=generator))
        timesteps.append(draw_uniform_timestep(generator, int(SCHEDULE["num_train_timesteps"])))  # type: ignore[call-overload]
        noise.append(noise_with_offset(shape, generator, offset_noise))
        dropped.append(bool(torch.rand(1, generator=generator) < caption_dropout))
    return Draws(torch.stack(posterior), torch.tensor(timesteps), torch.stack(noise), torch.tensor(dropped))


def noise_with_offset(shape: Sequence[int], generator: torch.Generator, offset_noise: float) -> torch.Tensor:
    """Unit noise (C, T, h, w) plus `offset_noise` times one draw per channel and frame, the same all over a frame."""
    noise_CThw = torch.randn(tuple(shape), generator=generator)
    return noise_CThw + offset_noise * torch.randn(*shape[:2], 1, 1, generator=generator)


def valid_latents(valid_BTHW: torch.Tensor, factor: int) -> torch.Tensor:
    """Which latent cells count: those whose f x f pixels are all real. bool (B, T, h, w) from 0 and 1 per pixel."""
    holes = F.max_pool2d((valid_BTHW == 0).float(), factor)  # 1 where a pixel of the cell is padding
    return holes == 0


def error_per_sample(
    prediction_BCThw: torch.Tensor, target_BCThw: torch.Tensor, valid_BThw: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of each row over its valid latents, float32 (B,). Each row has at least one."""
    squared = (prediction_BCThw.float() - target_BCThw.float()).square().mean(dim=1)
    kept = torch.where(valid_BThw, squared, 0.0).flatten(1).sum(dim=1)  # not a product: NaN in padding stays out
    return kept / valid_BThw.flatten(1).sum(dim=1)
