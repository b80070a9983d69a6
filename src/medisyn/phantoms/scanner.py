"""What a scanner does to a patient: blur or sharpen by the reconstruction kernel, and add correlated noise.

Shapes here: D, H, W voxels.
"""

from __future__ import annotations

import numpy as np

from medisyn.phantoms.patient import Patient
from medisyn.types import HU

REFERENCE_MM = 1.25  # noise_hu is meant for voxels of this side
KERNELS_MM = {"soft": 0.75, "sharp": 0.45}  # standard deviation of the point-spread function
SHARPEN = 0.6  # the sharp kernel adds this share of what its blur took away
FINEST_VOXELS = 0.2  # a blur below this many voxels changes nothing


def scan(hu: np.ndarray, patient: Patient, spacing_mm: tuple[float, float, float], rng: np.random.Generator) -> None:
    """Turn tissue HU (D, H, W) into a scan, in place.

    Noise falls with the voxel: its standard deviation is noise_hu at 1.25 mm and goes with 1 / side. It has the
    kernel's grain. Values are clipped to what a CT stores.
    """
    from scipy.ndimage import gaussian_filter

    width = KERNELS_MM[patient.kernel]
    sigma = [width / step if width / step >= FINEST_VOXELS else 0.0 for step in spacing_mm]
    side = float(np.prod(spacing_mm) ** (1 / 3))
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    if any(sigma):
        blurred = gaussian_filter(hu, sigma, truncate=3)
        if patient.kernel == "sharp":
            hu += np.float32(SHARPEN) * (hu - blurred)
        else:
            hu[...] = blurred
        gaussian_filter(noise, sigma, output=noise, truncate=3)
        noise /= np.float32(noise[: min(16, len(noise))].std())
    hu += np.float32(patient.noise_hu * REFERENCE_MM / side) * noise
    np.clip(hu, HU.low, HU.high, out=hu)
