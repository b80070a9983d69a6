"""Where pixels sit in the patient: affines from DICOM geometry, LPS and RAS, slice order and gaps.

DICOM and this package speak LPS (x to the patient's left, y to the back, z to the head); NIfTI speaks RAS.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medisyn.errors import SeriesError

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def flip_lps_ras(affine: np.ndarray) -> np.ndarray:
    """An affine to LPS millimetres as one to RAS millimetres, or back (its own inverse)."""
    return LPS_FROM_RAS @ affine


def slice_normal(orientation: Sequence[float]) -> np.ndarray:
    """Unit normal of the image plane from ImageOrientationPatient (six direction cosines)."""
    if len(orientation) != 6:
        raise SeriesError(f"ImageOrientationPatient must hold 6 numbers, got {len(orientation)}")
    row, column = np.asarray(orientation[:3], float), np.asarray(orientation[3:], float)
    normal = np.cross(row, column)
    length = float(np.linalg.norm(normal))
    if not 0.9 < length < 1.1:
        raise SeriesError(f"ImageOrientationPatient is not two perpendicular unit vectors (cross product {length:.3f})")
    return normal / length


def slice_positions(positions: Sequence[Sequence[float]], orientation: Sequence[float]) -> np.ndarray:
    """Distance of each slice along the normal in mm, from ImagePositionPatient; slices are ordered by this."""
    return np.asarray(positions, float) @ slice_normal(orientation)


def slice_gap(sorted_mm: np.ndarray, tolerance_mm: float = 0.1) -> float:
    """The gap of a series in mm. Raises SeriesError for duplicated slices and for gaps that differ too much."""
    gaps = np.diff(sorted_mm)
    if len(gaps) == 0:
        raise SeriesError(f"a volume needs at least 2 slices, got {len(sorted_mm)}")
    if not np.isfinite(gaps).all():
        raise SeriesError("a slice has no valid ImagePositionPatient")
    low, high = float(gaps.min()), float(gaps.max())
    if low < 1e-3:
        raise SeriesError(f"two slices lie at the same position ({int((gaps < 1e-3).sum())} duplicates)")
    if high - low > tolerance_mm:
        raise SeriesError(
            f"slice gaps run from {low:.2f} to {high:.2f} mm, tolerance {tolerance_mm:g} mm: "
            f"a slice is missing or two series are mixed. Curate its slices as pictures, or add the missing slice."
        )
    return float(np.median(gaps))


def affine_from_dicom(
    orientation: Sequence[float], first_position: Sequence[float], spacing_mm: Sequence[float], gap_mm: float
) -> np.ndarray:
    """The (4, 4) affine from (d, h, w) indices to LPS mm (DICOM PS3.3 C.7.6.2.1.1, with d along the slice normal)."""
    if not (np.asarray(spacing_mm, float) > 0).all():
        raise SeriesError(f"PixelSpacing must be above 0 mm, got {spacing_mm[0]:g} and {spacing_mm[1]:g}")
    affine = np.eye(4)
    affine[:3, 0] = slice_normal(orientation) * gap_mm
    affine[:3, 1] = np.asarray(orientation[3:], float) * spacing_mm[0]
    affine[:3, 2] = np.asarray(orientation[:3], float) * spacing_mm[1]
    affine[:3, 3] = first_position
    return affine
