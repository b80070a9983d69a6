"""Capsules with a radius at each end: airways, vessels and ribs, painted one by one into their own small boxes.

Shapes here: N capsules, D, H, W voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medisyn.phantoms.grid import Grid


@dataclass(frozen=True)
class Tubes:
    """N capsules in mm: from `start_N3` with radius `start_N` to `end_N3` with radius `end_N`; `lobe_N` 0 is none."""

    start_N3: np.ndarray
    end_N3: np.ndarray
    start_N: np.ndarray
    end_N: np.ndarray
    lobe_N: np.ndarray

    def __len__(self) -> int:
        return len(self.start_N)

    def pick(self, keep: np.ndarray) -> Tubes:
        return Tubes(self.start_N3[keep], self.end_N3[keep], self.start_N[keep], self.end_N[keep], self.lobe_N[keep])

    def wider(self, by_mm: float | np.ndarray) -> Tubes:
        """Every radius larger (or smaller) by `by_mm`."""
        return Tubes(self.start_N3, self.end_N3, self.start_N + by_mm, self.end_N + by_mm, self.lobe_N)

    @property
    def length_mm(self) -> float:
        """Summed length of the middle lines."""
        return float(np.linalg.norm(self.end_N3 - self.start_N3, axis=1).sum())


def chain(points: Sequence[Any] | np.ndarray, radii: float | Sequence[float] | np.ndarray, lobe: int = 0) -> Tubes:
    """Capsules along a line of points; one radius, or one per point."""
    points_N3 = np.asarray(points, dtype=np.float64)
    radii_N = np.broadcast_to(np.asarray(radii, dtype=np.float64), (len(points_N3),))
    count = len(points_N3) - 1
    return Tubes(points_N3[:-1], points_N3[1:], radii_N[:-1], radii_N[1:], np.full(count, lobe, dtype=np.uint8))


def curve(points: Sequence[Any], radii: float | Sequence[float], steps: int = 6) -> Tubes:
    """Capsules along a smooth curve through the points."""
    from scipy.interpolate import CubicSpline

    knots = np.arange(len(points))
    fine = np.linspace(0, len(points) - 1, (len(points) - 1) * steps + 1)
    radii_N = np.interp(fine, knots, np.broadcast_to(np.asarray(radii, dtype=np.float64), (len(points),)))
    return chain(CubicSpline(knots, np.asarray(points, dtype=np.float64))(fine), radii_N)


def join(parts: Sequence[Tubes]) -> Tubes:
    """All capsules of several."""
    columns = ("start_N3", "end_N3", "start_N", "end_N", "lobe_N")
    return Tubes(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))


def occupancy(tubes: Tubes, grid: Grid, thin: float = 0.2) -> np.ndarray:
    """Share of each voxel inside any capsule, (D, H, W) float32; capsules in world mm.

    A capsule thinner than a voxel is painted one voxel wide and fainter, so that its cross-section keeps its area.
    Capsules with a radius below `thin` voxels are left out.
    """
    out = np.zeros(grid.shape, dtype=np.float32)
    widest = np.maximum(tubes.start_N, tubes.end_N)
    reach = np.maximum(widest, 0.5 * grid.voxel_mm) + 0.5 * grid.voxel_mm
    low = np.minimum(tubes.start_N3, tubes.end_N3) - reach[:, None]
    high = np.maximum(tubes.start_N3, tubes.end_N3) + reach[:, None]
    axes = (grid.x_W, grid.y_H, grid.z_D)
    first = np.stack([np.searchsorted(axis, low[:, i]) for i, axis in enumerate(axes)], axis=1)
    last = np.stack([np.searchsorted(axis, high[:, i]) for i, axis in enumerate(axes)], axis=1)
    wanted = (last > first).all(axis=1) & (widest >= thin * grid.voxel_mm)
    for n in np.flatnonzero(wanted):
        (x0, y0, z0), (x1, y1, z1) = first[n], last[n]
        part = out[z0:z1, y0:y1, x0:x1]
        share = _capsule(
            (grid.x_W[x0:x1], grid.y_H[y0:y1], grid.z_D[z0:z1]),
            tubes.start_N3[n], tubes.end_N3[n], float(tubes.start_N[n]), float(tubes.end_N[n]), grid.voxel_mm,
        )  # fmt: skip
        np.maximum(part, share, out=part)
    return out


def _capsule(axes: tuple, start: np.ndarray, end: np.ndarray, r0: float, r1: float, voxel: float) -> np.ndarray:
    dx, dy, dz = (end - start).tolist()
    x = (axes[0] - np.float32(start[0]))[None, None, :]
    y = (axes[1] - np.float32(start[1]))[None, :, None]
    z = (axes[2] - np.float32(start[2]))[:, None, None]
    square = dx * dx + dy * dy + dz * dz
    along = (z * np.float32(dz) + y * np.float32(dy)) + x * np.float32(dx)
    along *= np.float32(1 / max(square, 1e-9))
    np.clip(along, 0, 1, out=along)
    away = (x - along * np.float32(dx)) ** 2
    away += (y - along * np.float32(dy)) ** 2
    away += (z - along * np.float32(dz)) ** 2
    np.sqrt(away, out=away)
    # A disc of radius p with an edge one voxel v wide fills pi (p^2 + v^2 / 12): p is chosen so that the area is right.
    least = voxel * voxel / 3
    painted0, painted1 = (math.sqrt(max(r * r, least) - voxel * voxel / 12) for r in (r0, r1))
    share = (np.float32(painted0 + 0.5 * voxel) + along * np.float32(painted1 - painted0) - away) * np.float32(
        1 / voxel
    )
    np.clip(share, 0, 1, out=share)
    faint = (r0 * r0 + r1 * r1) / (max(r0 * r0, least) + max(r1 * r1, least))
    return share if faint >= 1 else share * np.float32(faint)
