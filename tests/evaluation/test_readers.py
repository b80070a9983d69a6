"""Accuracy of readers: MediSyn v2's figures from counts, published intervals, and a bootstrap that can be counted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from medisyn.errors import InputError
from medisyn.evaluation.bootstrap import wilson
from medisyn.evaluation.readers import (
    compare_accuracy,
    compare_readers,
    difference_interval,
    equivalence,
    holm,
    mcnemar,
)


def right(*counts, items=51):
    """Readers by items, each with so many right answers; the wrong ones stand elsewhere for each reader."""
    return np.stack([np.roll(np.arange(items) < count, 7 * k).astype(float) for k, count in enumerate(counts)])


def compare(real, synthetic, **options):
    return compare_accuracy({"real": real, "synthetic": synthetic}, reference="real", **{"resamples": 200, **options})


@pytest.mark.parametrize(
    ("counts", "mean", "sd"),
    [
        ((41, 43, 44), 83.66, 3.00),
        ((50, 50, 50), 98.04, 0.00),
        ((45, 48, 48), 92.16, 3.40),
        ((46, 46, 49), 92.16, 3.40),
        ((50, 50, 51), 98.69, 1.13),
    ],
)
def test_the_accuracies_of_medisyn_v2_from_counts_of_51(counts, mean, sd):
    """Two decimals are printed, so half of the last one is the tolerance; with R for R - 1 the SD would miss it."""
    found = compare(right(*counts), right(*counts)).groups["real"]
    assert 100 * found.mean == pytest.approx(mean, abs=0.005)
    assert 100 * found.sd == pytest.approx(sd, abs=0.005)
    assert [share.correct for share in found.per_reader] == list(counts)
    assert found.per_reader[0].interval == wilson(counts[0], 51)
    assert found.items == 51


def test_the_difference_is_the_group_minus_the_reference():
    found = compare(right(41, 43, 44), right(50, 50, 50)).differences["synthetic"]
    assert found.value == pytest.approx((150 - 128) / 153, rel=1e-12)
    assert [pair[0] for pair in found.per_reader] == pytest.approx([9 / 51, 7 / 51, 6 / 51], rel=1e-12)
    assert found.interval.low < found.value < found.interval.high


def test_two_readers_by_two_items_can_be_counted():
    """One reader is always right, one always wrong: the mean of 2 drawn readers is 0, 1/2 or 1 at 1/4, 1/2, 1/4,
    whatever items are drawn, so the 95 % interval runs from 0 to 1; with the readers fixed it would be 1/2 alone."""
    found = compare(np.array([[1, 1.0], [0, 0]]), np.ones((2, 2)), resamples=400)
    assert (found.groups["real"].interval.low, found.groups["real"].interval.high) == (0, 1)
    assert found.groups["real"].interval.method == "bootstrap over readers and items"
    assert found.differences["synthetic"].value == 0.5


def test_readers_who_disagree_about_the_groups_widen_the_difference():
    """Differences of -1 and +1: two readers drawn again have a mean of -1, 0 or 1 at 1/4, 1/2, 1/4."""
    found = compare(np.array([[1.0] * 4, [0.0] * 4]), np.array([[0.0] * 4, [1.0] * 4]), resamples=400)
    difference = found.differences["synthetic"]
    assert (difference.value, difference.interval.low, difference.interval.high) == (0, -1, 1)
    assert difference.equivalence.verdict == "equivalence not shown"


def test_readers_are_drawn_once_for_all_groups():
    """Each reader is as good on either group: drawn together, the difference of any draw is 0."""
    part = np.array([[1.0] * 5, [0.0] * 5, [1.0] * 5])
    found = compare(part, part)
    assert found.groups["real"].interval.low < found.groups["real"].interval.high
    assert found.differences["synthetic"].interval.low == found.differences["synthetic"].interval.high == 0


def test_the_interval_over_items_has_the_width_of_a_binomial():
    """One reader, 400 items, 300 right: 1.96 sqrt(.75 .25 / 400) = 0.0424 to each side; 5 % of noise at 2000 draws."""
    found = compare(right(300, items=400), right(300, items=400), resamples=2000).groups["real"]
    half = norm.ppf(0.975) * np.sqrt(0.75 * 0.25 / 400)
    assert (found.interval.high - found.interval.low) / 2 == pytest.approx(half, rel=0.08)
    assert found.sd is None
    assert found.interval.method == "bootstrap over items"


def test_items_that_a_reader_did_not_see_do_not_count():
    real = np.array([[1, 0, np.nan, np.nan], [1, 1, 1, 0.0]])
    synthetic = np.array([[np.nan] * 4, [1.0, 1, 1, 1]])
    found = compare(real, synthetic)
    assert [share.value for share in found.groups["real"].per_reader] == [0.5, 0.75]
    assert found.groups["real"].mean == 0.625
    assert found.groups["synthetic"].per_reader[0] is None
    difference = found.differences["synthetic"]
    assert (difference.value, difference.per_reader[0]) == (0.25, None)  # of the reader who saw both


def test_more_readers_and_items_narrow_the_interval():
    rng = np.random.default_rng(0)
    small, large = (rng.random(shape) < 0.8 for shape in ((4, 30), (16, 120)))
    widths = []
    for part in (small, large):
        inside = compare(part.astype(float), part.astype(float), resamples=500).groups["real"].interval
        widths.append(inside.high - inside.low)
    assert widths[1] < 0.7 * widths[0]


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ({"real": right(5)}, {"reference": "synthetic"}, "reference group 'synthetic' is not among the groups: real"),
        ({"real": right(5)}, {"margin": 1.0}, "margin must lie between 0 and 1"),
        ({"real": right(5)}, {"resamples": 0}, "resamples must be at least 1, got 0.1 and 0"),
        ({"real": right(5), "b": right(5, 6)}, {}, "one row per reader"),
        ({"real": np.full((1, 3), 0.5)}, {}, r"right \(1\) and wrong \(0\) answers"),
        ({"real": np.full((1, 3), np.nan)}, {}, r"right \(1\) and wrong \(0\) answers"),
        (
            {"real": np.array([[1.0], [np.nan]]), "b": np.array([[np.nan], [1.0]])},
            {},
            "no reader saw items of both groups",
        ),
    ],
)
def test_what_cannot_be_compared(groups, options, message):
    with pytest.raises(InputError, match=message):
        compare_accuracy(groups, **{"reference": "real", "resamples": 5, **options})


# ---- equivalence


@pytest.mark.parametrize(
    ("centre", "half", "verdict"),
    [
        (0.0, 0.05, "equivalent within the margin"),
        (0.05, 0.06, "equivalence not shown"),  # a large p would also say "no difference"
        (0.3, 0.05, "not equivalent: differs by more than the margin"),
        (-0.3, 0.05, "not equivalent: differs by more than the margin"),
        (0.0, 0.0, "equivalence not shown: the answers do not vary"),
    ],
)
def test_equivalence_is_read_off_the_90_percent_interval(centre, half, verdict):
    """Resamples spread evenly over centre ± half / 0.9 have centre ± half as the middle 90 %."""
    found = equivalence(np.linspace(centre - half / 0.9, centre + half / 0.9, 1001), 0.1)
    assert found.verdict == verdict
    assert found.interval.level == pytest.approx(0.9)
    assert (found.interval.low, found.interval.high) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_few_answers_that_are_all_right_do_not_make_equivalence():
    found = compare(np.ones((2, 3)), np.ones((2, 3))).differences["synthetic"]
    assert found.equivalence.verdict == "equivalence not shown: the answers do not vary"


# ---- intervals of differences, and pairs of readers


def test_newcombe_s_own_example():
    """Newcombe (1998), table II (a), method 10: 56/70 - 48/80 from 0.0524 to 0.3339, printed with four decimals."""
    found = difference_interval(56, 70, 48, 80)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@given(st.integers(0, 20), st.integers(0, 30))
def test_the_interval_of_a_difference_holds_it_and_turns_with_it(a, b):
    found, turned = difference_interval(a, 20, b, 30), difference_interval(b, 30, a, 20)
    assert found.low - 1e-12 <= a / 20 - b / 30 <= found.high + 1e-12
    assert (found.low, found.high) == pytest.approx((-turned.high, -turned.low), abs=1e-12)
    assert -1 - 1e-12 <= found.low <= found.high <= 1 + 1e-12


def test_mcnemar_by_hand():
    """One against five of six discordant items: 2 (1 + 6) / 2^6 = 0.21875."""
    assert mcnemar(1, 5) == pytest.approx(0.21875, rel=1e-12)
    assert mcnemar(0, 0) == 1.0


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_same_from_either_side(a, b):
    assert mcnemar(a, b) == pytest.approx(mcnemar(b, a), rel=1e-12)


def test_readers_are_compared_on_the_items_that_both_saw():
    correct = np.array([[1, 1, 1, 1, 1, 1, 0, np.nan], [1, 0, 0, 0, 0, 0, 1, 1], [np.nan] * 7 + [1]])
    found = compare_readers(correct)
    assert [(pair.first, pair.second, pair.n, pair.first_only, pair.second_only) for pair in found] == [
        (0, 1, 7, 5, 1), (1, 2, 1, 0, 0),
    ]  # fmt: skip
    assert found[0].p == pytest.approx(binomtest(5, 6).pvalue)
    assert found[0].p_adjusted == pytest.approx(2 * 0.21875)


def test_holm_by_hand():
    assert holm([0.02, 0.01, 0.5]) == pytest.approx([0.04, 0.03, 0.5])
    assert holm([0.3, 0.4]) == pytest.approx([0.6, 0.6])  # never below a smaller one
    assert holm([]) == []


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_raw_p_and_bonferroni(p_values):
    adjusted = holm(p_values)
    for raw, found in zip(p_values, adjusted, strict=True):
        assert raw <= found <= min(1.0, raw * len(p_values)) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()
