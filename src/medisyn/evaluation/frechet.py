"""The Fréchet distance between two sets of features, in float64 and by singular values alone.

Shapes here: N images, D features, R rows of a factor (F' F is the covariance).

FD = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), covariances with N - 1 (Heusel et al., 2017).
With S = F' F the last trace is the sum of the singular values of F1 F2': no matrix square root, no complex numbers,
nothing added to the diagonal, and exact also where a covariance has no full rank (N <= D, or dead features).
"""

from __future__ import annotations

import numpy as np

from medisyn.errors import InputError, RangeError


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


def check_pair(a_ND: np.ndarray, b_ND: np.ndarray, at_least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Both sets checked, and of one width."""
    a, b = check_features(a_ND, "first set", at_least), check_features(b_ND, "second set", at_least)
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
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    factor_a, factor_b = _factor(a - mean_a), _factor(b - mean_b)
    traces = float(np.square(factor_a).sum() + np.square(factor_b).sum())
    return _assemble(mean_a - mean_b, traces, factor_a, factor_b)


def frechet_from_moments(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """The same from stored means (D,) and covariances (D, D), for instance published reference statistics."""
    difference = np.asarray(mean_a, np.float64) - np.asarray(mean_b, np.float64)
    factor_a, factor_b = _root(np.asarray(cov_a, np.float64)), _root(np.asarray(cov_b, np.float64))
    return _assemble(difference, float(np.trace(cov_a) + np.trace(cov_b)), factor_a, factor_b)


def _assemble(difference_D: np.ndarray, traces: float, factor_a_RD: np.ndarray, factor_b_RD: np.ndarray) -> float:
    cross = _singular_values(factor_a_RD @ factor_b_RD.T).sum()
    return float(difference_D @ difference_D + traces - 2.0 * cross)


def _factor(centred_ND: np.ndarray) -> np.ndarray:
    """F with F' F = covariance: the rows themselves when they are few, else a D x D root of the covariance."""
    num_images, dim = centred_ND.shape
    if num_images <= dim:
        return centred_ND / np.sqrt(num_images - 1)
    return _root(centred_ND.T @ centred_ND / (num_images - 1))


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
