"""One slab of a phantom: from the shapes to Hounsfield units and masks, the same shares of a voxel deciding both.

Shapes here: D, H, W voxels of the slab. A share is the part of a voxel that a tissue fills, 0 to 1. Tissues are laid
over one another: hu <- hu + share (tissue - hu). A mask holds the voxels that a tissue fills to at least one half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medisyn.phantoms import bones
from medisyn.phantoms.chest import Chest
from medisyn.phantoms.findings import KINDS
from medisyn.phantoms.grid import Grid, Lattice, ellipsoid, smooth_union
from medisyn.phantoms.lesions import Blob, Lesions, Plate, depth_behind
from medisyn.phantoms.trees import Trees
from medisyn.phantoms.tubes import Tubes, occupancy

AIR, FAT, MUSCLE, SKIN, BLOOD, WATER = -1000.0, -102.0, 52.0, 15.0, 42.0, 8.0
THIN_SHARE = 0.35  # a vessel or airway is in its mask where it fills at least this share of a voxel
Array = np.ndarray


@dataclass(frozen=True)
class Scene:
    """Everything that is known about a patient before the first voxel; tubes in world mm, the rest in body mm."""

    chest: Chest
    trees: Trees
    vessels: Tubes  # aorta, its branches, veins of the body
    gullet: Tubes
    skeleton: bones.Skeleton
    lesions: Lesions
    fine: Lattice
    coarse: Lattice


@dataclass(frozen=True)
class Slab:
    """One slab as painted: HU without scanner noise, masks (uint8), and the shares that the truth is summed from."""

    hu: Array
    masks: dict[str, Array]
    shares: dict[str, Array]


def paint(scene: Scene, grid: Grid) -> Slab:
    """Paint one slab."""
    chest = scene.chest
    x, y, z = grid.body_x, grid.body_y, grid.body_z
    fine, coarse = scene.fine.on(grid), scene.coarse.on(grid)
    cavity, heart = chest.cavity(x, y, z), chest.heart(x, y, z)
    hu = np.full(grid.shape, AIR, dtype=np.float32)
    _wall(hu, scene, grid, cavity, fine, coarse)
    _abdomen(hu, scene, grid, cavity, fine, coarse)
    masks = {}
    shares = {"heart": grid.soft(heart)}
    shares["aorta"] = _mediastinum(hu, scene, grid, shares["heart"], heart, fine, coarse)
    _bones(hu, scene, grid, fine)
    space = grid.soft(chest.lungs(x, y, z, cavity, heart)) * (1 - shares["aorta"])
    shares["cavity"] = space
    fissures = chest.fissures(x, y, z)
    labels = chest.lobe_labels(x, *fissures)
    tissue = _parenchyma(scene, grid, fine, coarse, fissures)
    shares.update(_trees(tissue, scene, grid))
    for name in ("vessel", "airway", "wall"):
        shares[name] *= 1 - shares["heart"]  # no branch runs through the heart
    finding = _lesions(tissue, scene, grid, labels, space, fine, coarse, shares)
    fluid = shares["effusion"]
    _lay(tissue, fluid, WATER + 3 * fine)
    _lay(hu, space, tissue)
    _outside_trees(hu, scene, grid, shares, space)
    lung = space * (1 - fluid)
    shares["lung"] = lung
    masks["lobe"] = np.where(lung >= 0.5, labels, np.uint8(0))
    masks["finding"] = np.where(space >= 0.5, finding, np.uint8(0))
    for name, least in (
        ("airway", THIN_SHARE),
        ("vessel", THIN_SHARE),
        ("heart", 0.5),
        ("aorta", 0.5),
        ("effusion", 0.5),
    ):
        masks[name] = (shares[name] >= least).astype(np.uint8)
    masks["vessel"] &= masks["airway"] ^ 1
    masks["effusion"] = ((fluid * space) >= 0.5).astype(np.uint8)
    return Slab(hu, masks, shares)


def _lay(hu: Array, share: Array, tissue: Array | float) -> None:
    """Lay a tissue over what is there."""
    hu += share * (tissue - hu)


# ---- outside the pleural spaces


def _wall(hu: Array, scene: Scene, grid: Grid, cavity: Array, fine: Array, coarse: Array) -> None:
    """Table, skin, fat, muscles."""
    p, x, y, z = scene.chest.patient, grid.body_x, grid.body_y, grid.body_z
    skin = scene.chest.skin(x, y, z)
    if p.sex == "female":
        side = np.abs(x)
        front = float(-p.half_depth - 0.8 * (p.fat + p.muscle + 10))
        centre = (0.62 * p.half_width, front + 14, p.z_of(0.47))
        breast = ellipsoid(side, y, z, centre, (46 + 0.7 * p.fat, 17 + 0.7 * p.fat, 50 + 0.4 * p.fat))
        skin = smooth_union(skin, breast, 26)
    else:
        breast = None
    if p.table:
        _couch(hu, scene, grid)
    inside = grid.soft(skin)
    _lay(hu, inside, SKIN)
    _lay(hu, grid.soft(skin + np.float32(2.2)), FAT + 6 * fine)
    if breast is not None:
        _lay(
            hu,
            grid.soft(breast + np.float32(14)),
            FAT + 75 * np.clip(coarse + 0.4 * fine, 0, 1.6) * (1.2 - p.age / 100),
        )
    t = p.t_of(z)
    side = np.abs(x) / np.float32(p.half_width)
    behind = np.clip(y / np.float32(p.half_depth), -1, 1.3)
    upper = np.clip((t - np.float32(0.42)) / np.float32(0.4), 0, 1)
    chest_muscle = np.exp(-(((side - np.float32(0.5)) / np.float32(0.33)) ** 2)) * np.clip(-behind * 1.6, 0, 1) * 1.1
    back_muscle = np.clip(side - np.float32(0.25), 0, 1) * np.clip(behind + np.float32(0.3), 0, 1.2) * np.float32(2.2)
    thick = np.float32(p.muscle) * (0.72 + upper * (chest_muscle + back_muscle))
    ripple = 1.5 * fine
    wall = grid.soft(cavity - thick + ripple) * inside
    _lay(hu, wall, MUSCLE + 7 * fine)
    seam = np.abs(cavity - np.float32(0.72 * p.muscle)) - np.float32(0.7)  # fat between ribs and outer muscles
    _lay(hu, grid.soft(seam) * wall, -50.0)
    spine_y = p.spine_y(z)
    back = ellipsoid(np.abs(x), y - spine_y, z * 0, (23.0, 41.0, 0.0), (20.0, 15.0, 1.0))
    _lay(hu, grid.soft(back + fine) * inside, MUSCLE + 7 * fine)


def _couch(hu: Array, scene: Scene, grid: Grid) -> None:
    """The table top: a thin curved shell under the patient."""
    p = scene.chest.patient
    back = p.half_depth + 0.8 * (p.fat + p.muscle + 10) + 24 + p.pose.shift_mm[1]
    x, y = grid.x_W[None, None, :], grid.y_H[None, :, None]
    distance = np.abs(np.sqrt(x * x + (y - (back - 480)) ** 2) - 480) - np.float32(1.6)
    sides = np.abs(x) - np.float32(165)
    _lay(hu, grid.soft(np.maximum(distance, sides)), -280.0)


def _abdomen(hu: Array, scene: Scene, grid: Grid, cavity: Array, fine: Array, coarse: Array) -> None:
    """Below the diaphragm: liver, spleen, stomach with a gas bubble, fat."""
    p, x, y, z = scene.chest.patient, grid.body_x, grid.body_y, grid.body_z
    below = grid.soft(np.maximum(scene.chest.diaphragm(x, y, z), cavity))
    if not below.any():
        return
    _lay(hu, below, FAT + 8 * fine)
    under = scene.chest.diaphragm(x, y, z)
    liver = np.maximum(under + np.float32(3), cavity + np.float32(3))
    edge = x - (34 - 0.35 * (y + 30)) + 0.28 * (p.z_of(p.dome_right) - z)
    liver = np.maximum(liver, edge * np.float32(0.9))
    _lay(hu, grid.soft(liver), 56 + 50 * p.contrast + 5 * fine)
    z_left = p.z_of(p.dome_left)
    spleen = ellipsoid(x, y, z, (0.68 * p.half_width, 0.48 * p.half_depth, z_left - 52), (34.0, 40.0, 46.0))
    _lay(hu, grid.soft(np.maximum(spleen, under + np.float32(3))), 48 + 60 * p.contrast + 4 * fine)
    stomach = (
        ellipsoid(x, y, z, (0.42 * p.half_width, -0.12 * p.half_depth, z_left - 40), (44.0, 46.0, 34.0)) + 4 * coarse
    )
    stomach = np.maximum(stomach, under + np.float32(4))
    _lay(hu, grid.soft(stomach), 45.0)
    filled = grid.soft(stomach + np.float32(4))
    _lay(hu, filled, 18 + 12 * fine)
    _lay(hu, filled * grid.soft(y + np.float32(0.22 * p.half_depth)), -960.0)
    muscle = np.abs(under) - np.float32(2.0)
    _lay(hu, grid.soft(np.maximum(muscle, cavity)), MUSCLE)


def _mediastinum(
    hu: Array, scene: Scene, grid: Grid, heart: Array, distance: Array, fine: Array, coarse: Array
) -> Array:
    """Fat, heart, great vessels, oesophagus; returns the share of the aorta and what hangs on it."""
    p, chest, x, y, z = scene.chest.patient, scene.chest, grid.body_x, grid.body_y, grid.body_z
    space = np.maximum(chest.cavity(x, y, z), -chest.diaphragm(x, y, z))
    _lay(hu, grid.soft(space), FAT + 10 + 14 * fine)
    _lay(hu, heart, FAT + 8 * fine)
    blood = BLOOD + 190 * p.contrast
    muscle = BLOOD + 8 + 55 * p.contrast
    _lay(hu, grid.soft(distance + 1.2 + 1.2 * coarse), muscle + 4 * fine)
    if p.contrast > 0:
        _lay(hu, grid.soft(chest.chambers(x, y, z) + coarse), blood + 6 * fine)
    aorta = occupancy(scene.vessels, grid)
    _lay(hu, aorta, blood + 4 * fine)
    _lay(hu, occupancy(scene.gullet, grid), 38 + 6 * fine)
    return aorta


def _bones(hu: Array, scene: Scene, grid: Grid, fine: Array) -> None:
    p, x, y, z = scene.chest.patient, grid.body_x, grid.body_y, grid.body_z
    cortex, spongy = 330 + 0.8 * p.bone_hu, p.bone_hu
    bodies, discs, canal = bones.vertebrae(p, x, y, z)
    _lay(hu, grid.soft(discs), 85.0)
    _lay(hu, grid.soft(bodies), 0.75 * cortex)
    _lay(hu, grid.soft(bodies + np.float32(1.4)), spongy + 22 * fine)
    _lay(hu, grid.soft(canal), 22.0)
    tubes = scene.skeleton
    _lay(hu, occupancy(tubes.cartilage, grid), 95.0)
    _lay(hu, occupancy(tubes.bone, grid), cortex)
    _lay(hu, occupancy(tubes.bone.wider(-1.6), grid), spongy + 25 * fine)
    for flat in (bones.sternum(p, x, y, z), bones.shoulder_blades(p, x, y, z)):
        _lay(hu, grid.soft(flat), 0.8 * cortex)
        _lay(hu, grid.soft(flat + np.float32(1.7)), 0.8 * spongy + 20 * fine)


# ---- lungs


def _parenchyma(scene: Scene, grid: Grid, fine: Array, coarse: Array, fissures: tuple[Array, ...]) -> Array:
    """Air and tissue with the pull of gravity, emphysema and the fissures' thin lines."""
    p, x, y = scene.chest.patient, grid.body_x, grid.body_y
    tissue = np.float32(p.lung_hu) + np.float32(p.gravity_hu / (2 * p.half_depth)) * y + 11 * fine + 9 * coarse
    left, right, horizontal = fissures
    thick = np.float32(1.1)
    on_right = x < np.float32(4)
    oblique = np.where(on_right, np.abs(right), np.abs(left))
    near = np.where(on_right & (right > 0), np.minimum(np.abs(horizontal), oblique), oblique)
    wide = np.float32(max(1.1, grid.voxel_mm))
    line = np.clip(1 - near / wide, 0, 1) * np.float32(thick / wide)
    tissue += line * np.float32(430)
    for side, severity in zip((1, -1), scene.lesions.emphysema, strict=True):
        if severity > 0:
            holes = np.clip(coarse * 0.7 + fine * 0.6 + p.t_of(grid.body_z) - 0.35, 0, 1.2) * np.where(
                x * side > 0, 1.0, 0.0
            )
            tissue -= np.float32(160 * severity) * holes.astype(np.float32)
    return np.maximum(tissue, np.float32(-1000))


