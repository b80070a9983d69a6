"""`make_thorax`: one patient with a chest CT, masks, truth and report, from a seed; the same patient at every size.

Shapes here: C channels (1), D, H, W voxels; d runs to the head, h to the back, w to the patient's left (LPS).

Masks, uint8 (D, H, W):
    lobe      1 left upper, 2 left lower, 3 right upper, 4 right middle, 5 right lower: the numbers of lungmask's
              LTRCLobes and of MedSyn. A lobe holds its vessels, airways and lesions; fluid is no part of it
    airway    1: lumen of trachea and bronchi, as far as it hangs together on this grid
    vessel    1: pulmonary arteries and veins, in the lungs and up to the heart
    heart     1: with its pericardium
    aorta     1: with its branches and the great veins
    effusion  1: fluid in the pleural spaces
    finding   1 + place in findings.KINDS
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medisyn.errors import InputError
from medisyn.phantoms import bones, grid, lesions, trees
from medisyn.phantoms.chest import Chest
from medisyn.phantoms.findings import Finding, draw_findings
from medisyn.phantoms.great_vessels import great_vessels, gullet
from medisyn.phantoms.paint import Scene, Slab, paint
from medisyn.phantoms.patient import Patient, draw_patient
from medisyn.phantoms.report import write_report
from medisyn.phantoms.scanner import scan
from medisyn.phantoms.survey import survey
from medisyn.phantoms.truth import Tally
from medisyn.phantoms.tubes import Tubes
from medisyn.seeding import seed_for
from medisyn.types import Facts, Volume

SMALLEST, LARGEST = 32, 512


@dataclass(frozen=True, eq=False)
class Phantom:
    """A chest CT that we made: `volume` in HU, masks of its shape, exact truth, and a report in two sections."""

    volume: Volume
    masks: Mapping[str, np.ndarray]
    truth: Mapping[str, Any]
    findings: tuple[Finding, ...]
    findings_text: str
    impression_text: str

    @property
    def report(self) -> str:
        """Both sections with their headings."""
        return f"FINDINGS: {self.findings_text}\nIMPRESSION: {self.impression_text}"


def make_thorax(seed: int, size: int = 64, findings: Sequence[Finding] | None = None) -> Phantom:
    """Make the patient of a seed with `size` voxels on each side, 32 to 512.

    findings  what is wrong with him; empty: nothing; None: drawn from the seed by `draw_findings`

    The field of view is always 320 x 352 x 352 mm, so spacing follows from size. Anatomy, findings and report of one
    seed are the same at every size; scanner noise is not. Raises InputError for a size out of range or two findings
    of one kind.
    """
    if not SMALLEST <= size <= LARGEST:
        raise InputError(f"phantom: size must be {SMALLEST} to {LARGEST} voxels, got {size}")
    found = draw_findings(seed) if findings is None else tuple(findings)
    kinds = [finding.kind for finding in found]
    if len(set(kinds)) < len(kinds):
        raise InputError(
            f"phantom: each kind of finding may be given once (side 'both' is one), got {', '.join(kinds)}"
        )
    scene = set_scene(seed, found)
    patient = scene.chest.patient
    hu, masks, tally = _paint_all(scene, size)
    truth = {**tally.truth(), **_who(patient), "airway_length_mm": round(scene.trees.airway.length_mm, 1)}
    scan(hu, patient, grid.spacing_mm(size), np.random.default_rng(seed_for(seed, f"scanner {size}")))
    findings_text, impression = write_report(
        found, truth, scene.lesions, np.random.default_rng(seed_for(seed, "report"))
    )
    provenance = {"phantom": "thorax", "seed": seed, "size": size}
    volume = Volume(hu[None], grid.affine(size), provenance=provenance)
    return Phantom(volume, Facts(masks), Facts(truth), found, findings_text, impression)


def set_scene(seed: int, findings: Sequence[Finding]) -> Scene:
    """Everything about the patient that does not depend on the size."""
    patient = draw_patient(np.random.default_rng(seed_for(seed, "patient")), findings)
    chest = Chest(patient, lesions.collapse_of(findings))
    seen = survey(chest)
    ill = lesions.place(findings, chest, seen, np.random.default_rng(seed_for(seed, "lesions")))
    grown = trees.grow_trees(
        chest, seen.pick(lesions.has_room(ill, chest, seen)), np.random.default_rng(seed_for(seed, "trees"))
    )
    texture = np.random.default_rng(seed_for(seed, "texture"))
    skeleton = bones.skeleton(patient)
    return Scene(
        chest=chest,
        trees=trees.Trees(*(_to_world(tubes, patient) for tubes in (grown.airway, grown.artery, grown.vein))),
        vessels=_to_world(great_vessels(chest), patient),
        gullet=_to_world(gullet(chest), patient),
        skeleton=bones.Skeleton(_to_world(skeleton.bone, patient), _to_world(skeleton.cartilage, patient)),
        lesions=ill,
        fine=grid.draw_lattice(texture, 5.0),
        coarse=grid.draw_lattice(texture, 17.0),
    )


def _to_world(tubes: Tubes, patient: Patient) -> Tubes:
    pose = patient.pose
    return Tubes(pose.to_world(tubes.start_N3), pose.to_world(tubes.end_N3), tubes.start_N, tubes.end_N, tubes.lobe_N)


def _paint_all(scene: Scene, size: int) -> tuple[np.ndarray, dict[str, np.ndarray], Tally]:
    """The volume slab by slab: HU without noise, masks, and the sums for the truth."""
    hu = np.empty((size, size, size), dtype=np.float32)
    masks: dict[str, np.ndarray] = {}
    tally = Tally(grid.spacing_mm(size))
    for part in grid.slabs(size, scene.chest.patient.pose):
        slab: Slab = paint(scene, part)
        place = slice(part.first, part.first + part.shape[0])
        hu[place] = slab.hu
        for name, mask in slab.masks.items():
            masks.setdefault(name, np.zeros(hu.shape, dtype=np.uint8))[place] = mask
        tally.add(slab)
    masks["airway"] = _largest_piece(masks["airway"])
    for mask in masks.values():
        mask.flags.writeable = False
    return hu, masks, tally


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    """The part that hangs together (26 neighbours): thin branches that the grid broke off are left out."""
    from scipy.ndimage import label

    pieces, count = label(mask, structure=np.ones((3, 3, 3)))
    if count < 2:
        return mask
    return (pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))).astype(np.uint8)


def _who(patient: Patient) -> dict[str, Any]:
    return {
        "sex": patient.sex,
        "age": patient.age,
        "contrast_medium": patient.contrast > 0,
        "kernel": patient.kernel,
        "roll_degrees": round(patient.pose.roll_degrees, 2),
    }
