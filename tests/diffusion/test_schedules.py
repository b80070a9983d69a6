"""Noise schedules: numbers worked by hand, and diffusers' schedulers as the oracle."""

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medisyn.diffusion.schedules import (
    add_noise,
    alpha_bars_from_config,
    alpha_sigma,
    betas_for,
    draw_logit_normal_timestep,
    draw_uniform_timestep,
    rescale_zero_terminal_snr,
    snr,
)
from medisyn.errors import ConfigError

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def test_linear_betas_by_hand():
    torch.testing.assert_close(betas_for("linear", 3, 0.1, 0.3), torch.tensor([0.1, 0.2, 0.3]))


def test_scaled_linear_betas_are_linear_in_the_root():
    torch.testing.assert_close(betas_for("scaled_linear", 3, 0.01, 0.09), torch.tensor([0.01, 0.04, 0.09]))


def test_alpha_bars_by_hand():
    config = {"beta_schedule": "linear", "beta_start": 0.5, "beta_end": 0.5, "num_train_timesteps": 3}
    torch.testing.assert_close(alpha_bars_from_config(config), torch.tensor([0.5, 0.25, 0.125]))


def test_trained_betas_come_before_the_schedule():
    torch.testing.assert_close(alpha_bars_from_config({"trained_betas": [0.5, 0.2]}), torch.tensor([0.5, 0.4]))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_alpha_bars_equal_diffusers(schedule):
    ours = alpha_bars_from_config({**STABLE_DIFFUSION, "beta_schedule": schedule})
    theirs = diffusers.DDPMScheduler(**{**STABLE_DIFFUSION, "beta_schedule": schedule}).alphas_cumprod
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_zero_terminal_snr_by_hand():
    # sqrt(alpha_bar) is 0.9, 0.72, 0.36; shifted and scaled to end at 0 and keep 0.9: (x - 0.36) * 0.9 / 0.54
    betas_T = 1 - torch.tensor([0.9, 0.8, 0.5]) ** 2
    alpha_bars_T = (1 - rescale_zero_terminal_snr(betas_T)).cumprod(0)
    torch.testing.assert_close(alpha_bars_T.sqrt(), torch.tensor([0.9, 0.6, 0.0]))


def test_zero_terminal_snr_equals_diffusers():
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr as theirs

    betas_T = betas_for("scaled_linear", 1000, 0.00085, 0.012)
    torch.testing.assert_close(rescale_zero_terminal_snr(betas_T), theirs(betas_T.clone()), rtol=0, atol=1e-6)
    ours = alpha_bars_from_config(
        {**STABLE_DIFFUSION, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    )
    assert ours[-1] == 0
    assert bool((ours[:-1] > 0).all())


def test_zero_terminal_snr_is_refused_with_epsilon():
    with pytest.raises(ConfigError, match="zero terminal SNR cannot be learned with prediction_type 'epsilon'"):
        alpha_bars_from_config({**STABLE_DIFFUSION, "rescale_betas_zero_snr": True})


def test_an_unknown_schedule_is_named():
    with pytest.raises(ConfigError, match=r"'scaled_liner' is unknown.*Did you mean 'scaled_linear'"):
        betas_for("scaled_liner", 10, 0.1, 0.2)


def test_noising_equals_diffusers():
    scheduler = diffusers.DDPMScheduler(**STABLE_DIFFUSION)
    generator = torch.Generator().manual_seed(3)
    clean, noise = torch.randn(2, 4, 4, 3, 3, generator=generator)
    timesteps_B = torch.tensor([0, 10, 500, 999])
    alpha, sigma = alpha_sigma(alpha_bars_from_config(STABLE_DIFFUSION), timesteps_B)
    assert alpha.shape == (4, 1, 1, 1)
    torch.testing.assert_close(add_noise(clean, noise, alpha, sigma), scheduler.add_noise(clean, noise, timesteps_B))


def test_snr_by_hand_and_as_diffusers_computes_it():
    from diffusers.training_utils import compute_snr

    torch.testing.assert_close(snr(torch.tensor([0.5, 0.8, 0.0])), torch.tensor([1.0, 4.0, 0.0]))
    timesteps_B = torch.tensor([1, 400, 999])
    theirs = compute_snr(diffusers.DDPMScheduler(**STABLE_DIFFUSION), timesteps_B)
    torch.testing.assert_close(snr(alpha_bars_from_config(STABLE_DIFFUSION)[timesteps_B]), theirs, rtol=1e-4, atol=0)


@given(st.floats(0, 1))
def test_alpha_and_sigma_lie_on_the_unit_circle(alpha_bar):
    alpha, sigma = alpha_sigma(torch.tensor([alpha_bar]), torch.tensor([0]))
    assert float(alpha**2 + sigma**2) == pytest.approx(1, abs=1e-6)


def test_uniform_timesteps_cover_the_range_evenly():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([draw_uniform_timestep(generator, 10) for _ in range(4000)])
    counts = torch.bincount(drawn, minlength=10)
    assert counts.shape == (10,)
    assert int(counts.min()) > 320  # 400 expected, standard deviation 19
    assert int(counts.max()) < 480


def test_logit_normal_timesteps_have_the_median_and_quartiles_of_the_formula():
    # sigmoid(0) = 0.5; the quartiles of N(0, 1) are -+0.6745, and sigmoid(0.6745) = 0.6625
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([float(draw_logit_normal_timestep(generator, 1000)) for _ in range(4000)])
    quartiles = torch.quantile(drawn, torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quartiles, torch.tensor([337.5, 500.0, 662.5]), rtol=0, atol=15)
    shifted = [draw_logit_normal_timestep(generator, 1000, mean=100.0) for _ in range(3)]
    assert shifted == [999, 999, 999]
