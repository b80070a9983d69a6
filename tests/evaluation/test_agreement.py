"""Kappas against worked examples and scikit-learn; confidence and signed ranks by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from medisyn.errors import InputError
from medisyn.evaluation.agreement import (
    cohen_kappa,
    confidence,
    confusion,
    fleiss_kappa,
    reader_kappa,
    repeat_kappa,
    signed_rank,
)

# The worked example of textbooks: 14 raters put 10 subjects into 5 categories; kappa = 0.210, agreement 0.378.
WORKED = np.array(
    [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]
)  # fmt: skip


def test_fleiss_worked_example():
    """Printed with three decimals."""
    value, observed = fleiss_kappa(WORKED)
    assert value == pytest.approx(0.210, abs=5e-4)
    assert observed == pytest.approx(0.378, abs=5e-4)


def test_fleiss_counts_any_order_of_answers_alike():
    rng = np.random.default_rng(0)
    answers = np.stack([np.repeat(np.arange(5), row) for row in WORKED], axis=1)  # raters by subjects
    for column in answers.T:
        rng.shuffle(column)
    found = reader_kappa(answers, 5, resamples=200)
    assert found.value == pytest.approx(fleiss_kappa(WORKED)[0], rel=1e-12)
    assert found.interval.low < found.value < found.interval.high
    assert found.items == 10


def test_fleiss_of_two_raters_is_scott_s_pi_by_hand():
    """Answers AA, AA, BB, AB: agreement 3/4; shares 5/8 and 3/8, chance 34/64; (48 - 34) / (64 - 34) = 7/15."""
    value, observed = fleiss_kappa(np.array([[2, 0], [2, 0], [0, 2], [1, 1]]))
    assert (value, observed) == pytest.approx((7 / 15, 0.75), rel=1e-12)


def test_an_item_that_one_reader_missed_still_counts():
    """The third reader saw the first item only: pairs AAB (1/3 agree), AA, BB, and shares (2/3 + 1 + 0) / 3."""
    found = reader_kappa(np.array([[0, 0, 1, 0], [0, 0, 1, -1], [1, -1, -1, -1]]), 2, resamples=20)
    share = (2 / 3 + 1) / 3
    chance = share**2 + (1 - share) ** 2
    assert found.items == 3  # the fourth has one answer
    assert found.observed == pytest.approx((1 / 3 + 1 + 1) / 3, rel=1e-12)
    assert found.value == pytest.approx((found.observed - chance) / (1 - chance), rel=1e-12)


def test_one_class_alone_has_no_kappa():
    found = reader_kappa(np.zeros((3, 5), int), 2)
    assert (found.value, found.interval, found.observed) == (None, None, 1.0)
    again = repeat_kappa(np.zeros(4), np.zeros(4))
    assert (again.value, again.interval, again.observed, again.items) == (None, None, 1.0, 4)


def test_no_item_in_common_has_none():
    assert reader_kappa(np.array([[0, -1], [-1, 1]]), 2) is None
    with pytest.raises(InputError, match="at least 2 answers each"):
        fleiss_kappa(np.array([[1, 0]]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30))
def test_cohen_is_scikit_learn_s(pairs):
    first, second = np.array(pairs).T
    value, observed = cohen_kappa(first, second)
    assert observed == pytest.approx((first == second).mean(), abs=1e-15)
    if value is None:
        assert len(set(first) | set(second)) == 1
    else:
        assert value == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)  # float64 closed form


def test_cohen_with_its_interval():
    first, second = np.array([0, 0, 1, 1, 0, 1] * 5), np.array([0, 0, 1, 0, 0, 1] * 5)
    found = repeat_kappa(first, second, resamples=300)
    assert found.value == pytest.approx(cohen_kappa_score(first, second), rel=1e-12)
    assert found.interval.low < found.value < found.interval.high <= 1


def test_cohen_needs_pairs():
    with pytest.raises(InputError, match="two answers per item, got 3 first and 2 second"):
        cohen_kappa([0, 1, 1], [0, 1])
    with pytest.raises(InputError, match="got 0 first"):
        cohen_kappa([], [])


def test_confusion_by_hand():
    found = confusion(np.array([0, 1, 1]), np.array([[0, 1, 0], [0, -1, 1]]), 2)
    assert found.tolist() == [[2, 0], [1, 2]]


def test_confidence_by_hand():
    """All answers 1, 3, 5, 4: median 3.5, quartiles 2.5 and 4.25; readers' means 3 and 4, SD sqrt(1/2)."""
    found = confidence(np.array([[1, 3, 5], [4, np.nan, np.nan]]))
    assert (found.n, found.median, found.low_quartile, found.high_quartile) == (4, 3.5, 2.5, 4.25)
    assert (found.mean, found.sd) == pytest.approx((3.5, 0.5**0.5))
    assert found.per_reader == (3.0, 4.0)
    assert confidence(np.array([[2.0, 4.0]])).sd is None
    assert confidence(np.full((2, 3), np.nan)) is None


def test_signed_rank_by_hand():
    """Three readers who all move one way: 2 of the 8 patterns of signs are as extreme, p = 1/4, the least there is."""
    assert signed_rank([4.0, 3.5, 4.5], [4.5, 3.75, 4.6]) == pytest.approx(0.25)
    assert signed_rank([1.0, 2.0], [1.0, 2.0]) == 1.0
    assert signed_rank([1.0, 2.0, 3.0, np.nan], [1.0, 3.0, 5.0, 1.0]) == pytest.approx(0.5)  # two pairs are left
    assert signed_rank([0.1 + 0.2], [0.3]) == 1.0  # equal but for rounding


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_signed_rank_is_every_pattern_of_signs(gaps):
    """Ties included: the p of scipy for small samples is that of the permutation test."""
    from itertools import product

    from scipy.stats import rankdata

    kept = np.array([gap for gap in gaps if gap], dtype=float)
    if not len(kept):
        assert signed_rank(gaps, np.zeros(len(gaps))) == 1.0
        return
    ranks = rankdata(np.abs(kept))
    sums = np.array([np.dot(ranks, signs) for signs in product((0, 1), repeat=len(kept))])
    got = ranks[kept > 0].sum()
    expected = min(1.0, 2 * min((sums <= got + 1e-9).mean(), (sums >= got - 1e-9).mean()))
    assert signed_rank(gaps, np.zeros(len(gaps))) == pytest.approx(expected, rel=1e-9)
