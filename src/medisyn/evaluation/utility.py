"""Is synthetic data worth anything to a classifier? Arms, matched draws, folds, and the statistics between arms.

Shapes here: N images, K classes, B batch, H, W pixels, D slices.
An arm is a recipe for a training set: so many real and so many synthetic images. All arms of a design are trained the
same way and tested on the same real images of patients that neither the classifier nor the generator has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from medisyn.errors import InputError
from medisyn.evaluation.auroc import macro_auroc
from medisyn.evaluation.bootstrap import Interval
from medisyn.evaluation.fit import BestFit, BestSettings, TrainingImages, fit_best, predict
from medisyn.nn.resnet import ResNet
from medisyn.seeding import seed_for

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Arm:
    """How many real and synthetic images train one classifier. `pretrain` synthetic images come first, alone."""

    name: str
    real: int
    synthetic: int = 0
    pretrain: int = 0

    def __post_init__(self) -> None:
        if min(self.real, self.synthetic, self.pretrain) < 0 or self.real + self.synthetic < 2:
            raise InputError(
                f"arm {self.name!r}: it needs at least 2 images to train on, got {self.real} real and "
                f"{self.synthetic} synthetic ones"
            )


def quotas(wanted: int, mix: dict[str, float], available: dict[str, int]) -> dict[str, int]:
    """How many images of each class: `wanted` in all, in proportion to `mix`, by largest remainders.

    A class that runs out is taken whole and its rest is spread over the others, so the mix is matched as nearly as
    the images allow. InputError when there are fewer than `wanted` in all.
    """
    open_classes = {name: share for name, share in mix.items() if share > 0}
    if wanted > sum(available.get(name, 0) for name in open_classes):
        raise InputError(f"{wanted} images were asked for, {sum(available.get(n, 0) for n in open_classes)} are there")
    taken: dict[str, int] = dict.fromkeys(mix, 0)
    while open_classes:
        left = wanted - sum(taken.values())
        total = sum(open_classes.values())
        short = [name for name, share in open_classes.items() if available.get(name, 0) < left * share / total]
        if not short:
            return taken | _largest_remainders(left, open_classes, available)
        for name in short:
            taken[name] = available.get(name, 0)
            del open_classes[name]
    return taken


def _largest_remainders(wanted: int, mix: dict[str, float], available: dict[str, int]) -> dict[str, int]:
    total = sum(mix.values())
    exact = {name: wanted * share / total for name, share in mix.items()}
    taken = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda name: (taken[name] - exact[name], name)):
        if sum(taken.values()) < wanted and taken[name] < available.get(name, 0):
            taken[name] += 1
    return taken


def nested_draws(
    classes_N: Sequence[str], sizes: Sequence[int], mix: dict[str, float], rng: np.random.Generator
) -> dict[int, np.ndarray]:
    """For each size the numbers of so many images in the class mix `mix`; every smaller draw is part of every larger.

    So the 1,000 real images of MediSyn v2 are among its 2,000, and one arm's gain is not another draw's luck.
    """
    names, pool, found = np.asarray(classes_N), np.arange(len(classes_N)), {}
    for size in sorted(set(sizes), reverse=True):
        orders = {name: rng.permutation(pool[names[pool] == name]) for name in sorted(mix)}
        counts = quotas(size, mix, {name: len(order) for name, order in orders.items()})
        pool = np.sort(np.concatenate([orders[name][: counts[name]] for name in sorted(mix)])).astype(int)
        found[size] = pool
    return found


def patient_folds(patients: Sequence[str], classes_N: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """(N,) fold of each item: whole patients, dealt so that classes and sizes are even.

    Patients with many items come first, in random order among equals; each goes to the fold that then holds the
    fewest items of the patient's commonest class, then the fewest items.
    """
    groups: dict[str, list[int]] = {}
    for number, patient in enumerate(patients):
        groups.setdefault(patient, []).append(number)
    if not 2 <= folds <= len(groups):
        raise InputError(f"{folds} folds need 2 folds or more, and at least as many patients; there are {len(groups)}")
    rng = np.random.default_rng(seed)
    names, order = sorted(groups), rng.permutation(len(groups))
    queue = sorted((names[n] for n in order), key=lambda name: -len(groups[name]))
    fold_of = np.empty(len(patients), dtype=int)
    held: list[list[str]] = [[] for _ in range(folds)]
    for patient in queue:
        mine = [classes_N[number] for number in groups[patient]]
        common = max(sorted(set(mine)), key=mine.count)
        fold = min(range(folds), key=lambda f: (held[f].count(common), len(held[f]), f))
        held[fold] += mine
        fold_of[groups[patient]] = fold
    return fold_of


class PictureClassifier(nn.Module):
    """RGB 0..255 (B, 3, H, W) to scores (B, K): ImageNet's mean and standard deviation, then the ResNet."""

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: ResNet):
        super().__init__()
        self.trunk = trunk
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None] * 255, persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None] * 255, persistent=False)

    def forward(self, rgb_BCHW: Tensor) -> Tensor:
        return self.trunk((rgb_BCHW - self.mean) / self.std)


