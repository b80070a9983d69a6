"""A folder of heart phantoms: clips, labels, captions, truth, and a table.

    out/<key>/clip.mkv      FFV1, grey, every frame on its own; bit-exact
    out/<key>/caption.txt   what a caption would say
    out/<key>/truth.json    what is true of the heart, and of the left ventricle in each frame
    out/<key>/masks.npz     labels_THW (numbers: beating.py) and sector_HW, uint8
    out/table.csv           one row per phantom, without lists
    out/phantoms.jsonl      one line per phantom: the content of its truth.json
    out/source.yaml         a source description: `medisyn curate out/source.yaml --out corpus/`
    out/run.json            what was asked for

A phantom's folder is whole or absent, and the same command makes what is missing. Shapes here: T frames, H, W pixels.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import ffv1, runs
from medisyn.errors import InputError
from medisyn.parallel import map_shards
from medisyn.phantoms.heart.beating import FRAMES_PER_SECOND, HeartPhantom, check_film, make_heart
from medisyn.phantoms.heart.case import GRADES, VIEWS, draw_case
from medisyn.seeding import seed_for

KIND = "phantom-ultrasound"
VERSION = 1  # raised when the same seed makes another heart: finished folders are then made again
FILES = ("clip.mkv", "caption.txt", "truth.json", "masks.npz")
PER_TASK = 8
SOURCE = """\
name: phantom_heart_{height}x{width}
title: Beating-heart phantoms, {frames} frames of {height} x {width} pixels, made by MediSyn
licence: CC0-1.0
attribution: made, not measured
url: none
public_ids: true
specialty: cardiology
image_type: ultrasound
table: {{path: table.csv}}
file: "{{clip}}"
split: {{unit: patient, column: key}}
size: {height}
fields:
  caption: {{column: caption}}
  grade: {{column: grade}}
  view: {{column: view}}
samples:
  - kind: clip
    aspect: {aspect}
    captions: ["{{caption}}"]
    labels: ["{{grade}}", "{{view}}"]
known_defects:
  - Phantoms, not patients.
"""


@dataclass(frozen=True)
class Settings:
    """What one run asks for."""

    size: tuple[int, int]
    frames: int
    frames_per_second: float
    seed: int
    grades: tuple[str, ...]
    views: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """Some phantoms for one process."""

    out: Path
    keys: tuple[str, ...]
    settings: Settings


@dataclass(frozen=True)
class HeartReport:
    """What a call did: phantoms in the folder, how many were there before, and how many are of each grade and view."""

    out: Path
    count: int
    there_before: int
    of_grade: dict[str, int]
    of_view: dict[str, int]
    with_effusion: int

    def text(self) -> str:
        """Three lines for a person."""
        grades, views = (
            ", ".join(f"{name} {n}" for name, n in counts.items()) for counts in (self.of_grade, self.of_view)
        )
        return (
            f"{self.count:,} heart phantoms in {self.out} ({self.there_before:,} were there before)\n"
            f"ejection fraction: {grades}\n{views}; with effusion {self.with_effusion}"
        )


def write_heart_phantoms(
    out: Path | str,
    count: int,
    *,
    size: tuple[int, int] = (64, 112),
    frames: int = 16,
    frames_per_second: float = FRAMES_PER_SECOND,
    seed: int = 0,
    grades: Sequence[str] = GRADES,
    views: Sequence[str] = VIEWS,
    engine: str = "inline",
    progress: Callable[[int, int], None] | None = None,
) -> HeartReport:
    """Make `count` heart phantoms in `out`; each follows from `seed` and its own number, so more may be added later.

    size           height and width of the clips, 48 to 1024
    grades, views  what is drawn from, evenly
    progress       called with (done, total) phantoms

    Raises InputError for a count below 1, for what cannot be filmed or drawn, and when `out` holds anything else or
    phantoms of other settings; BusyError when another process writes there.
    """
    settings = Settings((size[0], size[-1]), frames, float(frames_per_second), seed, tuple(grades), tuple(views))
    out = Path(out)
    if count < 1:
        raise InputError(f"heart phantoms: the count must be at least 1, got {count}")
    check_film(settings.size, frames, frames_per_second)
    draw_case(0, settings.grades, settings.views)  # refuses unknown words before anything is written
    with runs.lock(out):
        _claim(out, settings)
        keys = [f"heart-{number:06d}" for number in range(count)]
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
    return _report(out, count - len(missing), [record["truth"] for record in records])


def write_task(task: Task) -> int:
    """Make and write the phantoms of one task; returns how many."""
    asked = task.settings
    for key in task.keys:
        seed = seed_for(asked.seed, key)
        case = draw_case(seed, asked.grades, asked.views)
        phantom = make_heart(
            seed, case, size=asked.size, frames=asked.frames, frames_per_second=asked.frames_per_second
        )
        record = {"key": key, **_asked(key, asked), "caption": phantom.caption, "truth": dict(phantom.truth)}
        with runs.atomic_folder(task.out / key) as folder:
            write_heart_phantom(folder, phantom)
            (folder / "truth.json").write_text(json.dumps(record, indent=2) + "\n")
    return len(task.keys)


def write_heart_phantom(folder: Path, phantom: HeartPhantom) -> None:
    """The clip, the masks and the caption of one phantom, into a folder that exists."""
    rate = phantom.clip.frames_per_second
    assert rate is not None
    (folder / "clip.mkv").write_bytes(ffv1.encode(phantom.clip.array_CTHW.transpose(1, 0, 2, 3), rate))
    np.savez_compressed(
        folder / "masks.npz", labels_THW=phantom.labels_THW, sector_HW=phantom.sector_HW.astype(np.uint8)
    )
    (folder / "caption.txt").write_text(phantom.caption + "\n")


def read_frames(path: Path) -> np.ndarray:
    """The frames (T, H, W) of a phantom's clip.mkv, uint8."""
    return ffv1.decode(path.read_bytes())[0]


