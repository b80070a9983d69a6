"""A folder of phantoms: NIfTI volumes and masks, reports, truth, and a table that `medisyn curate` reads.

    out/<key>/ct.nii.gz         HU, int16; the affine places it in RAS millimetres
    out/<key>/<mask>.nii.gz     lobe, airway, vessel, heart, aorta, effusion, finding: uint8, on the same grid
    out/<key>/report.txt        FINDINGS: ... / IMPRESSION: ...
    out/<key>/truth.json        who the patient is, what is wrong with him, and what is true of him
    out/table.csv               one row per phantom, without nesting
    out/phantoms.jsonl          one line per phantom: the content of its truth.json
    out/source.yaml             a source description: `medisyn curate out/source.yaml --out corpus/`
    out/run.json                what was asked for

How the folder is written and gone on with: many.py.
Shapes here: D, H, W voxels; I, J, K file axes with I = W, J = H, K = D.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medisyn.errors import InputError
from medisyn.geometry import flip_lps_ras
from medisyn.phantoms.findings import KINDS, SIDELESS, WORDS, Finding, draw_findings
from medisyn.phantoms.many import PhantomKind, write_many
from medisyn.phantoms.thorax import Phantom, make_thorax
from medisyn.seeding import seed_for

MASKS = ("lobe", "airway", "vessel", "heart", "aorta", "effusion", "finding")
IJK_FROM_DHW = np.eye(4)[[2, 1, 0, 3]]
SOURCE = """\
name: {name}
title: Thorax phantoms, {size} voxels a side, made by MediSyn
licence: CC0-1.0
attribution: made, not measured
url: none
public_ids: true
specialty: radiology
image_type: computed tomography
table: {{path: table.csv}}
file: "{{ct}}"
split: {{unit: patient, column: key}}
geometry: short-side-crop
size: {picture}
fields:
  finding: {{column: findings, separator: "|"}}
samples:
  - kind: slices
    plane: axial
    modality: CT
    every: {every}
    between: [0.25, 0.85]
    windows: {{lung: lung, mediastinal: mediastinum}}
    captions:
      - "Axial chest CT image, {{window}} window[, showing {{finding}}]"
    labels: ["{{window}} window", "{{finding}}"]
known_defects:
  - Phantoms, not patients. A caption names the findings of the volume; its slice need not show them.
