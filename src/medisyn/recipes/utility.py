"""Is synthetic data worth anything to a classifier? The one call behind `medisyn utility`.

Shapes here: N test images, K classes.

    out/cells/<arm>-<seed>[-<fold>].json   the chances one classifier gave to the test images; written whole or not
    out/run.json                           what was asked; another question needs another folder
    out/report.html, result.json, *.csv

Each arm and seed is a cell of its own, so the same command goes on after an interruption.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn import runs
from medisyn.errors import ConfigError, InputError
from medisyn.machine import choose_device, fast_dtype
from medisyn.recipes.overrides import with_overrides
from medisyn.recipes.utility_data import (
    Case,
    Cases,
    Leakage,
    Parts,
    Task,
    check_leakage,
    choose_task,
    group_of,
    load_cases,
    write_stack,
)
from medisyn.recipes.utility_designs import Plan, UtilitySettings, design, plan_arms
from medisyn.recipes.utility_train import Cell, Trainer

if TYPE_CHECKING:
    from medisyn.evaluation.auroc import AurocComparison
    from medisyn.evaluation.bootstrap import Interval
    from medisyn.evaluation.utility import FoldScore

MIN_SHARE_DIFFERENCE = 0.1  # of the class mix, from which a reader is told


@dataclass(frozen=True)
class Trial:
    """Everything settled before the first training. `drawn` holds the real cases that arms draw from, as `cases` do."""

    settings: UtilitySettings
    cases: Cases
    parts: Parts
    synthetic: tuple[Case, ...]
    task: Task
    leakage: Leakage
    plan: Plan
    folds_N: np.ndarray | None  # of parts.test
    warnings: tuple[str, ...]

    @property
    def cells(self) -> list[Cell]:
        folds = [None] if self.folds_N is None else list(range(self.settings.folds))
        seeds = range(self.settings.seeds)
        return [Cell(arm, run, fold) for run in seeds for fold in folds for arm in self.plan.arms]


@dataclass(frozen=True)
class FoldArm:
    """An arm in cross-validation: one score per seed and fold, for all classes together and for each label."""

    overall: tuple[FoldScore, ...]
    per_label: dict[str, tuple[FoldScore, ...]]
    correct_N: np.ndarray  # share of seeds (and labels) right for each image


@dataclass(frozen=True)
class UtilityResult:
    """What the experiment found; `page` is the report it wrote."""

    trial: Trial
    auroc: AurocComparison | None  # without cross-validation
    folds: dict[str, FoldArm] | None  # with cross-validation
    fold_difference: dict[str, Interval]  # accuracy of the reference minus that of the arm, by patient
    cells: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]
    page: Path

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON: settings, arms with per-run values, differences with intervals, and every choice made."""
        trial = self.trial
        found: dict[str, Any] = {
            "asked": asdict(trial.settings),
            "corpus": trial.cases.fingerprint,
            "model": trial.cases.model,
            "classes": list(trial.task.classes),
            "left_out": dict(trial.task.left_out),
            "scaling": trial.plan.scaling,
            "reference": trial.plan.reference,
            "arms": [asdict(arm) for arm in trial.plan.arms],
            "n_test": len(trial.parts.test),
            "leakage": trial.leakage.text,
            "warnings": list(self.warnings),
            "cells": [{key: value for key, value in cell.items() if key != "chances"} for cell in self.cells],
        }
        if self.auroc is not None:
            found["auroc"] = {
                "arms": {
                    name: {
                        "value": arm.value,
                        "interval": asdict(arm.interval),
                        "per_run": list(arm.per_run),
                        "per_class": dict(zip(trial.task.classes, arm.per_class, strict=True)),
                    }
                    for name, arm in self.auroc.arms.items()
                },
                "differences": {name: asdict(found) for name, found in self.auroc.differences.items()},
                "n": self.auroc.n,
                "clusters": self.auroc.clusters,
                "resamples": self.auroc.resamples,
                "redrawn": self.auroc.redrawn,
            }
        if self.folds is not None:
            found["folds"] = {
                name: {
                    "overall": [asdict(score) for score in arm.overall],
                    "per_label": {label: [asdict(s) for s in scores] for label, scores in arm.per_label.items()},
                }
                for name, arm in self.folds.items()
            }
            found["accuracy_difference"] = {name: asdict(value) for name, value in self.fold_difference.items()}
        return found

    def summary(self) -> str:
        """A few lines for a terminal."""
        from medisyn.recipes.utility_page import summary_lines

        notes = [f"Note: {warning}" for warning in self.warnings]
        return "\n".join([*summary_lines(self), *notes, f"Report: {self.page}"])


