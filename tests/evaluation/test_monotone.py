"""Monotone series: counted by hand, rank correlation by scipy."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from medisyn.errors import InputError
from medisyn.evaluation.bootstrap import wilson
from medisyn.evaluation.monotone import monotonicity


def test_three_series_by_hand():
    got = monotonicity(np.array([[0, 1, 2, 5], [0, 2, 1, 3], [3, 2, 1, 0]]))
    assert (got.n, got.frames, got.monotone, got.share) == (3, 4, 1, 1 / 3)
    assert got.share_interval == wilson(1, 3)
    # ranks 1 3 2 4 against 1 2 3 4: 1 - 6 * 2 / (4 * 15) = 0.8
    assert got.spearman_per_series == pytest.approx((1.0, 0.8, -1.0), abs=1e-12)
    assert got.spearman == pytest.approx(0.8 / 3)
    assert got.rise == pytest.approx((5 + 3 - 3) / 3)
    assert got.rise_interval.low <= got.rise <= got.rise_interval.high
    assert "1 of 3 series rise at every step (33%" in got.summary()


def test_rank_correlation_is_scipys_also_with_ties():
    scores = np.random.default_rng(0).integers(0, 4, (20, 7)).astype(float)
    got = monotonicity(scores)
    theirs = [spearmanr(row, np.arange(7)).statistic for row in scores]
    assert got.spearman_per_series == pytest.approx(theirs, abs=1e-12)


def test_a_step_without_a_rise_is_not_monotone_and_a_flat_series_has_no_correlation():
    got = monotonicity(np.array([[1.0, 1.0, 2.0], [5.0, 5.0, 5.0]]))
    assert got.monotone == 0
    assert got.spearman_per_series[1] == 0


def test_one_series_has_no_interval_over_series():
    got = monotonicity(np.array([[0.0, 1.0]]))
    assert (got.spearman_interval, got.rise_interval, got.share) == (None, None, 1.0)
    assert got.as_dict()["share_interval"]["high"] == 1.0


def test_what_is_refused():
    with pytest.raises(InputError, match=r"at least 1 series and 2 frames, got shape \(3, 1\)"):
        monotonicity(np.zeros((3, 1)))
    with pytest.raises(InputError, match="a score is NaN or infinite"):
        monotonicity(np.array([[0.0, np.nan]]))
