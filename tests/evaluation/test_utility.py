"""Draws, folds, scores and statistics of the utility experiments: by hand, against scikit-learn, as properties."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from sklearn.metrics import accuracy_score, f1_score

from medisyn.errors import InputError
from medisyn.evaluation.auroc import one_hot
from medisyn.evaluation.fit import BestSettings, TrainingImages
from medisyn.evaluation.utility import (
    Arm,
    PictureClassifier,
    accuracy_and_f1,
    macro_auroc_of_present,
    nested_draws,
    paired_interval,
    patient_folds,
    quotas,
    spread,
    train_and_test,
)
from medisyn.nn.resnet import resnet2d


def test_quotas_by_hand():
    # 10 images of 5 : 3 : 2, all there; then only 2 of the first: 8 are left for 3 : 2, so 4.8 and 3.2
    assert quotas(10, {"a": 5, "b": 3, "c": 2}, {"a": 9, "b": 9, "c": 9}) == {"a": 5, "b": 3, "c": 2}
    assert quotas(10, {"a": 5, "b": 3, "c": 2}, {"a": 2, "b": 9, "c": 9}) == {"a": 2, "b": 5, "c": 3}
    assert quotas(1, {"a": 1, "b": 2}, {"a": 1, "b": 1}) == {"a": 0, "b": 1}


@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1),
    st.integers(0, 40),
)
def test_quotas_give_what_was_asked_and_never_more_than_there_is(classes, wanted):
    mix = {name: float(share) for name, (share, _) in classes.items()}
    there = {name: count for name, (_, count) in classes.items()}
    if wanted > sum(there.values()):
        with pytest.raises(InputError, match=f"{wanted} images were asked for, {sum(there.values())} are there"):
            quotas(wanted, mix, there)
        return
    got = quotas(wanted, mix, there)
    assert sum(got.values()) == wanted
    assert all(0 <= got[name] <= there[name] for name in there)


def test_smaller_draws_are_part_of_larger_ones_in_the_same_mix():
    names = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    mix = {"a": 60.0, "b": 30.0, "c": 10.0}
    drawn = nested_draws(names, [0, 20, 50, 7], mix, np.random.default_rng(0))
    assert [len(drawn[size]) for size in (0, 7, 20, 50)] == [0, 7, 20, 50]
    assert set(drawn[7]) < set(drawn[20]) < set(drawn[50])
    assert [sum(names[n] == c for n in drawn[20]) for c in "abc"] == [12, 6, 2]
    other = nested_draws(names, [50], mix, np.random.default_rng(1))
    assert set(other[50]) != set(drawn[50])


@given(st.lists(st.integers(0, 9), min_size=3, max_size=40), st.integers(0, 99))
def test_folds_keep_patients_together_and_are_all_used(owners, seed):
    patients = [f"p{owner}" for owner in owners]
    if len(set(patients)) < 3:
        return
    folds = patient_folds(patients, ["x"] * len(patients), 3, seed)
    assert set(folds) == {0, 1, 2}
    for patient in set(patients):
        assert len({folds[n] for n, name in enumerate(patients) if name == patient}) == 1


def test_folds_have_even_classes():
    patients = [f"p{number}" for number in range(30)]
    classes = ["rare" if number < 6 else "common" for number in range(30)]
    folds = patient_folds(patients, classes, 3, 0)
    assert [sum(folds[n] == f and classes[n] == "rare" for n in range(30)) for f in range(3)] == [2, 2, 2]
    assert np.bincount(folds).tolist() == [10, 10, 10]
    with pytest.raises(InputError, match="31 folds need 2 folds or more, and at least as many patients; there are 30"):
        patient_folds(patients, classes, 31, 0)


def test_multi_class_accuracy_and_f1_equal_scikit_learns():
    rng = np.random.default_rng(0)
    labels, chances = rng.integers(0, 3, 50), rng.random((50, 3))
    got = accuracy_and_f1(chances, one_hot(labels, 3), multi_label=False)
    named = chances.argmax(axis=1)
    assert got.accuracy == pytest.approx(accuracy_score(labels, named), abs=1e-12)
    assert got.f1 == pytest.approx(f1_score(labels, named, average="macro"), abs=1e-12)


def test_a_single_finding_has_the_f1_of_its_positives():
    truth, chances = np.array([[1], [1], [0], [0]]), np.array([[0.9], [0.2], [0.7], [0.1]])
    got = accuracy_and_f1(chances, truth, multi_label=True)  # 1 hit, 1 false alarm, 1 miss
    assert (got.accuracy, got.f1) == (0.5, 0.5)
    assert accuracy_and_f1(chances * 0, truth * 0, multi_label=True).f1 is None
    with pytest.raises(InputError, match="chances and targets of one shape"):
        accuracy_and_f1(chances, truth[:2], multi_label=True)


def test_validation_uses_the_classes_that_are_there():
    chances = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
    assert macro_auroc_of_present(chances, one_hot([0, 1], 3)) == 1.0
    with pytest.raises(InputError, match="the validation images all have the same classes"):
        macro_auroc_of_present(chances, one_hot([0, 0], 3))


def test_spread_and_paired_interval():
    assert (spread([1.0, 3.0]).mean, spread([1.0, 3.0]).sd) == (2.0, pytest.approx(2**0.5))
    assert np.isnan(spread([1.0]).sd)
    first, second = [0.80, 0.83, 0.79, 0.85], [0.78, 0.80, 0.80, 0.81]
    theirs = ttest_rel(first, second).confidence_interval(0.95)
    got = paired_interval(first, second)
    np.testing.assert_allclose([got.low, got.high], [theirs.low, theirs.high], rtol=1e-12)
    assert paired_interval([1.0, 2.0], [1.0, 2.0]) is None
    with pytest.raises(InputError, match="as many runs on both sides, got 1 and 2"):
        paired_interval([1.0], [1.0, 2.0])
    with pytest.raises(InputError, match="at least 1 value"):
        spread([])


def test_an_empty_arm_is_refused():
    with pytest.raises(InputError, match="arm 'x': it needs at least 2 images to train on, got 1 real and 0"):
        Arm("x", 1)


def test_pictures_are_normalised_as_imagenet():
    class Shown(torch.nn.Module):
        def forward(self, x):
            return x

    grey = torch.tensor([0.485, 0.456, 0.406])[None, :, None, None] * 255 + 0.225 * 255
    shown = PictureClassifier(Shown())(grey)
    torch.testing.assert_close(shown.flatten(), torch.tensor([0.225 / 0.229, 0.225 / 0.224, 1.0]))


def test_stages_are_trained_in_turn_and_the_chances_add_up():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (8, 16, 16, 3), dtype=np.uint8)
    data = TrainingImages(images, one_hot([0, 1] * 4, 2))
    how = BestSettings(steps=2, seed=0, batch_size=4, evaluations=2, precision="float32")
    done = train_and_test(resnet2d(10, 2, width=2), [data, data], data, data, [how, how])
    assert len(done.fits) == 2
    assert [step for step, _ in done.fits[0].scores] == [1, 2]
    np.testing.assert_allclose(done.chances_NK.sum(axis=1), 1.0, rtol=1e-6)
