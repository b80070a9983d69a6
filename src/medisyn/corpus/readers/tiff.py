"""TIFF, BigTIFF and OME-TIFF into pictures and stacks.

Shapes here: C channels, T pages, H, W height and width.
tifffile reads the structure. Pixels come from Pillow (one plane of bytes, one 16-bit channel), from its JPEG decoder
tile by tile (libtiff refuses the subsampled JPEG that microscope software writes as "RGB"), else from tifffile.
"""

from __future__ import annotations

import io
import re
from typing import Any, BinaryIO

import numpy as np
from PIL import ImageFile, JpegImagePlugin, TiffImagePlugin

from medisyn.corpus.readers.image import pixels_of, range_of, refuse_size
from medisyn.errors import ReadError
from medisyn.types import Clip, Item, Picture

JPEG = 7
RGB, WHITE_IS_ZERO, BLACK_IS_ZERO = 2, 0, 1
ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"  # an APP14 segment: the components are RGB


def read_tiff(stream: BinaryIO) -> Item:
    """The pages that are as large as the largest: one is a Picture, several are a Clip.

    Smaller pages (pyramid levels, thumbnails, slide labels) are left out and counted as "pages_ignored".
    """
    import tifffile

    with tifffile.TiffFile(stream, name="picture") as structure:  # it logs the name, which may be a patient's
        pages: list[Any] = list(structure.pages)
        sizes = [(page.imagewidth, page.imagelength) for page in pages]
        largest = max(sizes, key=lambda size: size[0] * size[1])
        full = [index for index, size in enumerate(sizes) if size == largest]
        refuse_size(*largest, count=len(full))
        spacing_mm = ome_spacing(structure.ome_metadata or "")
        if _is_for_pillow(pages[full[0]]):
            stream.seek(0)
            with TiffImagePlugin.TiffImageFile(stream) as image:
                arrays = [_seek_pixels(image, index) for index in full]
        elif pages[full[0]].compression == JPEG:
            arrays = [_jpeg_pixels(pages[index], stream) for index in full]
        else:
            arrays = [_plain_pixels(pages[index]) for index in full]
    if len({(array.shape, array.dtype) for array in arrays}) > 1:
        raise ReadError(f"the TIFF stack mixes grey and colour in its {len(arrays)} pages; split it into files")
    provenance = {"format": "tiff", "pages_ignored": len(sizes) - len(full)}
    if len(arrays) == 1:
        return Picture(arrays[0], range_of(arrays), spacing_mm, provenance)
    return Clip(np.stack(arrays, axis=1), range_of(arrays), None, provenance)


def ome_spacing(description: str) -> tuple[float, float] | None:
    """(row, column) millimetres per pixel from OME-XML; None where it has none or another unit than µm, mm, nm."""
    found = []
    for axis in "YX":
        size = re.search(rf'PhysicalSize{axis}="([0-9.eE+-]+)"', description)
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', description)
        scale = {"µm": 1e-3, "mm": 1.0, "nm": 1e-6}.get(unit.group(1) if unit else "µm")
        if size is None or scale is None:
            return None
        found.append(float(size.group(1)) * scale)
    return found[0], found[1]


def _is_for_pillow(page: Any) -> bool:
    is_one_plane_of_bytes = page.planarconfig == 1 and page.dtype in (np.uint8, np.bool_)
    is_grey_16 = page.dtype == np.uint16 and page.samplesperpixel == 1 and page.photometric == BLACK_IS_ZERO
    return page.compression != JPEG and (is_one_plane_of_bytes or is_grey_16)


def _seek_pixels(image: ImageFile.ImageFile, index: int) -> np.ndarray:
    image.seek(index)
    return pixels_of(image)


def _jpeg_pixels(page: Any, stream: BinaryIO) -> np.ndarray:
    """A page of JPEG tiles or strips as (C, H, W)."""
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    if samples not in (1, 3) or page.planarconfig != 1 or page.dtype != np.uint8:
        raise ReadError(f"JPEG inside TIFF is read with 1 or 3 channels of 8 bits, this has {samples} of {page.dtype}")
    tile_width, tile_height = (page.tilewidth, page.tilelength) if page.is_tiled else (width, page.rowsperstrip)
    across = -(-width // tile_width)
    array_HWC = np.zeros((height, width, samples), np.uint8)
    for number, (offset, length) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
        stream.seek(offset)
        tile = _decode_jpeg(stream.read(length), page)
        top, left = number // across * tile_height, number % across * tile_width
        part_HWC = array_HWC[top : top + tile_height, left : left + tile_width]
        part_HWC[:] = tile.reshape(*tile.shape[:2], samples)[: part_HWC.shape[0], : part_HWC.shape[1]]
    return array_HWC.transpose(2, 0, 1)


def _decode_jpeg(content: bytes, page: Any) -> np.ndarray:
    """One tile; its tables may stand once in the page, and RGB must be said where neither JFIF nor Adobe says it."""
    if page.jpegtables:
        content = page.jpegtables[:-2] + content[2:]
    if page.photometric == RGB and b"JFIF" not in content[:32] and b"Adobe" not in content[:1024]:
        content = content[:2] + ADOBE_RGB + content[2:]
    with JpegImagePlugin.JpegImageFile(io.BytesIO(content)) as image:
        return np.asarray(image)


def _plain_pixels(page: Any) -> np.ndarray:
    """A page decoded by tifffile as (C, H, W): white-is-zero turned round, 16-bit colour as its high byte."""
    array = page.asarray()
    if page.axes not in ("YX", "YXS", "SYX"):
        raise ReadError(f"a TIFF page with the axes {page.axes} is no picture")
    array_CHW = array[None] if page.axes == "YX" else array.transpose(2, 0, 1) if page.axes == "YXS" else array
    if array_CHW.shape[0] not in (1, 3):
        raise ReadError(f"the TIFF page has {array_CHW.shape[0]} channels, readable are 1 and 3; choose channels first")
    if page.photometric == WHITE_IS_ZERO and array.dtype.kind == "u":
        array_CHW = np.iinfo(array.dtype).max - array_CHW
    if array.dtype == np.uint16 and array_CHW.shape[0] == 3:
        return (array_CHW >> 8).astype(np.uint8)
    return array_CHW.astype(np.float32) if array.dtype.kind == "f" else array_CHW
