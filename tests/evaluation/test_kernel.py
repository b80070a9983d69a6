"""KID against loops over pairs, published behaviour and its own intervals."""

import numpy as np
import pytest

from medisyn.errors import InputError
from medisyn.evaluation import kernel
from medisyn.evaluation.frechet import frechet_distance
from medisyn.evaluation.kernel import (
    cmmd,
    cmmd_interval,
    gaussian_mmd2,
    gaussian_mmd2_interval,
    is_unit,
    kid,
    kid_interval,
    median_alpha,
    polynomial_mmd2,
)


def gaussian(n, dim=8, seed=0, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, dim)) + shift


def by_loops(a, b):
    """The U-statistic as it is written, pair by pair."""

    def k(x, y):
        return (float(x @ y) / len(x) + 1) ** 3

    within = [np.mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (a, b)]
    return sum(within) - 2 * np.mean([k(x, y) for x in a for y in b])


def test_two_pairs_by_hand():
    # D = 1; a = {0, 2}: k(0, 2) = 1; b = {1, 1}: k(1, 1) = 8; between: 1, 1, 27, 27, mean 14; 1 + 8 - 28 = -19
    np.testing.assert_allclose(polynomial_mmd2(np.array([[0.0], [2]]), np.array([[1.0], [1]])), -19.0, rtol=1e-12)


def test_equals_the_loops_over_pairs():
    a, b = gaussian(9), gaussian(7, seed=1, shift=0.5)
    np.testing.assert_allclose(polynomial_mmd2(a, b), by_loops(a, b), rtol=1e-12)


def test_blocks_do_not_change_the_value(monkeypatch):
    a, b = gaussian(50), gaussian(40, seed=1)
    whole = polynomial_mmd2(a, b)
    monkeypatch.setattr(kernel, "BLOCK_BYTES", 8 * 40 * 7)  # seven rows at a time
    np.testing.assert_allclose(polynomial_mmd2(a, b), whole, rtol=1e-12)


def test_unbiased_on_sets_of_one_distribution():
    # the mean over 60 pairs of sets is 0 within three standard errors, also at n = 20, where FD would be large
    values = [polynomial_mmd2(gaussian(20, seed=i), gaussian(20, seed=1000 + i)) for i in range(60)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60)
    assert min(values) < 0 < max(values)


def test_the_subset_size_is_lowered_and_stated():
    a, b = gaussian(30), gaussian(20, seed=1)
    found = kid(a, b, subset_size=1000, subsets=5)
    assert (found.subset_size, found.subsets, found.asked_subset_size) == (20, 5, 1000)


def test_one_subset_when_it_is_everything():
    a, b = gaussian(20), gaussian(20, seed=1)
    found = kid(a, b)
    assert found.subsets == 1
    assert found.value == polynomial_mmd2(a, b)


def test_subsets_average_to_the_whole():
    a, b = gaussian(60), gaussian(60, seed=1, shift=1.0)
    found = kid(a, b, subset_size=20, subsets=200, seed=3)
    assert found.subset_sd > 0
    assert abs(found.value - polynomial_mmd2(a, b)) < 4 * found.subset_sd / np.sqrt(200)
    assert found == kid(a, b, subset_size=20, subsets=200, seed=3)


def test_the_interval_holds_the_value_and_narrows_with_n():
    small = [gaussian(40), gaussian(40, seed=1, shift=0.5)]
    large = [gaussian(400), gaussian(400, seed=1, shift=0.5)]
    widths = []
    for a, b in (small, large):
        value = polynomial_mmd2(a, b)
        interval = kid_interval(a, b, value, resamples=100, seed=0)
        assert interval.low < value < interval.high
        widths.append(interval.high - interval.low)
    assert widths[1] < 0.6 * widths[0]


def test_an_image_never_pairs_with_its_copy_in_a_resample():
    # two equal sets of widely spread images: with self pairs every resample would be pushed up by about k(x, x) / n
    a = gaussian(12, dim=4) * 5
    one = np.ones((12, 1))
    counts = np.zeros((12, 1))
    counts[:6] = 2  # each of six images twice
    value = kernel._weighted_mmd2(a, a, counts, one)[0]
    np.testing.assert_allclose(
        value
        + 2 * kernel.polynomial_kernel(a[:6], a).mean()
        - kernel._weighted_mmd2(a, a, one, one)[0]
        - 2 * kernel.polynomial_kernel(a, a).mean(),
        _mean_off_diagonal(a[:6]) - _mean_off_diagonal(a),
        rtol=1e-9,
    )


def _mean_off_diagonal(a):
    k = kernel.polynomial_kernel(a, a)
    return k[~np.eye(len(a), dtype=bool)].mean()


def test_patients_widen_the_interval():
    # every patient has ten all but equal images, so there are 12 independent ones, not 120
    rng = np.random.default_rng(0)
    a = np.repeat(rng.standard_normal((12, 8)), 10, axis=0) + 0.01 * rng.standard_normal((120, 8))
    b = gaussian(120, seed=5)
    patients = [f"p{i // 10}" for i in range(120)]
    value = polynomial_mmd2(a, b)
    by_image = kid_interval(a, b, value, resamples=100, seed=0)
    by_patient = kid_interval(a, b, value, resamples=100, seed=0, groups=(patients, None))
    assert by_patient.high - by_patient.low > 1.5 * (by_image.high - by_image.low)


def test_a_resample_of_one_image_is_drawn_again():
    # with two images half of all resamples hold one image twice, which has no pair: none of them may give NaN
    interval = kid_interval(gaussian(2), gaussian(2, seed=1), 0.0, resamples=50, seed=0)
    assert np.isfinite([interval.low, interval.high]).all()


