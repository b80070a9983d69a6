"""One file into the pictures that become samples: whole, slices, crops around boxes, tiles, stacked arrays.

Shapes here: C channels, H, W height and width, N pictures.
"""

from __future__ import annotations

import functools
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medisyn.corpus.captions import join_words
from medisyn.corpus.source import Arrays, Boxes, Mask, Slices, SliceTable, Source, Take, Tiles, Whole
from medisyn.corpus.splits import position
from medisyn.corpus.table import TableRow, fill, read_table, require
from medisyn.errors import ReadError, SeriesError
from medisyn.types import Picture, Volume

AIR_HU = -500.0
NPZ_ERRORS = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)  # of damaged files and of pickles
COLOURED = 20  # channels of tissue differ by at least this many grey levels; glass is grey


@dataclass(frozen=True)
class Piece:
    """One picture before preprocessing. `suffix` tells it from the other pieces of its file.

    `words` fill the captions, `columns` are cells that only this piece has, `region` is its slab or block.
    """

    suffix: str
    picture: Picture
    words: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    region: int | None = None
    given: str | None = None


class OpenFile:
    """A file of a source; it is decoded once, however many takes read it."""

    def __init__(self, source: Source, folder: Path, path: Path, row: TableRow, key: str) -> None:
        self.source, self.folder, self.path, self.row, self.key = source, folder, path, row, key

    @functools.lru_cache(maxsize=1)  # noqa: B019 - an OpenFile lives as long as its file is worked on
    def item(self, modality: str | None = None) -> Any:
        from medisyn.corpus.readers import read_item

        return read_item(self.path, modality=modality)

    def picture(self) -> Picture:
        item = self.item()
        if not isinstance(item, Picture):
            raise ReadError(f"expected one picture, the file holds a {type(item).__name__}; use the kind slices")
        return item

    def beside(self, template: str) -> Path:
        """Another file of the source, named by the row."""
        return self.folder / fill(template, self.row)


def pieces(take: Take, file: OpenFile) -> Iterator[Piece]:
    """What `take` makes of a file. Raises ReadError, SeriesError or RangeError for a file that cannot be used."""
    if isinstance(take, Whole):
        yield Piece("", file.picture(), {"structures": join_words(_picture_masks(take.masks, file))})
    elif isinstance(take, Slices):
        yield from _slices(take, file)
    elif isinstance(take, Boxes):
        yield from _boxes(take, file)
    elif isinstance(take, Tiles):
        yield from _tiles(take, file)
    else:
        yield from _arrays(take, file)


def _picture_masks(masks: tuple[Mask, ...], file: OpenFile) -> list[str]:
    from medisyn.corpus.annotations import mask_labels, read_mask

    words: list[str] = []
    for mask in masks:
        values = read_mask(file.beside(mask.file))
        if isinstance(values, Volume):
            raise ReadError("the mask of a picture is a volume")
        if values.shape != file.picture().array_CHW.shape[1:]:
            raise ReadError(f"the mask is {values.shape}, its picture {file.picture().array_CHW.shape[1:]} pixels")
        words += filter(None, mask_labels(values, _names(mask, values), mask.min_pixels))
    return words


def _slices(take: Slices, file: OpenFile) -> Iterator[Piece]:
    from medisyn.corpus.readers.nifti import slices

    volume = file.item(take.modality)
    if not isinstance(volume, Volume):
        raise SeriesError(f"expected a volume, the file holds a {type(volume).__name__}; use the kind whole")
    pictures = slices(volume, take.plane)
    structures = _slice_masks(take, file, len(pictures))
    columns = _slice_columns(take.table, file, pictures)
    least = _content_level(volume)
    first, last = (round(fraction * len(pictures)) for fraction in take.between)
    for number in range(first, last, take.every):
        picture = pictures[number]
        if (picture.array_CHW > least).mean() >= take.min_content:
            region = number * file.source.split.regions // len(pictures)
            words = {"structures": join_words(structures[number]), "plane": take.plane}
            yield Piece(f"{take.plane[0]}{number:04d}", picture, words, columns[number], region)


