import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from build_higen import beating
from medisyn.errors import InputError
from medisyn.families.higen.motion import luma, motion_value
from medisyn.types import SYMMETRIC, Clip


def test_by_hand():
    # 2 x 2 grey frames: |10 - 0| on one pixel of four is 2.5 levels; then |4 - 0| on all four is 4 levels
    frames = np.array([[[0, 0], [0, 0]], [[10, 0], [0, 0]], [[14, 4], [4, 4]]], np.uint8)
    np.testing.assert_allclose(motion_value(Clip(frames[None])), [250, 400])


def test_luma_by_hand():
    frame = np.array([100, 200, 50], np.uint8)[:, None, None]
    np.testing.assert_allclose(luma(frame), [[0.299 * 100 + 0.587 * 200 + 0.114 * 50]], rtol=1e-6)


def test_a_grey_clip_moves_as_its_rgb_copy():
    grey = beating()
    np.testing.assert_allclose(
        motion_value(Clip(grey)), motion_value(Clip(np.repeat(grey, 3, axis=0))), rtol=1e-5
    )  # the three weights sum to 1 up to float32


def test_only_pixels_that_are_real_in_both_frames_count():
    frames = np.array([[[0, 0]], [[10, 90]], [[10, 200]]], np.uint8)
    valid = np.array([[[1, 0]], [[1, 1]], [[0, 1]]], np.uint8)
    # gap 1: the left pixel alone, 10 levels, of which 1000 is the limit; gap 2: the right one, 110 levels
    np.testing.assert_allclose(motion_value(Clip(frames[None]), valid), [1000, 1000])
    frames[1, 0, 0] = 3
    np.testing.assert_allclose(motion_value(Clip(frames[None]), valid), [300, 1000])
    valid[2] = 0
    np.testing.assert_allclose(motion_value(Clip(frames[None]), valid), [300, 0])  # padding does not move


@given(st.integers(0, 2**32 - 1))
def test_what_a_masked_pixel_holds_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    valid = rng.integers(0, 2, (3, 4, 5)).astype(np.uint8)
    one, other = rng.integers(0, 256, (2, 1, 3, 4, 5)).astype(np.uint8)
    other = np.where(valid > 0, one, other)
    assert (motion_value(Clip(one), valid) == motion_value(Clip(other), valid)).all()


def drifting(pixels_per_frame, frames=9):
    """Soft stripes that move sideways."""
    columns = np.arange(64)[None, None] - pixels_per_frame * np.arange(frames)[:, None, None]
    return Clip(np.broadcast_to(100 + 30 * np.sin(columns / 5), (frames, 48, 64)).round().astype(np.uint8)[None])


def test_more_motion_is_a_larger_value():
    values = [motion_value(drifting(speed)).mean() for speed in (0, 0.25, 0.5, 1)]
    assert values[0] == 0
    assert values == sorted(values)
    # twice as fast, or every second frame: twice the value, as long as the stripes are much wider than the step
    np.testing.assert_allclose(values[3] / values[2], 2, rtol=0.1)
    half_the_rate = Clip(drifting(0.5).array_CTHW[:, ::2])
    np.testing.assert_allclose(motion_value(half_the_rate).mean() / values[2], 2, rtol=0.1)


def test_what_cannot_be_measured():
    with pytest.raises(InputError, match="at least 2 frames"):
        motion_value(Clip(np.zeros((1, 1, 4, 4), np.uint8)))
    with pytest.raises(InputError, match="uint8 clips"):
        motion_value(Clip(np.zeros((1, 2, 4, 4), np.float32), SYMMETRIC))
    with pytest.raises(InputError, match=r"mask of real pixels has shape \(2, 4, 5\)"):
        motion_value(Clip(np.zeros((1, 2, 4, 4), np.uint8)), np.ones((2, 4, 5), np.uint8))
