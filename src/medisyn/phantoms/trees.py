"""Airways, arteries beside them and veins between them, grown into each lobe until they reach all of it.

Growing halves a cloud of points again and again: a branch runs from its start part of the way to the centre of its
cloud, the cloud is cut across its longest axis, and each half gets a branch (after Tawhai et al. 2000).
Shapes here: P points, K branches of one generation, N capsules. Millimetres are of the body.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medisyn.phantoms.chest import Chest
from medisyn.phantoms.hila import Root, bronchial_roots, central_airway, pulmonary_trunk, vein_roots_of, vein_stems
from medisyn.phantoms.survey import Survey
from medisyn.phantoms.tubes import Tubes, join

TIPS = {"airway": 3200, "vein": 2800}  # ends of the two trees over both lungs
SMALLEST_AIRWAY_MM = 0.95  # radius of the lumen; CT shows none below
REACH = 0.45  # how much of the way to the centre of its cloud a branch runs
MARGIN_MM = 4.0  # no branch ends closer to the pleura
LIMIT_GENERATIONS = 24


@dataclass(frozen=True)
class Trees:
    """Lumen of the airways, and the vessels, each with the part outside the lungs (lobe 0)."""

    airway: Tubes
    artery: Tubes
    vein: Tubes

    def walls(self) -> Tubes:
        """The airways with their walls."""
        return self.airway.wider(wall_mm(self.airway.start_N))


def wall_mm(radius_N: np.ndarray) -> np.ndarray:
    """Thickness of an airway's wall from the radius of its lumen."""
    return 0.3 + 0.1 * radius_N


def grow_trees(chest: Chest, survey: Survey, rng: np.random.Generator) -> Trees:
    """The trees of one patient. Lobes without room (fluid, collapse) get few branches or none."""
    airway, artery, veins = [central_airway(chest)], [pulmonary_trunk(chest)], [vein_stems(chest)]
    vein_roots = vein_roots_of(chest)
    for lobe, root in bronchial_roots(chest).items():
        tips = survey.sample(lobe, TIPS["airway"], MARGIN_MM, rng)
        if len(tips) >= 2:
            bronchi = grow(tips, root, lobe, chest)
            airway.append(bronchi.pick(bronchi.start_N >= SMALLEST_AIRWAY_MM))
            artery.append(_beside(bronchi, _artery_side(lobe)))
        tips = survey.sample(lobe, TIPS["vein"], MARGIN_MM, rng)
        if len(tips) >= 2:
            veins.append(grow(tips, vein_roots[lobe], lobe, chest))
    return Trees(join(airway), join(artery), join(veins))


def grow(tips_P3: np.ndarray, root: Root, lobe: int, chest: Chest) -> Tubes:
    """One tree from `root` to the tips. A radius falls with the number of tips it feeds, to the power 0.4."""
    start_K3, group_P = root.start[None], np.zeros(len(tips_P3), dtype=np.int64)
    parts = []
    for _ in range(LIMIT_GENERATIONS):
        count_K = np.bincount(group_P)
        centre_K3 = np.stack([np.bincount(group_P, tips_P3[:, i]) for i in range(3)], axis=1) / count_K[:, None]
        share_K = np.where(count_K == 1, 0.85, REACH)
        end_K3 = start_K3 + share_K[:, None] * (centre_K3 - start_K3)
        end_K3 = _keep_inside(start_K3, end_K3, tips_P3, group_P, lobe, chest)
        radius_K = root.radius * (count_K / len(tips_P3)) ** 0.4
        parts.append(Tubes(start_K3, end_K3, radius_K, radius_K * 0.92, np.full(len(count_K), lobe, dtype=np.uint8)))
        if (count_K == 1).all():
            break
        side_P = _cut(tips_P3, group_P, centre_K3, end_K3 - start_K3)
        going_on_P = count_K[group_P] > 1
        tips_P3 = tips_P3[going_on_P]
        halves, group_P = np.unique((2 * group_P + side_P)[going_on_P], return_inverse=True)
        start_K3 = end_K3[halves // 2]
    return join(parts)


def _cut(tips_P3: np.ndarray, group_P: np.ndarray, centre_K3: np.ndarray, along_K3: np.ndarray) -> np.ndarray:
    """0 or 1 per tip: the side of the plane through its cloud's centre that halves the cloud along its longest axis."""
    away_P3 = tips_P3 - centre_K3[group_P]
    spread_K33 = np.empty((len(centre_K3), 3, 3))
    for i in range(3):
        for j in range(3):
            spread_K33[:, i, j] = np.bincount(group_P, away_P3[:, i] * away_P3[:, j], minlength=len(centre_K3))
    unit_K3 = along_K3 / (np.linalg.norm(along_K3, axis=1, keepdims=True) + 1e-9)
    square_K33 = np.eye(3) - unit_K3[:, :, None] * unit_K3[:, None, :]
    axis_K3 = np.linalg.eigh(square_K33 @ spread_K33 @ square_K33)[1][:, :, -1]
    return (np.einsum("pi,pi->p", away_P3, axis_K3[group_P]) > 0).astype(np.int64)


def _keep_inside(
    start_K3: np.ndarray, end_K3: np.ndarray, tips_P3: np.ndarray, group_P: np.ndarray, lobe: int, chest: Chest
) -> np.ndarray:
    """Branch ends that would leave the lobe are drawn to the nearest tip of their own cloud, which is inside."""
    outside_K = labels_at(chest, end_K3) != lobe
    if not outside_K.any():
        return end_K3
    distance_P = np.linalg.norm(tips_P3 - end_K3[group_P], axis=1)
    order = np.lexsort((distance_P, group_P))
    nearest_K = order[np.searchsorted(group_P[order], np.arange(len(end_K3)))]
    moved_K3 = end_K3.copy()
    moved_K3[outside_K] = 0.3 * start_K3[outside_K] + 0.7 * tips_P3[nearest_K][outside_K]
    return moved_K3


def labels_at(chest: Chest, points_N3: np.ndarray) -> np.ndarray:
    """Lobe labels at body points, 0 outside the pleural spaces."""
    x, y, z = points_N3.T.astype(np.float32)
    labels = chest.lobe_labels(x, *chest.fissures(x, y, z))
    inside = chest.lungs(x, y, z, chest.cavity(x, y, z), chest.heart(x, y, z)) < 0
    return np.where(inside, labels, np.uint8(0))


def _artery_side(lobe: int) -> np.ndarray:
    """Direction from a bronchus to its artery: outwards and up."""
    side = np.array([1.0 if lobe <= 2 else -1.0, -0.35 if lobe in (1, 3, 4) else 0.3, 0.7])
    return side / np.linalg.norm(side)


def _beside(bronchi: Tubes, side: np.ndarray) -> Tubes:
    """The arteries: a little wider than the lumen of their bronchi, and next to them all the way."""
    start_N, end_N = bronchi.start_N * 1.05 + 0.12, bronchi.end_N * 1.05 + 0.12
    # Both ends of a capsule move by a length that depends on the radius there, so neighbours nearly meet.
    start = bronchi.start_N3 + side * (bronchi.start_N + wall_mm(bronchi.start_N) + start_N)[:, None]
    end = bronchi.end_N3 + side * (bronchi.end_N + wall_mm(bronchi.end_N) + end_N)[:, None]
    return Tubes(start, end, start_N, end_N, bronchi.lobe_N)
