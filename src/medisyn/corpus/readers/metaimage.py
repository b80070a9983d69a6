"""MetaImage (.mha, the format of SimpleITK and of the PI-CAI images) into volumes.

The header is text, one `Key = value` per line, and ends with ElementDataFile; the voxels follow. Axis i is the fastest.
ITK writes directions and offset in LPS millimetres: the first three numbers of TransformMatrix are where axis i points.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from medisyn.corpus.readers.archive import Entry
from medisyn.corpus.readers.nifti import DHW_FROM_IJK, refuse_voxels, volume_of
from medisyn.errors import ReadError
from medisyn.types import Volume

MOST_LINES = 1000
TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
# Older writers call the same three things by other names.
OTHER_NAMES = {
    "Rotation": "TransformMatrix", "Orientation": "TransformMatrix", "Position": "Offset", "Origin": "Offset",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}  # fmt: skip


def read_metaimage(entry: Entry, modality: str | None = None) -> Volume:
    """A MetaImage with three axes, one number per voxel and its voxels in the same file, plain or compressed.

    `modality` as in `nifti.read_nifti`. Raises ReadError for a damaged file, a detached header (.mhd), text voxels,
    several numbers per voxel, and where ElementSpacing, TransformMatrix or Offset is missing.
    """
    with entry.open() as stream:
        head = _header(stream)
        dtype, shape_KJI = _layout(head)
        affine = _affine(head)
        data = _data(stream.read(), int(np.prod(shape_KJI)) * dtype.itemsize, _is_true(head, "CompressedData"))
    array_DHW = np.frombuffer(data, dtype).reshape(shape_KJI).astype(dtype.newbyteorder("="), copy=False)
    if dtype.kind == "f" and dtype.itemsize == 8:
        array_DHW = array_DHW.astype(np.float32)
    return volume_of(array_DHW[None], affine @ DHW_FROM_IJK, modality, "metaimage")


def _header(stream: Any) -> dict[str, str]:
    """The keys up to ElementDataFile; a line of free text is passed over, as ITK does."""
    head: dict[str, str] = {}
    for _ in range(MOST_LINES):
        name, _, value = (part.strip() for part in stream.readline(4096).decode("latin-1").partition("="))
        head[OTHER_NAMES.get(name, name)] = value
        if name == "ElementDataFile":
            return head
    raise ReadError("the MetaImage header is damaged: it does not end")


def _layout(head: dict[str, str]) -> tuple[np.dtype[Any], tuple[int, int, int]]:
    if head["ElementDataFile"] != "LOCAL":
        raise ReadError("the MetaImage header points to another file; only .mha files that hold their data are read")
    if not _is_true(head, "BinaryData", "True") or head.get("ElementNumberOfChannels", "1") != "1":
        raise ReadError("the MetaImage file holds text or several numbers per voxel; readable is one binary number")
    if head.get("ElementType") not in TYPES:
        raise ReadError(f"the MetaImage ElementType is not readable; readable are {', '.join(TYPES)}")
    size_IJK = _numbers(head, "DimSize", int)
    if len(size_IJK) != 3:
        raise ReadError(f"the MetaImage file has {len(size_IJK)} axes; readable are 3")
    refuse_voxels(tuple(size_IJK))
    order = ">" if _is_true(head, "BinaryDataByteOrderMSB") else "<"
    i, j, k = size_IJK
    return np.dtype(order + TYPES[head["ElementType"]]), (k, j, i)


def _affine(head: dict[str, str]) -> np.ndarray:
    """From (i, j, k) to LPS mm."""
    missing = [name for name in ("ElementSpacing", "TransformMatrix", "Offset") if name not in head]
    if missing:
        raise ReadError(
            f"the MetaImage header lacks {', '.join(missing)}: where the voxels sit in the patient is unknown"
        )
    spacing, directions, offset = (_numbers(head, name) for name in ("ElementSpacing", "TransformMatrix", "Offset"))
    if (len(spacing), len(directions), len(offset)) != (3, 9, 3):
        raise ReadError("the MetaImage header is damaged: it places three axes by another count of numbers")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(directions, (3, 3)).T * spacing
    affine[:3, 3] = offset
    return affine


def _numbers(head: dict[str, str], name: str, kind: type[int] | type[float] = float) -> list[Any]:
    try:
        return [kind(part) for part in head.get(name, "").split()]
    except ValueError:
        raise ReadError(f"the MetaImage header is damaged: {name} must hold numbers") from None


def _is_true(head: dict[str, str], name: str, default: str = "False") -> bool:
    return head.get(name, default).lower() in ("true", "1")


def _data(stored: bytes, count: int, compressed: bool) -> bytes:
    """The `count` bytes of the voxels; a stream that unpacks to more is cut off before it fills the memory."""
    if compressed:
        try:
            stored = zlib.decompressobj().decompress(stored, count + 1)
        except zlib.error:
            raise ReadError("the MetaImage data is damaged: it cannot be unpacked") from None
    if len(stored) != count:
        raise ReadError(f"the MetaImage data holds {len(stored):,} bytes, its header asks for {count:,}")
    return stored
