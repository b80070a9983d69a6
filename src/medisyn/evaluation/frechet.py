"""The Fréchet distance between two sets of features, in float64 and by singular values alone.

Shapes here: N images, D features, R rows of a factor (F' F is the covariance).

FD = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), covariances with N - 1 (Heusel et al., 2017).
With S = F' F the last trace is the sum of the singular values of F1 F2': no matrix square root, no complex numbers,
nothing added to the diagonal, and exact also where a covariance has no full rank (N <= D, or dead features).
Float32 would be wrong in the third digit at N = 100, D = 2048; every array is float64 before anything is summed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError, RangeError

EXTRAPOLATION_SIZES = 15
LEAST_TO_EXTRAPOLATE, RELIABLE_TO_EXTRAPOLATE = 60, 2000  # images in the smaller set
NAMES = ("first set", "second set")


def check_features(features_ND: np.ndarray, what: str, at_least: int = 2) -> np.ndarray:
    """The features as float64 (N, D); InputError for a wrong shape or too few images, RangeError for NaN."""
    if features_ND.ndim != 2 or features_ND.shape[1] == 0:
        raise InputError(f"{what}: features must be (images, features), got an array of shape {features_ND.shape}")
    if len(features_ND) < at_least:
        raise InputError(f"{what}: this measure needs at least {at_least} images, got {len(features_ND)}")
    wide = np.asarray(features_ND, dtype=np.float64)
    if not np.isfinite(wide).all():
        raise RangeError(f"{what}: {int((~np.isfinite(wide)).any(axis=1).sum())} images have NaN or infinite features")
    return wide


def check_pair(
    a_ND: np.ndarray, b_ND: np.ndarray, at_least: int = 2, names: tuple[str, str] = NAMES
) -> tuple[np.ndarray, np.ndarray]:
    """Both sets checked, and of one width; an error names the set that it is about."""
    a, b = check_features(a_ND, names[0], at_least), check_features(b_ND, names[1], at_least)
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"the sets have {a.shape[1]} and {b.shape[1]} features per image; extract both with the same extractor"
        )
    return a, b


def frechet_distance(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """The Fréchet distance of two feature sets. It is biased upwards when N is not much larger than D.

    Compare it only with values of the same N, D, extractor and preprocessing.
    """
    a, b = check_pair(a_ND, b_ND)
    return frechet_weighted(a, b, np.ones(len(a)), np.ones(len(b)))


def frechet_weighted(a_ND: np.ndarray, b_ND: np.ndarray, times_a_N: np.ndarray, times_b_N: np.ndarray) -> float:
    """The distance of two sets in which image i stands `times[i]` times, as in a bootstrap resample.

    Equal to repeating the rows, at the cost of the distinct ones. The features are float64, as `check_pair` gives them.
    """
    mean_a, factor_a, trace_a = _moments(a_ND, times_a_N)
    mean_b, factor_b, trace_b = _moments(b_ND, times_b_N)
    return _assemble(mean_a - mean_b, trace_a + trace_b, factor_a, factor_b)


def frechet_from_moments(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """The same from stored means (D,) and covariances (D, D), for instance published reference statistics."""
    difference = np.asarray(mean_a, np.float64) - np.asarray(mean_b, np.float64)
    factor_a, factor_b = _root(np.asarray(cov_a, np.float64)), _root(np.asarray(cov_b, np.float64))
    return _assemble(difference, float(np.trace(cov_a) + np.trace(cov_b)), factor_a, factor_b)


def _assemble(difference_D: np.ndarray, traces: float, factor_a_RD: np.ndarray, factor_b_RD: np.ndarray) -> float:
    cross = _singular_values(_times_transposed(factor_a_RD, factor_b_RD)).sum()
    return float(difference_D @ difference_D + traces - 2.0 * cross)


def _times_transposed(a_RD: np.ndarray, b_RD: np.ndarray) -> np.ndarray:
    """a b', with half the multiplications where b is upper triangular, as a Cholesky root is."""
    if b_RD.shape[0] == b_RD.shape[1] and not np.tril(b_RD, -1).any():
        from scipy.linalg.blas import dtrmm

        product: np.ndarray = dtrmm(1.0, b_RD, a_RD, side=1, trans_a=1)
        return product
    return a_RD @ b_RD.T


