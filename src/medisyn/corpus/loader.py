"""A corpus as a map: `rows` from the index, `read` by one seek into a shard."""

from __future__ import annotations

import functools
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from medisyn.corpus.shards import Row, fingerprint, read_at, read_index
from medisyn.corpus.splits import SPLITS
from medisyn.errors import CorpusError, closest
from medisyn.types import Picture, Sample, ValueRange


class Corpus:
    """A curated folder. It holds no open file, so it can be sent to worker processes."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._rows = read_index(self.path)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, split: str | None = None) -> list[Row]:
        """All rows in shard order, or those of "train", "validation" or "test"."""
        if split is None:
            return list(self._rows)
        if split not in SPLITS:
            raise CorpusError(f"split {split!r} is unknown, allowed: {', '.join(SPLITS)}.{closest(split, SPLITS)}")
        return [row for row in self._rows if row.split == split]

    def read_png(self, row: Row) -> bytes:
        """The file bytes of one sample, checked against their sha256."""
        content = read_at(self.path / row.shard, row.offset, row.size)
        if hashlib.sha256(content).hexdigest() != row.sha256:
            raise CorpusError(
                f"{row.key}: its picture in {row.shard} was changed (sha256 differs). Run: medisyn corpus verify"
            )
        return content

    def read(self, row: Row) -> Sample:
        """One sample: a uint8 Picture (C, H, W), its caption and metadata.

        The metadata holds "original_size" (height, width) and "crop_top_left" (row, column) where the corpus records
        them: what SDXL is told about a picture.
        """
        from PIL import Image

        with Image.open(io.BytesIO(self.read_png(row))) as image:
            pixels = np.asarray(image)
        array_CHW = pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
        picture = Picture(array_CHW, ValueRange(row.low, row.high, row.unit), row.spacing, {"key": row.key})
        metadata: dict[str, Any] = {
            "specialty": row.specialty,
            "image_type": row.image_type,
            "labels": row.labels,
            "patient": row.patient,
            "source": row.source,
            "split": row.split,
        }
        for name in ("original_size", "crop_top_left"):
            if (place := getattr(row, name)) is not None:
                metadata[name] = place
        return Sample(row.key, picture, row.caption, metadata)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over keys, pictures, captions and splits, whatever the order and sharding."""
        return fingerprint(self._rows)
