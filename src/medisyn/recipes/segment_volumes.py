"""`medisyn generate segment`: lobes, airways and vessels of a given CT, with its report and without.

The CT is kept at every step, so what the model fills in are the masks (MedSyn, section V-D). They may be drawn several
times and put together; `families.medsyn.segmentation` says how.

    out/<key>-<arm>-<mask>.nii.gz   lobe, airway, vessel on the scan's own grid; arm is "report" or "alone"
    out/<key>-<arm>.json            the record, with the Dice of each mask; written last
    out/planes/<key>-<arm>.png      the CT with the masks outlined
    out/metadata.jsonl, requests.jsonl, run.json   as for generated volumes
    out/report/                     report.html and result.json, where truth masks lie beside a CT

Keys are the order of the CTs, never file names. Shapes here: D, H, W voxels of the scan; d, h, w of the model's grid.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError
from medisyn.generation import folder as generated_folder
from medisyn.generation import provenance
from medisyn.generation.generate import batches_of
from medisyn.generation.prompts import Defaults
from medisyn.recipes.fixed_channels import NO_REPORT, Fixing, open_ct_model
from medisyn.recipes.medsyn_corpus import MASKS, TABLE_SUFFIXES, VOLUME_SUFFIX, CtFiles, find_cts
from medisyn.recipes.segment_table import ARMS, write_dice_page
from medisyn.seeding import seed_for
from medisyn.types import Request, Sample, Volume

if TYPE_CHECKING:
    from medisyn.families.medsyn.config import Grid

NOTICE = "Masks of a generative model. Not for diagnostic use."


@dataclass(frozen=True)
class Scan:
    """A CT on its own grid, with its report ("" where there is none) and the truth masks that lie beside it."""

    key: str
    volume: Volume
    report: str
    truth: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class SegmentReport:
    """What one call did. `dice[arm][mask]` has one value per CT that has both arms' masks and a truth."""

    out: Path
    made: int
    skipped: int
    seconds: float
    dice: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "out": str(self.out)}

    def summary(self) -> str:
        """A few lines for a terminal."""
        made = f"{self.made} made ({self.seconds / self.made:.1f} s each)" if self.made else "none left to make"
        there = f", {self.skipped} there before" if self.skipped else ""
        lines = [f"{self.out}: {self.made + self.skipped} segmentations, {made}{there}"]
        for arm, by_mask in self.dice.items():
            told = ", ".join(f"{name} {_mean_sd(values)}" for name, values in by_mask.items() if len(values))
            lines.append(f"Dice {ARMS[arm]}: {told}" if told else f"Dice {ARMS[arm]}: no truth masks beside the CT")
        return "\n".join(lines)


def segment_volumes(
    ct: Path | str,
    *,
    report: str | Path = "",
    model: str = "starter-ct",
    out: Path | str | None = None,
    seed: int = 0,
    steps: int | None = None,
    draws: int | None = None,
    guidance: float | None = None,
    solver: str | None = None,
    batch_size: int = 1,
    device: str = "auto",
    dtype: str = "auto",
) -> SegmentReport:
    """Segment CTs by keeping them fixed: once without a report, and once with it where there is one.

    ct      a NIfTI or NRRD file, or what `medisyn train medsyn-base` takes: a folder or zip of CTs or of one series
    report  a text for every CT, or a table with columns ct (file, as seen from the folder) and report; "" takes the
            report.txt or <name>.txt beside each CT
    steps   of the base model; None: the model's for segmentation
    draws   how often the masks of a CT are drawn; None: the model's

    The same call finishes what was interrupted. Raises InputError when there is no CT, or `out` belongs to other
    requests or another model; BusyError when another process writes there.
    """
    from medisyn.recipes.generate_images import default_folder, device_name

    if batch_size < 1:
        raise InputError(f"batch size must be at least 1, got {batch_size}")
    if draws is not None and draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}")
    corpus, found = _found(Path(ct))
    reports = _reports(report, found)
    family, facts, device, _ = open_ct_model(model, device, dtype, solver)
    usual = family.base.defaults
    defaults = Defaults(seed=seed, steps=usual.segment_steps if steps is None else steps, guidance=guidance)
    draws = usual.segment_draws if draws is None else draws
    reader = functools.lru_cache(maxsize=2)(lambda number: read_scan(corpus, found[number], reports))
    number_of = {files.key: number for number, files in enumerate(found)}
    requests = [
        family.resolve(request)
        for files in found
        for request in _requests(files, reader(number_of[files.key]).report, defaults, draws)
    ]
    asked = runs.digest([str(Path(ct).resolve()), [request.prompt for request in requests]])
    folder = Path(out) if out else default_folder("segment", defaults, {**facts, "asked": asked})
    fixing = Fixing(family, lambda request: _ct_channel(reader(number_of[request.metadata["ct"]]), family.grid))
    return _segment(
        requests,
        fixing,
        folder,
        lambda request: reader(number_of[request.metadata["ct"]]),
        facts,
        {"device": device_name(device), "processes": 1, "seed": seed, "batch_size": batch_size},
    )


