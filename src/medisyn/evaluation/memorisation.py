"""Is a generated image a copy of a training image? MediSyn v2 section 4.3.4, after Carlini et al. (2023).

The nearest neighbours are found by cosine among the training images of the same stratum (specialty and image type;
search.py); the pair is then compared patch by patch in pixels (patches.py). The same figure for held-out real images
says what a distance means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError
from medisyn.evaluation.bootstrap import Interval, clopper_pearson
from medisyn.evaluation.patches import FLIPS, THRESHOLD, flipped, patch_distance
from medisyn.evaluation.search import Neighbours, nearest_neighbours

__all__ = [
    "FLIPS",
    "THRESHOLD",
    "ClosestPair",
    "CopyStatistics",
    "Neighbours",
    "closest_pairs",
    "copy_statistics",
    "flipped",
    "nearest_neighbours",
    "patch_distance",
]


@dataclass(frozen=True)
class ClosestPair:
    """A generated image and the training image that comes closest to it, in pixels, among its k neighbours."""

    query: int
    training: int
    distance: float
    similarity: float
    flip: str


def closest_pairs(
    neighbours: Neighbours,
    read_query: Callable[[int], np.ndarray],
    read_training: Callable[[int], np.ndarray],
    *,
    flips: Sequence[str] = ("none", "horizontal"),
    grid: int = 4,
) -> list[ClosestPair]:
    """The smallest patch distance of every query over its neighbours and flips; none for a query without neighbours."""
    pairs = []
    for query, (candidates, similarities) in enumerate(zip(neighbours.index_QK, neighbours.similarity_QK, strict=True)):
        if candidates[0] < 0:
            continue
        image = read_query(query)
        found = [
            ClosestPair(
                query, int(n), patch_distance(image, flipped(read_training(int(n)), flip), grid), float(s), flip
            )
            for n, s in zip(candidates, similarities, strict=True)
            if n >= 0
            for flip in flips
        ]
        pairs.append(min(found, key=lambda pair: pair.distance))
    return pairs


@dataclass(frozen=True)
class CopyStatistics:
    """The distances of one set to the training set: the test of the paper, and the tail, of which it says nothing."""

    n: int
    at_or_below: int
    share: float
    share_interval: Interval  # Clopper-Pearson, upper end one-sided at 95 %
    minimum: float
    quantile_01: float
    median: float
    mean: float
    sd: float | None  # None for one image
    wilcoxon_p: float | None  # one-sided, distances greater than the threshold; None below 6 images
    threshold: float
    closer_than_real: int | None  # how many are closer than 99 % of the held-out real images; None without those


def copy_statistics(
    distances: Sequence[float], threshold: float = THRESHOLD, held_out: Sequence[float] | None = None
) -> CopyStatistics:
    """Count, tail and one-sided Wilcoxon signed-rank test against the threshold.

    `held_out` are the distances of held-out real images, which are no copies: where 1 % of the images are closer than
    99 % of those, that is what chance gives.
    """
    from scipy.stats import wilcoxon

    values = np.asarray(distances, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise InputError(f"copy statistics need at least 1 finite distance, got {len(values)}")
    below = int((values <= threshold).sum())
    shifted = values - threshold
    p = None
    if len(values) >= 6 and np.any(shifted != 0):
        p = float(wilcoxon(shifted, alternative="greater", zero_method="wilcox").pvalue)
    return CopyStatistics(
        n=len(values),
        at_or_below=below,
        share=below / len(values),
        share_interval=clopper_pearson(below, len(values), side="upper"),
        minimum=float(values.min()),
        quantile_01=float(np.quantile(values, 0.01)),
        median=float(np.median(values)),
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)) if len(values) > 1 else None,
        wilcoxon_p=p,
        threshold=threshold,
        closer_than_real=None if not held_out else int((values < np.quantile(held_out, 0.01)).sum()),
    )


def closer_than_held_out(distances: Sequence[float], held_out: Sequence[float]) -> float:
    """One-sided Mann-Whitney p value that `distances` tend to be smaller than those of held-out real images.

    Near 0: this set lies closer to the training images than new real images do.
    """
    from scipy.stats import mannwhitneyu

    if len(distances) == 0 or len(held_out) == 0:
        raise InputError(f"the rank test needs distances of both sets, got {len(distances)} and {len(held_out)}")
    return float(mannwhitneyu(distances, held_out, alternative="less").pvalue)
