"""Measures on masks: small arrays worked by hand, independent libraries, and phantoms whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import dice as dice_dissimilarity

from medisyn.errors import InputError, RangeError
from medisyn.evaluation import anatomy
from medisyn.phantoms import Finding, make_thorax

SPACING = (2.0, 1.5, 1.0)


def box(shape, *slices) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.uint8)
    mask[slices] = 1
    return mask


def a_lung() -> tuple[np.ndarray, np.ndarray]:
    """HU from -1000 to -801 in steps of 1, 200 voxels, all lung."""
    return -1000.0 + np.arange(200, dtype=np.float32).reshape(2, 10, 10), np.ones((2, 10, 10), dtype=bool)


# ---- volumes


def test_a_volume_by_hand():
    # 2 x 3 x 4 = 24 voxels of 2 x 1.5 x 1 = 3 mm^3: 72 mm^3 = 0.072 mL
    mask = box((5, 5, 5), slice(0, 2), slice(1, 4), slice(0, 4))
    assert anatomy.volume_ml(mask, SPACING) == pytest.approx(0.072, rel=1e-12)
    assert anatomy.volume_ml(mask * 7, SPACING) == pytest.approx(0.072, rel=1e-12)


def test_an_empty_mask_has_no_volume():
    assert anatomy.volume_ml(np.zeros((3, 3, 3), dtype=bool), SPACING) == 0


def test_the_lobes_by_hand():
    labels = np.array([[[0, 1, 1], [3, 3, 3], [5, 0, 2]]], dtype=np.uint8)
    assert anatomy.lobe_volumes_ml(labels, (10.0, 10.0, 10.0)) == {
        "left upper": 2.0,
        "left lower": 1.0,
        "right upper": 3.0,
        "right middle": 0.0,
        "right lower": 1.0,
    }


# ---- low attenuation


def test_low_attenuation_by_hand():
    # 200 voxels from -1000 to -801: 50 lie below -950 (-1000..-951), 90 below -910
    hu, lung = a_lung()
    assert anatomy.low_attenuation_percent(hu, lung) == 25.0
    assert anatomy.low_attenuation_percent(hu, lung, threshold=-910) == 45.0


def test_the_threshold_itself_does_not_count():
    hu, lung = a_lung()
    assert anatomy.low_attenuation_percent(hu, lung, threshold=-1000) == 0.0


def test_airways_are_no_emphysema():
    hu, lung = a_lung()
    airway = hu < -980  # 20 voxels, -1000..-981: 30 of 180 are left below -950
    assert anatomy.low_attenuation_percent(hu, lung, airway_DHW=airway) == pytest.approx(100 * 30 / 180)


def test_erosion_takes_the_edge_out():
    hu = np.full((5, 5, 5), -1000.0)
    hu[2, 2, 2] = -700.0  # the only voxel of a 3 x 3 x 3 lung that has all six neighbours inside
    lung = box((5, 5, 5), slice(1, 4), slice(1, 4), slice(1, 4))
    assert anatomy.low_attenuation_percent(hu, lung, erode_voxels=1) == 0.0
    assert anatomy.low_attenuation_percent(hu, lung) == pytest.approx(100 * 26 / 27)


def test_mean_density_without_airways():
    hu, lung = a_lung()
    assert anatomy.mean_lung_hu(hu, lung) == pytest.approx(-900.5)
    assert anatomy.mean_lung_hu(hu, lung, hu < -900) == pytest.approx(-850.5)


# ---- heart


def test_the_axial_ratio_by_hand():
    # the heart is widest in slice 1: columns 3 to 6, 4 wide; the chest there: columns 1 to 8, 8 wide, with a gap
    heart = box((3, 4, 10), 1, slice(0, 2), slice(3, 7))
    heart[0, 0, 4] = 1
    chest = box((3, 4, 10), slice(0, 3), slice(0, 4), slice(1, 9))
    chest[1, :, 3:7] = 0
    chest[2] = 1
    assert anatomy.cardiothoracic_ratio(heart, chest) == 0.5


def test_the_coronal_ratio_takes_each_at_its_widest():
    heart = box((3, 4, 10), 1, slice(0, 2), slice(3, 7))
    chest = box((3, 4, 10), slice(0, 2), slice(0, 4), slice(1, 9))
    chest[2, 3] = 1  # 10 columns in another slice
    assert anatomy.cardiothoracic_ratio(heart, chest) == 0.5
    assert anatomy.cardiothoracic_ratio_coronal(heart, chest) == 0.4


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_the_ratio_is_the_same_in_a_mirror(width, seed):
    rng = np.random.default_rng(seed)
    heart = rng.random((3, 4, 10)) < 0.1
    heart[1, 1, 1 : 1 + width] = True
    chest = rng.random((3, 4, 10)) < 0.5
    chest[:, 0, 2:5] = True
    plain = anatomy.cardiothoracic_ratio(heart, chest)
    assert anatomy.cardiothoracic_ratio(heart[:, :, ::-1], chest[:, :, ::-1]) == plain
    assert anatomy.cardiothoracic_ratio(heart[:, ::-1], chest[:, ::-1]) == plain


# ---- overlap


def test_dice_by_hand_and_by_scipy():
    # |A| = 8, |B| = 4, 2 voxels in common: 2 * 2 / 12
    a, b = box((2, 2, 4), slice(0, 2), slice(0, 2), slice(0, 2)), box((2, 2, 4), 0, slice(0, 2), slice(1, 3))
    assert anatomy.dice(a, b) == pytest.approx(4 / 12)
    assert anatomy.dice(a, b) == pytest.approx(1 - dice_dissimilarity(a.ravel() > 0, b.ravel() > 0), rel=1e-12)


def test_dice_of_two_empty_masks_is_no_number():
    empty, full = np.zeros((2, 2, 2), dtype=bool), np.ones((2, 2, 2), dtype=bool)
    assert math.isnan(anatomy.dice(empty, empty))
    assert anatomy.dice(empty, full) == 0.0
    assert anatomy.dice(full, full) == 1.0


def test_dice_of_each_lobe():
    labels, other = np.array([[[1, 1, 2, 0]]]), np.array([[[1, 2, 2, 0]]])
    got = anatomy.lobe_dice(labels, other)
    assert got["left upper"] == pytest.approx(2 / 3)
    assert got["left lower"] == pytest.approx(2 / 3)
    assert math.isnan(got["right lower"])


# ---- length


def test_a_straight_line_along_each_axis():
    for axis, step in enumerate(SPACING):
        mask = np.zeros((9, 9, 9), dtype=bool)
        place: list = [4, 4, 4]
        place[axis] = slice(1, 8)
        mask[tuple(place)] = True
        assert anatomy.tree_length_mm(mask, SPACING) == pytest.approx(6 * step, rel=1e-12)


def test_a_diagonal_and_a_corner():
    diagonal = np.zeros((6, 6, 6), dtype=bool)
    diagonal[range(6), range(6), range(6)] = True
    assert anatomy.tree_length_mm(diagonal, (1.0, 1.0, 1.0)) == pytest.approx(5 * math.sqrt(3))
    corner = np.zeros((3, 7, 7), dtype=bool)
    corner[1, 3, 0:4] = corner[1, 3:7, 3] = True  # 3 + 3 steps; thinning cuts the corner voxel: 2 + sqrt 2 + 2
    assert anatomy.tree_length_mm(corner, (1.0, 1.0, 1.0)) == pytest.approx(4 + math.sqrt(2))


def test_two_pieces_add_up_and_nothing_is_zero():
    mask = np.zeros((9, 9, 9), dtype=bool)
    assert anatomy.tree_length_mm(mask, (1.0, 1.0, 1.0)) == 0.0
    mask[4, 1, 1:5] = mask[4, 7, 1:4] = True
    assert anatomy.tree_length_mm(mask, (1.0, 1.0, 1.0)) == pytest.approx(3 + 2)


def test_a_thick_tube_is_as_long_as_its_middle():
    z, y, x = np.mgrid[:40, :15, :15]
    tube = ((y - 7) ** 2 + (x - 7) ** 2 <= 16) & (z >= 5) & (z < 35)
    assert anatomy.tree_length_mm(tube, (1.0, 1.0, 1.0)) == pytest.approx(29, abs=9)  # thinning eats into the ends


# ---- phantoms: the truth is summed from parts of voxels, these measures count whole ones


@pytest.fixture(scope="module")
def ill():
    return make_thorax(3, 64, [Finding("effusion", "left", 0.6), Finding("bullae", "right", 0.9)])


def test_the_measures_find_what_is_true_of_a_phantom(ill):
    spacing, masks, truth = ill.volume.spacing_mm, ill.masks, ill.truth
    lungs = masks["lobe"] > 0
    assert anatomy.volume_ml(masks["effusion"], spacing) == pytest.approx(truth["effusion_ml"], rel=0.05)
    assert anatomy.volume_ml(masks["heart"], spacing) == pytest.approx(truth["heart_ml"], rel=0.02)
    for name, volume in anatomy.lobe_volumes_ml(masks["lobe"], spacing).items():
        assert volume == pytest.approx(truth["lobe_ml"][name], rel=0.12, abs=5)
    ratio = anatomy.cardiothoracic_ratio(masks["heart"], lungs | (masks["effusion"] > 0))
    assert ratio == pytest.approx(truth["cardiothoracic_ratio"], abs=0.04)  # one voxel of 5.5 mm is 0.02
    laa = anatomy.low_attenuation_percent(ill.volume.array_CDHW[0], lungs, airway_DHW=masks["airway"])
    assert laa == pytest.approx(truth["laa950_percent"], rel=0.25)
    assert laa > 1


def test_the_airways_length_is_near_that_of_the_tree(ill):
    measured = anatomy.tree_length_mm(ill.masks["airway"], ill.volume.spacing_mm)
    # at 5 mm only the large airways are in the mask
    assert 300 < measured < ill.truth["airway_length_mm"]


# ---- errors


def test_what_is_refused():
    hu, lung = a_lung()
    empty, full = np.zeros((2, 10, 10), dtype=bool), np.ones((2, 10, 10), dtype=bool)
    with pytest.raises(InputError, match="must have axes D, H, W, got shape"):
        anatomy.volume_ml(lung[0], SPACING)
    with pytest.raises(InputError, match="three lengths above 0 mm"):
        anatomy.volume_ml(lung, (1.0, 0.0, 1.0))
    with pytest.raises(RangeError, match="below 0: threshold a mask in"):
        anatomy.volume_ml(np.full((2, 2, 2), -1.0), SPACING)
    with pytest.raises(RangeError, match="holds fractions"):
        anatomy.volume_ml(np.full((2, 2, 2), 0.3), SPACING)
    with pytest.raises(InputError, match="lobe labels must be 0 to 5, got 9"):
        anatomy.lobe_volumes_ml(np.full((2, 2, 2), 9), SPACING)
    with pytest.raises(InputError, match="lobe labels must have axes"):
        anatomy.lobe_volumes_ml(np.zeros((2, 2), dtype=int), SPACING)
    with pytest.raises(RangeError, match="not Hounsfield units"):
        anatomy.low_attenuation_percent((hu + 1000) / 200, lung)
    with pytest.raises(InputError, match="lung mask is empty once airways and edge"):
        anatomy.low_attenuation_percent(hu, lung, airway_DHW=full)
    with pytest.raises(InputError, match="erode_voxels must be 0 or more"):
        anatomy.low_attenuation_percent(hu, lung, erode_voxels=-1)
    with pytest.raises(InputError, match=r"lung mask .* differ in shape"):
        anatomy.low_attenuation_percent(hu, lung[:1])
    with pytest.raises(InputError, match=r"airway mask .* differ in shape"):
        anatomy.mean_lung_hu(hu, lung, lung[:1])
    with pytest.raises(InputError, match="mean lung density: the lung mask is empty"):
        anatomy.mean_lung_hu(hu, empty)
    with pytest.raises(InputError, match="heart mask is empty"):
        anatomy.cardiothoracic_ratio(empty, full)
    with pytest.raises(InputError, match="no chest in slice 0"):
        anatomy.cardiothoracic_ratio(full, empty)
    with pytest.raises(InputError, match="differ in shape"):
        anatomy.cardiothoracic_ratio(full, full[:1])
    with pytest.raises(InputError, match="the heart or the chest mask is empty"):
        anatomy.cardiothoracic_ratio_coronal(full, empty)
    with pytest.raises(InputError, match="Dice: the masks differ in shape"):
        anatomy.dice(full, full[:1])


# ---- sides and normal range


def test_sides_by_hand():
    """Left lobes in columns 7 to 9, right ones in 0 to 2: the midline is column 4.5, where the left grows."""
    lobes = np.zeros((2, 2, 10), np.uint8)
    lobes[..., 7:], lobes[..., :3] = 1, 4
    fluid = np.zeros_like(lobes)
    fluid[0, 0, [0, 1, 4, 5]] = 1
    assert anatomy.side_volumes_ml(fluid, lobes, (10, 10, 10)) == {"left": 1, "right": 3}
    assert anatomy.side_volumes_ml(fluid[..., ::-1], lobes[..., ::-1], (10, 10, 10)) == {"left": 1, "right": 3}
    odd = np.zeros((1, 1, 5), np.uint8)
    odd[..., 0], odd[..., 4] = 5, 2
    assert anatomy.side_volumes_ml(np.ones_like(odd), odd, (10, 10, 10)) == {"left": 2.5, "right": 2.5}


def test_sides_where_fluid_hides_a_lung():
    lobes = np.zeros((1, 1, 10), np.uint8)
    lobes[..., 7:] = 2
    fluid = np.zeros_like(lobes)
    fluid[..., :4] = 1
    assert anatomy.side_volumes_ml(fluid, lobes, (10, 10, 10)) == {"left": 0, "right": 4}
    right_only = np.where(lobes > 0, 3, 0)
    assert anatomy.side_volumes_ml(fluid, right_only, (10, 10, 10)) == {"left": 4, "right": 0}


def test_sides_that_cannot_be_told():
    with pytest.raises(InputError, match="there is no lobe to tell left from right"):
        anatomy.side_volumes_ml(np.ones((2, 2, 2)), np.zeros((2, 2, 2)), (1, 1, 1))
    with pytest.raises(InputError, match="differ in shape"):
        anatomy.side_volumes_ml(np.ones((2, 2, 2)), np.zeros((2, 2, 3)), (1, 1, 1))


def test_normal_range_is_the_middle_of_the_values():
    values = np.r_[np.arange(41.0), np.nan]  # 2.5 % of the way from 0 to 40 is 1
    assert anatomy.normal_range(values) == pytest.approx((1, 39))
    assert anatomy.normal_range(values, share=0.5) == pytest.approx((10, 30))
    with pytest.raises(InputError, match="at least 20 values, got 19"):
        anatomy.normal_range(np.r_[np.arange(19.0), np.nan])
