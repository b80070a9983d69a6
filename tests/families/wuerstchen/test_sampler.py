"""Würstchen's sampler: against diffusers' scheduler with the same generators, and counted."""

import numpy as np
import pytest
import torch
from diffusers import DDPMWuerstchenScheduler

from medisyn.errors import ConfigError
from medisyn.families.wuerstchen.objective import alpha_bar
from medisyn.families.wuerstchen.sampler import denoise, times_for, unit_noise
from medisyn.seeding import generator_for

SHAPE = (2, 3, 4)
PUBLISHED = [*np.linspace(1.0, 2 / 3, 20), *np.linspace(2 / 3, 0.0, 11)[1:]]  # diffusers' DEFAULT_STAGE_C_TIMESTEPS


def generators(count):
    return [generator_for(7, f"row {number}") for number in range(count)]


def predict(latents, times_B):
    """Anything that depends on both: no network is needed."""
    return torch.tanh(latents * (1 + times_B.view(-1, 1, 1, 1)))


@pytest.mark.parametrize(("solver", "steps", "calls"), [("ancestral", 60, 60), ("ancestral-short", 60, 29)])
def test_calls_and_times(solver, steps, calls):
    times = times_for(solver, steps)
    assert len(times) == calls + 1
    assert (float(times[0]), float(times[-1])) == (1.0, 0.0)
    assert (times.diff() < 0).all()


def test_the_short_list_is_the_published_one():
    np.testing.assert_allclose(times_for("ancestral-short", 1), PUBLISHED, atol=1e-7)


@pytest.mark.parametrize("solver", ["ancestral", "ancestral-short"])
def test_the_same_noise_gives_the_latents_of_diffusers(solver):
    scheduler, theirs = DDPMWuerstchenScheduler(), generators(3)
    scheduler.set_timesteps(**({"num_inference_steps": 12} if solver == "ancestral" else {"timesteps": PUBLISHED}))
    expected = unit_noise(theirs, SHAPE)
    for time in scheduler.timesteps[:-1]:
        times_B = time.expand(3)
        expected = scheduler.step(predict(expected, times_B), times_B, expected, generator=theirs).prev_sample
    ours = generators(3)
    got = denoise(predict, unit_noise(ours, SHAPE), times_for(solver, 12), ours)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_row_does_not_depend_on_the_rows_beside_it():
    three, one = generators(3), generators(3)[1:2]
    together = denoise(predict, unit_noise(three, SHAPE), times_for("ancestral", 5), three)
    alone = denoise(predict, unit_noise(one, SHAPE), times_for("ancestral", 5), one)
    assert torch.equal(together[1:2], alone)


def test_a_perfect_network_finds_the_clean_latents():
    """For data of one point the noise in x is known: (x - sqrt(abar) clean) / sqrt(1 - abar)."""
    clean = torch.full((1, *SHAPE), 0.7)

    def perfect(latents, times_B):
        bar = alpha_bar(times_B).view(-1, 1, 1, 1)
        return (latents - bar.sqrt() * clean) / (1 - bar).sqrt()

    own = generators(1)
    got = denoise(perfect, unit_noise(own, SHAPE), times_for("ancestral", 20), own)
    torch.testing.assert_close(got, clean, rtol=0, atol=0.02)  # abar(0) is 0.9999: a share of 0.01 of noise may stay


def test_refused():
    with pytest.raises(ConfigError, match="solver 'euler' is unknown, allowed: ancestral"):
        times_for("euler", 3)
    with pytest.raises(ConfigError, match="steps must be at least 1, got 0"):
        times_for("ancestral", 0)
