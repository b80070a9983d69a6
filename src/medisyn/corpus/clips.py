"""Frames of a clip into training pixels, where its real pixels lie, and the windows that training draws from it.

Shapes here: C channels, T frames, H, W height and width.
A clip is stored whole at its target height and width. A window of consecutive frames is drawn each time it is read
(MediSyn v1 section 3.2: 32 at random), so every epoch sees others; frames that are missing are black.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from medisyn.corpus.preprocess import MAX_ASPECT, Intensity
from medisyn.errors import ConfigError, InputError, closest
from medisyn.seeding import seed_for
from medisyn.types import Clip, Sample

GEOMETRIES = ("height-crop-pad", "fit-pad")
VALID = "valid"  # the mask of real pixels in Sample.masks
Region = tuple[int, int, int, int]  # top, left, bottom, right; bottom and right are the first ones outside


@dataclass(frozen=True, kw_only=True)
class ClipPreprocess:
    """One way from the frames of a clip to uint8 frames of `height` x `width` pixels.

    height-crop-pad  resize to the height, then cut the sides off or pad them black (MediSyn v1 section 3.2)
    fit-pad          resize until the whole frame fits, then pad black: nothing is cut off
    """

    geometry: str
    height: int
    width: int
    intensity: Intensity = None

    def __post_init__(self) -> None:
        if self.geometry not in GEOMETRIES:
            hint = closest(self.geometry, GEOMETRIES)
            raise ConfigError(f"clip geometry {self.geometry!r} is unknown, allowed: {', '.join(GEOMETRIES)}.{hint}")
        if min(self.height, self.width) < 2:  # FFV1 takes no less
            raise ConfigError(f"a clip must have at least 2 x 2 pixels, got {self.width} x {self.height}")


CLIP_PRESETS = {
    # MediSyn v1 section 3.2: height 256 in proportion, width 448 by cropping or black padding.
    "medisyn-v1-video": ClipPreprocess(geometry="height-crop-pad", height=256, width=448),
    # Ours, for views whose sides matter (sector images, wide endoscopy): the same size, nothing cut off.
    "medisyn-v1-video-fit": ClipPreprocess(geometry="fit-pad", height=256, width=448),
}


def clip_preset(name: str, *, height: int | None = None, width: int | None = None, **changes: Any) -> ClipPreprocess:
    """A preset by name at any size; with `height` alone the width follows in the preset's proportion.

    Raises ConfigError for an unknown preset or field, with the nearest allowed name.
    """
    if name not in CLIP_PRESETS:
        raise ConfigError(
            f"clip preset {name!r} is unknown, allowed: {', '.join(CLIP_PRESETS)}.{closest(name, CLIP_PRESETS)}"
        )
    base = CLIP_PRESETS[name]
    unknown = set(changes) - {field.name for field in dataclasses.fields(ClipPreprocess)}
    if unknown:
        raise ConfigError(f"clip preprocess has no field {', '.join(sorted(unknown))}")
    height = base.height if height is None else height
    width = round(height * base.width / base.height) if width is None else width
    return dataclasses.replace(base, height=height, width=width, **changes)


@dataclass(frozen=True)
class Framing:
    """How each frame of one clip is resized and placed; the same for all of its frames."""

    resized: tuple[int, int]  # height, width
    top: int  # of the result in the resized frame; negative where it begins with padding
    left: int
    height: int
    width: int

    def __call__(self, frame_CHW: np.ndarray) -> np.ndarray:
        """A uint8 frame as (C, height, width), antialiased Lanczos, black outside of the resized frame."""
        rows, columns = self.resized
        array_HWC = frame_CHW[0] if len(frame_CHW) == 1 else np.ascontiguousarray(frame_CHW.transpose(1, 2, 0))
        image = Image.fromarray(np.ascontiguousarray(array_HWC)).resize((columns, rows), Image.Resampling.LANCZOS)
        box = (self.left, self.top, self.left + self.width, self.top + self.height)
        made = np.asarray(image.crop(box))
        return made[None] if made.ndim == 2 else np.ascontiguousarray(made.transpose(2, 0, 1))

    @property
    def valid(self) -> Region:
        """Where the result holds real pixels."""
        rows, columns = self.resized
        bottom, right = min(rows - self.top, self.height), min(columns - self.left, self.width)
        return max(-self.top, 0), max(-self.left, 0), bottom, right


def framing(preset: ClipPreprocess, height: int, width: int, pixel_aspect: float = 1.0) -> Framing:
    """What `preset` does with frames of `height` x `width` pixels that are `pixel_aspect` times as wide as high.

    Raises InputError for frames that are a strip, longer than MAX_ASPECT times their short side.
    """
    shown = width * pixel_aspect
    if max(height, shown) > MAX_ASPECT * min(height, shown):
        raise InputError(f"the frames are a strip of {width} x {height} pixels; the sides may differ {MAX_ASPECT}-fold")
    factor = preset.height / height
    if preset.geometry == "fit-pad":
        factor = min(factor, preset.width / shown)
    rows, columns = max(1, round(height * factor)), max(1, round(shown * factor))
    top, left = (rows - preset.height) // 2, (columns - preset.width) // 2
    return Framing((rows, columns), top, left, preset.height, preset.width)


def valid_mask(region: Region | None, shape_THW: tuple[int, ...], real_frames: int) -> np.ndarray | None:
    """The mask (T, H, W) uint8, 1 where a pixel is real; None where all are.

    The first `real_frames` frames are real, and in them the pixels inside of `region` (None: all).
    """
    frames, height, width = shape_THW
    top, left, bottom, right = (0, 0, height, width) if region is None else region
    frame_HW = np.zeros((height, width), dtype=np.uint8)
    frame_HW[top:bottom, left:right] = 1
    if real_frames >= frames:
        return None if frame_HW.all() else np.broadcast_to(frame_HW, (frames, height, width))
    mask_THW = np.zeros((frames, height, width), dtype=np.uint8)
    mask_THW[:real_frames] = frame_HW
    return mask_THW


def window_generator(run_seed: int, key: str, visit: int) -> np.random.Generator:
    """What draws the window of a sample at its `visit`-th visit (0, 1, ...): the same on any number of processes."""
    return np.random.default_rng(seed_for(run_seed, f"window/{visit}/{key}"))


def first_frame(length: int, frames: int, generator: np.random.Generator) -> int:
    """Where a window of `frames` begins in a clip of `length`: every place is equally likely; 0 for a shorter clip."""
    if frames < 1:
        raise InputError(f"a window must have at least 1 frame, got {frames}")
    return int(generator.integers(0, max(length - frames, 0) + 1))


def window(sample: Sample, frames: int, generator: np.random.Generator) -> Sample:
    """`frames` consecutive frames of a clip from a random place; a shorter clip is followed by black frames.

    The mask "valid" says which pixels are real, where some are not; "first_frame" of the metadata is the place drawn.
    Raises InputError for a sample that is no clip.
    """
    if not isinstance(sample.item, Clip):
        raise InputError(f"{sample.key}: a window is drawn from a clip, got a {type(sample.item).__name__}")
    length = sample.item.array_CTHW.shape[1]
    start = first_frame(length, frames, generator)
    array_CTHW = sample.item.array_CTHW[:, start : start + frames]
    mask_THW = sample.masks.get(VALID)
    region = None if mask_THW is None else _region_of(mask_THW[start])
    return windowed(
        dataclasses.replace(sample, item=dataclasses.replace(sample.item, array_CTHW=array_CTHW)), region, frames, start
    )


def windowed(sample: Sample, region: Region | None, frames: int, start: int) -> Sample:
    """The frames that were cut from a clip at `start`, padded to `frames` and with their mask."""
    clip = sample.item
    assert isinstance(clip, Clip)
    real = clip.array_CTHW.shape[1]
    array_CTHW = np.pad(clip.array_CTHW, ((0, 0), (0, frames - real), (0, 0), (0, 0))) if real < frames else None
    mask_THW = valid_mask(region, (frames, *clip.array_CTHW.shape[2:]), real)
    return dataclasses.replace(
        sample,
        item=clip if array_CTHW is None else dataclasses.replace(clip, array_CTHW=array_CTHW),
        metadata={**sample.metadata, "first_frame": start},
        masks={} if mask_THW is None else {VALID: mask_THW},
    )


def _region_of(frame_HW: np.ndarray) -> Region:
    rows, columns = np.flatnonzero(frame_HW.any(axis=1)), np.flatnonzero(frame_HW.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
