"""A grid of settings, each made into images from the same prompts and seeds, and ranked by distance to real images.

out/runs/<training settings>/   a training run, shared by all cells that differ in generation alone
out/cells/<all settings>/       the images of one cell
out/report.html, result.json, distances.csv, plots/
Every part resumes, so the same call finishes what was interrupted, and one with more values adds cells.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn import runs
from medisyn.errors import ConfigError, InputError, closest
from medisyn.recipes.corpus_images import LabelledImage, corpus_images, generated_images
from medisyn.recipes.overrides import parse
from medisyn.seeding import seed_for

if TYPE_CHECKING:
    from medisyn.evaluation.evaluate import FeatureSet
    from medisyn.evaluation.ranking import Ranked

Announce = Callable[[str], object]
Cell = dict[str, str]  # axis -> value, as they were given
GENERATION_AXES: dict[str, Any] = {"steps": int, "guidance": float, "solver": str, "size": int}
NAMES = {"frechet": "Fréchet distance", "kid": "kernel distance (MMD²)"}


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """What all cells share.

    model       of every cell, unless `preset` trains one for each combination of the other axes
    preset, corpus, assignments  what is trained, on what, and key=value changes that all runs share
    prompt, prompts, n           a prompt with n images of it, or a table
    real_class  only real images of this class ("chest X-ray/pneumonia") of `split` are compared with
    """

    model: str = "starter-image"
    preset: str = ""
    corpus: str = ""
    assignments: tuple[str, ...] = ()
    prompt: str = ""
    prompts: str = ""
    n: int = 100
    seed: int = 0
    split: str = "test"
    real_class: str = ""
    extractor: str = "medical-encoder"
    weights: str = ""
    resamples: int = 200

    def __post_init__(self) -> None:
        if bool(self.prompt) == bool(self.prompts):
            raise ConfigError("give either a prompt, with the number of images, or a table of prompts")
        if self.n < 6 or self.resamples < 20:
            raise ConfigError(
                f"a sweep needs 6 images per prompt and 20 resamples or more, got {self.n}, {self.resamples}"
            )
        if bool(self.preset) != bool(self.corpus):
            raise ConfigError("a preset to train needs the corpus it is trained on, and a corpus a preset")


@dataclass(frozen=True)
class CellResult:
    """One cell: where its images are, what training it took, and its rank by each measure."""

    cell: Cell
    images: Path
    training: dict[str, Any]  # seconds of this call, megabytes of what was learnt; empty without training
    ranked: dict[str, Ranked]


@dataclass(frozen=True)
class SweepResult:
    """All cells, in the order of the grid; `real` is real training against held-out real images at the same n."""

    cells: tuple[CellResult, ...]
    real: dict[str, Ranked]
    n: int
    n_real: int
    extractor: str
    preprocessing: str
    settings: SweepSettings
    page: Path

    def as_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("n", "n_real", "extractor", "preprocessing")},
            "asked": asdict(self.settings),
            "cells": [{**asdict(one), "images": one.images.name} for one in self.cells],
            "real": {name: asdict(found) for name, found in self.real.items()},
        }

    def summary(self) -> str:
        """The cells that no other beats, by each measure."""
        lines = []
        for measure, title in NAMES.items():
            first = [one for one in self.cells if one.ranked[measure].rank == 1]
            names = "; ".join(f"{label(one.cell)} ({one.ranked[measure].value:.4g})" for one in first)
            lines.append(
                f"{title}: not beaten by more than chance: {names} (real to real {self.real[measure].value:.4g})"
            )
        return "\n".join(lines)


def sweep(
    against: Path | str,
    vary: Mapping[str, Sequence[str]],
    out: Path | str,
    settings: SweepSettings,
    *,
    cache: Path | None = None,
    announce: Announce = lambda line: None,
) -> SweepResult:
    """Make every cell of the grid, compare each with the real images of the corpus `against`, and write the report.

    vary: axis -> its values. steps, guidance, solver and size belong to generation; with a preset, any other axis is
        one of its keys (`medisyn presets NAME` lists them), or "preset" itself.

    Raises ConfigError for an axis or value that nothing reads, before anything is made.
    """
    from medisyn.corpus.loader import Corpus
    from medisyn.recipes.evaluate_images import user_cache

    out, cells = Path(out), grid(vary)
    for cell in cells:
        _check(cell, settings)
    corpus = Corpus(Path(against))
    real, baseline = _real_images(corpus, settings)
    made = [_make(cell, out, settings, announce) for cell in cells]
    images = [generated_images(folder, [*baseline, *real]) for folder, _ in made]
    n = min(map(len, images))
    features = _features({"real": real, "baseline": baseline}, images, n, settings, cache or user_cache())
    ranked = {measure: _ranked(features, measure, settings) for measure in NAMES}
    result = SweepResult(
        cells=tuple(
            CellResult(cell, folder, training, {name: found[0][number] for name, found in ranked.items()})
            for number, (cell, (folder, training)) in enumerate(zip(cells, made, strict=True))
        ),
        real={name: found[1] for name, found in ranked.items()},
        n=n,
        n_real=len(real),
        extractor=features["real"][0].extractor,
        preprocessing=features["real"][0].preprocessing,
        settings=settings,
        page=out / "report.html",
    )
    _write(out, result, corpus.fingerprint)
    return result


def grid(vary: Mapping[str, Sequence[str]]) -> list[Cell]:
    """Every combination, the last axis running fastest. Raises ConfigError for an axis with no or with equal values."""
    if not vary:
        raise ConfigError("a sweep varies at least one setting, for example --vary steps=10,25,50")
    for axis, values in vary.items():
        if not values or len(set(values)) < len(values) or not all(values):
            raise ConfigError(f"vary {axis}: give different values with commas, got {', '.join(values) or 'none'}")
    return [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]


def label(cell: Cell) -> str:
    return ", ".join(f"{axis.removeprefix('model.')} {value}" for axis, value in cell.items())


def training_part(cell: Cell) -> Cell:
    return {axis: value for axis, value in cell.items() if axis not in GENERATION_AXES}


def _check(cell: Cell, settings: SweepSettings) -> None:
    from medisyn.recipes.train_preset import preset_for

    for axis, kind in GENERATION_AXES.items():
        if axis in cell:
            parse(cell[axis], kind, axis)
    trained = training_part(cell)
    if trained and not settings.preset:
        axis = next(iter(trained))
        raise ConfigError(
            f"nothing here reads {axis!r}: without a preset to train, a sweep varies {', '.join(GENERATION_AXES)}."
            f"{closest(axis, GENERATION_AXES)}"
        )
    if settings.preset:
        preset_for(*_preset_of(trained, settings))


def _preset_of(trained: Cell, settings: SweepSettings) -> tuple[str, list[str]]:
    """Name of the preset, and its key=value changes."""
    changes = [f"{axis}={value}" for axis, value in trained.items() if axis != "preset"]
    return trained.get("preset", settings.preset), [*settings.assignments, *changes]


def _folder_name(cell: Cell) -> str:
    """Readable, and different for different cells: the digest of what a file name cannot hold follows."""
    text = "_".join(f"{axis.removeprefix('model.')}-{value}" for axis, value in cell.items())
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", text)
    return plain if plain == text else f"{plain}-{runs.digest(sorted(cell.items()))[:6]}"


def _make(cell: Cell, out: Path, settings: SweepSettings, announce: Announce) -> tuple[Path, dict[str, Any]]:
    """Train what the cell needs, and make its images; both go on where they were interrupted."""
    from medisyn.recipes.generate_images import generate_images

    model = settings.model
    training: dict[str, Any] = {}
    if settings.preset:
        run, training = _train(training_part(cell), out, settings, announce)
        model = str(run)
    announce(f"images: {label(cell)}")
    size = parse(cell["size"], int, "size") if "size" in cell else None
    folder = out / "cells" / _folder_name(cell)
    generate_images(
        settings.prompt or None,
        prompts=settings.prompts or None,
        n=settings.n,
        model=model,
        out=folder,
        seed=settings.seed,
        steps=parse(cell["steps"], int, "steps") if "steps" in cell else None,
        guidance=parse(cell["guidance"], float, "guidance") if "guidance" in cell else None,
        solver=cell.get("solver"),
        height=size,
        width=size,
    )
    return folder, training


def _train(trained: Cell, out: Path, settings: SweepSettings, announce: Announce) -> tuple[Path, dict[str, Any]]:
    from medisyn.recipes.train_preset import train_preset

    name, assignments = _preset_of(trained, settings)
    run = out / "runs" / (_folder_name(trained) or name)
    announce(f"training: {label(trained) or name}")
    started = time.perf_counter()
    report = train_preset(name, Path(settings.corpus), run, assignments=assignments, announce=announce)
    if report.as_dict().get("interrupted"):
        raise KeyboardInterrupt
    learnt = sum(file.stat().st_size for file in (run / "model").rglob("*.safetensors"))
    record = {"megabytes": round(learnt / 1e6, 6), "seconds": round(time.perf_counter() - started, 1)}
    known = run / "sweep-training.json"  # the seconds of the call that trained it, not of one that found it done
    if not known.exists():
        runs.write_json(known, record)
    return run, dict(json.loads(known.read_text()))


def _real_images(corpus: Any, settings: SweepSettings) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Held-out images, and training images as the baseline, of the class that was asked for."""
    found = []
    for split in (settings.split, "train"):
        images = corpus_images(corpus, split)
        if settings.real_class:
            names = {image.name for image in images}
            images = [image for image in images if image.name == settings.real_class]
            if not images:
                raise InputError(
                    f"the split {split!r} has no real image of the class {settings.real_class!r}."
                    f"{closest(settings.real_class, names)}"
                )
        found.append(images)
    return found[0], found[1]


