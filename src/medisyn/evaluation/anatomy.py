"""Measures on a CT and its masks: fluid, low attenuation, heart width, volumes, overlap, length of a tree.

Arrays and voxel spacing go in, a number comes out; nothing here knows where a mask came from, so whoever reports a
number says whether the mask was the model's own, a segmenter's or a reader's.
Shapes here: D, H, W voxels; d runs along the body, h from front to back, w from side to side. `spacing_mm` is in that
order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medisyn.errors import InputError, RangeError
from medisyn.intensity import guard_hu

Spacing = tuple[float, float, float]
LOBES = {1: "left upper", 2: "left lower", 3: "right upper", 4: "right middle", 5: "right lower"}  # as LTRCLobes
SIDE_LABELS = {"left": (1, 2), "right": (3, 4, 5)}
MIN_NORMAL = 20


def volume_ml(mask_DHW: np.ndarray, spacing_mm: Spacing) -> float:
    """Volume of a mask in mL: its voxels times the volume of one (1 mL = 1000 mm^3).

    For a pleural effusion, an airway, a heart. MedSyn's Table I gives airways in 10^4 mm^3: 1 of those is 10 mL.
    """
    mask = _mask(mask_DHW, "the mask")
    return float(mask.sum(dtype=np.int64)) * _voxel_ml(spacing_mm)


def lobe_volumes_ml(labels_DHW: np.ndarray, spacing_mm: Spacing) -> Mapping[str, float]:
    """Volume of each lobe in mL, by the labels of LTRCLobes: 1 left upper, 2 left lower, 3 right upper, 4 right middle,
    5 right lower. A label that is absent has 0 mL; one outside 0 to 5 is an InputError.
    """
    found = np.unique(labels_DHW)
    unknown = [f"{value:g}" for value in found if value not in (0, *LOBES)]
    if unknown:
        raise InputError(
            f"lobe labels must be 0 to 5, got {', '.join(unknown[:5])}; round and map them to LTRCLobes first"
        )
    if labels_DHW.ndim != 3:
        raise InputError(f"lobe labels must have axes D, H, W, got shape {labels_DHW.shape}")
    voxel_ml = _voxel_ml(spacing_mm)
    return {name: float((labels_DHW == label).sum()) * voxel_ml for label, name in LOBES.items()}


def side_volumes_ml(mask_DHW: np.ndarray, lobes_DHW: np.ndarray, spacing_mm: Spacing) -> Mapping[str, float]:
    """Volume of a mask on the patient's left and right, in mL, by the side of the midline that a voxel lies on.

    The midline is the column midway between the mean columns of the left lobes (1, 2) and of the right ones (3 to 5).
    Where one lung is not there, as behind a large effusion, it is the middle of the volume. A voxel on it counts half
    to either side. Raises InputError when there is no lobe at all, or the shapes differ.
    """
    mask = _mask(mask_DHW, "the mask")
    if mask.shape != lobes_DHW.shape:
        raise InputError(f"sides: the mask {mask.shape} and the lobes {lobes_DHW.shape} differ in shape")
    columns = np.arange(mask.shape[2])
    found = {side: _mean_column(np.isin(lobes_DHW, labels)) for side, labels in SIDE_LABELS.items()}
    there = [column for column in found.values() if column is not None]
    if not there:
        raise InputError("sides: there is no lobe to tell left from right")
    middle = sum(there) / 2 if len(there) == 2 else (mask.shape[2] - 1) / 2
    left, right = found["left"], found["right"]
    grows_left = left > middle if left is not None else right is not None and right < middle
    count_W = mask.sum(axis=(0, 1), dtype=np.float64) * _voxel_ml(spacing_mm)
    high = float(count_W[columns > middle].sum() + count_W[columns == middle].sum() / 2)
    low = float(count_W.sum()) - high
    return {"left": high, "right": low} if grows_left else {"left": low, "right": high}


def _mean_column(mask_DHW: np.ndarray) -> float | None:
    count_W = mask_DHW.sum(axis=(0, 1), dtype=np.float64)
    return float(np.average(np.arange(len(count_W)), weights=count_W)) if count_W.any() else None


def normal_range(values_N: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """The range that holds the middle `share` of the values, NaN left out: 2.5 to 97.5 % for 0.95.

    Raises InputError for fewer than 20 values, whose ends would be a guess.
    """
    values = np.asarray(values_N, dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values) < MIN_NORMAL:
        raise InputError(f"a normal range needs at least {MIN_NORMAL} values, got {len(values)}")
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def low_attenuation_percent(
    hu_DHW: np.ndarray,
    lung_DHW: np.ndarray,
    *,
    threshold: float = -950.0,
    airway_DHW: np.ndarray | None = None,
    erode_voxels: int = 0,
) -> float:
    """Percent of the lung's voxels with HU below `threshold` (not equal to it): %LAA-950, or with -910 %LAA-910.

    The airways' lumen is air and no emphysema: `airway_DHW` is taken out of the lung. With `erode_voxels` the lung is
    also eroded that many times with the 6-neighbour cross, so that voxels at its edge do not count; the default is
    none. Scanner noise and a sharp kernel raise the figure: compare only like with like.
    Raises RangeError when the array cannot be HU, InputError when no lung is left.
    """
    from scipy.ndimage import binary_erosion

    guard_hu(hu_DHW)
    lung = _lung(hu_DHW, lung_DHW, airway_DHW)
    if erode_voxels < 0:
        raise InputError(f"erode_voxels must be 0 or more, got {erode_voxels}")
    if erode_voxels:
        lung = binary_erosion(lung, iterations=erode_voxels)
    values = hu_DHW[lung]
    if len(values) == 0:
        raise InputError("low attenuation: the lung mask is empty once airways and edge are taken out")
    return 100.0 * float(np.count_nonzero(values < threshold)) / len(values)


def mean_lung_hu(hu_DHW: np.ndarray, lung_DHW: np.ndarray, airway_DHW: np.ndarray | None = None) -> float:
    """Mean HU of the lung without airways, to be read beside %LAA. InputError when no lung is left."""
    lung = _lung(hu_DHW, lung_DHW, airway_DHW)
    if not lung.any():
        raise InputError("mean lung density: the lung mask is empty once airways are taken out")
    return float(hu_DHW[lung].mean(dtype=np.float64))


def cardiothoracic_ratio(heart_DHW: np.ndarray, chest_DHW: np.ndarray) -> float:
    """Greatest transverse width of the heart over the width of the chest in the same axial slice (MedSyn, section V-C).

    Width is the count of columns (w) from the first to the last voxel of the mask in one slice d, gaps included; the
    slice is the one where the heart is widest, the lowest index of equals. `chest_DHW` is the union of both lungs, and
    of the fluid beside them where there is any: with lungs alone a large effusion would widen the ratio. Spacing
    cancels. Raises InputError for an empty heart, or for no chest in that slice.
    """
    heart, chest = _mask(heart_DHW, "the heart"), _mask(chest_DHW, "the chest")
    if heart.shape != chest.shape:
        raise InputError(f"cardiothoracic ratio: heart {heart.shape} and chest {chest.shape} differ in shape")
    widths_D = [_columns(slice_HW) for slice_HW in heart]
    widest = int(np.argmax(widths_D))
    if widths_D[widest] == 0:
        raise InputError("cardiothoracic ratio: the heart mask is empty")
    across = _columns(chest[widest])
    if across == 0:
        raise InputError(f"cardiothoracic ratio: no chest in slice {widest}, where the heart is widest")
    return widths_D[widest] / across


def cardiothoracic_ratio_coronal(heart_DHW: np.ndarray, chest_DHW: np.ndarray) -> float:
    """The ratio as on a frontal radiograph: both masks are projected from front to back; the widest row of the heart
    is set against the widest row of the chest, wherever each lies. Raises InputError when one of them is empty.
    """
    heart, chest = _mask(heart_DHW, "the heart"), _mask(chest_DHW, "the chest")
    if not heart.any() or not chest.any():
        raise InputError("cardiothoracic ratio: the heart or the chest mask is empty")
    shadow_heart, shadow_chest = np.asarray(heart.any(axis=1)), np.asarray(chest.any(axis=1))
    return max(_extent(row) for row in shadow_heart) / max(_extent(row) for row in shadow_chest)


def dice(mask_DHW: np.ndarray, other_DHW: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|). NaN when both are empty; count such cases apart."""
    a, b = _mask(mask_DHW, "the first mask"), _mask(other_DHW, "the second mask")
    if a.shape != b.shape:
        raise InputError(f"Dice: the masks differ in shape, {a.shape} and {b.shape}")
    together = int(a.sum(dtype=np.int64) + b.sum(dtype=np.int64))
    return 2.0 * int((a & b).sum(dtype=np.int64)) / together if together else float("nan")