def _content_level(volume: Volume) -> float:
    """What lies above it is the body: -500 HU, or a tenth of the bright end where there is no scale."""
    if volume.value_range.unit == "hu":
        return AIR_HU
    return float(np.percentile(volume.array_CDHW, 99.5)) / 10


def _slice_masks(take: Slices, file: OpenFile, count: int) -> list[list[str]]:
    from medisyn.corpus.annotations import read_mask, slice_labels

    words: list[list[str]] = [[] for _ in range(count)]
    for mask in take.masks:
        volume = read_mask(file.beside(mask.file))
        if (
            not isinstance(volume, Volume)
            or volume.array_CDHW.shape[1:] != file.item(take.modality).array_CDHW.shape[1:]
        ):
            raise ReadError("a mask has another shape than its volume")
        names = _names(mask, volume.array_CDHW)
        for number, found in enumerate(slice_labels(volume, names, take.plane, mask.min_pixels)):
            words[number] += filter(None, found)
    return words


def _names(mask: Mask, values: np.ndarray) -> dict[int, str]:
    """Value -> word, with "" for the values that are left out on purpose."""
    if not mask.others:
        return mask.values
    return {**mask.values, **{int(value): "" for value in np.unique(values) if int(value) not in mask.values}}


def _slice_columns(table: SliceTable | None, file: OpenFile, pictures: list[Picture]) -> list[dict[str, str]]:
    if table is None:
        return [{} for _ in pictures]
    listed = read_table(file.folder / table.path)
    require([table.position, *table.columns], list(listed[0]), "slice table")
    rows = [row for row in listed if row[table.position]]
    try:
        places = np.array([float(row[table.position]) for row in rows])
    except ValueError:
        raise ReadError(f"slice table: column {table.position!r} must hold millimetres, and holds other text") from None
    if not len(places):
        raise ReadError(f"slice table: column {table.position!r} is empty in every row")
    found = []
    for picture in pictures:
        away = np.abs(places - picture.provenance["position_mm"])
        best = int(away.argmin())
        if away[best] > table.tolerance_mm:
            raise ReadError(
                f"the slice table has no row within {table.tolerance_mm:g} mm of a slice (nearest: {away[best]:.1f} mm)"
            )
        found.append({column: rows[best][column] for column in table.columns})
    return found


def _boxes(take: Boxes, file: OpenFile) -> Iterator[Piece]:
    from medisyn.corpus.annotations import crops, json_boxes, point_boxes, voc_boxes

    if take.format == "json":
        boxes = json_boxes(fill(take.file, file.row))
    else:
        try:
            content = file.beside(take.file).read_bytes()
        except OSError:
            raise ReadError("the annotation file of the picture is missing") from None
        text = content.decode("utf-8", errors="replace")
        boxes = voc_boxes(content) if take.format == "voc" else point_boxes(text, take.side)
    picture = file.picture()
    height, width = picture.array_CHW.shape[1:]
    taken: dict[str, int] = {}
    order = sorted(range(len(boxes)), key=lambda number: position(f"{file.key}/{number}"))
    for number in order:
        box = boxes[number]
        word = take.classes.get(box.label)
        length = take.side if take.format == "points" else round(max(box.width, box.height) * (1 + 2 * take.context))
        left, top = (box.left + box.right - length) // 2, (box.top + box.bottom - length) // 2
        inside = left >= 0 and top >= 0 and left + length <= width and top + length <= height
        full = box.label in take.per_file and taken.get(box.label, 0) >= take.per_file[box.label]
        if word is None or full or (take.inside and not inside):
            continue
        for crop in crops(picture, [box], side=length, min_size=take.min_side):
            taken[box.label] = taken.get(box.label, 0) + 1
            yield Piece(f"b{number:04d}", crop, {"class": word})


