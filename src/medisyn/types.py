"""The values that travel through the house: pixels with their range and place, and what is asked of a generator.

Shapes here: C channels, T frames, D, H, W depth, height, width.
All are immutable: arrays are marked read-only when they are wrapped, and metadata cannot be changed. Values that hold
arrays compare by identity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

import numpy as np

from medisyn.errors import InputError, RangeError


class Facts(dict[str, Any]):
    """A dict that cannot be changed: metadata and provenance. Like any dict it goes through JSON, pickle and `|`."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("the facts of a value cannot be changed; make a new value with dataclasses.replace")

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = pop = popitem = clear = setdefault = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return Facts, (dict(self),)


class _Value:
    """Pickles by calling the constructor, so that what was checked and read-only stays so in another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class ValueRange:
    """What the numbers mean: the interval they may lie in and their unit.

    `unit` is one of "uint8" (0 to 255), "unit" (0 to 1), "symmetric" (-1 to 1), "hu" (Hounsfield units) and
    "raw" (scanner numbers without a scale).
    """

    low: float
    high: float
    unit: str

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise InputError(f"value range: unit {self.unit!r} is unknown, allowed: {', '.join(UNITS)}")
        if not self.low < self.high:
            raise InputError(f"value range: low {self.low:g} must be below high {self.high:g}")


UNITS = ("uint8", "unit", "symmetric", "hu", "raw")
UINT8 = ValueRange(0, 255, "uint8")
UNIT = ValueRange(0.0, 1.0, "unit")
SYMMETRIC = ValueRange(-1.0, 1.0, "symmetric")
HU = ValueRange(-1024.0, 3071.0, "hu")


def _freeze(array: np.ndarray) -> np.ndarray:
    frozen = array.view()
    frozen.flags.writeable = False
    return frozen


def _check(array: np.ndarray, dims: str, what: str, value_range: ValueRange) -> None:
    if array.ndim != len(dims):
        raise InputError(f"{what}: expected axes {', '.join(dims)}, got an array of shape {array.shape}")
    if array.size == 0:
        raise InputError(f"{what}: the array is empty, shape {array.shape}")
    if array.dtype == np.uint8 and value_range.low <= 0 and value_range.high >= 255:
        return  # bytes cannot lie outside; a scan of every picture would cost a tenth of its curation
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RangeError(f"{what}: {int((~np.isfinite(array)).sum())} values are NaN or infinite")
    low, high = float(array.min()), float(array.max())
    slack = 1e-3 * (value_range.high - value_range.low)
    if low < value_range.low - slack or high > value_range.high + slack:
        raise RangeError(
            f"{what}: values run from {low:g} to {high:g}, outside [{value_range.low:g}, {value_range.high:g}] "
            f"({value_range.unit}). Rescale once, or state the range the values really have."
        )


def _check_affine(affine: np.ndarray) -> None:
    if affine.shape != (4, 4):
        raise InputError(f"volume: the affine must be a (4, 4) matrix, got shape {affine.shape}")
    if not np.isfinite(affine).all() or not np.array_equal(affine[3], (0, 0, 0, 1)):
        raise InputError("volume: the affine must be finite and its last row 0 0 0 1")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() == 0 or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-6:
        raise InputError(
            "volume: the affine cannot be inverted; two of its axes point the same way, or one has no length"
        )


@dataclass(frozen=True, eq=False)
class Picture(_Value):
    """A 2D image: (C, H, W), grey or RGB in a corpus; `spacing_mm` is (row, column) pixel spacing where it is known."""

    array_CHW: np.ndarray
    value_range: ValueRange = UINT8
    spacing_mm: tuple[float, float] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.array_CHW, "CHW", "picture", self.value_range)
        object.__setattr__(self, "array_CHW", _freeze(self.array_CHW))
        object.__setattr__(self, "provenance", Facts(self.provenance))


@dataclass(frozen=True, eq=False)
class Clip(_Value):
    """A video: (C, T, H, W) and its frames per second."""

    array_CTHW: np.ndarray
    value_range: ValueRange = UINT8
    frames_per_second: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.array_CTHW, "CTHW", "clip", self.value_range)
        object.__setattr__(self, "array_CTHW", _freeze(self.array_CTHW))
        object.__setattr__(self, "provenance", Facts(self.provenance))


@dataclass(frozen=True, eq=False)
class Volume(_Value):
    """Voxels (C, D, H, W) and the affine that maps (d, h, w, 1) indices to patient millimetres, LPS."""

    array_CDHW: np.ndarray
    affine: np.ndarray
    value_range: ValueRange = HU
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.array_CDHW, "CDHW", "volume", self.value_range)
        _check_affine(self.affine)
        object.__setattr__(self, "array_CDHW", _freeze(self.array_CDHW))
        object.__setattr__(self, "affine", _freeze(np.asarray(self.affine, dtype=np.float64)))
        object.__setattr__(self, "provenance", Facts(self.provenance))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along d, h and w."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(d), float(h), float(w)

    def crop(self, start: tuple[int, int, int], stop: tuple[int, int, int]) -> Volume:
        """The part from index `start` up to, not including, `stop`; it stays where it was in the patient."""
        shape = self.array_CDHW.shape[1:]
        if any(not 0 <= a < b <= n for a, b, n in zip(start, stop, shape, strict=True)):
            raise InputError(f"volume crop: {start} to {stop} does not lie inside the shape {shape}")
        window = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        shift = np.eye(4)
        shift[:3, 3] = start
        return Volume(self.array_CDHW[(slice(None), *window)], self.affine @ shift, self.value_range, self.provenance)


Item = Picture | Clip | Volume


@dataclass(frozen=True, eq=False)
class Sample(_Value):
    """One item of a corpus: pixels, caption, metadata (labels, specialty, ...) and masks of the same shape."""

    key: str
    item: Item
    caption: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", Facts(self.metadata))
        object.__setattr__(self, "masks", Facts(self.masks))


@dataclass(frozen=True)
class Request(_Value):
    """One item to generate. `seed` fixes its noise whatever the batch, rank or world size.

    `height` and `width` are pixels, multiples of the model's downsampling factor (None: the size it was trained at).
    `guidance` is the classifier-free guidance scale (1 means none). None for guidance or steps: the model's default.
    `terms` are the parts of a prompt that combines several, each (text, weight); empty: the prompt is one, of weight 1.
    `toward_share` says how far this item lies on the way to `toward_prompt` (text embeddings mixed) and to
    `toward_seed` (noise mixed on the sphere), from 0 to 1.
    Of a clip: `frames` is how many, `motion` how much moves (0 and up) and `appearance` how far the last frame may
    drift from the first (0 to 1, HiGen's factors).
    """

    key: str
    prompt: str
    seed: int
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    steps: int | None = None
    guidance: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    terms: tuple[tuple[str, float], ...] = ()
    toward_prompt: str = ""
    toward_seed: int | None = None
    toward_share: float = 0.0
    frames: int | None = None
    motion: float | None = None
    appearance: float | None = None

    @property
    def weighted_terms(self) -> tuple[tuple[str, float], ...]:
        """What the prompt asks for: at least one (text, weight)."""
        return self.terms or ((self.prompt, 1.0),)

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise InputError(f"request {self.key}: steps must be at least 1, got {self.steps}")
        for name, pixels in (("height", self.height), ("width", self.width)):
            if pixels is not None and pixels < 1:
                raise InputError(f"request {self.key}: {name} must be at least 1 pixel, got {pixels}")
        if self.guidance is not None and not self.guidance >= 0:
            raise InputError(f"request {self.key}: guidance must be 0 or more, got {self.guidance}")
        if not 0 <= self.toward_share <= 1:
            raise InputError(f"request {self.key}: toward_share must lie in [0, 1], got {self.toward_share}")
        if self.frames is not None and self.frames < 1:
            raise InputError(f"request {self.key}: frames must be at least 1, got {self.frames}")
        if self.motion is not None and not 0 <= self.motion < math.inf:
            raise InputError(f"request {self.key}: motion must be 0 or more, got {self.motion}")
        if self.appearance is not None and not 0 <= self.appearance <= 1:
            raise InputError(f"request {self.key}: appearance must lie in [0, 1], got {self.appearance}")
        if self.toward_prompt and len(self.terms) > 1:
            raise InputError(f"request {self.key}: a prompt of several terms cannot be mixed with another prompt")
        object.__setattr__(self, "metadata", Facts(self.metadata))
        object.__setattr__(self, "terms", tuple((text, float(weight)) for text, weight in self.terms))
