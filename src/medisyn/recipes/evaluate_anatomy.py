"""`medisyn evaluate --anatomy`: what generated chest CTs show, measured in masks whose source is stated.

A folder of volumes is read as `medisyn phantom ct` and `medisyn generate` write them:

    <key>/ct.nii.gz     with lobe, airway, vessel, heart, effusion .nii.gz beside it
    <key>.nii.gz        with <key>-lobe.nii.gz, ... beside it

The prompt of a volume is "text" or "prompt" of its line in metadata.jsonl (file_name), else of its <key>.json, else
report.txt beside it. Shapes here: D, H, W voxels.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError, closest
from medisyn.evaluation.alignment import PromptPair
from medisyn.evaluation.anatomy_table import (
    MEASURES,
    Measured,
    PairAsked,
    measure_volume,
    pair_results,
    pairs_from_prompts,
    pairs_table,
    sources,
    summary_table,
    volumes_table,
)
from medisyn.recipes.anatomy_masks import ORGANS, Masks, check_source, masks_of
from medisyn.types import Volume

NIFTI = ".nii.gz"
PAIR_COLUMNS = ("measure", "present", "absent")


@dataclass(frozen=True)
class CtFile:
    """A generated CT, its prompt, and the mask files beside it."""

    key: str
    ct: Path
    prompt: str
    masks: Mapping[str, Path]


@dataclass(frozen=True)
class AnatomyEvaluation:
    """What was found in the volumes of a folder."""

    volumes: tuple[Measured, ...]
    pairs: tuple[tuple[PairAsked, PromptPair], ...]
    masks: str
    commands: tuple[str, ...]
    warnings: tuple[str, ...]
    page: Path

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; a quantity that could not be measured is null."""
        rows = [
            {**asdict(one), "values": {k: v if np.isfinite(v) else None for k, v in one.values.items()}}
            for one in self.volumes
        ]
        return {
            "kind": "anatomy",
            "masks": self.masks,
            "volumes": rows,
            "pairs": [{"asked": asdict(pair), "found": asdict(found)} for pair, found in self.pairs],
            "commands": list(self.commands),
            "warnings": list(self.warnings),
        }

    def summary(self) -> str:
        """A few lines for a terminal."""
        lines = [f"{len(self.volumes)} volumes; masks: {sources(self.volumes)}"]
        for pair, found in self.pairs:
            lines.append(
                f"{pair.name}, {MEASURES[pair.measure][0]}: present {found.mean_present:.4g} ± {found.sd_present:.3g} "
                f"(n = {found.n_present}), absent {found.mean_absent:.4g} ± {found.sd_absent:.3g} "
                f"(n = {found.n_absent}), p = {found.p:.2g}"
            )
        return "\n".join([*lines, *(f"Note: {warning}" for warning in self.warnings), f"Report: {self.page}"])


def evaluate_anatomy(
    folder: Path | str, *, masks: str = "own", pairs: str | Path = "auto", out: Path | None = None
) -> AnatomyEvaluation:
    """Measure the anatomy of every CT of a folder, and compare the arms of prompt pairs.

    masks  "own" (the files beside each CT), "classical" (our own segmenter, approximate), "lungmask" or
           "totalsegmentator" (the program on PATH)
    pairs  "auto": findings that prompts name and deny; or a CSV with measure, present, absent (prompts, word for word)
           and, optional, name, direction (higher, lower), normal_low, normal_high
    """
    from tqdm import tqdm

    folder = Path(folder)
    out = folder.with_name(f"{folder.name}-anatomy") if out is None else out
    check_source(masks)
    files = find_volumes(folder)
    measured: list[Measured] = []
    commands: list[str] = []
    for file in tqdm(files, desc="anatomy", unit="volume", disable=None):
        one, found = _measure(file, masks)
        measured.append(one)
        commands += found.commands
    asked = pairs_from_prompts(measured) if str(pairs) == "auto" else read_pairs(Path(pairs), measured)
    results = pair_results(measured, asked)
    result = AnatomyEvaluation(
        tuple(measured),
        tuple(results),
        masks,
        tuple(commands),
        _warnings(measured, results, masks),
        out / "report.html",
    )
    _write(out, result)
    return result


