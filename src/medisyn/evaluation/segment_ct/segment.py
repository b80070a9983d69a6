"""`segment_ct`: body, lungs, lobes, airway, vessels, pleural fluid and the heart's region of one chest CT.

Shapes here: D, H, W voxels of the scan; d, h, w of the frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medisyn.evaluation.segment_ct import airway, fluid_heart, lungs, vessels
from medisyn.evaluation.segment_ct.frame import framed
from medisyn.evaluation.segment_ct.lobes import lobes
from medisyn.types import Volume

SOURCE = "classical, approximate"


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Masks on the scan's own grid, uint8 (D, H, W), and what a reader must know about them.

    masks: body, lung (1 right, 2 left), lobe (1 to 5 as LTRCLobes), airway, vessel, effusion, heart. An organ that
    was not found is an empty mask with a line in `notes`. `working_mm` is the voxel size along d, h, w (head, back,
    left) that the work was done at; it is coarser than the scan's for more than 256³ voxels.
    """

    masks: Mapping[str, np.ndarray]
    notes: tuple[str, ...]
    working_mm: tuple[float, float, float]
    source: str = SOURCE


def segment_ct(volume: Volume) -> Segmentation:
    """Segment a chest CT in HU, in any orientation (LPS affine), field of view and size from 8 voxels a side.

    Raises InputError and RangeError for what is no CT volume in HU; see `frame.framed`.
    """
    hu, frame = framed(volume)
    spacing = frame.spacing_mm
    room = lungs.room_air(hu)
    body = lungs.body(hu, room, spacing)
    seed = airway.trachea(hu, body, spacing)
    tree = airway.grow_tree(hu, seed, body, spacing)
    central = airway.central_part(hu, tree, body, spacing)
    whole_tree = airway.bronchi(hu, central, body, spacing)
    sides = lungs.lungs(hu, body, central, spacing)
    fluid = fluid_heart.pleural_fluid(hu, body, sides, spacing)
    found = {
        "body": body,
        "lung": sides,
        "lobe": lobes(hu, sides, spacing),
        "airway": whole_tree,
        "vessel": vessels.vessels(hu, sides > 0, whole_tree, spacing),
        "effusion": fluid,
        "heart": fluid_heart.heart_region(hu, body, sides, fluid, spacing),
    }
    notes = [f"no {name} was found" for name in ("body", "lung", "airway", "heart") if not found[name].any()]
    if sides.any() and len(np.unique(sides[sides > 0])) == 1:
        notes.append("only one lung was found")
    masks = {name: frame.back(mask.astype(np.uint8)) for name, mask in found.items()}
    return Segmentation(masks, tuple(notes), spacing)
