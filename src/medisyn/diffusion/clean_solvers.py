"""Solvers for networks that predict the clean data, over a continuous schedule.

A solver walks through falling times; at each it is handed the network's clean prediction, already guided, fixed where
it is known and clamped, and gives the state at the next time. At the last time the prediction is the result.
Shapes: any; x has the shape of the prediction.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from medisyn.errors import ConfigError, closest

if TYPE_CHECKING:
    import torch

    Predict = Callable[[torch.Tensor, float], torch.Tensor]
    Draw = Callable[[], torch.Tensor]

CLEAN_SOLVERS = ("ddim", "dpmpp-2m", "renoise")


def check_clean_solver(solver: str) -> None:
    """Raise ConfigError for a solver that is not in CLEAN_SOLVERS."""
    if solver not in CLEAN_SOLVERS:
        hint = closest(solver, CLEAN_SOLVERS)
        raise ConfigError(f"solver {solver!r} is unknown, allowed: {', '.join(CLEAN_SOLVERS)}.{hint}")


def times_for(solver: str, steps: int) -> list[float]:
    """The times at which the network is called, falling from 1.

    ddim: steps + 1 of them, 1, ..., 1/steps, 0, as MedSyn's published sampler counts (50 steps are 51 calls).
    dpmpp-2m, renoise: `steps` of them, 1, ..., 1/steps.
    """
    check_clean_solver(solver)
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, got {steps}")
    times = [1 - number / steps for number in range(steps)]
    return [*times, 0.0] if solver == "ddim" else times


def solve(predict: Predict, draw: Draw, solver: str, steps: int) -> torch.Tensor:
    """From unit noise to the clean data; `predict(x, t)` is called len(times_for(solver, steps)) times.

    `draw()` gives unit noise: once, to start from; by renoise for every step. renoise hides the clean prediction under
    fresh noise instead of following one path (Song et al. 2023, Consistency Models, algorithm 1): what a small network
    gets wrong at one step is then not taken for data at the next. It is no fair draw: of a perfect network's normal
    distribution about 70 % of the spread is left.
    """
    times = times_for(solver, steps)
    x = draw()
    earlier, earlier_step = x, 0.0
    for time, after in itertools.pairwise(times):
        clean = predict(x, time)
        if solver == "ddim":
            x = ddim_step(x, clean, time, after)
            continue
        if solver == "renoise":
            alpha, sigma = _shares(after)
            x = alpha * clean + sigma * draw()
            continue
        direction, step = clean, log_snr_half(after) - log_snr_half(time)
        if earlier_step > 0:
            direction = clean + (step / (2 * earlier_step)) * (clean - earlier)
        x = dpmpp_step(x, direction, time, after)
        earlier, earlier_step = clean, step
    return predict(x, times[-1])


def mean_prediction(predict: Predict, draw: Draw, clean: torch.Tensor, time: float, draws: int) -> torch.Tensor:
    """The mean of `draws` predictions at `time`, each of `clean` hidden under fresh noise.

    What a network leaves of the noise it was shown differs from draw to draw and is averaged out; what it takes for
    data in every draw stays.
    """
    alpha, sigma = _shares(time)
    total = predict(alpha * clean + sigma * draw(), time)
    for _ in range(draws - 1):
        total = total + predict(alpha * clean + sigma * draw(), time)
    return total / draws


def ddim_step(x: torch.Tensor, clean: torch.Tensor, time: float, after: float) -> torch.Tensor:
    """alpha' * clean + sigma' * noise, where noise = (x - alpha * clean) / sigma (Song et al. 2021, eta 0)."""
    (alpha, sigma), (alpha_after, sigma_after) = _shares(time), _shares(after)
    return alpha_after * clean + sigma_after * (x - alpha * clean) / sigma


def dpmpp_step(x: torch.Tensor, direction: torch.Tensor, time: float, after: float) -> torch.Tensor:
    """(sigma' / sigma) x - alpha' (exp(-h) - 1) direction, h the step in lambda (Lu et al. 2022b, equation 9)."""
    (_, sigma), (alpha_after, sigma_after) = _shares(time), _shares(after)
    step = log_snr_half(after) - log_snr_half(time)
    return (sigma_after / sigma) * x - alpha_after * math.expm1(-step) * direction


def log_snr_half(time: float) -> float:
    """lambda(t) = log(alpha / sigma)."""
    alpha, sigma = _shares(time)
    return math.log(alpha / sigma)


def _shares(time: float) -> tuple[float, float]:
    import torch

    from medisyn.diffusion.cosine import cosine_alpha_bar

    bar = float(cosine_alpha_bar(torch.tensor(time, dtype=torch.float64)))
    return math.sqrt(bar), math.sqrt(1 - bar)
