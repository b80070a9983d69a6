"""Maximum mean discrepancy between two sets of features: KID, Gaussian MMD and CMMD. All values are MMD squared.

Shapes here: N, M images of the two sets, D features, B resamples, S images of a subset.
KID: polynomial kernel, unbiased, over subsets (Binkowski et al., 2018). MMD: Gaussian kernel, unbiased (Gretton et al.,
2012), its width from the median distance. CMMD: Gaussian kernel of fixed width on unit vectors, biased, times 1,000
(Jayasumana et al., 2024); with that width the kernel is all but linear, so CMMD is close to 10 times the squared
distance of the means and hardly sees anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from medisyn.errors import InputError
from medisyn.evaluation.bootstrap import Interval, recentred, resample
from medisyn.evaluation.frechet import check_pair

BLOCK_BYTES = 128 * 2**20
MEDIAN_IMAGES = 2000  # the median distance is taken over this many images of the pooled sets, or all when fewer
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (N, D), (M, D) -> (N, M)


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


def squared_distances(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    """|x - y|^2, (N, M), never below 0."""
    squares = np.square(a_ND).sum(axis=1)[:, None] + np.square(b_MD).sum(axis=1)[None, :]
    return np.maximum(squares - 2.0 * (a_ND @ b_MD.T), 0.0)


def gaussian_kernel(a_ND: np.ndarray, b_MD: np.ndarray, alpha: float) -> np.ndarray:
    """k(x, y) = exp(-alpha |x - y|^2), (N, M)."""
    return np.exp(-alpha * squared_distances(a_ND, b_MD))


def median_alpha(a_ND: np.ndarray, b_ND: np.ndarray, seed: int = 0) -> float:
    """1 / median |x - y|^2 over all pairs of different images of the two sets together.

    Of more than 2,000 images a seeded draw of 2,000 is taken. Raises InputError where the median is 0: most images
    have the same features, and no width follows from them.
    """
    a, b = check_pair(a_ND, b_ND, at_least=1)
    pooled = np.concatenate([a, b])
    if len(pooled) > MEDIAN_IMAGES:
        pooled = pooled[np.random.default_rng(seed).choice(len(pooled), MEDIAN_IMAGES, replace=False)]
    median = float(np.median(squared_distances(pooled, pooled)[np.triu_indices(len(pooled), k=1)]))
    if median <= 1e-12 * float(np.square(pooled).mean()):
        raise InputError("MMD: the median distance of the features is 0; give the bandwidth (alpha) yourself")
    return 1.0 / median


def gaussian_mmd2(a_ND: np.ndarray, b_ND: np.ndarray, alpha: float | None = None) -> float:
    """Unbiased MMD^2 with the Gaussian kernel; alpha None: `median_alpha` of these two sets.

    MedSyn's Table I used this estimator with a median rule of an unpublished fork; equality with it is not claimed.
    """
    a, b = check_pair(a_ND, b_ND)
    kernel = partial(gaussian_kernel, alpha=_checked_alpha(median_alpha(a, b) if alpha is None else alpha))
    return float(_weighted_mmd2(a, b, np.ones((len(a), 1)), np.ones((len(b), 1)), kernel)[0])


def cmmd(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """CMMD: 1,000 times the biased MMD^2 (pairs of an image with itself count) with k = exp(-|x - y|^2 / (2 * 10^2)).

    Raises InputError for features that are not unit vectors, as CLIP's are after normalisation.
    """
    a, b = check_pair(a_ND, b_ND, at_least=1)
    if not (is_unit(a) and is_unit(b)):
        raise InputError("CMMD takes unit vectors (CLIP features divided by their length); these are not")
    kernel, ones_a, ones_b = _cmmd_kernel, np.ones((len(a), 1)), np.ones((len(b), 1))
    within = (
        _pair_sum(a, a, ones_a, ones_a, kernel) / len(a) ** 2 + _pair_sum(b, b, ones_b, ones_b, kernel) / len(b) ** 2
    )
    return CMMD_SCALE * float((within - 2 * _pair_sum(a, b, ones_a, ones_b, kernel) / (len(a) * len(b)))[0])


def is_unit(features_ND: np.ndarray) -> bool:
    """Whether every row has length 1, to float32 rounding."""
    return bool(np.abs(np.square(features_ND.astype(np.float64)).sum(axis=1) - 1).max() < 1e-4)


def _cmmd_kernel(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    return gaussian_kernel(a_ND, b_MD, 1 / (2 * CMMD_SIGMA**2))


def _checked_alpha(alpha: float) -> float:
    if not (np.isfinite(alpha) and alpha > 0):
        raise InputError(f"MMD: the bandwidth alpha must be above 0, got {alpha:g}")
    return alpha


def polynomial_mmd2(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """Unbiased MMD^2: mean k over distinct pairs inside each set, minus twice the mean over cross pairs.

    It may be below 0 when the sets are alike; that is what unbiased means.
    """
    a, b = check_pair(a_ND, b_ND)
    return float(_weighted_mmd2(a, b, np.ones((len(a), 1)), np.ones((len(b), 1)), polynomial_kernel)[0])


def polynomial_mmd2_weighted(
    a_ND: np.ndarray, b_ND: np.ndarray, times_a_NB: np.ndarray, times_b_NB: np.ndarray
) -> np.ndarray:
    """`polynomial_mmd2` of B resamples at once, (B,): how often each image counts; none pairs with its own copy."""
    a, b = check_pair(a_ND, b_ND)
    return _weighted_mmd2(a, b, times_a_NB, times_b_NB, polynomial_kernel)


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
    """Bootstrap interval of KID's MMD^2 around `estimate`; see `_mmd2_resampled`."""
    a, b = check_pair(a_ND, b_ND)
    return recentred(_mmd2_resampled(a, b, polynomial_kernel, resamples, seed, groups), estimate, level)


