"""Images, clips and volumes to vectors: the extractors, by name.

Shapes here: H, W pixels, T frames, D slices (before H, W), N items, F features.
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
    "inception-torchmetrics",
    "inception-tf",
    "dinov2:<folder or hub id>",
    "clip:<folder or hub id>",
    "clip-224:<folder or hub id>",
    "biomedclip",
)
CLIP_NAMES = ("medical-encoder-frames", "i3d", "i3d:<frames>")
VOLUME_NAMES = ("medical-encoder-slices", "med3d", "med3d:<side of the cube>")
INCEPTION_RESIZES = {  # the resize of clean-fid, pytorch-fid, torchmetrics and torch-fidelity
    "inception": "clean",
    "inception-legacy": "torch-bilinear",
    "inception-torchmetrics": "torch-antialias",
    "inception-tf": "tf-bilinear",
}
OF_KIND = {"images": NAMES, "clips": CLIP_NAMES, "volumes": VOLUME_NAMES}


class Extractor(Protocol):
    """Items in, float32 features (N, F) out.

    Images are (H, W, 3) uint8 of any size; clips (T, H, W, 3) uint8; volumes (D, H, W) in HU, axial slices from the
    feet up.
    """

    @property
    def id(self) -> str: ...

    @property
    def preprocessing(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def __call__(self, images: list[np.ndarray], /) -> np.ndarray: ...


def check_images(images: list[np.ndarray]) -> None:
    """InputError unless every image is (H, W, 3) uint8."""
    for number, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(
                f"image {number} of the batch: extractors take (height, width, 3) uint8 RGB, "
                f"got {image.shape} {image.dtype}. Window and scale to 0..255 first; repeat grey to three channels."
            )


def check_clips(clips: list[np.ndarray]) -> None:
    """InputError unless every clip is (T, H, W, 3) uint8 with two frames or more."""
    for number, clip in enumerate(clips):
        if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3 or len(clip) < 2:
            raise InputError(
                f"clip {number} of the batch: extractors take (frames, height, width, 3) uint8 RGB of at least 2 "
                f"frames, got {clip.shape} {clip.dtype}"
            )


def check_volumes(volumes: list[np.ndarray]) -> None:
    """InputError unless every volume is (D, H, W) and its numbers can be Hounsfield units (RangeError)."""
    from medisyn.intensity import guard_hu

    for number, volume in enumerate(volumes):
        if volume.ndim != 3 or volume.size == 0:
            raise InputError(f"volume {number} of the batch: extractors take (D, H, W) in HU, got {volume.shape}")
        guard_hu(volume)


def weights_cache() -> Path:
    """Where fetched weights are kept: `medisyn/weights` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "medisyn" / "weights"


def load_extractor(name: str, path: Path | None = None, *, kind: str = "images") -> Extractor:
    """The extractor of that name for images, clips or volumes (`kind`).

    `path`: its weight file or folder, where it is not the shipped or usual one. Raises ConfigError for an unknown name
    and for one of another kind, ModelError when the weights are missing or of a kind we refuse: there is no fallback.
    """
    make, _, target = name.partition(":")
    for other, names in OF_KIND.items():
        if other != kind and make in _makes(names):
            raise ConfigError(f"extractor {name!r} takes {other}, these are {kind}: {', '.join(OF_KIND[kind])}")
    if make not in _makes(OF_KIND[kind]):
        hint = closest(make, OF_KIND[kind])
        raise ConfigError(f"extractor {name!r} is unknown, allowed: {', '.join(OF_KIND[kind])}.{hint}")
    if target and not any(allowed.startswith(f"{make}:") for allowed in OF_KIND[kind]):
        raise ConfigError(f"extractor {name!r} is unknown: {make} takes nothing after it")
    if kind == "clips":
        return _clip_extractor(make, target, path)
    return _volume_extractor(make, target, path) if kind == "volumes" else _image_extractor(make, target, path)


def _makes(names: tuple[str, ...]) -> set[str]:
    return {name.partition(":")[0] for name in names}


def _image_extractor(make: str, target: str, path: Path | None) -> Extractor:
    source = str(path) if path is not None else target
    if make.startswith("inception"):
        return _inception(make, target, path)
    if make == "dinov2":
        from medisyn.evaluation.features.dinov2 import load_dinov2

        return load_dinov2(source)
    if make in ("clip", "clip-224"):
        from medisyn.evaluation.features.clip import SIDES, load_clip

        return load_clip(source, SIDES[make])
    if make == "biomedclip":
        from medisyn.evaluation.features.biomedclip import load_biomedclip

        return load_biomedclip(path)
    from medisyn.evaluation.features.encoder import load_encoder

    return load_encoder(path)


def _inception(make: str, target: str, path: Path | None) -> Extractor:
    from medisyn.evaluation.features.inception import SHA256, URL, load_inception

    if target not in ("", "download") or (target and make != "inception"):
        raise ConfigError(f"extractor '{make}:{target}' is unknown, allowed: {', '.join(NAMES)}")
    if target == "download" and path is None:
        path = fetch(URL, weights_cache() / URL.rpartition("/")[2], SHA256)
    return load_inception(path, resize=INCEPTION_RESIZES[make])


def _clip_extractor(make: str, target: str, path: Path | None) -> Extractor:
    if make == "i3d":
        from medisyn.evaluation.features.i3d import FRAMES, load_i3d

        return load_i3d(path, _whole(make, target, FRAMES))
    from medisyn.evaluation.features.by_slices import FramesExtractor
    from medisyn.evaluation.features.encoder import load_encoder

    return FramesExtractor(load_encoder(path))


def _volume_extractor(make: str, target: str, path: Path | None) -> Extractor:
    if make == "med3d":
        from medisyn.evaluation.features.medicalnet import SIDE, load_medicalnet

        return load_medicalnet(path, _whole(make, target, SIDE))
    from medisyn.evaluation.features.by_slices import SlicesExtractor
    from medisyn.evaluation.features.encoder import load_encoder

    return SlicesExtractor(load_encoder(path))


def _whole(make: str, target: str, default: int) -> int:
    """The number after the colon of an extractor's name."""
    if not target:
        return default
    if not target.isdecimal() or int(target) < 8:
        raise ConfigError(f"extractor {make}:{target}: a whole number of at least 8 follows {make}:, not {target!r}")
    return int(target)