def utility(
    real: Path | str,
    synthetic: Path | str,
    design_name: str = "medisyn-v2",
    overrides: Sequence[str] = (),
    *,
    trained_on: Path | str | None = None,
    weights: Path | str | None = None,
    out: Path | str | None = None,
    announce: Callable[[str], object] = lambda line: None,
) -> UtilityResult:
    """Train the arms of a design on real and synthetic images and test them on the same held-out real images.

    real: a corpus, or a folder of volumes. synthetic: a folder of `medisyn generate`, a corpus, or a folder of volumes.
    overrides: `key=value` texts, as `--set` takes them. trained_on: the corpus or the run of the generator.
    weights: a published ResNet file (ImageNet or MedicalNet); None starts from random weights.
    out: folder of the report; None: `<synthetic>-utility-<design>`. The same call goes on with unfinished arms.
    """
    from medisyn.recipes.utility_page import write_page

    settings = with_overrides(design(design_name), overrides)
    if settings.design != design_name:
        raise ConfigError(f"the design is chosen with --design {settings.design}, not with --set design=")
    if settings.precision == "auto":
        settings = dataclasses.replace(settings, precision=fast_dtype(choose_device(settings.device)))
    real, synthetic = Path(real), Path(synthetic)
    out = synthetic.with_name(f"{synthetic.name}-utility-{design_name}") if out is None else Path(out)
    trial = prepare(load_cases(real, synthetic), settings, Path(trained_on) if trained_on is not None else None)
    announce(f"Sizes: {trial.plan.scaling}")
    announce(f"Classes: {', '.join(trial.task.classes)}. {trial.leakage.text}")
    weights = Path(weights) if weights is not None else None
    with runs.lock(out):
        _claim(out, trial, weights)
        cells, native = _run_cells(out, trial, weights)
        result = _analyse(trial, cells, (*trial.warnings, *_notes(trial, weights, native)), out / "report.html")
        write_page(out, result)
        shutil.rmtree(out / "arrays", ignore_errors=True)
    return result


def prepare(cases: Cases, settings: UtilitySettings, trained_on: Path | None) -> Trial:
    """Parts, classes, leakage and arms of one experiment; nothing is trained. Raises InputError for what cannot be."""
    from medisyn.evaluation.utility import patient_folds, run_seed

    if settings.image_type:
        cases = _of_type(cases, settings.image_type)
    parts, warnings = _parts(cases, settings)
    leakage = check_leakage(cases, parts, trained_on)
    kept = [
        tuple(case for case in part if case.image.key not in leakage.left_out)
        for part in (parts.validation, parts.test)
    ]
    learnt = parts.train if not settings.folds else kept[1]
    task = choose_task(settings, learnt, kept[1], cases.synthetic)
    parts = Parts(*(tuple(task.usable(part)) for part in (parts.train, *kept)))
    synthetic = tuple(task.usable(cases.synthetic))
    unknown = len(cases.synthetic) - len(synthetic)
    if unknown:
        warnings.append(f"{unknown} of {len(cases.synthetic)} synthetic images are of no class of the task: not used.")
    folds = None
    if settings.folds:
        groups = [group_of(task, case) for case in parts.test]
        patients = [case.image.patient for case in parts.test]
        folds = patient_folds(patients, groups, settings.folds, run_seed(settings.seed, "folds"))
    plan = plan_arms(settings, len(parts.test if settings.folds else parts.train), len(synthetic))
    return Trial(settings, cases, parts, synthetic, task, leakage, plan, folds, (*leakage.warnings, *warnings))


