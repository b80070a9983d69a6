"""One classifier of a utility experiment: which images it learns from, and how it is trained.

Shapes here: N images, K classes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn.evaluation.fit import BestSettings, TrainingImages
from medisyn.evaluation.utility import Arm, PictureClassifier, nested_draws, run_seed, train_and_test
from medisyn.machine import choose_device
from medisyn.recipes.utility_data import class_mix, group_of
from medisyn.recipes.utility_designs import AUGMENTATIONS

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from medisyn.recipes.utility import Trial


@dataclass(frozen=True)
class Cell:
    """One trained classifier: an arm, one of its seeds, and a fold (None without cross-validation)."""

    arm: Arm
    run: int
    fold: int | None

    @property
    def file(self) -> str:
        slug = re.sub(r"[^a-z0-9]+", "-", self.arm.name.lower()).strip("-")
        return f"{slug}-seed{self.run}{'' if self.fold is None else f'-fold{self.fold}'}.json"


class Trainer:
    """Trains cells from one stack of images: real training, validation, test, then synthetic ones."""

    def __init__(self, trial: Trial, stack: np.ndarray, weights: Path | None):
        self.trial, self.weights = trial, weights
        self.device = choose_device(trial.settings.device)
        parts, start = trial.parts, 0
        sets = []
        for part in (parts.train, parts.validation, parts.test, trial.synthetic):
            rows = Rows(stack, np.arange(start, start + len(part)))
            sets.append(TrainingImages(rows, trial.task.targets(part)))
            start += len(part)
        self.train, self.validation, self.test, self.synthetic = sets

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train one classifier and return what its file holds."""

        started = time.monotonic()
        real, synthetic, pretrain, test_N = self._members(cell)
        learn = self._joined(real, synthetic)
        stages = [self._joined([], pretrain), learn] if len(pretrain) else [learn]
        settings = [self._settings(len(part.images), cell, number) for number, part in enumerate(stages)]
        validation = self.validation if len(self.validation.images) else None
        test = _part(self.test, test_N)
        done = train_and_test(self._network(cell), stages, validation, test, settings)
        return {
            "arm": cell.arm.name,
            "run": cell.run,
            "fold": cell.fold,
            "real": len(real),
            "synthetic": len(synthetic),
            "pretrain": len(pretrain),
            "counts": dict(
                zip(self.trial.task.classes, learn.targets_NK.sum(axis=0).astype(int).tolist(), strict=True)
            ),
            "steps": [how.steps for how in settings],
            "best_step": [found.best_step for found in done.fits],
            "validation": [[list(score) for score in found.scores] for found in done.fits],
            "last_loss": [found.losses[-1] for found in done.fits],
            "seconds": round(time.monotonic() - started, 2),
            "test": test_N.tolist(),
            "chances": done.chances_NK.tolist(),
        }

    def _members(self, cell: Cell) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Numbers of the real, synthetic and pre-training images of a cell, and of its test images."""

        trial = self.trial
        learn_N, test_N = np.arange(len(trial.parts.train)), np.arange(len(trial.parts.test))
        source, sizes = trial.parts.train, {arm: arm.real for arm in trial.plan.arms}
        if trial.folds_N is not None:
            source = trial.parts.test
            learn_N, test_N = np.flatnonzero(trial.folds_N != cell.fold), np.flatnonzero(trial.folds_N == cell.fold)
            sizes = {arm: round(arm.real * len(learn_N) / len(source)) for arm in trial.plan.arms}
        mix = class_mix(trial.task, source, trial.settings.class_mix == "equal")
        groups = [group_of(trial.task, source[number]) for number in learn_N]
        rng = np.random.default_rng(run_seed(trial.settings.seed, "real", cell.fold))
        real = learn_N[nested_draws(groups, list(sizes.values()), mix, rng)[sizes[cell.arm]]]
        made = [group_of(trial.task, case) for case in trial.synthetic]
        wanted = [max(arm.synthetic, arm.pretrain) for arm in trial.plan.arms]
        rng = np.random.default_rng(run_seed(trial.settings.seed, "synthetic"))
        synthetic = nested_draws(made, wanted, _mix_of(mix, made), rng)[max(cell.arm.synthetic, cell.arm.pretrain)]
        none = np.empty(0, dtype=int)
        return (real, none, synthetic, test_N) if cell.arm.pretrain else (real, synthetic, none, test_N)

    def _joined(self, real: Sequence[int] | np.ndarray, synthetic: Sequence[int] | np.ndarray) -> TrainingImages:

        source = self.train if self.trial.folds_N is None else self.test
        parts = [_part(source, np.asarray(real, dtype=int)), _part(self.synthetic, np.asarray(synthetic, dtype=int))]
        rows = Rows(source.images.stack, np.concatenate([part.images.numbers for part in parts]))  # type: ignore[attr-defined]
        return TrainingImages(rows, np.concatenate([part.targets_NK for part in parts]))

    def _settings(self, num_images: int, cell: Cell, stage: int) -> BestSettings:
        from medisyn.evaluation.utility import run_seed

        asked = self.trial.settings
        steps = asked.num_steps(num_images)
        return BestSettings(
            steps=steps,
            seed=run_seed(asked.seed, "order", cell.run, cell.fold, stage),
            batch_size=asked.batch_for(num_images),
            optimizer=asked.optimizer,
            learning_rate=asked.learning_rate,
            evaluations=min(asked.evaluations, steps),
            multi_label=self.trial.task.multi_label,
            augmentation=AUGMENTATIONS[asked.augment],
            precision=asked.precision,
            device=self.device,
        )

    def _network(self, cell: Cell) -> nn.Module:
        """The same first weights for every arm of one seed and fold."""
        import torch

        from medisyn.nn.resnet import load_trunk, resnet2d, resnet3d

        asked, classes = self.trial.settings, len(self.trial.task.classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run_seed(asked.seed, "network", cell.run, cell.fold))
            make = resnet3d if self.trial.cases.volumes else resnet2d
            trunk = make(asked.network, classes, width=asked.width)
        if self.weights is not None:
            load_trunk(trunk, self.weights)
        network: nn.Module = trunk if self.trial.cases.volumes else PictureClassifier(trunk)
        return network.to(self.device)


@dataclass(frozen=True)
class Rows:
    """Some rows of a stack, read when they are asked for."""

    stack: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, chosen: np.ndarray) -> np.ndarray:
        return np.asarray(self.stack[self.numbers[chosen]])


def _part(images: TrainingImages, chosen: np.ndarray) -> TrainingImages:

    rows = images.images
    assert isinstance(rows, Rows)
    return TrainingImages(Rows(rows.stack, rows.numbers[chosen]), images.targets_NK[chosen])


def _mix_of(mix: dict[str, float], made: Sequence[str]) -> dict[str, float]:
    """The real class mix over the groups that synthetic images show; groups that only they show do not take part."""
    return {name: share for name, share in mix.items() if name in set(made)}
