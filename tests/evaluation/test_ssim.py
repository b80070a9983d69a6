"""SSIM, MS-SSIM and PSNR against hand numbers, scikit-image and MONAI, in 2D and 3D."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medisyn.errors import InputError, RangeError
from medisyn.evaluation.ssim import HALF_GREY_LEVEL_DB, ms_ssim, psnr, scales_for, smallest_side, ssim


def smooth(shape, seed=0, high=255):
    """Blurred noise, which has structure at several scales, 0 to `high`."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    field = sum(gaussian_filter(rng.standard_normal(shape), sigma) * sigma ** (len(shape) / 2) for sigma in (1, 4))
    return (field - field.min()) / (field.max() - field.min()) * high


def noisy(image, seed=1, sd=20.0):
    return np.clip(image + np.random.default_rng(seed).normal(0, sd, image.shape), 0, 255)


def batched(image):
    return image[None, None]


def test_constant_images_by_hand():
    # no variance: only the luminance term (2 * 100 * 120 + c1) / (100^2 + 120^2 + c1) with c1 = (0.01 * 255)^2 = 6.5025
    a, b = np.full((1, 1, 12, 12), 100.0), np.full((1, 1, 12, 12), 120.0)
    np.testing.assert_allclose(ssim(a, b, data_range=255), [24006.5025 / 24406.5025], rtol=1e-9)


def test_an_inverted_pattern_is_negative():
    # checkerboards of -1 and 1 around 128: means agree to 1e-3, the covariance is minus the variance
    board = np.indices((24, 24)).sum(axis=0) % 2 * 100.0 + 78
    found = ssim(batched(board), batched(256 - board), data_range=255)[0]
    c2 = (0.03 * 255) ** 2
    np.testing.assert_allclose(found, (c2 - 2 * 2500) / (c2 + 2 * 2500), rtol=5e-3)


