"""A copy descriptor that needs no weights: where an image's edges lie and which way they point, at two scales.

Shapes here: N images, H, W pixels, C channels, S side of a small grey copy, D = 2 S S values, K shifts.
It is a second opinion beside the patch distance, and fails elsewhere: a change of brightness or contrast, a shift by up
to 6 % of the side and recompression leave it nearly unchanged, and move the patch distance; another patient's image of
the same view has its edges elsewhere. It is no learned copy detector (such as SSCD): crops, rotations and re-drawn
copies escape it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medisyn.evaluation.features import check_images

COARSE = 16  # side of the copy whose gradients are searched: D = 512
SCALES = ((32, 2), (64, 4))  # side of a grey copy, and the largest shift in its pixels: both 1/16 of the side
FLAT = 0.5  # grey levels: below this root mean square gradient an image has no edges to compare


def grey_copy(image_HWC: np.ndarray, side: int) -> np.ndarray:
    """(side, side) float32 grey levels, by area averaging."""
    from PIL import Image

    image = Image.fromarray(image_HWC).convert("F" if image_HWC.ndim == 2 else "L")
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.float32)


def gradients(grey_SS: np.ndarray) -> np.ndarray:
    """Central differences along rows and columns, (2, S, S)."""
    return np.stack(np.gradient(grey_SS))


class CopyDescriptor:
    """The coarse gradients as an extractor, so that they are searched and cached like any features."""

    id = "edges:16x16"
    preprocessing = "grey, 16 x 16 by area averaging, central differences"
    dim = 2 * COARSE * COARSE

    def __call__(self, images: list[np.ndarray]) -> np.ndarray:
        """(N, 512) float32; nearest_neighbours compares them by cosine."""
        check_images(images)
        return np.stack([gradients(grey_copy(image, COARSE)).ravel() for image in images]).astype(np.float32)


@dataclass(frozen=True)
class Edges:
    """The gradients of one image at every scale."""

    scales: tuple[np.ndarray, ...]  # (2, S, S) each


def edges(image_HWC: np.ndarray) -> Edges:
    return Edges(tuple(gradients(grey_copy(image_HWC, side)) for side, _ in SCALES))


def edge_similarity(a: Edges, b: Edges) -> float:
    """Mean over the scales of the largest correlation of the gradients over small shifts; 1 for equal images.

    The finer scale looks only around the coarser one's best shift. An image without edges (a plain background)
    resembles nothing: 0.
    """
    values, shift = [], (0, 0)
    for number, (x, y, (side, most)) in enumerate(zip(a.scales, b.scales, SCALES, strict=True)):
        finer = side // SCALES[max(number - 1, 0)][0]
        around = tuple(finer * d for d in shift)
        value, shift = _best_shift(x, y, most, around, most if number == 0 else 1)
        values.append(value)
    return float(np.mean(values))


def _best_shift(
    a_2SS: np.ndarray, b_2SS: np.ndarray, most: int, around: tuple[int, ...], reach: int
) -> tuple[float, tuple[int, int]]:
    """The largest correlation of the inside of `a` with a window of `b`, shifted by at most `most` rows and columns."""
    inner = a_2SS[:, most:-most, most:-most]
    side = inner.shape[1]
    length = float(np.linalg.norm(inner))
    floor = FLAT * side
    best = (0.0, (0, 0))
    if length < floor:
        return best
    rows, columns = (range(max(-most, d - reach), min(most, d + reach) + 1) for d in around)
    places = [(row, column) for row in rows for column in columns]
    windows = np.stack([b_2SS[:, most + r : most + r + side, most + c : most + c + side].ravel() for r, c in places])
    lengths = np.sqrt(np.einsum("kn,kn->k", windows, windows))
    values = np.where(lengths < floor, 0.0, windows @ inner.ravel() / np.maximum(lengths * length, floor * floor))
    number = int(values.argmax())
    return (float(values[number]), places[number]) if values[number] > 0 else best
