"""Kernel Inception distance: the unbiased polynomial MMD^2 between two sets of features (Binkowski et al., 2018).

Shapes here: N, M images of the two sets, D features, B resamples, S images of a subset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError
from medisyn.evaluation.bootstrap import Interval, recentred, resample
from medisyn.evaluation.frechet import check_pair

BLOCK_BYTES = 128 * 2**20


@dataclass(frozen=True)
class KernelDistance:
    """The mean over subsets, their standard deviation, and the subset size that was used (asked, or lowered to fit)."""

    value: float
    subset_sd: float
    subset_size: int
    subsets: int
    asked_subset_size: int


def polynomial_kernel(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    """k(x, y) = (x . y / D + 1)^3, (N, M)."""
    return (a_ND @ b_MD.T / a_ND.shape[1] + 1.0) ** 3


def polynomial_mmd2(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """Unbiased MMD^2: mean k over distinct pairs inside each set, minus twice the mean over cross pairs.

    It may be below 0 when the sets are alike; that is what unbiased means.
    """
    a, b = check_pair(a_ND, b_ND)
    return float(_weighted_mmd2(a, b, np.ones((len(a), 1)), np.ones((len(b), 1)))[0])


def kid(
    a_ND: np.ndarray, b_ND: np.ndarray, *, subset_size: int = 1000, subsets: int = 100, seed: int = 0
) -> KernelDistance:
    """KID as published: the mean of MMD^2 over random subsets of both sets.

    A subset size above the smaller set is lowered to it, and the result says so. Where the subset is both whole sets,
    there is only one, and the value is MMD^2 of everything.
    """
    a, b = check_pair(a_ND, b_ND)
    if subset_size < 2 or subsets < 1:
        raise InputError(f"KID needs subsets of at least 2 images and 1 subset, got {subset_size} and {subsets}")
    size = min(subset_size, len(a), len(b))
    if size == len(a) == len(b):
        return KernelDistance(polynomial_mmd2(a, b), 0.0, size, 1, subset_size)
    rng = np.random.default_rng(seed)
    values = [
        polynomial_mmd2(a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)])
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(values)), float(np.std(values)), size, subsets, subset_size)


def kid_interval(
    a_ND: np.ndarray,
    b_ND: np.ndarray,
    estimate: float,
    *,
    resamples: int,
    seed: int,
    groups: tuple[list[str] | None, list[str] | None] = (None, None),
    level: float = 0.95,
) -> Interval:
    """Bootstrap interval of MMD^2 around `estimate`: images, or patients, are drawn with replacement.

    Pairs of an image with its own copy are not counted; they would make every resample look less like the other set.
    """
    a, b = check_pair(a_ND, b_ND)
    rng = np.random.default_rng(seed)
    weights = []
    for features, names in ((a, groups[0]), (b, groups[1])):
        counts = [_draw_counts(len(features), rng, names) for _ in range(resamples)]
        weights.append(np.stack(counts, axis=1).astype(np.float64))
    return recentred(_weighted_mmd2(a, b, *weights), estimate, level)


def _draw_counts(num_items: int, rng: np.random.Generator, groups: list[str] | None) -> np.ndarray:
    """How often each image was drawn; drawn again while one image is the whole resample (no pair to count)."""
    while True:
        counts = np.bincount(resample(num_items, rng, groups), minlength=num_items)
        if np.count_nonzero(counts) > 1:
            return counts


def _weighted_mmd2(a_ND: np.ndarray, b_MD: np.ndarray, wa_NB: np.ndarray, wb_MB: np.ndarray) -> np.ndarray:
    """MMD^2 of B weightings of the images at once, (B,); an image never pairs with itself, whatever its weight."""
    within_a = _pair_sum(a_ND, a_ND, wa_NB, wa_NB) - _self_sum(a_ND, wa_NB)
    within_b = _pair_sum(b_MD, b_MD, wb_MB, wb_MB) - _self_sum(b_MD, wb_MB)
    total_a, total_b = wa_NB.sum(axis=0), wb_MB.sum(axis=0)
    pairs_a = total_a**2 - np.square(wa_NB).sum(axis=0)
    pairs_b = total_b**2 - np.square(wb_MB).sum(axis=0)
    between = _pair_sum(a_ND, b_MD, wa_NB, wb_MB) / (total_a * total_b)
    return within_a / pairs_a + within_b / pairs_b - 2 * between


def _pair_sum(a_ND: np.ndarray, b_MD: np.ndarray, wa_NB: np.ndarray, wb_MB: np.ndarray) -> np.ndarray:
    """wa' K wb for each weighting, in row blocks, so that memory does not grow with N * M."""
    rows = max(1, BLOCK_BYTES // (8 * len(b_MD)))
    total = np.zeros(wa_NB.shape[1])
    for start in range(0, len(a_ND), rows):
        block = polynomial_kernel(a_ND[start : start + rows], b_MD)
        total += np.einsum("nb,nb->b", wa_NB[start : start + rows], block @ wb_MB)
    return total


def _self_sum(a_ND: np.ndarray, wa_NB: np.ndarray) -> np.ndarray:
    own = (np.square(a_ND).sum(axis=1) / a_ND.shape[1] + 1.0) ** 3
    return own @ np.square(wa_NB)