def _of_type(cases: Cases, image_type: str) -> Cases:
    def of_type(part: Sequence[Case]) -> tuple[Case, ...]:
        return tuple(case for case in part if case.image.stratum.rpartition(" / ")[2] == image_type)

    found = dataclasses.replace(cases, real=of_type(cases.real), synthetic=of_type(cases.synthetic))
    if not found.real:
        types = sorted({case.image.stratum.rpartition(" / ")[2] for case in cases.real})
        raise InputError(f"no real image is of the type {image_type!r}; there are: {', '.join(types)}")
    return found


def _parts(cases: Cases, settings: UtilitySettings) -> tuple[Parts, list[str]]:
    """Train, validation and test as the data says; for cross-validation all that no generator was trained on."""
    if settings.folds:
        return Parts((), (), tuple(case for case in cases.real if case.split != "train")), []
    train, validation, test = (tuple(cases.split(name)) for name in ("train", "validation", "test"))
    if not train or not test:
        raise InputError(
            f"the real data has {len(train)} training and {len(test)} test images; both are needed. Curate with a test "
            f"split, or use cross-validation: --set folds=5"
        )
    if validation:
        return Parts(train, validation, test), []
    return Parts(train, (), test), ["There is no validation split: the last state of each training was kept."]


def _claim(out: Path, trial: Trial, weights: Path | None) -> None:
    """Make `out` the folder of this experiment; ConfigError, naming what differs, when it is another's."""
    if weights is not None and not weights.is_file():
        raise InputError(f"the weight file {weights.name} does not exist")
    asked: dict[str, Any] = {
        **asdict(trial.settings),
        "corpus": trial.cases.fingerprint,
        "synthetic images": runs.digest(sorted(case.image.sha256 for case in trial.synthetic)),
        "test images": runs.digest([case.image.key for case in trial.parts.test]),
        "weights": runs.file_sha256(weights) if weights is not None else "none",
    }
    asked = json.loads(json.dumps(asked))
    before = runs.read_run(out)
    if before is not None:
        held = before.get("asked", {})
        differing = sorted(key for key in asked.keys() | held.keys() if asked.get(key) != held.get(key))
        if differing:
            raise ConfigError(
                f"{out.name}/ holds an experiment with another {', '.join(differing)}; choose another --out"
            )
        return
    runs.write_run(out, kind="utility", corpus=trial.cases.fingerprint, model=trial.cases.model, asked=asked)


def _run_cells(out: Path, trial: Trial, weights: Path | None) -> tuple[tuple[dict[str, Any], ...], set[Any]]:
    """The content of every cell, trained now or before; and the sizes of the images that were read for it."""
    from tqdm import tqdm

    missing = [cell for cell in trial.cells if not (out / "cells" / cell.file).exists()]
    native: dict[str, list[list[int]]] = {}
    if missing:
        used = [*trial.parts.train, *trial.parts.validation, *trial.parts.test, *trial.synthetic]
        path = out / "arrays" / "images.npy"
        stack, sizes = write_stack(used, path, trial.settings.size, trial.cases.volumes)
        trainer = Trainer(trial, stack, weights)
        native = {kind: sorted(map(list, found)) for kind, found in sizes.items()}
        runs.write_json(out / "cells" / "sizes.json", native)
        for cell in tqdm(missing, desc="classifiers", unit="run", disable=None):
            runs.write_json(out / "cells" / cell.file, trainer.run(cell))
    contents = tuple(json.loads((out / "cells" / cell.file).read_text()) for cell in trial.cells)
    return contents, json.loads((out / "cells" / "sizes.json").read_text())


