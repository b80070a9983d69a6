"""Whose heart it is: sizes in mm, how it lies under the probe, and the settings of the machine. Drawn once per seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medisyn.phantoms.heart.case import VIEWS, Case


@dataclass(frozen=True)
class Patient:
    """Lengths in mm at end diastole, angles in degrees, levels in dB.

    The probe is the origin; x runs to the right of the picture, z away from the probe.
    """

    edv_ml: float  # left ventricle at end diastole
    length: float  # of its long axis, apex to the valve plane
    wall: float
    septal_waves: tuple[float, float]  # the outline's departure from half an ellipse, on each side
    lateral_waves: tuple[float, float]
    right_width: float  # of the right ventricle at its base; 0 in the two-chamber view
    right_start: float  # its apex, as a share of the left one's axis
    right_atrium: float  # width
    atrium_radius: float  # of the left atrium
    atrium_length: float
    apex: tuple[float, float]  # x, z of the left ventricle's apex
    tilt: float  # of the long axis; positive: the base lies to the right
    sway_mm: tuple[float, float]  # slow motion of the probe in x and z
    sway_degrees: float
    sway_phase: tuple[float, float]
    sway_hertz: float
    start: float  # phase of the first frame
    depth: float  # of the picture
    opening: float  # of the sector
    axial_mm: float  # standard deviation of the point-spread function along the beam
    lateral_degrees: float  # and across it
    gain: float
    dynamic_range: float
    attenuation: float  # dB for each 100 mm that the gain curve leaves
    angle_loss: float  # of walls that run along the beam
    noise: float  # level of the electronic noise at the surface
    clutter: float  # level of the haze before the apex
    edges: tuple[float, float]  # loss at the left and right edge of the sector


def draw_patient(rng: np.random.Generator, case: Case) -> Patient:
    """A patient; a low ejection fraction makes the ventricle larger and rounder, as it does in patients."""
    four = case.view == VIEWS[0]
    weak = float(np.clip((55 - case.ejection_fraction) / 40, 0, 1))
    size = float(np.clip(rng.normal(1.0, 0.13), 0.75, 1.3))
    edv = 112 * size * (1 + weak * float(rng.uniform(0.15, 0.8)))
    ratio = float(rng.normal(3.55, 0.15)) - 0.45 * weak * float(rng.uniform(0.5, 1))
    length = ratio * (edv * 1000 / (0.75 * np.pi * ratio)) ** (1 / 3)
    wall = float(np.clip(rng.normal(9.6, 1.5), 7, 14))
    atrium_length = float(rng.normal(44, 4)) * (1 + 0.15 * weak)
    apex_z = float(rng.uniform(15, 23)) + wall
    depth = (apex_z + length + atrium_length + 8) * float(rng.uniform(1.0, 1.1))
    return Patient(
        edv_ml=edv,
        length=length,
        wall=wall,
        septal_waves=(float(rng.normal(0, 0.05)), float(rng.normal(0, 0.025))),
        lateral_waves=(float(rng.normal(0.03, 0.05)), float(rng.normal(0, 0.025))),
        right_width=float(rng.normal(36, 3.5)) if four else 0.0,
        right_start=float(rng.uniform(0.12, 0.26)),
        right_atrium=float(rng.normal(36, 3)) if four else 0.0,
        atrium_radius=float(rng.normal(20.5, 1.5)) * (1 + 0.2 * weak),
        atrium_length=atrium_length,
        apex=(float(rng.normal(11, 4) if four else rng.normal(0, 4)), apex_z),
        tilt=float(rng.normal(4, 4.5) if four else rng.normal(0, 6)),
        sway_mm=(float(rng.uniform(0, 1.5)), float(rng.uniform(0, 1.2))),
        sway_degrees=float(rng.uniform(0, 1.2)),
        sway_phase=(float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0, 2 * np.pi))),
        sway_hertz=float(rng.uniform(0.15, 0.35)),
        start=float(rng.uniform(0, 1)),
        depth=depth,
        opening=float(rng.uniform(76, 90)),
        axial_mm=float(rng.uniform(0.55, 0.8)),
        lateral_degrees=float(rng.uniform(0.65, 0.95)),
        gain=float(rng.normal(1, 1.5)),
        dynamic_range=float(rng.uniform(50, 58)),
        attenuation=float(rng.uniform(2, 6)),
        angle_loss=float(rng.uniform(1, 5)),
        noise=float(rng.uniform(-58, -50)),
        clutter=float(rng.uniform(-30, -22)),
        edges=(float(rng.uniform(2, 9)), float(rng.uniform(2, 9))),
    )
