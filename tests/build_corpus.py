"""A tiny corpus in the real format for tests: coloured shapes with captions, split by number."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from PIL import Image

import build
from medisyn.corpus.shards import Entry, Row, write_index, write_shard

SPLITS = ("train", "train", "train", "train", "train", "train", "validation", "validation", "validation", "test")


def tiny_corpus(folder: Path, *, count: int = 30, size: int = 64) -> Path:
    """`count` coloured shapes: of each ten six are "train", three "validation", one "test"."""
    samples = build.samples(count, size)
    pngs = [_png(sample.item.array_CHW.transpose(1, 2, 0)) for sample in samples]
    splits = [SPLITS[number % len(SPLITS)] for number in range(count)]
    rows = []
    for split in dict.fromkeys(SPLITS):
        chosen = [number for number in range(count) if splits[number] == split]
        shard = f"{split}-000000.tar"
        entries = [Entry(samples[n].key, pngs[n], samples[n].caption, {"split": split}) for n in chosen]
        offsets = write_shard(folder / shard, entries)
        for n, offset in zip(chosen, offsets, strict=True):
            rows.append(_row(samples[n].key, samples[n].caption, pngs[n], shard, offset, split))
    write_index(folder / "index.parquet", rows)
    return folder


def _png(array_HWC: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array_HWC).save(stream, "PNG")
    return stream.getvalue()


def _row(key: str, caption: str, png: bytes, shard: str, offset: int, split: str) -> Row:
    return Row(
        key=key,
        shard=shard,
        offset=offset,
        size=len(png),
        split=split,
        specialty="radiology",
        image_type="chest X-ray" if "red" in caption else "ultrasound",
        caption=caption,
        labels=(caption.split()[1],),
        patient=key,
        source="shapes",
        licence="CC0-1.0",
        sha256=hashlib.sha256(png).hexdigest(),
        phash="0" * 16,
        low=0,
        high=255,
        unit="uint8",
        spacing=None,
    )
