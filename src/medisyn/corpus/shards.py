"""Tar shards in the WebDataset layout, and the index that makes reading one sample a single seek.

A sample is `key.png` or, of a clip, `key.mkv` (FFV1), with `key.txt` (caption) and `key.json` (metadata). A shard holds
nothing that differs between two runs (times, users), so the same samples give the same bytes. `index.parquet` holds one
row per sample with the place of its picture or clip inside its shard.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from medisyn import runs
from medisyn.errors import CorpusError

BLOCK = 512
INDEX = "index.parquet"
FORMAT = 1  # raised when an older reader could misread the corpus
CLIP_FORMAT = 2  # of a corpus with clips, which older readers would open as PNG


@dataclass(frozen=True, slots=True)
class Row:
    """One sample of the index. `offset` and `size` are the bytes of its PNG or clip inside `shard`."""

    key: str
    shard: str
    offset: int
    size: int
    split: str
    specialty: str
    image_type: str
    caption: str
    labels: tuple[str, ...]
    patient: str  # pseudonym of the patient, or of the file or region where patients are not known
    source: str
    licence: str
    sha256: str  # of the PNG or Matroska file
    phash: str  # 64 bits in hex; of a clip of its middle frame
    low: float
    high: float
    unit: str
    spacing: tuple[float, float] | None  # (row, column) in mm
    original_height: int | None = None  # before resizing; a crop, tile or slice counts as the picture
    original_width: int | None = None
    crop_top: int | None = None  # where the sample begins in the resized picture, in its pixels
    crop_left: int | None = None
    frames: int | None = None  # of a clip; a picture has none of these three
    fps: float | None = None  # frames per second; None where it is not known, as of a volume's slices
    valid: tuple[int, int, int, int] | None = None  # top, left, bottom, right of the real pixels, the rest is padding

    @property
    def is_clip(self) -> bool:
        return self.frames is not None

    @property
    def kind(self) -> str:
        """How the name of its file in the shard ends."""
        return "mkv" if self.is_clip else "png"

    @property
    def original_size(self) -> tuple[int, int] | None:
        """(height, width) before resizing; None in a corpus that was made before they were recorded."""
        height, width = self.original_height, self.original_width
        return None if height is None or width is None else (height, width)

    @property
    def crop_top_left(self) -> tuple[int, int] | None:
        return None if self.crop_top is None or self.crop_left is None else (self.crop_top, self.crop_left)


COLUMNS = tuple(field.name for field in fields(Row))
LATER_COLUMNS = (
    "original_height",
    "original_width",
    "crop_top",
    "crop_left",
    "frames",
    "fps",
    "valid",
)  # absent from older corpora


def values_of(row: Row) -> dict[str, Any]:
    """A row as a dictionary (`dataclasses.asdict` copies deeply and is ten times as slow)."""
    return {name: getattr(row, name) for name in COLUMNS}


def sidecar(row: Row) -> dict[str, Any]:
    """What `key.json` holds. Every value is a string or a number, never null or a list that may be empty.

    `datasets` fixes the types of all samples by the first five, and fails at the first that differs.
    """
    hidden = ("shard", "offset", "size", "caption")
    values = {name: value for name, value in values_of(row).items() if name not in hidden}
    values["labels"] = "|".join(row.labels)
    values["spacing"] = "" if row.spacing is None else f"{row.spacing[0]:g} {row.spacing[1]:g}"
    if row.is_clip:
        values["fps"] = 0.0 if row.fps is None else row.fps
        values["valid"] = " ".join(map(str, row.valid or ()))
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Entry:
    """What goes into a shard for one sample."""

    key: str
    content: bytes
    caption: str
    metadata: Mapping[str, Any]
    kind: str = "png"


class ShardWriter:
    """Appends samples to a tar stream and says where each picture or clip lies."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position = 0

    def add(self, entry: Entry) -> int:
        """Write the three members; returns the offset of the first byte of the picture or clip."""
        offset = self._member(f"{entry.key}.{entry.kind}", entry.content)
        self._member(f"{entry.key}.txt", entry.caption.encode())
        text = json.dumps(dict(entry.metadata), ensure_ascii=False, sort_keys=True)
        self._member(f"{entry.key}.json", text.encode())
        return offset

    def close(self) -> None:
        """Write the two empty blocks that end a tar file."""
        self._stream.write(bytes(2 * BLOCK))

    def _member(self, name: str, content: bytes) -> int:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o644
        header = info.tobuf(tarfile.USTAR_FORMAT)
        padding = bytes(-len(content) % BLOCK)
        self._stream.write(header + content + padding)
        offset = self._position + len(header)
        self._position = offset + len(content) + len(padding)
        return offset


