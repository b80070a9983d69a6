"""Masks by hand, soft edges by an independent oracle, and pixels outside a mask that never change."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medisyn.errors import InputError
from medisyn.generation import masks


def no_file(name: str) -> np.ndarray:
    raise AssertionError(f"asked for {name}")


def test_a_box_by_hand():
    mask = masks.mask_from("box:1,2,3,1", 4, 6, no_file)
    assert mask.astype(int).tolist() == [[0] * 6, [0] * 6, [0, 1, 1, 1, 0, 0], [0] * 6]
    assert masks.mask_from(" box:0,0,6,4", 4, 6, no_file).all()  # a mask of everything is allowed


def test_an_ellipse_by_hand():
    mask = masks.mask_from("ellipse:3,2,2,1", 5, 7, no_file)
    assert mask.astype(int).tolist() == [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 1, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    large = masks.ellipse(200, 200, 99.5, 99.5, 80, 40)
    assert large.sum() == pytest.approx(math.pi * 80 * 40, rel=0.01)


@pytest.mark.parametrize("high", [1, 7, 255])
def test_a_file_is_painted_above_half_of_its_largest_value(high):
    array = np.array([[0, high], [high // 3, high]])
    assert masks.mask_from("m.png", 2, 2, lambda name: array).tolist() == [[False, True], [False, True]]
    with pytest.raises(InputError, match="a mask holds one number per pixel"):
        masks.mask_from_array(np.zeros((2, 2, 3)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("box:1,2,3", "'box:1,2,3' needs four numbers"),
        ("box:a,2,3,4", "needs four numbers. Allowed: box:x,y,width,height"),
        ("ellipse:1,2,nan,4", "needs four numbers"),
        ("box:1,2,0,4", "at least 1 wide and high"),
        ("box:1.5,2,3,4", "must be whole pixels"),
        ("box:4,0,3,1", r"reaches outside the image of 6 x 4 \(width x height\) pixels: columns run from 0 to 5"),
        ("box:-1,0,3,1", "reaches outside"),
        ("ellipse:3,2,0,1", "the radii must be above 0"),
        ("ellipse:3,2,2,3", "reaches outside"),
        ("ellipse:2.5,2.5,0.1,0.1", "the mask is empty: no pixel would be painted"),
        ("small.png", r"row 3: the mask is 3 x 2 \(width x height\) pixels and the image 6 x 4"),
        ("black.png", "the mask is empty"),
    ],
)
def test_what_is_refused(text, message):
    files = {"small.png": np.ones((2, 3)), "black.png": np.zeros((4, 6))}
    with pytest.raises(InputError, match=message):
        masks.mask_from(text, 4, 6, files.__getitem__, "row 3: ")


def test_a_soft_edge_by_hand_lies_inside():
    row = np.zeros((5, 9), dtype=bool)
    row[:, 2:8] = True
    third, whole = 1 / 3, 2 / 3
    assert masks.soft_edge(row, 2)[2] == pytest.approx([0, 0, third, whole, 1, 1, whole, third, 0])
    np.testing.assert_array_equal(masks.soft_edge(row, 0), row.astype(float))
    np.testing.assert_array_equal(masks.soft_edge(np.ones((3, 3), dtype=bool), 9), 1)
    with pytest.raises(InputError, match="feather must be 0 or more pixels, got -1"):
        masks.soft_edge(row, -1)


PIXELS = st.tuples(st.sampled_from([1, 3]), st.integers(1, 12), st.integers(1, 12))


@given(st.data())
@settings(deadline=None)
def test_pixels_outside_the_mask_are_the_originals_bit_for_bit(data):
    shape = data.draw(PIXELS)
    original = data.draw(arrays(np.uint8, shape))
    painted = data.draw(arrays(np.uint8, (3, *shape[1:])))
    mask = data.draw(arrays(np.bool_, shape[1:]))
    feather = data.draw(st.integers(0, 6))
    got = masks.paste(original, painted, masks.soft_edge(mask, feather))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got[:, ~mask], original[:, ~mask])
    new = painted if shape[0] == 3 else np.rint(painted.mean(axis=0, keepdims=True))
    if feather == 0:
        np.testing.assert_array_equal(got[:, mask], new[:, mask])
    low, high = np.minimum(original, new), np.maximum(original, new)
    assert ((got >= low) & (got <= high)).all()


def test_a_grey_original_takes_the_mean_of_the_colours():
    painted = np.array([10, 20, 60], dtype=np.uint8)[:, None, None]
    assert masks.paste(np.zeros((1, 1, 1), np.uint8), painted, np.ones((1, 1)))[0, 0, 0] == 30


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((128, 128), (128, 128)),
        ((512, 512), (128, 128)),
        ((256, 1024), (64, 256)),
        ((100, 90), (136, 120)),
        ((1, 999), (8, 4048)),
    ],
)
def test_the_working_size_has_the_models_area_and_the_images_proportions(size, expected):
    assert masks.working_size(*size, (128, 128), 8) == expected


def test_resizing_keeps_what_already_fits_and_shares_of_area():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 8), dtype=np.uint8)
    assert masks.resize_pixels(pixels, 6, 8) is pixels
    assert masks.resize_pixels(pixels, 3, 16).shape == (3, 3, 16)
    assert masks.resize_pixels(np.full((1, 4, 4), 77, np.uint8), 9, 9).tolist() == np.full((1, 9, 9), 77).tolist()
    mask = np.zeros((4, 4), dtype=bool)
    mask[0, :3] = True
    np.testing.assert_allclose(masks.resize_mask(mask, 2, 2), [[0.5, 0.25], [0, 0]], atol=1e-6)
    np.testing.assert_array_equal(masks.resize_mask(mask, 4, 4), mask)
