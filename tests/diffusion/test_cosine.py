"""The continuous cosine schedule, against numbers worked by hand."""

import math

import pytest
import torch

from medisyn.diffusion.cosine import cosine_alpha_bar, cosine_alpha_sigma


def test_ends_and_middle_by_hand():
    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    got = cosine_alpha_bar(times).tolist()
    # cos^2(0.008 / 1.008 * pi / 2) = cos^2(0.012467), cos^2(0.508 / 1.008 * pi / 2), and cos^2(pi / 2) = 0 -> the floor
    assert got[0] == pytest.approx(0.99984459, abs=1e-7)
    assert got[1] == pytest.approx(math.cos(0.508 / 1.008 * math.pi / 2) ** 2, rel=1e-12)
    assert got[2] == pytest.approx(1e-4, rel=1e-12)


def test_shares_have_unit_power_and_the_shape_that_broadcasts():
    alpha, sigma = cosine_alpha_sigma(torch.linspace(0, 1, 7), 5)
    assert alpha.shape == (7, 1, 1, 1, 1)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    assert (alpha.flatten().diff() < 0).all()
