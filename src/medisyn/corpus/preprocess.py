"""Pictures into training pixels: the papers' five 2D presets at any target size.

Shapes here: C channels, H, W height and width.
An intensity step (window, percentiles, full range) makes grey levels 0..255 before any geometry; it never guesses:
a picture that is not uint8 needs one. Resizing is Pillow's antialiased Lanczos over the decoded picture (no JPEG
`draft`, no `reducing_gap`), so the result equals the plain "open, resize, crop" of the papers bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from medisyn.errors import ConfigError, InputError, RangeError, closest
from medisyn.intensity import guard_hu, guard_not_empty, percentile_clip, window
from medisyn.types import UINT8, Picture, ValueRange

MAX_ASPECT = 16  # a picture longer than this many times its short side is a scan error or a scout, not a picture


@dataclass(frozen=True)
class Window:
    """A CT window in HU: level ± width/2 becomes 0..255."""

    width: float
    level: float


@dataclass(frozen=True)
class Percentile:
    """Two percentiles of the whole picture (all channels together) become 0 and 255."""

    low: float = 0.5
    high: float = 99.5


@dataclass(frozen=True)
class FullRange:
    """The stated value range, for instance 0..65535 of a 16-bit PNG, becomes 0..255."""


Intensity = Window | Percentile | FullRange | None
INTENSITIES: dict[str, Intensity] = {"as-is": None, "percentile": Percentile(), "full-range": FullRange()}

WINDOWS = {
    "angiography": Window(700, 100),  # MediSyn v2 section 4.1, chest CT pulmonary angiography
    "lung": Window(1500, -600),
    "mediastinum": Window(400, 40),
    "bone": Window(1800, 400),
}
GEOMETRIES = ("long-side-pad-crop", "short-side-crop", "nonzero-long-side-pad")
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """One way from a picture to a square uint8 picture of `size` pixels.

    `geometry` is one of GEOMETRIES; `intensity` None demands a uint8 picture; `rgb` repeats grey in three channels.
    """

    geometry: str
    size: int
    intensity: Intensity = None
    resample: str = "lanczos"
    rgb: bool = True

    def __post_init__(self) -> None:
        if self.geometry not in GEOMETRIES:
            hint = closest(self.geometry, GEOMETRIES)
            raise ConfigError(f"geometry {self.geometry!r} is unknown, allowed: {', '.join(GEOMETRIES)}.{hint}")
        if self.resample not in FILTERS:
            raise ConfigError(f"resample {self.resample!r} is unknown, allowed: {', '.join(FILTERS)}")
        if self.size < 1:
            raise ConfigError(f"preprocess size must be at least 1 pixel, got {self.size}")


PRESETS = {
    # MediSyn v1 section 3.2: long side 1152, pad black to a square, centre crop 1024 (64 px of each margin are lost).
    "long-side-pad-crop": Preprocess(geometry="long-side-pad-crop", size=1024),
    # MediSyn v2 section 4.1: short side 512, centre crop 512.
    "short-side-crop": Preprocess(geometry="short-side-crop", size=512),
    # Medical diffusion on a budget, CheXpert: crop to non-zero, long side 512, zero-pad to a square.
    "nonzero-long-side-pad": Preprocess(geometry="nonzero-long-side-pad", size=512),
    # MediSyn v2 section 4.1, chest CT: window width 700, level 100.
    "ct-window": Preprocess(geometry="short-side-crop", size=512, intensity=WINDOWS["angiography"]),
    # MediSyn v2 section 4.1, brain MRI and mammograms: 0.5th to 99.5th percentile.
    "percentile": Preprocess(geometry="short-side-crop", size=512, intensity=Percentile()),
}


def preset(name: str, *, size: int | None = None, window: str | None = None, **changes: Any) -> Preprocess:
    """A preset by name, with another size, a named CT window, or other fields changed.

    Raises ConfigError for an unknown preset, window or field, with the nearest allowed name.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"preprocessing preset {name!r} is unknown, allowed: {', '.join(PRESETS)}.{closest(name, PRESETS)}"
        )
    if window is not None:
        if window not in WINDOWS:
            raise ConfigError(
                f"CT window {window!r} is unknown, allowed: {', '.join(WINDOWS)}.{closest(window, WINDOWS)}"
            )
        changes["intensity"] = WINDOWS[window]
    if size is not None:
        changes["size"] = size
    unknown = set(changes) - {field.name for field in dataclasses.fields(Preprocess)}
    if unknown:
        raise ConfigError(f"preprocess has no field {', '.join(sorted(unknown))}")
    return dataclasses.replace(PRESETS[name], **changes)


