"""`make_heart`: the picture shows what the labels and the truth say, and its speckle moves with the tissue."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from medisyn.errors import InputError
from medisyn.phantoms.heart import VIEWS, Case, HeartPhantom, make_heart
from medisyn.phantoms.heart.fan import Converter, Fan


@cache
def phantom(seed: int = 1, ejection: float = 60.0, effusion: float = 300.0, view: str = VIEWS[0]) -> HeartPhantom:
    return make_heart(seed, Case(view, ejection, 72.0, effusion))


def test_the_same_seed_gives_the_same_clip_and_the_same_heart_at_another_size():
    first, again = phantom(), make_heart(1, phantom().case)
    np.testing.assert_array_equal(first.clip.array_CTHW, again.clip.array_CTHW)
    np.testing.assert_array_equal(first.labels_THW, again.labels_THW)
    other = make_heart(1, first.case, size=(96, 168), frames=2)
    assert first.caption == other.caption
    assert first.truth["volume_ml"][:2] == other.truth["volume_ml"]
    assert (first.truth["edv_ml"], first.truth["depth_mm"]) == (other.truth["edv_ml"], other.truth["depth_mm"])
    assert other.clip.array_CTHW.shape == (1, 2, 96, 168)
    assert make_heart(2, first.case, frames=1).truth["edv_ml"] != first.truth["edv_ml"]


def test_shapes_ranges_and_the_sector():
    made = phantom()
    assert made.clip.array_CTHW.shape == (1, 16, 64, 112)
    assert made.clip.array_CTHW.dtype == np.uint8
    assert made.clip.frames_per_second == 12.5
    outside = ~made.sector_HW
    assert outside.mean() > 0.3
    assert not made.labels_THW[:, outside].any()
    assert made.clip.array_CTHW[0][:, outside].mean() < 2  # only the rim's own pixels


@pytest.mark.parametrize("view", VIEWS)
def test_truth_and_labels_agree(view):
    made = phantom(3, 65.0, 0.0, view)
    area_mm2 = (made.labels_THW == 1).sum(axis=(1, 2)) * made.truth["mm_per_pixel"] ** 2
    np.testing.assert_allclose(area_mm2 / 100, made.truth["area_cm2"], rtol=0.06)
    volumes = np.array(made.truth["volume_ml"])
    assert made.truth["esv_ml"] == pytest.approx(0.35 * made.truth["edv_ml"], rel=1e-4)
    assert made.truth["ejection_fraction_in_clip"] == pytest.approx(100 * (1 - volumes.min() / volumes.max()), abs=0.01)
    assert 60 < made.truth["ejection_fraction_in_clip"] <= 65.001
    assert made.truth["grade"] == "normal"
    assert made.truth["effusion"] == "no"


def test_blood_and_fluid_are_dark_and_walls_are_bright():
    made = phantom()
    frames, labels = made.clip.array_CTHW[0].astype(float), made.labels_THW
    grey = {number: frames[labels == number].mean() for number in (1, 2, 4, 6)}
    assert grey[2] > 1.8 * max(grey[1], grey[4], grey[6])


def test_speckle_stays_in_tissue_that_rests_and_follows_tissue_that_moves():
    # what is far from the heart rests: its picture repeats from frame to frame, as white noise would not
    made = phantom(5, 12.0, 0.0)
    frames = made.clip.array_CTHW[0].astype(float)
    rows, columns = np.mgrid[:64, :112]
    far = made.sector_HW & (rows > 38) & (np.abs(columns - 56) > 34)
    flat = frames[:, far] - frames[:, far].mean(axis=0).mean()
    pairs = [np.corrcoef(flat[t], flat[t + 1])[0, 1] for t in range(15)]
    assert np.median(pairs) > 0.6
    blood = (made.labels_THW == 1).all(axis=0)
    inside = [np.corrcoef(frames[t][blood], frames[t + 2][blood])[0, 1] for t in range(14)]
    assert np.median(inside) < np.median(pairs) - 0.2


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"size": (40, 112)}, "height and width must be 48 to 1024 pixels, got 40 x 112"),
        ({"frames": 0}, "number of frames must be at least 1, got 0"),
        ({"frames_per_second": 0.5}, "frames in a second must be 1 to 200, got 0.5"),
    ],
)
def test_what_cannot_be_filmed(wrong, text):
    with pytest.raises(InputError, match=text):
        make_heart(0, **wrong)


# ---- the sector


def test_a_fan_by_hand():
    fan = Fan((102, 202), 100.0, 90.0)
    # 100 mm on 100 rows is 1 mm; 2 * 100 * sin 45 = 141 mm on 200 columns is less
    assert fan.mm_per_pixel == pytest.approx(1.0)
    sector = fan.sector()
    assert sector[50].sum() == pytest.approx(2 * 49.5, abs=2)  # at 49.5 mm, 90 degrees are as wide as twice the depth
    assert Fan((102, 72), 100.0, 90.0).mm_per_pixel == pytest.approx(2 * 100 * np.sin(np.pi / 4) / 70)


@pytest.mark.parametrize("size", [(64, 112), (200, 350)])
def test_scan_conversion_of_rings_and_beams(size):
    fan = Fan(size, 150.0, 80.0)
    depths, beams = fan.shape
    x, z = fan.positions()
    inner = fan.sector() & (np.hypot(x, z) < 145) & (np.hypot(x, z) > 15) & (np.abs(np.arctan2(x, z)) < 0.6)
    rings = Converter(fan)(np.broadcast_to(np.linspace(0, 150, depths)[:, None], fan.shape).astype(np.float32))
    np.testing.assert_allclose(rings[inner], np.hypot(x, z)[inner], atol=0.2)
    fans = Converter(fan)(np.broadcast_to(np.linspace(-40, 40, beams)[None], fan.shape).astype(np.float32))
    np.testing.assert_allclose(fans[inner], np.rad2deg(np.arctan2(x, z))[inner], atol=0.4)
    assert Converter(fan)(np.ones(fan.shape, np.float32))[~fan.sector()].mean() < 0.05