def _asked(key: str, settings: Settings) -> dict[str, Any]:
    """What makes a finished folder the one that is asked for."""
    asked = {"version": VERSION, **asdict(settings), "seed": seed_for(settings.seed, key)}
    return dict(json.loads(json.dumps(asked)))


def _is_there(out: Path, key: str, settings: Settings) -> bool:
    """True when the phantom's folder is there and is what is asked for; a damaged one is made again."""
    try:
        record = json.loads((out / key / "truth.json").read_text())
    except (FileNotFoundError, ValueError):
        return False
    asked = _asked(key, settings)
    return all(record.get(name) == value for name, value in asked.items()) and all(
        (out / key / name).exists() for name in FILES
    )


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


def _write_tables(out: Path, settings: Settings, records: Sequence[dict[str, Any]]) -> None:
    """table.csv, phantoms.jsonl, source.yaml and run.json."""
    rows = [_row(record) for record in records]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    runs.write_text(out / "table.csv", text.getvalue())
    runs.write_text(out / "phantoms.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    height, width = settings.size
    source = SOURCE.format(height=height, width=width, frames=settings.frames, aspect=width / height)
    runs.write_text(out / "source.yaml", source)
    runs.write_run(out, kind=KIND, **asdict(settings), phantoms=len(records), version=VERSION)


def _row(record: dict[str, Any]) -> dict[str, Any]:
    """One flat row: paths, caption, and the figures that are not lists."""
    key = record["key"]
    row = {"key": key, "clip": f"{key}/clip.mkv", "masks": f"{key}/masks.npz", "seed": record["seed"]}
    figures = {name: value for name, value in record["truth"].items() if not isinstance(value, list)}
    return row | figures | {"caption": record["caption"]}


def _report(out: Path, there_before: int, truths: Sequence[dict[str, Any]]) -> HeartReport:
    grades, views = (Counter(truth[name] for truth in truths) for name in ("grade", "view"))
    return HeartReport(
        out,
        len(truths),
        there_before,
        {name: grades[name] for name in GRADES if grades[name]},
        {name: views[name] for name in VIEWS if views[name]},
        sum(truth["effusion_ml"] > 0 for truth in truths),
    )