@pytest.mark.parametrize("shape", [(40, 53), (15, 18, 21)], ids=["2D", "3D"])
def test_equals_scikit_image(shape):
    from skimage.metrics import structural_similarity

    a = smooth(shape)
    b = noisy(a)
    expected = structural_similarity(
        a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    # rtol 1e-10: both float64; scikit-image reflects at the border and then cuts the border off
    np.testing.assert_allclose(ssim(batched(a), batched(b), data_range=255), [expected], rtol=1e-10)


@pytest.mark.parametrize("shape", [(40, 53), (15, 18, 21)], ids=["2D", "3D"])
def test_equals_monai(shape):
    monai = pytest.importorskip("monai.metrics.regression")
    a = smooth(shape)
    b = noisy(a)
    pair = [torch.from_numpy(batched(image)) for image in (a, b)]
    expected = monai.SSIMMetric(spatial_dims=len(shape), data_range=255.0)(*pair).item()
    # atol 2e-5: MONAI computes in float32, where E[x^2] - E[x]^2 loses four digits
    np.testing.assert_allclose(ssim(batched(a), batched(b), data_range=255)[0], expected, atol=2e-5)


def test_multi_scale_equals_monai():
    monai = pytest.importorskip("monai.metrics.regression")
    a = smooth((176, 180))
    b = noisy(a)
    pair = [torch.from_numpy(batched(image)) for image in (a, b)]
    expected = monai.MultiScaleSSIMMetric(spatial_dims=2, data_range=255.0)(*pair).item()
    # atol 1e-4: MONAI's float32 as above, over five scales
    np.testing.assert_allclose(ms_ssim(batched(a), batched(b), data_range=255)[0], expected, atol=1e-4)
    assert expected < 0.95


def test_one_scale_is_ssim():
    a = smooth((90, 90))
    b = noisy(a)
    one = ms_ssim(batched(a), batched(b), data_range=255, scales=1)
    np.testing.assert_allclose(one, ssim(batched(a), batched(b), data_range=255), rtol=1e-12)


def test_fewer_scales_divide_their_weights_by_the_sum():
    monai = pytest.importorskip("monai.metrics.regression")
    a = smooth((90, 90))
    b = noisy(a)
    weights = np.array([0.0448, 0.2856, 0.3001]) / 0.6305
    pair = [torch.from_numpy(batched(image)) for image in (a, b)]
    expected = monai.MultiScaleSSIMMetric(spatial_dims=2, data_range=255.0, weights=tuple(weights))(*pair).item()
    np.testing.assert_allclose(ms_ssim(batched(a), batched(b), data_range=255, scales=3)[0], expected, atol=1e-4)


def test_three_dimensions_at_several_scales():
    a = smooth((44, 44, 44))
    value = ms_ssim(batched(a), batched(noisy(a)), data_range=255, scales=3)[0]
    assert ssim(batched(a), batched(noisy(a)), data_range=255)[0] < value < 1  # noise hides in the coarse scales


@given(st.integers(0, 500))
def test_properties(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0, 1, (2, 2, 3, 12, 13))
    forth, back = ssim(a, b, data_range=1), ssim(b, a, data_range=1)
    np.testing.assert_allclose(forth, back, rtol=1e-12)
    np.testing.assert_allclose(ssim(a, a, data_range=1), [1, 1], rtol=1e-12)
    assert (np.abs(forth) < 1).all()
    np.testing.assert_allclose(ssim(a * 255, b * 255, data_range=255), forth, rtol=1e-9)  # units do not matter


def test_channels_count_alike():
    a, b = smooth((20, 20)), smooth((20, 20), seed=5)
    both = ssim(np.stack([a, a])[None], np.stack([b, a])[None], data_range=255)[0]
    np.testing.assert_allclose(both, (ssim(batched(a), batched(b), data_range=255)[0] + 1) / 2, rtol=1e-12)


def test_uint8_does_not_wrap():
    a, b = np.zeros((1, 1, 11, 11), np.uint8), np.full((1, 1, 11, 11), 255, np.uint8)
    assert 0 < ssim(a, b, data_range=255)[0] < 2e-4
    np.testing.assert_allclose(psnr(a, b, data_range=255), [0.0], atol=1e-12)


def test_psnr():
    a = np.zeros((2, 1, 4, 4))
    b = a.copy()
    b[0] += 51  # 20 log10(255 / 51) = 13.979 dB
    np.testing.assert_allclose(psnr(a, b, data_range=255), [20 * np.log10(5), np.inf], rtol=1e-12)
    rounded = np.random.default_rng(0).uniform(0, 255, (1, 1, 200, 200))
    np.testing.assert_allclose(psnr(rounded, np.rint(rounded), data_range=255), [HALF_GREY_LEVEL_DB], rtol=2e-3)


def test_how_many_scales_fit():
    assert [smallest_side(n) for n in (1, 2, 3, 4, 5)] == [11, 21, 41, 81, 161]
    assert [scales_for(side) for side in (11, 20, 21, 64, 128, 160, 161, 4000)] == [1, 1, 2, 3, 4, 4, 5, 5]
    with pytest.raises(InputError, match="at least 11 pixels, the width of its window, got 10"):
        scales_for(10)


def test_refusals():
    good = np.zeros((1, 1, 16, 16))
    with pytest.raises(InputError, match=r"one shape, got \(1, 1, 16, 16\) and \(1, 1, 16, 15\)"):
        ssim(good, good[..., :15], data_range=1)
    with pytest.raises(InputError, match=r"takes \(N, C, H, W\)"):
        ssim(good[0], good[0], data_range=1)
    with pytest.raises(InputError, match=r"at least 11 pixels .*got \(10, 16\)"):
        ssim(good[:, :, :10], good[:, :, :10], data_range=1)
    with pytest.raises(InputError, match="at least 161 pixels"):
        ms_ssim(good, good, data_range=1)
    with pytest.raises(InputError, match="1 to 5 scales, got 6"):
        ms_ssim(good, good, data_range=1, scales=6)
    with pytest.raises(InputError, match="data_range must be above 0"):
        ssim(good, good, data_range=0)
    with pytest.raises(RangeError, match="second array run from 0 to 255, more than the data_range of 1"):
        ssim(good, np.where(np.arange(16) < 8, 0.0, 255.0) * np.ones_like(good), data_range=1)
    with pytest.raises(RangeError, match="first array holds NaN"):
        ssim(good * np.nan, good, data_range=1)
