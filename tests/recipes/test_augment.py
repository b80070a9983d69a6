"""Augmentation keeps what the caption says true. Shapes here: C channels, H, W pixels."""

import numpy as np
import pytest

from medisyn.errors import InputError
from medisyn.recipes.augment import Variation, draw_variation, short_caption, vary
from medisyn.types import Clip, Picture, Sample

RAMP = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (1, 32, 1))  # brightness rises to the right


def sample(image_type: str) -> Sample:
    return Sample("key-1", Picture(RAMP), "a ramp", {"image_type": image_type})


def test_turn_and_mirror_by_hand():
    picture = np.array([[[1, 2], [3, 4]]], dtype=np.uint8)
    np.testing.assert_array_equal(Variation(quarter_turns=1)(picture), [[[2, 4], [1, 3]]])
    np.testing.assert_array_equal(Variation(mirror=True)(picture), [[[2, 1], [4, 3]]])


def test_gamma_by_hand():
    # 255 * (64 / 255) ** 0.5 = 127.75
    assert Variation(gamma=0.5)(np.full((1, 2, 2), 64, np.uint8))[0, 0, 0] == 128


def test_a_shift_of_four_pixels_moves_the_ramp_by_four_columns():
    moved = Variation(shift=(4.0, 0.0))(RAMP)
    np.testing.assert_allclose(moved[0, 5:-5, 5:-5], RAMP[0, 5:-5, 9:-1], atol=1)


def test_zoom_keeps_the_middle_and_moves_the_rim_outwards():
    disc = np.zeros((1, 33, 33), np.uint8)
    row, column = np.mgrid[:33, :33] - 16
    disc[0, np.hypot(row, column) < 8] = 255
    bigger = Variation(zoom=1.5)(disc)
    assert (bigger > 127).sum() == pytest.approx(1.5**2 * (disc > 127).sum(), rel=0.05)


def test_a_chest_x_ray_is_never_mirrored_or_turned_and_a_smear_is():
    rng = np.random.default_rng(0)
    kinds = ("chest X-ray", "blood smear microscopy")
    drawn = {kind: [draw_variation(rng, kind) for _ in range(200)] for kind in kinds}
    assert not any(variation.mirror or variation.quarter_turns for variation in drawn["chest X-ray"])
    assert {variation.quarter_turns for variation in drawn["blood smear microscopy"]} == {0, 1, 2, 3}
    assert 60 < sum(variation.mirror for variation in drawn["blood smear microscopy"]) < 140
    for variation in drawn["chest X-ray"]:
        assert 0.96 <= variation.zoom <= 1.06
        assert 0.9 <= variation.gamma <= 1.1
        assert abs(variation.angle) <= 4


def test_variants_are_the_same_in_every_run_and_differ_from_each_other():
    first, again, other = (vary(sample("chest X-ray"), number).item.array_CHW for number in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(vary(sample("chest X-ray"), 0).item.array_CHW, RAMP)
    assert first.dtype == np.uint8
    assert first.shape == RAMP.shape


def test_only_pictures():
    clip = Sample("clip-1", Clip(np.zeros((1, 2, 4, 4), np.uint8)), "")
    with pytest.raises(InputError, match="sample clip-1: only pictures are augmented"):
        vary(clip, 1)


def test_a_short_caption_ends_before_what_is_shown():
    assert short_caption("Axial chest CT image, lung window, showing a tumour") == "Axial chest CT image, lung window"
    assert short_caption("Blood smear microscopy image of a platelet") == "Blood smear microscopy image of a platelet"