def _features(
    reals: Mapping[str, list[LabelledImage]],
    cells: Sequence[list[LabelledImage]],
    n: int,
    settings: SweepSettings,
    cache: Path,
) -> dict[str, list[FeatureSet]]:
    """Of the real images, of as many training images as there are generated ones, and of every cell."""
    from medisyn.evaluation.features import load_extractor
    from medisyn.evaluation.features.cache import FeatureCache
    from medisyn.recipes.evaluate_sets import features_of

    extractor = load_extractor(settings.extractor, Path(settings.weights) if settings.weights else None)
    store = FeatureCache(cache / "features", extractor)
    baseline = reals["baseline"]
    drawn = np.random.default_rng(seed_for(settings.seed, "baseline")).permutation(len(baseline))[:n]
    parts = {
        "real": [reals["real"]],
        "baseline": [[baseline[number] for number in sorted(drawn)]],
        "cells": [images[:n] for images in cells],
    }
    return {name: [features_of(part, extractor, store, name) for part in sets] for name, sets in parts.items()}


def _ranked(
    features: Mapping[str, list[FeatureSet]], measure: str, settings: SweepSettings
) -> tuple[list[Ranked], Ranked]:
    from medisyn.evaluation.ranking import rank_sets

    (real,) = features["real"]
    options: dict[str, Any] = {"resamples": settings.resamples, "seed": settings.seed}
    return rank_sets(features["cells"], real, measure, **options), rank_sets(
        features["baseline"], real, measure, **options
    )[0]


