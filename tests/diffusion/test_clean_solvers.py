"""Solvers on clean predictions: how often they call the network, and where they arrive."""

import math

import pytest
import torch

from medisyn.diffusion.clean_solvers import CLEAN_SOLVERS, ddim_step, dpmpp_step, mean_prediction, solve, times_for
from medisyn.diffusion.cosine import cosine_alpha_bar
from medisyn.errors import ConfigError


def calls_of(solver: str, steps: int) -> list[float]:
    seen: list[float] = []

    def predict(x: torch.Tensor, time: float) -> torch.Tensor:
        seen.append(time)
        return torch.zeros_like(x)

    solve(predict, lambda: torch.ones(1), solver, steps)
    return seen


@pytest.mark.parametrize(
    ("solver", "steps", "calls"), [("ddim", 50, 51), ("ddim", 20, 21), ("dpmpp-2m", 12, 12), ("renoise", 12, 12)]
)
def test_the_papers_number_of_network_calls(solver, steps, calls):
    seen = calls_of(solver, steps)
    assert seen == times_for(solver, steps)
    assert len(seen) == calls
    assert seen[0] == 1.0
    assert seen[-1] == pytest.approx(0.0 if solver == "ddim" else 1 / steps)


@pytest.mark.parametrize("solver", CLEAN_SOLVERS)
def test_a_network_that_knows_the_answer_is_believed(solver):
    answer = torch.linspace(-1, 1, 5)
    torch.testing.assert_close(solve(lambda x, t: answer, lambda: torch.randn(5), solver, 4), answer)


def test_one_ddim_step_by_hand():
    # x = alpha * clean + sigma * noise with clean 0.5 and noise 2 lands at alpha' * 0.5 + sigma' * 2
    def shares(t: float) -> tuple[float, float]:
        bar = math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        return math.sqrt(bar), math.sqrt(1 - bar)

    (alpha, sigma), (alpha_after, sigma_after) = shares(0.6), shares(0.4)
    x = torch.tensor([alpha * 0.5 + sigma * 2], dtype=torch.float64)
    clean = torch.tensor([0.5], dtype=torch.float64)
    expected = torch.tensor([alpha_after * 0.5 + sigma_after * 2], dtype=torch.float64)
    torch.testing.assert_close(ddim_step(x, clean, 0.6, 0.4), expected, rtol=1e-12, atol=0)
    # with the clean data as direction, the first-order DPM-Solver++ step is DDIM's (Lu et al. 2022b, section 4)
    torch.testing.assert_close(dpmpp_step(x, clean, 0.6, 0.4), expected, rtol=1e-12, atol=0)


def gaussian_denoiser(spread: float):
    """E[clean | x_t] for clean data N(0, spread^2): what a perfect network predicts."""

    def predict(x: torch.Tensor, time: float) -> torch.Tensor:
        bar = float(cosine_alpha_bar(torch.tensor(time, dtype=torch.float64)))
        return x * math.sqrt(bar) * spread**2 / (bar * spread**2 + 1 - bar)

    return predict


def test_the_second_order_solver_needs_fewer_calls_for_the_same_error():
    """The probability-flow path of a Gaussian ends at x * spread, closely; errors are against a fine solution."""
    noise, spread = torch.tensor([1.0], dtype=torch.float64), 0.5
    exact = solve(gaussian_denoiser(spread), lambda: noise, "ddim", 5000)
    error = {
        (solver, steps): abs(float(solve(gaussian_denoiser(spread), lambda: noise, solver, steps) - exact))
        for solver, steps in (("ddim", 50), ("dpmpp-2m", 20), ("dpmpp-2m", 40))
    }
    assert error["dpmpp-2m", 20] < error["ddim", 50]
    assert error["dpmpp-2m", 40] < error["dpmpp-2m", 20]


def test_renoising_hides_each_prediction_under_fresh_noise():
    drawn = [torch.tensor([value]) for value in (3.0, -2.0, 5.0)]
    shown: list[float] = []

    def predict(x: torch.Tensor, time: float) -> torch.Tensor:
        shown.append(float(x))
        return torch.full_like(x, 0.5)

    assert float(solve(predict, iter(drawn).__next__, "renoise", 3)) == 0.5
    expected = [3.0]
    for time, noise in ((2 / 3, -2.0), (1 / 3, 5.0)):
        bar = math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        expected.append(math.sqrt(bar) * 0.5 + math.sqrt(1 - bar) * noise)
    assert shown == pytest.approx(expected)


def test_renoising_shrinks_the_spread_of_what_a_perfect_network_knows():
    """As is documented; one path keeps it."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4000, generator=generator, dtype=torch.float64)

    def fresh() -> torch.Tensor:
        return torch.randn(4000, generator=generator, dtype=torch.float64)

    assert float(solve(gaussian_denoiser(0.5), lambda: start, "dpmpp-2m", 25).std()) > 0.48
    assert 0.3 < float(solve(gaussian_denoiser(0.5), fresh, "renoise", 25).std()) < 0.4


def test_the_mean_of_predictions_averages_what_differs_between_draws_and_keeps_the_rest():
    generator = torch.Generator().manual_seed(0)
    clean = torch.linspace(-1, 1, 4000, dtype=torch.float64)

    def fresh() -> torch.Tensor:
        return torch.randn(4000, generator=generator, dtype=torch.float64)

    def predict(x: torch.Tensor, time: float) -> torch.Tensor:
        assert time == 0.3
        bar = float(cosine_alpha_bar(torch.tensor(time, dtype=torch.float64)))
        noise = (x - math.sqrt(bar) * clean) / math.sqrt(1 - bar)
        return clean + 0.2 + 0.1 * noise  # errs by 0.2 always, and by a tenth of the noise that it was shown

    for draws in (1, 16):
        error = mean_prediction(predict, fresh, clean, 0.3, draws) - clean
        assert float(error.mean()) == pytest.approx(0.2, abs=0.01)
        assert float(error.std()) == pytest.approx(0.1 / math.sqrt(draws), rel=0.1)


def test_many_steps_stay_finite_where_the_schedule_is_flat():
    # above t = 0.9936 alpha_bar is its floor, so steps there change nothing
    for solver in CLEAN_SOLVERS:
        assert torch.isfinite(solve(gaussian_denoiser(0.5), lambda: torch.ones(3), solver, 600)).all()


def test_refusals():
    with pytest.raises(
        ConfigError, match=r"solver 'ddimm' is unknown, allowed: ddim, dpmpp-2m, renoise. Did you mean 'ddim'"
    ):
        times_for("ddimm", 5)
    with pytest.raises(ConfigError, match="steps must be at least 1, got 0"):
        times_for("ddim", 0)
