"""Volumes with different voxels, sampled at the same places of the patient.

Shapes here: C channels, D, H, W depth, height, width; D runs to the head, H to the back, W to the patient's left, each
as nearly as the scan allows.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from medisyn.corpus.readers.nifti import upright
from medisyn.types import Volume

EDGE = 1e-6  # voxels: a sample on the very edge of a scan counts as inside


@dataclass(frozen=True)
class Grid:
    """Where samples are taken: `shape` (D, H, W), and the affine from (d, h, w) to LPS mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray


def centred_grid(volume: Volume, spacing_mm: tuple[float, float, float], shape: tuple[int, int, int]) -> Grid:
    """The middle `shape` voxels of `volume` brought to `spacing_mm`; the grid reaches beyond a smaller volume.

    The resampled volume has round(n * old / new) voxels along each axis and the centre of the volume: along an axis
    that has this spacing already, its voxels are the old ones. The axes are those of the scan, turned to feet-head,
    front-back and right-left.
    """
    array_DHW, affine = upright(volume.array_CDHW[0], volume.affine)
    counts, wanted_mm = np.array(array_DHW.shape), np.array(spacing_mm)
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    resampled = np.maximum(np.rint(counts * steps / wanted_mm), 1)
    first = np.floor((resampled - shape) / 2)  # below 0 where the grid reaches beyond the volume
    made = np.eye(4)
    made[:3, :3] = affine[:3, :3] / steps * wanted_mm
    centre_mm = affine[:3, :3] @ ((counts - 1) / 2) + affine[:3, 3]
    made[:3, 3] = centre_mm + made[:3, :3] @ (first - (resampled - 1) / 2)
    return Grid(shape, made)


def sample_slice(volume: Volume, grid: Grid, d: int, *, nearest: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The values of `volume` at slice `d` of `grid` (H, W), trilinear or `nearest`, and where the volume has voxels.

    Between the centre of its last voxel and its edge a volume keeps the value of the last voxel; beyond, values mean
    nothing. Trilinear values are float64.
    """
    from scipy.ndimage import map_coordinates

    at_3HW = _places(volume, grid, d)
    last_3HW = np.array(volume.array_CDHW.shape[1:]).reshape(3, 1, 1) - 1
    inside_HW: np.ndarray = np.all((at_3HW >= -0.5 - EDGE) & (at_3HW <= last_3HW + 0.5 + EDGE), axis=0)
    array_DHW = volume.array_CDHW[0]
    if nearest:
        d_HW, h_HW, w_HW = np.clip(np.floor(at_3HW + 0.5), 0, last_3HW).astype(np.intp)
        return array_DHW[d_HW, h_HW, w_HW], inside_HW
    return map_coordinates(array_DHW, at_3HW, np.float64, order=1, mode="nearest"), inside_HW


def reached_slices(mask: Volume, grid: Grid) -> range:
    """The slices of `grid` that the box around all voxels of a mask reaches; every other slice is empty."""
    found_3N = np.array(np.nonzero(mask.array_CDHW[0]))
    if not found_3N.size:
        return range(0)
    edges = zip(found_3N.min(axis=1) - 0.5, found_3N.max(axis=1) + 0.5, strict=True)
    corners_8 = np.array(list(itertools.product(*edges)))
    d_8 = (np.linalg.inv(grid.affine) @ mask.affine @ np.c_[corners_8, np.ones(8)].T)[0]
    return range(max(int(np.floor(d_8.min())), 0), min(int(np.ceil(d_8.max())) + 1, grid.shape[0]))


def _places(volume: Volume, grid: Grid, d: int) -> np.ndarray:
    """Where the samples of slice `d` lie, in voxels of the volume."""
    place = np.linalg.inv(volume.affine) @ grid.affine
    first, down, right = (place[:3, axis].reshape(3, 1, 1) for axis in (3, 1, 2))
    first = first + place[:3, 0].reshape(3, 1, 1) * d
    return first + down * np.arange(grid.shape[1])[:, None] + right * np.arange(grid.shape[2])
