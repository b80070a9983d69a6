"""Body, trachea and lungs from thresholds: what is air inside the patient, and on which side.

Shapes here: d, h, w voxels of the frame (to the head, the back, the patient's left).
"""

from __future__ import annotations

import numpy as np

from medisyn.evaluation.segment_ct.frame import Spacing, closed, grown, opened, window_around

LUNG_HU = -400.0  # half-way between aerated lung and soft tissue
OUTSIDE_HU = -955.0  # room air is below, a lung cut by the edge of the scan is above
MIN_LUNG_ML = 30.0
GAS_HU, GAS_MM = -900.0, 8.0  # gas in stomach and bowel is below, in pockets of at least this radius
GAS_SHARE = 0.1  # of all the air, at most: a lung with emphysema may be as thin
GAS_BESIDE_AIR = 0.2  # of a pocket's surface, at most: phantoms' gas 0.01, a patient's colon 0.13, bullae 0.33 and more
CORE_MM = 8.0  # as deep lies what is surely lung
CLOSING_MM = 9.0
SPLIT_MM = (0.0, 2.0, 4.0, 6.0, 9.0, 12.0)  # erosions tried until the two lungs come apart
RIGHT, LEFT = 1, 2


def room_air(hu_dhw: np.ndarray) -> np.ndarray:
    """Air outside the patient: components of air that reach a side edge of an axial slice and are as thin as room air.

    A lung that the field of view cuts reaches the edge too; it is denser.
    """
    from scipy import ndimage

    labels, count = ndimage.label(hu_dhw < LUNG_HU)
    edges = np.zeros(count + 1, dtype=bool)
    for side in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        edges[np.unique(side)] = True
    numbers = [n for n in np.flatnonzero(edges) if n]
    medians = ndimage.median(hu_dhw, labels, numbers) if numbers else []
    thin = np.zeros(count + 1, dtype=bool)
    thin[[n for n, value in zip(numbers, medians, strict=True) if value < OUTSIDE_HU]] = True
    return thin[labels]


def body(hu_dhw: np.ndarray, room_dhw: np.ndarray, spacing: Spacing) -> np.ndarray:
    """The patient without the table: the largest part of what is not room air, each axial slice filled.

    A table that touches the skin over a wide area stays on.
    """
    from scipy import ndimage

    solid = opened(~room_dhw & (hu_dhw > -350), 4.0, spacing)
    kept = largest(solid)
    kept = closed(kept, 4.0, spacing)
    filled = np.stack([ndimage.binary_fill_holes(slice_hw) for slice_hw in kept])
    return (filled | _cut_by_the_view(hu_dhw, room_dhw, kept, spacing)) & ~room_dhw


