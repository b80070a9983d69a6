"""Three planes of a CT in two windows, hung as radiologists hang them: for a demo, a report or a first look.

    axial      seen from the feet: the patient's right on the left of the picture, anterior at the top
    coronal    seen from the front: the patient's right on the left, head at the top
    sagittal   anterior on the left, head at the top

Shapes here: D, H, W voxels as the volume has them; S, P, L the same voxels turned to superior, posterior, left;
H, W, C of the picture.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError
from medisyn.generation.export import pixels_HWC
from medisyn.generation.provenance import KEYWORD, NOTICE
from medisyn.generation.volume_files.grid import WINDOWS, check_ct, directions
from medisyn.generation.volume_files.record import full_record, record_json
from medisyn.generation.volume_files.structures import STRUCTURES, Structure, checked_masks
from medisyn.intensity import guard_hu, window
from medisyn.types import UINT8, Picture, Volume

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

# Plane -> the axis of S, P, L that it cuts across, those of its rows and columns, and whether its rows are turned over.
PLANES = {"axial": (0, 1, 2, False), "coronal": (1, 0, 2, True), "sagittal": (2, 0, 1, True)}
LETTERS = ("RL", "AP", "IS")  # towards lower and higher coordinates of x, y, z in LPS
SMALLEST, LARGEST = 96, 2048
GAP, STRIP, FONT, TITLE = 8, 20, 12, 240  # pixels: between panels, of a line of text, of its letters, of a title
GREY, BRIGHT = (170, 170, 170), (255, 255, 255)
NEXT_LETTER = 0.2  # an axis gets a further letter for each direction in which it leans by more than this cosine


@dataclass(frozen=True, eq=False)
class Upright:
    """Voxels turned so that axes run to superior, posterior and left, and their affine to LPS mm."""

    array_SPL: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True, eq=False)
class Panel:
    """One plane: HU and labels of each mask at the picture's scale, and the letters at its edges."""

    title: str
    hu_HW: np.ndarray
    labels_HW: Mapping[str, np.ndarray]
    left: str
    right: str
    top: str
    bottom: str


