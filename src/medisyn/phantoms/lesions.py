"""Findings as shapes inside one chest: where they sit is drawn from the seed, how large they are from their severity.

Shapes here: S survey points. Millimetres are of the body; distances are below 0 inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from medisyn.phantoms.chest import Chest
from medisyn.phantoms.findings import Finding
from medisyn.phantoms.grid import ellipsoid
from medisyn.phantoms.survey import Survey

MOST_FLUID = 0.55  # of one pleural space
APEX = 0.55  # t above which mild bullae lie


@dataclass(frozen=True)
class Blob:
    """A round lesion whose edge is moved by noise: `rough_mm` per standard deviation. `lobe` 0: not bound to one."""

    kind: str
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    rough_mm: float = 0.0
    lobe: int = 0


@dataclass(frozen=True)
class Plate:
    """A linear band of atelectasis: a thin disc across the lung."""

    centre: tuple[float, float, float]
    normal: tuple[float, float, float]
    radius: float
    thick: float


@dataclass(frozen=True)
class Fluid:
    """Pleural fluid of a patient on his back: all that lies behind `level`, higher at the edges and the base."""

    side: str
    level: float
    severity: float


@dataclass(frozen=True)
class Lesions:
    """Everything that is painted over a healthy chest. `emphysema` is 0 to 1 on the left and the right."""

    fluids: tuple[Fluid, ...] = ()
    blobs: tuple[Blob, ...] = ()
    plates: tuple[Plate, ...] = ()
    collapsed: tuple[int, ...] = ()  # labels of lobes without air
    emphysema: tuple[float, float] = (0.0, 0.0)
    placed: dict[str, dict[str, float | str | int]] = field(default_factory=dict)  # what the report may say


def depth_behind(fluid_side: str, x: np.ndarray, y: np.ndarray, z: np.ndarray, chest: Chest) -> np.ndarray:
    """How far back a point lies for a fluid: y, plus the climb of its surface at the side and towards the base."""
    sign = np.float32(1 if fluid_side == "left" else -1)
    p = chest.patient
    edge = (sign * x - np.float32(0.5 * p.half_width)) / np.float32(0.5 * p.half_width)
    low = np.clip(0.55 - p.t_of(z), -0.2, 0.6)
    return y + 20 * edge * edge + 32 * low


def collapse_of(findings: Sequence[Finding]) -> tuple[float, float]:
    """How far the left and right lower lobes are collapsed; mild atelectasis is only bands."""
    found = {"left": 0.0, "right": 0.0}
    for finding in findings:
        if finding.kind == "atelectasis" and finding.word != "mild":
            for side in finding.sides:
                found[side] = 0.3 + 0.5 * finding.severity
    return found["left"], found["right"]


def place(findings: Sequence[Finding], chest: Chest, seen: Survey, rng: np.random.Generator) -> Lesions:
    """Find a place for every finding."""
    fluids: list[Fluid] = []
    blobs: list[Blob] = []
    plates: list[Plate] = []
    collapsed: list[int] = []
    emphysema = {"left": 0.0, "right": 0.0}
    placed: dict[str, dict[str, float | str | int]] = {}
    for finding in findings:
        before = len(blobs)
        for side in finding.sides:
            if finding.kind == "effusion":
                fluids.append(_fluid(side, finding.severity, chest, seen))
            elif finding.kind == "bullae":
                blobs += _bullae(side, finding.severity, chest, seen, rng)
                emphysema[side] = 0.25 + 0.75 * finding.severity
            elif finding.kind == "ground_glass":
                blobs += _ground_glass(side, finding.severity, seen, rng)
            elif finding.kind == "consolidation":
                blobs.append(_consolidation(_lobe(finding, side, seen, rng), finding.severity, seen, rng))
            elif finding.kind == "nodule":
                blobs.append(_nodule(_lobe(finding, side, seen, rng), finding.severity, seen, rng))
            elif finding.kind == "atelectasis" and finding.word == "mild":
                plates += _plates(side, finding.severity, seen, rng)
            elif finding.kind == "atelectasis":
                collapsed.append(2 if side == "left" else 5)
        if len(blobs) > before:
            placed[finding.kind] = {"lobe": blobs[-1].lobe, "diameter_mm": round(2 * max(blobs[-1].radii), 1)}
    lost = (emphysema["left"], emphysema["right"])
    return Lesions(tuple(fluids), tuple(blobs), tuple(plates), tuple(collapsed), lost, placed)


def _fluid(side: str, severity: float, chest: Chest, seen: Survey) -> Fluid:
    """The level at which the fluid has its volume: 60 mL to 2 L, at most MOST_FLUID of the pleural space."""
    inside = seen.points_S3[seen.side(side)].astype(np.float32)
    x, y, z = inside.T
    behind = np.sort(depth_behind(side, x, y, z, chest))[::-1]
    wanted_ml = min(60 + 1950 * severity**1.5, MOST_FLUID * len(behind) * seen.ml_per_point)
    return Fluid(side, float(behind[min(int(wanted_ml / seen.ml_per_point), len(behind) - 1)]), severity)


def _point(seen: Survey, keep_S: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """One survey point among those to keep, or among all when none is."""
    choices = np.flatnonzero(keep_S)
    chosen = seen.points_S3[rng.choice(choices if len(choices) else len(seen.points_S3))]
    x, y, z = (float(v) for v in chosen)
    return x, y, z


def _lobe(finding: Finding, side: str, seen: Survey, rng: np.random.Generator) -> int:
    if finding.lobe is not None:
        return finding.lobe
    labels = (1, 2) if side == "left" else (3, 4, 5)
    room = np.array([(seen.lobe_S == label).sum() for label in labels], dtype=float)
    return int(rng.choice(labels, p=room / room.sum()))


def _bullae(side: str, severity: float, chest: Chest, seen: Survey, rng: np.random.Generator) -> list[Blob]:
    """Round pockets below the pleura: a few near the apex when they are mild, large ones further down when severe."""
    high = chest.patient.t_of(seen.points_S3[:, 2]) > APEX - 0.3 * severity
    outer = seen.side(side) & (seen.depth_S > -16) & high & (np.abs(seen.points_S3[:, 0]) > 35)
    blobs = []
    for _ in range(3 + round(9 * severity)):
        radius = float(rng.uniform(8, 13) + severity * rng.uniform(4, 24))
        stretch = rng.uniform(0.8, 1.2, 3)
        blobs.append(Blob("bullae", _point(seen, outer, rng), tuple(radius * stretch), 0.6))
    return blobs


def _ground_glass(side: str, severity: float, seen: Survey, rng: np.random.Generator) -> list[Blob]:
    outer = seen.side(side) & (seen.depth_S > -30)
    blobs = []
    for _ in range(3 + round(5 * severity)):
        radius = float(rng.uniform(12, 18) + 16 * severity)
        blobs.append(Blob("ground_glass", _point(seen, outer, rng), tuple(radius * rng.uniform(0.8, 1.3, 3)), 7.0))
    return blobs


def _consolidation(lobe: int, severity: float, seen: Survey, rng: np.random.Generator) -> Blob:
    inside = (seen.lobe_S == lobe) & (seen.depth_S > -25)
    radius = 20 + 40 * severity
    return Blob("consolidation", _point(seen, inside, rng), tuple(radius * rng.uniform(0.9, 1.15, 3)), 6.0, lobe)


def _nodule(lobe: int, severity: float, seen: Survey, rng: np.random.Generator) -> Blob:
    """Diameter 9 to 60 mm: a mass above 30 mm. Whole inside the lung where there is room."""
    radius = 4.5 + 25 * severity**1.3
    inside = (seen.lobe_S == lobe) & (seen.depth_S < -0.9 * radius)
    if not inside.any():
        inside = (seen.lobe_S == lobe) & (seen.depth_S <= np.min(seen.depth_S[seen.lobe_S == lobe], initial=0.0))
    return Blob("nodule", _point(seen, inside, rng), tuple(radius * rng.uniform(0.88, 1.12, 3)), 0.1 * radius, lobe)


def _plates(side: str, severity: float, seen: Survey, rng: np.random.Generator) -> list[Plate]:
    low = seen.side(side) & (seen.depth_S < -12) & (seen.points_S3[:, 2] < np.quantile(seen.points_S3[:, 2], 0.4))
    plates = []
    for _ in range(1 + round(4 * severity)):
        tilt = rng.uniform(-0.45, 0.45, 2)
        normal = np.array([tilt[0], tilt[1], 1.0]) / np.linalg.norm([tilt[0], tilt[1], 1.0])
        x, y, z = (float(v) for v in normal)
        plates.append(Plate(_point(seen, low, rng), (x, y, z), float(rng.uniform(18, 34)), float(rng.uniform(1.5, 3))))
    return plates


def has_room(ill: Lesions, chest: Chest, seen: Survey) -> np.ndarray:
    """True for the survey points (S) that air and vessels still reach: not in fluid, not in a bulla."""
    x, y, z = seen.points_S3.T.astype(np.float32)
    room_S = np.ones(len(seen.points_S3), dtype=bool)
    for fluid in ill.fluids:
        room_S &= ~(seen.side(fluid.side) & (depth_behind(fluid.side, x, y, z, chest) > fluid.level - 4))
    for blob in ill.blobs:
        if blob.kind == "bullae":
            room_S &= ellipsoid(x, y, z, blob.centre, blob.radii) > 2
    return room_S
