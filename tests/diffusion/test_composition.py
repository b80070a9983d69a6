"""Composition and interpolation: numbers worked by hand, guidance as the oracle."""

import math

import pytest
import torch

from medisyn.diffusion.composition import compose, mean_condition, slerp
from medisyn.diffusion.guidance import guide


def test_two_terms_and_one_by_hand():
    # first request: 1 + 2 * (0.75 * (3 - 1) + 0.25 * (-1 - 1)) = 3; second: 10 + 2 * 1 * (11 - 10) = 12
    blank, asked = torch.tensor([[1.0], [10.0]]), torch.tensor([[3.0], [-1.0], [11.0]])
    weights, owners = torch.tensor([0.75, 0.25, 1.0]), torch.tensor([0, 0, 1])
    torch.testing.assert_close(compose(blank, asked, weights, owners, 2.0), torch.tensor([[3.0], [12.0]]))
    # |weights| 0.75 and 0.25 of 3 and -1: 2
    torch.testing.assert_close(mean_condition(asked, weights, owners, 2), torch.tensor([[2.0], [11.0]]))
    torch.testing.assert_close(mean_condition(asked, -2 * weights, owners, 2), torch.tensor([[2.0], [11.0]]))


def test_one_term_of_weight_one_is_guidance_bit_for_bit():
    blank, asked = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ones, owners = torch.ones(5), torch.arange(5)
    assert torch.equal(compose(blank, asked, ones, owners, 7.3), guide(blank, asked, 7.3))
    assert torch.equal(mean_condition(asked, ones, owners, 5), asked)


def test_halves_of_one_condition_are_the_condition():
    blank, asked = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    halves = compose(blank, asked.repeat(2, 1, 1, 1), torch.tensor([0.5, 0.5]), torch.tensor([0, 0]), 3.0)
    torch.testing.assert_close(halves, guide(blank, asked, 3.0))


def test_the_sphere_by_hand_and_its_ends():
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    middle = torch.tensor([[math.sqrt(0.5), math.sqrt(0.5)]])
    torch.testing.assert_close(slerp(east, north, 0.5), middle)
    torch.testing.assert_close(slerp(east, north, 1 / 3), torch.tensor([[math.cos(math.pi / 6), 0.5]]))
    torch.testing.assert_close(slerp(2 * east, 3 * east, 0.5), 2.5 * east)  # the same direction: a straight line
    a, b = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_noise_stays_as_large_as_noise(share):
    a, b = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(3))
    assert float(slerp(a, b, share).std()) == pytest.approx(1, abs=0.03)  # 16,384 numbers: standard error 0.006
    assert float(torch.lerp(a, b, share).std()) < 0.85  # a straight line would not: 0.79 at a quarter
