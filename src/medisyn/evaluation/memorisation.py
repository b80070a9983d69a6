"""Is a generated image a copy of a training image? MediSyn v2 section 4.3.4, after Carlini et al. (2023).

Shapes here: Q generated (query) images, N training images, D features, K neighbours, H, W pixels.
The nearest neighbours are found by cosine among the training images of the same stratum (specialty and image type);
the pair is then compared patch by patch in pixels. The same figure for held-out real images says what a distance means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError
from medisyn.evaluation.bootstrap import Interval, clopper_pearson
from medisyn.evaluation.frechet import check_features

THRESHOLD = 0.15  # MediSyn v2 4.3.4: at or below it a pair may be a reproduction
FLIPS = ("none", "horizontal", "vertical", "both")
BLOCK_BYTES = 128 * 2**20


def patch_distance(a_HWC: np.ndarray, b_HWC: np.ndarray, grid: int = 4) -> float:
    """The largest of grid x grid patch distances, sqrt(sum (a - b)^2) / sqrt(255^2 values): 0 equal, 1 black on white.

    MediSyn v2 takes 16 patches of 128 x 128 at 512 x 512; other sizes keep the 4 x 4 grid. Both images are uint8 of
    one shape, with sides that divide by the grid.
    """
    if a_HWC.dtype != np.uint8 or b_HWC.dtype != np.uint8 or a_HWC.shape != b_HWC.shape or a_HWC.ndim != 3:
        raise InputError(
            f"patch distance takes two uint8 images of one shape (height, width, channels), got "
            f"{a_HWC.shape} {a_HWC.dtype} and {b_HWC.shape} {b_HWC.dtype}. Bring both to one size first."
        )
    height, width, channels = a_HWC.shape
    if height % grid or width % grid:
        raise InputError(f"patch distance: {height} x {width} pixels do not divide into a {grid} x {grid} grid")
    difference = (a_HWC.astype(np.float64) - b_HWC.astype(np.float64)) / 255.0
    patches = np.square(difference).reshape(grid, height // grid, grid, width // grid, channels)
    return float(np.sqrt(patches.mean(axis=(1, 3, 4)).max()))


def flipped(image_HWC: np.ndarray, flip: str) -> np.ndarray:
    """The image as it is, mirrored left-right ("horizontal"), top-bottom ("vertical") or both."""
    if flip not in FLIPS:
        raise InputError(f"flip {flip!r} is unknown, allowed: {', '.join(FLIPS)}")
    if flip in ("horizontal", "both"):
        image_HWC = image_HWC[:, ::-1]
    return image_HWC[::-1] if flip in ("vertical", "both") else image_HWC


@dataclass(frozen=True)
class Neighbours:
    """Per query the `k` training images of its stratum that are nearest, best first.

    `index_QK` counts in the training set; -1 with similarity -inf where the stratum holds fewer than k.
    """

    index_QK: np.ndarray
    similarity_QK: np.ndarray


def nearest_neighbours(
    queries_QD: np.ndarray,
    training_ND: np.ndarray,
    k: int = 1,
    *,
    query_strata: Sequence[str] | None = None,
    training_strata: Sequence[str] | None = None,
) -> Neighbours:
    """Exact search by cosine in blocks of the training set; it may be a memory map larger than memory.

    Without strata every training image is a candidate.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    queries = _unit_rows(check_features(queries_QD, "generated images", at_least=1).astype(np.float32))
    if training_ND.ndim != 2 or training_ND.shape[1] != queries.shape[1]:
        raise InputError(f"training features must be (images, {queries.shape[1]}), got {training_ND.shape}")
    if (query_strata is None) != (training_strata is None):
        raise InputError("name the strata of both sets, or of neither")
    index = np.full((len(queries), k), -1, dtype=np.int64)
    similarity = np.full((len(queries), k), -np.inf, dtype=np.float32)
    if query_strata is None or training_strata is None:
        _search(queries, training_ND, np.arange(len(training_ND)), index, similarity)
        return Neighbours(index, similarity)
    ours, theirs = np.asarray(query_strata), np.asarray(training_strata)
    for stratum in np.unique(ours):
        rows, candidates = np.flatnonzero(ours == stratum), np.flatnonzero(theirs == stratum)
        part_index, part_similarity = index[rows], similarity[rows]
        _search(queries[rows], training_ND, candidates, part_index, part_similarity)
        index[rows], similarity[rows] = part_index, part_similarity
    return Neighbours(index, similarity)


def _unit_rows(features_ND: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(features_ND, axis=1, keepdims=True)
    return features_ND / np.maximum(length, np.finfo(np.float32).tiny)


def _search(
    queries_QD: np.ndarray,
    training_ND: np.ndarray,
    candidates: np.ndarray,
    index_QK: np.ndarray,
    similarity_QK: np.ndarray,
) -> None:
    """Merge the best of each block of candidates into `index_QK` and `similarity_QK`."""
    import torch

    k = index_QK.shape[1]
    queries = torch.from_numpy(queries_QD)
    step = max(k, BLOCK_BYTES // (4 * (training_ND.shape[1] + len(queries_QD))))
    for start in range(0, len(candidates), step):
        rows = candidates[start : start + step]
        block = training_ND[rows[0] : rows[-1] + 1] if rows[-1] - rows[0] + 1 == len(rows) else training_ND[rows]
        found = queries @ torch.from_numpy(_unit_rows(np.array(block, dtype=np.float32))).T
        values, best = found.topk(min(k, len(rows)), dim=1)
        both = np.concatenate([similarity_QK, values.numpy()], axis=1)
        which = np.concatenate([index_QK, rows[best.numpy()]], axis=1)
        order = np.argsort(-both, axis=1, kind="stable")[:, :k]
        similarity_QK[:] = np.take_along_axis(both, order, axis=1)
        index_QK[:] = np.take_along_axis(which, order, axis=1)


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
        wilcoxon_p=p,
        threshold=threshold,
        closer_than_real=None if not held_out else int((values < np.quantile(held_out, 0.01)).sum()),
    )