def read_scan(corpus: Path, files: CtFiles, reports: Mapping[str, str]) -> Scan:
    """One CT in HU with its truth masks, on the scan's own grid."""
    from medisyn.recipes.medsyn_grid import mask_like

    volume = _volume(corpus, files.ct, files.key, "CT")
    if volume.value_range.unit != "hu":
        raise InputError(f"{files.key}: the volume is in {volume.value_range.unit!r}; a CT in HU is segmented")
    truth = {
        name: mask_like(_volume(corpus, member, files.key), volume, name, files.key).astype(np.uint8)
        for name, member in files.masks.items()
    }
    return Scan(files.key, volume, reports.get(files.key, "") or _beside(corpus, files), truth)


def onto_scan(masks: Mapping[str, np.ndarray], scan: Volume, grid: Grid, key: str) -> dict[str, np.ndarray]:
    """Masks of the model, (d, h, w) along S, P, L, on the scan's own grid (D, H, W) by nearest labels."""
    from scipy.ndimage import affine_transform

    into = np.linalg.inv(grid_affine(scan, grid, key)) @ scan.affine  # index in the scan -> index on the model's grid
    shape = scan.array_CDHW.shape[1:]
    return {
        name: affine_transform(mask_dhw, into[:3, :3], into[:3, 3], shape, order=0, mode="grid-constant", cval=0)
        for name, mask_dhw in masks.items()
    }


