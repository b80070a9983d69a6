"""Rank tests against scipy, published examples, and MedSyn's own figures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, friedmanchisquare

from medisyn.errors import InputError
from medisyn.evaluation.rank_tests import (
    by_reader,
    dunn_bonferroni,
    dunn_z,
    friedman,
    mean_ranks,
    nemenyi,
    rank_tests,
)

PULSE = [[72, 96, 88, 92, 74, 76, 82], [120, 120, 132, 120, 101, 96, 112], [76, 95, 104, 96, 84, 72, 76]]


def rankings(n, k, seed=0, effect=0.0):
    """n rankings of k systems, 1 to k; a larger effect puts them in order more often."""
    scores = np.random.default_rng(seed).standard_normal((n, k)) + effect * np.arange(k)
    return scores.argsort(axis=1).argsort(axis=1) + 1


def test_friedman_s_pulse_example():
    """Three conditions on seven persons, one tie: printed with four decimals, and p with five digits."""
    found = friedman(np.array(PULSE).T)
    assert found.chi2 == pytest.approx(10.5714, abs=5e-5)
    assert found.p == pytest.approx(0.0050634, abs=5e-8)
    assert (found.n, found.k) == (7, 3)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 8), st.integers(3, 5), st.integers(0, 10**6), st.integers(2, 6))
def test_friedman_is_scipy_s_ties_included(n, k, seed, levels):
    values = np.random.default_rng(seed).integers(0, levels, (n, k))
    found = friedman(values)
    if all(len(set(row)) == 1 for row in values.tolist()):
        assert (found.chi2, found.p, found.w) == (0.0, 1.0, 0.0)
        return
    expected = friedmanchisquare(*values.T)
    assert found.chi2 == pytest.approx(expected.statistic, abs=1e-9)
    assert found.p == pytest.approx(expected.pvalue, abs=1e-9)


@given(st.integers(2, 12), st.integers(2, 6), st.integers(0, 10**6))
def test_kendalls_w_two_ways(n, k, seed):
    """W = chi2 / (m (k - 1)) = 12 S / (m^2 (k^3 - k)), S the squared deviations of the rank sums; float64."""
    ranks = rankings(n, k, seed)
    sums = ranks.sum(axis=0)
    spread = ((sums - sums.mean()) ** 2).sum()
    found = friedman(ranks)
    assert found.w == pytest.approx(12 * spread / (n**2 * (k**3 - k)), abs=1e-12)
    assert 0 <= found.w <= 1 + 1e-12


def test_w_at_its_ends():
    assert friedman([[1, 2, 3]] * 5).w == pytest.approx(1, rel=1e-12)
    assert friedman([[1, 2, 3], [3, 2, 1]]).w == 0


@pytest.mark.parametrize(("w", "readers", "sets"), [(0.528, 0.0012, 1e-13), (0.413, 0.0062, 1e-10)])
def test_medsyn_s_w_needs_forty_blocks(w, readers, sets):
    """chi2 = m (k - 1) W with k = 4: "p < .001" holds for 40 rankings and not for 10 readers. p to its last digit; at
    40 the power of ten."""
    assert chi2.sf(10 * 3 * w, 3) == pytest.approx(readers, abs=5e-5)
    assert np.log10(chi2.sf(40 * 3 * w, 3)) == pytest.approx(np.log10(sets), abs=0.5)


def test_forty_rankings_of_ten_readers_are_not_forty_readers():
    """Each reader gives one ranking four times: W is the same for 10 and 40 blocks, and p is not."""
    ranks = rankings(10, 4, seed=3, effect=0.7)
    repeated, reader = np.repeat(ranks, 4, axis=0), np.repeat(np.arange(10), 4)
    one, all_of_them = friedman(by_reader(repeated, reader)), friedman(repeated)
    assert one.w == pytest.approx(all_of_them.w, rel=1e-12)
    assert (one.n, all_of_them.n) == (10, 40)
    assert one.chi2 * 4 == pytest.approx(all_of_them.chi2, rel=1e-12)
    assert one.p > 100 * all_of_them.p


def test_medsyn_s_airways_by_dunn():
    """1.60 against 2.28 over 40 blocks: z = 2.356 and p = .111, which the paper prints as 0.1; over 10 readers 1.0."""
    assert dunn_z(1.60, 2.28, 40, 4) == pytest.approx(-2.356, abs=5e-4)
    assert dunn_bonferroni(1.60, 2.28, 40, 4) == pytest.approx(0.111, abs=5e-4)
    assert dunn_bonferroni(1.60, 2.28, 10, 4) == 1.0


@pytest.mark.parametrize(("systems", "critical"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_nemenyi_s_critical_values(systems, critical):
    """Demsar (2006), table 5 (a), q of 0.05 with three decimals: a slope of about -0.13 per unit of q at the tail."""
    blocks = 12
    gap = critical * np.sqrt(systems * (systems + 1) / (6 * blocks))
    assert nemenyi(1.0, 1.0 + gap, blocks, systems) == pytest.approx(0.05, abs=2e-4)


def test_all_pairs_of_a_clear_order():
    ranks = np.array([[1, 2, 3]] * 8)
    found = rank_tests(ranks)
    assert found.mean_ranks == (1.0, 2.0, 3.0)
    assert [(pair.first, pair.second) for pair in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    pair = found.pairs[1]
    assert (pair.difference, pair.z) == (-2.0, pytest.approx(-2 / np.sqrt(12 / 48)))
    assert pair.dunn_adjusted == pytest.approx(3 * pair.dunn_p)
    assert pair.wilcoxon_p == pytest.approx(2 / 2**8)  # all eight blocks the same way
    assert [one.wilcoxon_adjusted for one in found.pairs] == pytest.approx([3 * 2 / 2**8] * 3)
    assert pair.dunn_p < pair.nemenyi_p < pair.dunn_adjusted


def test_a_reader_s_means_are_ranked_again():
    """Two sets: means 1.5, 1.5, 3 share the ranks 1.5, 1.5, 3; the other reader's 1, 2.5, 2.5 become 1, 2.5, 2.5."""
    ranks = np.array([[1, 2, 3], [2, 1, 3], [1, 3, 2], [1, 2, 3]])
    readers = by_reader(ranks, np.array([5, 5, 7, 7]))
    assert readers.tolist() == [[1.5, 1.5, 3], [1, 2.5, 2.5]]
    assert rank_tests(readers).mean_ranks == (1.25, 2.0, 2.75)
    assert rank_tests(readers).friedman.chi2 == pytest.approx(friedmanchisquare(*readers.T).statistic)


def test_mean_ranks_count_readers_alike():
    """One reader with three rankings and one with a single: (1 + 3) / 2, not (1 + 1 + 1 + 3) / 4."""
    ranks = np.array([[1, 2, 3], [1, 3, 2], [1, 2, 3], [3, 2, 1]])
    found = mean_ranks(ranks, np.array([0, 0, 0, 1]), resamples=100)
    assert found[0].value == 2.0
    assert found[0].counts == (3, 0, 1)
    assert (found[0].interval.low, found[0].interval.high) == (1, 3)  # two readers: both drawn twice at times
    assert sum(mean.value for mean in found) == pytest.approx(6)


def test_one_reader_and_one_ranking():
    ranks = np.array([[1, 2], [2, 1], [1, 2]])
    assert mean_ranks(ranks, np.zeros(3), resamples=50)[0].interval.low >= 1
    assert mean_ranks(ranks[:1], np.zeros(1))[0].interval is None


@pytest.mark.parametrize("ranks", [[[1, 2, 3]], [[1], [1]], [[1, np.nan], [2, 1]]])
def test_what_friedman_cannot_take(ranks):
    with pytest.raises(InputError, match="at least 2 blocks and 2 systems without gaps"):
        friedman(np.array(ranks))
