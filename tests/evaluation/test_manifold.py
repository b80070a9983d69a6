"""Precision, recall, density, coverage: by hand, against the prdc package, and its published oracle."""

import numpy as np
import pytest

from medisyn.errors import InputError
from medisyn.evaluation import manifold as module
from medisyn.evaluation.manifold import manifold


def gaussian(n, m, dim=16, seed=1):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dim)), rng.standard_normal((m, dim)) * 0.8 + 0.2


def test_points_on_a_line_by_hand():
    # real 0, 1, 3 with radii (k = 1) 1, 1, 2; generated 0.5, 9, 9.5 with radii 8.5, 0.5, 0.5
    found = manifold(np.array([[0.0], [1], [3]]), np.array([[0.5], [9], [9.5]]), nearest_k=1)
    np.testing.assert_array_equal(found.generated_inside_M, [1, 0, 0])  # 0.5 lies within 0 ± 1
    np.testing.assert_array_equal(found.generated_density_M, [2, 0, 0])  # in 0 ± 1 and 1 ± 1; 3 - 0.5 = 2.5 is not < 2
    np.testing.assert_array_equal(found.real_inside_N, [1, 1, 1])  # all within 0.5 ± 8.5
    np.testing.assert_array_equal(found.real_covered_N, [1, 1, 0])
    assert (found.precision, found.recall) == (1 / 3, 1.0)
    assert (found.density, found.coverage) == (2 / 3, 2 / 3)


def test_the_published_oracle():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((500, 64)), rng.standard_normal((500, 64))
    found = manifold(a, b, nearest_k=5)
    values = (found.precision, found.recall, found.density, found.coverage)
    np.testing.assert_allclose(values, (0.73, 0.772, 0.9264, 0.964), rtol=1e-12)


@pytest.mark.parametrize(("n", "m", "k"), [(60, 45, 3), (30, 80, 5)])
def test_equals_prdc(n, m, k, capsys):
    prdc = pytest.importorskip("prdc")
    a, b = gaussian(n, m)
    expected = prdc.compute_prdc(a, b, nearest_k=k)
    found = manifold(a, b, nearest_k=k)
    for name in ("precision", "recall", "density", "coverage"):
        np.testing.assert_allclose(getattr(found, name), expected[name], rtol=1e-12, err_msg=name)


def test_blocks_do_not_change_anything(monkeypatch):
    a, b = gaussian(50, 40)
    whole = manifold(a, b)
    monkeypatch.setattr(module, "BLOCK_BYTES", 8 * 50 * 6)  # six or seven rows at a time
    parts = manifold(a, b)
    for name in ("generated_inside_M", "generated_density_M", "real_inside_N", "real_covered_N"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)


def test_collapse_shows_in_recall_and_coverage():
    real, _ = gaussian(100, 1)
    one_mode = real[:1] + 0.01 * np.random.default_rng(0).standard_normal((100, 16))
    found = manifold(real, one_mode)
    assert found.precision == 1.0
    assert found.recall < 0.05
    assert found.coverage < 0.3


def test_identical_sets_are_perfect():
    real, _ = gaussian(40, 1)
    found = manifold(real, real.copy())
    assert (found.precision, found.recall, found.coverage) == (1.0, 1.0, 1.0)


def test_needs_more_images_than_neighbours():
    with pytest.raises(InputError, match="real set: this measure needs at least 6 images, got 5"):
        manifold(np.zeros((5, 2)), np.zeros((50, 2)), nearest_k=5)


def test_needs_a_neighbour():
    with pytest.raises(InputError, match="nearest_k must be at least 1, got 0"):
        manifold(np.zeros((5, 2)), np.zeros((50, 2)), nearest_k=0)