def apply(preset: Preprocess, picture: Picture) -> Picture:
    """`picture` as (3, size, size) uint8, or (1, size, size) when it is grey and `preset.rgb` is False.

    Its provenance gains what SDXL is told about a picture (Podell et al. 2023, section 2.2): "original_size", the
    (height, width) before resizing, and "crop_top_left", the (row, column) of the resized picture at which the result
    begins; 0 where it begins with padding.
    Raises RangeError for an empty picture, for a picture whose values do not suit the intensity step, and for one
    of which the step leaves nothing; InputError for a strip longer than MAX_ASPECT times its short side.
    """
    grey_CHW = to_grey_levels(picture, preset.intensity)
    height, width = grey_CHW.shape[1:]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise InputError(f"the picture is a strip of {width} x {height} pixels; the sides may differ {MAX_ASPECT}-fold")
    image = _to_pillow(grey_CHW)
    made = _GEOMETRY[preset.geometry](image, preset.size, FILTERS[preset.resample])
    scaled = made.image
    if preset.rgb and scaled.mode == "L":
        scaled = Image.merge("RGB", (scaled, scaled, scaled))
    spacing = picture.spacing_mm and (picture.spacing_mm[0] / made.factor, picture.spacing_mm[1] / made.factor)
    place = {"original_size": (height, width), "crop_top_left": (max(made.top, 0), max(made.left, 0))}
    return Picture(_from_pillow(scaled), UINT8, spacing, {**picture.provenance, **place})


def to_grey_levels(picture: Picture, intensity: Intensity) -> np.ndarray:
    """The intensity step alone: (C, H, W) uint8. Raises RangeError as `apply` does."""
    return grey_levels(picture.array_CHW, picture.value_range, intensity, "picture")


def grey_levels(array: np.ndarray, value_range: ValueRange, intensity: Intensity, what: str) -> np.ndarray:
    """The intensity step over an array of any shape as uint8; `what` names it in messages. Raises RangeError."""
    unit = value_range.unit
    guard_not_empty(array)
    if intensity is None:
        if unit != "uint8" or array.dtype != np.uint8:
            raise RangeError(
                f"the {what} holds {unit} values from {float(array.min()):g} to {float(array.max()):g}, "
                f"not grey levels. Choose an intensity step: a CT window, percentiles or the full range."
            )
        return array
    if isinstance(intensity, Window):
        if unit != "hu":
            raise RangeError(f"a CT window needs HU, but the {what} holds {unit} values")
        guard_hu(array)
        grey = window(array, intensity.width, intensity.level)
    elif isinstance(intensity, Percentile):
        grey = percentile_clip(array, intensity.low, intensity.high)
    else:
        low, high = value_range.low, value_range.high
        scaled = (array.astype(np.float64) - low) / (high - low) * 255
        grey = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    if grey.min() == grey.max():
        raise RangeError(f"after {intensity} every pixel is {grey.flat[0]}: nothing of the {what} is left")
    return grey


def channels_to_rgb(pictures: Sequence[Picture], intensity: Intensity = Percentile()) -> Picture:
    """Three aligned grey pictures, such as T2W, ADC and DWI, as the channels of one (budget paper, multi-modal MRI).

    Each goes through the intensity step on its own. Raises InputError unless they are three grey pictures of one shape.
    """
    shapes = [picture.array_CHW.shape for picture in pictures]
    if len(pictures) != 3 or len(set(shapes)) != 1 or shapes[0][0] != 1:
        raise InputError(f"RGB needs three grey pictures of one shape, got {', '.join(map(str, shapes))}")
    rgb_CHW = np.concatenate([to_grey_levels(picture, intensity) for picture in pictures])
    return Picture(rgb_CHW, UINT8, pictures[0].spacing_mm, pictures[0].provenance)


@dataclass(frozen=True)
class _Framed:
    """A square, the factor of its resizing, and where it begins in the resized picture (negative: in the padding)."""

    image: Image.Image
    factor: float
    top: int
    left: int


def _long_side_pad_crop(image: Image.Image, size: int, resample: Image.Resampling) -> _Framed:
    square = round(size * 1152 / 1024)
    return _centre(_resize(image, square / max(image.size), resample), size, square / max(image.size))


def _short_side_crop(image: Image.Image, size: int, resample: Image.Resampling) -> _Framed:
    factor = size / min(image.size)
    return _centre(_resize(image, factor, resample), size, factor)


def _nonzero_long_side_pad(image: Image.Image, size: int, resample: Image.Resampling) -> _Framed:
    left, top, right, bottom = image.getbbox() or (0, 0, *image.size)  # never None: empty pictures were refused
    factor = size / max(right - left, bottom - top)
    framed = _centre(_resize(image.crop((left, top, right, bottom)), factor, resample), size, factor)
    return replace(framed, top=framed.top + round(top * factor), left=framed.left + round(left * factor))


_GEOMETRY = {
    "long-side-pad-crop": _long_side_pad_crop,
    "short-side-crop": _short_side_crop,
    "nonzero-long-side-pad": _nonzero_long_side_pad,
}


def _resize(image: Image.Image, factor: float, resample: Image.Resampling) -> Image.Image:
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), resample)


def _centre(image: Image.Image, size: int, factor: float) -> _Framed:
    """The central size x size pixels; black where the image is smaller."""
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return _Framed(image.crop((left, top, left + size, top + size)), factor, top, left)


def _to_pillow(array_CHW: np.ndarray) -> Image.Image:
    if array_CHW.shape[0] == 1:
        return Image.fromarray(np.ascontiguousarray(array_CHW[0]))
    return Image.fromarray(np.ascontiguousarray(array_CHW.transpose(1, 2, 0)))


def _from_pillow(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
