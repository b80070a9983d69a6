"""Slices of a volume, and the stored images of DICOM series, as pieces.

Shapes here: C channels, D, H, W depth, height, width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medisyn.corpus import headers
from medisyn.corpus.captions import join_words
from medisyn.corpus.opened import OpenFile, Piece, Unusable, mask_names, slab
from medisyn.corpus.preprocess import INTENSITIES, channels_to_rgb
from medisyn.corpus.table import TableRow, read_table, require
from medisyn.corpus.takes import SeriesSlices, Slices, SliceTable, Whole
from medisyn.errors import InputError, MissingDependency, ReadError, SeriesError
from medisyn.types import Clip, Picture, Volume

if TYPE_CHECKING:
    from medisyn.corpus.readers.dicom_series import Slice

AIR_HU = -500.0


def volume_pieces(take: Slices, file: OpenFile) -> Iterator[Piece]:
    """Slices of a volume across `take.plane`, resampled to square pixels."""
    from medisyn.corpus.readers.nifti import slices

    volume = _volume(take, file)
    pictures = slices(volume, take.plane)
    others = [slices(_aligned(take, file, template, volume), take.plane) for template in take.channels or ()]
    structures = _slice_masks(take, file, volume, len(pictures))
    columns = _volume_columns(take.table, file, pictures)
    least = _content_level(volume.array_CDHW, volume.value_range.unit)
    for number in _numbers(take, len(pictures)):
        picture, cells = pictures[number], columns[number]
        if cells is not None and (picture.array_CHW > least).mean() >= take.min_content:
            words = {"structures": join_words(structures[number]), "plane": take.plane}
            if others:
                picture = in_colour(take, [picture, *(other[number] for other in others)])
            yield Piece(f"{take.plane[0]}{number:04d}", picture, words, cells, region=slab(file, number, len(pictures)))


def series_pieces(take: SeriesSlices, file: OpenFile) -> Iterator[Piece | Unusable]:
    """The images of the chosen series as stored; an image that cannot be decoded is set aside on its own."""
    from medisyn.corpus.readers.dicom import attributes_of
    from medisyn.corpus.readers.dicom_series import in_order, picture_of

    chosen = file.series(take.series)
    if file.source.split.unit == "region" and len(chosen) > 1:
        raise ReadError(
            f"split unit region cuts one series into slabs, and {len(chosen)} meet the conditions of `series`; add "
            f"number: 1, or split by file"
        )
    for one in chosen:
        ordered = in_order(one)
        find = _SliceRows(take.table, file)
        for number in _numbers(take, len(ordered)):
            place, stored = ordered[number]
            suffix = f"s{one.number:02d}-{number:04d}"
            try:
                cells = find(place, stored)
                if cells is None:
                    continue
                picture = picture_of(stored, place, number, {})
            except (InputError, MissingDependency) as error:
                yield Unusable(suffix, str(error))
                continue
            if (picture.array_CHW > _content_level(picture.array_CHW, picture.value_range.unit)).mean() >= (
                take.min_content
            ):
                columns = {**headers.cells(attributes_of(stored.header)), **cells}
                yield Piece(suffix, picture, columns=columns, region=slab(file, number, len(ordered)))


def in_colour(take: Whole | Slices, pictures: Sequence[Picture]) -> Picture:
    """Three aligned grey pictures as red, green and blue, each through the intensity step of `take` on its own."""
    return channels_to_rgb(pictures, INTENSITIES[take.intensity])


def _numbers(take: Slices | SeriesSlices, count: int) -> range:
    first, last = (round(fraction * count) for fraction in take.between)
    return range(first, last, take.every)


def _volume(take: Slices, file: OpenFile) -> Volume:
    volume = file.item(take.modality, take.series)
    if not isinstance(volume, Volume):
        kind = "clip" if isinstance(volume, Clip) else "whole"
        raise SeriesError(f"expected a volume, the file holds a {type(volume).__name__}; use the kind {kind}")
    return volume


def _aligned(take: Slices, file: OpenFile, template: str, volume: Volume) -> Volume:
    """The volume of another channel; it must lie where the first lies."""
    other = file.open_beside(template).item(take.modality)
    if not isinstance(other, Volume):
        raise SeriesError(f"expected a volume, the file of a channel holds a {type(other).__name__}")
    same_shape = other.array_CDHW.shape == volume.array_CDHW.shape
    if not same_shape or not np.allclose(other.affine, volume.affine, atol=1e-2):
        raise ReadError(
            f"the volumes of the channels are not aligned: {volume.array_CDHW.shape[1:]} and "
            f"{other.array_CDHW.shape[1:]} voxels{', at different places' if same_shape else ''}. Resample them first, "
            f"or use the kind modalities"
        )
    return other


def _content_level(array: np.ndarray, unit: str) -> float:
    """What lies above it is the body: -500 HU, or a tenth of the bright end where there is no scale."""
    lowest = min(float(array.min()), 0.0)
    return AIR_HU if unit == "hu" else lowest + (float(np.percentile(array, 99.5)) - lowest) / 10


def _slice_masks(take: Slices, file: OpenFile, volume: Volume, count: int) -> list[list[str]]:
    from medisyn.corpus.annotations import read_mask, slice_labels

    words: list[list[str]] = [[] for _ in range(count)]
    for mask in take.masks:
        labels = read_mask(file.beside(mask.file))
        if not isinstance(labels, Volume) or labels.array_CDHW.shape[1:] != volume.array_CDHW.shape[1:]:
            raise ReadError("a mask has another shape than its volume")
        names = mask_names(mask, labels.array_CDHW)
        for number, found in enumerate(slice_labels(labels, names, take.plane, mask.min_pixels)):
            words[number] += filter(None, found)
    return words


def _volume_columns(table: SliceTable | None, file: OpenFile, pictures: list[Picture]) -> list[dict[str, str] | None]:
    find = _SliceRows(table, file)
    return [find(picture.provenance["position_mm"], None) for picture in pictures]


class _SliceRows:
    """The cells of a slice table for one slice after the other; None for a slice that is left out."""

    def __init__(self, table: SliceTable | None, file: OpenFile) -> None:
        self.table = table
        self.rows: list[TableRow] = []
        self.by_name: dict[str, TableRow] = {}
        self.places_mm = np.empty(0)
        if table is None:
            return
        path = file.folder / table.path
        listed = _read_once(path, path.stat().st_mtime_ns if path.exists() else 0)
        key = table.position or table.instance or table.uid or ""
        require(filter(None, [key, *table.columns, table.on]), list(listed[0]), "slice table")
        rows = [row for row in listed if table.on is None or row[table.on] == file.row[table.on]]
        self.rows = [row for row in rows if row[key]]
        if not self.rows and not table.listed_only:
            what = "is empty in every row" if table.on is None else "is empty in every row of this file"
            raise ReadError(f"slice table: column {key!r} {what}")
        if table.position is not None:
            self.places_mm = _millimetres(self.rows, key)
        else:
            self.by_name = {row[key]: row for row in self.rows}

    def __call__(self, place_mm: float | None, stored: Slice | None) -> dict[str, str] | None:
        if self.table is None:
            return {}
        row = self._by_place(place_mm) if self.table.position is not None else self._by_header(stored)
        if row is None and not self.table.listed_only:
            raise ReadError("the slice table has no row for a slice; listed_only: true leaves such slices out")
        return None if row is None else {column: row[column] for column in self.table.columns}

    def _by_place(self, place_mm: float | None) -> TableRow | None:
        assert self.table is not None
        if place_mm is None:
            raise ReadError("the slices have no position, so the table must name them by instance or uid")
        away = np.abs(self.places_mm - place_mm)
        if len(away) and away.min() <= self.table.tolerance_mm:
            return self.rows[int(away.argmin())]
        if self.table.listed_only:
            return None
        raise ReadError(
            f"the slice table has no row within {self.table.tolerance_mm:g} mm of a slice "
            f"(nearest: {away.min():.1f} mm)"
        )

    def _by_header(self, stored: Slice | None) -> TableRow | None:
        from medisyn.corpus.readers.dicom_pixels import header

        assert self.table is not None
        assert stored is not None
        tag = "InstanceNumber" if self.table.instance is not None else "SOPInstanceUID"
        return self.by_name.get(str(header(stored.header, tag) or ""))


@functools.lru_cache(maxsize=4)
def _read_once(path: Path, changed_ns: int) -> list[TableRow]:
    """A slice table that many files share; `changed_ns` makes an edited table another one."""
    return read_table(path)


def _millimetres(rows: list[TableRow], column: str) -> np.ndarray:
    try:
        return np.array([float(row[column]) for row in rows])
    except ValueError:
        raise ReadError(f"slice table: column {column!r} must hold millimetres, and holds other text") from None
