"""Closeness of volumes and clips: by hand with features that say which picture is which."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from build_audit import smooth
from medisyn.errors import InputError, RangeError
from medisyn.evaluation.stacks import Stack, TrainingStacks, closest_pictures, evenly, needed, stack_closeness

SIDE = 16
PICTURES = [smooth(n, SIDE) for n in range(12)]
HOT = np.eye(13, dtype=np.float32)  # the feature of picture n is the n-th axis; a picture unknown to training has 12


def training(**changes):
    """Three volumes of four pictures; the first two are of one patient."""
    parts = {
        "features_ND": HOT[:12],
        "descriptors_ND": HOT[:12],
        "hashes_N": np.array([1 << n for n in range(12)], dtype=np.uint64),
        "counts_S": [4, 4, 4],
        "strata_S": ["a", "a", "b"],
        "patients_S": ["p", "p", "q"],
        "read": lambda number, size: PICTURES[number],
        **changes,
    }
    return TrainingStacks(**parts)


def looked(*numbers, stratum="a", patient="", flips=("none",)):
    """A volume of these pictures; 12 is one that no training volume has."""
    rows = np.array(numbers)
    return Stack(
        features_TD=HOT[rows],
        descriptors=dict.fromkeys(flips, HOT[rows]),
        hashes={flip: np.array([(1 << n) if n < 12 else 2**63 for n in numbers], dtype=np.uint64) for flip in flips},
        pictures=[PICTURES[n] if n < 12 else smooth(99, SIDE) for n in numbers],
        stratum=stratum,
        patient=patient,
    )


def test_a_quarter_of_the_pictures_is_enough_and_a_half_is_not_with_a_quarter_copied():
    found = stack_closeness(looked(5, 12, 12, 12), training(), share=0.25)
    assert (found.distance.training, found.distance.value) == (1, 0.0)
    assert (found.bits.training, found.bits.value) == (1, 0.0)
    assert found.similarity.training == 1
    assert found.similarity.value == pytest.approx(1.0)
    assert found.cosine == 1.0
    assert found.paper == found.distance
    half = stack_closeness(looked(5, 12, 12, 12), training(), share=0.5)
    assert half.distance.value > 0.02
    assert half.cosine == 0.5  # of the two closest pictures one is found, the other is at right angles
    assert half.bits.value == 2  # one bit here and another there


def test_the_volume_with_more_of_the_pictures_is_the_nearest():
    found = stack_closeness(looked(0, 5, 6, 12), training(), share=0.5)
    assert (found.paper.training, found.paper.value, found.cosine) == (1, 0.0, 1.0)


def test_strata_and_patients_are_left_out():
    other = stack_closeness(looked(8, 9, 10, 11), training())
    assert other.distance.training in (0, 1)
    assert other.distance.value > 0.02
    unknown = stack_closeness(looked(8, 9, 10, 11, stratum="c"), training())
    assert (unknown.distance.training, unknown.distance.value) == (2, 0.0)
    assert (unknown.paper, unknown.cosine) == (None, None)
    with pytest.raises(InputError, match="no training volume or clip of another patient is left"):
        stack_closeness(looked(0, 1, 2, 3, patient="p"), training())
    alone = stack_closeness(looked(0, 1, 2, 3, patient="p"), training(strata_S=["a", "a", "a"]))
    assert alone.distance.training == 2


def test_the_pair_to_look_at():
    assert closest_pictures(looked(12, 6), training(), stack_closeness(looked(12, 6), training()).distance) == (1, 6)


def test_what_is_refused():
    with pytest.raises(InputError, match=r"flips must hold 'none' and be among .*, got horizontal"):
        stack_closeness(looked(0, flips=("horizontal",)), training())
    with pytest.raises(InputError, match=r"share must lie above 0 and at most at 1, got 0"):
        stack_closeness(looked(0), training(), share=0)
    with pytest.raises(InputError, match=r"got 12, 12 and 12 for 11 pictures"):
        training(counts_S=[4, 4, 3])
    with pytest.raises(InputError, match="and a picture each"):
        training(counts_S=[8, 4, 0])
    with pytest.raises(RangeError, match="training pictures: 1 images have NaN or infinite features"):
        training(features_ND=np.where(np.arange(12)[:, None] == 3, np.nan, HOT[:12]))


def test_places_by_hand():
    assert evenly(10, 2) == [2, 7]  # the middles of 0..4 and 5..9
    assert evenly(3, 8) == [0, 1, 2]
    assert (needed(0.25, 4), needed(0.25, 5), needed(0.01, 3), needed(1, 7)) == (1, 2, 1, 7)


@given(st.integers(1, 400), st.integers(1, 40))
def test_places_are_even_and_three_times_as_many_hold_them(length, count):
    places = evenly(length, count)
    assert len(places) == min(length, count)
    assert 0 <= places[0] <= places[-1] < length
    assert set(places) <= set(evenly(length, 3 * count))
    gaps = np.diff(places)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
    assert len(gaps) == 0 or gaps.max() <= math.ceil(length / len(places))
