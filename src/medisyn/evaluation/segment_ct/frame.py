"""The frame that the segmenter works in: patient axes, a grid of bounded size, and balls in mm instead of voxels.

Shapes here: D, H, W voxels of the scan as it came; d, h, w of the frame: d to the head, h to the back, w to the
patient's left (LPS), whatever the order and direction of the scan's own axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError
from medisyn.intensity import guard_hu
from medisyn.types import Volume

MAX_VOXELS = 256**3  # larger scans are averaged over whole blocks of voxels first
MIN_SIDE = 8  # voxels, below which no organ can be told from another
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Frame:
    """How a scan was turned and thinned, and the way back for masks.

    order, flips  the scan's axis that became d, h and w, and whether it was turned around
    blocks        voxels of the scan along d, h, w that were averaged into one
    """

    shape: tuple[int, int, int]
    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    blocks: tuple[int, int, int]
    spacing_mm: Spacing  # of the frame, along d, h, w

    def turned(self, array_DHW: np.ndarray) -> np.ndarray:
        """An array of the scan with its axes to the head, the back and the left, at the scan's own resolution."""
        return np.flip(array_DHW.transpose(self.order), tuple(axis for axis in range(3) if self.flips[axis]))

    def back(self, mask_dhw: np.ndarray) -> np.ndarray:
        """A mask of the frame on the scan's own grid."""
        turned = tuple(self.shape[axis] for axis in self.order)
        index = [
            np.minimum(np.arange(n) // b, m - 1) for n, b, m in zip(turned, self.blocks, mask_dhw.shape, strict=True)
        ]
        mask = mask_dhw[np.ix_(*index)] if max(self.blocks) > 1 else mask_dhw
        mask = np.flip(mask, tuple(axis for axis in range(3) if self.flips[axis]))
        return np.ascontiguousarray(mask.transpose(np.argsort(self.order)))


def framed(volume: Volume) -> tuple[np.ndarray, Frame]:
    """The CT in patient axes, float32 HU (d, h, w), and its frame.

    Raises InputError for more than one channel, fewer than 8 voxels a side or axes 45 degrees off the patient's;
    RangeError for numbers that are no HU.
    """
    if volume.array_CDHW.shape[0] != 1 or volume.value_range.unit != "hu":
        raise InputError(
            f"segmentation takes a CT of one channel in HU, got {volume.array_CDHW.shape[0]} channels in "
            f"{volume.value_range.unit!r}"
        )
    hu_DHW = volume.array_CDHW[0]
    if min(hu_DHW.shape) < MIN_SIDE:
        raise InputError(f"segmentation needs at least {MIN_SIDE} voxels a side, got {hu_DHW.shape}")
    guard_hu(hu_DHW)
    cosines = volume.affine[:3, :3] / volume.spacing_mm
    nearest = np.abs(cosines).argmax(axis=0)  # of each scan axis: 0 left, 1 back, 2 head
    if len(set(nearest.tolist())) < 3:
        raise InputError("segmentation: two axes of the volume lie 45 degrees off the patient's; resample it upright")
    order = tuple(int(np.flatnonzero(nearest == patient)[0]) for patient in (2, 1, 0))
    flips = tuple(bool(cosines[patient, axis] < 0) for patient, axis in zip((2, 1, 0), order, strict=True))
    hu_dhw = np.flip(hu_DHW.transpose(order), tuple(axis for axis in range(3) if flips[axis]))
    spacing = tuple(volume.spacing_mm[axis] for axis in order)
    blocks = _blocks(hu_dhw.shape, spacing)
    frame = Frame(hu_DHW.shape, order, flips, blocks, tuple(mm * n for mm, n in zip(spacing, blocks, strict=True)))  # type: ignore[arg-type]
    return _averaged(hu_dhw, blocks), frame


def _blocks(shape: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[int, int, int]:
    """Blocks that bring the grid to MAX_VOXELS at most, doubled where voxels are finest."""
    blocks = [1, 1, 1]
    while np.prod(np.ceil(np.asarray(shape) / blocks)) > MAX_VOXELS:
        blocks[int(np.argmin(np.asarray(spacing) * blocks))] += 1
    return blocks[0], blocks[1], blocks[2]


def _averaged(hu_dhw: np.ndarray, blocks: tuple[int, int, int]) -> np.ndarray:
    hu = np.ascontiguousarray(hu_dhw, dtype=np.float32)
    for axis, block in enumerate(blocks):
        if block > 1:
            whole = hu.shape[axis] // block * block
            parts = np.split(hu, [whole], axis=axis)[0]
            shape = (*hu.shape[:axis], whole // block, block, *hu.shape[axis + 1 :])
            hu = parts.reshape(shape).mean(axis=axis + 1)
    return hu


def grown(mask_dhw: np.ndarray, mm: float, spacing: Spacing) -> np.ndarray:
    """Dilated by a ball of radius `mm`."""
    return _depth(~mask_dhw, spacing) <= mm if mask_dhw.any() else mask_dhw.copy()


def shrunk(mask_dhw: np.ndarray, mm: float, spacing: Spacing) -> np.ndarray:
    """Eroded by a ball of radius `mm`; beyond the scan's edge everything counts as inside."""
    return _depth(mask_dhw, spacing) > mm if not mask_dhw.all() else mask_dhw.copy()


def opened(mask_dhw: np.ndarray, mm: float, spacing: Spacing) -> np.ndarray:
    """Without what is thinner than a ball of radius `mm`."""
    return mask_dhw & grown(shrunk(mask_dhw, mm, spacing), mm, spacing)


def closed(mask_dhw: np.ndarray, mm: float, spacing: Spacing) -> np.ndarray:
    """With the gaps that a ball of radius `mm` cannot enter."""
    return mask_dhw | shrunk(grown(mask_dhw, mm, spacing), mm, spacing)


def window_around(mask_dhw: np.ndarray, mm: float, spacing: Spacing) -> tuple[slice, slice, slice]:
    """The box around a mask with a margin in mm; the whole grid for an empty mask."""
    sides = []
    for axis in range(3):
        inside = np.flatnonzero(mask_dhw.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = int(np.ceil(mm / spacing[axis]))
        n = mask_dhw.shape[axis]
        sides.append(slice(max(0, inside[0] - margin), min(n, inside[-1] + margin + 1)) if len(inside) else slice(0, n))
    return sides[0], sides[1], sides[2]


def _depth(mask_dhw: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Distance in mm of each voxel inside to the nearest outside."""
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(mask_dhw, sampling=spacing)
