"""How alike the frames of a clip are: a matrix of similarities, measured in training and made up when sampling.

Shapes here: T frames, H, W pixels, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from medisyn.errors import InputError, ModelError
from medisyn.types import Clip

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")

# RGB frames (H, W, 3) uint8 -> (N, F): the image encoder, handed in by whoever wires a run. The paper's is DINOv2's.
FrameFeatures = Callable[[list[np.ndarray]], np.ndarray]


def appearance_matrix(a: float, frames: int) -> np.ndarray:
    """A[i, j] = 1 - a |i - j| / (T - 1), float32 (T, T): published. a = 0 keeps the content, 1 lets it drift freely."""
    if not 0 <= a <= 1:
        raise InputError(f"the appearance factor must lie in [0, 1], got {a}")
    numbers = np.arange(frames, dtype=np.float32)
    return 1 - a * np.abs(numbers[:, None] - numbers[None, :]) / max(frames - 1, 1)


def frame_similarity(clip: Clip, features: FrameFeatures, real_T: Sequence[bool] | None = None) -> np.ndarray:
    """Cosine similarity of every two frames' features, float32 (T, T), its diagonal 1.

    `real_T` says which frames hold a real pixel; a padded frame counts as the real one before it, as if the clip had
    stood still. Raises ModelError when the encoder gives a vector that is zero or not finite.
    """
    frames = rgb_frames(clip)
    sources = _sources(len(frames), real_T)
    features_NF = np.asarray(features([frames[number] for number in sorted(set(sources))]), dtype=np.float64)
    lengths_N = np.linalg.norm(features_NF, axis=1)
    if not np.isfinite(lengths_N).all() or lengths_N.min() == 0:
        raise ModelError(
            "the frame encoder gave a vector that is zero or not finite, so frames cannot be compared. Use another "
            "encoder for the appearance values."
        )
    unit_NF = features_NF / lengths_N[:, None]
    places = {number: place for place, number in enumerate(sorted(set(sources)))}
    unit_TF = unit_NF[[places[number] for number in sources]]
    return np.clip(unit_TF @ unit_TF.T, -1, 1).astype(np.float32)


def stretched(similarity: Array, scale: float) -> Array:
    """1 - scale * (1 - similarity), from -1 to 1: differences made larger for an encoder that sees few."""
    return (1 - scale * (1 - similarity)).clip(-1, 1)


def rgb_frames(clip: Clip) -> list[np.ndarray]:
    """The frames of a uint8 clip as (H, W, 3); grey fills all three channels."""
    array_CTHW = clip.array_CTHW
    if array_CTHW.dtype != np.uint8 or array_CTHW.shape[0] not in (1, 3):
        raise InputError(
            f"frames are compared as uint8 grey or RGB, got {array_CTHW.dtype} (C, T, H, W) {array_CTHW.shape}"
        )
    full_CTHW = np.broadcast_to(array_CTHW, (3, *array_CTHW.shape[1:]))
    return [np.ascontiguousarray(full_CTHW[:, number].transpose(1, 2, 0)) for number in range(full_CTHW.shape[1])]


def _sources(num_frames: int, real_T: Sequence[bool] | None) -> list[int]:
    """For each frame the real one it counts as."""
    real = [True] * num_frames if real_T is None else [bool(value) for value in real_T]
    if len(real) != num_frames or not any(real):
        raise InputError(f"a clip of {num_frames} frames needs as many marks of which is real, and one that is")
    sources, last = [], real.index(True)
    for number, is_real in enumerate(real):
        last = number if is_real else last
        sources.append(last)
    return sources
