"""One file into what becomes samples: whole, slices, crops around boxes, tiles, stacked arrays, clips, one slice of
several scans.

Shapes here: C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medisyn.corpus.annotations import Box
from medisyn.corpus.array_pieces import array_pieces
from medisyn.corpus.captions import join_words
from medisyn.corpus.clip_pieces import clip_piece
from medisyn.corpus.modality_pieces import modality_piece
from medisyn.corpus.opened import OpenFile, Piece, Unusable, mask_names, slab
from medisyn.corpus.slice_pieces import in_colour, series_pieces, volume_pieces
from medisyn.corpus.splits import position
from medisyn.corpus.table import fill
from medisyn.corpus.takes import Boxes, Clips, Mask, Modalities, SeriesSlices, Slices, Take, Tiles, Whole
from medisyn.errors import ReadError
from medisyn.types import Picture, Volume

COLOURED = 20  # channels of tissue differ by at least this many grey levels; glass is grey


def pieces(take: Take, file: OpenFile) -> Iterator[Piece | Unusable]:
    """What `take` makes of a file. Raises ReadError, SeriesError or RangeError for a file that cannot be used."""
    if isinstance(take, Whole):
        yield _whole(take, file)
    elif isinstance(take, Slices):
        yield from volume_pieces(take, file)
    elif isinstance(take, Modalities):
        yield modality_piece(take, file)
    elif isinstance(take, SeriesSlices):
        yield from series_pieces(take, file)
    elif isinstance(take, Boxes):
        yield from _boxes(take, file)
    elif isinstance(take, Tiles):
        yield from _tiles(take, file)
    elif isinstance(take, Clips):
        yield clip_piece(take, file)
    else:
        yield from array_pieces(take, file)


def _whole(take: Whole, file: OpenFile) -> Piece:
    words = {"structures": join_words(_picture_masks(take.masks, file))}
    if take.channels is None:
        return Piece("", file.picture(), words)
    others = [file.open_beside(template).picture() for template in take.channels]
    return Piece("", in_colour(take, [file.picture(), *others]), words)


def _picture_masks(masks: tuple[Mask, ...], file: OpenFile) -> list[str]:
    from medisyn.corpus.annotations import mask_labels

    words: list[str] = []
    for mask in masks:
        values = _picture_mask(mask.file, file)
        words += filter(None, mask_labels(values, mask_names(mask, values), mask.min_pixels))
    return words


def _picture_mask(template: str, file: OpenFile) -> np.ndarray:
    """A mask (H, W) with the shape of its picture."""
    from medisyn.corpus.annotations import read_mask

    values = read_mask(file.beside(template))
    if isinstance(values, Volume):
        raise ReadError("the mask of a picture is a volume")
    if values.shape != file.picture().array_CHW.shape[1:]:
        raise ReadError(f"the mask is {values.shape}, its picture {file.picture().array_CHW.shape[1:]} pixels")
    return values


def _boxes(take: Boxes, file: OpenFile) -> Iterator[Piece]:
    taken: dict[str, int] = {}
    for prefix, region, picture, boxes in _boxed_pictures(take, file):
        for number in sorted(range(len(boxes)), key=lambda number: position(f"{file.key}/{prefix}{number}")):
            box = boxes[number]
            full = box.label in take.per_file and taken.get(box.label, 0) >= take.per_file[box.label]
            if box.label in take.classes and not full:
                for crop in _crops(take, picture, box):
                    taken[box.label] = taken.get(box.label, 0) + 1
                    yield Piece(f"{prefix}b{number:04d}", crop, {"class": take.classes[box.label]}, region=region)


def _boxed_pictures(take: Boxes, file: OpenFile) -> Iterator[tuple[str, int | None, Picture, list[Box]]]:
    """Pictures with their boxes; a slice has a prefix for its key and the slab it lies in."""
    from medisyn.corpus.annotations import column_boxes

    if take.format != "cell":
        yield "", None, file.picture(), _file_boxes(take, file)
        return
    by_slice = column_boxes(fill(take.file, file.row))
    slices = None if set(by_slice) <= {None} else file.stored_slices(take.series)
    for number, boxes in by_slice.items():
        if slices is None:
            yield "", None, file.picture(), boxes
        elif number is None or not 0 <= number < len(slices):
            named = "none" if number is None else number
            raise ReadError(f"a box cell names slice {named}; the file has the slices 0 to {len(slices) - 1}")
        else:
            yield f"s{number:04d}-", slab(file, number, len(slices)), slices[number], boxes


def _file_boxes(take: Boxes, file: OpenFile) -> list[Box]:
    from medisyn.corpus.annotations import json_boxes, mask_boxes, point_boxes, voc_boxes

    if take.format == "json":
        return json_boxes(fill(take.file, file.row))
    if take.format == "mask":
        return mask_boxes(_picture_mask(take.file, file), {int(label): label for label in take.classes})
    try:
        content = file.beside(take.file).read_bytes()
    except OSError:
        raise ReadError("the annotation file of the picture is missing") from None
    if take.format == "voc":
        return voc_boxes(content)
    return point_boxes(content.decode("utf-8", errors="replace"), take.side)


def _crops(take: Boxes, picture: Picture, box: Box) -> list[Picture]:
    """The crop around a box, or nothing when it is too small or reaches out of the picture."""
    from medisyn.corpus.annotations import crops

    height, width = picture.array_CHW.shape[1:]
    length = take.side if take.format == "points" else round(max(box.width, box.height) * (1 + 2 * take.context))
    left, top = (box.left + box.right - length) // 2, (box.top + box.bottom - length) // 2
    is_inside = left >= 0 and top >= 0 and left + length <= width and top + length <= height
    if take.inside and not is_inside:
        return []
    return crops(picture, [box], side=length, min_size=take.min_side)


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


def _number(text: str, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise ReadError(f"column {column!r}: expected micrometres per pixel above 0")
    return value
