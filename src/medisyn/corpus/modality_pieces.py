"""One slice of a case scanned in several ways (T2W, ADC and DWI) as the channels of one picture.

Medical diffusion on a budget, section 3.3.1. Shapes here: C channels, D, H, W depth, height, width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medisyn.corpus.grids import Grid, centred_grid, reached_slices, sample_slice
from medisyn.corpus.opened import OpenFile, Piece
from medisyn.corpus.table import fill
from medisyn.corpus.takes import Modalities
from medisyn.errors import RangeError, ReadError, SeriesError
from medisyn.types import UINT8, Picture, Volume

SCALES = {"volume-range": (0.0, 100.0), "percentile": (0.5, 99.5)}  # percentiles of the whole scan, to black and white


def modality_piece(take: Modalities, file: OpenFile) -> Piece:
    """The slice that `take.slice` chooses, one channel per scan, sampled on the grid of the first scan."""
    templates = [None, *(take.channels or ())]
    names = ["the file", *(f"channel {number}" for number in range(1, len(templates)))]
    first = _scan(file, names[0], take.modality)
    grid = centred_grid(first, take.spacing_mm, take.crop)
    number = _chosen_slice(take, file, grid)
    picks = [_grey(first, grid, number, names[0], take.intensity)]
    for template, name in zip(templates[1:], names[1:], strict=True):
        other = _scan(file.open_beside(str(template)), name, take.modality)
        picks.append(_grey(other, grid, number, name, take.intensity))
    facts = {"slice": number, "slice_rule": take.slice.rule}
    picture = Picture(np.stack(picks), UINT8, (take.spacing_mm[1], take.spacing_mm[2]), facts)
    return Piece(f"d{number:04d}", picture)


def _scan(file: OpenFile, name: str, modality: str | None) -> Volume:
    try:
        volume = file.item(modality)
    except ReadError as error:
        raise ReadError(f"{name}: {error}") from None
    if not isinstance(volume, Volume) or volume.array_CDHW.shape[0] != 1:
        held = f"{volume.array_CDHW.shape[0]} volumes" if isinstance(volume, Volume) else f"a {type(volume).__name__}"
        raise SeriesError(f"{name}: one volume is needed, it holds {held}")
    return volume


def _grey(volume: Volume, grid: Grid, number: int, name: str, intensity: str) -> np.ndarray:
    """Slice `number` as grey levels (H, W); black where the scan has no voxels.

    Black and white are percentiles of the whole scan, so that neither crop nor slice changes the grey of a tissue.
    """
    low, high = np.percentile(volume.array_CDHW, SCALES[intensity])
    if low == high:
        low, high = float(volume.array_CDHW.min()), float(volume.array_CDHW.max())
    if low == high:
        raise RangeError(f"{name}: every voxel is {low:g}: the scan is empty")
    values_HW, inside_HW = sample_slice(volume, grid, number)
    if not inside_HW.any():
        raise ReadError(f"{name}: it does not reach the chosen slice; the scans lie at different places of the patient")
    grey_HW = np.rint(np.clip((values_HW - low) / (high - low), 0, 1) * 255)
    return np.where(inside_HW, grey_HW, 0).astype(np.uint8)


def _chosen_slice(take: Modalities, file: OpenFile, grid: Grid) -> int:
    """The slice of the grid with the largest area of the mask (lesion), or the median of those that show it (gland)."""
    mask = _mask(take, file)
    areas_D = np.zeros(grid.shape[0], int)
    for number in reached_slices(mask, grid):
        areas_D[number] = _area(mask, grid, number)
    shown = np.flatnonzero(areas_D)
    if not len(shown):
        where = "is empty" if not mask.array_CDHW.any() else "lies outside the cropped field"
        raise ReadError(f"slice rule {take.slice.rule}: the {take.slice.rule} mask {where}, so it chooses no slice")
    return int(areas_D.argmax()) if take.slice.rule == "lesion" else int(np.median(shown))


def _area(mask: Volume, grid: Grid, number: int) -> int:
    values_HW, inside_HW = sample_slice(mask, grid, number, nearest=True)
    return int(np.count_nonzero(values_HW.astype(bool) & inside_HW))


def _mask(take: Modalities, file: OpenFile) -> Volume:
    from medisyn.corpus.annotations import read_mask

    path = _first_there(file, take.slice.masks)
    if path is None:
        raise ReadError(
            f"slice rule {take.slice.rule}: the {take.slice.rule} mask of this file is missing "
            f"({len(take.slice.masks)} places were looked at)"
        )
    mask = read_mask(path)
    if not isinstance(mask, Volume):
        raise ReadError(f"slice rule {take.slice.rule}: the {take.slice.rule} mask is a picture and no volume")
    return mask


def _first_there(file: OpenFile, templates: tuple[str, ...]) -> Path | None:
    for template in templates:
        if fill(template, file.row) and (path := file.beside(template)).exists():
            return path
    return None
