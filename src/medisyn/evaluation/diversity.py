"""How alike the images of one set are: MS-SSIM of random pairs within a class, beside the same for real images.

Shapes here: N images, P pairs, C channels; images are (C, H, W) or (C, D, H, W).
A generator that repeats itself has a higher value than the real images. The value is only read beside theirs: classes
differ in how alike their real images are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError
from medisyn.evaluation.bootstrap import Interval, mean_interval
from medisyn.evaluation.ssim import ms_ssim
from medisyn.seeding import seed_for

PAIRS_PER_CLASS = 50
LEAST_PAIRS = 3  # for a row of its own; a class with fewer counts among all


@dataclass(frozen=True)
class Diversity:
    """Mean MS-SSIM over `num_pairs` pairs of one class of one set ("" is all classes together); lower is more varied.

    No image stands in two pairs of one class, so the interval (bootstrap over pairs) takes them as independent.
    """

    name: str
    value: float
    interval: Interval
    num_pairs: int
    num_images: int
    scales: int


@dataclass(frozen=True)
class DiversityResult:
    """Per class, where there are several, and for all (the last row): equally many pairs of every class on both sides.

    `left_out` are the classes without a pair on one side: fewer than two images, or all of one patient.
    """

    generated: tuple[Diversity, ...]
    real: tuple[Diversity, ...]
    left_out: tuple[str, ...]


def draw_pairs(
    classes: Sequence[str], patients: Sequence[str], seed: int, most: int = PAIRS_PER_CLASS
) -> dict[str, list[tuple[int, int]]]:
    """At most `most` random pairs of images of each class, of two patients each; no image is in two pairs.

    Slices of one patient are alike whatever the generator does. Seeded per class; as many pairs as there can be.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(classes):
        members[name].append(number)
    return {
        name: _pairs_of(numbers, patients, seed_for(seed, f"pairs/{name}"))[:most] for name, numbers in members.items()
    }


def _pairs_of(numbers: Sequence[int], patients: Sequence[str], seed: int) -> list[tuple[int, int]]:
    """All images in order of their patients, the most frequent first, each paired with the one half a list further."""
    rng = np.random.default_rng(seed)
    counts = Counter(patients[number] for number in numbers)
    largest = max(counts.values())
    shuffled = [numbers[i] for i in rng.permutation(len(numbers))]
    shuffled.sort(key=lambda number: (-counts[patients[number]], patients[number]))
    shuffled = shuffled[max(0, 2 * largest - len(numbers)) :]  # what a patient has beyond half can have no partner
    half = len(shuffled) // 2
    pairs = [(shuffled[i], shuffled[i + half]) for i in range(half)]
    return [pairs[i] for i in rng.permutation(half)]


def diversity(
    generated: Sequence[Callable[[], np.ndarray]],
    real: Sequence[Callable[[], np.ndarray]],
    classes: tuple[Sequence[str], Sequence[str]],
    patients: tuple[Sequence[str], Sequence[str]],
    *,
    data_range: float,
    scales: int,
    seed: int = 0,
    most: int = PAIRS_PER_CLASS,
    resamples: int = 200,
    level: float = 0.95,
) -> DiversityResult | None:
    """Pairs within each class that both sets have; None when no class has a pair on each side.

    `generated` and `real` read one image each, all of one shape; two are held at a time. `classes` names the class of
    every generated and every real image, "" for unknown, which is a class of its own; `patients` likewise.
    """
    for images, of, who in zip((generated, real), classes, patients, strict=True):
        if not len(images) == len(of) == len(who):
            raise InputError(f"diversity: {len(images)} images but {len(of)} classes and {len(who)} patients")
    drawn = [draw_pairs(of, who, seed, most) for of, who in zip(classes, patients, strict=True)]
    names = sorted({*classes[0], *classes[1]})
    counts = {name: min(len(pairs.get(name, [])) for pairs in drawn) for name in names}
    if not any(counts.values()):
        return None

    def rows(images: Sequence[Callable[[], np.ndarray]], pairs: dict[str, list[tuple[int, int]]]) -> list[Diversity]:
        values = {
            name: np.array([_similarity(images[a], images[b], data_range, scales) for a, b in pairs[name][:count]])
            for name, count in counts.items()
            if count
        }
        alone = {name: found for name, found in values.items() if len(found) >= LEAST_PAIRS and len(values) > 1}
        return [
            Diversity(
                name,
                float(found.mean()),
                mean_interval(found, resamples=resamples, seed=seed, level=level),
                len(found),
                2 * len(found),
                scales,
            )
            for name, found in [*alone.items(), ("", np.concatenate(list(values.values())))]
        ]

    left_out = tuple(name for name, count in counts.items() if not count)
    return DiversityResult(tuple(rows(generated, drawn[0])), tuple(rows(real, drawn[1])), left_out)


def _similarity(a: Callable[[], np.ndarray], b: Callable[[], np.ndarray], data_range: float, scales: int) -> float:
    return float(ms_ssim(a()[None], b()[None], data_range=data_range, scales=scales)[0])
