"""Where a picture is painted anew: masks from shapes and arrays, their edges, and the pixels put together.

Shapes here: C channels, H, W rows and columns. A mask is bool (H, W), True where the picture is painted. Shapes are
given in pixels: x is the column, y the row, counted from 0 at the top left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from medisyn.errors import InputError

FORMS = "box:x,y,width,height, ellipse:cx,cy,rx,ry, or a mask file"


def mask_from(
    text: str, height: int, width: int, read_file: Callable[[str], np.ndarray], where: str = ""
) -> np.ndarray:
    """The mask of `box:x,y,width,height`, `ellipse:cx,cy,rx,ry`, or of a file, which `read_file` turns into (H, W).

    Raises InputError for numbers that make no shape, a shape that reaches outside the picture, a file of another size,
    and a mask that is empty. A mask of everything is allowed.
    """
    match = re.fullmatch(r"(box|ellipse):(.*)", text.strip())
    if match is None:
        mask_HW = mask_from_array(read_file(text), where)
        if mask_HW.shape != (height, width):
            raise InputError(
                f"{where}the mask is {_size(*mask_HW.shape)} pixels and the image {_size(height, width)}: "
                f"save the mask at the image's size"
            )
    else:
        numbers = _numbers(match[2], text, where)
        mask_HW = (box if match[1] == "box" else ellipse)(height, width, *numbers, where=where)
    if not mask_HW.any():
        raise InputError(f"{where}the mask is empty: no pixel would be painted. Allowed: {FORMS}")
    return mask_HW


def mask_from_array(array: np.ndarray, where: str = "") -> np.ndarray:
    """True where an (H, W) array lies above half of its largest value: 0 and 255, 0 and 1, or the greys of a JPEG."""
    if array.ndim != 2:
        raise InputError(f"{where}a mask holds one number per pixel, got an array of shape {array.shape}")
    return array > array.max() / 2


def box(height: int, width: int, x: float, y: float, columns: float, rows: float, *, where: str = "") -> np.ndarray:
    """Columns x to x + columns - 1 and rows y to y + rows - 1; whole numbers."""
    if any(number != int(number) for number in (x, y, columns, rows)) or min(columns, rows) < 1:
        raise InputError(f"{where}box:{x:g},{y:g},{columns:g},{rows:g} must be whole pixels, at least 1 wide and high")
    left, top, right, bottom = int(x), int(y), int(x + columns), int(y + rows)
    _check_inside(f"box:{x:g},{y:g},{columns:g},{rows:g}", (left, top, right - 1, bottom - 1), height, width, where)
    mask_HW = np.zeros((height, width), dtype=bool)
    mask_HW[top:bottom, left:right] = True
    return mask_HW


def ellipse(height: int, width: int, cx: float, cy: float, rx: float, ry: float, *, where: str = "") -> np.ndarray:
    """Pixels whose centre (column, row) has ((column - cx) / rx)^2 + ((row - cy) / ry)^2 <= 1."""
    if not min(rx, ry) > 0:
        raise InputError(f"{where}ellipse:{cx:g},{cy:g},{rx:g},{ry:g}: the radii must be above 0")
    _check_inside(f"ellipse:{cx:g},{cy:g},{rx:g},{ry:g}", (cx - rx, cy - ry, cx + rx, cy + ry), height, width, where)
    rows, columns = np.mgrid[:height, :width]
    return ((columns - cx) / rx) ** 2 + ((rows - cy) / ry) ** 2 <= 1


def soft_edge(mask_HW: np.ndarray, feather: float) -> np.ndarray:
    """The share of new pixels, (H, W) float64: 0 outside the mask, and inside it rising to 1 over `feather` pixels.

    At distance d from the nearest pixel outside (1 at the edge) the share is min(1, d / (feather + 1)): the edge is
    soft on the inside alone. The picture's own border is no edge. Raises InputError for a negative feather.
    """
    from scipy.ndimage import distance_transform_edt

    if feather < 0:
        raise InputError(f"feather must be 0 or more pixels, got {feather:g}")
    if mask_HW.all():
        return np.ones(mask_HW.shape)
    return np.minimum(1.0, distance_transform_edt(mask_HW) / (feather + 1))


def paste(original_CHW: np.ndarray, painted_CHW: np.ndarray, share_HW: np.ndarray) -> np.ndarray:
    """uint8 (C, H, W): share * painted + (1 - share) * original; exactly the original where the share is 0.

    `painted_CHW` is RGB; for a grey original its three channels are averaged.
    """
    painted = painted_CHW.astype(np.float64)
    if original_CHW.shape[0] == 1:
        painted = painted.mean(axis=0, keepdims=True)
    mixed = share_HW * painted + (1 - share_HW) * original_CHW
    return np.where(share_HW > 0, np.rint(mixed), original_CHW).astype(np.uint8)


def working_size(height: int, width: int, native: tuple[int, int], factor: int) -> tuple[int, int]:
    """The size at which a model of `native` pixels (rows, columns) works on a picture of height x width.

    Near the area the model was trained at, with the picture's proportions, each side a multiple of `factor`. A picture
    of the model's own size is worked on as it is.
    """
    zoom = (native[0] * native[1] / (height * width)) ** 0.5
    rows, columns = (max(1, round(side * zoom / factor)) * factor for side in (height, width))
    return rows, columns


def resize_pixels(array_CHW: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (C, H, W) at another size (Lanczos, antialiased); the same array when the size is already right."""
    from PIL import Image

    if array_CHW.shape[1:] == (height, width):
        return array_CHW
    planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS) for plane in array_CHW]
    return np.stack([np.asarray(plane) for plane in planes])


def resize_mask(mask_HW: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32 (height, width): the share of each new pixel's area that lies in the mask."""
    from PIL import Image

    if mask_HW.shape == (height, width):
        return mask_HW.astype(np.float32)
    image = Image.fromarray(mask_HW.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX)).clip(0, 1)


def _numbers(text: str, whole: str, where: str) -> list[float]:
    parts = text.split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not np.isfinite(numbers).all():
        raise InputError(f"{where}mask {whole!r} needs four numbers. Allowed: {FORMS}")
    return numbers


def _check_inside(shape: str, edges: Sequence[float], height: int, width: int, where: str) -> None:
    left, top, right, bottom = edges
    if left < 0 or top < 0 or right > width - 1 or bottom > height - 1:
        raise InputError(
            f"{where}{shape} reaches outside the image of {_size(height, width)} pixels: columns run from 0 to "
            f"{width - 1}, rows from 0 to {height - 1}"
        )


def _size(height: int, width: int) -> str:
    return f"{width} x {height} (width x height)"
