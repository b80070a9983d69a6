"""The grid that a file states: HU that fit int16, axes at right angles, and another spacing or size on request.

Shapes here: C channels (1), D, H, W voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medisyn.errors import InputError, RangeError
from medisyn.intensity import guard_hu
from medisyn.types import Volume

INT16 = np.iinfo(np.int16)
SKEW = 1e-4  # largest cosine between two axes that are still called perpendicular
MAX_SIDE = 2048
WINDOWS = {"lung": (-600, 1500), "mediastinal": (40, 400)}  # name -> level and width in HU


def hu_int16(volume: Volume) -> np.ndarray:
    """The CT as int16 HU (D, H, W), rounded half to even.

    Raises InputError for anything but a CT volume of one channel, RangeError for numbers that are no HU (in [0, 1],
    grey levels, one value throughout) or do not fit 16 bits.
    """
    check_ct(volume)
    hu_DHW = volume.array_CDHW[0]
    guard_hu(hu_DHW)
    low, high = float(hu_DHW.min()), float(hu_DHW.max())
    if low < INT16.min or high > INT16.max:
        raise RangeError(
            f"CT: values run from {low:g} to {high:g} HU, the file holds {INT16.min} to {INT16.max}. "
            f"Clip the volume before writing it."
        )
    return np.rint(hu_DHW).astype(np.int16)


def check_ct(volume: Volume) -> None:
    """Raise InputError unless this is a CT volume in HU, of one channel, whose axes are at right angles."""
    if not isinstance(volume, Volume):
        raise InputError(
            f"CT files hold a Volume, which knows its spacing and place in the patient; got {type(volume).__name__}"
        )
    if volume.array_CDHW.shape[0] != 1:
        raise InputError(f"CT files hold one channel, the volume has {volume.array_CDHW.shape[0]}")
    if volume.value_range.unit != "hu":
        raise RangeError(
            f"CT files hold HU, the volume is in {volume.value_range.unit!r}. Hand over HU, before any normalisation."
        )
    cosines = directions(volume.affine)
    worst = float(np.abs(cosines.T @ cosines - np.eye(3)).max())
    if worst > SKEW:
        raise InputError(
            f"volume: two axes meet at {np.degrees(np.arccos(worst)):.2f} degrees. NIfTI's qform and a DICOM CT series "
            f"hold boxes only: resample the volume to perpendicular axes first (a tilted gantry shears it)."
        )


def directions(affine: np.ndarray) -> np.ndarray:
    """Unit vectors of the axes d, h, w in LPS, as columns (3, 3)."""
    return affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)


def resample(
    volume: Volume,
    masks: Mapping[str, np.ndarray] | None = None,
    *,
    spacing_mm: float | Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
) -> tuple[Volume, dict[str, np.ndarray]]:
    """The volume and its masks on another grid with the same axes and the same centre in the patient.

    spacing_mm  voxel size along d, h, w (one number: all three). The number of voxels is what comes nearest to the old
                extent; the spacing is exactly the one asked for
    shape       voxels along D, H, W. The extent stays exactly the same; the spacing follows

    HU are linear between the eight nearest voxels, not smoothed before they are thinned out; masks take the nearest
    voxel (of two at the same distance, the later one). Half a voxel at the border repeats the outermost voxel.
    Raises InputError unless exactly one of the two is given and is above 0, and for more than 2048 voxels a side.
    """
    old_N = np.asarray(volume.array_CDHW.shape[1:])
    new_N, scale = _new_grid(old_N, np.asarray(volume.spacing_mm), spacing_mm, shape)
    for name, mask in (masks or {}).items():
        if np.shape(mask) != tuple(old_N):
            raise InputError(f"mask {name!r} has shape {np.shape(mask)}, its CT {tuple(map(int, old_N))}")
    places = [
        (np.arange(new) - (new - 1) / 2) * step + (old - 1) / 2
        for old, new, step in zip(old_N, new_N, scale, strict=True)
    ]
    step = np.diag([*scale, 1.0])
    step[:3, 3] = (old_N - 1) / 2 - scale * (new_N - 1) / 2
    resampled = np.stack([_linear(channel, places) for channel in volume.array_CDHW])
    return (
        Volume(resampled, volume.affine @ step, volume.value_range, volume.provenance),
        {name: _nearest(np.asarray(mask), places) for name, mask in (masks or {}).items()},
    )


def _new_grid(
    old_N: np.ndarray,
    old_mm: np.ndarray,
    spacing_mm: float | Sequence[float] | None,
    shape: Sequence[int] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels along each axis of the new grid, and its step in old voxels."""
    if (spacing_mm is None) == (shape is None):
        raise InputError("resample: give either spacing_mm or shape, not both and not neither")
    if shape is not None:
        if len(shape) != 3 or any(side != int(side) or side < 1 for side in shape):
            raise InputError(f"resample: shape must be three whole numbers of at least 1 (D, H, W), got {shape}")
        new_N = np.asarray(shape, int)
        scale = old_N / new_N
    else:
        wanted = np.ravel(np.asarray(spacing_mm, float))
        if wanted.size not in (1, 3) or not (np.isfinite(wanted).all() and (wanted > 0).all()):
            raise InputError(f"resample: spacing_mm must be one or three numbers above 0 (d, h, w), got {spacing_mm}")
        scale = np.broadcast_to(wanted, 3) / old_mm
        new_N = np.maximum(1, np.rint(old_N / scale)).astype(int)
    if new_N.max() > MAX_SIDE:
        raise InputError(f"resample: {' x '.join(map(str, new_N))} voxels; at most {MAX_SIDE} a side are written")
    return new_N, scale


def _linear(array_DHW: np.ndarray, places: Sequence[np.ndarray]) -> np.ndarray:
    """Values at the grid of places (old indices along each axis), float32, one axis after the other."""
    values = array_DHW.astype(np.float32)
    for axis, place in enumerate(places):
        inside = np.clip(place, 0, values.shape[axis] - 1)
        before = np.minimum(inside.astype(int), max(values.shape[axis] - 2, 0))
        after = np.minimum(before + 1, values.shape[axis] - 1)
        share = (inside - before).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        values = values.take(before, axis) * (1 - share) + values.take(after, axis) * share
    return values


def _nearest(mask_DHW: np.ndarray, places: Sequence[np.ndarray]) -> np.ndarray:
    picked = [
        np.clip(np.floor(place + 0.5), 0, side - 1).astype(int)
        for place, side in zip(places, mask_DHW.shape, strict=True)
    ]
    return np.ascontiguousarray(mask_DHW[np.ix_(*picked)])
