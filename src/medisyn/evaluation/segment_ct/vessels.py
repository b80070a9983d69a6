"""Vessels inside the lungs: bright tubes at several widths.

Shapes here: d, h, w voxels of the frame.
"""

from __future__ import annotations

import numpy as np

from medisyn.evaluation.segment_ct.frame import Spacing, window_around

WIDTHS_MM = (1.2, 2.5, 4.0)  # sigma of the tube filter
VESSEL_HU = -450.0
TUBE = 60.0  # Sato's tubeness of the image clipped to -900 to 100 HU
SMALLEST_ML = 0.15  # a smaller piece is noise


def vessels(hu_dhw: np.ndarray, lung_dhw: np.ndarray, airway_dhw: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Bright tubes in the lungs (Sato et al. 1998), without specks. Walls of bronchi and nodules come too."""
    from scipy import ndimage
    from skimage.filters import sato

    found = np.zeros(hu_dhw.shape, dtype=bool)
    if not lung_dhw.any():
        return found
    box = window_around(lung_dhw, 6.0, spacing)
    finest = min(spacing)
    sigmas = sorted({max(0.8, mm / finest) for mm in WIDTHS_MM})
    image = np.where(lung_dhw[box], np.clip(hu_dhw[box], -900, 100), -850).astype(np.float32)
    tubes = (sato(image, sigmas=sigmas, black_ridges=False) > TUBE) & (hu_dhw[box] > VESSEL_HU)
    tubes &= ndimage.binary_erosion(lung_dhw[box]) & ~airway_dhw[box]  # the rim is half chest wall
    labels, _ = ndimage.label(tubes, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel()) * (float(np.prod(spacing)) / 1000)
    sizes[0] = 0
    found[box] = (sizes >= max(SMALLEST_ML, 3 * float(np.prod(spacing)) / 1000))[labels]
    return found
