"""Pixel values: CT windows, percentile clipping, and the guard against values in the wrong range."""

from __future__ import annotations

import numpy as np

from medisyn.errors import InputError, RangeError


def guard_hu(hu: np.ndarray) -> None:
    """Refuse numbers that cannot be Hounsfield units: NaN, all equal, [0, 1] or [-1, 1], grey levels, or far too large.

    A patient's CT spans far more than 2 HU, and holds air or fat and so values below 0.
    """
    if not np.isfinite(hu).all():
        raise RangeError(f"CT: {int((~np.isfinite(hu)).sum())} voxels are NaN or infinite")
    low, high = float(hu.min()), float(hu.max())
    if low == high:
        raise RangeError(f"CT: every voxel is {low:g}; the image is empty")
    if high - low <= 2.0:
        raise RangeError(
            f"CT: values run from {low:g} to {high:g}, which looks like [0, 1] or [-1, 1] and not Hounsfield units. "
            f"Hand over HU, before any normalisation."
        )
    if low >= 0 and high <= 255:
        raise RangeError(
            f"CT: values run from {low:g} to {high:g}: an image that was already windowed to grey levels, not HU. "
            f"Use the original DICOM or NIfTI file."
        )
    if low < -32768 or high > 65535:
        raise RangeError(f"CT: values run from {low:g} to {high:g} HU; the rescale slope was applied twice or is wrong")


def guard_not_empty(array: np.ndarray) -> None:
    """Refuse an image in which every pixel is the same (all zero, all black)."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RangeError(f"{int((~np.isfinite(array)).sum())} pixels are NaN or infinite")
    if array.min() == array.max():
        raise RangeError(f"every pixel is {array.flat[0]:g}: the image is empty")


def window(hu: np.ndarray, width: float, level: float) -> np.ndarray:
    """Window HU to grey levels: clip to level ± width/2, scale to 0..255, round half to even, uint8.

    Width 700 and level 100 is MediSyn v2 section 4.1. This is the plain form, not the LINEAR function of DICOM
    PS3.3 C.11.2.1.2; they differ by less than half a grey level.
    """
    if not width > 0:
        raise InputError(f"window width must be above 0 HU, got {width:g}")
    low = level - width / 2
    grey = (np.clip(hu.astype(np.float64), low, low + width) - low) / width * 255
    return np.rint(grey).astype(np.uint8)


def percentile_clip(array: np.ndarray, low: float = 0.5, high: float = 99.5) -> np.ndarray:
    """Clip to two percentiles of the image and scale to 0..255, uint8 (MediSyn v2 section 4.1, MRI and mammograms).

    Where both percentiles are the same value (almost all background), the whole range is scaled instead.
    """
    if not 0 <= low < high <= 100:
        raise InputError(f"percentiles must satisfy 0 <= low < high <= 100, got {low:g} and {high:g}")
    if not np.isfinite(array).all():
        raise RangeError(f"{int((~np.isfinite(array)).sum())} pixels are NaN or infinite")
    bottom, top = np.percentile(array.astype(np.float64), [low, high])
    if top <= bottom:
        bottom, top = float(array.min()), float(array.max())
    if top <= bottom:
        raise RangeError(f"every pixel is {bottom:g}: the image is empty")
    grey = (np.clip(array.astype(np.float64), bottom, top) - bottom) / (top - bottom) * 255
    return np.rint(grey).astype(np.uint8)