def _moments(features_ND: np.ndarray, times_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean (D,), F with F' F = covariance, and the covariance's trace.

    F is the rows themselves when they are few, else a D x D root of the covariance.
    """
    kept, total = times_N > 0, float(times_N.sum())
    rows, times = (features_ND, times_N) if kept.all() else (features_ND[kept], times_N[kept])
    mean_D = times @ rows / total
    centred_RD = rows - mean_D
    if (times != 1).any():
        centred_RD *= np.sqrt(times)[:, None]
    if len(rows) <= rows.shape[1]:
        factor_RD = centred_RD / np.sqrt(total - 1)
        return mean_D, factor_RD, float(np.square(factor_RD).sum())
    covariance_DD = centred_RD.T @ centred_RD
    covariance_DD /= total - 1
    return mean_D, _root(covariance_DD), float(np.trace(covariance_DD))


def _root(covariance_DD: np.ndarray) -> np.ndarray:
    """F with F' F = covariance: Cholesky where it is safe, else by eigenvalues, those of rounding size left out."""
    tiny = len(covariance_DD) * np.finfo(np.float64).eps
    try:
        upper = np.linalg.cholesky(covariance_DD).T
        pivots = np.diag(upper) ** 2
        if pivots.min() > 10 * tiny * pivots.max():
            return upper
    except np.linalg.LinAlgError:
        pass  # no full rank: the eigenvalues below say how much is left
    values, vectors = np.linalg.eigh(covariance_DD)
    kept = values > tiny * max(values.max(), 0.0)
    return np.sqrt(values[kept])[:, None] * vectors[:, kept].T


def _singular_values(matrix: np.ndarray) -> np.ndarray:
    if min(matrix.shape) == 0:
        return np.zeros(1)
    return np.linalg.svd(matrix, compute_uv=False)


@dataclass(frozen=True)
class Extrapolation:
    """The line FD = value + slope / N through `sizes`; `standard_error` is the fit's, of the value at infinite N."""

    value: float
    slope: float
    standard_error: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_extrapolated(a_ND: np.ndarray, b_ND: np.ndarray, seed: int = 0) -> Extrapolation:
    """FID at infinite N, extrapolated (Chong and Forsyth, 2020): FD of random subsets of both sets, fitted over 1/N.

    15 sizes from a quarter of the smaller set up to all of it, even in 1/N. It is an estimate beyond the data: below
    2,000 images, or where N does not exceed D, the bias is not yet a line in 1/N and the value is unreliable.
    Raises InputError below 60 images.
    """
    a, b = check_pair(a_ND, b_ND, at_least=LEAST_TO_EXTRAPOLATE)
    most = min(len(a), len(b))
    inverse = np.linspace(4 / most, 1 / most, EXTRAPOLATION_SIZES)
    sizes = np.unique(np.rint(1 / inverse).astype(int))
    rng = np.random.default_rng(seed)
    distances = [
        frechet_distance(a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)])
        for size in sizes
    ]
    design = np.stack([np.ones(len(sizes)), 1 / sizes], axis=1)
    (value, slope), *_ = np.linalg.lstsq(design, np.array(distances), rcond=None)
    residual = np.array(distances) - design @ (value, slope)
    variance = residual @ residual / (len(sizes) - 2) * np.linalg.inv(design.T @ design)[0, 0]
    return Extrapolation(
        float(value), float(slope), float(np.sqrt(variance)), tuple(map(int, sizes)), tuple(map(float, distances))
    )
