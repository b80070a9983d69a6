"""The ejection fraction of a heart clip, from its grey frames alone.

The phantom's own ventricle is laid over the frames (fit.py): no labels, no truth, no network. So it measures generated
clips by the same rule as held-out phantoms; on ultrasound of patients it has shown nothing.
Shapes here: T frames, H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError
from medisyn.phantoms.heart.fit import fit, section_of

SMALLEST_CONTRAST = 0.5  # on the outline, of the grey step between blood and muscle; below, no ventricle is seen


@dataclass(frozen=True, eq=False)
class Ejection:
    """What was measured; edv, esv and ef are None when no ventricle was found, and `reason` says why.

    edv, esv  volume by the method of discs in mL, or in cubic pixels when the pixel size was not given
    ef        ejection fraction in percent
    areas_T, volumes_T  area (square pixels) and volume (unit of edv) of the left ventricle in each frame; NaN without
    contrast  grey step across the outline as a share of the step between blood and muscle
    """

    edv: float | None
    esv: float | None
    ef: float | None
    areas_T: np.ndarray
    volumes_T: np.ndarray
    contrast: float
    reason: str | None = None


def measure_ejection(frames_THW: np.ndarray, mm_per_pixel: float | None = None) -> Ejection:
    """Measure the left ventricle of an apical clip, uint8 (T, H, W) with at least 4 frames of 48 x 48 pixels.

    End diastole is the mean of the two largest volumes, end systole of the two smallest; so one bad frame weighs half.
    The clip must hold at least most of a beat. Raises InputError for another shape or type.
    """
    if frames_THW.ndim != 3 or frames_THW.dtype != np.uint8 or len(frames_THW) < 4 or min(frames_THW.shape[1:]) < 48:
        raise InputError(
            f"ejection: needs grey frames (T, H, W), uint8, at least 4 of 48 x 48 pixels; "
            f"got {frames_THW.dtype} of shape {frames_THW.shape}"
        )
    nothing = np.full(len(frames_THW), np.nan)
    if int(np.ptp(frames_THW)) < 16:
        return Ejection(None, None, None, nothing, nothing, 0.0, "the frames have no contrast")
    found = fit(frames_THW)
    if found.contrast < SMALLEST_CONTRAST:
        reason = f"no dark chamber with a brighter wall: contrast {found.contrast:.2f}, needed {SMALLEST_CONTRAST}"
        return Ejection(None, None, None, nothing, nothing, found.contrast, reason)
    areas_T, volumes_T = section_of(found, frames_THW.shape[1])
    if mm_per_pixel is not None:
        volumes_T = volumes_T * mm_per_pixel**3 / 1000
    ordered = np.sort(volumes_T)
    edv, esv = float(ordered[-2:].mean()), float(ordered[:2].mean())
    return Ejection(edv, esv, 100 * (1 - esv / edv), areas_T, volumes_T, found.contrast)
