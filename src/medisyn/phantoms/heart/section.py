"""The heart in the plane of the picture: borders beside the left ventricle's long axis, at each moment of the beat.

A point has a place l along the axis (mm from the apex of the cavity, towards the valve plane and on into the atrium)
and a distance n beside it (negative: to the septum). Nine borders part the line n at each l into layers; at rest, which
is end diastole, a tissue point keeps its layer and its share of it, so it can be followed through the beat.

Shapes here: J places along the axis, K = 10 borders, N points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medisyn.phantoms.heart.case import Case
from medisyn.phantoms.heart.patient import Patient

FAR_LEFT, SAC_LEFT, RIGHT_WALL, RIGHT_CAVITY, SEPTUM, ENDO_LEFT, ENDO_RIGHT, WALL, SAC_RIGHT, FAR_RIGHT = range(10)
BESIDE_LEFT, FLUID_LEFT, RIGHT_FREE_WALL, RIGHT_BLOOD, SEPTAL_WALL, LEFT_BLOOD, LATERAL_WALL, FLUID_RIGHT, BESIDE = (
    range(9)
)  # layer k lies between the borders k and k + 1
FAR_MM = 160.0
STEP_MM = 0.5
LONG_AXIS_SHARE = 0.28  # shortening of the long axis, as a share of the ejection fraction
APICAL_WALL = 0.8  # thickness of the wall at the apex, as a share
ATRIAL_WALL, ATRIAL_SEPTUM, RIGHT_THICKNESS = 2.5, 3.0, 4.0  # mm
RIGHT_SHORTENING = 0.3  # of the right ventricle's width
FADE_MM = 12.0  # behind the valve plane, pericardial fluid ends within this


@dataclass(frozen=True, eq=False)
class Section:
    """Borders of one moment. `place_J` is where each material place lies now; borders are sorted along K."""

    place_J: np.ndarray
    borders_KJ: np.ndarray
    length: float  # of the left ventricle's axis now
    hinge: float  # half the mitral ring
    volume_ml: float
    area_mm2: float
    emptied: float

    def at(self, l_N: np.ndarray) -> np.ndarray:
        """The borders (K, N) at places of the present."""
        return np.stack([np.interp(l_N, self.place_J, border_J) for border_J in self.borders_KJ])


class Heart:
    """The moving heart of one patient and case."""

    def __init__(self, patient: Patient, case: Case) -> None:
        self.patient, self.ejection = patient, case.ejection_fraction / 100
        self.floor = patient.length + patient.atrium_length
        self.apical_wall = APICAL_WALL * patient.wall
        self.rest_J = np.arange(-60.0, self.floor + 60.0, STEP_MM)
        self.u_J = self.rest_J / patient.length
        self.left_J, self.right_J = (outline(self.u_J, w) for w in (patient.septal_waves, patient.lateral_waves))
        fine = np.linspace(0, 1, 4001)
        width = outline(fine, patient.septal_waves) + outline(fine, patient.lateral_waves)
        self.mean_width, self.mean_square = float(np.trapezoid(width, fine)), float(np.trapezoid(width**2, fine))
        rest_radius = self._radius(patient.edv_ml, patient.length)
        self.muscle = ((rest_radius + patient.wall) ** 2 - rest_radius**2) * patient.length  # kept: muscle is not lost
        self.sac = None if case.effusion_ml == 0 else self._fit_sac(case.effusion_ml)
        self.rest = self.section(0.0)

    def section(self, emptied: float) -> Section:
        """The borders when the share `emptied` of the stroke volume has left."""
        p, part = self.patient, self.ejection * emptied
        volume = p.edv_ml * (1 - part)
        length = p.length * (1 - LONG_AXIS_SHARE * part)
        radius = self._radius(volume, length)
        place_J = np.interp(
            self.rest_J,
            [self.rest_J[0], 0, p.length, self.floor, self.rest_J[-1]],
            [self.rest_J[0], 0, length, self.floor, self.rest_J[-1]],
        )
        atrium = p.atrium_radius * (0.95 + 0.1 * emptied)
        borders_KJ = np.empty((10, len(place_J)))
        self._left_heart(borders_KJ, radius, length, atrium)
        self._right_heart(borders_KJ, emptied)
        borders_KJ[FAR_LEFT], borders_KJ[FAR_RIGHT] = -FAR_MM, FAR_MM
        borders_KJ[SAC_LEFT], borders_KJ[SAC_RIGHT] = borders_KJ[RIGHT_WALL], borders_KJ[WALL]
        if self.sac is not None:  # fluid lets the heart move inside a sac that stays
            for border, sac_J in ((SAC_LEFT, -self.sac[0]), (SAC_RIGHT, self.sac[1])):
                borders_KJ[border] = np.interp(place_J, self.rest_J, sac_J)
            np.minimum(borders_KJ[SAC_LEFT], borders_KJ[RIGHT_WALL], out=borders_KJ[SAC_LEFT])
            np.maximum(borders_KJ[SAC_RIGHT], borders_KJ[WALL], out=borders_KJ[SAC_RIGHT])
        area = radius * length * self.mean_width
        return Section(place_J, borders_KJ, length, 0.8 * atrium, volume, area, emptied)

    def _radius(self, volume_ml: float, length: float) -> float:
        """The radius that gives a volume by the method of discs: pi/4 * length * mean of the squared width."""
        return float(np.sqrt(volume_ml * 1000 / (np.pi / 4 * length * self.mean_square)))

    def _left_heart(self, borders_KJ: np.ndarray, radius: float, length: float, atrium: float) -> None:
        """Left ventricle with its wall, left atrium with its own."""
        p, chamber_J = self.patient, self.rest_J <= self.patient.length
        wall = float(np.sqrt(radius**2 + self.muscle / length)) - radius
        shell_u_J = (self.rest_J + self.apical_wall) / (p.length + self.apical_wall)
        behind_J = (self.rest_J - p.length) / p.atrium_length
        atrium_J = atrium * _dome(-0.6 + 1.6 * behind_J)
        grown = p.atrium_length + ATRIAL_WALL
        shell_J = (atrium + ATRIAL_WALL) * _dome(-0.6 + 1.6 * (self.rest_J - p.length) / grown)
        septum_J = (atrium + ATRIAL_SEPTUM) * _dome(-0.6 + 1.6 * (self.rest_J - p.length) / grown)
        for endo, outer, outline_J, waves, sign, behind_outer_J in (
            (ENDO_LEFT, SEPTUM, self.left_J, p.septal_waves, -1, septum_J),
            (ENDO_RIGHT, WALL, self.right_J, p.lateral_waves, 1, shell_J),
        ):
            inner_J = radius * outline_J
            outer_J = np.maximum((radius + wall) * outline(shell_u_J, waves), np.where(inner_J > 0, inner_J + 4, 0))
            borders_KJ[endo] = sign * np.where(chamber_J, inner_J, atrium_J)
            borders_KJ[outer] = sign * _soft(np.where(chamber_J, outer_J, behind_outer_J), keep_J=self.rest_J < 0)
        np.maximum(borders_KJ[WALL], borders_KJ[ENDO_RIGHT], out=borders_KJ[WALL])
        np.minimum(borders_KJ[SEPTUM], borders_KJ[ENDO_LEFT], out=borders_KJ[SEPTUM])

    def _right_heart(self, borders_KJ: np.ndarray, emptied: float) -> None:
        """Right ventricle and atrium outside the septum; nothing in the two-chamber view, where both widths are 0."""
        p = self.patient
        up_J = np.clip((self.u_J - p.right_start) / (1 - p.right_start), 0, 1)
        ventricle_J = p.right_width * (1 - RIGHT_SHORTENING * emptied) * np.sin(np.pi / 2 * up_J) ** 0.7
        atrium_J = p.right_atrium * (0.95 + 0.1 * emptied) * _dome(-0.6 + 1.6 * (self.u_J - 1) * p.length / (
            0.96 * p.atrium_length
        ))  # fmt: skip
        width_J = _soft(np.where(self.u_J <= 1, ventricle_J, atrium_J), keep_J=self.rest_J < 0)
        thick_J = RIGHT_THICKNESS * np.clip((self.u_J - p.right_start) / 0.12 + 1, 0, 1) * (self.rest_J < self.floor)
        thick_J = np.where(self.u_J > 1, np.minimum(thick_J, ATRIAL_WALL), thick_J) * (p.right_width > 0)
        borders_KJ[RIGHT_CAVITY] = borders_KJ[SEPTUM] - width_J
        borders_KJ[RIGHT_WALL] = borders_KJ[RIGHT_CAVITY] - thick_J

    def _fit_sac(self, effusion_ml: float) -> tuple[np.ndarray, np.ndarray]:
        """The pericardium at rest that holds the fluid, as distances on the left and right, by halving its thickness.

        The fluid's volume is that of the band in the picture, turned half round the long axis on each side.
        """
        from scipy.optimize import brentq

        self.sac = None
        borders_KJ = self.section(0.0).borders_KJ
        outer = (-borders_KJ[RIGHT_WALL], borders_KJ[WALL])

        def excess(thickness: float) -> float:
            return fluid_ml(outer, self._sac(outer, thickness)) - effusion_ml

        return self._sac(outer, float(brentq(excess, 0.0, 80.0, xtol=1e-6)))

    def _sac(self, outer: tuple[np.ndarray, np.ndarray], thickness: float) -> tuple[np.ndarray, np.ndarray]:
        p = self.patient
        ahead = self.apical_wall + 0.6 * thickness
        u_J = (self.rest_J + ahead) / (p.length + ahead)
        radius = self._radius(p.edv_ml, p.length) + p.wall
        fade_J = np.clip((p.length + FADE_MM - self.rest_J) / FADE_MM, 0, 1)
        fade_J = fade_J * np.clip((self.rest_J + self.apical_wall) / 8, 0, 1)
        left_J, right_J = (
            np.maximum(outer_J + share * thickness * fade_J, (radius + share * thickness) * outline(u_J, (0, 0)) * (
                self.rest_J <= 0
            ))
            for outer_J, share in zip(outer, (0.85, 1.15), strict=True)
        )  # fmt: skip
        return left_J, right_J


def fluid_ml(inner: tuple[np.ndarray, np.ndarray], outer: tuple[np.ndarray, np.ndarray]) -> float:
    """Volume between two outlines turned about the axis, half a turn for each side, in mL."""
    squares = sum(o_J**2 - i_J**2 for i_J, o_J in zip(inner, outer, strict=True))
    return float(np.pi / 2 * np.sum(squares) * STEP_MM / 1000)


def _arch(s: np.ndarray) -> np.ndarray:
    """Half a circle: 0 outside -1 to 1."""
    return np.sqrt(np.clip(1 - s * s, 0, None))


def _dome(s: np.ndarray) -> np.ndarray:
    """Like half a circle up to the widest place at 0, then blunter."""
    return np.where(s < 0, _arch(s), np.clip(1 - np.abs(s) ** 2.8, 0, None) ** (1 / 2.8))


def outline(u: np.ndarray, waves: tuple[float, float]) -> np.ndarray:
    """Half the width at u (0 apex, 1 valve plane): half an ellipse cut behind its widest place, with waves."""
    inside = np.clip(u, 0, 1)
    bent = 1 + waves[0] * np.sin(np.pi * inside) + waves[1] * np.sin(2 * np.pi * inside)
    return np.where((u >= 0) & (u <= 1), _arch(1 - 1.5 * u) * bent, 0.0)


def _soft(border_J: np.ndarray, keep_J: np.ndarray) -> np.ndarray:
    """Round the step at the valve plane over some millimetres; `keep_J` marks places that stay as they are."""
    from scipy.ndimage import gaussian_filter1d

    return np.where(keep_J, border_J, gaussian_filter1d(border_J, 2.0 / STEP_MM, mode="nearest"))
