"""What the labels of a mask mean: names, SNOMED CT codes and colours; and the check that masks belong to a CT.

Shapes here: D, H, W voxels.
The five lobe codes are those of the SNOMED CT hierarchy under 31094006 (lobe of lung); the others stand in DICOM
context groups CID 7151 (anatomical structures) and, for the effusion, CID 645.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError, closest
from medisyn.types import Volume


@dataclass(frozen=True)
class Structure:
    """One label of one mask. `code` and `meaning` are SNOMED CT; `is_abnormal` says that it is no normal anatomy."""

    name: str
    code: str
    meaning: str
    colour: tuple[int, int, int]
    is_abnormal: bool = False


# Mask -> its labels from 1 on; 0 is background. The lobe numbers are those of lungmask's LTRCLobes and of MedSyn.
STRUCTURES: dict[str, tuple[Structure, ...]] = {
    "lobe": (
        Structure("left upper lobe", "44714003", "Structure of upper lobe of left lung", (86, 180, 233)),
        Structure("left lower lobe", "41224006", "Structure of lower lobe of left lung", (0, 114, 178)),
        Structure("right upper lobe", "42400003", "Structure of upper lobe of right lung", (240, 228, 66)),
        Structure("right middle lobe", "72481006", "Structure of middle lobe of right lung", (0, 158, 115)),
        Structure("right lower lobe", "266005", "Structure of lower lobe of right lung", (230, 159, 0)),
    ),
    "airway": (Structure("airway", "110726009", "Trachea and bronchus", (0, 255, 255)),),
    "vessel": (Structure("vessel", "59820001", "Blood Vessel", (255, 70, 70)),),
    "heart": (Structure("heart", "80891009", "Heart", (204, 121, 167)),),
    "aorta": (Structure("aorta", "15825003", "Aorta", (213, 94, 0)),),
    "effusion": (Structure("pleural effusion", "60046008", "Pleural effusion", (170, 120, 255), is_abnormal=True),),
}


def checked_masks(volume: Volume, masks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The masks as uint8 (D, H, W), on the grid of the volume, in the order of STRUCTURES.

    Raises InputError for an unknown name, another shape than the volume's, and labels that the mask cannot mean.
    """
    shape = volume.array_CDHW.shape[1:]
    for name, mask in masks.items():
        if name not in STRUCTURES:
            raise InputError(f"mask {name!r} is unknown, allowed: {', '.join(STRUCTURES)}.{closest(name, STRUCTURES)}")
        if np.shape(mask) != shape:
            raise InputError(
                f"mask {name!r} has shape {np.shape(mask)}, its CT {shape}: both must lie on one grid. "
                f"Resample them together."
            )
        highest = len(STRUCTURES[name])
        labels = np.unique(mask)
        if not np.isin(labels, np.arange(highest + 1)).all():
            raise InputError(
                f"mask {name!r} holds {', '.join(f'{label:g}' for label in labels[:8])}; allowed are whole numbers "
                f"from 0 to {highest}"
            )
    return {name: np.asarray(masks[name]).astype(np.uint8) for name in STRUCTURES if name in masks}