def write_shard(path: Path, entries: Iterable[Entry]) -> list[int]:
    """Write one shard atomically; returns the offsets of its pictures or clips in order."""
    with runs.atomic_file(path) as stream:
        writer = ShardWriter(stream)
        offsets = [writer.add(entry) for entry in entries]
        writer.close()
    return offsets


def read_at(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`; CorpusError when the shard is missing or too short."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            content = stream.read(size)
    except FileNotFoundError:
        raise CorpusError(f"shard {path.name} is missing. Repeat the curate command, or copy the shard again") from None
    except OSError as error:
        raise CorpusError(f"shard {path.name} cannot be read ({error.strerror})") from None
    if len(content) != size:
        raise CorpusError(
            f"shard {path.name} ends at byte {offset + len(content)}, the index expects {offset + size}; it was cut "
            f"short. Copy it again, or repeat the curate command"
        )
    return content


def pack(sizes: Sequence[int], *, shard_bytes: int, shard_samples: int) -> list[range]:
    """Consecutive samples per shard: a shard is closed before it would pass either limit."""
    ranges, start, total = [], 0, 0
    for number, size in enumerate(sizes):
        if number > start and (total + size > shard_bytes or number - start >= shard_samples):
            ranges.append(range(start, number))
            start, total = number, 0
        total += size
    if start < len(sizes):
        ranges.append(range(start, len(sizes)))
    return ranges


def _schema() -> Any:
    import pyarrow as pa

    text = pa.string()
    kinds = {
        "offset": pa.int64(),
        "size": pa.int64(),
        "labels": pa.list_(text),
        "low": pa.float64(),
        "high": pa.float64(),
        "spacing": pa.list_(pa.float64()),
        **dict.fromkeys(LATER_COLUMNS, pa.int64()),
        "fps": pa.float64(),
        "valid": pa.list_(pa.int64()),
    }
    return pa.schema([(name, kinds.get(name, text)) for name in COLUMNS])


def write_index(path: Path, rows: Sequence[Row]) -> None:
    """Write `index.parquet` atomically, rows in shard order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    version = CLIP_FORMAT if any(row.is_clip for row in rows) else FORMAT
    schema = _schema().with_metadata({"medisyn_format": str(version)})
    table = pa.Table.from_pydict(columns, schema=schema)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    runs.write_bytes(path, sink.getvalue())


def read_index(folder: Path) -> list[Row]:
    """The rows of a corpus folder. CorpusError when there is no index, or not one of ours."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / INDEX
    if not path.exists():
        hint = "its curation has not finished: repeat the command" if (folder / ".build").exists() else "not a corpus"
        raise CorpusError(f"{folder.name}/ has no {INDEX} ({hint})")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise CorpusError(f"{folder.name}/{INDEX} is not readable Parquet ({type(error).__name__})") from None
    missing = [name for name in COLUMNS if name not in (*table.column_names, *LATER_COLUMNS)]
    found = (table.schema.metadata or {}).get(b"medisyn_format", b"none").decode()
    if missing or found not in (str(FORMAT), str(CLIP_FORMAT)):
        lost = f"; missing columns: {', '.join(missing)}" if missing else ""
        read = f"{FORMAT} and {CLIP_FORMAT}"
        raise CorpusError(f"{folder.name}/{INDEX} has corpus format {found}, this version reads {read}{lost}")
    return [
        _row(values) for values in table.select([name for name in COLUMNS if name in table.column_names]).to_pylist()
    ]


def _row(values: dict[str, Any]) -> Row:
    spacing = values["spacing"]
    values["spacing"] = None if spacing is None else (spacing[0], spacing[1])
    values["labels"] = tuple(values["labels"])
    if values.get("valid") is not None:
        values["valid"] = tuple(values["valid"])
    return Row(**values)


def fingerprint(rows: Sequence[Row]) -> str:
    """16 hex digits over keys, pictures, captions and splits, whatever the order and sharding."""
    lines = sorted(f"{row.key}\t{row.sha256}\t{row.split}\t{row.caption}" for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
