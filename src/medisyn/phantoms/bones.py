"""Ribs, cartilage, sternum, clavicles, shoulder blades and vertebrae of one chest, in body millimetres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medisyn.phantoms.grid import ellipsoid, turned
from medisyn.phantoms.patient import Patient
from medisyn.phantoms.tubes import Tubes, chain, curve, join

RIBS = 12
# Angle from the front (0) over the side (90) to the spine (180) at which the bony part of each rib ends.
_ENDS = np.array([34, 30, 27, 27, 29, 33, 40, 50, 60, 70, 105, 135])
# How far a rib falls from the spine to its end, as a share of the height of the lungs.
_FALLS = np.array([0.13, 0.22, 0.28, 0.32, 0.36, 0.39, 0.40, 0.38, 0.34, 0.29, 0.16, 0.08])
_SIDES = (-1, 1)


@dataclass(frozen=True)
class Skeleton:
    """Tubes: ribs and the arches of the vertebrae as bone, costal cartilage apart."""

    bone: Tubes
    cartilage: Tubes


def skeleton(patient: Patient) -> Skeleton:
    ribs, cartilage = [], []
    for number in range(RIBS):
        for side in _SIDES:
            ribs.append(_rib(patient, number, side))
            if number < 10:
                cartilage.append(_cartilage(patient, number, side, ribs[-1].end_N3[-1]))
    return Skeleton(join([*ribs, *_arches(patient), *_clavicles(patient)]), join(cartilage))


def level_mm(patient: Patient) -> float:
    """Height of one thoracic vertebra with its disc."""
    return 0.094 * patient.lung_height


def _head_z(patient: Patient, number: int) -> float:
    return patient.z_of(1.03) - number * level_mm(patient)


def _rib(p: Patient, number: int, side: int) -> Tubes:
    """From beside the vertebra around the inner chest wall, falling towards the front."""
    z_head = _head_z(p, number)
    fall = _FALLS[number] * p.lung_height
    angles = np.linspace(158, _ENDS[number], 26)
    gone = (158 - angles) / (158 - _ENDS[number])
    z = z_head - fall * gone**1.15
    points = _on_wall(p, angles, z, side, 5.5)
    spine_y = p.spine_y_at(1.03 - number * level_mm(p) / p.lung_height)
    head = [side * 19.0, spine_y + 4, z_head]
    neck = [side * 33.0, spine_y + 21, z_head + 1]
    radii = np.full(len(points) + 2, 4.6 if 1 < number < 10 else 4.0)
    return chain(np.vstack([head, neck, points]), radii)


def _on_wall(p: Patient, degrees: np.ndarray, z: np.ndarray, side: int, out_mm: float) -> np.ndarray:
    """Points on the inner chest wall at an angle from the front, moved outwards."""
    half_width, half_depth, centre = p.inner(z)
    across, along = np.sin(np.deg2rad(degrees)), -np.cos(np.deg2rad(degrees))
    u, v = (across / half_width) ** 2, (along / half_depth) ** 2
    reach = 1 / np.sqrt(np.sqrt(u * u + v * v + 1.1 * u * v)) + out_mm
    return np.stack([side * reach * across, centre + reach * along, z], axis=1)


def _cartilage(p: Patient, number: int, side: int, start: np.ndarray) -> Tubes:
    """From the end of a rib to the sternum; those of ribs 8 to 10 reach only the one above."""
    t_sternum = 0.93 - 0.075 * number if number < 7 else 0.42
    z = p.z_of(t_sternum)
    end = np.array([side * (15.0 if number < 7 else 22.0), _sternum_y(p, z), z])
    middle = 0.5 * (start + end) + np.array([0, -3.0, -0.12 * abs(start[0] - end[0])])
    middle[1] = min(middle[1], _on_wall(p, np.array([14.0]), middle[2:], side, 5)[0, 1])
    return curve([start, middle, end], [4.6, 5.0, 4.6], 4)


def _sternum_y(p: Patient, z: float) -> float:
    _, half_depth, centre = p.inner(np.asarray(z, dtype=np.float32))
    return float(centre - half_depth) - 6.0


def _arches(p: Patient) -> list[Tubes]:
    """Pedicles, laminae, transverse and spinous processes of every vertebra in the scan."""
    parts = []
    for number in range(-2, 15):
        z = _head_z(p, number)
        y = float(p.spine_y(np.asarray(z, dtype=np.float32)))
        parts.append(chain([(0, y + 36, z - 2), (0, y + 47, z - 9), (0, y + 58, z - 17)], [4.4, 3.6, 3.8]))
        for side in _SIDES:
            parts.append(chain([(side * 11.5, y + 10, z + 2), (side * 13, y + 22, z)], [4.2, 4.0]))
            parts.append(chain([(side * 13, y + 22, z), (side * 1, y + 36, z - 3)], [3.6, 3.6]))
            parts.append(chain([(side * 13, y + 23, z), (side * 33, y + 31, z + 2)], [4.0, 3.6]))
    return parts


def _clavicles(p: Patient) -> list[Tubes]:
    z = p.z_of(0.965)
    front = _sternum_y(p, z)
    path = ((20, 0, 0), (58, -4, 10), (100, 22, 28), (132, 44, 36))
    return [curve([(s * x, front + dy, z + dz) for x, dy, dz in path], 5.6, 5) for s in _SIDES]


# ---- fields


def sternum(p: Patient, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Distance to the sternum, the manubrium wider than the body."""
    _, half_depth, centre = p.inner(z)
    t = p.t_of(z)
    half = 15 + 9 * np.clip((t - 0.78) / 0.12, 0, 1)
    across = np.abs(x) - half
    along = np.abs(y - (centre - half_depth - np.float32(6.5))) - np.float32(5.0)
    ends = np.abs(t - np.float32(0.68)) - np.float32(0.26)
    flat = np.maximum(across, along)
    return np.maximum(flat, ends * np.float32(p.lung_height))


def shoulder_blades(p: Patient, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Distance to the flat bones behind the upper ribs."""
    side = np.abs(x)
    u, v = turned(side - np.float32(0.86 * p.half_width), y - np.float32(0.80 * p.half_depth + 10), -36)
    height = (z - np.float32(p.z_of(0.80))) / np.float32(0.24 * p.lung_height)
    bow = v + 5 * (u / 40) ** 2
    return ellipsoid(u, bow, height, (0, 0, 0), (36.0, 3.4, 1.0))


def vertebrae(p: Patient, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances to the vertebral bodies, to the discs and to the spinal canal."""
    v = y - p.spine_y(z)
    u = x / np.float32(1.22)
    waist = np.float32(1.1) * np.cos(2 * np.pi * (z - np.float32(_head_z(p, 0))) / np.float32(level_mm(p)))
    column = np.maximum(np.sqrt(u * u + v * v) - np.float32(15.0) + waist, v - np.float32(12.5))
    phase = np.mod(z - np.float32(_head_z(p, 0)), np.float32(level_mm(p)))
    to_disc = np.abs(phase - np.float32(0.5 * level_mm(p))) - np.float32(2.4)
    bodies = np.maximum(column, -to_disc)
    discs = np.maximum(column, to_disc)
    w = v - np.float32(22.0)
    canal = np.sqrt(u * u * np.float32(0.9) + w * w) - np.float32(8.5)
    return bodies, discs, canal