def grid_affine(scan: Volume, grid: Grid, key: str) -> np.ndarray:
    """The affine (d, h, w along S, P, L to LPS mm) of the model's grid where `medsyn_grid.place` puts it in a scan."""
    from medisyn.families.medsyn.channels import standing_affine, turn_to
    from medisyn.recipes.medsyn_grid import fits

    shape = np.asarray(scan.array_CDHW.shape[1:])
    if not fits(scan, grid, key):
        affine = standing_affine(grid)
        affine[:3, 3] += (scan.affine @ [*(shape - 1) / 2, 1.0])[:3]
        return affine
    turn = turn_to(scan.affine, grid.axes, key)
    step = int(shape[turn.order[0]] // grid.shape[0])
    index = np.zeros((4, 4))  # index along S, P, L -> index in the scan
    index[3, 3] = 1
    for column, (axis, turned, have, want) in enumerate(zip(turn.order, turn.flipped, grid.axes, "SPL", strict=True)):
        first, along = (0, step) if have == want else (step * (grid.shape[column] - 1), -step)
        index[axis, column] = -along if turned else along
        index[axis, 3] = shape[axis] - 1 - first if turned else first
    return scan.affine @ index


def dice_of(found: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Dice of each mask that the truth has; of lobes the mean over those that truth or model shows. NaN: both empty."""
    from medisyn.evaluation.anatomy import dice, lobe_dice

    scores = {name: dice(found[name], truth[name]) for name in MASKS if name in truth and name != "lobe"}
    if "lobe" in truth:
        each = [value for value in lobe_dice(found["lobe"], truth["lobe"]).values() if np.isfinite(value)]
        scores = {"lobe": float(np.mean(each)) if each else float("nan"), **scores}
    return scores


# Parts of the above


def _found(ct: Path) -> tuple[Path, tuple[CtFiles, ...]]:
    """The corpus that holds the CTs, and their files."""
    if not ct.exists():
        raise InputError(f"--ct: there is no file or folder {ct.name!r}")
    if not (ct.is_file() and VOLUME_SUFFIX.search(ct.name)):
        return ct, find_cts(ct)
    found = [files for files in find_cts(ct.parent) if files.ct == ct.name]
    if not found:
        raise InputError("--ct: the file named is a mask beside a CT; give the CT itself")
    return ct.parent, tuple(found)


def _reports(report: str | Path, found: Sequence[CtFiles]) -> dict[str, str]:
    """Key -> text, from what the user gave."""
    table = Path(report) if str(report).lower().endswith(TABLE_SUFFIXES) else None
    if table is None:
        return {files.key: str(report).strip() for files in found}
    from medisyn.corpus.table import read_table

    rows = read_table(table)
    missing = [name for name in ("ct", "report") if name not in rows[0]]
    if missing:
        raise InputError(f"{table.name}: there is no column {missing[0]!r}. Needed are ct and report")
    by_file, keys = {row["ct"]: row["report"].strip() for row in rows}, {files.ct: files.key for files in found}
    strangers = [number for number, row in enumerate(rows, start=1) if row["ct"] not in keys]
    if strangers:
        raise InputError(
            f"{table.name} row {strangers[0]}: no CT of --ct has this file name. Write it as seen from that folder"
        )
    return {keys[file]: text for file, text in by_file.items()}


def _volume(corpus: Path, member: str, key: str, modality: str | None = None) -> Volume:
    """A file of the corpus; "" is the corpus itself, as the slices of one series."""
    from medisyn.corpus.readers import read_item

    if not member:
        item = read_item(corpus)
    elif corpus.is_dir():
        item = read_item(corpus / member, modality=modality)
    else:
        item = read_item(corpus, member, modality=modality)
    if not isinstance(item, Volume) or item.array_CDHW.shape[0] != 1:
        raise InputError(f"{key}: this is no volume of one channel. Give a CT in HU, and masks of one channel")
    return item


def _beside(corpus: Path, files: CtFiles) -> str:
    from medisyn.recipes.medsyn_corpus import read_text

    return read_text(corpus, files.report).strip() if files.report is not None else ""


def _requests(files: CtFiles, report: str, defaults: Defaults, draws: int) -> list[Request]:
    """One request per arm; both arms of a CT start from the same noise."""
    texts = {"report": report, "alone": NO_REPORT} if report else {"alone": NO_REPORT}
    return [
        Request(
            key=f"{files.key}-{arm}",
            prompt=text,
            seed=seed_for(defaults.seed, files.key),
            steps=defaults.steps,
            guidance=defaults.guidance,
            metadata={"ct": files.key, "arm": arm, "fixed": "ct", "draws": draws},
        )
        for arm, text in texts.items()
    ]


def _masks(family: Fixing, batch: Sequence[Request]) -> list[dict[str, np.ndarray]]:
    """The masks of each request, put together from its draws; the first has the request's own seed."""
    import torch

    from medisyn.families.medsyn.segmentation import masks_of_draws

    drawn = [
        family.sample_and_mean(
            [replace(one, seed=seed_for(one.seed, f"draw-{number}") if number else one.seed) for one in batch]
        )
        for number in range(batch[0].metadata["draws"])
    ]
    draws_SBCDHW, means_SBCDHW = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    return [masks_of_draws(draws_SBCDHW[:, row], means_SBCDHW[:, row], family.grid) for row in range(len(batch))]


def _ct_channel(scan: Scan, grid: Grid) -> dict[str, Any]:
    from medisyn.families.medsyn.channels import channels_from_sample
    from medisyn.recipes.medsyn_grid import place

    placed = place(scan.volume, {}, grid, 1, scan.key)
    return {"ct": channels_from_sample(Sample(scan.key, placed.volume, ""), grid, ("ct",))[0]}


def _segment(
    requests: Sequence[Request],
    family: Fixing,
    out: Path,
    scan_of: Any,
    model: Mapping[str, str],
    settings: Mapping[str, Any],
) -> SegmentReport:
    """Sample and write what is missing, then the tables."""
    from tqdm import tqdm

    with runs.lock(out):
        timing = generated_folder.claim(out, requests, model, settings)
        records = _finished(out, requests)
        waiting = [request for request in requests if request.key not in records]
        skipped, started = len(records), time.perf_counter()
        try:
            with tqdm(total=len(waiting), unit="volume", disable=None, dynamic_ncols=True) as bar:
                for batch in batches_of(waiting, int(settings["batch_size"])):
                    masks = _masks(family, batch)
                    for request, found in zip(batch, masks, strict=True):
                        records[request.key] = _write(out, request, scan_of(request), found, family.grid, model)
                        bar.update()
        finally:  # also after Ctrl-C: what is there is listed
            made, seconds = len(records) - skipped, time.perf_counter() - started
            generated_folder.write_metadata(out, requests, records)
            timing = generated_folder.Timing(timing.pictures + made, round(timing.seconds + seconds, 3))
            generated_folder.write_run(out, requests, model, timing, settings)
        dice = _gathered([records[request.key] for request in requests])
        if any(len(values) > 1 for by_mask in dice.values() for values in by_mask.values()):
            write_dice_page(out / "report", dice, model)
    return SegmentReport(out, made, skipped, seconds, dice)


def _finished(out: Path, requests: Sequence[Request]) -> dict[str, dict[str, Any]]:
    """Key -> record of every request whose files are there."""
    paths = {request.key: out / f"{request.key}.json" for request in requests}
    masks = {key: [out / f"{key}-{name}.nii.gz" for name in MASKS] for key in paths}
    return {
        key: dict(json.loads(path.read_text())["medisyn"])
        for key, path in paths.items()
        if path.exists() and all(mask.exists() for mask in masks[key])
    }


def _write(
    out: Path, request: Request, scan: Scan, found: Mapping[str, np.ndarray], grid: Grid, model: Mapping[str, str]
) -> dict[str, Any]:
    """The masks on the scan's grid, the planes and the record of one request."""
    from medisyn.generation.volume_files import write_planes
    from medisyn.generation.volume_files.nifti import label_table, nifti_bytes

    masks = onto_scan(found, scan.volume, grid, scan.key)
    scores = dice_of(masks, scan.truth)
    depth, height, width = scan.volume.array_CDHW.shape[1:]
    record = {
        **provenance.record_of(request, model, size=(height, width)),
        "file_name": f"{request.key}-lobe.nii.gz",
        "notice": NOTICE,
        "depth": depth,
        "spacing_mm": list(scan.volume.spacing_mm),
        **{f"dice_{name}": round(value, 6) if np.isfinite(value) else None for name, value in scores.items()},
    }
    for name, mask in masks.items():
        told = {"medisyn": record, "mask": name, "labels": label_table(name)}
        path = out / f"{request.key}-{name}.nii.gz"
        runs.write_bytes(path, nifti_bytes(mask, scan.volume.affine, told, intent=name))
    write_planes(out / "planes" / f"{request.key}.png", scan.volume, record, masks)
    runs.write_json(out / f"{request.key}.json", {"medisyn": record})
    return record


def _gathered(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """arm -> mask -> one Dice per CT that has it in every arm that any CT has, so that arms compare CT by CT."""
    arms = [arm for arm in ARMS if any(record["arm"] == arm for record in records)]
    by_ct: dict[str, dict[str, Mapping[str, Any]]] = {}
    for record in records:
        by_ct.setdefault(record["ct"], {})[record["arm"]] = record
    whole = [one for one in by_ct.values() if len(one) == len(arms)]
    scored = {
        name: [one for one in whole if all(one[arm].get(f"dice_{name}") is not None for arm in arms)] for name in MASKS
    }
    return {arm: {name: [one[arm][f"dice_{name}"] for one in scored[name]] for name in MASKS} for arm in arms}


def _mean_sd(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread} (n = {len(values)})"