def _trees(tissue: Array, scene: Scene, grid: Grid) -> dict[str, Array]:
    """Vessels, then airway walls and lumen."""
    p = scene.chest.patient
    vessel = np.maximum(occupancy(scene.trees.artery, grid), occupancy(scene.trees.vein, grid))
    wall, lumen = occupancy(scene.trees.walls(), grid), occupancy(scene.trees.airway, grid)
    _lay(tissue, vessel, BLOOD + 180 * p.contrast)
    _lay(tissue, wall, 10.0)
    _lay(tissue, lumen, AIR)
    return {"vessel": vessel * (1 - wall), "airway": lumen, "wall": wall}


def _outside_trees(hu: Array, scene: Scene, grid: Grid, shares: dict[str, Array], space: Array) -> None:
    """The same trees in the mediastinum, and the trachea in the neck."""
    outside = 1 - space
    _lay(hu, shares["vessel"] * outside, BLOOD + 188 * scene.chest.patient.contrast)
    _lay(hu, shares["wall"] * outside, 30.0)
    _lay(hu, shares["airway"] * outside, AIR)


# ---- findings


def _lesions(
    tissue: Array,
    scene: Scene,
    grid: Grid,
    labels: Array,
    space: Array,
    fine: Array,
    coarse: Array,
    shares: dict[str, Array],
) -> Array:
    """Paint the findings into the lung tissue and add the fluid's share; returns 1 + place in KINDS per voxel."""
    found = np.zeros(grid.shape, dtype=np.uint8)
    solid = 38 + 30 * scene.chest.patient.contrast
    keep_air = 1 - shares["airway"]
    for blob in scene.lesions.blobs:
        share = _blob(blob, grid, fine, coarse)
        if blob.lobe:
            share = share * (labels == blob.lobe)
        if blob.kind == "ground_glass":
            _lay(tissue, share * np.float32(0.30) * keep_air, 45.0)
        elif blob.kind == "bullae":
            _lay(tissue, share, -700.0)
            core = _blob(blob, grid, fine, coarse, inner_mm=1.0)
            _lay(tissue, core, -992 + 3 * fine)
        else:
            airless = keep_air if blob.kind == "consolidation" else 1
            _lay(tissue, share * np.float32(0.96) * airless, solid + 9 * fine)
        found[share >= 0.5] = 1 + KINDS.index(blob.kind)
    for plate in scene.lesions.plates:
        share = _plate(plate, grid)
        _lay(tissue, share * keep_air, solid - 20)
        found[share >= THIN_SHARE] = 1 + KINDS.index("atelectasis")
    for lobe in scene.lesions.collapsed:
        share = (labels == lobe).astype(np.float32)
        _lay(tissue, share * keep_air * np.float32(0.97), solid + 12 + 8 * fine)
        found[labels == lobe] = 1 + KINDS.index("atelectasis")
    shares["effusion"] = _fluid(tissue, scene, grid, solid, keep_air)
    found[shares["effusion"] >= 0.5] = 1 + KINDS.index("effusion")
    return found


