"""Whole phantoms: seeded, one patient at every size, masks that agree with the CT, findings that can be measured."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy import ndimage

from medisyn.errors import InputError
from medisyn.phantoms import KINDS, Finding, draw_findings, make_thorax
from medisyn.phantoms.patient import draw_patient

SIZE = 40


@pytest.fixture(scope="module")
def healthy():
    return made()


@functools.cache
def made(*findings: Finding, seed: int = 7):
    return make_thorax(seed, SIZE, findings)


def hu_in(phantom, mask: np.ndarray) -> np.ndarray:
    """HU well inside a mask, where no edge is."""
    return phantom.volume.array_CDHW[0][ndimage.binary_erosion(mask)]


# ---- seeds and sizes


def test_a_seed_gives_the_same_phantom_and_another_seed_another(healthy):
    again = make_thorax(7, SIZE, [])
    np.testing.assert_array_equal(again.volume.array_CDHW, healthy.volume.array_CDHW)
    assert again.report == healthy.report
    assert again.truth == healthy.truth
    other = made(seed=8)
    assert np.abs(other.volume.array_CDHW - healthy.volume.array_CDHW).mean() > 30


def test_two_sizes_are_one_patient(healthy):
    large = make_thorax(7, 2 * SIZE, [])
    assert large.report == healthy.report
    for name in ("effusion_ml", "heart_ml", "lung_ml"):
        assert large.truth[name] == pytest.approx(healthy.truth[name], rel=0.05)
    assert large.truth["cardiothoracic_ratio"] == pytest.approx(healthy.truth["cardiothoracic_ratio"], abs=0.02)
    small = large.volume.array_CDHW[0].reshape(SIZE, 2, SIZE, 2, SIZE, 2).mean((1, 3, 5))
    assert np.corrcoef(small.ravel(), healthy.volume.array_CDHW.ravel())[0, 1] > 0.98
    np.testing.assert_allclose(large.volume.spacing_mm, np.array(healthy.volume.spacing_mm) / 2)


def test_findings_do_not_change_the_person():
    patients = [draw_patient(np.random.default_rng(3), f) for f in ([], [Finding("effusion")], [Finding("bullae")])]
    assert patients[0] == patients[1] == patients[2]
    large = draw_patient(np.random.default_rng(3), [Finding("cardiomegaly", severity=1)])
    assert large.heart_scale > 1.2 * patients[0].heart_scale
    assert (large.sex, large.age, large.lung_height) == (patients[0].sex, patients[0].age, patients[0].lung_height)


# ---- the CT and its masks


def test_tissues_have_their_hounsfield_units(healthy):
    masks = healthy.masks
    lungs = (masks["lobe"] > 0) & (masks["vessel"] == 0) & (masks["airway"] == 0)
    assert -900 < np.median(hu_in(healthy, lungs)) < -780
    assert 20 < np.median(hu_in(healthy, masks["heart"] > 0)) < 320
    assert healthy.volume.array_CDHW[0, :3, :3].mean() < -950  # air around the patient
    assert (healthy.volume.array_CDHW > 300).sum() > 200  # bone
    assert healthy.volume.value_range.unit == "hu"


def test_masks_agree_with_the_ct(healthy):
    hu, masks = healthy.volume.array_CDHW[0], healthy.masks
    for name, mask in masks.items():
        assert mask.shape == hu.shape, name
        assert mask.dtype == np.uint8
        assert not mask.flags.writeable
    assert not (masks["airway"] & masks["vessel"]).any()
    assert not ((masks["lobe"] > 0) & (masks["heart"] > 0)).any()
    assert ndimage.label(masks["airway"], structure=np.ones((3, 3, 3)))[1] == 1
    trachea = (masks["airway"] > 0) & (masks["lobe"] == 0)
    assert np.median(hu[trachea]) < -400  # a voxel of 8 mm holds the wall too
    assert hu[trachea].min() < -950
    inside = (masks["vessel"] > 0) & (masks["lobe"] > 0)
    around = (masks["vessel"] == 0) & (masks["lobe"] > 0)
    assert np.median(hu[inside]) > np.median(hu[around]) + 250
    assert masks["finding"].max() == 0


def test_left_is_left(healthy):
    columns = np.indices(healthy.masks["lobe"].shape)[2]
    lobe = healthy.masks["lobe"]
    assert columns[lobe == 1].mean() > columns[lobe == 3].mean() + 10  # +w is the patient's left
    heart = columns[healthy.masks["heart"] > 0].mean()
    assert heart > columns[lobe > 0].mean()  # the heart lies to the left


def test_gravity_makes_the_back_denser(healthy):
    lungs = (healthy.masks["lobe"] > 0) & (healthy.masks["vessel"] == 0) & (healthy.masks["airway"] == 0)
    hu, rows = healthy.volume.array_CDHW[0][lungs], np.nonzero(lungs)[1]
    front, back = np.quantile(rows, [0.25, 0.75])
    assert hu[rows > back].mean() > hu[rows < front].mean() + 8


# ---- findings


@pytest.mark.parametrize("side", ["left", "right"])
def test_fluid_lies_on_its_side_and_has_its_volume(side):
    small, large = made(Finding("effusion", side, 0.3)), made(Finding("effusion", side, 0.8))
    assert small.truth["effusion_ml"] == pytest.approx(60 + 1950 * 0.3**1.5, rel=0.15)
    assert large.truth["effusion_ml"] > 2 * small.truth["effusion_ml"]
    fluid = large.masks["effusion"] > 0
    assert -15 < np.median(hu_in(large, fluid)) < 25
    columns, lobe = np.nonzero(fluid)[2], large.masks["lobe"]
    assert (columns.mean() > SIZE / 2) == (side == "left")
    assert not (fluid & (lobe > 0)).any()
    rows = np.nonzero(fluid)[1].mean()
    assert rows > np.nonzero(lobe > 0)[1].mean()  # at the back: the patient lies on it


def test_an_enlarged_heart_has_a_ratio_above_normal(healthy):
    assert 0.36 < healthy.truth["cardiothoracic_ratio"] < 0.51
    ratios = [made(Finding("cardiomegaly", severity=s)).truth["cardiothoracic_ratio"] for s in (0.0, 0.5, 1.0)]
    assert 0.53 < ratios[0] < ratios[1] < ratios[2] < 0.8


def test_bullae_are_air_and_raise_low_attenuation(healthy):
    ill = made(Finding("bullae", "right", 0.8))
    assert healthy.truth["laa950_percent"] < 0.1
    assert ill.truth["laa950_percent"] > 3
    bullae = ill.masks["finding"] == 1 + KINDS.index("bullae")
    assert np.median(ill.volume.array_CDHW[0][bullae]) < -900
    assert set(np.unique(ill.masks["lobe"][bullae])) <= {0, 3, 4, 5}


def test_bullous_emphysema_is_graded_by_its_low_attenuation():
    mild, moderate, severe = (made(Finding("bullae", "both", s)).truth["laa950_percent"] for s in (0.1, 0.5, 1.0))
    assert 0.05 < mild < 1 < 3 < moderate < 10 < 15 < severe < 35


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("consolidation", -50, 110), ("ground_glass", -780, -400), ("nodule", -50, 110)]
)
def test_opacities_have_their_density(kind, low, high):
    ill = made(Finding(kind, "right", 0.9))
    inside = ill.masks["finding"] == 1 + KINDS.index(kind)
    assert inside.sum() > 20
    assert low < np.median(ill.volume.array_CDHW[0][inside]) < high
    assert ill.truth["finding_ml"][kind] == pytest.approx(
        inside.sum() * np.prod(ill.volume.spacing_mm) / 1000, rel=1e-3
    )
    assert not np.isin(ill.masks["lobe"][inside], [1, 2]).any()


def test_a_lobe_that_was_asked_for_is_the_lobe():
    ill = made(Finding("consolidation", "right", 0.7, lobe=3))
    inside = ill.masks["finding"] > 0
    assert set(np.unique(ill.masks["lobe"][inside])) <= {0, 3}
    assert "right upper lobe" in ill.findings_text.lower()


def test_collapse_makes_a_lobe_small_and_dense(healthy):
    ill = made(Finding("atelectasis", "left", 0.9))
    assert ill.truth["lobe_ml"]["left lower"] < 0.5 * healthy.truth["lobe_ml"]["left lower"]
    assert np.median(hu_in(ill, ill.masks["lobe"] == 2)) > -20
    bands = made(Finding("atelectasis", "right", 0.2))
    assert bands.truth["lobe_ml"]["right lower"] > 0.8 * healthy.truth["lobe_ml"]["right lower"]


# ---- drawing


def test_findings_are_drawn_evenly_and_from_both_sides():
    drawn = [draw_findings(seed) for seed in range(1600)]
    mains = [found[0].kind if found else "none" for found in drawn]
    for kind in (*KINDS, "none"):
        assert 150 < mains.count(kind) < 250  # 200 expected, standard deviation 13
    sides = [found[0].side for found in drawn if found and found[0].kind == "effusion"]
    assert min(sides.count(side) for side in ("left", "right", "both")) > 40
    assert 0.2 < np.mean([len(found) == 2 for found in drawn if found]) < 0.4


def test_drawing_from_two_kinds_gives_only_those():
    drawn = {f.kind for seed in range(50) for f in draw_findings(seed, ("effusion", "none"))}
    assert drawn == {"effusion"}


def test_a_kind_named_three_times_is_drawn_three_times_as_often():
    drawn = [draw_findings(seed, ("none", "bullae", "bullae", "bullae")) for seed in range(400)]
    assert 0.68 < np.mean([bool(found) for found in drawn]) < 0.82  # 0.75 expected, 0.02 the deviation


def test_severity_has_a_word():
    assert [Finding("effusion", severity=s).word for s in (0, 0.33, 0.34, 0.67, 1)] == [
        "mild", "mild", "moderate", "severe", "severe",
    ]  # fmt: skip


# ---- errors


def test_what_is_refused():
    with pytest.raises(InputError, match="size must be 32 to 512 voxels, got 16"):
        make_thorax(0, 16)
    with pytest.raises(InputError, match="may be given once"):
        make_thorax(0, 32, [Finding("effusion", "left"), Finding("effusion", "right")])
    with pytest.raises(InputError, match=r"'efusion' is unknown. Did you mean 'effusion'"):
        Finding("efusion")
    with pytest.raises(InputError, match="side 'up' is unknown"):
        Finding("effusion", "up")
    with pytest.raises(InputError, match="severity must lie in 0 to 1, got 2"):
        Finding("effusion", severity=2)
    with pytest.raises(InputError, match="cardiomegaly has no side"):
        Finding("cardiomegaly", "left")
    with pytest.raises(InputError, match="lies in one lung: give side left or right"):
        Finding("nodule")
    with pytest.raises(InputError, match=r"lobe 3 is not allowed; allowed: 1 \(left upper\), 2"):
        Finding("nodule", "left", lobe=3)
    with pytest.raises(InputError, match="allowed: none"):
        Finding("effusion", "left", lobe=1)
    with pytest.raises(InputError, match=r"'efusion' is not allowed. Did you mean 'effusion'"):
        draw_findings(0, ["efusion"])
    with pytest.raises(InputError, match="an empty list is not allowed"):
        draw_findings(0, [])
