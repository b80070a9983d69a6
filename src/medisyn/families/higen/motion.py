"""How much moves from one frame to the next, as one number per gap: what a HiGen network is told in training.

HiGen and MediSyn v1 say "pixel-wise differences between consecutive frames" and give no unit; here it is defined.
The motion value of a gap is the mean absolute difference of the two frames' luma (Rec. 601, 0 to 255), over the pixels
that are real in both, times 100, and at most 1000. So 300 is a mean change by three grey levels from frame to frame.

Shapes here: C channels, T frames, H, W pixels.
"""

from __future__ import annotations

import numpy as np

from medisyn.errors import InputError
from medisyn.families.higen.settings import MOTION_LIMIT
from medisyn.types import Clip

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Rec. 601, of R, G, B
SCALE = 100.0  # per grey level; docs/families/higen.md shows what real clips get


def motion_value(clip: Clip, valid: np.ndarray | None = None) -> np.ndarray:
    """The motion value of each gap, float32 (T - 1,), at the clip's own frame rate.

    `valid` (T, H, W) is 1 where a pixel is real; a gap without a pixel that is real in both frames is 0: padding does
    not move. Raises InputError for a clip that is not uint8, not grey or RGB, or shorter than 2 frames.
    """
    array_CTHW = _checked(clip, valid)
    values, before = [], luma(array_CTHW[:, 0])
    for number in range(1, array_CTHW.shape[1]):
        after = luma(array_CTHW[:, number])
        difference_HW = np.abs(after - before)
        if valid is not None:
            difference_HW = difference_HW[(valid[number - 1] > 0) & (valid[number] > 0)]
        values.append(float(difference_HW.mean(dtype=np.float64)) if difference_HW.size else 0.0)
        before = after
    return np.minimum(np.array(values, dtype=np.float32) * SCALE, MOTION_LIMIT)


def luma(frame_CHW: np.ndarray) -> np.ndarray:
    """Rec. 601 luma of a uint8 frame, float32 (H, W), 0 to 255; of a grey frame its one channel."""
    if frame_CHW.shape[0] == 1:
        return frame_CHW[0].astype(np.float32)
    return np.tensordot(LUMA, frame_CHW.astype(np.float32), axes=1)


def _checked(clip: Clip, valid: np.ndarray | None) -> np.ndarray:
    array_CTHW = clip.array_CTHW
    if array_CTHW.dtype != np.uint8 or array_CTHW.shape[0] not in (1, 3) or array_CTHW.shape[1] < 2:
        raise InputError(
            f"motion is measured on uint8 clips, grey or RGB, of at least 2 frames; got {array_CTHW.dtype} "
            f"(C, T, H, W) {array_CTHW.shape}"
        )
    if valid is not None and valid.shape != array_CTHW.shape[1:]:
        raise InputError(f"the mask of real pixels has shape {valid.shape}, the clip's frames {array_CTHW.shape[1:]}")
    return array_CTHW