def _analyse(trial: Trial, cells: tuple[dict[str, Any], ...], warnings: tuple[str, ...], page: Path) -> UtilityResult:
    from medisyn.evaluation.auroc import compare_auroc
    from medisyn.evaluation.utility import run_seed

    by_arm = {arm.name: [cell for cell in cells if cell["arm"] == arm.name] for arm in trial.plan.arms}
    settings, targets = trial.settings, trial.task.targets(trial.parts.test)
    patients = [case.image.patient for case in trial.parts.test]
    grouped = patients if len(set(patients)) < len(patients) else None
    if trial.folds_N is not None:
        folds = {name: _fold_arm(trial, found, targets) for name, found in by_arm.items()}
        differences = _fold_differences(trial, folds, grouped)
        return UtilityResult(trial, None, folds, differences, cells, (*warnings, *_mix_notes(cells, trial)), page)
    comparison = compare_auroc(
        {name: [np.array(cell["chances"]) for cell in found] for name, found in by_arm.items()},
        targets,
        reference=trial.plan.reference,
        resamples=settings.resamples,
        seed=run_seed(settings.seed, "bootstrap"),
        patients=grouped,
        level=settings.level,
    )
    return UtilityResult(trial, comparison, None, {}, cells, (*warnings, *_mix_notes(cells, trial)), page)


def _fold_arm(trial: Trial, cells: Sequence[dict[str, Any]], targets_NK: np.ndarray) -> FoldArm:
    from medisyn.evaluation.utility import accuracy_and_f1

    labels, many = trial.task.classes, trial.task.multi_label
    overall, per_label = [], {label: [] for label in labels if many}  # type: ignore[var-annotated]
    correct = np.zeros(len(targets_NK))
    for cell in cells:
        chances, truth = np.array(cell["chances"]), targets_NK[cell["test"]]
        overall.append(accuracy_and_f1(chances, truth, multi_label=many))
        for k, label in enumerate(labels if many else ()):
            per_label[label].append(accuracy_and_f1(chances[:, [k]], truth[:, [k]], multi_label=True))
        right = ((chances >= 0.5) == truth).mean(axis=1) if many else chances.argmax(axis=1) == truth.argmax(axis=1)
        correct[cell["test"]] += right / trial.settings.seeds
    return FoldArm(tuple(overall), {name: tuple(scores) for name, scores in per_label.items()}, correct)


def _fold_differences(trial: Trial, folds: dict[str, FoldArm], patients: Sequence[str] | None) -> dict[str, Interval]:
    from medisyn.evaluation.bootstrap import mean_interval
    from medisyn.evaluation.utility import run_seed

    reference = folds[trial.plan.reference].correct_N
    return {
        name: mean_interval(
            reference - arm.correct_N,
            resamples=trial.settings.resamples,
            seed=run_seed(trial.settings.seed, "bootstrap"),
            groups=patients,
            level=trial.settings.level,
        )
        for name, arm in folds.items()
        if name != trial.plan.reference
    }


def _notes(trial: Trial, weights: Path | None, native: Any) -> list[str]:
    """What a reader must know before believing the numbers."""
    notes = []
    if weights is None:
        start = "MedicalNet" if trial.cases.volumes else "ImageNet"
        notes.append(f"The classifiers started from random weights; the papers' start from {start} (--weights FILE).")
    if native["real"] != native["synthetic"]:
        shown = [" and ".join("x".join(map(str, size)) for size in native[kind][:3]) for kind in ("real", "synthetic")]
        notes.append(
            f"Real images are {shown[0]}, synthetic ones {shown[1]} before both were brought to {trial.settings.size}: "
            f"a difference in sharpness can tell a class apart where the mix of the two differs between classes."
        )
    if len(trial.parts.test) < 100:
        notes.append(f"The test set has {len(trial.parts.test)} images: differences are dominated by chance.")
    return notes


def _mix_notes(cells: Sequence[dict[str, Any]], trial: Trial) -> list[str]:
    """Arms whose class mix is far from the reference's."""
    notes = []
    counts = {cell["arm"]: cell["counts"] for cell in cells}
    base = counts[trial.plan.reference]
    for name, found in counts.items():
        total, base_total = max(1, sum(found.values())), max(1, sum(base.values()))
        gap = sum(abs(found[label] / total - base[label] / base_total) for label in found) / 2
        if gap > MIN_SHARE_DIFFERENCE:
            notes.append(
                f"The classes of arm {name!r} are mixed differently from the reference's ({gap:.0%} of its images "
                f"would have to change class): too few synthetic images of some classes."
            )
    return notes
