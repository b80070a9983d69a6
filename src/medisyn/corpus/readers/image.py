"""PNG, JPEG, TIFF and BMP into pictures, through Pillow.

Shapes here: C channels, T pages, H, W height and width.
Turned upright by their EXIF orientation. Alpha is flattened on black. Colour profiles are not applied. CMYK and Lab
are refused: without their print profile the colours would be invented. 16-bit colour keeps its high byte (Pillow).
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import BmpImagePlugin, Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from medisyn.corpus.readers.archive import Entry
from medisyn.errors import RangeError, ReadError
from medisyn.types import UINT8, Item, Picture, ValueRange

MAX_PIXELS = 2**29  # 23,000 x 23,000: a whole slide at 10x; larger ones are cut into patches first
OPENERS: dict[str, type[ImageFile.ImageFile]] = {
    "png": PngImagePlugin.PngImageFile,
    "jpeg": JpegImagePlugin.JpegImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
}
# Everything that a damaged file makes Pillow raise; its own message may hold a path, so only the kind is passed on.
PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, OverflowError, RuntimeError,
    AttributeError, ArithmeticError, struct.error,
)  # fmt: skip
REFUSED_MODES = ("CMYK", "LAB", "HSV")
UINT16 = ValueRange(0, 65535, "raw")


def read_image(entry: Entry, kind: str) -> Item:
    """A picture file as Picture: (3, H, W) or (1, H, W), uint8, or uint16 / 32-bit grey with a "raw" range.

    A TIFF with several pages of the size of its largest becomes a Clip of these pages; smaller pages (pyramid levels,
    thumbnails, slide labels) are left out and counted as "pages_ignored". Raises ReadError, RangeError for NaN.
    """
    from medisyn.corpus.readers.tiff import read_tiff

    with entry.open() as stream, _reading(kind):
        if kind == "tiff":
            return read_tiff(stream)
        with OPENERS[kind](stream) as image:
            array_CHW = pixels_of(image)
    return Picture(array_CHW, range_of([array_CHW]), None, {"format": kind})


def read_indices(entry: Entry) -> np.ndarray:
    """A mask picture as (H, W) integers: grey values, or palette indices where it has a palette. Raises ReadError."""
    kind = entry.format()
    with entry.open() as stream, _reading(kind), OPENERS[kind](stream) as image:
        refuse_size(*image.size)
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            raise ReadError(f"a mask must hold one number per pixel, but this picture is {image.mode}")
        indices_HW = np.asarray(image)
    return indices_HW.astype(np.uint8) if indices_HW.dtype == bool else indices_HW


@contextmanager
def _reading(kind: str) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns on stderr about tags; a damaged picture raises
        try:
            yield
        except (ReadError, RangeError):
            raise
        except PILLOW_ERRORS as error:
            raise ReadError(f"the {kind.upper()} file is damaged or cut short: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What Pillow said, where that is one of its fixed sentences; else the kind of error (it might hold a path)."""
    text = str(error)
    known = re.match(
        r"(image file is truncated|broken PNG file|unrecognized data stream|cannot identify|decoder error)", text
    )
    return known.group(0) if known else type(error).__name__


def refuse_size(width: int, height: int, count: int = 1) -> None:
    if width * height * count > MAX_PIXELS:
        raise ReadError(
            f"the picture has {width:,} x {height:,} pixels in {count} pages, allowed are {MAX_PIXELS:,} in all. "
            f"Cut it into patches first."
        )


def pixels_of(image: Image.Image) -> np.ndarray:
    """The decoded, upright picture as (C, H, W), a view of Pillow's row order."""
    refuse_size(*image.size)
    if image.mode in REFUSED_MODES:
        raise ReadError(f"the picture is {image.mode}, a print or lab colour space; convert it to RGB with its profile")
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "RGB", "I", "I;16", "I;16B", "F") or image.has_transparency_data:
        image = _flatten(image)
    array = np.asarray(image)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _flatten(image: Image.Image) -> Image.Image:
    """Palette and alpha resolved: grey stays grey, transparent parts become black."""
    grey = image.mode in ("LA", "La", "L") or (image.mode in ("P", "PA") and _has_grey_palette(image))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return image.convert("RGB").getchannel("R") if grey else image.convert("RGB")


def _has_grey_palette(image: Image.Image) -> bool:
    palette = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())


def range_of(arrays: list[np.ndarray]) -> ValueRange:
    if all(array.dtype == np.uint8 for array in arrays):
        return UINT8
    if all(array.dtype == np.uint16 for array in arrays):
        return UINT16
    low = min(float(array.min()) for array in arrays)
    high = max(float(array.max()) for array in arrays)
    if not np.isfinite([low, high]).all():
        raise RangeError(f"{sum(int((~np.isfinite(array)).sum()) for array in arrays):,} pixels are NaN or infinite")
    return ValueRange(low, max(high, low + 1), "raw")
