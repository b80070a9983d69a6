"""Macro-AUROC and its bootstrap: by hand, against scikit-learn on every resample, and the rules for bad test sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from medisyn.errors import InputError
from medisyn.evaluation.auroc import (
    class_auroc,
    compare_auroc,
    draw_resamples,
    macro_auroc,
    one_hot,
    ranked,
    resampled_macro_auroc,
    roc_curve,
)
from medisyn.evaluation.bootstrap import resample


def test_by_hand_with_a_tie():
    # positives 3 and 1, negatives 2 and 1: pairs won 2 + 0, tied 1 of 4: (2 + 0.5) / 4
    scores = np.array([[3.0, -3.0], [1.0, -1.0], [2.0, -2.0], [1.0, -1.0]])
    targets = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    np.testing.assert_allclose(class_auroc(scores, targets), [0.625, 0.625], rtol=1e-15)


def task(seed, n=80, classes=3, ties=False):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    scores = rng.normal(size=(n, classes)) + one_hot(labels, classes)
    return (np.round(scores, 1) if ties else scores), one_hot(labels, classes)


@pytest.mark.parametrize("ties", [False, True])
def test_every_resample_equals_scikit_learn(ties):
    scores, targets = task(0, ties=ties)
    patients = [f"p{number // 3}" for number in range(len(scores))]
    drawn = draw_resamples(targets, resamples=50, seed=7, patients=patients)
    assert drawn.redrawn == 0
    rng = np.random.default_rng(7)
    theirs = []
    for _ in range(50):
        index = resample(len(scores), rng, patients)  # the same patients as ours, as indices
        theirs.append(roc_auc_score(targets[index], scores[index], average="macro"))
    # the same counts in another order of sums
    np.testing.assert_allclose(resampled_macro_auroc(scores, targets, drawn), theirs, rtol=0, atol=1e-12)


def test_multi_class_equals_scikit_learns_one_vs_rest():
    scores, targets = task(1)
    share = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = roc_auc_score(targets.argmax(axis=1), share, multi_class="ovr", average="macro")
    np.testing.assert_allclose(macro_auroc(share, targets), expected, rtol=1e-12)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_the_area_under_the_curve_is_the_auroc_and_no_monotone_map_changes_it(items):
    scores, positive = np.array([score for score, _ in items]), np.array([label for _, label in items])
    if positive.all() or not positive.any():
        return
    value = ranked(scores, positive).auroc(np.ones((len(items), 1)))[0]
    curve = roc_curve(scores, positive)
    np.testing.assert_allclose(np.trapezoid(curve.true_positive, curve.false_positive), value, atol=1e-12)
    np.testing.assert_allclose(ranked(np.exp(scores), positive).auroc(np.ones((len(items), 1)))[0], value, atol=1e-12)
    np.testing.assert_allclose(ranked(-scores, positive).auroc(np.ones((len(items), 1)))[0], 1 - value, atol=1e-12)


def test_the_curve_equals_scikit_learns():
    scores, targets = task(2, ties=True)
    curve = roc_curve(scores[:, 0], targets[:, 0])
    false_positive, true_positive, _ = sklearn_roc_curve(targets[:, 0], scores[:, 0], drop_intermediate=False)
    np.testing.assert_allclose(curve.false_positive, false_positive, atol=1e-15)
    np.testing.assert_allclose(curve.true_positive, true_positive, atol=1e-15)


def test_whole_patients_are_drawn():
    targets = one_hot([0, 1, 0, 1, 0, 1], 2)
    drawn = draw_resamples(targets, resamples=40, seed=0, patients=["a", "a", "b", "b", "c", "c"])
    assert drawn.clusters == 3
    np.testing.assert_array_equal(drawn.weights_NB[0::2], drawn.weights_NB[1::2])
    assert set(drawn.weights_NB.sum(axis=0)) == {6.0}


def test_a_draw_without_a_class_is_drawn_again_and_counted():
    # 1 positive of 5: a draw lacks it with chance (4/5)^5 = 0.33, so of n draws until 400 are kept 0.33 n fall out
    targets = np.array([[1], [0], [0], [0], [0]])
    drawn = draw_resamples(targets, resamples=400, seed=0)
    assert (drawn.weights_NB[0] > 0).all()
    share = drawn.redrawn / (drawn.redrawn + 400)
    assert 0.27 < share < 0.39  # 0.328 + 0.0003 for "all positive"; the standard error is 0.019


def test_the_same_arm_twice_differs_by_nothing_and_the_sign_is_the_papers():
    scores, targets = task(3)
    worse = scores + np.random.default_rng(0).normal(scale=3, size=scores.shape)
    found = compare_auroc(
        {"full": [scores], "same": [scores.copy()], "noisy": [worse]},
        targets, reference="full", resamples=200, seed=0,
    )  # fmt: skip
    same = found.differences["same"]
    assert (same.value, same.interval.low, same.interval.high) == (0.0, 0.0, 0.0)
    noisy = found.differences["noisy"]
    assert noisy.value == pytest.approx(macro_auroc(scores, targets) - macro_auroc(worse, targets), abs=1e-12)
    assert 0 < noisy.interval.low < noisy.value < noisy.interval.high
    assert found.n == 80
    assert "full" not in found.differences


def test_pairing_narrows_the_interval_of_a_difference():
    scores, targets = task(4, n=150)
    close = scores + np.random.default_rng(0).normal(scale=0.2, size=scores.shape)
    found = compare_auroc({"a": [scores], "b": [close]}, targets, reference="a", resamples=400, seed=0)
    paired = found.differences["b"].interval
    unpaired = np.hypot(*[found.arms[arm].interval.high - found.arms[arm].interval.low for arm in "ab"])
    assert paired.high - paired.low < 0.5 * unpaired


def test_runs_of_an_arm_are_averaged():
    first, targets = task(5)
    second = task(6)[0]
    found = compare_auroc({"a": [first, second]}, targets, reference="a", resamples=10, seed=0)
    expected = (macro_auroc(first, targets), macro_auroc(second, targets))
    np.testing.assert_allclose(found.arms["a"].per_run, expected, rtol=1e-12)
    assert found.arms["a"].value == pytest.approx(np.mean(expected), rel=1e-12)


def test_what_has_no_auroc_is_refused():
    targets = one_hot([0, 1, 0], 2)
    with pytest.raises(InputError, match="with and without the class: 3 of 3"):
        macro_auroc(np.zeros((3, 1)), np.ones((3, 1)))
    with pytest.raises(InputError, match="1 of 3 scores are NaN"):
        ranked(np.array([0.1, np.nan, 0.2]), np.array([0, 1, 0]))
    with pytest.raises(InputError, match="one score and one label per image"):
        ranked(np.zeros(3), np.zeros(2))
    with pytest.raises(InputError, match=r"one shape \(N, K\)"):
        macro_auroc(np.zeros((3, 3)), targets)
    with pytest.raises(InputError, match="targets must be 0 or 1"):
        macro_auroc(np.zeros((3, 2)), targets * 2)
    with pytest.raises(InputError, match="3 images but 2 patient names"):
        draw_resamples(targets, resamples=1, seed=0, patients=["a", "b"])
    with pytest.raises(InputError, match="at least 1 image and 1 resample"):
        draw_resamples(targets, resamples=0, seed=0)
    with pytest.raises(InputError, match="reference arm 'x' must be one of a"):
        compare_auroc({"a": [np.zeros((3, 2))]}, targets, reference="x", resamples=1, seed=0)


def test_a_class_of_one_patient_that_is_never_alone_is_refused():
    # both images are one patient's, so every draw holds one class only in the other column's complement
    with pytest.raises(InputError, match="the rarest class has too few patients"):
        draw_resamples(np.array([[1], [1], [1]]), resamples=2, seed=0)
