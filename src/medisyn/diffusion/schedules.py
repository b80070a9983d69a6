"""Noise schedules: from betas to the signal and noise share of each timestep.

Shapes here: T training timesteps, B batch. Timestep 0 is the least noisy. Everything is float32 on the CPU unless the
caller hands in something else; `alpha` and `sigma` are the factors of x_t = alpha * clean + sigma * noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from medisyn.errors import ConfigError, closest

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def betas_for(schedule: str, num_timesteps: int, start: float, end: float) -> torch.Tensor:
    """Betas (T,) by the name that diffusers scheduler configs use.

    "linear" (Ho et al. 2020), "scaled_linear" (linear in sqrt(beta), Rombach et al. 2022) and "squaredcos_cap_v2"
    (cosine, Nichol and Dhariwal 2021; `start` and `end` are not used). Raises ConfigError for another name.
    """
    if schedule == "linear":
        return torch.linspace(start, end, num_timesteps, dtype=torch.float32)
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, num_timesteps, dtype=torch.float32) ** 2
    if schedule == "squaredcos_cap_v2":
        bars = [math.cos((t / num_timesteps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(num_timesteps + 1)]
        return torch.tensor([min(1 - b / a, 0.999) for a, b in itertools.pairwise(bars)], dtype=torch.float32)
    hint = closest(schedule, SCHEDULES)
    raise ConfigError(f"beta schedule {schedule!r} is unknown, allowed: {', '.join(SCHEDULES)}.{hint}")


def rescale_zero_terminal_snr(betas_T: torch.Tensor) -> torch.Tensor:
    """Betas whose last timestep is pure noise (Lin et al. 2023, algorithm 1): shift and scale sqrt(alpha_bar).

    The first timestep keeps its alpha_bar; the last gets exactly 0, so its beta is 1.
    """
    root_T = (1 - betas_T).cumprod(0).sqrt()
    first, last = root_T[0].clone(), root_T[-1].clone()
    root_T = (root_T - last) * (first / (first - last))
    bar_T = root_T**2
    return 1 - torch.cat([bar_T[:1], bar_T[1:] / bar_T[:-1]])


def alpha_bars_from_config(scheduler_config: Mapping[str, Any]) -> torch.Tensor:
    """alpha_bar (T,) of a diffusers scheduler config, with its zero-terminal-SNR rescaling.

    Raises ConfigError when zero terminal SNR meets epsilon prediction.
    """
    zero_snr = bool(scheduler_config.get("rescale_betas_zero_snr", False))
    check_zero_snr(zero_snr, str(scheduler_config.get("prediction_type", "epsilon")))
    trained: Sequence[float] | None = scheduler_config.get("trained_betas")
    if trained is not None:
        betas_T = torch.tensor(trained, dtype=torch.float32)
    else:
        betas_T = betas_for(
            scheduler_config.get("beta_schedule", "linear"),
            int(scheduler_config.get("num_train_timesteps", 1000)),
            float(scheduler_config.get("beta_start", 1e-4)),
            float(scheduler_config.get("beta_end", 0.02)),
        )
    if zero_snr:
        betas_T = rescale_zero_terminal_snr(betas_T)
    return (1 - betas_T).cumprod(0)


def check_zero_snr(zero_snr: bool, prediction_type: str) -> None:
    """Raise ConfigError for zero terminal SNR with epsilon prediction."""
    if zero_snr and prediction_type == "epsilon":
        raise ConfigError(
            "zero terminal SNR cannot be learned with prediction_type 'epsilon': the last timestep holds no signal "
            "(Lin et al. 2023). Set prediction_type to 'v_prediction' or 'sample', or turn zero_terminal_snr off."
        )


def alpha_sigma(alpha_bars_T: torch.Tensor, timesteps_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha = sqrt(alpha_bar) and sigma = sqrt(1 - alpha_bar) at each row's timestep, both (B, 1, 1, 1)."""
    bars_B = alpha_bars_T.to(timesteps_B.device)[timesteps_B].view(-1, 1, 1, 1)
    return bars_B.sqrt(), (1 - bars_B).sqrt()


def add_noise(clean: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x_t = alpha * clean + sigma * noise."""
    return alpha * clean + sigma * noise


def snr(alpha_bars: torch.Tensor) -> torch.Tensor:
    """Signal-to-noise ratio alpha_bar / (1 - alpha_bar)."""
    return alpha_bars / (1 - alpha_bars)


def draw_uniform_timestep(generator: torch.Generator, num_timesteps: int) -> int:
    """One timestep, every one as likely."""
    return int(torch.randint(num_timesteps, (1,), generator=generator))


def draw_logit_normal_timestep(
    generator: torch.Generator, num_timesteps: int, mean: float = 0.0, deviation: float = 1.0
) -> int:
    """One timestep T * sigmoid(N(mean, deviation)) (Esser et al. 2024, section 3.1): the middle more often."""
    share = torch.sigmoid(mean + deviation * torch.randn(1, generator=generator))
    return min(int(share * num_timesteps), num_timesteps - 1)
