"""The statistics of copies: the oracles of the method, and planted copies."""

import numpy as np
import pytest

from medisyn.errors import InputError
from medisyn.evaluation.memorisation import Neighbours, closer_than_held_out, closest_pairs, copy_statistics


def noise(seed, size=32):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def test_planted_copies_are_found_and_strangers_are_not():
    training = [noise(seed) for seed in range(10, 20)]
    slightly = np.clip(training[3].astype(int) + np.random.default_rng(0).integers(-8, 9, (32, 32, 3)), 0, 255)
    queries = [training[2], training[5][:, ::-1], slightly.astype(np.uint8), noise(99)]
    everyone = Neighbours(np.tile(np.arange(10), (4, 1)), np.ones((4, 10), dtype=np.float32))
    pairs = closest_pairs(everyone, queries.__getitem__, training.__getitem__)
    assert [(p.training, p.flip) for p in pairs[:3]] == [(2, "none"), (5, "horizontal"), (3, "none")]
    assert pairs[0].distance == pairs[1].distance == 0.0
    assert pairs[2].distance < 0.05
    assert pairs[3].distance > 0.4
    statistics = copy_statistics([pair.distance for pair in pairs])
    assert (statistics.at_or_below, statistics.n) == (3, 4)


def test_a_query_without_neighbours_has_no_pair():
    nobody = Neighbours(np.array([[-1, -1], [0, -1]]), np.array([[-np.inf, -np.inf], [0.9, -np.inf]]))
    pairs = closest_pairs(nobody, lambda q: noise(q), lambda n: noise(n))
    assert [pair.query for pair in pairs] == [1]


def test_statistics_by_hand():
    found = copy_statistics([0.05, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], threshold=0.15)
    assert (found.n, found.at_or_below, found.share) == (8, 2, 0.25)  # 0.15 itself counts
    assert (found.minimum, found.median) == (0.05, 0.35)
    np.testing.assert_allclose(found.quantile_01, 0.05 + 0.07 * 0.1, rtol=1e-12)
    assert found.share_interval.high > 0.25


def test_closer_than_held_out_real_images():
    held_out = np.linspace(0.2, 1.2, 101).tolist()  # 1 % of them lie below 0.21
    assert copy_statistics([0.1, 0.205, 0.215, 0.5], held_out=held_out).closer_than_real == 2
    assert copy_statistics([0.1, 0.2]).closer_than_real is None


def test_wilcoxon_of_darwin_s_plants():
    # the example of scipy's documentation: W = 96, one-sided p = 0.0206298828125
    darwin = np.array([6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75])
    found = copy_statistics(darwin.astype(float), threshold=0.0)
    np.testing.assert_allclose(found.wilcoxon_p, 0.0206298828125, rtol=1e-9)


def test_no_test_below_six_images():
    assert copy_statistics([0.5] * 5).wilcoxon_p is None


@pytest.mark.parametrize("distances", [[], [0.1, float("nan")]])
def test_statistics_need_finite_distances(distances):
    with pytest.raises(InputError, match="at least 1 finite distance"):
        copy_statistics(distances)


def test_closer_than_held_out_by_hand():
    # every one of 3 below every one of 3: one arrangement of 20 is as extreme, p = 1 / 20
    np.testing.assert_allclose(closer_than_held_out([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), 0.05, rtol=1e-12)
    assert closer_than_held_out([0.4, 0.5, 0.6], [0.1, 0.2, 0.3]) == 1.0


def test_the_rank_test_needs_both_sets():
    with pytest.raises(InputError, match="distances of both sets, got 1 and 0"):
        closer_than_held_out([0.1], [])
