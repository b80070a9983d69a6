"""Prediction targets: numbers worked by hand, round trips, and diffusers as the oracle."""

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medisyn.diffusion.schedules import add_noise, alpha_bars_from_config, alpha_sigma
from medisyn.diffusion.targets import (
    clean_from_noise,
    clean_from_velocity,
    min_snr_weight,
    noise_from_velocity,
    target_for,
    velocity_target,
)
from medisyn.errors import ConfigError

CLEAN, NOISE, ALPHA, SIGMA = (torch.tensor(x) for x in (2.0, 5.0, 0.8, 0.6))


def test_targets_by_hand():
    # v = 0.8 * 5 - 0.6 * 2
    torch.testing.assert_close(velocity_target(CLEAN, NOISE, ALPHA, SIGMA), torch.tensor(2.8))
    assert target_for("epsilon", CLEAN, NOISE, ALPHA, SIGMA) == 5
    assert target_for("sample", CLEAN, NOISE, ALPHA, SIGMA) == 2
    torch.testing.assert_close(target_for("v_prediction", CLEAN, NOISE, ALPHA, SIGMA), torch.tensor(2.8))


def test_velocity_equals_diffusers():
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    clean, noise = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    timesteps_B = torch.tensor([0, 300, 999])
    alpha, sigma = alpha_sigma(alpha_bars_from_config(config), timesteps_B)
    theirs = diffusers.DDPMScheduler(**config).get_velocity(clean, noise, timesteps_B)
    torch.testing.assert_close(velocity_target(clean, noise, alpha, sigma), theirs)


@given(st.floats(0.02, 1.55), st.floats(-3, 3), st.floats(-3, 3))
def test_what_was_mixed_comes_back(angle, clean, noise):
    clean, noise = (torch.tensor(x, dtype=torch.float64) for x in (clean, noise))
    alpha, sigma = (f(torch.tensor(angle, dtype=torch.float64)) for f in (torch.cos, torch.sin))
    noisy = add_noise(clean, noise, alpha, sigma)
    velocity = velocity_target(clean, noise, alpha, sigma)
    torch.testing.assert_close(clean_from_velocity(noisy, velocity, alpha, sigma), clean, rtol=0, atol=1e-12)
    torch.testing.assert_close(noise_from_velocity(noisy, velocity, alpha, sigma), noise, rtol=0, atol=1e-12)
    torch.testing.assert_close(clean_from_noise(noisy, noise, alpha, sigma), clean, rtol=0, atol=1e-10)


def test_min_snr_weights_by_hand():
    snr_B = torch.tensor([0.0, 1.0, 4.0, 9.0])
    torch.testing.assert_close(min_snr_weight("sample", snr_B, 5.0), torch.tensor([0.0, 1.0, 4.0, 5.0]))
    torch.testing.assert_close(min_snr_weight("v_prediction", snr_B, 5.0), torch.tensor([0.0, 0.5, 0.8, 0.5]))
    torch.testing.assert_close(min_snr_weight("epsilon", snr_B[1:], 5.0), torch.tensor([1.0, 1.0, 5 / 9]))


@given(st.floats(0.05, 1.5), st.floats(-2, 2))
def test_min_snr_weighs_the_same_error_on_the_clean_latents_the_same_whatever_is_predicted(angle, error):
    # an error e on the clean latents is an error alpha/sigma * e on the noise and e/sigma on the velocity
    alpha, sigma = (f(torch.tensor(angle, dtype=torch.float64)) for f in (torch.cos, torch.sin))
    ratio = (alpha / sigma) ** 2
    by_sample = min_snr_weight("sample", ratio, 5.0) * error**2
    by_noise = min_snr_weight("epsilon", ratio, 5.0) * (alpha / sigma * error) ** 2
    by_velocity = min_snr_weight("v_prediction", ratio, 5.0) * (error / sigma) ** 2
    torch.testing.assert_close(by_noise, by_sample)
    torch.testing.assert_close(by_velocity, by_sample)


def test_an_unknown_prediction_type_is_named():
    with pytest.raises(ConfigError, match=r"'v-prediction' is unknown.*Did you mean 'v_prediction'"):
        target_for("v-prediction", CLEAN, NOISE, ALPHA, SIGMA)
