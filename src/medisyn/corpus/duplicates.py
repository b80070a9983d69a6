"""Equal pictures under different names: exact pixels, or the same perceptual hash confirmed on small grey copies."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from medisyn.corpus.splits import Clusters

THUMB = 16  # side of the grey copy that confirms an equal hash
NEAR = 3.0  # mean grey levels by which two copies of one picture may differ (recompression, resizing)


@functools.cache
def _dct() -> np.ndarray:
    """The 8 lowest rows of the orthonormal DCT-II of length 32."""
    k, n = np.arange(8)[:, None], np.arange(32)[None, :]
    rows = np.cos(np.pi * (2 * n + 1) * k / 64) * np.sqrt(2 / 32)
    rows[0] /= np.sqrt(2)
    return rows


def phash(image: Image.Image) -> str:
    """64-bit perceptual hash in hex: the 8 x 8 lowest DCT terms of 32 x 32 grey, each above their median or not.

    Resizing and recompression leave it (nearly) unchanged; a flip or another picture changes about half of the bits.
    """
    small = image.convert("L").resize((32, 32), Image.Resampling.BOX)
    lowest = _dct() @ np.asarray(small, dtype=np.float64) @ _dct().T
    bits = (lowest > np.median(lowest)).ravel()
    return np.packbits(bits).tobytes().hex()


def thumb(image: Image.Image) -> str:
    """A 16 x 16 grey copy, in hex."""
    return image.convert("L").resize((THUMB, THUMB), Image.Resampling.BOX).tobytes().hex()


@dataclass(frozen=True)
class Print:
    """What duplicates are found by. `group` is the patient or file; similar pictures within it are no news."""

    image_type: str
    group: str
    pixels: str  # sha256 of the decoded pixels
    phash: str
    thumb: str


def contents(prints: Sequence[Print]) -> list[str]:
    """A name per picture that duplicates share: equal pixels, or in different groups an equal hash and near copies."""
    clusters = Clusters()
    names = [f"{each.image_type}/{each.pixels}" for each in prints]
    by_hash: dict[tuple[str, str], list[int]] = {}
    for number, each in enumerate(prints):
        by_hash.setdefault((each.image_type, each.phash), []).append(number)
    for same in by_hash.values():
        for later, number in enumerate(same):
            for other in same[:later]:
                if prints[number].group != prints[other].group and _near(prints[number].thumb, prints[other].thumb):
                    clusters.join(names[number], names[other])
    return [clusters.find(name) for name in names]


def _near(a: str, b: str) -> bool:
    copies = [np.frombuffer(bytes.fromhex(text), dtype=np.uint8).astype(np.float64) for text in (a, b)]
    return float(np.abs(copies[0] - copies[1]).mean()) <= NEAR
