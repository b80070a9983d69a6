"""The edge descriptor: equal images, what it withstands, and what it does not take for a copy."""

import io

import numpy as np
import pytest
from PIL import Image

from build_source import picture
from medisyn.errors import InputError
from medisyn.evaluation.descriptor import CopyDescriptor, edge_similarity, edges, grey_copy
from medisyn.evaluation.search import nearest_neighbours


def image(number, size=128):
    return np.repeat(picture(number, size)[:, :, None], 3, axis=2)


def alike(a, b):
    return edge_similarity(edges(a), edges(b))


def jpeg(array, quality):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))


def test_equal_and_inverted_images():
    assert alike(image(0), image(0)) == pytest.approx(1.0, abs=1e-6)  # float32 sums
    # the negative has every gradient reversed: at no small shift does it correlate well
    assert alike(image(0), 255 - image(0)) < 0.3


def test_brightness_contrast_noise_and_recompression_change_little():
    base = image(1)
    rng = np.random.default_rng(0)
    changed = {
        "brighter": (base * 0.7 + 40).astype(np.uint8),
        "noise": np.clip(base + rng.normal(0, 4, base.shape), 0, 255).astype(np.uint8),
        "jpeg": jpeg(base, 60),
        "shift": np.roll(base, (4, -4), axis=(0, 1)),
    }
    assert {name: alike(base, other) > 0.9 for name, other in changed.items()} == dict.fromkeys(changed, True)


def test_other_images_and_flips_are_not_copies():
    others = [alike(image(2), image(number)) for number in range(3, 23)]
    assert max(others) < 0.8
    assert alike(image(2), image(2)[:, ::-1]) < 0.8


def test_flat_images_resemble_nothing():
    flat = np.full((64, 64, 3), 90, np.uint8)
    assert alike(flat, flat) == alike(flat, image(0)) == alike(image(0), flat) == 0.0


def test_grey_copies_are_area_means():
    checks = np.kron(np.array([[0, 255], [255, 0]]), np.ones((8, 8))).astype(np.uint8)
    assert grey_copy(checks, 2).tolist() == [[0, 255], [255, 0]]
    assert grey_copy(checks, 1).tolist() == [[127.5]]


def test_the_coarse_descriptor_finds_a_changed_copy_among_many():
    descriptor = CopyDescriptor()
    training = descriptor([image(number) for number in range(30)])
    assert training.shape == (30, descriptor.dim)
    assert training.dtype == np.float32
    queries = descriptor([(image(number) * 0.8 + 10).astype(np.uint8) for number in (4, 17)])
    assert nearest_neighbours(queries, training).index_QK[:, 0].tolist() == [4, 17]


def test_the_descriptor_takes_rgb():
    with pytest.raises(InputError, match="extractors take"):
        CopyDescriptor()([np.zeros((8, 8), np.uint8)])
