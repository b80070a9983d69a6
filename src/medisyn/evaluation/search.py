"""Exact nearest neighbours: by cosine among vectors, and by differing bits among perceptual hashes.

Shapes here: Q generated (query) images, N training images, D features, K neighbours.
One path for every size: the training set is read block by block, so it may be a memory map larger than memory; what is
held is one block, its products with the queries, and K best per query.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medisyn.errors import InputError, RangeError
from medisyn.evaluation.frechet import check_features
from medisyn.machine import multiplies_bfloat16

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 128 * 2**20
BLOCK_ROWS = 4096  # products of 1,000 queries with so many rows stay in the processor's cache
SIFTED_SHARE = 0.02  # of a block's products; where more pass the sieve, the whole block is computed in float32


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

    Without strata every training image is a candidate. Raises InputError for features that are NaN or infinite.
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
    if len(query_strata) != len(queries) or len(training_strata) != len(training_ND):
        raise InputError(
            f"strata: {len(query_strata)} and {len(training_strata)} names for {len(queries)} generated and "
            f"{len(training_ND)} training images"
        )
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

    k, tiny = index_QK.shape[1], np.finfo(np.float32).tiny
    sift = _Sift(torch.from_numpy(queries_QD))
    step = max(k, min(BLOCK_ROWS, BLOCK_BYTES // (4 * (training_ND.shape[1] + len(queries_QD)))))
    for start in range(0, len(candidates), step):
        rows = candidates[start : start + step]
        dense = rows[-1] - rows[0] + 1 == len(rows)
        block = np.array(training_ND[rows[0] : rows[-1] + 1] if dense else training_ND[rows], dtype=np.float32)
        length = torch.from_numpy(block).norm(dim=1)
        if not torch.isfinite(length).all():
            bad = int(rows[int(torch.isfinite(length).logical_not().nonzero()[0])])
            raise RangeError(f"training features: row {bad} is NaN or infinite. Delete the cached features of this run")
        _forget_pages(training_ND)
        unit = torch.from_numpy(block).div_(length.clamp_min(tiny)[:, None])
        better, found_BR = sift.better(unit, torch.from_numpy(similarity_QK[:, -1]))
        if len(better) == 0:
            continue
        values, best = found_BR.topk(min(k, len(rows)), dim=1)
        both = np.concatenate([similarity_QK[better], values.numpy()], axis=1)
        which = np.concatenate([index_QK[better], rows[best.numpy()]], axis=1)
        which[np.isneginf(both)] = -1
        order = np.argsort(-both, axis=1, kind="stable")[:, :k]
        similarity_QK[better] = np.take_along_axis(both, order, axis=1)
        index_QK[better] = np.take_along_axis(which, order, axis=1)


class _Sift:
    """Which training images of a block may be nearer to a query than its K best so far, and how near they are.

    Most are not. Where the processor multiplies bfloat16, products in it sift them out at a multiple of the speed; what
    is left is computed in float32, so the answers are those of float32. Nothing is lost: the product of the rounded
    x' and y' is off by at most |x - x'| |y| + |x'| |y - y'| (Cauchy-Schwarz), and those norms are measured.
    """

    def __init__(self, queries_QD: torch.Tensor) -> None:
        import torch

        self.queries = queries_QD
        self.half = queries_QD.to(torch.bfloat16) if multiplies_bfloat16() else None
        if self.half is not None:
            self.rounding_Q = (queries_QD - self.half.float()).norm(dim=1)

    def better(self, unit_RD: torch.Tensor, worst_Q: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
        """Queries with a candidate above `worst_Q`, and their products with the block, -inf where sifted out."""
        import torch

        if self.half is None or not torch.isfinite(worst_Q).all():
            return self._all(unit_RD, worst_Q)
        half = unit_RD.to(torch.bfloat16)
        roundings = self.rounding_Q + (unit_RD - half.float()).norm(dim=1).max() * (1 + self.rounding_Q)
        # The product itself is rounded to 8 bits, and summed in float32.
        floor_Q = worst_Q - worst_Q.abs() / 2**8 - roundings - 2.0**-20 * unit_RD.shape[1]
        rough_QR = torch.nn.functional.linear(self.half, half)
        better = (rough_QR.amax(dim=1) > floor_Q).nonzero()[:, 0]
        passed = rough_QR[better].float() > floor_Q[better, None]
        query, row = passed.nonzero(as_tuple=True)
        if len(query) > SIFTED_SHARE * passed.shape[1] * len(self.queries):
            return self._all(unit_RD, worst_Q)
        found_BR = torch.full(passed.shape, -torch.inf)
        found_BR[query, row] = (self.queries[better[query]] * unit_RD[row]).sum(dim=1)
        return better.numpy(), found_BR

    def _all(self, unit_RD: torch.Tensor, worst_Q: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
        found_RQ = unit_RD @ self.queries.T  # this way round is a twentieth faster than queries times rows
        better = (found_RQ.amax(dim=0) > worst_Q).nonzero()[:, 0]
        return better.numpy(), found_RQ.T[better]


def _forget_pages(training_ND: np.ndarray) -> None:
    """Give back the pages of a read-only map that were read; they would count as ours until the system needs them."""
    if isinstance(training_ND, np.memmap) and training_ND.mode == "r":
        training_ND._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class HashNeighbours:
    """Per query the training image whose hash differs in the fewest bits; index -1 and 65 bits where there is none."""

    index_Q: np.ndarray
    bits_Q: np.ndarray


def hash_values(hashes: Sequence[str]) -> np.ndarray:
    """64-bit hashes in hex as unsigned numbers, (N,) uint64."""
    try:
        values = [int(text, 16) for text in hashes]
    except ValueError:
        raise InputError("a perceptual hash is not 16 hex digits; the corpus index is damaged") from None
    if any(len(text) != 16 for text in hashes):
        raise InputError("a perceptual hash is not 16 hex digits; the corpus index is damaged")
    return np.array(values, dtype=np.uint64)


def nearest_hashes(queries_Q: np.ndarray, training_N: np.ndarray) -> HashNeighbours:
    """The nearest hash of the whole training set by Hamming distance; the first one where several are as near."""
    index = np.full(len(queries_Q), -1, dtype=np.int64)
    bits = np.full(len(queries_Q), 65, dtype=np.int64)
    step = max(1, BLOCK_BYTES // (16 * max(1, len(queries_Q))))
    for start in range(0, len(training_N), step):
        different = np.bitwise_count(queries_Q[:, None] ^ training_N[None, start : start + step])
        best = different.argmin(axis=1)
        found = np.take_along_axis(different, best[:, None], axis=1)[:, 0].astype(np.int64)
        nearer = found < bits
        index[nearer], bits[nearer] = best[nearer] + start, found[nearer]
    return HashNeighbours(index, bits)
