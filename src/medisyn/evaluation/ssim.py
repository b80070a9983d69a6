"""Structural similarity of two images or volumes: SSIM (Wang et al., 2004), MS-SSIM (Wang et al., 2003), and PSNR.

Shapes here: N pairs, C channels, H, W pixels, and D slices for volumes; "..." stands for (H, W) or (D, H, W).
Computed in float64 whatever the arrays hold. Local means weigh an 11-wide Gaussian window of SD 1.5, only where the
window lies wholly inside (no padding); variances divide by the window's weight, not by the weight less one. Channels
count alike: the values are the mean over channels and positions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medisyn.errors import InputError, RangeError

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # finest first (Wang et al., 2003)
HALF_GREY_LEVEL_DB = 20 * np.log10(255 * np.sqrt(12))  # 58.9 dB: the error of rounding to 8 bits alone


def ssim(first_NC: np.ndarray, second_NC: np.ndarray, *, data_range: float) -> np.ndarray:
    """SSIM of each pair, (N,) float64, from arrays (N, C, H, W) or (N, C, D, H, W).

    data_range: highest minus lowest value that the arrays could hold (255 for uint8), never taken from the arrays.
    Raises InputError for unequal shapes or sides below 11, RangeError for values that do not fit the range.
    """
    first, second = _checked(first_NC, second_NC, data_range, WINDOW)
    similarity, _ = _maps(first, second, data_range)
    return similarity.flatten(1).mean(dim=1).numpy()


def ms_ssim(first_NC: np.ndarray, second_NC: np.ndarray, *, data_range: float, scales: int = 5) -> np.ndarray:
    """MS-SSIM of each pair, (N,) float64: contrast and structure at every scale, luminance at the coarsest.

    Each scale halves the sides by a mean over 2 x 2 (x 2) pixels. With the published five scales every side must be
    above 160. `scales` below 5 keeps the finest weights and divides them by their sum; such values stand apart from
    those of five scales. A negative mean of a scale counts as 0.
    """
    weights = torch.tensor(SCALE_WEIGHTS[:scales], dtype=torch.float64)
    if not 1 <= scales <= len(SCALE_WEIGHTS):
        raise InputError(f"MS-SSIM has 1 to {len(SCALE_WEIGHTS)} scales, got {scales}")
    first, second = _checked(first_NC, second_NC, data_range, smallest_side(scales))
    weights = weights / weights.sum() if scales < len(SCALE_WEIGHTS) else weights
    pool = torch.nn.functional.avg_pool2d if first.ndim == 4 else torch.nn.functional.avg_pool3d
    value_N = torch.ones(len(first), dtype=torch.float64)
    for scale, weight in enumerate(weights):
        similarity, contrast = _maps(first, second, data_range)
        part = similarity if scale == scales - 1 else contrast
        value_N *= part.flatten(1).mean(dim=1).clamp_min(0) ** weight
        if scale < scales - 1:
            first, second = pool(first, 2), pool(second, 2)
    return value_N.numpy()


def smallest_side(scales: int) -> int:
    """The side that MS-SSIM of that many scales needs: one window at the coarsest scale, and a pixel more (161)."""
    return (WINDOW - 1) * 2 ** (scales - 1) + 1


def scales_for(side: int) -> int:
    """How many of the five scales fit the shortest side. InputError when it is below one window."""
    fitting = [scales for scales in range(1, len(SCALE_WEIGHTS) + 1) if smallest_side(scales) <= side]
    if not fitting:
        raise InputError(f"SSIM needs sides of at least {WINDOW} pixels, the width of its window, got {side}")
    return fitting[-1]


def psnr(first_NC: np.ndarray, second_NC: np.ndarray, *, data_range: float) -> np.ndarray:
    """Peak signal to noise ratio of each pair in dB, (N,) float64; infinite for equal arrays."""
    first, second = _checked(first_NC, second_NC, data_range, 1)
    error_N = (first - second).square().flatten(1).mean(dim=1).numpy()
    with np.errstate(divide="ignore"):
        return 10 * np.log10(data_range**2 / error_N)


def _checked(first: np.ndarray, second: np.ndarray, data_range: float, side: int) -> tuple[Tensor, Tensor]:
    if first.shape != second.shape:
        raise InputError(f"similarity needs two arrays of one shape, got {first.shape} and {second.shape}")
    if first.ndim not in (4, 5) or first.size == 0:
        raise InputError(f"similarity takes (N, C, H, W) or (N, C, D, H, W), got an array of shape {first.shape}")
    if min(first.shape[2:]) < side:
        raise InputError(
            f"every side must have at least {side} pixels for this window and these scales, got {first.shape[2:]}. "
            f"Compare larger images, or ask MS-SSIM for fewer scales."
        )
    if not data_range > 0:
        raise InputError(f"data_range must be above 0 (255 for uint8, 1 for values in [0, 1]), got {data_range:g}")
    pair = []
    for name, array in (("first", first), ("second", second)):
        wide = np.asarray(array, dtype=np.float64)
        if not np.isfinite(wide).all():
            raise RangeError(f"similarity: the {name} array holds NaN or infinite values")
        if np.ptp(wide) > data_range * 1.001:
            raise RangeError(
                f"similarity: values of the {name} array run from {wide.min():g} to {wide.max():g}, "
                f"more than the data_range of {data_range:g}"
            )
        pair.append(torch.from_numpy(wide))
    return pair[0], pair[1]


def _maps(first: Tensor, second: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Local SSIM, and its contrast-and-structure factor, at every position where the window fits."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean_a, mean_b = _blur(first), _blur(second)
    variance_a = _blur(first * first) - mean_a * mean_a
    variance_b = _blur(second * second) - mean_b * mean_b
    covariance = _blur(first * second) - mean_a * mean_b
    contrast = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * contrast, contrast


def _blur(x: Tensor) -> Tensor:
    """The Gaussian window along each axis in turn; every axis loses 10 positions."""
    distance = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-0.5 * (distance / SIGMA) ** 2)
    weights = weights / weights.sum()
    for axis in range(2, x.ndim):
        length = x.shape[axis] - WINDOW + 1
        blurred = weights[0] * x.narrow(axis, 0, length)
        for shift in range(1, WINDOW):
            blurred.add_(x.narrow(axis, shift, length), alpha=float(weights[shift]))
        x = blurred
    return x
