"""Ejection fraction and flicker from grey frames alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medisyn.errors import InputError
from medisyn.phantoms.heart import VIEWS, Case, flicker, make_heart, measure_ejection
from medisyn.phantoms.heart.fit import Fit, section_of, two_levels


@pytest.mark.parametrize(("view", "percent"), [(VIEWS[0], 68.0), (VIEWS[1], 22.0)])
def test_the_measure_follows_the_heart(view, percent):
    made = make_heart(11, Case(view, percent, 90.0, 0.0), frames=12)
    measured = measure_ejection(made.clip.array_CTHW[0], made.truth["mm_per_pixel"])
    assert measured.reason is None
    assert measured.ef == pytest.approx(percent, abs=10)
    assert measured.edv == pytest.approx(made.truth["edv_ml"], rel=0.3)
    assert np.corrcoef(measured.areas_T, made.truth["area_cm2"])[0, 1] > 0.75
    assert measured.ef == pytest.approx(100 * (1 - measured.esv / measured.edv))


def test_blur_and_size_change_little():
    made = make_heart(12, Case(VIEWS[0], 60.0, 100.0, 0.0), frames=9)
    frames = made.clip.array_CTHW[0]
    sharp = measure_ejection(frames)
    blurred = measure_ejection(gaussian_filter(frames, (0, 0.8, 0.8)))
    large = measure_ejection(frames.repeat(2, axis=1).repeat(2, axis=2))
    assert blurred.ef == pytest.approx(sharp.ef, abs=8)
    assert large.ef == pytest.approx(sharp.ef, abs=3)
    assert large.edv == pytest.approx(8 * sharp.edv, rel=0.05)  # cubic pixels


def test_no_ventricle_is_no_number():
    black = measure_ejection(np.zeros((4, 64, 112), np.uint8))
    assert (black.ef, black.edv, black.esv) == (None, None, None)
    assert "no contrast" in black.reason
    noise = measure_ejection(np.random.default_rng(0).integers(0, 256, (4, 64, 112)).astype(np.uint8))
    assert noise.ef is None
    assert "no dark chamber with a brighter wall" in noise.reason
    assert np.isnan(noise.areas_T).all()


@pytest.mark.parametrize(
    "frames",
    [np.zeros((3, 64, 112), np.uint8), np.zeros((8, 40, 112), np.uint8), np.zeros((8, 64, 112)), np.zeros((64, 112))],
)
def test_what_cannot_be_measured(frames):
    with pytest.raises(InputError, match="needs grey frames"):
        measure_ejection(frames)


def test_area_and_volume_of_a_pose_by_hand():
    # half an ellipse cut at u = 1: mean squared half width 0.75, so V = 0.75 pi L R^2; the axis shortens by 0.28 * 0.5
    pose = np.array([0, 0.2, 0, 0.5, 0.3, 0, 0])
    area, volume = section_of(Fit(pose, 1.0, np.array([1.0, 0.5])), 100)
    np.testing.assert_allclose(volume, [0.75 * np.pi * 50 * 15**2, 0.375 * np.pi * 50 * 15**2], rtol=1e-5)
    length, radius = 50 * 0.86, 15 * np.sqrt(0.5 / 0.86)
    mean = area[0] / (50 * 15)
    assert area[1] == pytest.approx(length * radius * mean)
    s = np.linspace(-0.5, 1, 100_001)
    assert mean == pytest.approx(2 * np.sqrt(1 - s**2).mean(), rel=1e-4)


def test_two_levels_of_two_levels():
    dark, bright = two_levels(np.repeat([10.0, 12.0, 90.0], [50, 50, 30]))
    assert dark == pytest.approx(11, abs=1)
    assert bright == pytest.approx(90, abs=1)


# ---- flicker


def test_flicker_by_hand():
    still = np.full((9, 64, 112), 100.0)
    assert flicker(still) == 0
    assert flicker(still + 2.0 * np.arange(9)[:, None, None]) == pytest.approx(0)  # evenly brighter is no flicker
    jumping = still + 10.0 * (-1) ** np.arange(9)[:, None, None]
    assert flicker(jumping) == pytest.approx(20)  # |90 - 2 * 110 + 90| / 2


def test_flicker_looks_where_nothing_moves():
    rng = np.random.default_rng(0)
    grain = rng.uniform(50, 200, (64, 112))
    frames = np.repeat(grain[None], 12, axis=0)
    frames[:, :, 40:] = np.stack([np.roll(grain, 9 * t, axis=1)[:, 40:] for t in range(12)])
    assert flicker(frames) < 3  # a third rests
    assert flicker(frames + rng.normal(0, 8, frames.shape)) > flicker(frames) + 5


def test_flicker_of_white_noise_is_above_that_of_a_phantom():
    made = make_heart(13, Case(), frames=8)
    frames = made.clip.array_CTHW[0].astype(float)
    noise = np.random.default_rng(0).normal(0, 25, frames.shape) * made.sector_HW
    assert flicker(np.clip(frames + noise, 0, 255)) > 1.5 * flicker(frames)


def test_what_cannot_flicker():
    with pytest.raises(InputError, match="at least 5 frames"):
        flicker(np.zeros((4, 64, 112)))
    with pytest.raises(InputError, match="is the clip black"):
        flicker(np.zeros((8, 64, 112)))
