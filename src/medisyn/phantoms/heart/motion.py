"""How much a clip flickers where nothing should change.

Shapes here: T frames, H, W pixels.
"""

from __future__ import annotations

import numpy as np

from medisyn.errors import InputError

LIT = 12  # grey levels: a pixel that is always darker shows nothing
STILL_SHARE = 0.25  # of the lit pixels, the ones that change least in the long run
SPACE = 0.75 / 64  # blur against single-pixel grain, in shares of the height


def flicker(frames_THW: np.ndarray) -> float:
    """Mean absolute second difference in time, in grey levels, of the pixels that move least; 0 for a still clip.

    The second difference, |x[t-1] - 2 x[t] + x[t+1]| / 2, is 0 for steady and for evenly changing brightness, so slow
    motion hardly counts, and a pixel that jumps up and back counts whole. Pixels that move least: of those whose mean
    over time is at least 12 grey levels, the quarter whose blurred brightness (over 3 frames and a 64th of the height)
    has the smallest standard deviation over the clip. Clips are compared at one size, frame rate and number of frames.

    frames_THW  grey levels 0 to 255, at least 5 frames

    Raises InputError for fewer than 5 frames, a wrong shape, or a clip without a lit pixel.
    """
    from scipy.ndimage import gaussian_filter, uniform_filter1d

    if frames_THW.ndim != 3 or len(frames_THW) < 5:
        raise InputError(f"flicker: needs frames (T, H, W) with at least 5 frames, got shape {frames_THW.shape}")
    frames = frames_THW.astype(np.float64)
    lit_HW = frames.mean(axis=0) >= LIT
    if not lit_HW.any():
        raise InputError(f"flicker: no pixel has a mean of {LIT} grey levels or more; is the clip black?")
    sigma = SPACE * frames.shape[1]
    slow = uniform_filter1d(gaussian_filter(frames, (0, sigma, sigma)), 3, axis=0)[1:-1]
    change_HW = slow.std(axis=0)
    still_HW = lit_HW & (change_HW <= np.quantile(change_HW[lit_HW], STILL_SHARE))
    jumps = np.abs(frames[:-2] - 2 * frames[1:-1] + frames[2:]) / 2
    return float(jumps[:, still_HW].mean())