def gaussian_mmd2_interval(
    a_ND: np.ndarray,
    b_ND: np.ndarray,
    estimate: float,
    alpha: float,
    *,
    resamples: int,
    seed: int,
    groups: tuple[list[str] | None, list[str] | None] = (None, None),
    level: float = 0.95,
) -> Interval:
    """The same for `gaussian_mmd2` with that alpha."""
    a, b = check_pair(a_ND, b_ND)
    kernel = partial(gaussian_kernel, alpha=_checked_alpha(alpha))
    return recentred(_mmd2_resampled(a, b, kernel, resamples, seed, groups), estimate, level)


def cmmd_interval(
    a_ND: np.ndarray,
    b_ND: np.ndarray,
    estimate: float,
    *,
    resamples: int,
    seed: int,
    groups: tuple[list[str] | None, list[str] | None] = (None, None),
    level: float = 0.95,
) -> Interval:
    """The same for `cmmd`. Its spread is that of the unbiased MMD^2: the two differ by a term that hardly moves."""
    a, b = check_pair(a_ND, b_ND)
    return recentred(CMMD_SCALE * _mmd2_resampled(a, b, _cmmd_kernel, resamples, seed, groups), estimate, level)


def _mmd2_resampled(
    a_ND: np.ndarray,
    b_ND: np.ndarray,
    kernel: Kernel,
    resamples: int,
    seed: int,
    groups: tuple[list[str] | None, list[str] | None],
) -> np.ndarray:
    """Unbiased MMD^2 of B resamples, (B,): images, or patients, are drawn with replacement.

    Pairs of an image with its own copy are not counted; they would make every resample look less like the other set.
    """
    rng = np.random.default_rng(seed)
    weights = []
    for features, names in ((a_ND, groups[0]), (b_ND, groups[1])):
        counts = [_draw_counts(len(features), rng, names) for _ in range(resamples)]
        weights.append(np.stack(counts, axis=1).astype(np.float64))
    return _weighted_mmd2(a_ND, b_ND, weights[0], weights[1], kernel)


def _draw_counts(num_items: int, rng: np.random.Generator, groups: list[str] | None) -> np.ndarray:
    """How often each image was drawn; drawn again while one image is the whole resample (no pair to count)."""
    while True:
        counts = np.bincount(resample(num_items, rng, groups), minlength=num_items)
        if np.count_nonzero(counts) > 1:
            return counts


def _weighted_mmd2(
    a_ND: np.ndarray, b_MD: np.ndarray, wa_NB: np.ndarray, wb_MB: np.ndarray, kernel: Kernel = polynomial_kernel
) -> np.ndarray:
    """MMD^2 of B weightings of the images at once, (B,); an image never pairs with itself, whatever its weight."""
    within_a = _pair_sum(a_ND, a_ND, wa_NB, wa_NB, kernel) - _self_sum(a_ND, wa_NB, kernel)
    within_b = _pair_sum(b_MD, b_MD, wb_MB, wb_MB, kernel) - _self_sum(b_MD, wb_MB, kernel)
    total_a, total_b = wa_NB.sum(axis=0), wb_MB.sum(axis=0)
    pairs_a = total_a**2 - np.square(wa_NB).sum(axis=0)
    pairs_b = total_b**2 - np.square(wb_MB).sum(axis=0)
    between = _pair_sum(a_ND, b_MD, wa_NB, wb_MB, kernel) / (total_a * total_b)
    return within_a / pairs_a + within_b / pairs_b - 2 * between


def _pair_sum(a_ND: np.ndarray, b_MD: np.ndarray, wa_NB: np.ndarray, wb_MB: np.ndarray, kernel: Kernel) -> np.ndarray:
    """wa' K wb for each weighting, in row blocks, so that memory does not grow with N * M."""
    rows = max(1, BLOCK_BYTES // (8 * len(b_MD)))
    total = np.zeros(wa_NB.shape[1])
    for start in range(0, len(a_ND), rows):
        block = kernel(a_ND[start : start + rows], b_MD)
        total += np.einsum("nb,nb->b", wa_NB[start : start + rows], block @ wb_MB)
    return total


def _self_sum(a_ND: np.ndarray, wa_NB: np.ndarray, kernel: Kernel) -> np.ndarray:
    own = np.array([kernel(row[None], row[None])[0, 0] for row in a_ND])
    return own @ np.square(wa_NB)
