"""NIfTI-1: a CT in int16 HU and its masks, each with its record in a header extension, and one JSON file beside them.

    <stem>.nii.gz           the CT; written last, so that its presence says that the set is whole
    <stem>-<mask>.nii.gz    uint8 labels on the same grid
    <stem>.json             the record, the label tables and the grid, for programs that drop the extension

Shapes here: D, H, W voxels; I, J, K file axes with I = W, J = H, K = D.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError
from medisyn.generation.volume_files.grid import hu_int16
from medisyn.generation.volume_files.record import full_record, record_json
from medisyn.generation.volume_files.structures import STRUCTURES, checked_masks
from medisyn.geometry import flip_lps_ras
from medisyn.types import Volume

SUFFIX = ".nii.gz"
DESCRIPTION = b"Synthetic. Not for diagnostic use."  # the header's `descrip`: 80 bytes, kept by most programs
COMMENT = 6  # extension code for plain ASCII text
IJK_FROM_DHW = np.eye(4)[[2, 1, 0, 3]]


def write_nifti(
    path: Path, volume: Volume, record: Mapping[str, Any], masks: Mapping[str, np.ndarray] | None = None
) -> list[Path]:
    """Write the CT to `path` (which ends with .nii.gz), its masks and the JSON beside it; returns all paths, CT last.

    The affine is the volume's own, in RAS, as sform and qform with code 1 (scanner). The same input gives the same
    bytes. Raises InputError or RangeError before anything is written: see `hu_int16`, `checked_masks`, `full_record`.
    """
    if not path.name.endswith(SUFFIX) or path.name == SUFFIX:
        raise InputError(f"{path.name}: the file of a volume ends with {SUFFIX}")
    hu_DHW, content = hu_int16(volume), full_record(record)
    labels = checked_masks(volume, masks or {})
    stem = path.name.removesuffix(SUFFIX)
    written = []
    for name, mask_DHW in labels.items():
        told = {"medisyn": content, "mask": name, "labels": label_table(name)}
        written.append(path.with_name(f"{stem}-{name}{SUFFIX}"))
        runs.write_bytes(written[-1], nifti_bytes(mask_DHW, volume.affine, told, intent=name))
    sidecar = {
        "medisyn": content,
        "file": path.name,
        "unit": "HU",
        "shape_DHW": list(hu_DHW.shape),
        "spacing_mm_DHW": list(volume.spacing_mm),
        "affine_DHW_to_LPS_mm": volume.affine.tolist(),
        "masks": {name: {"file": f"{stem}-{name}{SUFFIX}", "labels": label_table(name)} for name in labels},
    }
    written.append(path.with_name(f"{stem}.json"))
    runs.write_text(written[-1], json.dumps(sidecar, indent=2, ensure_ascii=False, default=str) + "\n")
    runs.write_bytes(path, nifti_bytes(hu_DHW, volume.affine, {"medisyn": content, "unit": "HU"}))
    return [*written, path]


def nifti_bytes(array_DHW: np.ndarray, affine: np.ndarray, told: Mapping[str, Any], intent: str | None = None) -> bytes:
    """A gzipped NIfTI-1 file of an array with an LPS affine; `told` goes into the extension, `intent` names a mask."""
    import nibabel

    image = nibabel.Nifti1Image(array_DHW.transpose(2, 1, 0), flip_lps_ras(affine @ IJK_FROM_DHW))
    image.set_sform(image.affine, code="scanner")
    image.set_qform(image.affine, code="scanner")
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = DESCRIPTION
    if intent is not None:
        image.header.set_intent("label", name=intent)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(COMMENT, record_json(told).encode()))
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def label_table(mask: str) -> dict[str, str]:
    """Label -> what it is, background included."""
    return {"0": "background"} | {str(n): one.name for n, one in enumerate(STRUCTURES[mask], start=1)}
