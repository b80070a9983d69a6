"""MetaImage files for tests, written by the format's description."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {"i1": "CHAR", "u1": "UCHAR", "i2": "SHORT", "u2": "USHORT", "i4": "INT", "f4": "FLOAT", "f8": "DOUBLE"}


def save(
    path: Path,
    array_KJI: np.ndarray,
    affine: np.ndarray | None = None,
    *,
    compressed: bool = False,
    big_endian: bool = False,
    **changes: Any,
) -> Path:
    """`affine` maps (i, j, k) to LPS mm. `changes` replace header values; None leaves a line out."""
    affine = np.eye(4) if affine is None else affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    head = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": big_endian,
        "CompressedData": compressed,
        "TransformMatrix": " ".join(map(str, (affine[:3, :3] / spacing).T.reshape(-1))),
        "Offset": " ".join(map(str, affine[:3, 3])),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",
        "ElementSpacing": " ".join(map(str, spacing)),
        "DimSize": " ".join(map(str, array_KJI.shape[::-1])),
        "ElementType": f"MET_{NAMES[array_KJI.dtype.str[1:]]}",
        **changes,
        "ElementDataFile": changes.get("ElementDataFile", "LOCAL"),
    }
    lines = [f"{name} = {value}\n" for name, value in head.items() if value is not None]
    data = array_KJI.astype(array_KJI.dtype.newbyteorder(">" if big_endian else "<")).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(lines).encode() + (zlib.compress(data) if compressed else data))
    return path
