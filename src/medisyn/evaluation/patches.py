"""The patch distance of MediSyn v2 section 4.3.4, after Carlini et al. (2023), and the mirror images it is taken of.

Shapes here: H, W pixels, C channels.
"""

from __future__ import annotations

import numpy as np

from medisyn.errors import InputError

THRESHOLD = 0.15  # MediSyn v2 4.3.4: at or below it a pair may be a reproduction
FLIPS = ("none", "horizontal", "vertical", "both")


def patch_distance(a_HWC: np.ndarray, b_HWC: np.ndarray, grid: int = 4) -> float:
    """The largest of grid x grid patch distances, sqrt(sum (a - b)^2) / sqrt(255^2 values): 0 equal, 1 black on white.

    MediSyn v2 takes 16 patches of 128 x 128 at 512 x 512; other sizes keep the 4 x 4 grid. Both images are uint8 of
    one shape, with sides that divide by the grid. The sums are of whole numbers, so the value is exact to its last
    rounding and does not depend on the machine.
    """
    if a_HWC.dtype != np.uint8 or b_HWC.dtype != np.uint8 or a_HWC.shape != b_HWC.shape or a_HWC.ndim != 3:
        raise InputError(
            f"patch distance takes two uint8 images of one shape (height, width, channels), got "
            f"{a_HWC.shape} {a_HWC.dtype} and {b_HWC.shape} {b_HWC.dtype}. Bring both to one size first."
        )
    height, width, channels = a_HWC.shape
    if height % grid or width % grid or min(height, width) < grid:
        raise InputError(f"patch distance: {height} x {width} pixels do not divide into a {grid} x {grid} grid")
    squares = np.square(np.subtract(a_HWC, b_HWC, dtype=np.int32))
    patches = squares.reshape(grid, height // grid, grid, -1).sum(axis=1, dtype=np.int64)
    sums = patches.reshape(grid, grid, -1).sum(axis=2)
    values = (height // grid) * (width // grid) * channels
    return float(np.sqrt(sums.max() / values) / 255.0)


def flipped(image_HWC: np.ndarray, flip: str) -> np.ndarray:
    """The image as it is, mirrored left-right ("horizontal"), top-bottom ("vertical") or both."""
    if flip not in FLIPS:
        raise InputError(f"flip {flip!r} is unknown, allowed: {', '.join(FLIPS)}")
    if flip in ("horizontal", "both"):
        image_HWC = image_HWC[:, ::-1]
    return image_HWC[::-1] if flip in ("vertical", "both") else image_HWC
