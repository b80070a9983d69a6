"""Windows and percentiles worked by hand, and the guards against values in the wrong range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medisyn.errors import InputError, RangeError
from medisyn.intensity import guard_hu, guard_not_empty, percentile_clip, window


def test_the_papers_window_by_hand():
    # Width 700 and level 100 show -250 to 450 HU. 100 HU is the middle, 127.5, and rounds to the even 128.
    # -150: 100 / 700 * 255 = 36.43; 0: 250 / 700 * 255 = 91.07; 449: 699 / 700 * 255 = 254.64
    hu = np.array([-1024, -250, -150, 0, 100, 449, 450, 3000], np.float32)
    np.testing.assert_array_equal(window(hu, 700, 100), [0, 0, 36, 91, 128, 255, 255, 255])


def test_a_half_grey_level_rounds_to_the_even_one():
    # Width 510 gives half a grey level per HU: 1 -> 0.5 -> 0, 3 -> 1.5 -> 2, 5 -> 2.5 -> 2
    np.testing.assert_array_equal(window(np.array([1, 3, 5]), 510, 255), [0, 2, 2])


@given(hnp.arrays(np.int16, st.integers(2, 30)), st.integers(1, 4000), st.integers(-1000, 1000))
def test_a_window_keeps_order_and_fills_bytes(hu, width, level):
    grey = window(np.sort(hu), width, level)
    assert grey.dtype == np.uint8
    assert (np.diff(grey.astype(int)) >= 0).all()
    below, above = np.sort(hu) <= level - width / 2, np.sort(hu) >= level + width / 2
    assert (grey[below] == 0).all()
    assert (grey[above] == 255).all()


@pytest.mark.parametrize("width", [0, -1, float("nan")])
def test_a_window_needs_a_width(width):
    with pytest.raises(InputError, match="width must be above 0 HU"):
        window(np.zeros(3), width, 40)


def test_percentiles_by_hand():
    # Of 0..100, the 10th and 90th percentiles are 10 and 90: 50 is the middle, 127.5 -> 128; 30 is a quarter, 63.75.
    grey = percentile_clip(np.arange(101.0), 10, 90)
    np.testing.assert_array_equal(grey[[0, 10, 30, 50, 90, 100]], [0, 0, 64, 128, 255, 255])


def test_one_hot_pixel_does_not_darken_the_rest():
    array = np.tile(np.arange(100.0), 10)
    array[0] = 1e6
    grey = percentile_clip(array)
    assert grey.max() == 255
    assert np.median(grey) == pytest.approx(127, abs=2)


def test_an_image_that_is_almost_all_background_is_scaled_whole():
    array = np.zeros(10_000)
    array[:3] = (50, 100, 200)
    np.testing.assert_array_equal(percentile_clip(array)[:4], [64, 128, 255, 0])  # 63.75, 127.5, 255


@pytest.mark.parametrize(("low", "high"), [(-1, 99), (50, 50), (60, 40), (0, 101)])
def test_percentiles_run_upwards_within_a_hundred(low, high):
    with pytest.raises(InputError, match="0 <= low < high <= 100"):
        percentile_clip(np.arange(10), low, high)


def test_percentiles_of_one_value_or_of_nan_are_refused():
    with pytest.raises(RangeError, match="every pixel is 3: the image is empty"):
        percentile_clip(np.full((4, 4), 3))
    with pytest.raises(RangeError, match="1 pixels are NaN or infinite"):
        percentile_clip(np.array([0.0, 1.0, np.nan]))


# ---- guards

CHEST = np.array([-1024, -850, -90, 40, 60, 900], np.float32)


@pytest.mark.parametrize("hu", [CHEST, CHEST.astype(np.int16), np.array([-90, 30, 55]), np.array([-2000, 0, 20_000])])
def test_a_real_range_passes(hu):
    guard_hu(hu)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ((CHEST + 1024) / 1924, r"looks like \[0, 1\] or \[-1, 1\] and not Hounsfield"),
        ((CHEST + 1024) / 962 - 1, r"from -1 to 1, which looks like"),
        ((CHEST + 1024) / 1924 * 255, "already windowed to grey levels"),
        (CHEST * 100, "rescale slope was applied twice or is wrong"),
        (np.zeros(4), "every voxel is 0; the image is empty"),
        (np.array([0, np.nan, -1000]), "1 voxels are NaN or infinite"),
    ],
)
def test_numbers_that_are_not_hu_are_refused(wrong, text):
    with pytest.raises(RangeError, match=text):
        guard_hu(wrong)


def test_an_empty_picture_is_refused():
    guard_not_empty(np.array([0, 1]))
    with pytest.raises(RangeError, match="every pixel is 0: the image is empty"):
        guard_not_empty(np.zeros((2, 2), np.uint8))
    with pytest.raises(RangeError, match="2 pixels are NaN or infinite"):
        guard_not_empty(np.array([np.inf, np.nan, 1.0]))
