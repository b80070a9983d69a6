"""Membership: AUC and its intervals against scikit-learn and by hand, and the share found at few false alarms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from medisyn.errors import InputError, RangeError
from medisyn.evaluation.membership import auc, delong, membership

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=30)


@given(SCORES, SCORES)
def test_auc_is_scikit_learn_s(members, others):
    labels = [1] * len(members) + [0] * len(others)
    found = auc(np.array(members), np.array(others))
    np.testing.assert_allclose(found, roc_auc_score(labels, members + others), atol=1e-12)


def brute_delong_variance(members, others):
    """Sums over all pairs, as in DeLong (1988)."""
    kernel = np.array([[(x > y) + 0.5 * (x == y) for y in others] for x in members])
    return kernel.mean(axis=1).var(ddof=1) / len(members) + kernel.mean(axis=0).var(ddof=1) / len(others)


@given(SCORES, SCORES)
def test_delong_is_the_sum_over_all_pairs(members, others):
    interval, value = delong(np.array(members), np.array(others)), auc(np.array(members), np.array(others))
    if interval.method != "delong":
        assert value in (0.0, 1.0)
        return
    half = 1.959963984540054 * np.sqrt(brute_delong_variance(members, others))
    np.testing.assert_allclose([interval.low, interval.high], [max(0, value - half), min(1, value + half)], atol=1e-9)


def test_delong_by_hand():
    # members 1 and 3 against 0, 2: shares below 1/2 and 1, so variance 1/8 over 2; of the others 1 and 1/2, the same
    interval = delong(np.array([1.0, 3.0]), np.array([0.0, 2.0]), level=0.5)
    np.testing.assert_allclose(0.75 - interval.low, 0.6744897501960817 * np.sqrt(1 / 16 + 1 / 16), rtol=1e-9)


def test_perfect_separation_is_not_certain():
    found = membership(np.arange(10.0) + 100, np.arange(20.0))
    assert (found.auc, found.auc_interval.high) == (1.0, 1.0)
    np.testing.assert_allclose(found.auc_interval.low, 0.025 ** (1 / 10), rtol=1e-9)  # Clopper-Pearson, 10 of 10
    assert membership(np.arange(20.0), np.arange(10.0) + 100).auc_interval.low == 0.0


def test_share_found_at_one_per_cent_by_hand():
    others = np.arange(200.0)  # 198 and 199 may be passed: the threshold is 197
    members = np.array([500.0, 198.0, 197.0, 100.0])
    found = membership(members, others)
    assert (found.tpr, found.fpr_reached) == (0.5, 0.01)
    assert (found.members, found.non_members) == (4, 200)
    assert found.tpr_interval.low < 0.5 < found.tpr_interval.high


def test_with_few_non_members_none_may_be_passed():
    found = membership(np.array([5.0, 1.0]), np.arange(5.0))
    assert (found.tpr, found.fpr_reached) == (0.5, 0.0)


def test_patients_widen_the_interval():
    rng = np.random.default_rng(0)
    patients = [f"p{n // 10}" for n in range(100)]
    scores = rng.normal(size=10).repeat(10) + rng.normal(size=100) * 0.1
    others = rng.normal(size=10).repeat(10) + rng.normal(size=100) * 0.1
    single = membership(scores, others)
    grouped = membership(scores, others, patients=(patients, patients), resamples=300)
    assert grouped.auc == single.auc
    assert grouped.auc_interval.method == "percentile bootstrap by patient"
    widths = [found.auc_interval.high - found.auc_interval.low for found in (single, grouped)]
    assert widths[1] > 1.5 * widths[0]


def test_the_interval_covers_chance_where_there_is_nothing_to_find():
    rng = np.random.default_rng(0)
    covered = [(found := delong(rng.normal(size=60), rng.normal(size=60))).low <= 0.5 <= found.high for _ in range(300)]
    assert 0.91 < np.mean(covered) < 0.98  # 95 % nominal, standard error 1.3 %


@pytest.mark.parametrize(
    ("members", "others", "options", "message"),
    [
        ([1.0], [1.0, 2.0], {}, r"members need at least 2 scores in one row, got shape \(1,\)"),
        ([1.0, 2.0], [[1.0, 2.0]], {}, "non-members need at least 2 scores"),
        ([1.0, 2.0], [1.0, 2.0], {"fpr": 0.0}, "false positive rate must lie between 0 and 1"),
        ([1.0, 2.0], [1.0, 2.0], {"patients": (["a"], ["a", "b"])}, "2 and 2 scores but 1 and 2 patients"),
    ],
)
def test_what_is_refused(members, others, options, message):
    with pytest.raises(InputError, match=message):
        membership(np.array(members), np.array(others), **options)


def test_scores_that_are_not_finite():
    with pytest.raises(RangeError, match="1 scores of members are NaN"):
        membership(np.array([1.0, np.nan]), np.array([1.0, 2.0]))
