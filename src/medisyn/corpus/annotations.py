"""Boxes, points and masks into labels and crops.

Shapes here: C channels, H, W height and width, N slices.
A box is half-open in 0-based pixels: it holds columns left..right-1 and rows top..bottom-1.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from xml.parsers import expat

import numpy as np

from medisyn.errors import InputError, ReadError
from medisyn.types import Picture, Volume


@dataclass(frozen=True)
class Box:
    """A labelled rectangle: columns left..right-1 and rows top..bottom-1, 0-based. It may reach out of its picture."""

    label: str
    left: int
    top: int
    right: int
    bottom: int

    def __post_init__(self) -> None:
        if not (self.left < self.right and self.top < self.bottom):
            raise ReadError(
                f"a box of class {self.label!r} is empty or turned over: "
                f"columns {self.left} to {self.right}, rows {self.top} to {self.bottom}"
            )

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


def voc_boxes(content: bytes) -> list[Box]:
    """The boxes of a Pascal VOC XML file, whose corners are 1-based and inclusive; 0 is taken as the first pixel too.

    Raises ReadError for XML that is broken, has a DTD or entities (refused unread), or lacks a name or corner.
    """
    boxes: list[Box] = []
    for element in _safe_xml(content).iter("object"):
        label = (element.findtext("name") or "").strip()
        corners = [element.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
        if not label or None in corners:
            raise ReadError(f"object {len(boxes) + 1} of the VOC file lacks its name or one of xmin, ymin, xmax, ymax")
        left, top, right, bottom = (_integer(corner, "VOC corner") for corner in corners)
        boxes.append(Box(label, max(left - 1, 0), max(top - 1, 0), right, bottom))
    return boxes


def point_boxes(text: str, side: int, names: Mapping[str, str] | None = None) -> list[Box]:
    """Boxes of `side` pixels around the centres of a list with one `x y class` per line (0-based column and row).

    `names` gives the class codes their words; a code without a word is an error.
    """
    boxes = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 3:
            raise ReadError(f"line {number} of the point list has {len(fields)} fields, expected `x y class`")
        left, top = (_integer(value, "point") - side // 2 for value in fields[:2])
        boxes.append(Box(_word(fields[2], names), left, top, left + side, top + side))
    return boxes


def column_boxes(text: str) -> dict[int | None, list[Box]]:
    """Boxes per slice from one table cell, `slice:label,left,top,right,bottom|...`; an empty cell has none.

    A part without `slice:` belongs to the only picture of the file, and has the key None.
    """
    boxes: dict[int | None, list[Box]] = {}
    for part in filter(None, text.strip().split("|")):
        before, colon, rest = part.rpartition(":")
        fields = rest.split(",")
        if len(fields) != 5:
            raise ReadError("a box cell must read `label,left,top,right,bottom|...`, `slice:` before it for a series")
        number = _integer(before, "slice number") if colon else None
        corners = [_integer(value, "box corner") for value in fields[1:]]
        boxes.setdefault(number, []).append(Box(fields[0], *corners))
    return boxes


def json_boxes(text: str) -> list[Box]:
    """Boxes from a JSON list of objects with "label", "left", "top", "right", "bottom" (half-open, 0-based)."""
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise ReadError(f"the box list is not JSON ({error.msg} at character {error.pos})") from None
    if not isinstance(records, list):
        raise ReadError(f"the box list must be a JSON list, got {type(records).__name__}")
    return table_boxes(records)


def table_boxes(rows: Iterable[Mapping[str, Any]]) -> list[Box]:
    """Boxes from table rows with the columns label, left, top, right, bottom (half-open, 0-based)."""
    boxes: list[Box] = []
    for row in rows:
        missing = [name for name in ("label", *CORNERS) if not isinstance(row, Mapping) or row.get(name) in (None, "")]
        if missing:
            raise ReadError(f"box {len(boxes) + 1} lacks {', '.join(missing)}")
        boxes.append(Box(str(row["label"]), *(_integer(row[corner], corner) for corner in CORNERS)))
    return boxes


CORNERS = ("left", "top", "right", "bottom")


def read_mask(path: Path, member: str | None = None) -> np.ndarray | Volume:
    """A label mask: (H, W) integers of a picture file (grey values, or the indices of a palette), or a Volume.

    Raises ReadError for colour masks and for a mask that holds fractions.
    """
    from medisyn.corpus.readers import read_item, sources
    from medisyn.corpus.readers.formats import PICTURE_FORMATS
    from medisyn.corpus.readers.image import read_indices

    source = sources(Path(path), member)
    if not isinstance(source, list) and source.format() in PICTURE_FORMATS:
        return read_indices(source)
    item = read_item(path, member)
    if not isinstance(item, Volume):
        raise ReadError(f"a mask must be a picture file, NIfTI, NRRD or MetaImage, got a {type(item).__name__}")
    if item.array_CDHW.dtype.kind == "f" and (item.array_CDHW % 1 != 0).any():
        raise ReadError("the mask holds fractions; a label mask holds whole numbers")
    return item


def mask_labels(mask: np.ndarray, names: Mapping[int, str], min_pixels: int = 1) -> tuple[str, ...]:
    """The words of the values that cover at least `min_pixels` pixels of a mask of any shape, in the order of `names`.

    Value 0 is background unless `names` holds it; a value without a word is an error, so that none is lost.
    """
    values, counts = np.unique(mask, return_counts=True)
    unknown = [int(value) for value in values if value != 0 and int(value) not in names]
    if unknown:
        raise ReadError(f"the mask holds the values {unknown} that have no name; named are {sorted(names)}")
    present = {int(value) for value, count in zip(values, counts, strict=True) if count >= min_pixels}
    return tuple(word for value, word in names.items() if value in present)


def slice_labels(
    mask: Volume, names: Mapping[int, str], plane: str = "axial", min_pixels: int = 1
) -> list[tuple[str, ...]]:
    """The labels of each slice of a mask volume, in the order in which `readers.nifti.slices` cuts the image.

    `min_pixels` counts pixels of the slice after its resampling to square pixels (nearest neighbour).
    """
    from medisyn.corpus.readers.nifti import slices

    return [mask_labels(cut.array_CHW, names, min_pixels) for cut in slices(mask, plane, nearest=True)]


def mask_boxes(mask_HW: np.ndarray, names: Mapping[int, str]) -> list[Box]:
    """The bounding box of each named value that a mask holds, in the order of `names`."""
    boxes = []
    for value, word in names.items():
        rows, columns = np.nonzero(mask_HW == value)
        if len(rows):
            left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            boxes.append(Box(word, int(left), int(top), int(right), int(bottom)))
    return boxes


def crops(
    picture: Picture,
    boxes: Sequence[Box],
    *,
    side: int | None = None,
    context: float = 0.0,
    min_size: int = 1,
    fill: str = "reflect",
) -> list[Picture]:
    """A square crop around the centre of each box; its provenance holds "label" and "box" (left, top, right, bottom).

    The square is `side` pixels, or the longer side of the box enlarged by the share `context` on each side.
    Boxes are clipped to the picture first; those with a shorter side below `min_size` after clipping are left out.
    Where the square reaches out of the picture it is filled by mirroring ("reflect", the edge pixel not repeated) or
    with the lowest value of the range ("black"). Raises InputError for a box that lies wholly outside.
    """
    if fill not in ("reflect", "black"):
        raise InputError(f"crops: fill must be reflect or black, got {fill!r}")
    if context < 0 or (side is not None and side < 1):
        raise InputError(f"crops: context must be 0 or more and side at least 1, got {context:g} and {side}")
    made = []
    for box in boxes:
        clipped = _clip(box, picture)
        if min(clipped.width, clipped.height) >= min_size:
            length = side if side is not None else round(max(clipped.width, clipped.height) * (1 + 2 * context))
            made.append(_square(picture, clipped, length, fill))
    return made


def _clip(box: Box, picture: Picture) -> Box:
    height, width = picture.array_CHW.shape[1:]
    left, top, right, bottom = max(box.left, 0), max(box.top, 0), min(box.right, width), min(box.bottom, height)
    if left >= right or top >= bottom:
        raise InputError(
            f"a box of class {box.label!r} (columns {box.left} to {box.right}, rows {box.top} to {box.bottom}) lies "
            f"outside the picture of {width} x {height} pixels; is it the right picture?"
        )
    return Box(box.label, left, top, right, bottom)


def _square(picture: Picture, box: Box, length: int, fill: str) -> Picture:
    left = (box.left + box.right - length) // 2
    top = (box.top + box.bottom - length) // 2
    rows, columns = np.arange(top, top + length), np.arange(left, left + length)
    height, width = picture.array_CHW.shape[1:]
    crop_CHW = picture.array_CHW[:, _mirror(rows, height)][:, :, _mirror(columns, width)]
    if fill == "black":
        outside_HW = ((rows < 0) | (rows >= height))[:, None] | ((columns < 0) | (columns >= width))[None, :]
        crop_CHW[:, outside_HW] = picture.value_range.low
    provenance = {**picture.provenance, "label": box.label, "box": (box.left, box.top, box.right, box.bottom)}
    return Picture(crop_CHW, picture.value_range, picture.spacing_mm, provenance)


def _mirror(index: np.ndarray, length: int) -> np.ndarray:
    """Indices outside 0..length-1 mirrored at the edges, as often as needed; the edge itself is not repeated."""
    period = max(2 * length - 2, 1)
    folded = index % period
    return np.where(folded < length, folded, period - folded)


def _word(code: str, names: Mapping[str, str] | None) -> str:
    if names is None:
        return code
    if code not in names:
        raise ReadError(f"class {code!r} has no name; named are {', '.join(names)}")
    return names[code]


def _integer(text: Any, what: str) -> int:
    """Whole numbers, also those that tools write as 12.0 or 12.4 (rounded)."""
    try:
        return round(float(text))
    except (TypeError, ValueError, OverflowError):
        raise ReadError(f"{what}: expected a number, got {str(text)[:20]!r}") from None


def _safe_xml(content: bytes) -> ElementTree.Element:
    """An XML tree from a document without DTD; entities beyond the five of XML itself cannot exist without one."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse_dtd
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ReadError(f"the XML is broken at line {error.lineno} ({expat.errors.messages[error.code]})") from None
    return builder.close()


def _refuse_dtd(*_: object) -> NoReturn:
    raise ReadError("the XML declares a document type; DTDs and entities are refused")
