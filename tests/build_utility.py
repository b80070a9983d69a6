"""A tiny corpus, generated images and volumes for the utility experiments: coloured noise, and noise with a block."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json

import numpy as np
from PIL import Image

from medisyn.corpus.shards import Entry, Row, write_index, write_shard

TINY = [
    f"--set={text}"
    for text in ("network=10", "width=4", "size=32", "steps=6", "evaluations=2", "resamples=50", "precision=float32")
]
TINY_OVERRIDES = [text.removeprefix("--set=") for text in TINY]
COLOURS = {"red": (170, 90, 90), "blue": (90, 90, 170), "green": (90, 170, 90)}


def pixels(colours, seed, size=32):
    noise = np.random.default_rng(seed).integers(-60, 60, (size, size, 3))
    return np.clip(np.mean([COLOURS[colour] for colour in colours], axis=0) + noise, 0, 255).astype(np.uint8)


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def build_corpus(folder, counts, kinds=(("red",), ("blue",)), change=lambda row: row):
    """`counts`: split -> images of each kind, two of each patient; `change` may alter a row."""
    entries, rows = [], []
    for split, count in counts.items():
        for kind in kinds:
            for number in range(count):
                content = png(pixels(kind, len(rows)))
                name = "-".join(kind)
                row = Row(
                    key=f"{split}-{name}-{number:02d}", shard="all-000000.tar", offset=0, size=len(content),
                    split=split, specialty="pathology", image_type="slide", caption=f"A {name} slide", labels=kind,
                    patient=f"p-{split}-{name}-{number // 2}", source="test", licence="CC0",
                    sha256=hashlib.sha256(content).hexdigest(), phash=f"{len(rows) + 1:016x}", low=0, high=255,
                    unit="uint8", spacing=None,
                )  # fmt: skip
                rows.append(change(row))
                entries.append(Entry(row.key, content, row.caption, {}))
    offsets = write_shard(folder / "all-000000.tar", entries)
    write_index(
        folder / "index.parquet",
        [dataclasses.replace(row, offset=offset) for row, offset in zip(rows, offsets, strict=True)],
    )
    return folder


def build_generated(folder, count, kinds=(("red",), ("blue",)), size=32):
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        Image.fromarray(pixels(kind, 5000 + number, size)).save(folder / f"{number:03d}.png")
        lines.append(json.dumps({"file_name": f"{number:03d}.png", "text": f"A {'-'.join(kind)} slide"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def build_volumes(folder, count, *, patients="v", nifti=False, seed=0, splits=()):
    """Small HU volumes; half have a bright block, the label "effusion"."""
    import nibabel

    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        voxels = rng.normal(-600, 100, (16, 16, 16)).astype(np.float32)
        labels = ["effusion"] if number % 2 else []
        if labels:
            voxels[4:12, 4:12, 4:12] += 500
        name = f"{number:02d}.nii.gz" if nifti else f"{number:02d}.npy"
        if nifti:
            nibabel.save(nibabel.Nifti1Image(voxels.transpose(2, 1, 0), np.eye(4)), folder / name)
        else:
            np.save(folder / name, voxels)
        row = {
            "file_name": name,
            "labels": labels,
            "patient": f"{patients}{number // 2}",
            "key": f"{patients}-{number}",
        }
        lines.append(json.dumps(row | ({"split": splits[number % len(splits)]} if splits else {})))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
