"""The sector of a phased array: from beams and depths to the picture.

Shapes here: A depths along a beam, B beams, H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fan:
    """A sector with its tip at the top centre of a picture, `opening` degrees wide and `depth` mm deep."""

    size: tuple[int, int]  # H, W
    depth: float
    opening: float

    @property
    def half(self) -> float:
        """Half the opening, in radians."""
        return float(np.deg2rad(self.opening / 2))

    @property
    def mm_per_pixel(self) -> float:
        """The sector touches the lower edge, or both sides when the picture is narrow."""
        return max(self.depth / (self.size[0] - 2), 2 * self.depth * np.sin(self.half) / (self.size[1] - 2))

    @property
    def shape(self) -> tuple[int, int]:
        """Depths and beams of the polar grid: finer than the pixels."""
        depths = int(np.clip(2.5 * self.depth / self.mm_per_pixel, 160, 640))
        return depths, int(np.clip(0.6 * depths, 112, 320))

    def positions(self, finer: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """x and z in mm of the pixels' centres, or of `finer` x `finer` points in each."""
        rows, columns = ((np.arange(n * finer) + 0.5) / finer - 0.5 for n in self.size)
        z = np.broadcast_to(((rows - 0.5) * self.mm_per_pixel)[:, None], (len(rows), len(columns)))
        x = np.broadcast_to(((columns - (self.size[1] - 1) / 2) * self.mm_per_pixel)[None], z.shape)
        return x, z

    def sector(self) -> np.ndarray:
        """True for pixels whose centre is in the sector (H, W)."""
        x, z = self.positions()
        radius, angle = np.hypot(x, z), np.arctan2(x, z)
        return (radius <= self.depth) & (np.abs(angle) <= self.half) & (z > 0)

    def to_grid(self, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column in the polar grid, as fractions."""
        depths, beams = self.shape
        row = np.hypot(x, z) * ((depths - 1) / self.depth)
        return row, (np.arctan2(x, z) / self.half + 1) * ((beams - 1) / 2)


class Converter:
    """Scan conversion, prepared once: bilinear in the polar grid, averaged over each pixel when pixels are coarse."""

    def __init__(self, fan: Fan) -> None:
        self.fan = fan
        self.finer = 2 if fan.size[0] < 160 else 1
        row, column = fan.to_grid(*fan.positions(self.finer))
        depths, beams = fan.shape
        inside = (row <= depths - 1) & (column >= 0) & (column <= beams - 1)
        top = np.clip(row.astype(np.int64), 0, depths - 2)
        left = np.clip(column.astype(np.int64), 0, beams - 2)
        down, right = (row - top).astype(np.float32), (column - left).astype(np.float32)
        self.first = top * beams + left
        self.weights = tuple(
            (weight * inside).astype(np.float32)
            for weight in ((1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right)
        )
        self.steps = (0, 1, beams, beams + 1)

    def __call__(self, polar_AB: np.ndarray) -> np.ndarray:
        """The picture (H, W); 0 outside the sector."""
        flat = polar_AB.ravel()
        fine = sum(weight * flat[self.first + step] for weight, step in zip(self.weights, self.steps, strict=True))
        height, width = self.fan.size
        fine = np.asarray(fine).reshape(height, self.finer, width, self.finer)
        return fine.mean(axis=(1, 3))
