"""The first half of a curation: a few files of one source into PNGs or clips and records, as one idempotent task.

A part is `<name>.bin` (PNGs, or clips in FFV1, one after the other) and `<name>.json` (their records, the quarantine,
counts). The JSON is written last and is the mark that the part is done. Splits come later, when all patients and
duplicates are known.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from medisyn import runs
from medisyn.corpus import captions, duplicates, headers, preprocess
from medisyn.corpus.clips import ClipPreprocess, clip_preset
from medisyn.corpus.footage import Footage, write_clip
from medisyn.corpus.opened import OpenFile, Piece, Unusable
from medisyn.corpus.pieces import pieces
from medisyn.corpus.source import Source
from medisyn.corpus.splits import UNIT_PREFIXES, pseudonym
from medisyn.corpus.table import TableRow, matches, words_of
from medisyn.corpus.takes import Boxes, Clips, Modalities, SeriesSlices, Take
from medisyn.errors import InputError, MissingDependency, ReadError
from medisyn.types import Picture

# zlib level 1 with run-length strategy: on our data 2 to 5 times as fast as Pillow's default and no larger
# (a 512 x 512 blood smear: 34 ms and 318 kB against 169 ms and 320 kB); PNG stays lossless.
PNG_OPTIONS = {"compress_level": 1, "compress_type": 3}
RECORDS = 2  # raised when a part's records gain or change a field: parts of an older version are made again


Preset = preprocess.Preprocess | ClipPreprocess


@dataclass(frozen=True)
class FileJob:
    """One file of a source. `key` is pseudonymous; `group` is its patient, lesion or slide (pseudonymous).

    `group` is None where the header of the file says who the patient is.
    """

    key: str
    path: Path
    row: TableRow
    group: str | None
    given: str | None


@dataclass(frozen=True)
class PartTask:
    """A few files; `name` holds the digest of everything the result depends on."""

    name: str
    source: Source
    folder: Path
    jobs: tuple[FileJob, ...]
    build: Path
    key: bytes


@dataclass(frozen=True)
class Prepared:
    """A take with its templates parsed and its preprocessing chosen."""

    number: int
    take: Take
    texts: list[captions.Template]
    labels: list[captions.Template]
    renderings: list[tuple[str, Preset]]  # window name (or "") and preset
    reads_header: bool


def write_part(task: PartTask) -> int:
    """Do the task unless it was done; returns the number of files."""
    manifest = task.build / f"{task.name}.json"
    if manifest.exists():
        return len(task.jobs)
    prepared = [prepare(task.source, number) for number in range(len(task.source.samples))]
    records: list[dict[str, Any]] = []
    quarantined: list[dict[str, str]] = []
    with runs.atomic_file(task.build / f"{task.name}.bin") as stream:
        for job in task.jobs:
            start = stream.tell()
            try:
                made = list(_file_records(task, job, prepared, stream, quarantined))
            except (InputError, MissingDependency) as error:
                stream.seek(start)
                stream.truncate()
                quarantined.append({"key": job.key, "source": task.source.name, "reason": str(error)})
            else:
                records += made
    runs.write_json(manifest, {"files": len(task.jobs), "records": records, "quarantined": quarantined})
    return len(task.jobs)


def read_part(build: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((build / f"{name}.json").read_bytes())
    return content


def prepare(source: Source, number: int) -> Prepared:
    """Parse and look up what all files of a take share. Raises ConfigError for an unknown geometry or window."""
    take = source.samples[number]
    steps: dict[str, preprocess.Intensity] = {word: _window(window) for word, window in take.windows.items()}
    if not steps:
        done = getattr(take, "channels", None) or isinstance(take, Modalities)  # these come as grey levels already
        steps = {"": None if done else preprocess.INTENSITIES[take.intensity]}
    renderings = [(word, _preset(source, take, step)) for word, step in steps.items()]
    labels = [captions.parse(text) for text in take.labels]
    return Prepared(number, take, take.templates(), labels, renderings, source.reads_header(take))


def _preset(source: Source, take: Take, step: preprocess.Intensity) -> Preset:
    geometry = take.geometry or source.geometry
    if isinstance(take, Clips):
        return clip_preset(geometry, height=source.size, width=round(source.size * take.aspect), intensity=step)
    return preprocess.Preprocess(geometry=geometry, size=source.size, intensity=step, rgb=False)


def _window(window: tuple[float, float] | str) -> preprocess.Intensity:
    if isinstance(window, str):
        return preprocess.preset("ct-window", window=window).intensity
    return preprocess.Window(*window)


def _file_records(
    task: PartTask, job: FileJob, prepared: list[Prepared], stream: BinaryIO, quarantined: list[dict[str, str]]
) -> Iterator[dict[str, Any]]:
    """The samples of one file; a single piece that cannot be used is quarantined on its own."""
    file = OpenFile(task.source, task.folder, job.path, job.row, job.key)
    if job.group is None:
        job = replace(job, group=group_of(task.source, task.key, file.patient()))
    for ready in prepared:
        cells = _cells(ready, file)
        if cells is None:
            continue
        for piece in pieces(ready.take, file):
            if isinstance(piece, Unusable):
                key = sample_key(task.source, job.key, ready.number, piece.suffix, "")
                quarantined.append({"key": key, "source": task.source.name, "reason": piece.reason})
                continue
            for window, preset in ready.renderings:
                key = sample_key(task.source, job.key, ready.number, piece.suffix, window)
                try:
                    yield _record(task, job, ready, piece, {**cells, **piece.columns}, window, preset, key, stream)
                except (InputError, MissingDependency) as error:
                    if not piece.suffix:
                        raise  # the file is the piece
                    quarantined.append({"key": key, "source": task.source.name, "reason": str(error)})


def _cells(ready: Prepared, file: OpenFile) -> dict[str, str] | None:
    """The row, and where the take needs them the columns of the DICOM header; None when `where` leaves the file out.

    The header is read only when the table's own columns let the file in. The images of a series bring their own.
    """
    own = {name: wanted for name, wanted in ready.take.where.items() if not headers.is_header(name)}
    if not matches(file.row, own):
        return None
    if isinstance(ready.take, SeriesSlices) or not ready.reads_header:
        return file.row
    cells = {**file.row, **file.header(ready.take)}
    return cells if matches(cells, ready.take.where) else None


def group_of(source: Source, key: bytes, name: str) -> str:
    """The pseudonym of a patient, lesion, slide or file."""
    return pseudonym(key, source.name, source.split.unit, name, prefix=UNIT_PREFIXES[source.split.unit])


def sample_key(source: Source, file_key: str, take: int, suffix: str, window: str) -> str:
    """A key without dots (WebDataset cuts a name at its first dot) that depends on the source and file alone."""
    number = f"t{take}" if len(source.samples) > 1 else ""
    slug = re.sub(r"[^a-z0-9]+", "-", window.lower()).strip("-")
    return "-".join(filter(None, (source.name.replace("_", "-"), file_key, number, suffix.replace(".", "_"), slug)))


def _record(
    task: PartTask,
    job: FileJob,
    ready: Prepared,
    piece: Piece,
    cells: dict[str, str],
    window: str,
    preset: Preset,
    key: str,
    stream: BinaryIO,
) -> dict[str, Any]:
    values = _values(task.source, ready.take, cells, piece, window)
    caption = captions.render(captions.draw(ready.texts, key), values)
    image_type = ready.take.image_type or task.source.image_type or headers.image_type(cells)
    content, facts = _encoded(preset, piece.picture)
    offset = stream.tell()
    stream.write(content)
    return {
        "key": key,
        "file": job.key,
        "offset": offset,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "caption": caption,
        "labels": [word for template in ready.labels if (word := captions.render_optional(template, values))],
        "group": job.group,
        "unit": _unit(task, job, piece, key),
        "region": piece.region if task.source.split.unit == "region" else None,
        "given": piece.given or job.given,
        "specialty": ready.take.specialty or task.source.specialty,
        "image_type": image_type,
        "cap": _cap(task.source, ready, values),
        **facts,
    }


def _encoded(preset: Preset, item: Picture | Footage) -> tuple[bytes, dict[str, Any]]:
    """The file of a sample, and what its record says of the pixels."""
    if isinstance(preset, ClipPreprocess):
        assert isinstance(item, Footage)
        clip = write_clip(preset, item)
        facts = {"frames": clip.frames, "fps": clip.frames_per_second, "valid": list(clip.valid)}
        facts |= _facts(clip.middle, clip.pixels, clip.spacing_mm, clip.original_size, clip.crop_top_left)
        return clip.content, facts
    assert isinstance(item, Picture)
    made = preprocess.apply(preset, item)
    image = _image(made)
    pixels = hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()
    place = (made.provenance["original_size"], made.provenance["crop_top_left"])
    return encode_png(image), _facts(image, pixels, made.spacing_mm, *place)


def _facts(
    image: Image.Image,
    pixels: str,
    spacing_mm: tuple[float, float] | None,
    original_size: tuple[int, int],
    crop_top_left: tuple[int, int],
) -> dict[str, Any]:
    return {
        "pixels": pixels,
        "phash": duplicates.phash(image),
        "thumb": duplicates.thumb(image),
        "spacing": None if spacing_mm is None else list(spacing_mm),
        "original_size": list(original_size),
        "crop_top_left": list(crop_top_left),
    }


def _values(source: Source, take: Take, cells: dict[str, str], piece: Piece, window: str) -> dict[str, str]:
    values = {name: text for name, text in cells.items() if headers.is_header(name)}
    values |= {name: words_of(name, words, cells) for name, words in source.words(take).items()}
    return {**values, **piece.words, "window": window}


def _image(picture: Picture) -> Image.Image:
    array_CHW = picture.array_CHW
    if array_CHW.shape[0] == 1:
        return Image.fromarray(np.ascontiguousarray(array_CHW[0]))
    return Image.fromarray(np.ascontiguousarray(array_CHW.transpose(1, 2, 0)))


def encode_png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG", **PNG_OPTIONS)
    return sink.getvalue()


def _unit(task: PartTask, job: FileJob, piece: Piece, key: str) -> str:
    """Pseudonym of what may not be divided; a region belongs to its group, so files of one group are cut alike."""
    kind = task.source.split.unit
    assert job.group is not None
    if kind == "none":
        return pseudonym(task.key, key, prefix=UNIT_PREFIXES[kind])
    if kind == "region":
        if piece.region is None:
            raise ReadError("split unit region needs slices or tiles; use unit file for whole pictures")
        return pseudonym(task.key, job.group, str(piece.region), prefix=UNIT_PREFIXES[kind])
    return job.group


def _cap(source: Source, ready: Prepared, values: dict[str, str]) -> list[Any] | None:
    if not isinstance(ready.take, Boxes):
        return None
    limits = {ready.take.classes[label]: limit for label, limit in ready.take.cap.items()}
    word = values["class"]
    return [f"{source.name}/{ready.number}/{word}", limits[word]] if word in limits else None