"""


@dataclass(frozen=True)
class Settings:
    """What one run asks for."""

    size: int
    seed: int
    findings: tuple[str, ...]


@dataclass(frozen=True)
class PhantomReport:
    """What a call did: phantoms in the folder, how many were there before, and how many have each finding."""

    out: Path
    count: int
    there_before: int
    with_finding: dict[str, int]

    def text(self) -> str:
        """Two lines for a person."""
        counts = ", ".join(f"{name} {count}" for name, count in self.with_finding.items())
        return f"{self.count:,} phantoms in {self.out} ({self.there_before:,} were there before)\n{counts}"


def write_phantoms(
    out: Path | str,
    count: int,
    *,
    size: int = 64,
    seed: int = 0,
    findings: Sequence[str] = (*KINDS, "none"),
    engine: str = "inline",
    progress: Callable[[int, int], None] | None = None,
) -> PhantomReport:
    """Make `count` phantoms in `out`; each patient follows from `seed` and its own number, so more may be added later.

    findings  the kinds that main findings are drawn from, evenly, one that stands twice twice as often; "none" is a
              patient without any
    progress  called with (done, total) phantoms

    Raises InputError for a count below 1, and when `out` holds anything else or phantoms of other settings;
    BusyError when another process writes there.
    """
    out, settings = Path(out), Settings(size, seed, tuple(findings))
    if count < 1:
        raise InputError(f"phantoms: the count must be at least 1, got {count}")
    draw_findings(0, settings.findings)  # refuses unknown kinds before anything is written
    records, there_before = write_many(THORAXES, out, count, settings, engine, progress)
    with_finding = Counter(kind for record in records for kind in (_kinds(record) or ["none"]))
    ordered = {kind: with_finding[kind] for kind in (*KINDS, "none") if with_finding[kind]}
    return PhantomReport(out, count, there_before, ordered)


def _make(folder: Path, key: str, settings: Settings) -> dict[str, Any]:
    seed = seed_for(settings.seed, key)
    phantom = make_thorax(seed, settings.size, draw_findings(seed, settings.findings))
    write_phantom(folder, phantom)
    return record_of(phantom)


def write_phantom(folder: Path, phantom: Phantom) -> None:
    """The CT, the masks and the report of one phantom, into a folder that exists."""
    affine = phantom.volume.affine
    hu_DHW = np.rint(phantom.volume.array_CDHW[0]).astype(np.int16)
    (folder / "ct.nii.gz").write_bytes(nifti_bytes(hu_DHW, affine))
    for name in MASKS:
        (folder / f"{name}.nii.gz").write_bytes(nifti_bytes(phantom.masks[name], affine))
    (folder / "report.txt").write_text(phantom.report + "\n")


def nifti_bytes(array_DHW: np.ndarray, affine: np.ndarray) -> bytes:
    """A gzipped NIfTI file of an LPS array; the same array gives the same bytes."""
    import nibabel

    image = nibabel.Nifti1Image(array_DHW.transpose(2, 1, 0), flip_lps_ras(affine @ IJK_FROM_DHW))
    image.set_sform(image.affine, code="scanner")
    image.set_qform(image.affine, code="scanner")
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def record_of(phantom: Phantom) -> dict[str, Any]:
    """All that is known of a phantom, as plain values."""
    return {
        "findings": [asdict(finding) for finding in phantom.findings],
        "truth": dict(phantom.truth),
        "findings_text": phantom.findings_text,
        "impression_text": phantom.impression_text,
    }


def _asked(key: str, settings: Settings) -> dict[str, Any]:
    """What makes a finished folder the one that is asked for."""
    return {"seed": seed_for(settings.seed, key), "size": settings.size, "drawn_from": list(settings.findings)}


def _kinds(record: dict[str, Any]) -> list[str]:
    return [finding["kind"] for finding in record["findings"]]


def _source(settings: Settings) -> str:
    every, picture = max(1, settings.size // 32), max(64, settings.size)
    return SOURCE.format(name=f"phantom_ct_{settings.size}", size=settings.size, picture=picture, every=every)


def label_columns() -> tuple[str, ...]:
    """The columns of table.csv that say what is there: 0 absent, 1/3 mild, 2/3 moderate, 1 severe."""
    return tuple(name for kind in KINDS for name in _grades(kind, None))


def _grades(kind: str, finding: dict[str, Any] | None) -> dict[str, float]:
    """The grade of a finding on each side, or as a whole where it has none."""
    grade = 0.0 if finding is None else round((WORDS.index(Finding(**finding).word) + 1) / len(WORDS), 4)
    if kind in SIDELESS:
        return {f"grade_{kind}": grade}
    sides = () if finding is None else Finding(**finding).sides
    return {f"grade_{side}_{kind}": grade if side in sides else 0.0 for side in ("left", "right")}


def _row(record: dict[str, Any]) -> dict[str, Any]:
    """One flat row: paths, report, findings, and the figures of the truth."""
    key, truth = record["key"], record["truth"]
    by_kind = {finding["kind"]: finding for finding in record["findings"]}
    row: dict[str, Any] = {"key": key, "ct": f"{key}/ct.nii.gz"}
    row |= {f"mask_{name}": f"{key}/{name}.nii.gz" for name in MASKS}
    row |= {"findings": "|".join(kind.replace("_", "-") for kind in by_kind), "seed": record["seed"]}
    for kind in KINDS:
        row[f"{kind}_side"] = by_kind[kind]["side"] if kind in by_kind else ""
        row[f"{kind}_severity"] = by_kind[kind]["severity"] if kind in by_kind else ""
        row |= _grades(kind, by_kind.get(kind))
    row |= {name: value for name, value in truth.items() if not isinstance(value, dict)}
    row |= {f"lobe_ml_{name.replace(' ', '_')}": value for name, value in truth["lobe_ml"].items()}
    return row | {"findings_text": record["findings_text"], "impression_text": record["impression_text"]}


THORAXES = PhantomKind(
    run="phantom-ct",
    prefix="thorax",
    version=2,
    files=("ct.nii.gz", "report.txt", *(f"{mask}.nii.gz" for mask in MASKS)),
    per_task=4,
    asked=_asked,
    make=_make,
    row=_row,
    source=_source,
)
