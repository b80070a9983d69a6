"""The record that a volume's files carry, checked once, and what follows from it: UIDs and the short texts."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from medisyn.errors import InputError
from medisyn.generation.provenance import NOTICE, software
from medisyn.types import Volume

REQUIRED = ("prompt", "seed", "model", "model_digest")


def full_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with `software` and `notice`. Raises InputError when it does not say what made the volume."""
    missing = [name for name in REQUIRED if record.get(name) in (None, "")]
    if missing:
        raise InputError(
            f"the record of a generated volume lacks {', '.join(missing)}; needed are {', '.join(REQUIRED)}"
        )
    return {"software": software(), "notice": NOTICE, **record}


def record_json(record: Mapping[str, Any]) -> str:
    """Plain ASCII JSON, the same text for the same record."""
    return json.dumps(record, sort_keys=True, default=str)


def voxel_digest(volume: Volume, hu_DHW: np.ndarray) -> str:
    """SHA-256 of the voxels and where they lie: two grids of one volume are two series."""
    digest = hashlib.sha256(f"{hu_DHW.shape} {volume.affine.tolist()}".encode())
    digest.update(np.ascontiguousarray(hu_DHW, dtype="<i2").tobytes())
    return digest.hexdigest()


def uid(*parts: str) -> str:
    """A DICOM UID that follows from its parts: 2.25. and a version-5 UUID as a number (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(['medisyn', *parts])).int}"


def derivation(record: Mapping[str, Any], limit: int) -> str:
    """How the image was made, in at most `limit` bytes: a longer prompt is cut, and known by its SHA-256."""
    prompt = _printable(record["prompt"])
    digest = hashlib.sha256(str(record["prompt"]).encode()).hexdigest()
    text = (
        f"Synthetic image, not for diagnostic use. Made by {record['software']} with model {record['model']}, "
        f"weights {record['model_digest']}, seed {record['seed']}. Prompt (SHA-256 {digest}): "
    )
    if len((text + prompt).encode()) <= limit:
        return text + prompt
    mark = f" [cut; {len(prompt)} characters in all]"
    return _cut(text + prompt, limit - len(mark)) + mark


def long_string(value: Any) -> str:
    """A value as a DICOM long string (LO): 64 bytes, without the backslash that would part it in two."""
    return _cut(_printable(value).replace("\\", "/"), 64)


def _cut(text: str, limit: int) -> str:
    """As much as fits `limit` bytes of UTF-8: DICOM counts characters, but not all of its programs do."""
    return text.encode()[:limit].decode(errors="ignore")


def _printable(value: Any) -> str:
    """One line: DICOM text holds no control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())
