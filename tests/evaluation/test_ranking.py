"""Ranks of several sets: what is told apart, what is chance, and what does not compare."""

import numpy as np
import pytest
from scipy.stats import norm

from medisyn.errors import InputError
from medisyn.evaluation.evaluate import FeatureSet
from medisyn.evaluation.frechet import frechet_distance
from medisyn.evaluation.kernel import polynomial_mmd2
from medisyn.evaluation.ranking import _holm, rank_sets


def features(n=60, shift=0.0, seed=0, dim=4, **options):
    values = np.random.default_rng(seed).standard_normal((n, dim)) + shift
    return FeatureSet(values, **{"extractor": "e", "preprocessing": "p", **options})


@pytest.mark.parametrize("measure", ["frechet", "kid"])
def test_clear_differences_are_ranked_and_chance_is_not(measure):
    """Two draws of one distribution share a rank; a shift of 2 and one of 4 come behind, in that order."""
    real = features(seed=9)
    sets = [features(shift=2, seed=1), features(seed=2), features(shift=4, seed=3), features(seed=4)]
    found = rank_sets(sets, real, measure, resamples=100)
    assert [one.rank for one in found] == [3, 1, 4, 1]
    best = min(found, key=lambda one: one.value)
    assert (best.to_best, best.to_best_interval, best.p) == (None, None, None)
    assert found[2].p < 1e-6
    assert found[2].to_best == pytest.approx(found[2].value - best.value)
    assert found[2].to_best_interval.low > 0


def test_values_are_the_distances_themselves():
    real, sets = features(seed=9), [features(seed=1), features(shift=1, seed=2)]
    for measure, distance in (("frechet", frechet_distance), ("kid", polynomial_mmd2)):
        values = [one.value for one in rank_sets(sets, real, measure, resamples=20)]
        np.testing.assert_allclose(values, [distance(part.features_ND, real.features_ND) for part in sets])


def test_what_the_sets_share_cancels():
    """One set twice: the distance moves with the resample, the difference never."""
    part = features(seed=1)
    first, second = rank_sets([part, part], features(seed=9), "frechet", resamples=30)
    assert first.interval.high > first.interval.low
    assert (first.rank, second.rank, second.p) == (1, 1, 1.0)
    assert (second.to_best_interval.low, second.to_best_interval.high) == (0, 0)


def test_patients_widen_the_interval():
    values = np.repeat(np.random.default_rng(9).standard_normal((12, 4)), 5, axis=0)
    alone = FeatureSet(values, "e", "p")
    grouped = FeatureSet(values, "e", "p", tuple(str(number // 5) for number in range(60)))
    width = [
        (found := rank_sets([features(seed=1)], real, "kid", resamples=200)[0].interval).high - found.low
        for real in (alone, grouped)
    ]
    assert width[1] > 1.5 * width[0]


def test_holm_by_hand():
    p = np.ones((3, 3))
    p[0, 1] = p[1, 0] = 0.01
    p[0, 2] = p[2, 0] = 0.02
    p[1, 2] = p[2, 1] = 0.5
    corrected = _holm(p)
    assert (corrected[0, 1], corrected[2, 0], corrected[1, 2]) == (0.03, 0.04, 0.5)
    assert _holm(np.ones((1, 1))).tolist() == [[1.0]]


def test_p_is_the_normal_one():
    """Two sets: no correction; p follows from the spread of the paired differences."""
    real, sets = features(seed=9), [features(seed=1), features(shift=0.3, seed=2)]
    worse = max(rank_sets(sets, real, "kid", resamples=400), key=lambda one: one.value)
    half = (worse.to_best_interval.high - worse.to_best_interval.low) / 2
    assert worse.p == pytest.approx(2 * norm.sf(worse.to_best / (half / 1.96)), abs=0.1)


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        ([features()], {"measure": "ssim"}, "measure must be one of frechet, kid, got 'ssim'"),
        ([], {}, "at least 1 set and 20 resamples, got 0 and 20"),
        ([features()], {"resamples": 5}, "got 1 and 5"),
        ([features(), features(n=30)], {}, "different sizes, 30 and 60"),
        ([features(extractor="x")], {}, "different extractors, 'x' and 'e'"),
        ([features(preprocessing="x")], {}, "different preprocessing"),
    ],
)
def test_ranking_refuses(sets, options, message):
    with pytest.raises(InputError, match=message):
        rank_sets(sets, features(), **{"measure": "kid", "resamples": 20, **options})
