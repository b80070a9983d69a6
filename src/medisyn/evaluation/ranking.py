"""Which of several generated sets is closer to the real images, and which differences are chance?

Shapes here: C sets, N images of each, D features, B resamples.
Every set is compared with the same real images and was made from the same prompts and seeds, so one resample draws the
same rows of all sets and the same real images: what the sets have in common cancels out of their differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError
from medisyn.evaluation.bootstrap import Interval, recentred, resample
from medisyn.evaluation.evaluate import FeatureSet
from medisyn.evaluation.frechet import frechet_distance, frechet_weighted
from medisyn.evaluation.kernel import polynomial_mmd2, polynomial_mmd2_weighted
from medisyn.evaluation.readers import holm

MEASURES = ("frechet", "kid")


@dataclass(frozen=True)
class Ranked:
    """One set's distance. `rank` counts the sets that are closer by more than chance: equal ranks are not told apart.

    `to_best` is this distance minus the smallest one, and `p` the chance of such a difference where there is none,
    corrected for all pairs of sets (Holm); both None for the set with the smallest value.
    """

    value: float
    interval: Interval
    rank: int
    to_best: float | None
    to_best_interval: Interval | None
    p: float | None


def rank_sets(
    generated: Sequence[FeatureSet], real: FeatureSet, measure: str, *, resamples: int = 200, seed: int = 0
) -> list[Ranked]:
    """The sets in their order, each with its distance to `real` and its rank from 1.

    measure: "frechet", or "kid" (unbiased polynomial MMD squared of all images). A difference counts where its
    bootstrap spread, taken as normal and corrected for all pairs, leaves p below 0.05.

    Raises InputError for sets of different size, extractor or preprocessing: their distances do not compare.
    """
    if measure not in MEASURES:
        raise InputError(f"measure must be one of {', '.join(MEASURES)}, got {measure!r}")
    if resamples < 20 or not generated:
        raise InputError(f"ranking needs at least 1 set and 20 resamples, got {len(generated)} and {resamples}")
    for part in generated:
        for what, ours, theirs in (
            ("sizes", len(part), len(generated[0])),
            ("extractors", part.extractor, real.extractor),
            ("preprocessing", part.preprocessing, real.preprocessing),
        ):
            if ours != theirs:
                raise InputError(f"the sets do not compare: different {what}, {ours!r} and {theirs!r}")
    values_C, again_CB = _distances(generated, real, measure, resamples, seed)
    p_CC = _holm(_pair_p(values_C, again_CB))
    best = int(values_C.argmin())
    found = []
    for number, value in enumerate(values_C):
        closer = (values_C < value) & (p_CC[number] < 0.05)
        is_best = number == best
        gap = float(value - values_C[best])
        spread = again_CB[number] - again_CB[best]
        found.append(
            Ranked(
                float(value),
                recentred(again_CB[number], float(value)),
                int(closer.sum()) + 1,
                None if is_best else gap,
                None if is_best else recentred(spread, gap),
                None if is_best else float(p_CC[number, best]),
            )
        )
    return found


def _distances(
    generated: Sequence[FeatureSet], real: FeatureSet, measure: str, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of every set (C,), and of every resample of it (C, B)."""
    sets = [part.features_ND.astype(np.float64) for part in generated]
    reals = real.features_ND.astype(np.float64)
    rng = np.random.default_rng(seed)
    names = None if real.patients is None else list(real.patients)
    ours = [np.bincount(resample(len(sets[0]), rng), minlength=len(sets[0])) for _ in range(resamples)]
    theirs = [np.bincount(resample(len(reals), rng, names), minlength=len(reals)) for _ in range(resamples)]
    if measure == "kid":
        weights = np.stack(ours, axis=1).astype(float), np.stack(theirs, axis=1).astype(float)
        values = np.array([polynomial_mmd2(part, reals) for part in sets])
        return values, np.stack([polynomial_mmd2_weighted(part, reals, *weights) for part in sets])
    values = np.array([frechet_distance(part, reals) for part in sets])
    again = [[frechet_weighted(part, reals, a, b) for a, b in zip(ours, theirs, strict=True)] for part in sets]
    return values, np.array(again)


def _pair_p(values_C: np.ndarray, again_CB: np.ndarray) -> np.ndarray:
    """Two-sided p of every pair's difference, (C, C): normal, with the standard deviation of its resamples."""
    from scipy.stats import norm

    difference_CC = values_C[:, None] - values_C[None, :]
    sd_CC = (again_CB[:, None, :] - again_CB[None, :, :]).std(axis=2, ddof=1)
    same = difference_CC == 0
    return np.where(same, 1.0, 2 * norm.sf(np.abs(difference_CC) / np.where(sd_CC > 0, sd_CC, 1e-300)))


def _holm(p_CC: np.ndarray) -> np.ndarray:
    """Holm's correction over the pairs of a symmetric matrix."""
    upper = np.triu_indices(len(p_CC), k=1)
    corrected = holm(p_CC[upper].tolist())
    found = np.ones_like(p_CC)
    found[upper] = corrected
    found.T[upper] = corrected
    return found
