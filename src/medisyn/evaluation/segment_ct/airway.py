"""The airway tree: a trachea found slice by slice, grown downwards until it would leak into the lung.

Shapes here: d, h, w voxels of the frame.
"""

from __future__ import annotations

import numpy as np

from medisyn.evaluation.segment_ct.frame import Spacing, grown, window_around

SEED_HU = -900.0
AREA_MM2 = (12.0, 900.0)  # of the lumen in an axial slice, at least one voxel at 64 a side
MIN_TRACHEA_MM = 20.0
THRESHOLDS = tuple(range(-960, -690, 10))
MAX_TREE_ML = 180.0
LEAK_ML, LEAK_RATIO = 6.0, 1.35  # growth in one step of 10 HU that is a leak
WALL_HU = -500.0  # half-way from lumen to soft tissue
LUNG_CORE_MM = 8.0
LUMEN_HU, DARK_TUBE = -930.0, 20.0  # of a bronchus inside the lung, and how much of a tube it is
DARKER_HU = 70.0  # than the median of the lung
LUNG_BELOW_HU = -600.0
REACH_MM = 80.0  # of bronchi that are looked for, from the centre
MAX_GAIN = 1.5


def trachea(hu_dhw: np.ndarray, body_dhw: np.ndarray, spacing: Spacing) -> np.ndarray:
    """The trachea's lumen: round dark places near the middle that stand above one another. Empty when there is none."""
    from scipy import ndimage
    from skimage.measure import label, regionprops

    round_ones = np.zeros(hu_dhw.shape, dtype=bool)
    columns = np.flatnonzero(body_dhw.any(axis=(0, 1)))
    if len(columns) == 0:
        return round_ones
    middle = (columns[0] + columns[-1]) / 2
    pixel = spacing[1] * spacing[2]
    for number, slice_hw in enumerate((hu_dhw < SEED_HU) & body_dhw):
        for region in regionprops(label(slice_hw)):
            low_h, low_w, high_h, high_w = region.bbox
            tall, wide = (high_h - low_h) * spacing[1], (high_w - low_w) * spacing[2]
            near = abs(region.centroid[1] - middle) * spacing[2] < 45
            lumen_sized = AREA_MM2[0] <= region.area * pixel <= AREA_MM2[1] and max(tall, wide) < 45
            if near and lumen_sized and max(tall, wide) <= 2.5 * min(tall, wide) + max(spacing):
                round_ones[number, low_h:high_h, low_w:high_w] |= region.image
    labels, _count = ndimage.label(round_ones)
    best, longest = 0, MIN_TRACHEA_MM
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        part = labels[box] == number
        above = box[0].stop / hu_dhw.shape[0]
        score = part.any(axis=(1, 2)).sum() * spacing[0] * (0.5 + above)
        if score > longest and float(np.median(hu_dhw[box][part])) < -930:
            best, longest = number, score
    return labels == best if best else np.zeros(hu_dhw.shape, dtype=bool)


def grow_tree(hu_dhw: np.ndarray, seed_dhw: np.ndarray, body_dhw: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Region growing from the trachea, with the highest threshold before the region leaks (explosion control)."""
    if not seed_dhw.any():
        return seed_dhw
    millilitre = float(np.prod(spacing)) / 1000
    tree, volume = seed_dhw, float(seed_dhw.sum()) * millilitre
    for threshold in THRESHOLDS:
        region = _connected((hu_dhw < threshold) & body_dhw | seed_dhw, seed_dhw)
        larger = float(region.sum()) * millilitre
        leaks = larger - volume > LEAK_ML and larger > LEAK_RATIO * volume and threshold > THRESHOLDS[3]
        if larger > MAX_TREE_ML or leaks:
            break
        tree, volume = region, larger
    return tree


def central_part(hu_dhw: np.ndarray, tree_dhw: np.ndarray, body_dhw: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Trachea and main bronchi up to their walls, parted from the lungs by a watershed on HU."""
    from scipy import ndimage
    from skimage.segmentation import watershed

    if not tree_dhw.any():
        return tree_dhw
    air = (hu_dhw < WALL_HU) & body_dhw
    depth = ndimage.distance_transform_edt(air & ~tree_dhw, sampling=spacing)
    lung = (depth > LUNG_CORE_MM) & (hu_dhw > -950)
    markers = np.where(tree_dhw, 1, np.where(lung, 2, 0)).astype(np.int32)
    parted = watershed(hu_dhw, markers, mask=air | tree_dhw)
    return (parted == 1) & grown(tree_dhw, 1.01 * max(spacing), spacing)


def bronchi(hu_dhw: np.ndarray, central_dhw: np.ndarray, body_dhw: np.ndarray, spacing: Spacing) -> np.ndarray:
    """The tree with the bronchi inside the lungs: dark tubes (Sato et al. 1998) that hang together with its centre.

    The lumen must be clearly darker than this patient's lung, and a tree that grows by half its centre has leaked: then
    the centre alone is returned. Small bronchi whose wall and lumen share a voxel look like vessels and are not found.
    """
    from skimage.filters import sato

    if not central_dhw.any():
        return central_dhw
    box = window_around(central_dhw, REACH_MM, spacing)
    hu, central, body = hu_dhw[box], central_dhw[box], body_dhw[box]
    lung = hu[(hu < LUNG_BELOW_HU) & body & ~central]
    if len(lung) == 0:
        return central_dhw
    below = min(LUMEN_HU, float(np.median(lung)) - DARKER_HU)
    sigma = max(0.7, 1.0 / float(np.mean(spacing)))
    dark = sato(np.clip(hu, -1000, 0), sigmas=[sigma], black_ridges=True)
    tree = _connected(central | ((hu < below) & (dark > DARK_TUBE) & body), central, np.ones((3, 3, 3)))
    if tree.sum() > MAX_GAIN * central.sum():
        return central_dhw
    whole = central_dhw.copy()
    whole[box] = tree
    return whole


def _connected(mask_dhw: np.ndarray, seed_dhw: np.ndarray, structure: np.ndarray | None = None) -> np.ndarray:
    """The components of a mask that hold a seed."""
    from scipy import ndimage

    labels, count = ndimage.label(mask_dhw, structure)
    wanted = np.zeros(count + 1, dtype=bool)
    wanted[np.unique(labels[seed_dhw])] = True
    wanted[0] = False
    return wanted[labels]
