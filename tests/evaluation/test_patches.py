"""The patch distance by hand, and mirror images."""

import numpy as np
import pytest

from medisyn.errors import InputError
from medisyn.evaluation.patches import flipped, patch_distance


def noise(seed, size=32):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def grey(value, size=32):
    return np.full((size, size, 3), value, dtype=np.uint8)


def test_identical_and_opposite():
    assert patch_distance(noise(0), noise(0)) == 0.0
    assert patch_distance(grey(0), grey(255)) == 1.0
    assert patch_distance(grey(255), grey(0)) == 1.0  # uint8 would wrap around


def test_one_patch_off_by_51_is_a_fifth():
    # 51 / 255 in one of 16 patches; over the whole image it would be 0.2 / 4 = 0.05
    changed = grey(100)
    changed[8:16, 24:32] += 51
    np.testing.assert_allclose(patch_distance(grey(100), changed), 0.2, rtol=1e-12)


def test_the_grid_is_four_by_four_at_any_size():
    # the same picture at twice the size, patch by patch; not square
    small = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    other = np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    large = [image.repeat(2, axis=0).repeat(2, axis=1) for image in (small, other)]
    np.testing.assert_allclose(patch_distance(*large), patch_distance(small, other), rtol=1e-12)


def test_independent_uniform_noise():
    # sqrt(1 / 6) = 0.408 is expected of a patch; the largest of 16 patches of 32 x 32 x 3 lies a little above
    found = patch_distance(noise(0, 128), noise(1, 128))
    assert 0.408 < found < 0.425


@pytest.mark.parametrize(
    ("a", "b"),
    [(grey(0), grey(0, 16)), (grey(0).astype(float), grey(0)), (grey(0)[:, :, 0], grey(0)[:, :, 0])],
    ids=["sizes", "float", "no channels"],
)
def test_patch_distance_needs_two_uint8_images_of_one_shape(a, b):
    with pytest.raises(InputError, match="two uint8 images of one shape"):
        patch_distance(a, b)


def test_patch_distance_needs_sides_that_divide():
    with pytest.raises(InputError, match="30 x 30 pixels do not divide into a 4 x 4 grid"):
        patch_distance(grey(0, 30), grey(0, 30))


def test_flips_by_hand():
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    assert flipped(image, "none")[:, :, 0].tolist() == [[0, 1], [2, 3]]
    assert flipped(image, "horizontal")[:, :, 0].tolist() == [[1, 0], [3, 2]]
    assert flipped(image, "vertical")[:, :, 0].tolist() == [[2, 3], [0, 1]]
    assert flipped(image, "both")[:, :, 0].tolist() == [[3, 2], [1, 0]]


def test_unknown_flip():
    with pytest.raises(InputError, match="flip 'left' is unknown, allowed: none, horizontal"):
        flipped(grey(0), "left")


def test_an_image_smaller_than_the_grid_is_refused():
    with pytest.raises(InputError, match="0 x 8 pixels do not divide"):
        patch_distance(np.zeros((0, 8, 3), np.uint8), np.zeros((0, 8, 3), np.uint8))
