"""The voxel grid of a phantom in millimetres, soft edges, and noise that belongs to the patient and not to the grid.

Shapes here: D, H, W depth (to the head), height (to the back), width (to the patient's left); L lattice points.
World millimetres are LPS with 0 in the centre of the scan. Body millimetres are the world turned by the patient's roll
and moved by his shift, so x = 0 is his midline.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

FIELD_MM = (320.0, 352.0, 352.0)  # D, H, W: the same for every size, so spacing follows from size
SLAB_VOXELS = 2**19  # a slab's arrays stay in the cache


@dataclass(frozen=True)
class Pose:
    """How the patient lies: roll about the long axis in degrees, and shift (x, y, z) in mm."""

    roll_degrees: float
    shift_mm: tuple[float, float, float]

    def to_world(self, body_N3: np.ndarray) -> np.ndarray:
        """Body (x, y, z) to world (x, y, z), both (N, 3) mm."""
        angle = np.deg2rad(self.roll_degrees)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        return body_N3 @ turn.T + np.asarray(self.shift_mm)


def draw_pose(rng: np.random.Generator) -> Pose:
    """Nearly straight and nearly in the middle."""
    roll, x, y, z = (float(v) for v in rng.normal(0, (2.5, 4, 4, 5)))
    return Pose(roll, (x, y, z))


@dataclass(frozen=True)
class Grid:
    """Voxel centres of one slab: world axes, and body coordinates that broadcast to (D, H, W)."""

    first: int  # index of the slab's first slice in the volume
    z_D: np.ndarray
    y_H: np.ndarray
    x_W: np.ndarray
    body_x: np.ndarray  # (1, H, W)
    body_y: np.ndarray  # (1, H, W)
    body_z: np.ndarray  # (D, 1, 1)
    voxel_mm: float  # side of a cube of the same volume

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.z_D), len(self.y_H), len(self.x_W)

    def soft(self, distance_mm: np.ndarray) -> np.ndarray:
        """Share of each voxel that lies inside: 1 at -voxel/2, 0.5 at distance 0, 0 at +voxel/2. float32."""
        share = distance_mm * np.float32(-1 / self.voxel_mm)
        share += np.float32(0.5)
        return np.clip(share, 0, 1, out=share)


def spacing_mm(size: int) -> tuple[float, float, float]:
    """Voxel size along d, h and w of a volume with `size` voxels on each side."""
    d, h, w = (extent / size for extent in FIELD_MM)
    return d, h, w


def affine(size: int) -> np.ndarray:
    """From (d, h, w) to LPS mm: slices from the feet up, rows to the back, columns to the patient's left."""
    matrix = np.zeros((4, 4))
    for axis, (step, extent) in enumerate(zip(spacing_mm(size), FIELD_MM, strict=True)):
        matrix[2 - axis, axis] = step
        matrix[2 - axis, 3] = (step - extent) / 2
    matrix[3, 3] = 1
    return matrix


def slabs(size: int, pose: Pose, slab_voxels: int = SLAB_VOXELS) -> Iterator[Grid]:
    """The volume in slabs of whole slices, from the feet up; together they hold every voxel once."""
    z, y, x = (((np.arange(size) + 0.5) * extent / size - extent / 2).astype(np.float32) for extent in FIELD_MM)
    angle = np.deg2rad(pose.roll_degrees)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    shifted_x, shifted_y = x[None, :] - np.float32(pose.shift_mm[0]), y[:, None] - np.float32(pose.shift_mm[1])
    body_x = (cosine * shifted_x + sine * shifted_y)[None]
    body_y = (cosine * shifted_y - sine * shifted_x)[None]
    voxel_mm = float(np.prod(spacing_mm(size)) ** (1 / 3))
    thick = max(1, slab_voxels // size**2)
    for first in range(0, size, thick):
        z_D = z[first : first + thick]
        body_z = (z_D - np.float32(pose.shift_mm[2]))[:, None, None]
        yield Grid(first, z_D, y, x, body_x, body_y, body_z, voxel_mm)


@dataclass(frozen=True)
class Lattice:
    """Smooth noise at fixed places in the scan, standard normal at its points and linear between them."""

    values_LLL: np.ndarray
    step_mm: float

    def on(self, grid: Grid) -> np.ndarray:
        """The noise at the voxels of a slab, (D, H, W) float32."""
        d, h, w = (
            self._weights(axis, length)
            for axis, length in zip((grid.z_D, grid.y_H, grid.x_W), self.values_LLL.shape, strict=True)
        )
        deep, high, wide = self.values_LLL.shape
        slices = (d @ self.values_LLL.reshape(deep, -1)).reshape(-1, high, wide)
        return np.matmul(np.matmul(h, slices), w.T)

    def _weights(self, axis_mm: np.ndarray, length: int) -> np.ndarray:
        place = axis_mm / self.step_mm + (length - 1) / 2
        distance = np.abs(place[:, None] - np.arange(length, dtype=np.float32))
        return np.maximum(0, 1 - distance).astype(np.float32)


def draw_lattice(rng: np.random.Generator, step_mm: float) -> Lattice:
    """Noise that covers the whole scan with a point every `step_mm`."""
    shape = [int(extent / step_mm) + 3 for extent in FIELD_MM]
    return Lattice(rng.standard_normal(shape, dtype=np.float32), step_mm)


# ---- signed distances in mm: below 0 inside. Exact for spheres and capsules, close near the surface for the others.


def ellipsoid(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, centre: tuple[float, ...], radii: tuple[float, ...]
) -> np.ndarray:
    """Distance to an ellipsoid along the axes, to first order at its surface."""
    u, v, w = ((c - c0) / r for c, c0, r in zip((x, y, z), centre, radii, strict=True))
    size = np.sqrt(u * u + v * v + w * w)
    slope = np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (w / radii[2]) ** 2)
    return size * (size - 1) / (slope + np.float32(1e-6))


def turned(x: np.ndarray, y: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in axes that are turned by `degrees` from x towards y."""
    cosine, sine = np.float32(np.cos(np.deg2rad(degrees))), np.float32(np.sin(np.deg2rad(degrees)))
    return cosine * x + sine * y, cosine * y - sine * x


def smooth_union(a: np.ndarray, b: np.ndarray, width_mm: float) -> np.ndarray:
    """The union of two distances with the crease between them filled over `width_mm`."""
    overlap = np.maximum(width_mm - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap * np.float32(0.25 / width_mm)


def smooth_cut(a: np.ndarray, b: np.ndarray, width_mm: float) -> np.ndarray:
    """The intersection of two distances with the edge rounded over `width_mm`."""
    return -smooth_union(-a, -b, width_mm)