def planes(
    volume: Volume,
    masks: Mapping[str, np.ndarray] | None = None,
    *,
    point_mm: Sequence[float] | None = None,
    windows: Sequence[str] = ("lung", "mediastinal"),
    height: int = 384,
    notice: str = NOTICE,
) -> Picture:
    """One row for each window, each with an axial, a coronal and a sagittal plane through a point, all at one scale.

    masks     outlined in the colours of STRUCTURES, with a legend
    point_mm  x, y, z in LPS millimetres; None: the middle of the volume
    windows   "lung" (level -600, width 1500), "mediastinal" (level 40, width 400)
    height    pixels for the taller of the volume's two vertical extents, 96 to 2048
    notice    the last line of the picture; for a patient's CT, say that it is one

    An oblique volume is cut along its own axes; letters at the edges then name all directions an axis leans to.
    Returns an RGB Picture, uint8. Raises InputError for a volume that is no CT, a point outside it, an unknown window
    and a height out of range, RangeError for values that are no HU.
    """
    from PIL import Image, ImageDraw

    check_ct(volume)
    guard_hu(volume.array_CDHW[0])
    _check_windows(windows, height)
    labels = checked_masks(volume, masks or {})
    panels = panels_of(volume, labels, _index_of(volume, point_mm), height)
    widths = [max(panel.hu_HW.shape[1], TITLE) for panel in panels]
    tallest = max(panel.hu_HW.shape[0] for panel in panels)
    legend = _legend(labels, sum(widths) + 2 * GAP)
    bottom = GAP + len(windows) * (tallest + STRIP + GAP)
    num_lines = max((line for _, line, _ in legend), default=-1) + 2
    canvas = Image.new("RGB", (sum(widths) + 4 * GAP, bottom + num_lines * STRIP), (0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    for row, name in enumerate(windows):
        for column, panel in enumerate(panels):
            x = GAP + sum(widths[:column]) + column * GAP
            y = GAP + row * (tallest + STRIP + GAP)
            _write(draw, (x, y), f"{panel.title}, {name} {WINDOWS[name][0]}/{WINDOWS[name][1]}", GREY)
            canvas.paste(Image.fromarray(_pixels(panel, name)), (x, y + STRIP))
            write_letters(draw, panel, x, y + STRIP)
    for x, line, one in legend:
        _write(draw, (x, bottom + line * STRIP), one.name, one.colour)
    _write(draw, (GAP, bottom + (num_lines - 1) * STRIP), notice, GREY)
    return Picture(np.asarray(canvas).transpose(2, 0, 1).copy(), UINT8, provenance=volume.provenance)


def write_planes(
    path: Path,
    volume: Volume,
    record: Mapping[str, Any],
    masks: Mapping[str, np.ndarray] | None = None,
    *,
    point_mm: Sequence[float] | None = None,
    windows: Sequence[str] = ("lung", "mediastinal"),
    height: int = 384,
) -> None:
    """Write `planes` as a PNG whose text holds the record (`generation.provenance.read` reads it); atomic."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    content, chunks = full_record(record), PngInfo()
    chunks.add_itxt("Disclaimer", content["notice"])
    chunks.add_itxt("Description", content["prompt"])
    chunks.add_itxt("Software", content["software"])
    chunks.add_itxt(KEYWORD, record_json(content))
    picture = planes(volume, masks, point_mm=point_mm, windows=windows, height=height, notice=str(content["notice"]))
    with runs.atomic_file(path) as stream:
        Image.fromarray(pixels_HWC(picture)).save(stream, format="PNG", pnginfo=chunks)


def _check_windows(windows: Sequence[str], height: int) -> None:
    unknown = [name for name in windows if name not in WINDOWS]
    if unknown or not windows:
        raise InputError(
            f"planes: {f'window {unknown[0]!r} is unknown' if unknown else 'no window given'}, "
            f"allowed: {', '.join(WINDOWS)}"
        )
    if not SMALLEST <= height <= LARGEST:
        raise InputError(f"planes: height must be {SMALLEST} to {LARGEST} pixels, got {height}")


def _index_of(volume: Volume, point_mm: Sequence[float] | None) -> np.ndarray:
    """The voxel (d, h, w) nearest to a point in LPS mm."""
    shape = np.asarray(volume.array_CDHW.shape[1:])
    if point_mm is None:
        return (shape - 1) // 2
    point = np.asarray(point_mm, float)
    if point.shape != (3,) or not np.isfinite(point).all():
        raise InputError(f"planes: point_mm must be three numbers (x, y, z in LPS mm), got {point_mm}")
    index = np.rint(np.linalg.solve(volume.affine, [*point, 1.0])[:3]).astype(int)
    if (index < 0).any() or (index >= shape).any():
        corners = [volume.affine @ [*corner, 1] for corner in itertools.product(*((0, side - 1) for side in shape))]
        low, high = np.min(corners, axis=0), np.max(corners, axis=0)
        extent = ", ".join(f"{axis} {low[i]:.0f} to {high[i]:.0f}" for i, axis in enumerate("xyz"))
        raise InputError(f"planes: the point {tuple(point_mm)} lies outside the volume, which spans {extent} mm (LPS)")
    return index


def panels_of(volume: Volume, labels: Mapping[str, np.ndarray], index: np.ndarray, height: int) -> list[Panel]:
    """The three planes through a voxel, at one scale."""
    body = upright(volume.array_CDHW[0], volume.affine)
    turned = {name: upright(mask, volume.affine).array_SPL for name, mask in labels.items()}
    point = volume.affine @ [*index, 1.0]
    at_SPL = np.rint(np.linalg.solve(body.affine, point)[:3]).astype(int)
    extent_SPL = np.linalg.norm(body.affine[:3, :3], axis=0) * body.array_SPL.shape
    scale = height / max(extent_SPL[0], extent_SPL[1])
    axes = directions(body.affine)
    panels = []
    for plane, (across, down, along, is_turned_over) in PLANES.items():
        size = (max(1, round(extent_SPL[down] * scale)), max(1, round(extent_SPL[along] * scale)))

        def cut(array_SPL: np.ndarray, across: int = across, is_turned_over: bool = is_turned_over) -> np.ndarray:
            cut_HW = np.take(array_SPL, at_SPL[across], axis=across)
            return cut_HW[::-1] if is_turned_over else cut_HW

        way_down = -axes[:, down] if is_turned_over else axes[:, down]
        panels.append(
            Panel(
                title=f"{plane} at {_coordinate(point, 2 - across)}",
                hu_HW=_resized(cut(body.array_SPL), size, is_smooth=True),
                labels_HW={name: _resized(cut(array), size, is_smooth=False) for name, array in turned.items()},
                left=letters(-axes[:, along]),
                right=letters(axes[:, along]),
                top=letters(-way_down),
                bottom=letters(way_down),
            )
        )
    return panels


def upright(array_DHW: np.ndarray, affine: np.ndarray) -> Upright:
    """The voxels as a view, with each axis turned to the one of superior, posterior, left that it is nearest to."""
    cosines = np.abs(directions(affine))
    order = max(itertools.permutations(range(3)), key=lambda axes: sum(cosines[2 - i, axes[i]] for i in range(3)))
    turned, turned_affine = array_DHW.transpose(order), affine[:, [*order, 3]].copy()
    for axis in range(3):
        if turned_affine[2 - axis, axis] < 0:
            turned = np.flip(turned, axis)
            turned_affine[:3, 3] += turned_affine[:3, axis] * (turned.shape[axis] - 1)
            turned_affine[:3, axis] *= -1
    return Upright(turned, turned_affine)


def letters(direction: np.ndarray) -> str:
    """Where a direction in LPS points to, as in DICOM's Patient Orientation but with S and I: "L", or "LP" if oblique.

    >>> letters(np.array([0.0, 0.0, -1.0]))
    'I'
    >>> letters(np.array([0.6, 0.8, 0.0]))
    'PL'
    """
    by_size = sorted(range(3), key=lambda axis: -abs(direction[axis]))
    leans = [axis for axis in by_size if abs(direction[axis]) > NEXT_LETTER]
    return "".join(LETTERS[axis][int(direction[axis] > 0)] for axis in leans)


def _coordinate(point: np.ndarray, axis: int) -> str:
    return f"{abs(point[axis]):.0f} mm {LETTERS[axis][int(point[axis] > 0)]}"


def _resized(cut_HW: np.ndarray, size: tuple[int, int], *, is_smooth: bool) -> np.ndarray:
    """A plane as (height, width) pixels: HU bilinear, labels by the nearest voxel."""
    from PIL import Image

    how = Image.Resampling.BILINEAR if is_smooth else Image.Resampling.NEAREST
    image = Image.fromarray(np.ascontiguousarray(cut_HW, dtype=np.float32 if is_smooth else np.uint8))
    return np.asarray(image.resize(size[::-1], how))


def _pixels(panel: Panel, name: str) -> np.ndarray:
    """A panel in one window as RGB (H, W, C), with the outlines of its masks."""
    level, width = WINDOWS[name]
    grey_HWC = np.repeat(window(panel.hu_HW, width, level)[:, :, None], 3, axis=2)
    for mask, labels_HW in panel.labels_HW.items():
        for label, one in enumerate(STRUCTURES[mask], start=1):
            grey_HWC[outline(labels_HW == label)] = one.colour
    return grey_HWC


def outline(mask_HW: np.ndarray) -> np.ndarray:
    """The pixels of a mask that have a neighbour (of four) outside it; beyond the border of the picture is outside."""
    padded = np.pad(mask_HW, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask_HW & ~inside


def _write(
    draw: ImageDraw, place: tuple[float, float], text: str, colour: tuple[int, int, int], anchor: str = "la"
) -> None:
    from PIL import ImageFont

    draw.text(place, text, colour, ImageFont.load_default(FONT), anchor, stroke_width=1, stroke_fill=(0, 0, 0))


def write_letters(draw: ImageDraw, panel: Panel, x: int, y: int) -> None:
    """R, L, A, P, S, I at the middle of the edges."""
    height, width = panel.hu_HW.shape
    _write(draw, (x + 3, y + height / 2), panel.left, BRIGHT, "lm")
    _write(draw, (x + width - 3, y + height / 2), panel.right, BRIGHT, "rm")
    _write(draw, (x + width / 2, y + 2), panel.top, BRIGHT, "ma")
    _write(draw, (x + width / 2, y + height - 2), panel.bottom, BRIGHT, "md")


def _legend(labels: Mapping[str, np.ndarray], width: int) -> list[tuple[int, int, Structure]]:
    """Each structure of the masks with its x in pixels and its line, so that no line is wider than `width`."""
    from PIL import ImageFont

    font, x, line, places = ImageFont.load_default(FONT), GAP, 0, []
    for one in (one for mask in labels for one in STRUCTURES[mask]):
        length = round(font.getlength(one.name))
        if x > GAP and x + length > width:
            x, line = GAP, line + 1
        places.append((x, line, one))
        x += length + 2 * GAP
    return places
