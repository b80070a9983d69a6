"""The family that `generate` samples for inpainting: grouping, sizes, records, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generation.fake_family import MODEL
from medisyn.errors import InputError
from medisyn.generation import provenance
from medisyn.generation.generate import generate
from medisyn.generation.inpaint import Painting, PaintingFamily, finish
from medisyn.types import UNIT, Clip, Picture, Request

RNG = np.random.default_rng(0)


def painting(key: str = "k", channels: int = 3, side: int = 8, **options: Any) -> Painting:
    original = Picture(RNG.integers(0, 256, (channels, side, side), dtype=np.uint8))
    mask = np.zeros((side, side), dtype=bool)
    mask[1:4, 2:7] = True
    return Painting(Request(key, "a lesion", 1, height=8, width=8, steps=2), original, mask, **options)


class Painter:
    """Paints everything in one grey, and lists how it was called."""

    def __init__(self, grey: int = 200) -> None:
        self.grey = grey
        self.calls: list[tuple[list[str], float, float]] = []

    def __call__(self, requests: Any, pictures: Any, masks_BHW: Any, strength: float) -> list[Picture]:
        assert masks_BHW.shape == (len(requests), requests[0].height, requests[0].width)
        assert all(picture.array_CHW.shape[1:] == masks_BHW.shape[1:] for picture in pictures)
        self.calls.append(([request.key for request in requests], strength, float(masks_BHW[0].sum())))
        return [Picture(np.full((3, *masks_BHW.shape[1:]), self.grey, np.uint8)) for _ in requests]


def test_inside_is_painted_and_outside_is_the_original():
    one = painting(feather=0)
    family = PaintingFamily([one], Painter())
    [got] = family.decode(family.sample([one.request]))
    assert (got.array_CHW[:, one.mask_HW] == 200).all()
    np.testing.assert_array_equal(got.array_CHW[:, ~one.mask_HW], one.original.array_CHW[:, ~one.mask_HW])


def test_an_image_of_another_size_comes_back_at_its_own():
    one = painting(side=32, channels=1, feather=0)
    family = PaintingFamily([one], painter := Painter())
    [got] = family.sample([one.request])
    assert got.array_CHW.shape == (1, 32, 32)
    assert (got.array_CHW[:, one.mask_HW] == 200).all()
    np.testing.assert_array_equal(got.array_CHW[:, ~one.mask_HW], one.original.array_CHW[:, ~one.mask_HW])
    assert painter.calls[0][2] == pytest.approx(one.mask_HW.sum() / 16, rel=1e-6)  # the mask's area, 4 x 4 to 1


def test_rows_of_one_batch_may_differ_in_strength():
    all_of_them = [painting(key, strength=strength) for key, strength in [("a", 1.0), ("b", 0.5), ("c", 1.0)]]
    family = PaintingFamily(all_of_them, painter := Painter())
    got = family.sample([one.request for one in all_of_them])
    assert [(keys, strength) for keys, strength, _ in painter.calls] == [(["b"], 0.5), (["a", "c"], 1.0)]
    for one, picture in zip(all_of_them, got, strict=True):
        np.testing.assert_array_equal(picture.array_CHW[:, ~one.mask_HW], one.original.array_CHW[:, ~one.mask_HW])


def test_the_record_says_which_picture_and_where_and_a_changed_picture_is_refused(tmp_path: Path):
    one = painting(strength=0.7, feather=3).with_facts()
    generate([one.request], PaintingFamily([one], Painter()), tmp_path / "out", model=MODEL)
    record = provenance.read(tmp_path / "out" / "k.png")
    assert (record["mask_box"], record["mask_pixels"]) == ([2, 1, 5, 3], 15)
    assert (record["strength"], record["feather"], record["prompt"]) == (0.7, 3, "a lesion")
    other = replace(painting(strength=0.7, feather=3)).with_facts()  # other pixels
    assert other.facts()["original_sha256"] != record["original_sha256"]
    with pytest.raises(InputError, match="holds 'k' with metadata"):
        generate([other.request], PaintingFamily([other], Painter()), tmp_path / "out", model=MODEL)


def test_what_is_refused():
    one = painting()
    floats = Picture(np.zeros((1, 8, 8), np.float32), UNIT)
    with pytest.raises(InputError, match=r"request k: inpainting needs a uint8 image, got float32 \(unit\)"):
        replace(one, original=floats)
    with pytest.raises(InputError, match=r"the mask is \(4, 8\) and the image \(8, 8\)"):
        replace(one, mask_HW=np.ones((4, 8), dtype=bool))
    for strength in (0.0, 1.01):
        with pytest.raises(InputError, match="strength must lie above 0 and at most at 1"):
            replace(one, strength=strength)
    with pytest.raises(InputError, match="inpainting makes pictures; this model makes a Clip"):
        finish(one, Clip(np.zeros((3, 2, 8, 8), np.uint8)))
