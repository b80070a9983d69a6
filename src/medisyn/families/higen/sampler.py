"""From noise to latents: DDIM on velocities, and windows over clips longer than the network's.

Shapes here: B requests, C latent channels, N frames of the clip, T frames of a window, h, w latent rows and columns,
S training timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from medisyn.diffusion.targets import clean_from_velocity, noise_from_velocity
from medisyn.errors import ConfigError

# Noisy latents (B, C, T, h, w) at a timestep -> guided velocity, of the same shape.
Velocity: TypeAlias = Callable[[torch.Tensor, int], torch.Tensor]


def ddim_times(steps: int, spacing: str, num_timesteps: int = 1000) -> list[int]:
    """The timesteps at which the network is called, falling, `steps` of them.

    leading: 1, 1 + d, 1 + 2 d, ... with d = num_timesteps // steps, as published (50 steps: 981, 961, ..., 1).
    trailing: from the last timestep down (50 steps: 999, 979, ..., 19). Raises ConfigError for more steps than times.
    """
    if not 1 <= steps <= num_timesteps - 1:
        raise ConfigError(f"steps must lie between 1 and {num_timesteps - 1}, got {steps}")
    if spacing == "trailing":
        return [round(num_timesteps - number * num_timesteps / steps) - 1 for number in range(steps)]
    return [1 + number * (num_timesteps // steps) for number in reversed(range(steps))]


def ddim(velocity: Velocity, noise: torch.Tensor, times: Sequence[int], alpha_bars_S: torch.Tensor) -> torch.Tensor:
    """Clean latents from noise (Song et al. 2021, eta 0); the last step goes to the clean prediction itself."""
    x = noise
    for time, after in zip(times, [*times[1:], None], strict=True):
        alpha, sigma = _shares(alpha_bars_S, time)
        answer = velocity(x, time)
        clean = clean_from_velocity(x, answer, alpha, sigma)
        if after is None:
            return clean
        alpha_after, sigma_after = _shares(alpha_bars_S, after)
        x = alpha_after * clean + sigma_after * noise_from_velocity(x, answer, alpha, sigma)
    raise AssertionError("ddim_times gives at least one time")


def _shares(alpha_bars_S: torch.Tensor, time: int) -> tuple[torch.Tensor, torch.Tensor]:
    bar = alpha_bars_S[time]
    return bar.sqrt(), (1 - bar).sqrt()


def windows(num_frames: int, window: int, overlap: int) -> list[tuple[int, torch.Tensor]]:
    """(first frame, weights (T,)) of each window; at every frame the weights of all windows sum to 1.

    Neighbours share at least `overlap` frames; the last window ends with the clip. Weights rise evenly from a window's
    inner edge. A clip of `window` frames is one window of weight exactly 1. Raises ConfigError when it is shorter.
    """
    if num_frames < window or not 0 <= overlap < window:
        raise ConfigError(f"{num_frames} frames cannot be covered by windows of {window} that share {overlap}")
    starts = [*range(0, num_frames - window, window - overlap), num_frames - window]
    rise_T = torch.arange(1, window + 1, dtype=torch.float32).clamp(max=overlap + 1)
    raw = []
    for start in starts:
        weights_T = torch.full((window,), float(overlap + 1))
        if start > 0:
            weights_T = torch.minimum(weights_T, rise_T)
        if start + window < num_frames:
            weights_T = torch.minimum(weights_T, rise_T.flip(0))
        raw.append(weights_T)
    total_N = torch.zeros(num_frames)
    for start, weights_T in zip(starts, raw, strict=True):
        total_N[start : start + window] += weights_T
    return [(start, weights_T / total_N[start : start + window]) for start, weights_T in zip(starts, raw, strict=True)]


def over_windows(velocity: Velocity, window: int, overlap: int) -> Velocity:
    """The velocity of a clip of any length from that of windows: at each step every window is asked, and their answers
    are blended, so that all windows follow one path from one noise."""

    def blended(x_BCNhw: torch.Tensor, time: int) -> torch.Tensor:
        cover = windows(x_BCNhw.shape[2], window, overlap)
        if len(cover) == 1:
            return velocity(x_BCNhw, time)
        whole = torch.zeros_like(x_BCNhw)
        for start, weights_T in cover:
            part = velocity(x_BCNhw[:, :, start : start + window], time)
            whole[:, :, start : start + window] += part * weights_T.to(part.device).view(1, 1, -1, 1, 1)
        return whole

    return blended
