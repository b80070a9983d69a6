"""The cycle, the borders and the tissue: volumes as stated, valves in phase, tissue that keeps its layer."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from medisyn.phantoms.heart import VIEWS, Case
from medisyn.phantoms.heart import section as borders
from medisyn.phantoms.heart.beating import label
from medisyn.phantoms.heart.cycle import emptied, end_systole, phases, valve_opening
from medisyn.phantoms.heart.fan import Fan
from medisyn.phantoms.heart.patient import draw_patient
from medisyn.phantoms.heart.section import Heart
from medisyn.phantoms.heart.tissue import Pose, draw_tissue, pose_of
from medisyn.phantoms.heart.valves import draw_leaflets

PHASE = np.linspace(0, 0.9999, 2000)


@cache
def heart_of(seed: int, view: str = VIEWS[0], ejection: float = 60.0, effusion: float = 0.0) -> Heart:
    case = Case(view, ejection, 72.0, effusion)
    return Heart(draw_patient(np.random.default_rng(seed), case), case)


# ---- cycle


def test_a_beat_by_hand():
    # 50 ms + 413 - 1.7 * 60 = 361 ms of a second at 60 beats in a minute
    assert end_systole(60) == pytest.approx(0.361)
    np.testing.assert_allclose(phases(90, 4, 3.0, 0.75), [0.75, 0.25, 0.75, 0.25])


@pytest.mark.parametrize("rate", [45, 72, 140])
def test_it_empties_once_and_fills_again(rate):
    share = emptied(PHASE, rate)
    systole = end_systole(rate) > PHASE
    assert share[0] == 0
    assert share[-1] < 1e-3
    assert share.max() == pytest.approx(1, abs=1e-4)
    assert PHASE[share.argmax()] == pytest.approx(end_systole(rate), abs=0.02)
    assert (np.diff(share[systole]) >= 0).all()
    assert (np.diff(share[~systole]) <= 1e-12).all()
    assert np.abs(np.diff(share)).max() < 0.01  # no jump


@pytest.mark.parametrize("rate", [45, 72, 140])
def test_inflow_valves_are_shut_in_systole_and_open_twice(rate):
    opening = valve_opening(PHASE, rate)
    assert (opening[end_systole(rate) > PHASE] == 0).all()
    assert opening[-1] < 1e-3
    assert 0 <= opening.min() <= opening.max() <= 1
    early, between, late = (
        opening[np.searchsorted(PHASE, end_systole(rate) + part * (1 - end_systole(rate)))] for part in (0.2, 0.6, 0.8)
    )
    assert min(early, late) > 0.9
    assert between == pytest.approx(0.45, abs=0.01)


# ---- volumes


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_volume_and_area_are_those_of_the_borders(view, share):
    heart = heart_of(1, view)
    now = heart.section(share)
    assert now.volume_ml == pytest.approx(heart.patient.edv_ml * (1 - 0.6 * share))
    l_mm = (np.arange(4000) + 0.5) / 4000 * now.length
    width = np.diff(now.at(l_mm)[[borders.ENDO_LEFT, borders.ENDO_RIGHT]], axis=0)[0]
    step = now.length / 4000
    assert np.pi / 4 * np.sum(width**2) * step / 1000 == pytest.approx(now.volume_ml, rel=0.01)
    assert np.sum(width) * step == pytest.approx(now.area_mm2, rel=0.01)


@pytest.mark.parametrize("view", VIEWS)
def test_borders_stay_in_order_and_muscle_is_not_lost(view):
    for effusion in (0.0, 90.0, 650.0):
        heart = heart_of(2, view, 70.0, effusion)
        shells = []
        for share in (0.0, 0.4, 1.0):
            now = heart.section(share)
            assert (np.diff(now.borders_KJ, axis=0) >= -1e-9).all()
            assert (np.diff(now.place_J) > 0).all()
            l_mm = (np.arange(3000) + 0.5) / 3000 * now.length
            at = now.at(l_mm)
            shells.append(np.sum(at[borders.WALL] ** 2 - at[borders.ENDO_RIGHT] ** 2) * now.length / 3000)
        np.testing.assert_allclose(shells, shells[0], rtol=0.06)


def test_the_wall_thickens_and_the_valve_plane_comes_down():
    heart = heart_of(3)
    rest, end = heart.section(0.0), heart.section(1.0)
    rest_wall, end_wall = (
        float(np.diff(now.at(np.array([0.5 * now.length]))[[borders.ENDO_RIGHT, borders.WALL], 0])[0])
        for now in (rest, end)
    )
    assert end_wall > 1.25 * rest_wall
    assert end.length == pytest.approx(rest.length * (1 - 0.28 * 0.6))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("effusion", [60.0, 250.0, 700.0])
def test_fluid_has_its_volume_when_turned_about_the_axis(view, effusion):
    # Pappus, counted over pixels: a pixel at distance n from the axis, turned half round, makes pi * |n| * its area
    heart = heart_of(4, view, 60.0, effusion)
    fan = Fan((400, 700), heart.patient.depth * 1.35, 170)
    pose = Pose(heart.patient.apex[0], heart.patient.apex[1] + 40, np.deg2rad(heart.patient.tilt))
    found = label(fan, heart, heart.rest, pose)
    _, beside = pose.to_axis(*fan.positions())
    ml = np.pi * np.abs(beside)[found == 6].sum() * fan.mm_per_pixel**2 / 1000
    assert ml == pytest.approx(effusion, rel=0.04)


def test_no_fluid_no_label_and_no_right_heart_in_two_chambers():
    for view, there in ((VIEWS[0], {0, 1, 2, 3, 4, 5}), (VIEWS[1], {0, 1, 2, 3})):
        heart = heart_of(5, view)
        fan = Fan((128, 224), heart.patient.depth, heart.patient.opening)
        assert set(np.unique(label(fan, heart, heart.rest, pose_of(heart.patient)))) == there


# ---- tissue


def test_a_pose_and_back():
    pose = Pose(3.0, 20.0, 0.2)
    along, beside = np.array([0.0, 50.0]), np.array([-4.0, 9.0])
    np.testing.assert_allclose(pose.to_axis(*pose.to_probe(along, beside)), (along, beside), atol=1e-12)
    np.testing.assert_allclose(pose.to_probe(np.zeros(1), np.zeros(1)), [[3.0], [20.0]])


def test_scatterers_keep_their_layer_through_the_beat():
    heart = heart_of(6, effusion=200.0)
    fan = Fan((64, 112), heart.patient.depth, heart.patient.opening)
    tissue = draw_tissue(heart, fan, np.random.default_rng(0))
    for share in (0.0, 0.6, 1.0):
        now = heart.section(share)
        along, beside = tissue.now(now)
        layer = (beside >= now.at(along)).sum(axis=0) - 1
        thick = np.diff(now.at(along), axis=0)[tissue.layer_N, np.arange(len(along))] > 0.5
        assert np.mean(layer[thick] == tissue.layer_N[thick]) > 0.99
    fluids = {borders.FLUID_LEFT, borders.RIGHT_BLOOD, borders.LEFT_BLOOD, borders.FLUID_RIGHT}
    assert not fluids & set(tissue.layer_N.tolist())


def test_closed_leaflets_meet_and_open_ones_reach_into_the_ventricle():
    now = heart_of(7).rest
    leaflets = draw_leaflets(False, 1.0, np.random.default_rng(0))
    half = len(leaflets.share_N) // 2
    tips = [np.flatnonzero(leaflets.share_N[part] > 0.97) for part in (slice(0, half), slice(half, None))]
    for opening in (0.0, 1.0):
        along, beside = leaflets.now(now, opening)
        septal, lateral = beside[:half][tips[0]].mean(), beside[half:][tips[1]].mean()
        reach = now.length - along[:half][tips[0]].mean()
        if opening == 0:
            assert abs(lateral - septal) < 3
            assert reach < 8
        else:
            assert lateral - septal > 1.2 * now.hinge
            assert reach > 14
