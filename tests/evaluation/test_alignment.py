"""Retrieval among class prompts and prompt pairs: by hand, against scipy, and what is refused."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from medisyn.errors import InputError
from medisyn.evaluation.alignment import prompt_pair, retrieval

PROMPTS = ["a", "b", "c"]


def test_retrieval_by_hand():
    prompts = np.eye(3)
    images = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [0.0, 0.0, 5.0], [1.0, 1.0, 0.0]])
    found = retrieval(images, prompts, ["a", "b", "c", "a"], PROMPTS)
    assert (found.correct, found.n, found.r_at_1) == (2, 4, 0.5)  # the second goes to c, the last is a tie
    assert found.per_prompt == {"a": (1, 2), "b": (0, 1), "c": (1, 1)}
    assert found.chance == pytest.approx(1 / 3)
    expected = np.mean([2 / 5**0.5, 1 / 10**0.5, 1.0, 1 / 2**0.5])
    assert found.mean_cosine == pytest.approx(expected, rel=1e-12)
    assert found.interval.method == "wilson"


def test_scales_do_not_count():
    rng = np.random.default_rng(0)
    images, prompts = rng.normal(size=(30, 5)), rng.normal(size=(3, 5))
    own = [PROMPTS[n % 3] for n in range(30)]
    scaled = retrieval(images * rng.uniform(0.1, 9, (30, 1)), prompts * 7, own, PROMPTS)
    assert scaled.correct == retrieval(images, prompts, own, PROMPTS).correct


def test_retrieval_refuses():
    with pytest.raises(InputError, match="at least 2 prompts, all different"):
        retrieval(np.ones((1, 2)), np.ones((2, 2)), ["a"], ["a", "a"])
    with pytest.raises(InputError, match="one feature vector per image and prompt"):
        retrieval(np.ones((1, 2)), np.ones((2, 2)), ["a"], PROMPTS)
    with pytest.raises(InputError, match="the prompt 'z' of an image"):
        retrieval(np.ones((1, 3)), np.eye(3), ["z"], PROMPTS)
    with pytest.raises(InputError, match="features of an image are NaN"):
        retrieval(np.zeros((1, 3)), np.eye(3), ["a"], PROMPTS)


def test_a_prompt_pair_equals_scipy():
    rng = np.random.default_rng(0)
    present, absent = rng.normal(1, 1, 32), rng.normal(0, 1, 32)
    found = prompt_pair(present, absent, normal_range=(-1.0, 1.0), resamples=300)
    theirs = mannwhitneyu(present, absent, alternative="greater")
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-12)
    assert found.superiority == pytest.approx(theirs.statistic / 32**2, rel=1e-12)
    assert found.superiority_interval.low < found.superiority < found.superiority_interval.high
    assert found.absent_in_range == np.mean((absent >= -1) & (absent <= 1))
    assert found.absent_interval.low < found.absent_in_range
    other = prompt_pair(-present, -absent, direction="lower", resamples=300)
    assert other.p == pytest.approx(found.p, rel=1e-12)
    assert other.superiority == pytest.approx(found.superiority, rel=1e-12)
    assert other.difference == pytest.approx(-found.difference, rel=1e-12)
    assert other.absent_in_range is None


def test_the_wrong_direction_has_a_large_p():
    found = prompt_pair([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], resamples=50)
    assert found.p > 0.9
    assert found.superiority == 0.0
    assert found.difference == -3.0


def test_ties_count_one_half():
    assert prompt_pair([1.0, 2.0], [1.0, 0.0], resamples=5).superiority == pytest.approx(3.5 / 4)


def test_prompt_pairs_refuse():
    with pytest.raises(InputError, match="the absent arm needs at least 2 finite values, got 2 of which 1"):
        prompt_pair([1.0, 2.0], [1.0, np.nan])
    with pytest.raises(InputError, match="direction must be higher or lower, got 'up'"):
        prompt_pair([1.0, 2.0], [1.0, 2.0], direction="up")
    with pytest.raises(InputError, match="resamples must be at least 1"):
        prompt_pair([1.0, 2.0], [1.0, 2.0], resamples=0)
