"""A folder of phantoms: NIfTI volumes and masks, reports, truth, and a table that `medisyn curate` reads.

    out/<key>/ct.nii.gz         HU, int16; the affine places it in RAS millimetres
    out/<key>/<mask>.nii.gz     lobe, airway, vessel, heart, aorta, effusion, finding: uint8, on the same grid
    out/<key>/report.txt        FINDINGS: ... / IMPRESSION: ...
    out/<key>/truth.json        who the patient is, what is wrong with him, and what is true of him
    out/table.csv               one row per phantom, without nesting
    out/phantoms.jsonl          one line per phantom: the content of its truth.json
    out/source.yaml             a source description: `medisyn curate out/source.yaml --out corpus/`
    out/run.json                what was asked for

A phantom's folder is whole or absent, and the same command makes what is missing.
Shapes here: D, H, W voxels; I, J, K file axes with I = W, J = H, K = D.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError
from medisyn.geometry import flip_lps_ras
from medisyn.parallel import map_shards
from medisyn.phantoms.findings import KINDS, SIDELESS, WORDS, Finding, draw_findings
from medisyn.phantoms.thorax import Phantom, make_thorax
from medisyn.seeding import seed_for

KIND = "phantom-ct"
VERSION = 1  # raised when the same seed makes another patient: finished folders are then made again
MASKS = ("lobe", "airway", "vessel", "heart", "aorta", "effusion", "finding")
PER_TASK = 4
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
class Task:
    """Some phantoms for one process."""

    out: Path
    keys: tuple[str, ...]
    settings: Settings


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

    findings  the kinds that main findings are drawn from, evenly; "none" is a patient without any
    progress  called with (done, total) phantoms

    Raises InputError for a count below 1, and when `out` holds anything else or phantoms of other settings;
    BusyError when another process writes there.
    """
    out, settings = Path(out), Settings(size, seed, tuple(findings))
    if count < 1:
        raise InputError(f"phantoms: the count must be at least 1, got {count}")
    draw_findings(0, settings.findings)  # refuses unknown kinds before anything is written
    with runs.lock(out):
        _claim(out, settings)
        keys = [f"thorax-{number:06d}" for number in range(count)]
        for key in keys:
            runs.recover_folder(out / key)
        missing = [key for key in keys if not _is_there(out, key, settings)]
        tasks = [Task(out, tuple(missing[i : i + PER_TASK]), settings) for i in range(0, len(missing), PER_TASK)]
        done = count - len(missing)
        for _, made in map_shards(write_task, tasks, engine):
            done += made
            if progress is not None:
                progress(done, count)
        records = [json.loads((out / key / "truth.json").read_text()) for key in keys]
        _write_tables(out, settings, records)
    with_finding = Counter(kind for record in records for kind in (_kinds(record) or ["none"]))
    ordered = {kind: with_finding[kind] for kind in (*KINDS, "none") if with_finding[kind]}
    return PhantomReport(out, count, count - len(missing), ordered)


def write_task(task: Task) -> int:
    """Make and write the phantoms of one task; returns how many."""
    for key in task.keys:
        seed = seed_for(task.settings.seed, key)
        phantom = make_thorax(seed, task.settings.size, draw_findings(seed, task.settings.findings))
        record = {"key": key, **_asked(key, task.settings), **record_of(phantom)}
        with runs.atomic_folder(task.out / key) as folder:
            write_phantom(folder, phantom)
            (folder / "truth.json").write_text(json.dumps(record, indent=2) + "\n")
    return len(task.keys)


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
    return {
        "version": VERSION,
        "seed": seed_for(settings.seed, key),
        "size": settings.size,
        "drawn_from": list(settings.findings),
    }


def _is_there(out: Path, key: str, settings: Settings) -> bool:
    """True when the phantom's folder is there and is what is asked for; a damaged one is made again."""
    try:
        record = json.loads((out / key / "truth.json").read_text())
    except (FileNotFoundError, ValueError):
        return False
    files = [out / key / name for name in ("ct.nii.gz", "report.txt", *(f"{mask}.nii.gz" for mask in MASKS))]
    asked = _asked(key, settings)
    return all(record.get(name) == value for name, value in asked.items()) and all(file.exists() for file in files)


def _claim(out: Path, settings: Settings) -> None:
    """Make `out` the folder of these settings, or refuse."""
    run = runs.read_run(out)
    if run is None:
        if any(not path.name.startswith(".") for path in out.iterdir()):
            raise InputError(f"{out.name}/ holds files that are not of `medisyn phantom`. Choose another --out")
        runs.write_run(out, kind=KIND, **asdict(settings))
        return
    if run.get("kind") != KIND:
        raise InputError(f"{out.name}/ holds a {run.get('kind', 'different')} run; choose another --out")
    for name, value in json.loads(json.dumps(asdict(settings))).items():
        if run.get(name) != value:
            raise InputError(
                f"{out.name}/ holds phantoms with {name} {run.get(name)}, now it is {value}. Choose another --out"
            )


def _kinds(record: dict[str, Any]) -> list[str]:
    return [finding["kind"] for finding in record["findings"]]


def _write_tables(out: Path, settings: Settings, records: Sequence[dict[str, Any]]) -> None:
    """table.csv, phantoms.jsonl, source.yaml and run.json."""
    rows = [_row(record) for record in records]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    runs.write_text(out / "table.csv", text.getvalue())
    runs.write_text(out / "phantoms.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    every = max(1, settings.size // 32)
    source = SOURCE.format(
        name=f"phantom_ct_{settings.size}", size=settings.size, picture=max(64, settings.size), every=every
    )
    runs.write_text(out / "source.yaml", source)
    runs.write_run(out, kind=KIND, **asdict(settings), phantoms=len(records), version=VERSION)


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
