"""A coarse look at a chest before it is painted: where each lobe is, and how much room there is.

Shapes here: S survey points, P sampled points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medisyn.phantoms.chest import Chest

STEP_MM = 6.0


@dataclass(frozen=True)
class Survey:
    """Points of a lattice inside the pleural spaces, in body mm: their lobe, and their distance to the pleura (< 0)."""

    points_S3: np.ndarray
    lobe_S: np.ndarray
    depth_S: np.ndarray

    @property
    def ml_per_point(self) -> float:
        return STEP_MM**3 / 1000

    def pick(self, keep_S: np.ndarray) -> Survey:
        return replace(self, points_S3=self.points_S3[keep_S], lobe_S=self.lobe_S[keep_S], depth_S=self.depth_S[keep_S])

    def side(self, side: str) -> np.ndarray:
        """True for the points of the left or right lung."""
        return self.lobe_S <= 2 if side == "left" else self.lobe_S >= 3

    def sample(self, lobe: int, total: int, margin_mm: float, rng: np.random.Generator) -> np.ndarray:
        """Random points (P, 3) of a lobe, its share of `total` by volume, at least `margin_mm` from the pleura."""
        inside = np.flatnonzero((self.lobe_S == lobe) & (self.depth_S < -margin_mm))
        count = round(total * len(inside) / max(len(self.points_S3), 1))
        if count == 0:
            return np.zeros((0, 3))
        chosen = rng.choice(inside, count, replace=count > len(inside))
        return self.points_S3[chosen] + rng.uniform(-0.5, 0.5, (count, 3)) * STEP_MM * 0.8


def survey(chest: Chest) -> Survey:
    """Look at the whole chest."""
    p = chest.patient
    axes = (
        np.arange(-p.half_width, p.half_width, STEP_MM),
        np.arange(-p.half_depth - 5, p.half_depth + 20, STEP_MM),
        np.arange(p.base_z - 10, -p.base_z + 5, STEP_MM),
    )
    x, y, z = (axis.ravel().astype(np.float32) for axis in np.meshgrid(*axes, indexing="ij"))
    cavity = chest.cavity(x, y, z)
    near = cavity < 0
    x, y, z, cavity = x[near], y[near], z[near], cavity[near]
    depth = chest.lungs(x, y, z, cavity, chest.heart(x, y, z))
    inside = depth < 0
    x, y, z, depth = x[inside], y[inside], z[inside], depth[inside]
    labels = chest.lobe_labels(x, *chest.fissures(x, y, z))
    return Survey(np.stack([x, y, z], axis=1).astype(np.float64), labels, depth)
