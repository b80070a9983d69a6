"""Aorta with its branches, the great veins, and the oesophagus, as curves through anatomical landmarks (body mm)."""

from __future__ import annotations

from medisyn.phantoms.chest import Chest
from medisyn.phantoms.hila import carina_of
from medisyn.phantoms.tubes import Tubes, curve, join

Points = list[tuple[float, float, float]]


def great_vessels(chest: Chest) -> Tubes:
    """Aorta from the heart over the arch to below the diaphragm, three branches, both caval veins, azygos."""
    return join([_aorta(chest), *_arch_branches(chest), *_veins(chest)])


def _arch_z(chest: Chest) -> float:
    return float(carina_of(chest)[2]) + 0.11 * chest.patient.lung_height


def _aorta(chest: Chest) -> Tubes:
    p, r, arch = chest.patient, chest.patient.aorta_radius, _arch_z(chest)
    _, y, z = carina_of(chest)
    x0, y0, z0 = chest.heart_centre()
    back = 15 + r
    points: Points = [
        (x0 - 8, y0 + 2, z0 + 30 * p.heart_scale),
        (-19, y - 34, z - 12),
        (-11, y - 27, arch - 10),
        (9, y - 10, arch),
        (back + 2, y + 14, arch - 9),
        (back + 3, p.spine_y_at(0.6) - 8, z - 12),
        (back, p.spine_y_at(0.45) - 6, p.z_of(0.42)),
        (back - 5, p.spine_y_at(0.2) - 9, p.z_of(0.18)),
        (back - 12, p.spine_y_at(0.0) - 13, p.z_of(-0.1)),
        (back - 15, p.spine_y_at(-0.2) - 14, p.z_of(-0.35)),
    ]
    return curve(points, [r * share for share in (1.12, 1.12, 1.08, 1.0, 0.95, 0.88, 0.85, 0.83, 0.8, 0.78)])


def _arch_branches(chest: Chest) -> list[Tubes]:
    """Brachiocephalic, left carotid and left subclavian artery."""
    p, arch = chest.patient, _arch_z(chest)
    y = float(carina_of(chest)[1])
    inlet, top = p.z_of(1.02), p.z_of(1.3)
    right: Points = [(-5, y - 20, arch + 4), (-14, y - 22, arch + 26), (-27, y - 20, inlet), (-34, y - 22, top)]
    carotid: Points = [(6, y - 14, arch + 6), (17, y - 14, arch + 30), (25, y - 16, inlet), (27, y - 20, top)]
    arm: Points = [(17, y + 2, arch + 4), (26, y + 1, arch + 28), (34, y - 4, inlet), (70, y - 24, p.z_of(1.1))]
    return [curve(right, [6.5, 6, 5, 4]), curve(carotid, [4.5, 4.2, 4, 3.6]), curve(arm, [5.5, 5, 5, 4.5])]


def _veins(chest: Chest) -> list[Tubes]:
    """Upper caval vein with the left brachiocephalic one, lower caval vein, azygos."""
    p, arch = chest.patient, _arch_z(chest)
    _, y, z = carina_of(chest)
    x0, y0, z0 = chest.heart_centre()
    inlet, top = p.z_of(0.97), p.z_of(1.3)
    upper: Points = [
        (-27, y - 20, z0 + 36), (-29, y - 19, z), (-25, y - 25, arch + 8), (-30, y - 30, inlet), (-38, y - 26, top),
    ]  # fmt: skip
    left: Points = [(-25, y - 27, arch + 8), (4, y - 38, arch + 16), (32, y - 34, inlet), (42, y - 26, top)]
    lower: Points = [(x0 - 26, y0 + 22, z0 - 22), (-22, y0 + 32, z0 - 46), (-20, y0 + 40, p.z_of(-0.3))]
    azygos: Points = [
        (-6, p.spine_y_at(0.2) - 18, p.z_of(0.0)),
        (-7, p.spine_y_at(0.5) - 18, p.z_of(0.5)),
        (-9, p.spine_y_at(0.68) - 17, z + 8),
        (-22, y - 4, z + 12),
        (-27, y - 17, z + 10),
    ]
    return [
        curve(upper, [9.5, 9, 8.5, 7, 6]),
        curve(left, [7, 6.5, 6.5, 6]),
        curve(lower, 11.0),
        curve(azygos, [3, 3.4, 4, 4, 4]),
    ]


def gullet(chest: Chest) -> Tubes:
    """The oesophagus, in front of the spine and behind the trachea."""
    p = chest.patient
    places = ((1.3, 5), (1.0, 6), (0.75, 4), (0.55, 5), (0.35, 7), (0.15, 12), (0.02, 20))  # t, x
    return curve([(x, p.spine_y_at(t) - (22 if t > 0.3 else 28), p.z_of(t)) for t, x in places], 6.5)
