import itertools

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from medisyn.errors import ConfigError
from medisyn.families.higen.objective import SCHEDULE, alpha_bars
from medisyn.families.higen.sampler import ddim, ddim_times, over_windows, windows


def test_the_published_times():
    times = ddim_times(50, "leading")
    assert (times[:2], times[-1], len(times)) == ([981, 961], 1, 50)
    assert ddim_times(50, "trailing")[:2] + ddim_times(50, "trailing")[-1:] == [999, 979, 19]
    assert ddim_times(1, "trailing") == [999]


@pytest.mark.parametrize("steps", [0, 1000])
def test_as_many_steps_as_there_are_times(steps):
    with pytest.raises(ConfigError, match="steps must lie between 1 and 999"):
        ddim_times(steps, "leading")


def velocity(x, time):
    return torch.sin(3 * x) * (time / 1000) + 0.1 * x


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_the_same_as_diffusers(spacing):
    """Equal to 1e-4 in float32: their alpha_bar is rescaled in another order of operations."""
    offset = 1 if spacing == "leading" else 0
    theirs = DDIMScheduler(
        **SCHEDULE, timestep_spacing=spacing, steps_offset=offset, clip_sample=False, set_alpha_to_one=True
    )
    theirs.set_timesteps(10)
    noise = torch.randn(1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    times = ddim_times(10, spacing)
    assert times == theirs.timesteps.tolist()
    x = noise
    for time in theirs.timesteps:
        x = theirs.step(velocity(x, int(time)), time, x).prev_sample
    torch.testing.assert_close(ddim(velocity, noise, times, alpha_bars()), x, rtol=1e-4, atol=1e-4)


def test_the_right_velocity_leads_to_the_clean_latents():
    clean, bars = torch.randn(1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1)), alpha_bars()

    def exact(x, time):
        alpha, sigma = bars[time].sqrt(), (1 - bars[time]).sqrt()
        return alpha * ((x - alpha * clean) / sigma) - sigma * clean

    torch.testing.assert_close(ddim(exact, torch.randn_like(clean), ddim_times(20, "trailing"), bars), clean)


@given(st.integers(2, 12), st.integers(0, 11), st.integers(0, 40))
def test_windows_cover_a_clip_and_their_weights_sum_to_1(window, overlap, extra):
    overlap = min(overlap, window - 1)
    cover, total = windows(window + extra, window, overlap), torch.zeros(window + extra)
    for (start, weights), (after, _) in itertools.pairwise(cover):
        assert start < after <= start + window - overlap
        assert (weights > 0).all()
    for start, weights in cover:
        total[start : start + window] += weights
    torch.testing.assert_close(total, torch.ones(window + extra))
    assert cover[0][0] == 0
    assert cover[-1][0] == extra


def test_weights_by_hand():
    # 5 frames in windows of 3 that share 1: frames 0-2 and 2-4; both have frame 2 with equal weight
    (first, left), (second, right) = windows(5, 3, 1)
    assert (first, second) == (0, 2)
    assert (left.tolist(), right.tolist()) == ([1, 1, 0.5], [0.5, 1, 1])


def test_one_window_is_exactly_the_unwindowed_clip():
    ((start, weights),) = windows(16, 16, 4)
    assert start == 0
    assert torch.equal(weights, torch.ones(16))
    x = torch.randn(2, 3, 16, 2, 2)
    assert torch.equal(over_windows(velocity, 16, 4)(x, 500), velocity(x, 500))


def test_a_velocity_of_single_frames_is_the_same_in_windows():
    x = torch.randn(1, 2, 37, 2, 2, generator=torch.Generator().manual_seed(2))
    asked = []

    def frame_by_frame(part, time):
        asked.append(part.shape[2])
        return velocity(part, time)

    got = over_windows(frame_by_frame, 16, 6)(x, 300)
    torch.testing.assert_close(got, velocity(x, 300))
    assert asked == [16] * 4  # from frames 0, 10, 20 and 21


def test_windows_that_do_not_fit():
    for frames, window, overlap in ((3, 4, 1), (8, 4, 4), (8, 4, -1)):
        with pytest.raises(ConfigError, match="cannot be covered by windows"):
            windows(frames, window, overlap)
