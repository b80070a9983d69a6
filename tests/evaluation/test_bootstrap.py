"""Intervals against tables, scipy, and their meaning: how often they hold the truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisyn.errors import InputError
from medisyn.evaluation.bootstrap import (
    bootstrap,
    clopper_pearson,
    mean_interval,
    percentile,
    recentred,
    resample,
    wilson,
)


def test_wilson_by_hand():
    # 8 of 10 at z = 1.96: centre (0.8 + 0.19207) / 1.38415 = 0.71674, half 0.22654
    interval = wilson(8, 10)
    np.testing.assert_allclose([interval.low, interval.high], [0.49016, 0.94331], atol=2e-5)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 7), (283, 2000)])
def test_both_equal_scipy(k, n):
    from scipy.stats import binomtest

    for method, name in ((wilson, "wilson"), (clopper_pearson, "exact")):
        expected = binomtest(k, n).proportion_ci(0.95, method=name)
        found = method(k, n)
        np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=1e-9, atol=1e-12)


def test_none_of_a_thousand_is_at_most_three_in_a_thousand():
    interval = clopper_pearson(0, 1000, side="upper")
    np.testing.assert_allclose(interval.high, 1 - 0.05 ** (1 / 1000), rtol=1e-12)  # closed form, 0.2991 %
    assert interval.low == 0.0


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_hold_the_share_and_stay_within_0_and_1(counts):
    k, n = counts
    for interval in (wilson(k, n), clopper_pearson(k, n)):
        assert 0 <= interval.low <= k / n <= interval.high <= 1
        assert interval.low < interval.high


def test_percentile_of_a_hundred_and_one_values():
    interval = percentile(np.arange(101.0), level=0.9)
    np.testing.assert_allclose([interval.low, interval.high], [5.0, 95.0], rtol=1e-12)


def test_recentred_keeps_the_spread_and_moves_the_middle():
    interval = recentred(np.arange(101.0) + 1000, estimate=7.0, level=0.9)
    np.testing.assert_allclose([interval.low, interval.high], [7 - 45, 7 + 45])


def test_resample_takes_whole_patients():
    patients = ["a", "b", "a", "c", "b", "a"]
    rng = np.random.default_rng(0)
    for _ in range(20):
        counts = np.bincount(resample(6, rng, patients), minlength=6)
        assert counts[0] == counts[2] == counts[5]
        assert counts[1] == counts[4]
        assert counts[0] + counts[1] + counts[3] == 3  # as many patients as there are


def test_groups_must_match_the_items():
    with pytest.raises(InputError, match="3 items but 2 group names"):
        resample(3, np.random.default_rng(0), ["a", "b"])


def test_bootstrap_repeats_with_its_seed():
    values = np.random.default_rng(0).normal(size=30)
    runs = [bootstrap(lambda i: values[i].mean(), 30, resamples=10, seed=s) for s in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_the_mean_s_interval_holds_the_truth_about_as_often_as_it_says():
    # 95 % of 200 experiments, give or take three standard errors (1.5 %) and the small-n loss of the percentile method
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        interval = mean_interval(rng.exponential(size=40), resamples=200, seed=seed)
        hits += interval.low < 1.0 < interval.high
    assert 0.86 < hits / 200 < 0.99


def test_patients_widen_the_interval():
    values = np.repeat(np.random.default_rng(0).normal(size=10), 10)
    plain = mean_interval(values, resamples=300, seed=0)
    clustered = mean_interval(values, resamples=300, seed=0, groups=[str(i // 10) for i in range(100)])
    assert clustered.high - clustered.low > 2 * (plain.high - plain.low)
    assert clustered.method == "percentile bootstrap by patient"


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts(k, n):
    with pytest.raises(InputError, match=f"got {k} of {n}"):
        wilson(k, n)


def test_impossible_level():
    with pytest.raises(InputError, match=r"level must lie between 0 and 1, got 95"):
        wilson(1, 5, level=95)


def test_unknown_side():
    with pytest.raises(InputError, match="two-sided or upper, got 'lower'"):
        clopper_pearson(1, 5, side="lower")


def test_nothing_to_resample():
    with pytest.raises(InputError, match="at least 1 item and 1 resample, got 0 and 5"):
        bootstrap(lambda i: 0.0, 0, resamples=5, seed=0)
