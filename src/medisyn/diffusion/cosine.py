"""The continuous cosine schedule of MedSyn: time t in [0, 1], 0 the clean data, 1 almost pure noise.

Shapes here: B batch. `alpha` and `sigma` are the factors of x_t = alpha * clean + sigma * noise.
"""

from __future__ import annotations

import math

import torch

OFFSET = 0.008  # Nichol and Dhariwal 2021, equation 17
FLOOR = 1e-4  # alpha_bar stays this far from 0 and 1, so that both shares are always positive


def cosine_alpha_bar(times: torch.Tensor) -> torch.Tensor:
    """alpha_bar(t) = cos^2(((t + 0.008) / 1.008) pi / 2), kept within [1e-4, 1 - 1e-4]; any shape.

    It is not divided by alpha_bar(0), as in MedSyn's published weights: alpha_bar(0) = 0.99984.
    """
    return torch.cos((times + OFFSET) / (1 + OFFSET) * (math.pi / 2)).square().clamp(FLOOR, 1 - FLOOR)


def cosine_alpha_sigma(times_B: torch.Tensor, num_axes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma of each row's time, both (B, 1, ..., 1) with `num_axes` axes in all."""
    bars = cosine_alpha_bar(times_B).view(-1, *[1] * (num_axes - 1))
    return bars.sqrt(), (1 - bars).sqrt()
