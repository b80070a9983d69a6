"""One generated item -> the bytes of one file, its record inside; the same item and record give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError
from medisyn.generation.provenance import png_text
from medisyn.types import UINT8, Item, Picture


def pixels_HWC(item: Item) -> np.ndarray:
    """A generated picture as (H, W, C) uint8, C is 1 or 3. Raises InputError for anything else."""
    if not isinstance(item, Picture):
        raise InputError(f"PNG files hold pictures; this model makes a {type(item).__name__}")
    channels = item.array_CHW.shape[0]
    if item.value_range != UINT8 or item.array_CHW.dtype != np.uint8 or channels not in (1, 3):
        raise InputError(
            f"PNG files hold 1 or 3 channels of uint8 from 0 to 255; got {channels} of {item.array_CHW.dtype} "
            f"({item.value_range.unit})"
        )
    return np.ascontiguousarray(item.array_CHW.transpose(1, 2, 0))


def png_bytes(item: Item, record: Mapping[str, Any]) -> bytes:
    """The PNG file of a picture, with its record as text chunks before the pixels."""
    from PIL import Image

    pixels = pixels_HWC(item)
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    stream = io.BytesIO()
    image.save(stream, format="PNG", pnginfo=png_text(record), compress_level=6)
    return stream.getvalue()


def write_png(path: Path, item: Item, record: Mapping[str, Any]) -> None:
    """Write `png_bytes` so that the file is whole or not there at all."""
    runs.write_bytes(path, png_bytes(item, record))