def _write(out: Path, result: SweepResult, fingerprint: str) -> None:
    from medisyn.evaluation.report import Page, write_report

    asked = result.settings
    page = Page(
        title="A sweep of settings",
        facts=(
            ("images per cell", f"{result.n}"),
            ("held-out real images", f"{result.n_real}" + (f" of {asked.real_class}" if asked.real_class else "")),
            ("made by", (asked.preset and f"{asked.preset}, trained per cell") or asked.model),
            ("prompt", asked.prompt or "a table, the same for all cells"),
            ("extractor", result.extractor),
            ("corpus", fingerprint),
        ),
        tables=tuple(_table(result, measure) for measure in NAMES),
        methods=(
            "All cells were made from the same prompts and seeds and compared with the same held-out real images. "
            f"Intervals are bootstraps of {asked.resamples} resamples; each draws the same images of all cells and the "
            "same real images (whole patients), so that a difference of two cells has an interval of its own. A cell "
            "ranks behind another only where that difference has p < 0.05 after Holm's correction for all pairs; "
            "cells of one rank are not told apart at this number of images.",
            "The Fréchet distance is biased upwards at this n, alike for all cells and for real to real. The kernel "
            "distance is the unbiased polynomial MMD² of all images.",
        ),
    )
    write_report(out, page, result.as_dict())
    runs.write_run(out, kind="sweep", corpus=fingerprint, settings=asdict(asked))


def _table(result: SweepResult, measure: str) -> Any:
    from medisyn.evaluation.plots import interval_plot
    from medisyn.evaluation.report import Table, Value, between, number

    axes = list(result.cells[0].cell)
    trained = any(one.training for one in result.cells)
    rows, values = [], []
    for one in result.cells:
        found = one.ranked[measure]
        against = "" if found.to_best_interval is None else between(found.to_best_interval)
        cost = (number(one.training["megabytes"]), one.training["seconds"]) if trained else ()
        rows.append((*one.cell.values(), number(found.value), between(found.interval), found.rank, against, *cost))
        values.append(
            Value(measure, found.value, "generated", label(one.cell), found.interval.low, found.interval.high,
                  found.interval.level, result.n, result.n_real, result.extractor, result.preprocessing)
        )  # fmt: skip
    real = result.real[measure]
    blank = ("",) * (len(axes) - 1)
    rows.append(("real to real", *blank, number(real.value), between(real.interval), "", "", *(("", "") * trained)))
    points = [(one.ranked[measure].value, one.ranked[measure].interval) for one in result.cells]
    columns = (*[axis.removeprefix("model.") for axis in axes], NAMES[measure], "interval", "rank", "above the best")
    return Table(
        name=measure,
        title=f"{NAMES[measure]} to held-out real images",
        text=(
            f"Lower is closer; n = {result.n} generated and {result.n_real} real images. Equal ranks are not told "
            "apart: the difference lies inside what chance gives."
        ),
        columns=(*columns, *(("MB learnt", "training s") if trained else ())),
        rows=tuple(rows),
        numeric=frozenset(range(len(axes), len(columns) + 2 * trained)),
        totals=1,
        values=tuple(values),
        plot=interval_plot(
            [label(one.cell) for one in result.cells] + ["real to real"],
            {NAMES[measure]: [*points, (real.value, real.interval)]},
            NAMES[measure],
        ),
        plot_text=f"{NAMES[measure]} of every cell with its interval, and of real training to held-out real images.",
        plot_columns=("cell", "value", "low", "high"),
        plot_rows=tuple(
            (
                label(one.cell),
                one.ranked[measure].value,
                one.ranked[measure].interval.low,
                one.ranked[measure].interval.high,
            )
            for one in result.cells
        ),
    )
