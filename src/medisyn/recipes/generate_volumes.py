"""From requests to a folder of CT volumes with their masks, for models of the MedSyn family; resumable.

out/<key>.nii.gz               CT in HU; written last, so that its presence says that the item is whole
out/<key>-<mask>.nii.gz        lobe, airway, vessel
out/<key>.json                 the record, the label tables and the grid
out/planes/<key>.png           three planes in two windows, masks outlined
out/dicom/<key>/ct, seg.dcm    on request
out/metadata.jsonl, requests.jsonl, run.json   as for pictures
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn.errors import InputError
from medisyn.generation import folder, provenance
from medisyn.generation.generate import GenerateReport, batches_of
from medisyn.types import Request

if TYPE_CHECKING:
    import numpy as np

    from medisyn.families.medsyn.cascade import MedSyn
    from medisyn.types import Volume


@dataclass(frozen=True)
class VolumesReport(GenerateReport):
    """What one call of `generate_volumes` did."""

    def summary(self) -> str:
        """One line for a person."""
        made = f"{self.made} made ({self.seconds / self.made:.1f} s each)" if self.made else "none left to make"
        there = f", {self.skipped} there before" if self.skipped else ""
        return f"{self.out}: {self.made + self.skipped} CT volumes with masks, {made}{there}"


@dataclass(frozen=True)
class VolumeWriter:
    """Where the volumes of a run go, and what every record of theirs says."""

    out: Path
    model: Mapping[str, str]
    superres_steps: int | None
    lost_words: Mapping[str, str]  # prompt -> words
    dicom: bool

    def write(self, request: Request, volume: Volume, masks: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """All files of one item; returns its record."""
        from medisyn.generation.volume_files import write_dicom_ct, write_dicom_seg, write_nifti, write_planes

        record = self.record_of(request, volume)
        if self.dicom:
            write_dicom_ct(self.out / "dicom" / request.key / "ct", volume, record)
            if any(mask.any() for mask in masks.values()):
                write_dicom_seg(self.out / "dicom" / request.key / "seg.dcm", volume, masks, record)
        write_planes(self.out / "planes" / f"{request.key}.png", volume, record, masks)
        write_nifti(self.out / record["file_name"], volume, record, masks)
        return record

    def record_of(self, request: Request, volume: Volume) -> dict[str, Any]:
        """As the record of a picture, with depth, spacing (mm, D, H, W) and the steps of super-resolution."""
        depth, height, width = volume.array_CDHW.shape[1:]
        lost = self.lost_words.get(request.prompt, "")
        record = provenance.record_of(request, self.model, size=(height, width), lost_words=lost)
        return {
            **record,
            "file_name": f"{request.key}.nii.gz",
            "depth": depth,
            "spacing_mm": list(volume.spacing_mm),
            "superres_steps": self.superres_steps,
        }


def generate_volumes(
    requests: Sequence[Request],
    family: MedSyn,
    out: Path,
    *,
    model: Mapping[str, str],
    batch_size: int | None = None,
    lost_words: Mapping[str, str] | None = None,
    dicom: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> VolumesReport:
    """Write a CT with its masks for every request that has none yet; `requests` are resolved by the model.

    model: id, digest, solver and dtype, for every record. batch_size: volumes made at once; None: one.
    dicom: also a DICOM CT series and a segmentation of each.

    The same call finishes what was interrupted. Raises InputError when `out` belongs to other requests or another
    model, or a request asks for what this family cannot do; BusyError when another process writes there.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch size must be at least 1, got {batch_size}")
    for request in requests:
        check_request(request)
    superres_steps = family.base.defaults.superres_steps if family.superres is not None else None
    writer = VolumeWriter(out, model, superres_steps, lost_words or {}, dicom)
    settings = {**(settings or {}), "dicom": dicom}
    made, skipped, seconds = folder.complete(
        out,
        requests,
        model,
        settings,
        holds="volumes",
        patterns=["*.nii.gz"],
        there=lambda: finished(out, requests, dicom=dicom),
        make=lambda waiting, records: _make(waiting, family, batch_size or 1, writer, records),
    )
    return VolumesReport(out, made, skipped, 0, 0, seconds, writer.lost_words)


def refuse_options(given: Mapping[str, object], why: str) -> None:
    """Raise InputError for an option that was given and does not apply."""
    for option, value in given.items():
        if value:
            raise InputError(f"{option} does not apply: {why}. Leave it out")


def check_request(request: Request) -> None:
    """Raise InputError for what a MedSyn model would have to leave out silently; see also its `resolve`."""
    if request.negative_prompt and request.guidance == 1:
        raise InputError(
            f"request {request.key}: a negative prompt works through guidance, and guidance 1 is none. Raise it, for "
            f"example --guidance 3"
        )


def finished(out: Path, requests: Sequence[Request], *, dicom: bool) -> dict[str, dict[str, Any]]:
    """Key -> record of every request whose files are there."""
    records = {}
    for request in requests:
        wanted = [out / f"{request.key}.nii.gz", *([out / "dicom" / request.key / "ct"] if dicom else [])]
        sidecar = out / f"{request.key}.json"
        if all(path.exists() for path in [*wanted, sidecar]):
            records[request.key] = dict(json.loads(sidecar.read_text())["medisyn"])
    return records


def _make(
    waiting: Sequence[Request],
    family: MedSyn,
    batch_size: int,
    writer: VolumeWriter,
    records: dict[str, dict[str, Any]],
) -> None:
    """Sample and write batch by batch, with a progress bar on a terminal; `records` grows as items are whole."""
    from tqdm import tqdm

    with tqdm(total=len(waiting), unit="volume", disable=None, dynamic_ncols=True) as bar:
        for batch in batches_of(waiting, batch_size):
            latents = family.sample([replace(one, prompt=one.weighted_terms[0][0]) for one in batch])
            volumes: Any = family.decode(latents)
            for request, volume, masks in zip(batch, volumes, family.masks(latents), strict=True):
                records[request.key] = writer.write(request, volume, masks)
                bar.update()
