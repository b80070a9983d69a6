"""A folder or zip of DICOM slices into a Volume, or into sorted pictures where they form none.

Shapes here: C channels, D slices, H, W height and width.
Slices are sorted by their position along the slice normal, never by InstanceNumber or file name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medisyn.corpus.readers import sources
from medisyn.corpus.readers.archive import Entry
from medisyn.corpus.readers.dicom import NoImageError, attributes_of, open_dataset, pixel_spacing, provenance_of
from medisyn.corpus.readers.dicom_pixels import header, number_or, numbers, pixels
from medisyn.errors import InputError, ReadError, SeriesError
from medisyn.geometry import affine_from_dicom, slice_gap, slice_normal, slice_positions
from medisyn.intensity import guard_hu
from medisyn.types import Picture, ValueRange, Volume

if TYPE_CHECKING:
    from pydicom import Dataset

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
MAX_TILT_DEGREES = 0.5


@dataclass(frozen=True)
class Slice:
    """One image file and its header (no pixels)."""

    entry: Entry
    header: Dataset

    @property
    def position(self) -> list[float]:
        return numbers(self.header, "ImagePositionPatient")

    @property
    def orientation(self) -> list[float]:
        return numbers(self.header, "ImageOrientationPatient")

    @property
    def has_geometry(self) -> bool:
        return len(self.position) == 3 and len(self.orientation) == 6 and pixel_spacing(self.header) is not None


@dataclass(frozen=True)
class Series:
    """The images of one SeriesInstanceUID; `number` counts from 1 in the order of SeriesNumber."""

    number: int
    slices: list[Slice]
    dropped: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        first = self.slices[0].header
        size = f"{header(first, 'Columns')} x {header(first, 'Rows')}"
        modality = attributes_of(first).get("Modality", "unknown")
        return f"{self.number}: {modality}, {len(self.slices)} images of {size}"


def list_series(path: Path, member: str | None = None) -> list[Series]:
    """The series of a folder or zip, numbered from 1, without localisers and files that hold no image."""
    found = sources(Path(path), member)
    return series_of(found if isinstance(found, list) else [found])


def series_of(files: Sequence[Entry]) -> list[Series]:
    """The images of `files` by series. Raises ReadError for a damaged image file or a .dcm that is no DICOM."""
    groups: dict[tuple[float, str], list[Slice]] = {}
    dropped = {"localisers_dropped": 0, "others_dropped": 0}
    for entry in files:
        one = _slice(entry)
        if one is None:
            dropped["others_dropped"] += 1
        elif "LOCALIZER" in (header(one.header, "ImageType") or []):
            dropped["localisers_dropped"] += 1
        else:
            order = number_or(one.header, "SeriesNumber", 0)
            groups.setdefault((order, str(header(one.header, "SeriesInstanceUID") or "")), []).append(one)
    if not groups:
        raise ReadError(
            f"no DICOM image among {len(files)} files ({dropped['localisers_dropped']} localisers). "
            f"Name one file, or one member of the zip."
        )
    return [Series(index, groups[key], dropped) for index, key in enumerate(sorted(groups), start=1)]


def chosen_series(files: Sequence[Entry], series: int | None) -> Series:
    """The only series, or the one that `series` names (from 1). Raises SeriesError when none is named among several."""
    found = series_of(files)
    if series is None and len(found) > 1:
        raise SeriesError(
            f"{len(found)} series lie here ({listed(found)}). Choose one: series=1 to {len(found)}, or in a source "
            f"description `series: {{number: 1}}`"
        )
    if series is not None and not 1 <= series <= len(found):
        raise InputError(f"series {series} does not exist, allowed: 1 to {len(found)}")
    return found[0 if series is None else series - 1]


def listed(found: Sequence[Series]) -> str:
    """Series in words, without anything that could name a patient."""
    return "; ".join(map(str, found[:8])) + ("; ..." if len(found) > 8 else "")


def select(
    found: Sequence[Series],
    *,
    modality: str | None = None,
    description: re.Pattern[str] | None = None,
    min_slices: int = 1,
    number: int | None = None,
) -> list[Series]:
    """The series that meet every condition, or only the `number`-th of them (from 1).

    `description` is searched in SeriesDescription, which may hold anything and so is never shown or stored. Raises
    SeriesError, with what there is, when no series is left.
    """
    left = [
        one
        for one in found
        if len(one.slices) >= min_slices
        and modality in (None, header(one.slices[0].header, "Modality"))
        and (description is None or description.search(str(header(one.slices[0].header, "SeriesDescription") or "")))
    ]
    if len(left) < (number or 1):
        raise SeriesError(
            f"{len(left)} of {len(found)} series meet the conditions of `series`, {number or 1} needed; there are: "
            f"{listed(found)} (descriptions are not shown)"
        )
    return left if number is None else [left[number - 1]]


def read_volume(files: Sequence[Entry], series: int | None = None) -> Volume:
    """One series as a Volume (C, D, H, W), D along the slice normal, with its LPS affine.

    Provenance: "localisers_dropped", "others_dropped", "duplicates_dropped". Raises SeriesError when a slice has no
    geometry, slices differ in size, direction or spacing, the gantry was tilted, gaps are unequal or positions twofold.
    """
    return volume_of(chosen_series(files, series))


def volume_of(chosen: Series) -> Volume:
    """`read_volume` of a series that was chosen before."""
    slices = _sorted_by_position(chosen.slices)
    first = slices[0]
    spacing_mm = pixel_spacing(first.header)
    assert spacing_mm is not None  # _sorted_by_position refuses slices without
    unique, arrays, ranges = _decode_unique(slices)
    positions = [one.position for one in unique]
    _refuse_tilt(positions, first.orientation)
    gap_mm = slice_gap(slice_positions(positions, first.orientation))
    affine = affine_from_dicom(first.orientation, positions[0], spacing_mm, gap_mm)
    value_range = _union(ranges)
    array_CDHW = np.stack(arrays, axis=1)
    if value_range.unit == "hu":
        guard_hu(array_CDHW)
    provenance = {**provenance_of(first.header), **chosen.dropped, "duplicates_dropped": len(slices) - len(unique)}
    return Volume(array_CDHW, affine, value_range, provenance)


def read_slices(files: Sequence[Entry], series: int | None = None) -> list[Picture]:
    """One series as pictures, as stored, in the order of `in_order`; provenance "slice" and "position_mm"."""
    chosen = chosen_series(files, series)
    ordered = in_order(chosen)
    return [picture_of(one, place, index, chosen.dropped) for index, (place, one) in enumerate(ordered)]


def in_order(chosen: Series) -> list[tuple[float | None, Slice]]:
    """The slices of a series, nothing decoded yet, with their place in mm along the slice normal.

    Where a slice has no geometry, or they lie in different directions, all are in the order of InstanceNumber and have
    no place.
    """
    if all(one.has_geometry for one in chosen.slices) and _one_direction(chosen.slices):
        normal = slice_normal(chosen.slices[0].orientation)
        located = [(float(np.dot(one.position, normal)), one) for one in chosen.slices]
        located.sort(key=lambda pair: pair[0])
        return [*located]
    return [(None, one) for one in sorted(chosen.slices, key=lambda one: number_or(one.header, "InstanceNumber", 0))]


def picture_of(one: Slice, place_mm: float | None, index: int, dropped: Mapping[str, int]) -> Picture:
    """One slice as stored; provenance "slice" and, where it is known, "position_mm"."""
    array_CHW, value_range = _decode(one)
    provenance = {**provenance_of(one.header), **dropped, "slice": index}
    if place_mm is not None:
        provenance["position_mm"] = place_mm
    return Picture(array_CHW, value_range, pixel_spacing(one.header), provenance)


def _slice(entry: Entry) -> Slice | None:
    """The image of a file; None for a file that is no DICOM and does not claim to be, or holds no image."""
    is_claimed = entry.name.lower().endswith(DICOM_SUFFIXES)
    try:
        kind = entry.format()
    except ReadError:
        if is_claimed:
            raise
        return None
    if kind != "dicom" and not is_claimed:
        return None
    try:
        return Slice(entry, open_dataset(entry, with_pixels=False))
    except NoImageError:
        return None


def _sorted_by_position(slices: list[Slice]) -> list[Slice]:
    missing = sum(not one.has_geometry for one in slices)
    if missing:
        raise SeriesError(
            f"{missing} of {len(slices)} slices have no ImagePositionPatient, ImageOrientationPatient or PixelSpacing, "
            f"so they form no volume. Curate its slices as pictures."
        )
    shapes = {(header(one.header, "Rows"), header(one.header, "Columns")) for one in slices}
    if len(shapes) > 1:
        raise SeriesError(f"the slices have {len(shapes)} sizes: {', '.join(f'{w} x {h}' for h, w in sorted(shapes))}")
    if not _one_direction(slices):
        raise SeriesError("the slices lie in different directions or have different pixel spacing; they form no volume")
    order = np.argsort(slice_positions([one.position for one in slices], slices[0].orientation), kind="stable")
    return [slices[index] for index in order]


def _one_direction(slices: list[Slice]) -> bool:
    frames = np.asarray([[*one.orientation, *(pixel_spacing(one.header) or ())] for one in slices])
    return bool(np.allclose(frames, frames[0], atol=1e-3))


def _decode_unique(slices: list[Slice]) -> tuple[list[Slice], list[np.ndarray], list[ValueRange]]:
    """Decoded slices without those that repeat the one before: same position and same pixels."""
    unique: list[Slice] = []
    arrays: list[np.ndarray] = []
    ranges: list[ValueRange] = []
    for one in slices:
        array_CHW, value_range = _decode(one)
        is_repeated = unique and np.allclose(unique[-1].position, one.position, atol=1e-3)
        if not (is_repeated and np.array_equal(arrays[-1], array_CHW)):
            unique.append(one)
            arrays.append(array_CHW)
            ranges.append(value_range)
    return unique, arrays, ranges


def _decode(one: Slice) -> tuple[np.ndarray, ValueRange]:
    array_FCHW, value_range = pixels(open_dataset(one.entry))
    if len(array_FCHW) > 1:
        raise SeriesError(f"a file of the series holds {len(array_FCHW)} frames; read multi-frame files one by one")
    return array_FCHW[0], value_range


def _refuse_tilt(positions: Sequence[Sequence[float]], orientation: Sequence[float]) -> None:
    """A tilted gantry shifts each slice within its plane; the voxels then fill a sheared block, not a box."""
    way = np.asarray(positions[-1]) - np.asarray(positions[0])
    along = float(way @ slice_normal(orientation))
    across = float(np.linalg.norm(way - along * slice_normal(orientation)))
    tilt = math.degrees(math.atan2(across, abs(along)))
    if abs(along) > 1e-3 and tilt > MAX_TILT_DEGREES:
        raise SeriesError(
            f"the gantry was tilted by {tilt:.1f} degrees, so the slices form no box (allowed {MAX_TILT_DEGREES:g}). "
            f"Curate its slices as pictures."
        )


def _union(ranges: Sequence[ValueRange]) -> ValueRange:
    units = {one.unit for one in ranges}
    if len(units) > 1:
        raise SeriesError(f"the slices mix the units {', '.join(sorted(units))}")
    return replace(ranges[0], low=min(one.low for one in ranges), high=max(one.high for one in ranges))
