"""Precision, recall (Kynkäänniemi et al., 2019), density and coverage (Naeem et al., 2020) by nearest neighbours.

Shapes here: N real images, M generated images, D features. Distances are Euclidean in float64 and are made in row
blocks of bounded size, so memory does not grow with N * M. Equal to the `prdc` package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError
from medisyn.evaluation.frechet import check_pair

BLOCK_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Manifold:
    """The four measures, and per image what they are the mean of: `generated_*` over M, `real_*` over N."""

    generated_inside_M: np.ndarray  # 1.0 where a generated image lies in some real image's neighbourhood
    generated_density_M: np.ndarray  # real neighbourhoods that hold it, divided by k
    real_inside_N: np.ndarray  # 1.0 where a real image lies in some generated image's neighbourhood
    real_covered_N: np.ndarray  # 1.0 where its own neighbourhood holds a generated image
    nearest_k: int

    @property
    def precision(self) -> float:
        return float(self.generated_inside_M.mean())

    @property
    def recall(self) -> float:
        return float(self.real_inside_N.mean())

    @property
    def density(self) -> float:
        return float(self.generated_density_M.mean())

    @property
    def coverage(self) -> float:
        return float(self.real_covered_N.mean())


def manifold(real_ND: np.ndarray, generated_MD: np.ndarray, nearest_k: int = 5) -> Manifold:
    """Both sets need more than `nearest_k` images; a neighbourhood reaches to the k-th nearest of its own set."""
    if nearest_k < 1:
        raise InputError(f"nearest_k must be at least 1, got {nearest_k}")
    real, generated = check_pair(real_ND, generated_MD, at_least=nearest_k + 1, names=("real set", "generated set"))
    real_radius, generated_radius = neighbour_radius(real, nearest_k), neighbour_radius(generated, nearest_k)
    neighbourhoods = np.zeros(len(generated))
    real_inside, real_covered = np.zeros(len(real)), np.zeros(len(real))
    for rows, distance in _distance_blocks(real, generated):
        within_real = distance < real_radius[rows, None]
        neighbourhoods += within_real.sum(axis=0)
        real_covered[rows] = within_real.any(axis=1)
        real_inside[rows] = (distance < generated_radius[None, :]).any(axis=1)
    return Manifold(
        generated_inside_M=(neighbourhoods > 0).astype(np.float64),
        generated_density_M=neighbourhoods / nearest_k,
        real_inside_N=real_inside,
        real_covered_N=real_covered,
        nearest_k=nearest_k,
    )


def neighbour_radius(features_ND: np.ndarray, nearest_k: int) -> np.ndarray:
    """Distance of each image to its k-th nearest other image, (N,)."""
    radius = np.empty(len(features_ND))
    for rows, distance in _distance_blocks(features_ND, features_ND):
        distance[np.arange(len(distance)), np.arange(rows.start, rows.start + len(distance))] = 0.0
        radius[rows] = np.partition(distance, nearest_k, axis=1)[:, nearest_k]
    return radius


def _distance_blocks(a_ND: np.ndarray, b_MD: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of the distance matrix, block by block."""
    squares_b = np.square(b_MD).sum(axis=1)
    step = max(1, BLOCK_BYTES // (8 * len(b_MD)))
    for start in range(0, len(a_ND), step):
        block = a_ND[start : start + step]
        squared = np.square(block).sum(axis=1)[:, None] + squares_b[None, :] - 2.0 * (block @ b_MD.T)
        yield slice(start, start + len(block)), np.sqrt(np.maximum(squared, 0.0))
