"""Clips on their way into a corpus: frames that are read one after the other, framed, and written as FFV1.

Shapes here: C channels, T frames, H, W height and width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from medisyn import ffv1
from medisyn.corpus.clips import ClipPreprocess, Region, framing
from medisyn.corpus.preprocess import Intensity, grey_levels
from medisyn.errors import RangeError
from medisyn.types import Clip

if TYPE_CHECKING:
    from medisyn.corpus.readers.video import Video


@dataclass(frozen=True)
class Footage:
    """The frames `numbers` of a video, which are decoded as they are read, or of a clip in memory."""

    source: Video | Clip
    numbers: range
    spacing_mm: tuple[float, float] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        if isinstance(self.source, Clip):
            return self.source.array_CTHW.shape[2], self.source.array_CTHW.shape[3]
        return self.source.height, self.source.width

    @property
    def pixel_aspect(self) -> float:
        """How many times as wide as high a pixel is."""
        if isinstance(self.source, Clip):
            return float(self.source.provenance.get("pixel_aspect", 1.0))
        return self.source.pixel_aspect

    @property
    def frames_per_second(self) -> float | None:
        rate = self.source.frames_per_second
        return None if rate is None else rate / self.numbers.step

    def frames(self, intensity: Intensity) -> Iterator[np.ndarray]:
        """The frames as (C, H, W) uint8 after the intensity step, which sees all frames of the sample at once.

        Raises RangeError where the step does not suit the values, ReadError for a damaged frame.
        """
        if not isinstance(self.source, Clip):
            if intensity is not None:
                raise RangeError(
                    "a video holds grey levels or colours already; its intensity is as-is, without windows"
                )
            yield from self.source.frames(self.numbers)
            return
        chosen = slice(self.numbers.start, self.numbers.stop, self.numbers.step)
        grey_CTHW = grey_levels(self.source.array_CTHW[:, chosen], self.source.value_range, intensity, "clip")
        yield from (grey_CTHW[:, t] for t in range(grey_CTHW.shape[1]))


@dataclass(frozen=True)
class Written:
    """A clip as it goes into a shard, and what the index says of it."""

    content: bytes
    frames: int
    frames_per_second: float | None
    valid: Region
    spacing_mm: tuple[float, float] | None
    original_size: tuple[int, int]
    crop_top_left: tuple[int, int]
    pixels: str  # sha256 of the decoded frames
    middle: Image.Image  # the frame in the middle, by which duplicates are found


def write_clip(preset: ClipPreprocess, footage: Footage) -> Written:
    """Frame and encode a clip; one frame and the file are in memory, and what `footage` holds.

    Raises InputError, RangeError and ReadError as its steps do; RangeError for a clip of which every pixel is equal.
    """
    place = framing(preset, *footage.size, footage.pixel_aspect)
    digest, count, middle = hashlib.sha256(f"{place.height} {place.width}".encode()), len(footage.numbers), None
    lows, highs = [], []

    def framed() -> Iterator[np.ndarray]:
        nonlocal middle
        for number, frame_CHW in enumerate(footage.frames(preset.intensity)):
            made_CHW = place(frame_CHW)
            digest.update(made_CHW.tobytes())
            lows.append(frame_CHW.min())
            highs.append(frame_CHW.max())
            if number == count // 2:
                middle = made_CHW
            yield made_CHW

    content = ffv1.encode(framed(), footage.frames_per_second)
    if min(lows) == max(highs):
        raise RangeError(f"every pixel of every frame is {min(lows)}: the clip is empty")
    assert middle is not None
    spacing = footage.spacing_mm
    factor = place.resized[0] / footage.size[0]
    return Written(
        content=content,
        frames=count,
        frames_per_second=footage.frames_per_second,
        valid=place.valid,
        spacing_mm=None if spacing is None else (spacing[0] / factor, spacing[1] / factor),
        original_size=footage.size,
        crop_top_left=(max(place.top, 0), max(place.left, 0)),
        pixels=digest.hexdigest(),
        middle=Image.fromarray(middle[0] if len(middle) == 1 else middle.transpose(1, 2, 0)),
    )
