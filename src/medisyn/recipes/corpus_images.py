"""Pictures of a corpus or of a generated folder as the evaluation takes them: RGB, with class, stratum and patient.

Shapes here: N images, H, W pixels.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medisyn.errors import InputError, ReadError
from medisyn.runs import file_sha256, read_jsonl
from medisyn.types import Item, Picture


@dataclass(frozen=True)
class LabelledImage:
    """One image that can be read when it is needed. `name` is its class, "" where that is not known."""

    key: str
    sha256: str  # of the file, the address of its cached features
    caption: str
    name: str
    stratum: str  # specialty and image type, within which nearest neighbours are looked for
    patient: str
    read: Callable[[], np.ndarray]  # (H, W, 3) uint8


def rgb(item: Item) -> np.ndarray:
    """A picture as (H, W, 3) uint8; grey is repeated to three channels. InputError for anything but a uint8 picture."""
    if not isinstance(item, Picture) or item.value_range.unit != "uint8":
        kind = type(item).__name__.lower()
        raise InputError(f"image measures take uint8 pictures, got a {kind} in {item.value_range.unit}")
    array_CHW = np.repeat(item.array_CHW, 3, axis=0) if item.array_CHW.shape[0] == 1 else item.array_CHW
    return np.ascontiguousarray(array_CHW.transpose(1, 2, 0))


def stratum_of(metadata: Mapping[str, Any]) -> str:
    """Specialty and image type: the only training images that a nearest neighbour may come from (MediSyn v2, 4.3.4)."""
    return f"{metadata.get('specialty') or 'any specialty'} / {metadata.get('image_type') or 'any type'}"


def corpus_images(corpus: Any, split: str | None) -> list[LabelledImage]:
    """The images of one split, or of all; InputError when there are none, and for a corpus of clips."""
    from medisyn.evaluation.classify import class_name

    rows = corpus.rows(split)
    if not rows:
        raise InputError(f"the corpus has no images in the split {split!r}")
    if rows[0].is_clip:
        raise InputError("the corpus holds clips, and this compares images; give a corpus of pictures")

    def reader(row: Any) -> Callable[[], np.ndarray]:
        return lambda: rgb(corpus.read(row).item)

    return [
        LabelledImage(
            key=row.key,
            sha256=row.sha256,
            caption=row.caption,
            name=class_name(row.image_type, row.labels),
            stratum=stratum_of({"specialty": row.specialty, "image_type": row.image_type}),
            patient=row.patient or row.key,
            read=reader(row),
        )
        for row in rows
    ]


def of_known_class(images: Sequence[LabelledImage], minimum: int) -> tuple[list[LabelledImage], dict[str, int]]:
    """The images whose class has at least `minimum` of them, and the counts of the classes that were left out."""
    counts = Counter(image.name for image in images)
    rare = {name: count for name, count in sorted(counts.items()) if count < minimum or not name}
    return [image for image in images if image.name not in rare], rare


def at_size(images: Sequence[LabelledImage], size: int) -> np.ndarray:
    """All images as one uint8 array (N, size, size, 3)."""
    from medisyn.evaluation.features.encoder import to_batch

    stack = np.empty((len(images), size, size, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        stack[number] = to_batch([image.read()], size)[0].permute(1, 2, 0).numpy()
    return stack


def generated_images(folder: Path, known: Sequence[LabelledImage]) -> list[LabelledImage]:
    """The images of a folder with metadata.jsonl (imagefolder layout: file_name, text).

    Class and stratum come from the columns specialty, image_type and labels; without them from `known` images with
    exactly the same caption, when those agree on one; else they stay unknown ("").
    """
    records = read_jsonl(folder / "metadata.jsonl")
    if not records:
        raise InputError(
            f"{folder.name}/ holds no images to evaluate: no metadata.jsonl, or an empty one. "
            f"It is what `medisyn generate --out {folder.name}` writes; a corpus folder is taken too."
        )
    by_caption: dict[str, set[tuple[str, str]]] = {}
    for image in known:
        by_caption.setdefault(image.caption, set()).add((image.name, image.stratum))
    return [_generated(folder, record, number, by_caption) for number, record in enumerate(records, start=1)]


def _generated(
    folder: Path, record: Mapping[str, Any], number: int, by_caption: Mapping[str, set[tuple[str, str]]]
) -> LabelledImage:
    from medisyn.evaluation.classify import class_name

    path = folder / str(record.get("file_name", ""))
    if "file_name" not in record or not path.is_file() or folder.resolve() not in path.resolve().parents:
        raise InputError(
            f"{folder.name}/metadata.jsonl line {number}: its file_name is missing or names no file in there"
        )
    caption = str(record.get("text") or record.get("prompt") or "")
    if record.get("image_type"):
        name = class_name(str(record["image_type"]), labels_of(record.get("labels")))
        stratum = stratum_of(record)
    else:
        found = by_caption.get(caption, set())
        name = next(iter(found))[0] if len({name for name, _ in found}) == 1 else ""
        stratum = next(iter(found))[1] if len({stratum for _, stratum in found}) == 1 else ""
    key = str(record.get("key") or path.stem)
    return LabelledImage(key, file_sha256(path), caption, name, stratum, key, functools.partial(read_rgb, path))


def labels_of(cell: Any) -> list[str]:
    """Labels as a list, or as text with ";" or "|" between them."""
    if isinstance(cell, list | tuple):
        return [str(label) for label in cell]
    return [label.strip() for label in str(cell or "").replace("|", ";").split(";") if label.strip()]


def read_rgb(path: Path) -> np.ndarray:
    """An 8-bit image file as (H, W, 3) uint8."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "RGB", "RGBA", "P", "1"):
                raise ReadError(
                    f"{path.name}: mode {image.mode} is not 8-bit grey or colour; window it to 0..255 first"
                )
            return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ReadError(f"{path.name}: not a readable image ({type(error).__name__})") from None