@dataclass(frozen=True)
class Trained:
    """One classifier's chances for the test images (N, K), and how it came about."""

    chances_NK: np.ndarray
    fits: tuple[BestFit, ...]  # one, or two where synthetic pre-training came first


def train_and_test(
    network: nn.Module,
    stages: Sequence[TrainingImages],
    validation: TrainingImages | None,
    test: TrainingImages,
    settings: Sequence[BestSettings],
) -> Trained:
    """Train on each stage in turn, keep the best state on the validation images after each, and score the test images.

    Without validation images the last state of each stage is kept. The best state is the one with the highest
    macro-AUROC of the validation images, over the classes that they both have and lack.
    """
    fits = []
    for images, how in zip(stages, settings, strict=True):
        measure = None
        if validation is not None:

            def measure(state: nn.Module, how: BestSettings = how) -> float:
                assert validation is not None
                return macro_auroc_of_present(predict(state, validation.images, how), validation.targets_NK)

        fits.append(fit_best(network, images, how, measure))
    return Trained(predict(network, test.images, settings[-1]), tuple(fits))


def macro_auroc_of_present(chances_NK: np.ndarray, targets_NK: np.ndarray) -> float:
    """Macro-AUROC over the classes that have positives and negatives; InputError when none has.

    For choosing a state on validation images only: the test set must have every class.
    """
    counts = np.asarray(targets_NK).sum(axis=0)
    present = np.flatnonzero((counts > 0) & (counts < len(targets_NK)))
    if not len(present):
        raise InputError("the validation images all have the same classes: no state can be chosen by their AUROC")
    return macro_auroc(np.asarray(chances_NK)[:, present], np.asarray(targets_NK)[:, present])


@dataclass(frozen=True)
class FoldScore:
    """Accuracy and F1 of one fold. F1 is the mean over classes; of a single finding, that of the positive class.

    `f1` is None where no image has a class and none was named: it is not defined then.
    """

    accuracy: float
    f1: float | None


def accuracy_and_f1(chances_NK: np.ndarray, targets_NK: np.ndarray, *, multi_label: bool) -> FoldScore:
    """Multi-class: the highest chance names the class. Multi-label: chance 0.5 or more; accuracy over all cells.

    F1 of a class is 2 TP / (2 TP + FP + FN). A class that is neither there nor named has none and is left out of the
    mean. InputError when there are no images.
    """
    chances, targets = np.asarray(chances_NK), np.asarray(targets_NK).astype(bool)
    if chances.shape != targets.shape or not len(targets):
        raise InputError(
            f"accuracy needs chances and targets of one shape (N, K), got {chances.shape}, {targets.shape}"
        )
    named = chances >= 0.5
    if not multi_label:
        named = np.eye(chances.shape[1], dtype=bool)[chances.argmax(axis=1)]
    hits, calls = (named & targets).sum(axis=0), named.sum(axis=0) + targets.sum(axis=0)
    accuracy = (named == targets).mean() if multi_label else hits.sum() / len(targets)
    f1 = float((2 * hits[calls > 0] / calls[calls > 0]).mean()) if calls.any() else None
    return FoldScore(float(accuracy), f1)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (ddof 1; NaN for a single value) of repeated runs."""

    mean: float
    sd: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    if not len(values):
        raise InputError("a mean needs at least 1 value, got none")
    return Spread(
        float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"), len(values)
    )


def paired_interval(reference: Sequence[float], other: Sequence[float], level: float = 0.95) -> Interval | None:
    """Student's interval of the mean of reference minus other, paired by seed or fold; None for fewer than 3 pairs.

    Folds share training images, so for them it is somewhat too narrow (Nadeau and Bengio, 2003).
    """
    from scipy.stats import t

    if len(reference) != len(other):
        raise InputError(f"paired differences need as many runs on both sides, got {len(reference)} and {len(other)}")
    if len(reference) < 3:
        return None
    differences = spread((np.asarray(reference) - np.asarray(other)).tolist())
    half = float(t.ppf(0.5 + level / 2, differences.n - 1)) * differences.sd / differences.n**0.5
    return Interval(differences.mean - half, differences.mean + half, level, "paired t")


def run_seed(seed: int, *what: object) -> int:
    """The seed of one part of a run, small enough for every generator."""
    return seed_for(seed, "/".join(map(str, what))) % 2**31
