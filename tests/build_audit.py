"""Corpora, generated folders and a tiny encoder for the audit's tests."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from build_source import picture
from medisyn.corpus.duplicates import phash
from medisyn.corpus.shards import Entry, Row, write_index, write_shard


def smooth(number: int, size: int = 64) -> np.ndarray:
    """(size, size, 3) uint8: no two numbers are alike."""
    return np.repeat(picture(number, size)[:, :, None], 3, axis=2)


def png(array_HWC: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array_HWC).save(stream, "PNG")
    return stream.getvalue()


def jpeg(array_HWC: np.ndarray, quality: int = 75) -> np.ndarray:
    """The image after one compression."""
    stream = io.BytesIO()
    Image.fromarray(array_HWC).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))


def planted(image_HWC: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Copies that an audit must find."""
    noise = np.random.default_rng(seed).normal(0, 3, image_HWC.shape)
    return {
        "copy": image_HWC,
        "mirrored": np.ascontiguousarray(image_HWC[:, ::-1]),
        "noised": np.clip(image_HWC + noise, 0, 255).astype(np.uint8),
        "recompressed": jpeg(image_HWC),
    }


def corpus_of(
    folder: Path,
    splits: Mapping[str, Sequence[np.ndarray]],
    image_type: str = "chest X-ray",
    label: str = "nodule",
    per_patient: int = 1,
) -> Path:
    """A corpus of one kind of image; of each split, `per_patient` in a row are of one patient."""
    rows, entries = [], []
    for split, images in splits.items():
        for number, image in enumerate(images):
            content, key = png(image), f"{split}-{number:03d}"
            entries.append(Entry(key, content, f"{image_type} showing {label}", {}))
            row = _row(key, split, content, image, image_type, label)
            rows.append(replace(row, patient=f"{split}-p{number // per_patient}"))
    offsets = write_shard(folder / "all-000000.tar", entries)
    placed = [replace(row, offset=offset) for row, offset in zip(rows, offsets, strict=True)]
    write_index(folder / "index.parquet", placed)
    return folder


def _row(key: str, split: str, content: bytes, image: np.ndarray, image_type: str, label: str) -> Row:
    return Row(
        key=key,
        shard="all-000000.tar",
        offset=0,
        size=len(content),
        split=split,
        specialty="radiology",
        image_type=image_type,
        caption=f"{image_type} showing {label}",
        labels=(label,),
        patient=key,
        source="test",
        licence="CC0-1.0",
        sha256=hashlib.sha256(content).hexdigest(),
        phash=phash(Image.fromarray(image)),
        low=0,
        high=255,
        unit="uint8",
        spacing=None,
    )


def generated_of(folder: Path, images: Mapping[str, np.ndarray], text: str = "chest X-ray showing nodule") -> Path:
    """What `medisyn generate` leaves: PNG files and metadata.jsonl."""
    folder.mkdir(parents=True)
    lines = []
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(png(image))
        lines.append(json.dumps({"file_name": f"{name}.png", "text": text, "key": name}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def tiny_encoder(folder: Path) -> Path:
    """An encoder of random weights."""
    import torch

    from medisyn.evaluation.features.encoder import MedicalEncoder, save_network

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MedicalEncoder(["a", "b"], widths=(8, 16), size=32)
    save_network(network, folder, network.config)
    return folder