def _blob(blob: Blob, grid: Grid, fine: Array, coarse: Array, inner_mm: float = 0.0) -> Array:
    distance = ellipsoid(grid.body_x, grid.body_y, grid.body_z, blob.centre, blob.radii)
    if blob.rough_mm:
        distance = distance + np.float32(blob.rough_mm) * (0.6 * coarse + 0.5 * fine)
    blur = 1.0 if blob.kind in ("bullae", "nodule") else 0.25  # hazy edges for opacities
    return grid.soft((distance + np.float32(inner_mm)) * np.float32(blur))


def _plate(plate: Plate, grid: Grid) -> Array:
    u, v, w = (c - np.float32(c0) for c, c0 in zip((grid.body_x, grid.body_y, grid.body_z), plate.centre, strict=True))
    a, b, c = (np.float32(n) for n in plate.normal)
    across = a * u + b * v + c * w
    radial = np.sqrt(u * u + v * v + w * w) - np.float32(plate.radius)
    half = max(plate.thick / 2, grid.voxel_mm / 2)
    share = np.clip((half + grid.voxel_mm / 2 - np.abs(across)) / grid.voxel_mm, 0, 1) * (plate.thick / 2 / half)
    return share * grid.soft(radial * np.float32(0.3))


def _fluid(tissue: Array, scene: Scene, grid: Grid, solid: float, keep_air: Array) -> Array:
    """Fluid in each pleural space, with the strip of lung that it presses together in front of it."""
    x, y, z = grid.body_x, grid.body_y, grid.body_z
    total = np.zeros(grid.shape, dtype=np.float32)
    for fluid in scene.lesions.fluids:
        this_side = x > 4 if fluid.side == "left" else x <= 4
        front = np.float32(fluid.level) - depth_behind(fluid.side, x, y, z, scene.chest)
        strip = np.clip(1 - front / np.float32(4 + 16 * fluid.severity), 0, 1) * this_side
        _lay(tissue, np.minimum(strip * 1.4, 1) * keep_air, solid + 15)
        total = np.maximum(total, grid.soft(front) * this_side)
    return total