def _tiles(take: Tiles, file: OpenFile) -> Iterator[Piece]:
    picture = file.picture()
    height, width = picture.array_CHW.shape[1:]
    mpp, blocks = _number(file.row[take.mpp], take.mpp), file.source.split.regions
    for level in take.levels:
        side = round(file.source.size * level.mpp / mpp)
        if side < 0.9 * file.source.size:
            continue  # the slide was scanned more coarsely: it would have to be enlarged
        for block in range(blocks * blocks):
            top, bottom = (height * (block // blocks + step) // blocks for step in (0, 1))
            left, right = (width * (block % blocks + step) // blocks for step in (0, 1))
            for y in _starts(top, bottom, side, take.overlap):
                for x in _starts(left, right, side, take.overlap):
                    tile_CHW = picture.array_CHW[:, y : y + side, x : x + side]
                    if _tissue(tile_CHW) >= take.min_tissue:
                        tile = Picture(tile_CHW, picture.value_range, (mpp / 1000, mpp / 1000))
                        yield Piece(f"{level.name}-{x}-{y}", tile, {"magnification": level.name}, region=block)


def _starts(first: int, last: int, side: int, overlap: float) -> list[int]:
    """Where tiles of `side` begin between two edges; neighbours share at most `overlap` of a side."""
    stride = max(1, int(np.ceil(side * (1 - overlap))))
    return list(range(first, last - side + 1, stride))


def _tissue(tile_CHW: np.ndarray) -> float:
    """Share of coloured pixels; a grey picture counts dark pixels instead."""
    if tile_CHW.shape[0] == 1:
        return float((tile_CHW < 255 - 2 * COLOURED).mean())
    return float(((tile_CHW.max(axis=0) - tile_CHW.min(axis=0)) >= COLOURED).mean())


def _arrays(take: Arrays, file: OpenFile) -> Iterator[Piece]:
    with _load_npz(file.path) as arrays:
        for name, labels_name in take.pairs.items():
            pictures_N, labels_N = _member(arrays, name), _member(arrays, labels_name).reshape(-1)
            if pictures_N.dtype != np.uint8:
                raise ReadError(f"array {name!r} is {pictures_N.dtype}, expected uint8")
            if len(pictures_N) != len(labels_N):
                raise ReadError(
                    f"array {name!r} has {len(pictures_N)} pictures, {labels_name!r} {len(labels_N)} labels"
                )
            if pictures_N.ndim != 3 and (pictures_N.ndim != 4 or pictures_N.shape[-1] not in (1, 3)):
                raise ReadError(f"array {name!r} is {pictures_N.shape}, expected (N, H, W) or (N, H, W, 3)")
            for number, (pixels, label) in enumerate(zip(pictures_N, labels_N, strict=True)):
                if int(label) not in take.classes:
                    raise ReadError(
                        f"array {labels_name!r}: label {int(label)} has no word; named: {sorted(take.classes)}"
                    )
                array_CHW = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
                words = {"label": take.classes[int(label)]}
                yield Piece(f"{name}-{number:06d}", Picture(array_CHW), words, given=take.splits.get(name))


def _load_npz(path: Path) -> Any:
    try:
        arrays = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise ReadError("the file is missing") from None
    except NPZ_ERRORS as error:
        raise ReadError(f"not an .npz file of plain arrays ({type(error).__name__})") from None
    if isinstance(arrays, np.ndarray):
        raise ReadError("not an .npz file but a single .npy array; save pictures and labels with numpy.savez")
    return arrays


def _member(arrays: Any, name: str) -> np.ndarray:
    if name not in arrays:
        raise ReadError(f"the .npz has no array {name!r}; it holds {', '.join(arrays)}")
    try:
        array: np.ndarray = arrays[name]
    except NPZ_ERRORS as error:
        raise ReadError(f"array {name!r} of the .npz is damaged or no plain array ({type(error).__name__})") from None
    return array


def _number(text: str, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise ReadError(f"column {column!r}: expected micrometres per pixel above 0")
    return value