def test_subsets_need_pairs():
    with pytest.raises(InputError, match="subsets of at least 2 images and 1 subset, got 1 and 100"):
        kid(gaussian(5), gaussian(5), subset_size=1)


def test_equals_torchmetrics():
    torch = pytest.importorskip("torch")
    poly_mmd = pytest.importorskip("torchmetrics.image.kid").poly_mmd
    a, b = gaussian(30), gaussian(30, seed=1, shift=0.3)
    expected = poly_mmd(torch.from_numpy(a), torch.from_numpy(b), degree=3, gamma=None, coef=1.0).item()
    np.testing.assert_allclose(polynomial_mmd2(a, b), expected, rtol=1e-12)  # float64 sums in another order


def test_kid_has_no_bias_where_the_frechet_distance_has():
    a, b = gaussian(100, dim=512), gaussian(100, dim=512, seed=1)
    assert abs(polynomial_mmd2(a, b)) < 1e-2  # no bias, but its own spread: 1e-3 would need more images
    assert frechet_distance(a, b) > 600


def gaussian_by_loops(a, b, alpha):
    def k(x, y):
        return np.exp(-alpha * np.sum((x - y) ** 2))

    within = [np.mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (a, b)]
    return sum(within) - 2 * np.mean([k(x, y) for x in a for y in b])


def test_gaussian_mmd_by_hand():
    # a = {0, 1}, b = {0, 2}, alpha = ln 2: k = 2^(-d^2); within 1/2 and 1/16; between 1, 1/16, 1/2, 1/2
    found = gaussian_mmd2(np.array([[0.0], [1]]), np.array([[0.0], [2]]), np.log(2))
    np.testing.assert_allclose(found, 1 / 2 + 1 / 16 - 2 * (1 + 1 / 16 + 1 / 2 + 1 / 2) / 4, rtol=1e-12)


def test_gaussian_mmd_equals_the_loops_over_pairs():
    a, b = gaussian(9), gaussian(7, seed=1, shift=0.5)
    np.testing.assert_allclose(gaussian_mmd2(a, b, 0.07), gaussian_by_loops(a, b, 0.07), rtol=1e-10)


def test_the_bandwidth_is_the_median_of_all_pairs_of_different_images():
    from scipy.spatial.distance import pdist

    a, b = gaussian(12), gaussian(9, seed=1, shift=1.0)
    alpha = median_alpha(a, b)
    np.testing.assert_allclose(alpha, 1 / np.median(pdist(np.concatenate([a, b])) ** 2), rtol=1e-10)
    assert gaussian_mmd2(a, b) == gaussian_mmd2(a, b, alpha)
    np.testing.assert_allclose(gaussian_mmd2(3 * a, 3 * b), gaussian_mmd2(a, b), rtol=1e-9)  # units do not matter


def test_the_median_of_many_images_is_that_of_a_seeded_draw(monkeypatch):
    monkeypatch.setattr(kernel, "MEDIAN_IMAGES", 60)
    a, b = gaussian(100), gaussian(100, seed=1)
    assert median_alpha(a, b, seed=4) == median_alpha(a, b, seed=4) != median_alpha(a, b, seed=5)
    monkeypatch.setattr(kernel, "MEDIAN_IMAGES", 2000)
    # |x - y|^2 / 2 is chi-squared with 8 degrees of freedom, of median 7.344; 3 % for 200 images
    np.testing.assert_allclose(median_alpha(a, b), 1 / (2 * 7.344), rtol=0.03)


def test_gaussian_mmd_sees_a_covariance_that_the_linear_kernel_does_not():
    a, b = gaussian(200), gaussian(200, seed=1) * 1.5
    interval = gaussian_mmd2_interval(a, b, gaussian_mmd2(a, b), median_alpha(a, b), resamples=60, seed=0)
    assert 0 < interval.low < gaussian_mmd2(a, b) < interval.high


def test_bandwidth_refusals():
    with pytest.raises(InputError, match="alpha must be above 0, got 0"):
        gaussian_mmd2(gaussian(5), gaussian(5), 0.0)
    with pytest.raises(InputError, match="median distance of the features is 0"):
        gaussian_mmd2(np.ones((8, 3)), np.ones((8, 3)))


def unit(n, seed, shift, dim=64):
    vectors = gaussian(n, dim, seed, 0.0) + shift * np.eye(dim)[0]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_cmmd_by_hand():
    # a = {e1}, b = {-e1}: d^2 = 4, k = exp(-4 / 200); 1000 * (1 + 1 - 2 k) = 39.6027...
    found = cmmd(np.array([[1.0, 0]]), np.array([[-1.0, 0]]))
    np.testing.assert_allclose(found, 2000 * (1 - np.exp(-0.02)), rtol=1e-12)


def test_cmmd_is_ten_times_the_squared_distance_of_the_means():
    """With sigma 10 on unit vectors k is about 1 - d^2 / 200, so 1000 MMD^2 is about 10 |dmu|^2; published to 1 %."""
    a, b = unit(300, 0, 2.0), unit(300, 1, 3.0)
    nearly = 10 * np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    np.testing.assert_allclose(cmmd(a, b), nearly, rtol=0.01)
    interval = cmmd_interval(a, b, cmmd(a, b), resamples=30, seed=0)
    assert interval.low < cmmd(a, b) < interval.high
    assert cmmd(a, a) == pytest.approx(0, abs=1e-9)  # biased: exactly 0 for one set, where the unbiased is below 0


def test_cmmd_takes_unit_vectors_only():
    assert is_unit(unit(5, 0, 0).astype(np.float32))
    with pytest.raises(InputError, match="CMMD takes unit vectors"):
        cmmd(unit(5, 0, 0), 2 * unit(5, 1, 0))
