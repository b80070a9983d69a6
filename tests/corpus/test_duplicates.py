"""Perceptual hash and duplicate clusters."""

import numpy as np
import scipy.fft
from PIL import Image

import build_source
from medisyn.corpus import duplicates
from medisyn.corpus.duplicates import Print, contents


def image(number, size=64):
    return Image.fromarray(build_source.picture(number, size))


def distance(a, b):
    return (int(a, 16) ^ int(b, 16)).bit_count()


def test_the_dct_is_scipys():
    block = np.random.default_rng(0).normal(size=(32, 32))
    ours = duplicates._dct() @ block @ duplicates._dct().T
    np.testing.assert_allclose(ours, scipy.fft.dctn(block, norm="ortho")[:8, :8], rtol=1e-10, atol=1e-12)


def test_resizing_hardly_changes_the_hash_and_a_flip_or_another_picture_does():
    original = image(1, 96)
    first = duplicates.phash(original)
    assert len(first) == 16
    assert distance(first, duplicates.phash(original.resize((48, 48), Image.Resampling.BOX))) <= 4
    assert distance(first, duplicates.phash(original.transpose(Image.Transpose.FLIP_LEFT_RIGHT))) >= 16
    assert distance(first, duplicates.phash(image(2, 96))) >= 16


def record(number, group, pixels=None, brighter=0, image_type="ultrasound"):
    shown = image(number)
    thumb = Image.fromarray((np.asarray(shown, dtype=int) + brighter).clip(0, 255).astype(np.uint8))
    return Print(image_type, group, pixels or f"{number}/{group}", duplicates.phash(shown), duplicates.thumb(thumb))


def test_equal_pixels_and_near_copies_in_other_groups_share_a_name():
    same = contents([record(1, "a", "x"), record(2, "b", "x")])
    assert same[0] == same[1]
    near = contents([record(1, "a"), record(1, "b", brighter=2), record(3, "c")])
    assert near[0] == near[1] != near[2]


def test_an_equal_hash_is_not_enough():
    far = contents([record(1, "a"), record(1, "b", brighter=40)])
    assert far[0] != far[1]  # the small copies differ by 40 grey levels
    neighbours = contents([record(1, "a", "slice 1"), record(1, "a", "slice 2")])
    assert neighbours[0] != neighbours[1]  # similar slices of one patient are no duplicates
    types = contents([record(1, "a", "x"), record(1, "b", "x", image_type="endoscopy")])
    assert types[0] != types[1]