def _cut_by_the_view(hu_dhw: np.ndarray, room_dhw: np.ndarray, kept_dhw: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Lungs that reach a side edge, so that no slice closes around them: large air parts, not room air, at the body."""
    from scipy import ndimage

    labels, count = ndimage.label((hu_dhw < LUNG_HU) & ~room_dhw)
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * float(np.prod(spacing)) / 1000
    edges = np.concatenate([side.ravel() for side in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1])])
    beside = labels[ndimage.binary_dilation(kept_dhw, iterations=2)]
    wanted = np.zeros(count + 1, dtype=bool)
    wanted[np.intersect1d(np.unique(edges), np.unique(beside))] = True
    wanted &= sizes >= MIN_LUNG_ML
    wanted[0] = False
    return wanted[labels]


def lungs(hu_dhw: np.ndarray, inside_dhw: np.ndarray, central_dhw: np.ndarray, spacing: Spacing) -> np.ndarray:
    """1 in the right lung, 2 in the left, 0 elsewhere.

    inside_dhw   where a lung may lie: in the body
    central_dhw  the airways outside the lungs, which are no part of them

    Vessels, airways and small nodules are closed over (9 mm); fluid and a collapsed or consolidated lobe are not
    aerated and stay out.
    """
    from scipy import ndimage

    aerated = (hu_dhw < LUNG_HU) & inside_dhw & ~central_dhw
    elsewhere = central_dhw | enclosed_gas(aerated, hu_dhw, spacing)
    aerated = _parts_of_lung(aerated & ~elsewhere, hu_dhw, spacing)
    sides = _two_sides(aerated, spacing)
    result = np.zeros(hu_dhw.shape, dtype=np.uint8)
    for label in (RIGHT, LEFT):
        one = sides == label
        if not one.any():
            continue
        box = window_around(one, CLOSING_MM + 2 * max(spacing), spacing)
        full = ndimage.binary_fill_holes(_closed_over(one[box], spacing))
        full &= ~elsewhere[box] & inside_dhw[box] & (result[box] == 0)
        result[box][full & (sides[box] != RIGHT + LEFT - label)] = label
    return result


def _closed_over(lung_dhw: np.ndarray, spacing: Spacing) -> np.ndarray:
    """The lung with its vessels: gaps are closed, but blobs wider than 14 mm at its rim are fluid or mediastinum."""
    added = closed(lung_dhw, CLOSING_MM, spacing) & ~lung_dhw
    return lung_dhw | (added & ~opened(added, 7.0, spacing))


def enclosed_gas(aerated_dhw: np.ndarray, hu_dhw: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Gas in stomach and bowel: pockets as thin as air that soft tissue encloses, where a bulla has lung beside it.

    A watershed on HU parts a pocket from a lung that it touches across the diaphragm.
    """
    from scipy import ndimage
    from skimage.segmentation import watershed

    gas = np.zeros(aerated_dhw.shape, dtype=bool)
    labels, _count = ndimage.label(opened(aerated_dhw & (hu_dhw < GAS_HU), GAS_MM, spacing))
    step = 1.01 * max(spacing)
    for number, found in enumerate(ndimage.find_objects(labels), start=1):
        if (labels[found] == number).sum() > GAS_SHARE * aerated_dhw.sum():
            continue
        box = window_around(labels == number, 4 * CORE_MM + step, spacing)
        pocket, air = labels[box] == number, aerated_dhw[box]
        core = ndimage.distance_transform_edt(air, sampling=spacing) > CORE_MM
        lung = core & ~grown(pocket, 2 * CORE_MM + step, spacing)
        markers = np.where(pocket, 1, np.where(lung, 2, 0)).astype(np.int32)
        whole = watershed(hu_dhw[box], markers, mask=air) == 1
        around = grown(whole, step, spacing) & ~whole
        if not around.any() or air[around].mean() <= GAS_BESIDE_AIR:
            gas[box] |= whole
    return gas


def _parts_of_lung(aerated: np.ndarray, hu_dhw: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Components large enough to be lung: bowel gas and the gullet's air are small or as thin as room air."""
    from scipy import ndimage

    labels, count = ndimage.label(aerated)
    sizes = np.bincount(labels.ravel(), minlength=count + 1).astype(float) * np.prod(spacing) / 1000
    sizes[0] = 0
    wanted = sizes >= max(MIN_LUNG_ML, 0.02 * sizes.max(initial=0))
    for number in np.flatnonzero(wanted):
        if float(np.median(hu_dhw[labels == number])) < OUTSIDE_HU:
            wanted[number] = False
    return wanted[labels]


def _two_sides(aerated: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Right and left, by eroding until two large parts lie beside each other; grown back by a watershed."""
    from scipy import ndimage
    from skimage.segmentation import watershed

    if not aerated.any():
        return np.zeros(aerated.shape, dtype=np.uint8)
    middle = aerated.shape[2] / 2
    depth = ndimage.distance_transform_edt(aerated, sampling=spacing)
    for mm in SPLIT_MM:
        labels, count = ndimage.label(depth > mm)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        sizes[0] = 0
        big = [n for n in np.argsort(sizes)[::-1] if sizes[n] > 0.1 * sizes.max()]
        centres = [ndimage.center_of_mass(labels == n)[2] for n in big]
        if len(big) > 1 and max(centres) - min(centres) > 60 / spacing[2]:
            split = (max(centres) + min(centres)) / 2
            markers = np.zeros(aerated.shape, dtype=np.int32)
            for number in range(1, count + 1):
                if sizes[number] > 0.005 * sizes.max():
                    centre = ndimage.center_of_mass(labels == number)[2]
                    markers[labels == number] = RIGHT if centre < split else LEFT
            return watershed(-depth, markers, mask=aerated).astype(np.uint8)
    centre = ndimage.center_of_mass(aerated)[2]
    return np.where(aerated, RIGHT if centre < middle else LEFT, 0).astype(np.uint8)


def largest(mask_dhw: np.ndarray) -> np.ndarray:
    """The largest component; an empty mask stays empty."""
    from scipy import ndimage

    labels, count = ndimage.label(mask_dhw)
    if count == 0:
        return mask_dhw.copy()
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == int(sizes.argmax())
