"""A CT and its masks, brought from the scanner's grid to the grid that a MedSyn model learns on.

Shapes here: D, H, W of the scan, d, h, w of the model's grid, which lies along S, P, L with its centre in the scan's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError
from medisyn.families.medsyn.config import HU_WINDOW, Grid
from medisyn.types import HU, Volume

AIR_HU = HU_WINDOW[0]  # outside the scan
PLACE_TOLERANCE = 0.1  # voxels by which a mask may lie beside its CT


@dataclass(frozen=True)
class Placed:
    """A CT on the model's grid, or as it was where it fits already.

    `covered` is the share of the grid that the scan reaches: 1 where nothing had to be filled up with air.
    """

    volume: Volume
    masks: Mapping[str, np.ndarray]
    resampled: bool
    covered: float


def place(volume: Volume, masks: Mapping[str, np.ndarray], grid: Grid, finer: int, key: str) -> Placed:
    """CT (HU) and masks on a grid `finer` times finer than `grid`, of which the model takes every `finer`-th voxel.

    A volume that fits the model already is left alone. Otherwise the CT is interpolated linearly, averaged over a
    box first along axes that get coarser, and masks take the nearest label; what the scan does not reach is air.
    """
    if fits(volume, grid, key):
        return Placed(volume, masks, resampled=False, covered=1.0)
    from scipy.ndimage import affine_transform, uniform_filter

    from medisyn.families.medsyn.channels import standing_affine

    target = grid.finer(finer) if finer > 1 else grid
    affine = standing_affine(target)
    middle = (np.asarray(volume.array_CDHW.shape[1:]) - 1) / 2
    affine[:3, 3] += (volume.affine @ [*middle, 1.0])[:3]
    back = np.linalg.inv(volume.affine) @ affine  # index on the grid -> index in the scan

    def sampled(array_DHW: np.ndarray, order: int, outside: float) -> np.ndarray:
        return affine_transform(array_DHW, back[:3, :3], back[:3, 3], target.shape, order=order, cval=outside)

    stride = np.abs(back[:3, :3]).max(axis=1)  # voxels of the scan per voxel of the grid
    box = [2 * int(step / 2) + 1 for step in stride]  # odd, so that nothing moves
    smooth_DHW = uniform_filter(volume.array_CDHW[0].astype(np.float32), box, mode="nearest")
    hu_dhw = sampled(smooth_DHW, 1, AIR_HU)
    inside = sampled(np.ones(volume.array_CDHW.shape[1:], np.uint8), 0, 0)
    provenance = {**volume.provenance, "spacing_mm": volume.spacing_mm}
    return Placed(
        Volume(np.clip(hu_dhw, HU.low, volume.value_range.high)[None], affine, volume.value_range, provenance),
        {name: sampled(mask_DHW, 0, 0) for name, mask_DHW in masks.items()},
        resampled=True,
        covered=float(inside.mean()),
    )


def fits(volume: Volume, grid: Grid, key: str) -> bool:
    """Whether the model takes the volume as it is: a whole multiple of the grid, of its spacing, and not oblique."""
    from medisyn.families.medsyn.channels import turn_to

    try:
        order = turn_to(volume.affine, grid.axes, key).order
    except InputError:
        return False
    shape = [volume.array_CDHW.shape[1:][axis] for axis in order]
    step = max(1, shape[0] // grid.shape[0])
    spacing = [volume.spacing_mm[axis] * step for axis in order]
    near = np.abs(np.asarray(spacing) / grid.spacing_mm - 1) <= grid.spacing_tolerance
    return shape == [side * step for side in grid.shape] and bool(near.all())


def mask_like(mask: Volume, ct: Volume, name: str, key: str) -> np.ndarray:
    """A mask file's labels in the voxel order of its CT, uint8 or as stored, (D, H, W).

    The file may store the axes in another order or direction. Raises InputError when the voxels are not the CT's.
    """
    array_DHW = mask.array_CDHW[0]
    step = np.linalg.inv(mask.affine) @ ct.affine  # index in the CT -> index in the mask
    turn = np.rint(step[:3, :3])
    shape = ct.array_CDHW.shape[1:]
    is_turn = np.array_equal(np.abs(turn).sum(axis=0), (1, 1, 1)) and np.array_equal(
        np.abs(turn).sum(axis=1), (1, 1, 1)
    )
    order = np.abs(turn).argmax(axis=0)
    if mask.array_CDHW.shape[0] != 1 or not is_turn or tuple(array_DHW.shape[axis] for axis in order) != shape:
        raise InputError(
            f"{key}: mask {name!r} has shape {array_DHW.shape} with voxels of {_mm(mask)} mm, its CT {shape} with "
            f"{_mm(ct)} mm. A mask has the voxels of its CT: segment this CT, or resample the mask onto it."
        )
    turned = array_DHW.transpose(order)
    for axis in range(3):
        if turn[order[axis], axis] < 0:
            turned = np.flip(turned, axis)
    beside = _beside(step, turn, shape, array_DHW.shape)
    if beside > PLACE_TOLERANCE:
        raise InputError(
            f"{key}: mask {name!r} lies {beside:.1f} voxels beside its CT. Save it with the CT's position "
            f"and orientation."
        )
    return np.ascontiguousarray(turned)


def _beside(step: np.ndarray, turn: np.ndarray, ct_shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> float:
    """How many voxels of the mask its first and last voxel lie away from the CT's, along the worst axis."""
    backwards, last = turn.sum(axis=1) < 0, np.asarray(mask_shape) - 1
    first_there = (step @ [0, 0, 0, 1])[:3] - np.where(backwards, last, 0)
    last_there = (step @ [*(np.asarray(ct_shape) - 1), 1])[:3] - np.where(backwards, 0, last)
    return float(np.abs([first_there, last_there]).max())


def _mm(volume: Volume) -> str:
    return " x ".join(f"{side:.3g}" for side in volume.spacing_mm)
