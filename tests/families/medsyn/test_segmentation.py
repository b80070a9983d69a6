"""Masks from several draws: votes, and the mask whose expected Dice is the greatest."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medisyn.families.medsyn.channels import masks_from_channels
from medisyn.families.medsyn.config import Grid
from medisyn.families.medsyn.segmentation import best_dice_mask, masks_of_draws

GRID = Grid(shape=(8, 8, 8), spacing_mm=(40.0, 44.0, 44.0))


def draws(count, **channels):
    """Draws of nothing, but for the channels given as labels in the unit range, one value or array per draw."""
    made = torch.full((count, 4, 8, 8, 8), -1.0)
    for name, values in channels.items():
        for number, value in enumerate(values):
            made[number, ("ct", "lobe", "airway", "vessel").index(name)] = torch.as_tensor(value) * 2 - 1
    return made


@pytest.mark.parametrize("axes", ["SPL", "IAR"])
def test_each_draw_votes_for_a_lobe_and_equal_votes_go_to_the_label_drawn_first(axes):
    """Two of three say 5; the mean of their labels, 10/3, would be another lobe."""
    grid = Grid(shape=(8, 8, 8), spacing_mm=(40.0, 44.0, 44.0), axes=axes)
    low = torch.zeros(8, 8, 8)
    low[:4] = 1.0
    three = draws(3, lobe=[low, low, 0.0])
    found = masks_of_draws(three, draws(3), grid)["lobe"]
    np.testing.assert_array_equal(found, masks_from_channels(three[0], grid)["lobe"])
    assert set(np.unique(found)) == {0, 5}
    for values, label in (([0.6, 0.2], 3), ([0.0, 0.2], 0), ([0.2, 0.6, 0.6], 3), ([0.2, 0.6, 0.6, 0.2], 1)):
        assert (masks_of_draws(draws(len(values), lobe=values), draws(len(values)), GRID)["lobe"] == label).all()


def test_a_tree_is_cut_at_half_of_its_dice_not_at_a_half():
    """100 voxels of chance 0.4 and 12 of 0.1: all 100 are taken, though none is likelier than not."""
    chance = np.zeros((8, 8, 8))
    chance.flat[:100], chance.flat[100:112] = 0.4, 0.1
    np.testing.assert_array_equal(best_dice_mask(chance), chance == 0.4)
    made = draws(1, vessel=[chance.astype(np.float32)], airway=[(chance > 0.2).astype(np.float32)])
    found = masks_of_draws(draws(1), made, GRID)
    assert (found["vessel"].sum(), found["airway"].sum()) == (100, 100)
    assert found["vessel"].dtype == np.uint8
    assert masks_from_channels(made[0], GRID)["vessel"].sum() == 0


def test_means_are_averaged_before_the_cut():
    one, other = np.zeros((2, 8, 8, 8), np.float32)
    one[:4], other[2:6] = 1, 1
    found = masks_of_draws(draws(2), draws(2, airway=[one, other]), GRID)["airway"]
    # 2 * 64 voxels of chance 1 and 4 * 64 of 0.5: taking all has 2 * 256 / (384 + 256) = 0.8, the certain ones 0.667
    np.testing.assert_array_equal(found, (one + other) > 0)


def test_where_less_than_a_voxel_is_expected_the_mask_is_empty():
    assert not best_dice_mask(np.full((4, 4, 4), 0.9 / 64)).any()
    assert best_dice_mask(np.full((4, 4, 4), 1.1 / 64)).all()


@settings(deadline=None, max_examples=50)
@given(arrays(np.float64, (2, 2, 3), elements=st.floats(0, 1, width=16)))
def test_no_other_cut_has_a_greater_expected_dice(chance):
    def score(mask):
        return 2 * chance[mask].sum() / (mask.sum() + chance.sum())

    found = best_dice_mask(chance)
    if chance.sum() < 1:
        assert not found.any()
        return
    assert score(found) >= max(score(chance >= cut) for cut in np.unique(chance)) - 1e-12


@settings(deadline=None, max_examples=50)
@given(arrays(bool, (2, 3, 3)))
def test_a_certain_mask_stays_as_it_is(mask):
    np.testing.assert_array_equal(best_dice_mask(mask.astype(float)), mask)
