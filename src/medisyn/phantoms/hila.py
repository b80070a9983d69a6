"""Where the trees of the lungs begin: trachea and main bronchi, pulmonary trunk, and the veins' way to the heart.

Millimetres are of the body: x to the patient's left, y to his back, z to his head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medisyn.phantoms.chest import Chest
from medisyn.phantoms.tubes import Tubes, curve, join

# From the bronchus of a lobe to where its vein leaves it: below and in front.
_VEIN_DROP = {1: (0, -14, -14), 2: (1, 4, -25), 3: (-6, -14, -26), 4: (3, -13, -14), 5: (2, 2, -14)}


@dataclass(frozen=True)
class Root:
    """Where the tree of one lobe starts, and the radius there."""

    start: np.ndarray
    radius: float


def carina_of(chest: Chest) -> np.ndarray:
    """Where the trachea divides."""
    p = chest.patient
    return np.array([1.0, p.spine_y_at(p.carina) - 36, p.z_of(p.carina)])


def _divisions(chest: Chest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the right upper bronchus leaves, where the right middle one leaves, and where the left one divides."""
    carina = carina_of(chest)
    return _by(carina, -25, 3, -15), _by(carina, -35, 6, -40), _by(carina, 44, 9, -23)


def central_airway(chest: Chest) -> Tubes:
    """Trachea and main bronchi (lumen)."""
    p, carina, r = chest.patient, carina_of(chest), chest.patient.trachea_radius
    right, middle, left = _divisions(chest)
    top = np.array([1.5, p.spine_y_at(1.15) - 31, p.z_of(1.25)])
    return join(
        [
            curve([top, _by((top + carina) / 2, -0.5, 1, 0), carina], [r, r, 0.97 * r]),
            curve([carina, _by((carina + right) / 2, -1, 0, 1), right], [0.85 * r, 0.78 * r, 0.74 * r]),
            curve([right, (right + middle) / 2, middle], [0.66 * r, 0.62 * r, 0.6 * r]),
            curve([carina, _by((carina + left) / 2, 0, 0, 2), left], [0.78 * r, 0.7 * r, 0.66 * r]),
        ]
    )


def bronchial_roots(chest: Chest) -> dict[int, Root]:
    """The lobar bronchi, by lobe label."""
    r = chest.patient.trachea_radius
    right, middle, left = _divisions(chest)
    return {
        1: Root(left, 0.52 * r),
        2: Root(_by(left, 3, 4, -7), 0.54 * r),
        3: Root(right, 0.5 * r),
        4: Root(_by(middle, 1, -3, 2), 0.38 * r),
        5: Root(middle, 0.55 * r),
    }


def pulmonary_trunk(chest: Chest) -> Tubes:
    """Pulmonary trunk and the two main arteries up to the hila."""
    p, carina = chest.patient, carina_of(chest)
    right, _, left = _divisions(chest)
    x0, y0, z0 = chest.heart_centre()
    wide = 12.0 * (p.aorta_radius / 13) ** 0.5
    outflow = np.array([x0 + 12, y0 - 14, z0 + 34 * p.heart_scale])
    fork = _by(carina, 16, -24, -16)
    left, right = _by(left, 3, -3, 9), _by(right, -4, -9, -6)
    radii = (0.85 * wide, 0.8 * wide)
    return join(
        [
            curve([outflow, _by((outflow + fork) / 2, 3, -3, 2), fork], [wide + 1, wide, 0.9 * wide]),
            curve([fork, _by(fork, 16, 12, 6), left, _by(left, 4, 10, -16)], [*radii, 9.0, 6.5]),
            curve([fork, _by(carina, -2, -17, -18), right, _by(right, -8, 6, -14)], [*radii, 8.5, 6.5]),
        ]
    )


def vein_roots_of(chest: Chest) -> dict[int, Root]:
    """Where the veins leave the lobes."""
    roots = bronchial_roots(chest)
    return {lobe: Root(_by(root.start, *_VEIN_DROP[lobe]), 0.95 * root.radius) for lobe, root in roots.items()}


def vein_stems(chest: Chest) -> Tubes:
    """From the lobes to the left atrium."""
    s = chest.patient.heart_scale
    x0, y0, z0 = chest.heart_centre()
    stems = []
    for lobe, root in vein_roots_of(chest).items():
        side, rise = (1 if lobe <= 2 else -1), (26 if lobe in (1, 3, 4) else 14)
        mouth = np.array([x0 + 2 + side * 22 * s, y0 + 30 * s, z0 + rise * s])
        stems.append(curve([root.start, _by((root.start + mouth) / 2, 0, 1, 0), mouth], [root.radius, 5.0, 6.5], 4))
    return join(stems)


def _by(point: np.ndarray, dx: float, dy: float, dz: float) -> np.ndarray:
    """A point moved by some millimetres."""
    return point + np.array([dx, dy, dz], dtype=np.float64)
