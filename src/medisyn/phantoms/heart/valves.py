"""Mitral and tricuspid leaflets: thin bright bands that swing from their hinges.

Shapes here: N scatterers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medisyn.phantoms.heart import section
from medisyn.phantoms.heart.section import Section
from medisyn.phantoms.heart.tissue import VALVE_DB, VALVE_MM

PER_LEAFLET = 350
LEAFLET_MM = 18.0  # usual length
CLOSED, OPEN = np.deg2rad(14.0), np.deg2rad(78.0)  # angle to the valve plane, towards the apex
BEND = np.deg2rad(34.0)  # between the leaflet's root and its tip
MITRAL_SHARES = (1.16, 0.92)  # length of the septal and the lateral leaflet, in half rings; they meet when closed
TRICUSPID_SHARES = (0.92, 1.16)


@dataclass(frozen=True, eq=False)
class Leaflets:
    """Scatterers of four leaflets: share of the length, distance from the middle of the band in mm, complex echo."""

    share_N: np.ndarray
    across_N: np.ndarray
    echo_N: np.ndarray  # complex64
    right: bool  # the tricuspid valve is there

    def now(self, moment: Section, opening: float) -> tuple[np.ndarray, np.ndarray]:
        """Where the scatterers are, along and beside the axis, leaflet after leaflet."""
        rings = [((-moment.hinge, moment.hinge), MITRAL_SHARES, 0.0)]
        if self.right:
            septum, free = moment.at(np.array([moment.length - 3.0]))[[section.SEPTUM, section.RIGHT_CAVITY], 0]
            rings.append(((float(free), float(septum)), TRICUSPID_SHARES[::-1], 4.0))
        places: list[np.ndarray] = []
        sides: list[np.ndarray] = []
        for (left, right), shares, ahead in rings:
            for hinge, inward, share in ((left, 1, shares[0]), (right, -1, shares[1])):
                number = len(places)
                part = slice(number * PER_LEAFLET, (number + 1) * PER_LEAFLET)
                length = share * (right - left) / 2
                along, beside = _swing(self.share_N[part], self.across_N[part], length, opening)
                places.append(moment.length - ahead - along)
                sides.append(hinge + inward * beside)
        return np.concatenate(places), np.concatenate(sides)


def _swing(share_N: np.ndarray, across_N: np.ndarray, length: float, opening: float) -> tuple[np.ndarray, np.ndarray]:
    """Towards the apex and towards the middle of the ring, of points on one leaflet: an arc from its hinge."""
    root = CLOSED + (OPEN - CLOSED) * opening + BEND / 2
    angle_N = root - BEND * share_N / 2  # mean direction up to here, on an arc
    tip_N = root - BEND * share_N
    along = length * share_N * np.sin(angle_N) + across_N * np.cos(tip_N)
    return along, length * share_N * np.cos(angle_N) - across_N * np.sin(tip_N)


def draw_leaflets(right: bool, per_mm2: float, rng: np.random.Generator) -> Leaflets:
    """The scatterers; without a right heart only the mitral valve's two leaflets.

    per_mm2  how many scatterers other tissue has there; leaflets have more, each with less echo
    """
    count = PER_LEAFLET * (4 if right else 2)
    level = 10 ** (VALVE_DB / 20) * np.sqrt(per_mm2 * LEAFLET_MM * VALVE_MM / PER_LEAFLET)
    echo_N = level * (rng.standard_normal(count) + 1j * rng.standard_normal(count)) / np.sqrt(2)
    return Leaflets(
        share_N=rng.uniform(0, 1, count),
        across_N=rng.uniform(-VALVE_MM / 2, VALVE_MM / 2, count),
        echo_N=echo_N.astype(np.complex64),
        right=right,
    )