def lobe_dice(labels_DHW: np.ndarray, other_DHW: np.ndarray) -> Mapping[str, float]:
    """Dice of each lobe; NaN for a lobe that neither has."""
    return {name: dice(labels_DHW == label, other_DHW == label) for label, name in LOBES.items()}


def tree_length_mm(mask_DHW: np.ndarray, spacing_mm: Spacing) -> float:
    """Length of a tree's skeleton in mm (3D thinning of Lee et al. 1994): 0 for an empty mask.

    Neighbouring skeleton voxels (26-neighbourhood) are joined to a spanning forest of least total length, and the
    lengths of its links are summed, so that a corner is not counted twice. Steps along a grid direction are exact; a
    line in another direction comes out up to 8 % (in a plane) or 13 % (in space) too long.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree
    from skimage.morphology import skeletonize

    skeleton = skeletonize(_mask(mask_DHW, "the tree")) > 0
    number = np.full(np.add(skeleton.shape, 2), -1, dtype=np.int64)  # a border spares the checks at the edges
    number[1:-1, 1:-1, 1:-1][skeleton] = np.arange(np.count_nonzero(skeleton))
    inside = np.stack(np.nonzero(number >= 0), axis=1)
    starts, ends, lengths = [], [], []
    for step in _half_neighbours():
        neighbour = number[tuple((inside + step).T)]
        linked = neighbour >= 0
        starts.append(np.flatnonzero(linked))
        ends.append(neighbour[linked])
        lengths.append(
            np.full(np.count_nonzero(linked), float(np.linalg.norm(step * np.asarray(_spacing(spacing_mm)))))
        )
    links = coo_array(
        (np.concatenate(lengths), (np.concatenate(starts), np.concatenate(ends))), shape=(len(inside), len(inside))
    )
    return float(minimum_spanning_tree(links.tocsr()).sum()) if len(inside) else 0.0


def _half_neighbours() -> list[np.ndarray]:
    """The 13 steps to a neighbour in 3D, one of each opposite pair."""
    steps = [np.array(step) - 1 for step in np.ndindex(3, 3, 3)]
    return steps[14:]


def _columns(slice_HW: np.ndarray) -> int:
    return _extent(np.asarray(slice_HW.any(axis=0)))


def _extent(line_W: np.ndarray) -> int:
    """From the first to the last True, both counted."""
    inside = np.flatnonzero(line_W)
    return int(inside[-1] - inside[0] + 1) if len(inside) else 0


def _lung(hu_DHW: np.ndarray, lung_DHW: np.ndarray, airway_DHW: np.ndarray | None) -> np.ndarray:
    lung = _mask(lung_DHW, "the lung")
    if lung.shape != hu_DHW.shape:
        raise InputError(f"the lung mask {lung.shape} and the CT {hu_DHW.shape} differ in shape")
    if airway_DHW is None:
        return lung
    airway = _mask(airway_DHW, "the airway")
    if airway.shape != lung.shape:
        raise InputError(f"the airway mask {airway.shape} and the CT {hu_DHW.shape} differ in shape")
    return lung & ~airway


def _mask(mask_DHW: np.ndarray, what: str) -> np.ndarray:
    """A mask as bool; anything above 0 is inside. Masks in [-1, 1] must be thresholded first."""
    if mask_DHW.ndim != 3:
        raise InputError(f"{what} must have axes D, H, W, got shape {mask_DHW.shape}")
    if mask_DHW.dtype == bool:
        return mask_DHW
    if mask_DHW.size and mask_DHW.min() < 0:
        raise RangeError(f"{what} holds values below 0: threshold a mask in [-1, 1] before measuring it")
    if mask_DHW.dtype.kind == "f" and not np.isin(mask_DHW, np.arange(256)).all():
        raise RangeError(f"{what} holds fractions: threshold it before measuring it")
    return mask_DHW > 0


def _spacing(spacing_mm: Spacing) -> Spacing:
    if len(spacing_mm) != 3 or not all(np.isfinite(step) and step > 0 for step in spacing_mm):
        raise InputError(f"spacing must be three lengths above 0 mm (d, h, w), got {tuple(spacing_mm)}")
    return spacing_mm


def _voxel_ml(spacing_mm: Spacing) -> float:
    return float(np.prod(_spacing(spacing_mm))) / 1000
