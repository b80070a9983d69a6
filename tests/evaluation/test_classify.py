"""Fitting a small network, its augmentation by hand, and the judge's table."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medisyn.errors import InputError, ModelError, TrainingError
from medisyn.evaluation.classify import (
    Judge,
    JudgeNetwork,
    accuracy_by_class,
    accuracy_by_type,
    class_name,
    groups_told_apart,
    load_judge,
    name_classes,
    save_judge,
)
from medisyn.evaluation.features.encoder import MedicalEncoder
from medisyn.evaluation.fit import (
    FitSettings,
    View,
    apply_view,
    draw_balanced,
    draw_view,
    fit,
    learning_rate_at,
)


def striped(label, count, size=32, seed=0):
    """Stripes across (0) or down (1) the picture, at random phase and brightness."""
    rng = np.random.default_rng(seed + label)
    phase, bright = rng.uniform(0, 8, count), rng.uniform(90, 160, count)
    waves = bright[:, None] + 80 * np.sin((np.arange(size)[None] + phase[:, None]) * 2 * np.pi / 8)
    flat = np.clip(waves, 0, 255).astype(np.uint8)
    image = flat[:, :, None] if label == 0 else flat[:, None, :]
    return np.repeat(np.broadcast_to(image, (count, size, size))[..., None], 3, axis=3)


def data(count=40):
    images = np.concatenate([striped(0, count), striped(1, count // 4)])
    return images, np.array([0] * count + [1] * (count // 4))


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def tiny(kind):
    return seeded(lambda: kind(["across", "down"], widths=(8, 16), size=32))


@pytest.mark.parametrize("kind", [MedicalEncoder, JudgeNetwork])
def test_stripes_are_learnt_and_named(kind):
    network = tiny(kind)
    losses = fit(network, *data(), FitSettings(steps=60, seed=1, batch_size=16))
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])
    held_out = [*striped(0, 10, seed=50), *striped(1, 10, seed=50)]
    named = name_classes(network, held_out, batch_size=7)
    assert sum(n == a for n, a in zip(named, ["across"] * 10 + ["down"] * 10, strict=True)) >= 18


def test_fitting_repeats_with_its_seed():
    losses = [fit(tiny(JudgeNetwork), *data(), FitSettings(steps=5, seed=s, batch_size=4)) for s in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_the_two_networks_share_no_make():
    encoder, judge = tiny(MedicalEncoder), tiny(JudgeNetwork)
    assert not any(isinstance(m, nn.MaxPool2d) for m in encoder.modules())
    assert all(m.stride == (1, 1) for m in judge.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    ("balance", "expected"),
    [(1.0, [1 / 3, 1 / 3, 1 / 3]), (0.0, [0.81, 0.18, 0.01]), (0.5, [9 / 14.243, 4.243 / 14.243, 1 / 14.243])],
)
def test_classes_are_drawn_by_their_balance(balance, expected):
    labels = np.array([0] * 81 + [1] * 18 + [2])  # square roots 9, 4.243, 1
    drawn = labels[draw_balanced(labels, 3000, np.random.default_rng(0), balance)]
    shares = np.bincount(drawn) / 3000
    np.testing.assert_allclose(shares, expected, atol=0.04)  # 4.6 standard errors of a third


def view(**changes):
    plain = {
        "affine_B23": torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]),
        "gain_B3": torch.ones(1, 3),
        "offset_B3": torch.zeros(1, 3),
        "noise": 0.0,
    }
    return View(**{**plain, **changes})


def test_views_by_hand():
    image = torch.arange(48.0).reshape(1, 3, 4, 4)
    generator = torch.Generator()
    torch.testing.assert_close(apply_view(image, view(), generator), image)
    mirrored = view(affine_B23=torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]]))
    torch.testing.assert_close(apply_view(image, mirrored, generator), image.flip(3))
    brighter = view(gain_B3=torch.full((1, 3), 2.0), offset_B3=torch.full((1, 3), 200.0))
    expected = ((image - 127.5) * 2 + 127.5 + 200).clamp(0, 255)
    torch.testing.assert_close(apply_view(image, brighter, generator), expected)


def test_drawn_views_stay_in_their_ranges():
    drawn = draw_view(torch.Generator().manual_seed(0), 500)
    linear = drawn.affine_B23[:, :, :2]
    zoom = linear.square().sum(dim=1).sqrt()
    assert 0.8 <= zoom.min() < 0.83
    assert 1.07 < zoom.max() <= 1.1
    assert drawn.affine_B23[:, :, 2].abs().max() <= 0.08
    angle = torch.atan2(linear[:, 1, 0].abs(), linear[:, 0, 0].abs()) * 180 / math.pi
    assert 7 < angle.max() <= 8.001
    assert 0.704 <= drawn.gain_B3.min() < 0.76
    assert 1.27 < drawn.gain_B3.max() <= 1.344
    assert 23 < drawn.offset_B3.abs().max() <= 24
    signs = torch.linalg.det(linear) < 0
    assert 0.4 < signs.float().mean() < 0.6


def test_learning_rate_warms_up_and_falls_to_zero():
    settings = FitSettings(steps=100, seed=0, learning_rate=1.0)
    rates = [learning_rate_at(step, settings) for step in range(100)]
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(rates[5], 1.0)
    np.testing.assert_allclose(rates[5 + 95 // 2], 0.5, atol=0.02)
    assert 0 < rates[-1] < 0.001


def test_one_class_cannot_be_told_apart():
    images, _ = data()
    with pytest.raises(InputError, match="50 images, 50 labels, 1 classes"):
        fit(tiny(JudgeNetwork), images, np.zeros(50, dtype=int), FitSettings(steps=1, seed=0))


def test_no_steps():
    with pytest.raises(InputError, match="at least 1 step and 1 image, got 0 and 32"):
        FitSettings(steps=0, seed=0)


def test_a_loss_that_is_not_finite_stops():
    network = tiny(JudgeNetwork)
    with torch.no_grad():
        network.head.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss at step 0 is nan"):
        fit(network, *data(), FitSettings(steps=2, seed=0, batch_size=4))


def test_judge_round_trip(tmp_path):
    network = tiny(JudgeNetwork).eval()
    save_judge(network, tmp_path, {"trained_on": "abc"})
    judge = load_judge(tmp_path)
    assert (judge.classes, judge.trained_on) == (["across", "down"], "abc")
    assert judge.id.startswith("judge:")
    images = list(striped(0, 6, size=48))
    assert judge.name(images) == Judge(network, "", "").name(images)


def test_judge_refusals(tmp_path):
    with pytest.raises(ModelError, match=r"judge: model\.safetensors and config\.json not found"):
        load_judge(tmp_path)
    save_judge(tiny(JudgeNetwork), tmp_path, {})
    with pytest.raises(ModelError, match=r"lacks or breaks a field .*trained_on"):
        load_judge(tmp_path)


def test_class_names():
    assert class_name("chest X-ray", ["b", "a"]) == "chest X-ray/a+b"
    assert class_name("ultrasound", []) == "ultrasound"


def test_accuracy_by_hand():
    rows = accuracy_by_class(["a", "a", "a", "a", "b"], ["a", "b", "b", "c", "b"])
    assert [(row.name, row.correct, row.n, row.mistaken_for) for row in rows] == [
        ("a", 1, 4, "b"),
        ("b", 1, 1, ""),
        ("all", 2, 5, ""),
    ]
    assert rows[0].accuracy == 0.25
    assert rows[0].interval.low < 0.25 < rows[0].interval.high
    assert rows[2].interval.high - rows[2].interval.low < rows[1].interval.high - rows[1].interval.low + 0.1


def test_groups_by_hand():
    """c is named right least often (1 of 4) and taken for b; then b and c together in 6 of 6, a in 9 of 10."""
    asked = ["a"] * 10 + ["b"] * 2 + ["c"] * 4
    named = ["a"] * 9 + ["b"] + ["b", "c"] + ["c", "b", "b", "b"]
    assert groups_told_apart(asked, named) == {"a": "a", "b": "b and 1 alike", "c": "b and 1 alike"}
    assert groups_told_apart(asked, named, share=0.25) == {"a": "a", "b": "b", "c": "c"}
    assert set(groups_told_apart(asked, named, share=0.95).values()) == {"a and 2 alike"}


def test_a_class_that_only_answers_name_joins_its_group():
    assert groups_told_apart(["a", "a"], ["b", "b"]) == {"a": "a and 1 alike", "b": "a and 1 alike"}


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from("abcde")), min_size=1), st.floats(0.01, 1))
def test_every_group_reaches_the_share(pairs, share):
    groups = groups_told_apart(*zip(*pairs, strict=True), share)
    for group in set(groups.values()):
        answers = [groups[named] for asked, named in pairs if groups[asked] == group]
        assert not answers or answers.count(group) / len(answers) >= share or len(set(groups.values())) == 1


@pytest.mark.parametrize(
    ("asked", "named", "share", "message"),
    [([], [], 0.9, "at least 1 image, got 0 and 0"), (["a"], ["a"], 0, r"share must lie in \(0, 1\], got 0")],
)
def test_groups_refuse(asked, named, share, message):
    with pytest.raises(InputError, match=message):
        groups_told_apart(asked, named, share)


def test_accuracy_of_the_image_type_alone():
    row = accuracy_by_type(["x/a", "x/b", "y"], ["x/b", "x/b", "x/a"])
    assert (row.name, row.correct, row.n) == ("all, image type alone", 2, 3)


@pytest.mark.parametrize(("asked", "named"), [([], []), (["a"], [])])
def test_accuracy_needs_answers(asked, named):
    with pytest.raises(InputError, match=f"got {len(asked)} and {len(named)}"):
        accuracy_by_class(asked, named)
