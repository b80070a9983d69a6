"""Lobes from a model: one plane per oblique fissure and one for the right horizontal one, moved to where fissures show.

Crude: real fissures bend, are often incomplete, and a collapsed lobe moves them far from the model.
Shapes here: d, h, w voxels of the frame (to the head, the back, the patient's left).
"""

from __future__ import annotations

import itertools

import numpy as np

from medisyn.evaluation.segment_ct.frame import Spacing
from medisyn.evaluation.segment_ct.lungs import LEFT, RIGHT

LEFT_UPPER, LEFT_LOWER, RIGHT_UPPER, RIGHT_MIDDLE, RIGHT_LOWER = 1, 2, 3, 4, 5
HEIGHT = {RIGHT: 0.40, LEFT: 0.42}  # of the oblique fissure in the middle of the chest: 0 lung base, 1 apex
RISE = 1.2  # mm of the oblique fissure towards the back
HORIZONTAL = 0.52
SHIFTS = (-0.08, -0.04, 0.0, 0.04, 0.08)  # of lung height, tried around the model
RISES = (1.0, 1.2, 1.4)
MIN_EVIDENCE_HU = 4.0  # a moved plane must look this much more like a fissure than the model's own


def lobes(hu_dhw: np.ndarray, sides_dhw: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Labels of LTRCLobes: 1 left upper, 2 left lower, 3 right upper, 4 right middle, 5 right lower.

    sides_dhw: 1 right lung, 2 left lung.
    """
    labels = np.zeros(sides_dhw.shape, dtype=np.uint8)
    if not sides_dhw.any():
        return labels
    evidence = _sheets(hu_dhw, sides_dhw > 0)
    rows = np.flatnonzero((sides_dhw > 0).any(axis=(0, 2)))
    middle = (rows[0] + rows[-1]) / 2
    for side in (RIGHT, LEFT):
        places = np.nonzero(sides_dhw == side)
        if len(places[0]) < 100:
            continue
        z, y = places[0] * spacing[0], (places[1] - middle) * spacing[1]
        base, apex = np.percentile(z, [0.5, 99.5])
        t, per_mm = (z - base) / max(apex - base, 1.0), 1 / max(apex - base, 1.0)
        strength = evidence[places]
        height, rise = _best_oblique(t, y * per_mm, strength, HEIGHT[side], spacing[0] * per_mm)
        lower = t < height + rise * y * per_mm
        if side == LEFT:
            labels[places] = np.where(lower, LEFT_LOWER, LEFT_UPPER)
        else:
            labels[places] = np.where(lower, RIGHT_LOWER, np.where(t < HORIZONTAL, RIGHT_MIDDLE, RIGHT_UPPER))
    return labels


def _best_oblique(
    t_N: np.ndarray, y_N: np.ndarray, strength_N: np.ndarray, height: float, step: float
) -> tuple[float, float]:
    """Height and rise of the plane with the most fissure in it; the model's own unless another is clearly better."""

    def score(candidate: tuple[float, float]) -> float:
        near = np.abs(t_N - candidate[0] - candidate[1] * y_N) < max(0.75 * step, 0.006)
        return float(strength_N[near].mean()) if near.sum() > 50 else 0.0

    candidates = [(height + shift, rise) for shift, rise in itertools.product(SHIFTS, RISES)]
    best = max(candidates, key=score)
    return best if score(best) > score((height, RISE)) + MIN_EVIDENCE_HU else (height, RISE)


def _sheets(hu_dhw: np.ndarray, lung_dhw: np.ndarray) -> np.ndarray:
    """How much brighter a voxel is than its surroundings, 0 to 60 HU: vessels saturate, so that sheets can win."""
    from scipy.ndimage import gaussian_filter, uniform_filter

    lung = np.where(lung_dhw, np.clip(hu_dhw, -950, -500), -850).astype(np.float32)
    return np.clip(gaussian_filter(lung, 0.6) - uniform_filter(lung, 7), 0, 60)
