"""The Fréchet distance against hand numbers, closed forms and an independent matrix square root."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisyn.errors import InputError, RangeError
from medisyn.evaluation.frechet import (
    check_pair,
    frechet_distance,
    frechet_extrapolated,
    frechet_from_moments,
    frechet_weighted,
)


def gaussian(n, dim, seed=0, scale=1.0):
    return np.random.default_rng(seed).standard_normal((n, dim)) * scale


def by_square_root(a, b):
    """The textbook way: (S1 S2)^(1/2) by scipy, covariances by numpy."""
    from scipy.linalg import sqrtm

    difference = a.mean(axis=0) - b.mean(axis=0)
    cov_a, cov_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    root = sqrtm(cov_a @ cov_b)
    return float(difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root).real)


def test_two_one_dimensional_gaussians_by_hand():
    # (0 - 3)^2 + (1 - 2)^2 = 10 for means 0 and 3, standard deviations 1 and 2
    np.testing.assert_allclose(frechet_from_moments([0.0], [[1.0]], [3.0], [[4.0]]), 10.0, rtol=1e-12)


def test_one_dimensional_samples_by_hand():
    # {0, 2}: mean 1, variance 2; {1, 5}: mean 3, variance 8; 4 + 2 + 8 - 2 * 4 = 6
    np.testing.assert_allclose(frechet_distance(np.array([[0.0], [2]]), np.array([[1.0], [5]])), 6.0, rtol=1e-12)


def test_rank_deficient_example_of_monai():
    # the first set has no variance at all: |difference of means|^2 + tr S2 = 1/9 + 1/3
    a, b = np.array([[1.0, 2.0]] * 3), np.array([[2.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    np.testing.assert_allclose(frechet_distance(a, b), 4 / 9, rtol=1e-12)


def test_diagonal_covariances_by_hand():
    # the root of diag(4, 9) is diag(2, 3): tr(I) + 13 - 2 * 5 = 5 with equal means
    np.testing.assert_allclose(frechet_from_moments([0, 0], np.eye(2), [0, 0], np.diag([4.0, 9.0])), 5.0, rtol=1e-12)


@pytest.mark.parametrize(("n", "dim"), [(200, 3), (8, 40), (3, 3)], ids=["many images", "few images", "as many"])
def test_translation_adds_its_squared_length(n, dim):
    a = gaussian(n, dim)
    shift = np.zeros(dim)
    shift[:2] = 3, 4
    np.testing.assert_allclose(frechet_distance(a, a + shift), 25.0, rtol=1e-9)


@pytest.mark.parametrize(("n", "dim"), [(200, 5), (8, 40)])
def test_scaling_about_the_mean(n, dim):
    a = gaussian(n, dim)
    a -= a.mean(axis=0)
    expected = 4.0 * np.cov(a.T).trace()  # (s - 1)^2 tr S for s = 3
    np.testing.assert_allclose(frechet_distance(a, 3 * a), expected, rtol=1e-9)


@pytest.mark.parametrize(("n", "m", "dim"), [(300, 250, 12), (30, 25, 12), (9, 200, 12), (200, 7, 12)])
def test_equals_the_matrix_square_root(n, m, dim):
    a = gaussian(n, dim)
    b = gaussian(m, dim, seed=1) @ gaussian(dim, dim, seed=2) + 0.3
    # rtol 1e-6: the square root of a singular matrix is that inexact in scipy, ours is not
    np.testing.assert_allclose(frechet_distance(a, b), by_square_root(a, b), rtol=1e-6)


def test_the_two_routes_agree_on_dead_and_repeated_features():
    # N > D but no full rank: the Cholesky factor does not exist, the eigenvalues of rounding size are left out
    a, b = gaussian(60, 6), gaussian(50, 6, seed=1) * 2
    expected = frechet_distance(a, b)
    pad = lambda x: np.concatenate([x, np.zeros((len(x), 4))], axis=1)  # noqa: E731
    np.testing.assert_allclose(frechet_distance(pad(a), pad(b)), expected, rtol=1e-10)
    repeated = lambda x: np.concatenate([x, x], axis=1)  # noqa: E731
    np.testing.assert_allclose(frechet_distance(repeated(a), repeated(b)), 2 * expected, rtol=1e-10)


def test_few_and_many_images_give_the_same_number():
    # D = 20 features with N = 15 (rows as factor) are the same images as 15 features' worth in a rotated basis
    a, b = gaussian(15, 20), gaussian(15, 20, seed=1)
    basis = np.linalg.qr(np.concatenate([a, b]).T)[0]  # 20 x 20, a rotation
    np.testing.assert_allclose(frechet_distance(a @ basis, b @ basis), frechet_distance(a, b), rtol=1e-10)


@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 1000))
def test_a_set_is_at_distance_zero_from_itself_and_order_does_not_matter(n, dim, seed):
    a, b = gaussian(n, dim, seed), gaussian(n + 1, dim, seed + 1)
    assert abs(frechet_distance(a, a)) < 1e-8
    np.testing.assert_allclose(frechet_distance(a, b), frechet_distance(b, a), rtol=1e-8)
    assert frechet_distance(a, b) > -1e-9


def test_float32_features_lose_nothing():
    a, b = gaussian(50, 200).astype(np.float32), gaussian(50, 200, seed=1).astype(np.float32)
    assert frechet_distance(a, b) == frechet_distance(a.astype(np.float64), b.astype(np.float64))


def test_one_image_is_not_enough():
    with pytest.raises(InputError, match="first set: this measure needs at least 2 images, got 1"):
        frechet_distance(np.zeros((1, 8)), np.zeros((4, 8)))


def test_wrong_shape_is_named():
    with pytest.raises(InputError, match=r"got an array of shape \(4,\)"):
        frechet_distance(np.zeros(4), np.zeros((4, 8)))


def test_two_extractors_do_not_mix():
    with pytest.raises(InputError, match="8 and 9 features per image"):
        check_pair(np.zeros((4, 8)), np.zeros((4, 9)))


def test_nan_features_are_refused():
    broken = np.zeros((4, 8))
    broken[2, 3] = np.nan
    with pytest.raises(RangeError, match="second set: 1 images have NaN"):
        frechet_distance(np.zeros((4, 8)), broken)


def test_an_error_names_the_set():
    with pytest.raises(InputError, match="generated set: this measure needs at least 6 images, got 5"):
        check_pair(np.zeros((9, 2)), np.zeros((5, 2)), at_least=6, names=("real set", "generated set"))


@pytest.mark.parametrize(("n", "dim"), [(30, 8), (12, 40)], ids=["many images", "few images"])
def test_weights_are_repeated_images(n, dim):
    a, b = gaussian(n, dim), gaussian(n + 3, dim, seed=1) + 0.2
    rng = np.random.default_rng(2)
    drawn = rng.integers(0, len(a), len(a)), rng.integers(0, len(b), len(b))
    times = [np.bincount(index, minlength=len(x)) for index, x in zip(drawn, (a, b), strict=True)]
    expected = frechet_distance(a[drawn[0]], b[drawn[1]])
    np.testing.assert_allclose(frechet_weighted(a, b, *times), expected, rtol=1e-10)  # the same sums in another order


def test_equals_monai_and_torchmetrics_where_the_covariances_have_no_full_rank():
    """D = 96, N = 40: float64 routes agree to 1e-6, the precision of a square root of a singular matrix."""
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics.fid")
    fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = gaussian(40, 96), gaussian(40, 96, seed=1) * 1.3 + 0.1
    ours = frechet_distance(a, b)
    tensors = torch.from_numpy(a), torch.from_numpy(b)
    np.testing.assert_allclose(ours, monai.FIDMetric()(*tensors).item(), rtol=1e-6)
    moments = [part for x in tensors for part in (x.mean(dim=0), x.T.cov())]
    np.testing.assert_allclose(ours, fid._compute_fid(*moments).item(), rtol=1e-5)


def test_the_float32_trap():
    """The same eigenvalue route in float32 is off in the third or fourth digit; ours takes float32 in and is not."""
    torch = pytest.importorskip("torch")
    fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = (gaussian(60, 400, seed=s).astype(np.float32) * np.float32(3) for s in (0, 1))
    exact = frechet_distance(a.astype(np.float64), b.astype(np.float64))
    moments = [part for x in (a, b) for part in (torch.from_numpy(x).mean(dim=0), torch.from_numpy(x).T.cov())]
    assert abs(fid._compute_fid(*moments).item() / exact - 1) > 1e-5
    np.testing.assert_allclose(frechet_distance(a, b), exact, rtol=1e-12)


@pytest.mark.parametrize(("n", "published"), [(100, 659), (200, 507), (500, 264), (1000, 132), (2000, 66)])
def test_the_bias_at_small_n_is_the_published_one(n, published):
    # two sets of N(0, I_512), true distance 0; the published figures are of one draw, so 2 %
    found = frechet_distance(gaussian(n, 512), gaussian(n, 512, seed=1))
    np.testing.assert_allclose(found, published, rtol=0.02)


def test_extrapolation_takes_the_bias_away():
    # two sets of one distribution: 0 at infinite N, where the plain distance is far from it
    a, b = gaussian(1500, 16), gaussian(1500, 16, seed=1)
    found = frechet_extrapolated(a, b)
    assert len(found.sizes) == 15
    assert (found.sizes[0], found.sizes[-1]) == (375, 1500)
    assert abs(found.value) < 0.35 * frechet_distance(a, b)
    np.testing.assert_allclose(found.distances[-1], frechet_distance(a, b), rtol=1e-9)
    assert found == frechet_extrapolated(a, b)


def test_extrapolation_is_the_least_squares_line():
    a, b = gaussian(200, 4), gaussian(220, 4, seed=1) + 1
    found = frechet_extrapolated(a, b)
    slope, value = np.polyfit(1 / np.array(found.sizes), found.distances, 1)
    np.testing.assert_allclose([found.value, found.slope], [value, slope], rtol=1e-8)
    from scipy.stats import linregress

    expected = linregress(1 / np.array(found.sizes), found.distances).intercept_stderr
    np.testing.assert_allclose(found.standard_error, expected, rtol=1e-8)


def test_extrapolation_needs_images():
    with pytest.raises(InputError, match="second set: this measure needs at least 60 images, got 59"):
        frechet_extrapolated(gaussian(60, 2), gaussian(59, 2))