def find_volumes(folder: Path) -> list[CtFile]:
    """The CTs of a folder with their prompts and mask files, by key. InputError when there is none."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder.name}/ to evaluate")
    records = {str(record.get("file_name")): record for record in runs.read_jsonl(folder / "metadata.jsonl")}
    files = []
    for path in sorted(folder.rglob(f"*{NIFTI}")):
        stem = path.name.removesuffix(NIFTI)
        if stem == "ct":
            key, beside = path.parent.relative_to(folder).as_posix(), ""
        elif stem in _MASK_NAMES or any((path.parent / f"{head}{NIFTI}").exists() for head in _heads(stem)):
            continue  # a mask
        else:
            key, beside = path.relative_to(folder).as_posix().removesuffix(NIFTI), f"{stem}-"
        masks = {name: path.parent / f"{beside}{name}{NIFTI}" for name in ORGANS}
        there = {name: mask for name, mask in masks.items() if mask.is_file()}
        files.append(
            CtFile(key, path, _prompt(path, stem, records.get(path.relative_to(folder).as_posix(), {})), there)
        )
    if not files:
        raise InputError(f"{folder.name}/ holds no CT: <key>/ct.nii.gz or <key>.nii.gz is looked for")
    return files


_MASK_NAMES = (*ORGANS, "aorta", "finding", "lung", "body")


def _heads(stem: str) -> list[str]:
    """The CTs that a file name could be a mask of: "a-b" for "a-b-lobe"."""
    head, _, last = stem.rpartition("-")
    return [head] if head and last in _MASK_NAMES else []


def _prompt(path: Path, stem: str, record: Mapping[str, Any]) -> str:
    """The prompt of a volume, or "" where none is on record."""
    if record:
        return str(record.get("text") or record.get("prompt") or "")
    sidecar, report = path.with_name(f"{stem}.json"), path.with_name("report.txt")
    if sidecar.is_file():
        content = json.loads(sidecar.read_text())
        return str(content.get("medisyn", content).get("prompt") or "")
    return report.read_text() if stem == "ct" and report.is_file() else ""


def _measure(file: CtFile, source: str) -> tuple[Measured, Masks]:
    from medisyn.corpus.readers import read_item
    from medisyn.evaluation.segment_ct.frame import framed

    volume = read_item(file.ct, modality="CT")
    if not isinstance(volume, Volume) or volume.array_CDHW.shape[0] != 1:
        raise InputError(f"{file.key}: this is no CT volume with one channel")
    found = masks_of(source, file.ct, volume, file.masks, file.key)
    _, frame = framed(volume)  # turns the axes: widths are counted from side to side
    turned = {name: frame.turned(mask) for name, mask in found.masks.items()}
    spacing = tuple(volume.spacing_mm[axis] for axis in frame.order)
    values = measure_volume(frame.turned(volume.array_CDHW[0]), turned, spacing)  # type: ignore[arg-type]
    return Measured(file.key, file.prompt, values, f"{found.source} ({', '.join(found.masks)})", found.notes), found


def read_pairs(path: Path, volumes: Sequence[Measured]) -> list[PairAsked]:
    """Pairs from a CSV: the volumes of an arm are those with exactly this prompt, spaces aside.

    Raises InputError for a missing file or column, an unknown measure, a prompt that no volume has and a normal range
    that is no two numbers.
    """
    if not path.is_file():
        raise InputError(f"--pairs {path.name}: there is no such file; give a CSV or auto")
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    lacking = [name for name in PAIR_COLUMNS if not rows or name not in rows[0]]
    if lacking:
        raise InputError(f"{path.name}: columns {', '.join(lacking)} are missing; needed: {', '.join(PAIR_COLUMNS)}")
    return [_pair(row, number, path.name, volumes) for number, row in enumerate(rows, start=1)]


def _pair(row: Mapping[str, str], number: int, table: str, volumes: Sequence[Measured]) -> PairAsked:
    measure = row["measure"].strip()
    if measure not in MEASURES:
        raise InputError(
            f"{table} row {number}: measure {measure!r} is unknown.{closest(measure, MEASURES)} "
            f"Allowed: {', '.join(MEASURES)}"
        )
    arms = []
    for arm in ("present", "absent"):
        wanted = " ".join(row[arm].split())
        keys = tuple(one.key for one in volumes if " ".join(one.prompt.split()) == wanted)
        if not keys:
            raise InputError(f"{table} row {number}: no volume has the {arm} prompt {wanted[:80]!r}")
        arms.append(keys)
    low, high = (row.get("normal_low") or "").strip(), (row.get("normal_high") or "").strip()
    try:
        normal = (float(low), float(high)) if low or high else None
    except ValueError:
        raise InputError(f"{table} row {number}: normal_low and normal_high must be two numbers") from None
    direction = (row.get("direction") or "").strip() or "higher"
    return PairAsked((row.get("name") or "").strip() or f"pair {number}", measure, arms[0], arms[1], direction, normal)


def _warnings(
    volumes: Sequence[Measured], results: Sequence[tuple[PairAsked, PromptPair]], masks: str
) -> tuple[str, ...]:
    notes = []
    if masks == "own":
        notes.append("The masks are the model's own: they show what it meant to draw, not what a reader would see.")
    if masks == "classical":
        notes.append(
            "The masks are those of a classical, approximate segmenter. Its errors on phantoms are in benchmarks/; "
            "heart and fluid are estimates."
        )
    absent = [
        title for name, (title, _) in MEASURES.items() if not any(np.isfinite(one.values[name]) for one in volumes)
    ]
    if absent:
        notes.append(f"Not measured, because the source gives no such mask: {'; '.join(absent)}.")
    if not results:
        notes.append("No pair of prompts: none that names a finding has one beside it that denies it (2 volumes each).")
    if any(min(found.n_present, found.n_absent) < 32 for _, found in results):
        notes.append("A pair has fewer than 32 volumes in an arm, the number of the MedSyn paper.")
    return tuple(notes)


def _write(out: Path, result: AnatomyEvaluation) -> None:
    """report.html, result.json, the CSV tables and run.json."""
    from medisyn.evaluation.report import Page, write_report

    volumes = result.volumes
    tables = [pairs_table(volumes, result.pairs)] if result.pairs else []
    tables += [summary_table(volumes), volumes_table(volumes)]
    commands = tuple(dict.fromkeys(result.commands))
    page = Page(
        title="Anatomy of generated chest CTs",
        facts=(
            ("Volumes", str(len(volumes))),
            ("Masks", sources(volumes)),
            *((("Commands", "; ".join(commands[:6])),) if commands else ()),
        ),
        tables=tuple(tables),
        methods=(
            "Volumes count voxels. Low attenuation is the share of lung voxels without airways below -950 or -910 HU; "
            "noise and a sharp kernel raise it. The cardiothoracic ratio is the greatest width of the heart over that "
            "of lungs and fluid in the same axial slice. Tree length is that of the skeleton of the airway mask.",
        ),
        warnings=result.warnings,
    )
    write_report(out, page, result.as_dict())
    runs.write_run(out, kind="evaluate anatomy", masks=result.masks, volumes=len(volumes))
