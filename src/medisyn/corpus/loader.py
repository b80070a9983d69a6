"""A corpus as a map: `rows` from the index, `read` by one seek into a shard."""

from __future__ import annotations

import functools
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import ffv1
from medisyn.corpus.clips import VALID, first_frame, valid_mask, windowed
from medisyn.corpus.shards import Row, fingerprint, read_at, read_index
from medisyn.corpus.splits import SPLITS
from medisyn.errors import CorpusError, InputError, closest
from medisyn.types import Clip, Picture, Sample, ValueRange


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
        """The file bytes of one sample (of a clip the Matroska file), checked against their sha256."""
        content = read_at(self.path / row.shard, row.offset, row.size)
        if hashlib.sha256(content).hexdigest() != row.sha256:
            what = "clip" if row.is_clip else "picture"
            raise CorpusError(
                f"{row.key}: its {what} in {row.shard} was changed (sha256 differs). Run: medisyn corpus verify"
            )
        return content

    def read(self, row: Row) -> Sample:
        """One sample: a uint8 Picture (C, H, W), or a whole uint8 Clip (C, T, H, W), its caption and metadata.

        Where a clip is padded, the mask "valid" (T, H, W) uint8 is 1 at its real pixels. The metadata holds
        "original_size" (height, width) and "crop_top_left" (row, column) where the corpus records them: what SDXL is
        told about a picture.
        """
        if row.is_clip:
            clip = self._clip(row, ffv1.decode(self.read_png(row), 0, row.frames))
            mask_THW = valid_mask(row.valid, clip.array_CTHW.shape[1:], clip.array_CTHW.shape[1])
            return Sample(row.key, clip, row.caption, _metadata(row), {} if mask_THW is None else {VALID: mask_THW})
        return self._picture(row)

    def read_window(self, row: Row, frames: int, generator: np.random.Generator) -> Sample:
        """`frames` consecutive frames from a random place of a clip, padded black when it is shorter.

        Equals `clips.window(corpus.read(row), frames, generator)`, but decodes these frames alone. Raises InputError
        for a picture.
        """
        if row.frames is None:
            raise InputError(f"{row.key}: a window is drawn from a clip, and this sample is a picture")
        start = first_frame(row.frames, frames, generator)
        array_CTHW = ffv1.decode(self.read_png(row), start, min(start + frames, row.frames))
        whole = Sample(row.key, self._clip(row, array_CTHW), row.caption, _metadata(row))
        return windowed(whole, row.valid, frames, start)

    def _clip(self, row: Row, array_CTHW: np.ndarray) -> Clip:
        return Clip(array_CTHW, ValueRange(row.low, row.high, row.unit), row.fps, {"key": row.key})

    def _picture(self, row: Row) -> Sample:
        from PIL import Image

        with Image.open(io.BytesIO(self.read_png(row))) as image:
            pixels = np.asarray(image)
        array_CHW = pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
        picture = Picture(array_CHW, ValueRange(row.low, row.high, row.unit), row.spacing, {"key": row.key})
        return Sample(row.key, picture, row.caption, _metadata(row))

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over keys, pictures, captions and splits, whatever the order and sharding."""
        return fingerprint(self._rows)


def _metadata(row: Row) -> dict[str, Any]:
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
    return metadata
