"""Images to vectors: the extractors, by name.

Shapes here: H, W pixels, N images, D features.
An extractor's `id` names its weights (with the start of their sha256) and `preprocessing` what was done to the pixels
before; numbers from two different pairs of these are never put side by side.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np

from medisyn.errors import ConfigError, InputError, closest
from medisyn.evaluation.features.download import fetch

NAMES = (
    "medical-encoder",
    "inception",
    "inception:download",
    "inception-legacy",
    "dinov2:<folder or hub id>",
)


class Extractor(Protocol):
    """Pictures as (H, W, 3) uint8 arrays of any size in, float32 features (N, D) out."""

    @property
    def id(self) -> str: ...

    @property
    def preprocessing(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def __call__(self, images: list[np.ndarray]) -> np.ndarray: ...


def check_images(images: list[np.ndarray]) -> None:
    """InputError unless every image is (H, W, 3) uint8."""
    for number, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(
                f"image {number} of the batch: extractors take (height, width, 3) uint8 RGB, "
                f"got {image.shape} {image.dtype}. Window and scale to 0..255 first; repeat grey to three channels."
            )


def weights_cache() -> Path:
    """Where fetched weights are kept: `medisyn/weights` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "medisyn" / "weights"


def load_extractor(name: str, path: Path | None = None) -> Extractor:
    """The extractor of that name. `path`: its weight file or folder, where it is not the shipped or usual one.

    Raises ModelError when the weights are missing or of a kind we refuse: there is no fallback.
    """
    kind, _, target = name.partition(":")
    if kind == "medical-encoder":
        from medisyn.evaluation.features.encoder import load_encoder

        return load_encoder(path)
    if kind in ("inception", "inception-legacy"):
        from medisyn.evaluation.features.inception import SHA256_START, URL, load_inception

        if target == "download" and path is None:
            path = fetch(URL, weights_cache() / URL.rpartition("/")[2], SHA256_START)
        elif target:
            raise ConfigError(f"extractor {name!r} is unknown, allowed: {', '.join(NAMES)}")
        return load_inception(path, resize="clean" if kind == "inception" else "torch-bilinear")
    if kind == "dinov2":
        from medisyn.evaluation.features.dinov2 import load_dinov2

        return load_dinov2(str(path) if path is not None else target)
    raise ConfigError(f"extractor {name!r} is unknown, allowed: {', '.join(NAMES)}.{closest(kind, NAMES)}")
