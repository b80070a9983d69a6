"""A folder of heart phantoms: clips, labels, captions, truth, and a table.

    out/<key>/clip.mkv      FFV1, grey, every frame on its own; bit-exact
    out/<key>/caption.txt   what a caption would say
    out/<key>/truth.json    what is true of the heart, and of the left ventricle in each frame
    out/<key>/masks.npz     labels_THW (numbers: beating.py) and sector_HW, uint8
    out/table.csv           one row per phantom, without lists
    out/phantoms.jsonl      one line per phantom: the content of its truth.json
    out/source.yaml         a source description: `medisyn curate out/source.yaml --out corpus/`
    out/run.json            what was asked for

How the folder is written and gone on with: many.py. Shapes here: T frames, H, W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import ffv1
from medisyn.errors import InputError
from medisyn.phantoms.heart.beating import FRAMES_PER_SECOND, HeartPhantom, check_film, make_heart
from medisyn.phantoms.heart.case import GRADES, VIEWS, draw_case
from medisyn.phantoms.many import PhantomKind, write_many
from medisyn.seeding import seed_for

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


FLUID = ("no", "small", "moderate", "large")


@dataclass(frozen=True)
class Settings:
    """What one run asks for."""

    size: tuple[int, int]
    frames: int
    frames_per_second: float
    seed: int
    grades: tuple[str, ...]
    views: tuple[str, ...]
    vigorous: float = 0.0  # younger than the first folders of phantoms


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
    vigorous: float = 0.0,
    engine: str = "inline",
    progress: Callable[[int, int], None] | None = None,
) -> HeartReport:
    """Make `count` heart phantoms in `out`; each follows from `seed` and its own number, so more may be added later.

    size           height and width of the clips, 48 to 1024
    grades, views  what is drawn from, evenly
    vigorous       share of hearts of normal function that beat fast, see `draw_case`
    progress       called with (done, total) phantoms

    Raises InputError for a count below 1, for what cannot be filmed or drawn, and when `out` holds anything else or
    phantoms of other settings; BusyError when another process writes there.
    """
    drawn = (tuple(grades), tuple(views), float(vigorous))
    settings = Settings((size[0], size[-1]), frames, float(frames_per_second), seed, *drawn)
    out = Path(out)
    if count < 1:
        raise InputError(f"heart phantoms: the count must be at least 1, got {count}")
    check_film(settings.size, frames, frames_per_second)
    draw_case(0, settings.grades, settings.views, vigorous=vigorous)  # refuses unknown words before anything is written
    records, there_before = write_many(HEARTS, out, count, settings, engine, progress)
    return _report(out, there_before, [record["truth"] for record in records])


def _make(folder: Path, key: str, asked: Settings) -> dict[str, Any]:
    seed = seed_for(asked.seed, key)
    case = draw_case(seed, asked.grades, asked.views, vigorous=asked.vigorous)
    phantom = make_heart(seed, case, size=asked.size, frames=asked.frames, frames_per_second=asked.frames_per_second)
    write_heart_phantom(folder, phantom)
    return {"caption": phantom.caption, "truth": dict(phantom.truth)}


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
    return {**asdict(settings), "seed": seed_for(settings.seed, key)}


def _source(settings: Settings) -> str:
    height, width = settings.size
    return SOURCE.format(height=height, width=width, frames=settings.frames, aspect=width / height)


def _row(record: dict[str, Any]) -> dict[str, Any]:
    """One flat row: paths, caption, and the figures that are not lists."""
    key = record["key"]
    row = {"key": key, "clip": f"{key}/clip.mkv", "masks": f"{key}/masks.npz", "seed": record["seed"]}
    truth = record["truth"]
    figures = {name: value for name, value in truth.items() if not isinstance(value, list)}
    return row | figures | _labels(truth) | {"caption": record["caption"]}


def _labels(truth: dict[str, Any]) -> dict[str, float]:
    """What a caption can say, from 0 to 1: view (1 is two-chamber), function (1 normal), fluid, rate (40 to 140)."""
    fluid = FLUID.index(truth["effusion"]) / (len(FLUID) - 1)
    return {
        "label_view": float(VIEWS.index(truth["view"])),
        "label_function": round(1 - GRADES.index(truth["grade"]) / (len(GRADES) - 1), 4),
        "label_effusion": round(fluid, 4),
        "label_rate": round(min(max((truth["heart_rate"] - 40) / 100, 0.0), 1.0), 4),
    }


HEARTS = PhantomKind(
    run="phantom-ultrasound",
    prefix="heart",
    version=1,
    files=("clip.mkv", "caption.txt", "masks.npz"),
    per_task=8,
    asked=_asked,
    make=_make,
    row=_row,
    source=_source,
)


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
