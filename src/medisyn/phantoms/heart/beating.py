"""`make_heart`: a clip of a beating heart from a seed, with masks, exact truth and a caption.

Shapes here: C channels (1), T frames, H, W pixels, N scatterers.

Labels, uint8 (T, H, W): 0 elsewhere, 1 blood of the left ventricle, 2 its muscle with the septum, 3 left atrium,
4 right ventricle, 5 right atrium, 6 pericardial fluid. The sector is a mask of its own (H, W).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medisyn.errors import InputError
from medisyn.phantoms.heart import section
from medisyn.phantoms.heart.bmode import Machine
from medisyn.phantoms.heart.caption import write_caption
from medisyn.phantoms.heart.case import VIEWS, Case, draw_case
from medisyn.phantoms.heart.cycle import emptied, phases, valve_opening
from medisyn.phantoms.heart.fan import Fan
from medisyn.phantoms.heart.patient import draw_patient
from medisyn.phantoms.heart.section import Heart, Section
from medisyn.phantoms.heart.tissue import PER_CELL, Pose, draw_tissue, pose_of
from medisyn.phantoms.heart.valves import draw_leaflets
from medisyn.seeding import seed_for
from medisyn.types import Clip, Facts

SMALLEST, LARGEST = 48, 1024
FRAMES_PER_SECOND = 12.5  # 16 frames then hold a whole beat from 47 beats a minute on
LABELS = ("elsewhere", "left ventricle", "muscle", "left atrium", "right ventricle", "right atrium", "effusion")


@dataclass(frozen=True, eq=False)
class HeartPhantom:
    """An ultrasound clip that we made: `clip` uint8 with one channel, its labels and sector, truth and caption."""

    clip: Clip
    labels_THW: np.ndarray
    sector_HW: np.ndarray
    truth: Mapping[str, Any]
    case: Case
    caption: str


def make_heart(
    seed: int,
    case: Case | None = None,
    *,
    size: tuple[int, int] = (64, 112),
    frames: int = 16,
    frames_per_second: float = FRAMES_PER_SECOND,
) -> HeartPhantom:
    """Film the heart of a seed: `frames` pictures of `size` (height, width), each side 48 to 1024.

    case  what it shows; None: drawn from the seed by `draw_case`

    Heart, pose and machine of one seed are the same at every size, number of frames and frame rate; speckle is not.
    Raises InputError for a size, number of frames or frame rate out of range.
    """
    check_film(size, frames, frames_per_second)
    shown = draw_case(seed) if case is None else case
    patient = draw_patient(np.random.default_rng(seed_for(seed, "patient")), shown)
    heart = Heart(patient, shown)
    fan = Fan(size, patient.depth, patient.opening)
    rng = np.random.default_rng(seed_for(seed, f"speckle {size[0]} {size[1]}"))
    tissue = draw_tissue(heart, fan, rng)
    leaflets = draw_leaflets(shown.view == VIEWS[0], _per_mm2(fan, patient.apex[1] + patient.length), rng)
    echo_N = np.concatenate([tissue.echo_N, leaflets.echo_N])
    machine = Machine(patient, fan, rng)
    phase_T = phases(shown.heart_rate, frames, frames_per_second, patient.start)
    moments = [heart.section(float(share)) for share in emptied(phase_T, shown.heart_rate)]
    opening_T = valve_opening(phase_T, shown.heart_rate)
    poses = [pose_of(patient, number / frames_per_second) for number in range(frames)]
    pictures, labels = [], []
    for moment, opening, pose in zip(moments, opening_T, poses, strict=True):
        places = (tissue.now(moment), leaflets.now(moment, float(opening)))
        along_N, beside_N = (np.concatenate(parts) for parts in zip(*places, strict=True))
        pictures.append(machine.picture(*pose.to_probe(along_N, beside_N), echo_N))
        labels.append(label(fan, heart, moment, pose))
    truth = {**_truth(heart, shown, moments, phase_T), "mm_per_pixel": round(fan.mm_per_pixel, 5)}
    provenance = {"phantom": "heart", "seed": seed, "size": list(size), "frames": frames}
    clip = Clip(np.stack(pictures)[None], frames_per_second=frames_per_second, provenance=provenance)
    caption = write_caption(shown, np.random.default_rng(seed_for(seed, "caption")))
    return HeartPhantom(clip, np.stack(labels), fan.sector(), Facts(truth), shown, caption)


def check_film(size: tuple[int, int], frames: int, frames_per_second: float) -> None:
    """Refuse what cannot be filmed."""
    if len(size) != 2 or not all(SMALLEST <= side <= LARGEST for side in size):
        given = " x ".join(map(str, size))
        raise InputError(f"heart phantom: height and width must be {SMALLEST} to {LARGEST} pixels, got {given}")
    if frames < 1:
        raise InputError(f"heart phantom: the number of frames must be at least 1, got {frames}")
    if not 1 <= frames_per_second <= 200:
        raise InputError(f"heart phantom: frames in a second must be 1 to 200, got {frames_per_second:g}")


def label(fan: Fan, heart: Heart, moment: Section, pose: Pose) -> np.ndarray:
    """The label of each pixel's centre (H, W) at one moment."""
    x, z = fan.positions()
    along, beside = pose.to_axis(x.ravel(), z.ravel())
    layer = (beside >= moment.at(along)).sum(axis=0) - 1
    chamber = along <= moment.length
    muscle = (layer == section.SEPTAL_WALL) | (layer == section.LATERAL_WALL)
    muscle &= chamber & (along >= -heart.apical_wall)
    labels = np.zeros(len(along), dtype=np.uint8)
    labels[muscle] = 2
    for blood, ventricle, atrium in ((section.LEFT_BLOOD, 1, 3), (section.RIGHT_BLOOD, 4, 5)):
        labels[(layer == blood) & chamber] = ventricle
        labels[(layer == blood) & ~chamber] = atrium
    labels[(layer == section.FLUID_LEFT) | (layer == section.FLUID_RIGHT)] = 6
    return labels.reshape(x.shape) * fan.sector()


def _per_mm2(fan: Fan, depth: float) -> float:
    """Scatterers on a square millimetre at a depth."""
    depths, beams = fan.shape
    return PER_CELL / ((fan.depth / depths) * (2 * fan.half * depth / beams))


def _truth(heart: Heart, case: Case, moments: list[Section], phase_T: np.ndarray) -> dict[str, Any]:
    """The figures of the heart, and of the left ventricle in each frame."""
    p, volumes = heart.patient, [moment.volume_ml for moment in moments]
    return {
        "view": case.view,
        "ejection_fraction": case.ejection_fraction,
        "grade": case.grade,
        "heart_rate": case.heart_rate,
        "effusion_ml": case.effusion_ml,
        "effusion": case.effusion_word,
        "edv_ml": round(p.edv_ml, 3),
        "esv_ml": round(p.edv_ml * (1 - heart.ejection), 3),
        "ejection_fraction_in_clip": round(100 * (1 - min(volumes) / max(volumes)), 3),
        "wall_mm": round(p.wall, 2),
        "depth_mm": round(p.depth, 2),
        "volume_ml": [round(volume, 3) for volume in volumes],
        "area_cm2": [round(moment.area_mm2 / 100, 4) for moment in moments],
        "phase": [round(float(phase), 5) for phase in phase_T],
    }
