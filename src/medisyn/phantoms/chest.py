"""The shapes of a chest as signed distances in body millimetres: cavity, diaphragm, heart, spine, lungs, fissures.

Every function takes x, y, z that broadcast together, so the same code paints slabs and looks up single points.
Distances are below 0 inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medisyn.phantoms.grid import ellipsoid, smooth_cut, smooth_union, turned
from medisyn.phantoms.patient import Patient

Array = np.ndarray
PERICARDIUM_MM = 4.0  # fat between heart and lung
COLLAPSE_MM = 58.0  # how far a fissure moves when a lower lobe collapses as much as it can


@dataclass(frozen=True)
class Chest:
    """One patient's shapes. `collapse` is the severity of lower-lobe collapse on the left and the right, 0 to 1."""

    patient: Patient
    collapse: tuple[float, float] = (0.0, 0.0)

    # ---- walls

    def cavity(self, x: Array, y: Array, z: Array) -> Array:
        """The inner chest wall, open below and rounded at the apex of each lung."""
        wall = _squircle(x, y, *self.patient.inner(z))
        return smooth_cut(wall, (z - np.float32(self.patient.z_of(1.0))) * np.float32(0.9), 34)

    def skin(self, x: Array, y: Array, z: Array) -> Array:
        return _squircle(x, y, *self.patient.outer(z))

    def diaphragm(self, x: Array, y: Array, z: Array) -> Array:
        """Below it (inside): the abdomen. Two domes, the right one higher, steep at the back and sides."""
        p = self.patient
        deep = np.where(y > -5, np.float32(66), np.float32(105)) * np.float32(p.half_depth / 88)
        tops = []
        for sign, top in ((-1, p.dome_right), (1, p.dome_left)):
            across = (x - np.float32(sign * 0.46 * p.half_width)) / np.float32(0.56 * p.half_width)
            along = (y + np.float32(5)) / deep
            fall = across * across + along * along
            ripple = 2.5 * np.sin(x / 17 + p.waves[0] * sign) * np.sin(y / 23 + p.waves[1])
            tops.append(p.z_of(top) - np.float32(0.21 * p.lung_height) * fall + ripple)
        left = 1 / (1 + np.exp(-x / np.float32(7)))
        return (z - (tops[0] * (1 - left) + tops[1] * left)) * np.float32(0.75)  # the mean cosine of its slope

    # ---- mediastinum

    def heart(self, x: Array, y: Array, z: Array) -> Array:
        """The heart inside its pericardium."""
        s = self.patient.heart_scale
        x0, y0, z0 = self.heart_centre()
        u, v = turned(x - x0, y - y0, -self.patient.heart_turn)
        left = ellipsoid(u, v, z - z0 + 0.10 * u, (20 * s, 2.0, -4.0), (52 * s, 34 * s, 40 * s))
        right = ellipsoid(x - x0, y - y0, z - z0, (-19 * s, -3.0, 2.0), (34 * s, 37 * s, 46 * s))
        atrium = ellipsoid(x - x0, y - y0, z - z0, (2.0, 30 * s, 20 * s), (31 * s, 17 * s, 21 * s))
        return smooth_union(smooth_union(left, right, 16), atrium, 12)

    def heart_centre(self) -> tuple[float, float, float]:
        p = self.patient
        return (
            5.0 + 10 * (p.heart_scale - 1),
            -0.25 * p.half_depth,
            p.z_of(0.5 * (p.dome_left + p.dome_right)) + 26 * p.heart_scale,
        )

    def chambers(self, x: Array, y: Array, z: Array) -> Array:
        """Blood inside the heart muscle, seen with contrast medium."""
        s = self.patient.heart_scale
        x0, y0, z0 = self.heart_centre()
        u, v = turned(x - x0, y - y0, -self.patient.heart_turn)
        left = ellipsoid(u, v, z - z0 + 0.10 * u, (17 * s, 6 * s, -2.0), (36 * s, 18 * s, 26 * s))
        ventricle = ellipsoid(u, v, z - z0, (8 * s, -24 * s, -4.0), (36 * s, 12 * s, 30 * s))
        right = ellipsoid(x - x0, y - y0, z - z0, (-33 * s, 2.0, 4.0), (18 * s, 22 * s, 34 * s))
        atrium = ellipsoid(x - x0, y - y0, z - z0, (2.0, 30 * s, 20 * s), (28 * s, 14 * s, 18 * s))
        return np.minimum(np.minimum(left, ventricle), np.minimum(right, atrium))

    def between_lungs(self, x: Array, y: Array, z: Array, heart: Array) -> Array:
        """Everything between the two pleural spaces: heart, great vessels with their fat, oesophagus, spine."""
        p = self.patient
        t = p.t_of(z)
        middle = np.float32(0.5) * (1 + np.tanh((t - np.float32(0.45)) / np.float32(0.1)))
        width_z = 10 + 17 * middle - 9 * np.clip((t - 0.86) / 0.14, 0, 1)
        back = (y - (p.spine_y(z) - np.float32(36))) / np.float32(27)
        front = (y + np.float32(0.33 * p.half_depth)) / np.float32(34)
        upper = np.float32(15) * np.exp(-(((t - np.float32(0.80)) / np.float32(0.2)) ** 2))
        half = 3.0 + width_z * np.exp(-back * back) + upper * np.exp(-front * front)
        offset = np.float32(4) + 3 * np.sin(t * 5 + p.waves[2])
        slab = (np.abs(x - offset) - half) * np.float32(0.8)
        together = smooth_union(slab, heart - np.float32(PERICARDIUM_MM), 14)
        return smooth_union(together, self.spine_column(x, y, z), 10)

    def spine_column(self, x: Array, y: Array, z: Array) -> Array:
        """Vertebral bodies with the tissue around them, as one column."""
        v = y - self.patient.spine_y(z)
        u = x / np.float32(1.15)
        return np.sqrt(u * u + v * v) - np.float32(18.5) - np.maximum(v, 0) * np.float32(0.25)

    # ---- lungs

    def lungs(self, x: Array, y: Array, z: Array, cavity: Array, heart: Array) -> Array:
        """Both pleural spaces: inside the chest wall, above the diaphragm, beside the mediastinum."""
        above = -self.diaphragm(x, y, z)
        inside = smooth_cut(cavity + np.float32(2.0), -self.between_lungs(x, y, z, heart), 7)
        return smooth_cut(inside, above, 3)

    def fissures(self, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
        """Distances to the left and right oblique and to the horizontal fissure: below 0 lies the lower part."""
        p = self.patient
        oblique = []
        for sign, (t0, rise), collapse, wave in (
            (1, p.oblique_left, self.collapse[0], p.waves[3]),
            (-1, p.oblique_right, self.collapse[1], p.waves[4]),
        ):
            bow = 0.0016 * (x - np.float32(sign * 60)) ** 2
            ripple = 2.2 * np.sin(x / 19 + wave) + 2.0 * np.sin(y / 27 + 2 * wave)
            surface = p.z_of(t0) + rise * y + 0.0022 * rise * y * np.abs(y) - bow + ripple
            if collapse > 0:  # towards the spine and the diaphragm
                surface = surface - np.float32(COLLAPSE_MM * collapse) * (0.9 + np.clip(sign * x / 80, 0, 1.2))
            oblique.append((z - surface) / np.float32(np.hypot(1, rise)))
        dome = 8 * np.cos(np.clip((x + 65) / 60, -1.4, 1.4)) + 2 * np.sin(y / 21 + p.waves[5])
        horizontal = z - (p.z_of(p.horizontal) + dome - 6 - 0.12 * (y + 20))
        return oblique[0], oblique[1], horizontal

    def lobe_labels(self, x: Array, left: Array, right: Array, horizontal: Array) -> Array:
        """1 left upper, 2 left lower, 3 right upper, 4 right middle, 5 right lower (the order of LTRCLobes), uint8.

        Defined everywhere; it means a lobe only inside the lungs.
        """
        on_left = np.where(left > 0, np.uint8(1), np.uint8(2))
        on_right = np.where(right < 0, np.uint8(5), np.where(horizontal > 0, np.uint8(3), np.uint8(4)))
        return np.where(x > np.float32(4), on_left, on_right)


def _squircle(x: Array, y: Array, half_width: Array, half_depth: Array, centre_y: Array) -> Array:
    """Radial distance to an outline between an ellipse and a rectangle: u^4 + v^4 + 1.1 u^2 v^2 = 1."""
    u, v = x / half_width, (y - centre_y) / half_depth
    u, v = u * u, v * v
    size = np.sqrt(np.sqrt(u * u + v * v + np.float32(1.1) * u * v)) + np.float32(1e-6)
    shift = y - centre_y
    return np.sqrt(x * x + shift * shift) * (1 - 1 / size)
