"""Small source descriptions with files for the corpus tests: grey pictures that differ, and a table."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medisyn.corpus.source import Source, parse_source


def picture(number: int, size: int = 24) -> np.ndarray:
    """A blob at its own place on a gradient: no two numbers give the same picture or perceptual hash."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def description(**changes: Any) -> dict[str, Any]:
    """A source of pictures with a table; the ids are public, so no key file is made."""
    return {
        "name": "shapes",
        "title": "Shapes",
        "licence": "CC BY 4.0",
        "attribution": "nobody",
        "url": "https://example.org",
        "public_ids": True,
        "specialty": "radiology",
        "image_type": "chest X-ray",
        "table": {"path": "table.csv"},
        "split": {"unit": "patient", "column": "patient"},
        "fields": {"finding": {}},
        "size": 16,
        "samples": [
            {
                "kind": "whole",
                "captions": ["Frontal chest X-ray image[ showing {finding}]"],
                "labels": ["{finding}"],
            }
        ],
        **changes,
    }


def source(folder: Path, **changes: Any) -> Source:
    return parse_source(description(**{"root": str(folder), **changes}))


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def files(folder: Path, count: int = 20, per_patient: int = 2) -> list[dict[str, Any]]:
    """`count` pictures `<n>.png` and table.csv; patients have `per_patient` pictures each. Returns the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        Image.fromarray(picture(number)).save(folder / f"{number}.png")
        finding = ("", "effusion", "nodule")[number % 3]
        rows.append({"file": f"{number}.png", "patient": f"p{number // per_patient}", "finding": finding})
    write_table(folder / "table.csv", rows)
    return rows
