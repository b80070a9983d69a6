"""Three planes of a CT: sides, aspect, windows and outlines by hand; the same patient in any axes gives one picture."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from generation.volumes import AFFINES, RECORD, ct, masks, of, upright_affine
from medisyn.errors import InputError, RangeError
from medisyn.generation import provenance
from medisyn.generation.volume_files import planes, write_planes
from medisyn.generation.volume_files.planes import (
    GAP,
    STRIP,
    TITLE,
    Panel,
    letters,
    outline,
    panels_of,
    upright,
    write_letters,
)
from medisyn.generation.volume_files.structures import STRUCTURES

SIDE = 96  # pixels; 32 voxels of 3 pixels


def cube() -> np.ndarray:
    """Air, 32 voxels a side."""
    return np.full((32, 32, 32), -1000.0)


def panel(picture, column: int, row: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """The grey pixels of one panel; each column is as wide as its title."""
    x, y = GAP + column * (TITLE + GAP), GAP + STRIP + row * (SIDE + STRIP + GAP)
    return picture.array_CHW[:, y : y + size[0], x : x + size[1]].mean(axis=0)


def bright_corner(pixels: np.ndarray) -> tuple[str, str]:
    """Which half, above or below, and which, left or right, holds the bright spot (letters stand elsewhere)."""
    rows, columns = np.nonzero(pixels[16:-16, 16:-16] > 250)
    assert len(rows) > 20
    assert np.ptp(rows) < 30
    assert np.ptp(columns) < 30
    half = (SIDE - 32) / 2
    return "top" if rows.mean() < half else "bottom", "left" if columns.mean() < half else "right"


def spot() -> np.ndarray:
    """A bright cube of 6 voxels towards the head, the front and the right of the patient, in axes S, P, L."""
    hu = cube()
    hu[20:26, 6:12, 8:14] = 1000
    return hu


def test_the_right_is_on_the_left_the_front_and_the_head_are_where_radiologists_hang_them():
    affine = upright_affine((1, 1, 1))
    point = affine @ [23, 9, 11, 1]
    picture = planes(of(spot(), affine), point_mm=point[:3], windows=["lung"], height=SIDE)
    assert bright_corner(panel(picture, 0)) == ("top", "left")  # axial: front, right
    assert bright_corner(panel(picture, 1)) == ("top", "left")  # coronal: head, right
    assert bright_corner(panel(picture, 2)) == ("top", "left")  # sagittal: head, front


def test_each_plane_turns_over_when_the_spot_does():
    affine = upright_affine((1, 1, 1))
    opposite = spot()[::-1, ::-1, ::-1]  # feet, back, left
    picture = planes(of(opposite, affine), point_mm=(affine @ [8, 22, 20, 1])[:3], windows=["lung"], height=SIDE)
    assert [bright_corner(panel(picture, column)) for column in range(3)] == [("bottom", "right")] * 3


AXES = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


@pytest.mark.parametrize(("order", "signs"), AXES[::5])
def test_one_patient_in_any_axes_gives_one_picture(order, signs):
    affine = upright_affine((2.0, 1.5, 1.0))
    rng = np.random.default_rng(1)
    hu, mask = rng.integers(-1000, 1000, (8, 10, 12)).astype(np.float32), rng.integers(0, 6, (8, 10, 12))
    point = (affine @ [3, 4, 7, 1])[:3]
    wanted = planes(of(hu, affine), {"lobe": mask}, point_mm=point, height=SIDE)
    step = np.zeros((4, 4))
    step[3, 3] = 1
    for new, (old, sign) in enumerate(zip(order, signs, strict=True)):
        step[old, new] = sign
        step[old, 3] = 0 if sign > 0 else hu.shape[old] - 1
    flips = tuple(slice(None, None, sign) for sign in signs)
    turned = of(hu.transpose(order)[flips], affine @ step)
    got = planes(turned, {"lobe": mask.transpose(order)[flips]}, point_mm=point, height=SIDE)
    np.testing.assert_array_equal(got.array_CHW, wanted.array_CHW)


def test_a_cube_in_millimetres_is_a_square_in_every_plane():
    # Spacing 4 x 1 x 2 mm; the bright part is 5 x 20 x 10 voxels, so 20 mm a side; the volume is 64 x 60 x 80 mm.
    hu = np.full((16, 60, 40), -1000.0)
    hu[5:10, 20:40, 15:25] = 1000
    picture = planes(of(hu, upright_affine((4.0, 1.0, 2.0))), windows=["lung"], height=128)
    assert picture.array_CHW.shape == (3, GAP + STRIP + 128 + GAP + STRIP, 3 * TITLE + 4 * GAP)
    for column, shape in enumerate([(120, 160), (128, 160), (128, 120)]):
        pixels = panel(picture, column, size=shape)[16:-16, 20:-20]
        rows, columns = np.nonzero(pixels > 229)  # 0 HU, half way up the edge
        assert abs(np.ptp(rows) + 1 - 40) <= 2  # 20 mm at 2 pixels a mm; bilinear edges
        assert abs(np.ptp(columns) + 1 - 40) <= 2


def test_windows_by_hand():
    # Lung: 0 at -1350, 255 at 150. Mediastinal: 0 at -160, 255 at 240. Half way is 127.5, so 128.
    hu = cube()
    for part, value in enumerate([-600, 40, -1000, 240]):
        hu[:, :, 8 * part : 8 * part + 8] = value
    picture = planes(of(hu, upright_affine((1, 1, 1))), height=SIDE)
    # x = 12, 36, 60, 84: inside the four parts; y = 30: clear of letters
    assert [panel(picture, 0, 0)[30, x] for x in (12, 36, 60, 84)] == [128, 236, 60, 255]
    assert [panel(picture, 0, 1)[30, x] for x in (12, 36, 60, 84)] == [0, 128, 0, 255]


def test_the_point_chooses_the_slices():
    hu = cube()
    hu[20] = 0
    hu[:, 5] = 300
    affine = upright_affine((1, 1, 1))
    at = planes(of(hu, affine), point_mm=(affine @ [20.3, 16, 16, 1])[:3], windows=["mediastinal"], height=SIDE)
    beside = planes(of(hu, affine), point_mm=(affine @ [21, 16, 16, 1])[:3], windows=["mediastinal"], height=SIDE)
    assert panel(at, 0)[60, 30] == 102  # 0 HU: 160/400 of 255
    assert panel(beside, 0)[60, 30] == 0


def test_letters_by_hand():
    assert letters(np.array([1.0, 0, 0])) == "L"
    assert letters(np.array([0, -1.0, 0])) == "A"
    assert letters(np.array([0.1, 0.3, -0.95])) == "IP"
    assert letters(np.array([-0.8, 0.6, 0])) == "RP"


def test_the_letters_of_each_plane():
    def edges(affine):
        return [(one.left, one.right, one.top, one.bottom) for one in panels_of(ct(affine=affine), {}, [1, 2, 3], SIDE)]

    hung = [("R", "L", "A", "P"), ("R", "L", "S", "I"), ("A", "P", "S", "I")]
    for name in ("upright", "left-handed", "coronal, w to the right"):
        assert edges(AFFINES[name]) == hung
    # w runs to (cos 40, sin 40, 0): left and back. h runs to (-sin 40 cos 25, cos 40 cos 25, sin 25), so up as well.
    assert edges(AFFINES["oblique"])[0] == ("RA", "LP", "ALI", "PRS")


@pytest.mark.parametrize(
    ("edge", "where"), [("left", (40, 3)), ("right", (40, 83)), ("top", (2, 42)), ("bottom", (82, 42))]
)
def test_a_letter_stands_at_its_edge(edge, where):
    canvas = Image.new("RGB", (SIDE, SIDE))
    words = {"title": "", "left": "", "right": "", "top": "", "bottom": "", edge: "R"}
    write_letters(ImageDraw.Draw(canvas), Panel(hu_HW=np.zeros((SIDE, SIDE)), labels_HW={}, **words), 0, 0)
    rows, columns = np.nonzero(np.asarray(canvas).max(axis=2))
    assert len(rows) > 10
    assert (np.abs([rows.min() - where[0], columns.min() - where[1]]) <= 5).all()


def test_upright_axes_are_the_nearest_and_keep_every_voxel_in_place():
    for affine in AFFINES.values():
        volume = ct(affine=affine)
        got = upright(volume.array_CDHW[0], affine)
        assert (np.diag(got.affine[[2, 1, 0], :3]) > 0).all()
        index = np.argwhere(got.array_SPL == volume.array_CDHW[0, 1, 2, 3])[0]
        np.testing.assert_allclose(got.affine @ [*index, 1], affine @ [1, 2, 3, 1], atol=1e-9)


def test_an_outline_by_hand():
    mask = np.zeros((5, 6), bool)
    mask[1:4, 1:6] = True
    wanted = mask.copy()
    wanted[2, 2:5] = False
    np.testing.assert_array_equal(outline(mask), wanted)


def test_masks_are_outlined_in_their_colours_and_named():
    affine = upright_affine((1, 1, 1))
    lobe = np.zeros((32, 32, 32), np.uint8)
    lobe[8:24, 8:24, 8:24] = 4
    picture = planes(of(spot(), affine), {"lobe": lobe}, windows=["lung"], height=SIDE)
    colour = np.array(STRUCTURES["lobe"][3].colour)[:, None, None]
    for column in range(3):
        x, y = GAP + column * (TITLE + GAP), GAP + STRIP
        drawn = (picture.array_CHW[:, y : y + SIDE, x : x + SIDE] == colour).all(axis=0)
        assert drawn.sum() == 4 * 48 - 4  # the border of a square of 16 voxels, 3 pixels each
    below = picture.array_CHW[:, GAP + STRIP + SIDE + GAP :]
    assert (below == colour).all(axis=0).any()
    plain = planes(of(spot(), affine), windows=["lung"], height=SIDE)
    assert not (plain.array_CHW == colour).all(axis=0).any()


def test_a_long_legend_goes_on_in_the_next_line():
    every = {name: np.zeros((4, 5, 6), np.uint8) for name in STRUCTURES}
    with_all = planes(ct(), every, windows=["lung"], height=SIDE).array_CHW.shape
    with_one = planes(ct(), {"airway": every["airway"]}, windows=["lung"], height=SIDE).array_CHW.shape
    assert with_all[1] == with_one[1] + STRIP
    assert with_all[2] == with_one[2]


def test_the_png_carries_the_record_and_is_the_same_each_time(tmp_path: Path):
    write_planes(tmp_path / "a.png", ct(), RECORD, masks(), height=SIDE)
    write_planes(tmp_path / "b.png", ct(), RECORD, masks(), height=SIDE)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    record = provenance.read(tmp_path / "a.png")
    assert {name: record[name] for name in RECORD} == RECORD
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Disclaimer"] == "Synthetic image. Not for diagnostic use."
        np.testing.assert_array_equal(
            np.asarray(image).transpose(2, 0, 1), planes(ct(), masks(), height=SIDE).array_CHW
        )


def test_the_last_line_is_the_notice():
    synthetic, real = planes(ct(), height=SIDE), planes(ct(), height=SIDE, notice="A patient's CT")
    differs = (synthetic.array_CHW != real.array_CHW).any(axis=(0, 2))
    assert differs.any()
    assert np.nonzero(differs)[0].min() >= len(differs) - STRIP


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"windows": ["bone"]}, "window 'bone' is unknown, allowed: lung, mediastinal"),
        ({"windows": []}, "no window given"),
        ({"height": 95}, "height must be 96 to 2048 pixels, got 95"),
        ({"point_mm": (0, 0)}, "three numbers"),
        ({"point_mm": (0, 0, np.inf)}, "three numbers"),
        (
            {"point_mm": (500, -18, -25)},
            r"lies outside the volume, which spans x -10 to -4, y -20 to -14, z -30 to -21",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, text):
    with pytest.raises(InputError, match=text):
        planes(ct(), **options)


def test_values_that_are_no_hu_are_refused():
    with pytest.raises(RangeError, match="not Hounsfield units"):
        planes(of(np.linspace(0, 1, 120).reshape(4, 5, 6)))
