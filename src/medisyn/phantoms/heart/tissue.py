"""What sends echoes: scatterers that sit in the tissue and move with it, so that speckle moves and does not boil.

Shapes here: N scatterers, J places along the axis, K borders (see section.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medisyn.phantoms.heart import section
from medisyn.phantoms.heart.fan import Fan
from medisyn.phantoms.heart.patient import Patient
from medisyn.phantoms.heart.section import Heart, Section

PER_CELL = 2.5  # scatterers in a cell of the polar grid
LEVEL_DB = {  # echo of each layer that is not fluid
    section.BESIDE_LEFT: -28.0,
    section.RIGHT_FREE_WALL: -21.0,
    section.SEPTAL_WALL: -23.0,
    section.LATERAL_WALL: -23.0,
    section.BESIDE: -28.0,
}
PERICARDIUM_DB, PERICARDIUM_MM = -12.0, 2.0
VALVE_DB, VALVE_MM = -13.0, 1.3
PATCHES_MM, PATCHES_DB = 9.0, 2.2  # uneven echo inside a tissue
CLOUDS_MM, CLOUDS_DB = 38.0, 3.5  # and over the whole picture


@dataclass(frozen=True)
class Pose:
    """Where the heart lies under the probe: the apex in mm and the tilt of the axis in radians."""

    x: float
    z: float
    tilt: float

    def to_probe(self, l: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # noqa: E741
        """x and z of points given along and beside the axis."""
        sin, cos = np.sin(self.tilt), np.cos(self.tilt)
        return self.x + l * sin + n * cos, self.z + l * cos - n * sin

    def to_axis(self, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The inverse of to_probe."""
        sin, cos = np.sin(self.tilt), np.cos(self.tilt)
        return (x - self.x) * sin + (z - self.z) * cos, (x - self.x) * cos - (z - self.z) * sin


def pose_of(patient: Patient, seconds: float = 0.0) -> Pose:
    """The pose while the probe sways slowly."""
    turn = 2 * np.pi * patient.sway_hertz * seconds
    first, second = (float(np.sin(turn + phase)) for phase in patient.sway_phase)
    return Pose(
        patient.apex[0] + patient.sway_mm[0] * first,
        patient.apex[1] + patient.sway_mm[1] * second,
        float(np.deg2rad(patient.tilt + patient.sway_degrees * second)),
    )


@dataclass(frozen=True, eq=False)
class Tissue:
    """Scatterers of solid tissue: their material place, layer, share of the layer, and complex echo."""

    cell_N: np.ndarray  # place along the axis: index into J, and the part to the next
    part_N: np.ndarray
    layer_N: np.ndarray
    share_N: np.ndarray
    echo_N: np.ndarray  # complex64

    def now(self, moment: Section) -> tuple[np.ndarray, np.ndarray]:
        """Where the scatterers are now, along and beside the axis."""
        place = _between(moment.place_J, self.cell_N, self.part_N)
        flat, width = moment.borders_KJ.ravel(), len(moment.place_J)
        inner = _between(flat, self.layer_N * width + self.cell_N, self.part_N)
        outer = _between(flat, (self.layer_N + 1) * width + self.cell_N, self.part_N)
        return place, inner + self.share_N * (outer - inner)


def draw_tissue(heart: Heart, fan: Fan, rng: np.random.Generator) -> Tissue:
    """Scatterers for the whole sector, as many for each cell of the polar grid; fluid has none."""
    depths, beams = fan.shape
    count = int(PER_CELL * depths * beams)
    radius = fan.depth * rng.uniform(-0.02, 1.04, count)
    angle = fan.half * rng.uniform(-1.06, 1.06, count)
    l_N, n_N = pose_of(heart.patient).to_axis(radius * np.sin(angle), radius * np.cos(angle))
    borders_KN = heart.rest.at(l_N)
    layer_N = np.clip((n_N >= borders_KN).sum(axis=0) - 1, 0, 8)
    inner_N, outer_N = (np.take_along_axis(borders_KN, (layer_N + i)[None], axis=0)[0] for i in (0, 1))
    level_N = _levels(heart, l_N, n_N, layer_N, borders_KN) + _patches(l_N, n_N, rng)
    echo_N = 10 ** (level_N / 20) * (rng.standard_normal(count) + 1j * rng.standard_normal(count)) / np.sqrt(2)
    solid_N = np.isin(layer_N, list(LEVEL_DB)) & (np.abs(n_N) < section.FAR_MM)
    place_N = np.clip((l_N - heart.rest_J[0]) / section.STEP_MM, 0, len(heart.rest_J) - 1.001)
    cell_N = place_N.astype(np.int64)
    share_N = (n_N - inner_N) / np.maximum(outer_N - inner_N, 1e-6)
    return Tissue(
        *(array[solid_N] for array in (cell_N, place_N - cell_N, layer_N, share_N, echo_N.astype(np.complex64)))
    )


def _levels(heart: Heart, l_N: np.ndarray, n_N: np.ndarray, layer_N: np.ndarray, borders_KN: np.ndarray) -> np.ndarray:
    """The echo of each scatterer in dB, by its layer; the pericardium is a bright line round both ventricles."""
    p = heart.patient
    level_N = np.full(len(l_N), -200.0)
    for layer, level in LEVEL_DB.items():
        level_N[layer_N == layer] = level
    level_N[(layer_N == section.SEPTAL_WALL) & (l_N > p.length)] += 1
    beyond_N = np.maximum(borders_KN[section.SAC_LEFT] - n_N, n_N - borders_KN[section.SAC_RIGHT])
    ring_N = (beyond_N >= 0) & (beyond_N < PERICARDIUM_MM) & (l_N > -20) & (l_N < p.length + 4)
    ring_N &= borders_KN[section.SAC_RIGHT] > 0
    side_N = np.clip((l_N + 5) / (0.3 * p.length), 0, 1)  # 0 before the apex, 1 where the walls run along the beam
    for wall in (section.SEPTAL_WALL, section.LATERAL_WALL, section.RIGHT_FREE_WALL):
        level_N[layer_N == wall] += 1 - p.angle_loss * side_N[layer_N == wall]
    level_N[ring_N] = PERICARDIUM_DB - 3 * (n_N[ring_N] < 0)
    far_N = (beyond_N >= PERICARDIUM_MM) & np.isin(layer_N, (section.BESIDE_LEFT, section.BESIDE))
    level_N[far_N] -= np.clip(beyond_N[far_N] / 4, 0, 12) * (l_N[far_N] > 0)  # echoes fade behind the bright line
    return level_N


def _patches(l_N: np.ndarray, n_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Smooth unevenness in dB, finer along the axis than across."""
    from scipy.ndimage import map_coordinates

    fine, wide = PATCHES_DB * rng.standard_normal((64, 64)), CLOUDS_DB * rng.standard_normal((16, 16))
    patches_N = map_coordinates(fine, [l_N / PATCHES_MM + 12, n_N / (0.6 * PATCHES_MM) + 32], order=1, mode="wrap")
    return patches_N + map_coordinates(wide, [l_N / CLOUDS_MM + 4, n_N / CLOUDS_MM + 8], order=1, mode="wrap")


def _between(values: np.ndarray, cell_N: np.ndarray, part_N: np.ndarray) -> np.ndarray:
    first = values[cell_N]
    return first + part_N * (values[np.minimum(cell_N + 1, values.size - 1)] - first)
