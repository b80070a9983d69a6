"""Pleural fluid and the heart's region: estimates from density and place, for use where no better mask is at hand.

Shapes here: d, h, w voxels of the frame (to the head, the back, the patient's left).
"""

from __future__ import annotations

import numpy as np

from medisyn.evaluation.segment_ct.frame import Spacing, grown, opened
from medisyn.evaluation.segment_ct.lungs import LEFT, RIGHT, largest

FLUID_HU = (-12.0, 27.0)  # below muscle, liver and blood (30 to 60), above fat
FLUID_SMOOTH_MM = 4.0
FLUID_WIDTH_MM, FLUID_WIDTH_VOXELS = 5.0, 1.3  # radius, the larger of the two: seams of fat and muscle are thinner
SMALLEST_FLUID_ML = 15.0
NEAR_LUNG_MM = 15.0  # between a large effusion and the aerated lung lies lung that it has pressed empty
NEAR_LUNG_ML = 4.0  # of it at least as near: 11 mL and more of phantoms' effusions, 1 mL of muscle beside a spine
NEAR_BACK_MM = 35.0  # from the back of the rib cage: a patient on the back has fluid there, the stomach lies in front
BONE_HU = 180.0
RIB_MM = 9.0  # from the outside of the rib cage to the pleura
HEART_TOP = 0.7  # of the lungs' height: above are the great vessels and the shoulders
ABOVE_DOME = 0.85
HEART_MM = 14.0  # radius of the ball that the aorta and the veins do not hold


def pleural_fluid(hu_dhw: np.ndarray, body_dhw: np.ndarray, sides_dhw: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Fluid-dense regions inside the rib cage, near a lung and along the back. Ascites may be among them."""
    from scipy import ndimage

    lung = sides_dhw > 0
    found = np.zeros(lung.shape, dtype=bool)
    if not lung.any():
        return found
    smooth = ndimage.gaussian_filter(np.clip(hu_dhw, -200, 200), [FLUID_SMOOTH_MM / mm for mm in spacing])
    fluid = (smooth > FLUID_HU[0]) & (smooth < FLUID_HU[1]) & body_dhw & ~lung
    radius = max(FLUID_WIDTH_MM, FLUID_WIDTH_VOXELS * max(spacing))
    cage = rib_cage(hu_dhw, body_dhw, lung, spacing)
    fluid = opened(fluid & cage, radius, spacing)
    labels, count = ndimage.label(fluid)

    def millilitres(where: np.ndarray) -> np.ndarray:
        return np.bincount(labels[where], minlength=count + 1) * (float(np.prod(spacing)) / 1000)

    near = grown(lung, max(NEAR_LUNG_MM, 1.01 * max(spacing)), spacing)
    wanted = (millilitres(fluid) >= SMALLEST_FLUID_ML) & (millilitres(near) >= NEAR_LUNG_ML)
    wanted &= millilitres(_back(cage, spacing)) > 0
    wanted[0] = False
    return wanted[labels]


def rib_cage(hu_dhw: np.ndarray, body_dhw: np.ndarray, lung_dhw: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Inside the ribs: in each axial slice the convex hull of lungs and bone, less the ribs' own thickness."""
    from skimage.morphology import convex_hull_image

    bone = (hu_dhw > BONE_HU) & body_dhw
    inside = np.zeros(lung_dhw.shape, dtype=bool)
    rows = np.flatnonzero(lung_dhw.any(axis=(1, 2)))
    for number in range(rows[0], rows[-1] + 1):
        frame_hw = bone[number] | lung_dhw[number]
        if frame_hw.sum() > 8:
            inside[number] = _shrunk_hw(convex_hull_image(frame_hw), RIB_MM, spacing) | lung_dhw[number]
    return inside


def _back(cage_dhw: np.ndarray, spacing: Spacing) -> np.ndarray:
    """What lies within `NEAR_BACK_MM` of the hindmost row of the rib cage, slice by slice."""
    rows = np.arange(cage_dhw.shape[1])
    last_d = np.where(cage_dhw.any(axis=2), rows, -1).max(axis=1)
    behind_dh = rows >= last_d[:, None] - NEAR_BACK_MM / spacing[1]
    return cage_dhw & behind_dh[:, :, None]


def heart_region(
    hu_dhw: np.ndarray, body_dhw: np.ndarray, sides_dhw: np.ndarray, fluid_dhw: np.ndarray, spacing: Spacing
) -> np.ndarray:
    """The thick soft tissue between the lungs, in front of the spine and above the liver's dome.

    The liver joins the heart without a border that a threshold can see; the region stops where the soft tissue under
    the right lung begins, so its lower part is cut off and its volume is too small. Its width is what it is for.
    """
    lung = sides_dhw > 0
    empty = np.zeros(lung.shape, dtype=bool)
    if not ((sides_dhw == RIGHT).any() and (sides_dhw == LEFT).any()):
        return empty
    between = np.zeros(lung.shape, dtype=bool)
    rows = np.flatnonzero(lung.any(axis=(1, 2)))
    top = rows[0] + HEART_TOP * (rows[-1] - rows[0])
    for number in range(_dome(sides_dhw), int(top) + 1):
        between[number] = _between(sides_dhw[number])
    tissue = between & (hu_dhw > -150) & body_dhw & ~lung & ~fluid_dhw
    return largest(opened(tissue, HEART_MM, spacing))


def _dome(sides_dhw: np.ndarray) -> int:
    """The lowest slice in which the right lung has nearly its greatest area: below it lies the liver."""
    areas = (sides_dhw == RIGHT).sum(axis=(1, 2))
    return int(np.flatnonzero(areas >= ABOVE_DOME * areas.max())[0])


def _between(sides_hw: np.ndarray) -> np.ndarray:
    """From side to side of both lungs, in the front 72 % of their depth: behind lie spine and descending aorta."""
    region = np.zeros(sides_hw.shape, dtype=bool)
    right, left = np.flatnonzero((sides_hw == RIGHT).any(axis=0)), np.flatnonzero((sides_hw == LEFT).any(axis=0))
    if len(right) == 0 or len(left) == 0:
        return region
    rows = np.flatnonzero((sides_hw > 0).any(axis=1))
    front, back = rows[0], rows[0] + 0.72 * (rows[-1] - rows[0])
    region[front : int(back), right[0] : left[-1] + 1] = True
    return region


def _shrunk_hw(mask_hw: np.ndarray, mm: float, spacing: Spacing) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(np.pad(mask_hw, 1), sampling=spacing[1:])[1:-1, 1:-1] > mm
