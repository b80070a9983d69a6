"""Who the phantom is: sex, age and the lengths that make one chest differ from another. Drawn once per seed.

Heights inside the chest are given as t: 0 at the deepest point of the lungs, 1 at their apex.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medisyn.phantoms.findings import Finding
from medisyn.phantoms.grid import Pose, draw_pose

# t -> share of the largest half-width, half-depth and body half-width (shoulders with the arms raised)
_T = (-0.3, 0.0, 0.2, 0.4, 0.58, 0.72, 0.84, 0.93, 1.0, 1.2)
_WIDTH = (0.97, 1.0, 1.0, 0.97, 0.91, 0.82, 0.7, 0.57, 0.46, 0.4)
_DEPTH = (0.95, 0.98, 1.0, 0.99, 0.94, 0.86, 0.76, 0.65, 0.54, 0.48)
_BODY_WIDTH = (0.96, 0.97, 0.99, 0.99, 0.99, 1.0, 1.02, 1.02, 0.97, 0.8)
_BODY_DEPTH = (0.98, 0.98, 0.99, 1.0, 0.98, 0.94, 0.88, 0.8, 0.72, 0.62)


@dataclass(frozen=True)
class Patient:
    """Lengths in mm of one patient, and the settings of his scan."""

    sex: str  # "female" or "male"
    age: int
    lung_height: float
    half_width: float  # of the inner chest, at its widest
    half_depth: float
    fat: float  # subcutaneous
    muscle: float
    pose: Pose
    dome_right: float  # t of the top of the right and left diaphragm
    dome_left: float
    heart_scale: float
    heart_turn: float  # degrees, the long axis towards the left and front
    aorta_radius: float
    trachea_radius: float
    carina: float  # t
    oblique_right: tuple[float, float]  # t at y = 0, and rise in mm per mm towards the back
    oblique_left: tuple[float, float]
    horizontal: float  # t of the fissure between right upper and middle lobe
    waves: tuple[float, ...]  # phases of the fissures' ripples
    lung_hu: float  # mean of the parenchyma, without emphysema
    gravity_hu: float  # rise from the front to the back
    contrast: float  # 0 without contrast medium, 1 strong
    bone_hu: float  # spongy bone
    kernel: str  # "soft" or "sharp"
    noise_hu: float  # standard deviation in water, in voxels of 1.25 mm
    table: bool

    @property
    def base_z(self) -> float:
        return -self.lung_height / 2

    def z_of(self, t: float) -> float:
        return self.base_z + t * self.lung_height

    def spine_y_at(self, t: float) -> float:
        """`spine_y` at one height."""
        return float(self.spine_y(np.asarray(self.z_of(t), dtype=np.float32)))

    def t_of(self, z: np.ndarray) -> np.ndarray:
        return (z - np.float32(self.base_z)) / np.float32(self.lung_height)

    def inner(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Half-width, half-depth and centre y of the inner chest at each z, shaped like z."""
        t = self.t_of(z)
        return (
            _profile(t, _WIDTH) * np.float32(self.half_width),
            _profile(t, _DEPTH) * np.float32(self.half_depth),
            (16 * np.clip(t - 0.55, 0, 1) / 0.45).astype(np.float32),  # the apex lies further back
        )

    def outer(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Half-width, half-depth and centre y of the skin."""
        t = self.t_of(z)
        wall = self.fat + self.muscle + 10
        return (
            _profile(t, _BODY_WIDTH) * np.float32(self.half_width + wall),
            _profile(t, _BODY_DEPTH) * np.float32(self.half_depth + 0.8 * wall + 8),
            (6 + 12 * np.clip(t - 0.55, 0, 1)).astype(np.float32),
        )

    def spine_y(self, z: np.ndarray) -> np.ndarray:
        """Centre of the vertebral bodies: the chest's curve, furthest back in its middle."""
        t = self.t_of(z)
        return (0.61 * self.half_depth + 7 - 26 * (t - 0.5) ** 2).astype(np.float32)


def _profile(t: np.ndarray, values: tuple[float, ...]) -> np.ndarray:
    """A smooth curve without overshoot through (_T, values), looked up in steps of 0.005."""
    places, heights = _curve(values)
    return np.interp(t, places, heights).astype(np.float32)


@functools.cache
def _curve(values: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    from scipy.interpolate import PchipInterpolator

    places = np.linspace(_T[0], _T[-1], 301)
    return places, PchipInterpolator(_T, values)(places)


def draw_patient(rng: np.random.Generator, findings: Sequence[Finding]) -> Patient:
    """A patient; of the findings only cardiomegaly and collapse change lengths. Same draws whatever the findings."""
    sex = str(rng.choice(["female", "male"]))
    male = sex == "male"
    age = int(rng.integers(20, 89))
    size = float(np.clip(rng.normal(1.0, 0.045), 0.9, 1.1))
    height = (236 if male else 218) * size * float(rng.normal(1.0, 0.05))
    patient: dict[str, Any] = {
        "sex": sex,
        "age": age,
        "lung_height": float(np.clip(height, 185, 275)),
        "half_width": (131 if male else 119) * size,
        "half_depth": (90 if male else 81) * size * float(rng.normal(1.0, 0.04)) + 0.08 * (age - 50),
        "fat": float(np.clip(rng.gamma(3.0, 5.0) + (6 if not male else 3), 6, 34)),
        "muscle": (13 if male else 9) * float(rng.normal(1.0, 0.12)),
        "pose": draw_pose(rng),
        "dome_right": float(rng.normal(0.30, 0.025)),
        "dome_left": float(rng.normal(0.255, 0.025)),
        "heart_scale": size * float(np.clip(rng.normal(0.99, 0.045), 0.88, 1.07)) * (1.0 if male else 0.94),
        "heart_turn": float(rng.normal(38, 6)),
        "aorta_radius": (12.5 if male else 11.3) + 0.055 * (age - 50) + float(rng.normal(0, 0.7)),
        "trachea_radius": (9.0 if male else 7.6) * float(rng.normal(1.0, 0.07)),
        "carina": float(rng.normal(0.64, 0.015)),
        "oblique_right": (float(rng.normal(0.40, 0.02)), float(rng.normal(1.15, 0.08))),
        "oblique_left": (float(rng.normal(0.42, 0.02)), float(rng.normal(1.25, 0.08))),
        "horizontal": float(rng.normal(0.52, 0.02)),
        "waves": tuple(float(v) for v in rng.uniform(0, 2 * np.pi, 6)),
        "lung_hu": float(rng.normal(-858, 12)),
        "gravity_hu": float(rng.uniform(25, 60)),
        "contrast": float(rng.choice([0.0, 1.0]) * rng.uniform(0.5, 1.0)),
        "bone_hu": float(rng.normal(260, 25)) - 2.0 * (age - 40),
        "kernel": str(rng.choice(["soft", "sharp"])),
        "noise_hu": float(rng.uniform(9, 20)),
        "table": bool(rng.random() < 0.7),
    }  # fmt: skip
    for finding in findings:
        if finding.kind == "cardiomegaly":
            patient["heart_scale"] = size * (1.24 + 0.26 * finding.severity) * (1.0 if male else 0.96)
        if finding.kind == "atelectasis":
            _collapse(patient, finding)
    return Patient(**patient)


def _collapse(patient: dict[str, Any], finding: Finding) -> None:
    """Loss of volume: the diaphragm of the side rises."""
    for side in finding.sides:
        patient[f"dome_{side}"] += 0.03 + 0.07 * finding.severity
