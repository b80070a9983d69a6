"""The classical segmenter: phantoms with exact truth, orientation, thinning, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest

from medisyn.errors import InputError, RangeError
from medisyn.evaluation.anatomy import cardiothoracic_ratio, dice, lobe_dice, low_attenuation_percent, volume_ml
from medisyn.evaluation.segment_ct import SOURCE, frame, segment_ct
from medisyn.evaluation.segment_ct.airway import grow_tree
from medisyn.evaluation.segment_ct.fluid_heart import pleural_fluid
from medisyn.evaluation.segment_ct.lungs import enclosed_gas
from medisyn.phantoms import Finding, make_thorax
from medisyn.types import HU, Volume


@pytest.fixture(scope="module")
def healthy():
    return make_thorax(1007, 64, ())


@pytest.fixture(scope="module")
def found(healthy):
    return segment_ct(healthy.volume)


def test_a_healthy_phantom(healthy, found):
    truth = healthy.masks
    assert dice(found.masks["lung"], truth["lobe"]) > 0.97
    assert dice(found.masks["lung"] == 2, np.isin(truth["lobe"], (1, 2))) > 0.96  # 2 is the left lung
    assert dice(found.masks["airway"], truth["airway"]) > 0.65  # 5 mm voxels show the trachea and main bronchi
    assert min(lobe_dice(found.masks["lobe"], truth["lobe"]).values()) > 0.6
    assert volume_ml(found.masks["effusion"], healthy.volume.spacing_mm) == 0
    measured = cardiothoracic_ratio(found.masks["heart"], found.masks["lung"] > 0)
    assert measured == pytest.approx(healthy.truth["cardiothoracic_ratio"], abs=0.06)
    assert found.notes == ()
    assert found.source == SOURCE == "classical, approximate"


def test_fluid_is_found_where_it_is_and_is_no_lung():
    phantom = make_thorax(1007, 64, (Finding("effusion", "right", 0.6),))
    masks = segment_ct(phantom.volume).masks
    measured = volume_ml(masks["effusion"], phantom.volume.spacing_mm)
    assert measured == pytest.approx(phantom.truth["effusion_ml"], rel=0.25)
    assert dice(masks["effusion"], phantom.masks["effusion"]) > 0.7
    assert (masks["lung"].astype(bool) & (phantom.masks["effusion"] > 0)).sum() < 0.02 * phantom.masks["effusion"].sum()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_large_effusion_counts_though_pressed_lung_lies_between_it_and_the_air(side):
    phantom = make_thorax(1013, 64, (Finding("effusion", side, 0.8),))
    noise = np.random.default_rng(0).normal(0, 25, phantom.volume.array_CDHW.shape)
    noisy = replace(phantom.volume, array_CDHW=np.maximum(phantom.volume.array_CDHW + noise, -1024).astype(np.float32))
    for volume in (phantom.volume, noisy):
        measured = volume_ml(segment_ct(volume).masks["effusion"], volume.spacing_mm)
        assert measured == pytest.approx(phantom.truth["effusion_ml"], rel=0.15)


def test_a_stomach_in_front_is_no_effusion():
    seeds = range(2000, 2003)
    healthy = [make_thorax(seed, 64, ()) for seed in seeds]
    assert not any(segment_ct(phantom.volume).masks["effusion"].any() for phantom in healthy)


@pytest.mark.parametrize(
    ("place", "counts"),
    [
        (np.s_[12:17, 22:34, 8:13], False),  # a muscle: its end alone is near the lung
        (np.s_[12:24, 21:29, 8:13], True),  # fluid: it lies along the lung
    ],
)
def test_fluid_lies_along_the_lung_where_a_muscle_only_comes_near_it(place, counts):
    hu = np.full((40, 40, 40), 50.0)  # soft tissue in voxels of 5 mm
    hu[8:32, 6, 4:36] = hu[8:32, 36, 4:36] = 800  # bone in front and behind
    sides = np.zeros(hu.shape, np.uint8)
    sides[10:30, 8:20, 6:16], sides[10:30, 8:20, 24:34] = 1, 2
    hu[sides > 0] = -850
    hu[place] = 8
    found = pleural_fluid(hu, np.ones(hu.shape, bool), sides, (5.0, 5.0, 5.0))
    assert found.any() == counts
    assert not found[np.abs(hu - 8) > 1].any()


@pytest.mark.parametrize("findings", [(), (Finding("bullae", "both", 0.8),)])
def test_gas_in_the_stomach_is_no_lung_and_no_emphysema(findings):
    phantom = make_thorax(4686170353101668978, 64, findings)  # its stomach is as large as a part of a lung may be
    volume = replace(phantom.volume, array_CDHW=phantom.volume.array_CDHW.round())  # as files hold it
    masks, hu = segment_ct(volume).masks, volume.array_CDHW[0]
    gas = (hu < -900) & (masks["body"] > 0) & (phantom.masks["lobe"] == 0) & (phantom.masks["airway"] == 0)
    assert gas.sum() > 200
    assert (masks["lung"] > 0)[gas].mean() < 0.02
    measured = low_attenuation_percent(hu, masks["lobe"] > 0, airway_DHW=masks["airway"])
    assert measured == pytest.approx(phantom.truth["laa950_percent"], rel=0.2, abs=0.1)


@pytest.mark.parametrize(
    ("place", "is_gas"),
    [
        (np.s_[3:8, 12:20, 12:20], True),  # below the diaphragm, which is too thin to part it from the lung
        (np.s_[14:20, 12:20, 12:20], False),  # a bulla
        (np.s_[10:15, 12:20, 8:14], False),  # a bulla at the wall of the chest and the diaphragm
    ],
)
def test_gas_is_enclosed_by_soft_tissue_and_a_bulla_by_lung(place, is_gas):
    hu = np.full((40, 32, 32), 50.0)  # soft tissue in voxels of 5 mm
    hu[10:36, 6:26, 8:24] = -850
    hu[8:10, 12:20, 12:20] = -500
    hu[place] = -990
    found = enclosed_gas(hu < -400, hu, (5.0, 5.0, 5.0))
    assert found.any() == is_gas
    if is_gas:
        assert found[place].all()
        assert not found[10:].any()


def test_axes_in_another_order_and_direction_give_the_same_masks(healthy, found):
    array, affine = healthy.volume.array_CDHW, healthy.volume.affine
    order, flip = (2, 0, 1), (0, 2)
    turned = np.flip(array[0].transpose(order), flip)
    there = np.eye(4)[[*order, 3]].T  # index of the turned array -> index of the first
    for axis in flip:
        back = np.eye(4)
        back[axis, axis], back[axis, 3] = -1, turned.shape[axis] - 1
        there = there @ back
    masks = segment_ct(Volume(turned[None], affine @ there, HU)).masks
    for name in masks:
        np.testing.assert_array_equal(masks[name], np.flip(found.masks[name].transpose(order), flip), err_msg=name)


def test_a_lung_that_the_field_of_view_cuts_is_kept(healthy):
    truth = healthy.masks["lobe"] > 0
    columns = np.flatnonzero(truth.any(axis=(0, 1)))
    start, stop = (0, 0, int(columns[0]) + 4), (64, 64, 64)
    cut = segment_ct(healthy.volume.crop(start, stop)).masks["lung"]
    assert dice(cut, truth[:, :, start[2] :]) > 0.93


def test_large_scans_are_worked_on_in_blocks_and_come_back_on_their_grid(monkeypatch, healthy, found):
    monkeypatch.setattr(frame, "MAX_VOXELS", 40**3)
    coarse = segment_ct(healthy.volume)
    assert coarse.masks["lung"].shape == (64, 64, 64)
    assert np.prod(coarse.working_mm) > 4 * np.prod(healthy.volume.spacing_mm)
    assert dice(coarse.masks["lung"], found.masks["lung"]) > 0.85  # voxels of 1 cm


def test_growing_stops_before_the_tree_leaks():
    # A dark tube of 1 mL beside lung of -850 HU, joined by a gap of -900: above -900 the region would be the lung.
    hu = np.full((20, 20, 20), 40, np.float32)
    hu[:, 2:4, 2:4] = -1000
    hu[:, 5:18, 2:18] = -850
    hu[10, 4, 2] = -900
    seed = np.zeros(hu.shape, dtype=bool)
    seed[15, 2, 2] = True
    tree = grow_tree(hu, seed, np.ones(hu.shape, dtype=bool), (2.5, 2.5, 2.5))
    assert (hu[tree] < -880).all()
    assert tree[:, 2:4, 2:4].all()


def test_a_scan_without_lungs_says_so():
    hu = np.full((16, 16, 16), -1000, np.float32)
    hu[:, 4:12, 4:12] = 40
    masks = segment_ct(Volume(hu[None], np.diag([10.0, 10, 10, 1]), HU))
    assert not masks.masks["lung"].any()
    assert not masks.masks["effusion"].any()
    assert "no lung was found" in masks.notes
    assert "no airway was found" in masks.notes


def test_balls_are_measured_in_millimetres():
    dot = np.zeros((9, 9, 9), dtype=bool)
    dot[4, 4, 4] = True
    assert frame.grown(dot, 2.0, (1.0, 2.0, 4.0)).sum() == 7  # 5 along d, 3 along h, the centre counted once
    assert frame.shrunk(frame.grown(dot, 2.0, (1.0, 1.0, 1.0)), 2.0, (1.0, 1.0, 1.0)).sum() == 1
    assert not frame.grown(np.zeros_like(dot), 2.0, (1.0, 1.0, 1.0)).any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"array_CDHW": np.full((2, 9, 9, 9), -800.0)}, InputError, "a CT of one channel in HU, got 2"),
        ({"array_CDHW": np.full((1, 9, 9, 5), -800.0)}, InputError, "at least 8 voxels a side"),
        ({"array_CDHW": np.linspace(0, 1, 729).reshape(1, 9, 9, 9)}, RangeError, "not Hounsfield units"),
        ({"affine": np.array([[1, 1, 0, 0], [1, -1, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1]])}, InputError, "45 degrees"),
    ],
)
def test_what_is_refused(change, error, message):
    hu = np.where(np.arange(9) < 4, -900.0, 40.0)[None, :, None, None] * np.ones((1, 9, 9, 9))
    good = Volume(hu, np.eye(4), HU)
    with pytest.raises(error, match=message):
        segment_ct(replace(good, **change))
