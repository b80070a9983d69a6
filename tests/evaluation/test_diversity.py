"""Likeness within a set: which images are paired, and what repetition does to the value."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisyn.errors import InputError
from medisyn.evaluation.diversity import diversity, draw_pairs
from medisyn.evaluation.ssim import ms_ssim


def image(seed, size=24):
    coarse = np.random.default_rng(seed).uniform(0, 255, (1, size // 4, size // 4))
    return np.kron(coarse, np.ones((1, 4, 4)))


def readers(seeds):
    return [lambda seed=seed: image(seed) for seed in seeds]


def each(count):
    """Every image of a patient of its own."""
    return [f"p{number}" for number in range(count)]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("pqrs")), min_size=1, max_size=40), st.integers(0, 9))
def test_pairs_are_of_one_class_and_two_patients_and_as_many_as_there_can_be(images, seed):
    classes, patients = [name for name, _ in images], [patient for _, patient in images]
    found = draw_pairs(classes, patients, seed)
    for name, pairs in found.items():
        used = [number for pair in pairs for number in pair]
        assert len(used) == len(set(used))
        assert {classes[number] for number in used} <= {name}
        assert all(patients[a] != patients[b] for a, b in pairs)
        of_class = [patient for kind, patient in images if kind == name]
        largest = max(of_class.count(patient) for patient in "pqrs")
        assert len(pairs) == min(len(of_class) // 2, len(of_class) - largest)  # the most that a matching can have
    assert found == draw_pairs(classes, patients, seed)


def test_a_repeated_image_is_told_from_varied_ones():
    classes, patients = (["a"] * 10,) * 2, (each(10),) * 2
    found = diversity(readers([7] * 10), readers(range(10)), classes, patients, data_range=255, scales=2, resamples=20)
    generated, real = found.generated[-1], found.real[-1]
    np.testing.assert_allclose(generated.value, 1.0, rtol=1e-12)
    assert real.value < 0.5
    assert real.interval.low < real.value < real.interval.high
    assert (real.num_pairs, real.num_images, real.scales) == (5, 10, 2)


def test_slices_of_one_patient_are_not_paired():
    # two patients of four equal slices each: pairs within a patient would have 1, those across do not
    patients = ["p"] * 4 + ["q"] * 4
    found = diversity(
        readers([1, 1, 1, 1, 2, 2, 2, 2]),
        readers([3, 3, 3, 3, 4, 4, 4, 4]),
        (["a"] * 8,) * 2,
        (patients, patients),
        data_range=255,
        scales=1,
        resamples=5,
    )
    expected = ms_ssim(image(3)[None], image(4)[None], data_range=255, scales=1)[0]
    assert found.real[-1].num_pairs == 4
    np.testing.assert_allclose(found.real[-1].value, expected, rtol=1e-12)


def test_the_value_is_the_mean_over_the_drawn_pairs():
    classes = ["a"] * 6 + ["b"] * 7
    found = diversity(
        readers(range(13)),
        readers(range(50, 63)),
        (classes, classes),
        (each(13), each(13)),
        data_range=255,
        scales=1,
        seed=3,
        resamples=5,
    )
    pairs = draw_pairs(classes, each(13), 3)
    values = [ms_ssim(image(a)[None], image(b)[None], data_range=255, scales=1)[0] for a, b in pairs["a"] + pairs["b"]]
    np.testing.assert_allclose(found.generated[-1].value, np.mean(values), rtol=1e-12)
    np.testing.assert_allclose(found.generated[1].value, np.mean(values[3:]), rtol=1e-12)
    assert [row.name for row in found.generated] == ["a", "b", ""]


def test_both_sides_have_as_many_pairs_of_every_class_and_few_pairs_no_row():
    classes = ["a"] * 8 + ["b"] * 2 + ["c"], ["a"] * 6 + ["b"] * 6 + ["d"] * 4
    found = diversity(
        readers(range(11)),
        readers(range(16)),
        classes,
        (each(11), each(16)),
        data_range=255,
        scales=1,
        most=3,
        resamples=5,
    )
    assert [(row.name, row.num_pairs) for row in found.generated] == [("a", 3), ("", 4)]
    assert [row.num_pairs for row in found.real] == [3, 4]
    assert found.left_out == ("c", "d")


def test_no_class_with_a_pair_on_each_side():
    real = (["a", "a"], each(2))
    assert (
        diversity(readers([1]), readers([1, 2]), (["a"], real[0]), (each(1), real[1]), data_range=255, scales=1) is None
    )


def test_names_must_match_images():
    with pytest.raises(InputError, match="2 images but 1 classes and 2 patients"):
        diversity(readers([1]), readers([1, 2]), (["a"], ["a"]), (each(1), each(2)), data_range=255, scales=1)
