"""CT and masks as channels, and back. The chest's w grows to the patient's left, d to the head."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

import build_medsyn as build
from medisyn.errors import ConfigError, InputError, RangeError
from medisyn.families.medsyn.channels import (
    channels_from_sample,
    lobe_labels,
    masks_from_channels,
    stack_known,
    standing_affine,
    volume_from_channels,
)
from medisyn.families.medsyn.config import Grid
from medisyn.types import HU, UNIT, Picture, Sample, ValueRange, Volume

FINE = build.GRID.finer(2)


def test_channel_values_by_hand():
    channels = channels_from_sample(build.chest(), FINE)
    assert channels.shape == (4, 16, 16, 16)
    # -1000 HU is 24 of 1624 above the window's floor; lobe 4 is 4/5 of the way; masks are -1 and 1
    assert float(channels[0, 0, 0, 0]) == pytest.approx(24 / 1624 * 2 - 1, abs=1e-6)
    assert float(channels[1, 5, 8, 4]) == pytest.approx(4 / 5 * 2 - 1)
    assert channels[2].unique().tolist() == [-1, 1]
    hot = build.chest().item.array_CDHW.copy()
    hot[0, 0, 0, 0] = 2000
    bright = replace(build.chest(), item=Volume(hot, build.chest().item.affine, HU))
    assert float(channels_from_sample(bright, FINE)[0].max()) == 1.0


def test_there_and_back_keeps_hu_masks_and_place():
    sample = build.chest()
    channels = channels_from_sample(sample, FINE)
    volume = volume_from_channels(channels, FINE)
    np.testing.assert_allclose(volume.array_CDHW, sample.item.array_CDHW, atol=0.01)
    assert volume.spacing_mm == pytest.approx((20.0, 22.0, 22.0))
    assert volume.value_range == HU
    for name, mask in masks_from_channels(channels, FINE).items():
        np.testing.assert_array_equal(mask, sample.masks[name])
    middle = volume.affine @ (7.5, 7.5, 7.5, 1)
    np.testing.assert_allclose(middle, (0, 0, 0, 1), atol=1e-9)


def test_hu_run_in_straight_lines_between_the_knots():
    """Five knots lie at -1, -0.5, 0, 0.5 and 1; 20 of 50 HU beyond the third are a fifth of a unit."""
    bent = replace(FINE, hu_knots=(-1024.0, -700.0, 0.0, 50.0, 600.0))
    hu = np.full((16, 16, 16), -1000.0, np.float32)
    hu[0, 0, :7] = [-1024, -862, -700, 0, 20, 325, 2000]
    volume = Volume(hu[None], build.chest().item.affine, HU)
    channels = channels_from_sample(replace(build.chest(), item=volume), bent)
    wanted = [-1, -0.75, -0.5, 0, 0.2, 0.75, 1]
    np.testing.assert_allclose(channels[0, 0, 0, :7].numpy(), wanted, atol=1e-6)
    back = volume_from_channels(channels, bent).array_CDHW[0, 0, 0, :7]
    np.testing.assert_allclose(back, [-1024, -862, -700, 0, 20, 325, 600], atol=1e-3)
    for knots in ((0.0,), (-1024.0, -1024.0, 600.0), (600.0, -1024.0)):
        with pytest.raises(ConfigError, match="hu_knots must be two or more HU that grow"):
            Grid(hu_knots=knots)


def test_soft_edges_of_lobes_leave_no_bands_of_other_lobes():
    """Two lobes side by side, 5 and 4, whose edge to the outside is blurred over 0 to 5."""
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[4:12, 4:12, 4:8], labels[4:12, 4:12, 8:12] = 5, 4
    blurred = ndimage.uniform_filter(labels.astype(np.float32), 3)
    assert {1, 2, 3} <= set(np.unique(blurred.round()))  # what the nearest label alone would say
    found = lobe_labels(blurred)
    assert set(np.unique(found)) == {0, 4, 5}
    assert (found == labels).mean() > (blurred.round() == labels).mean() + 0.05
    np.testing.assert_array_equal(found[7, 7], labels[7, 7])
    assert blurred.round()[7, 7].tolist() == [0, 0, 0, 2, 3, 5, 5, 5, 4, 4, 4, 3, 1, 0, 0, 0]


def test_given_lobes_stay_as_they_are_however_thin_and_specks_alone_are_kept():
    thin = np.zeros((6, 6, 6), np.float32)
    thin[3] = 2
    np.testing.assert_array_equal(lobe_labels(thin + 1e-5), thin)
    checked = np.indices((4, 4, 4)).sum(axis=0) % 2 + 0.1  # nothing is thick enough anywhere
    np.testing.assert_array_equal(lobe_labels(checked), checked.round())


def test_a_grid_that_runs_to_the_front_turns_ct_and_masks_alike_and_turns_them_back():
    sample, front = build.chest(), replace(FINE, axes="SAL")
    channels = channels_from_sample(sample, front)
    straight = channels_from_sample(sample, FINE)
    assert torch.equal(channels, straight.flip(2))
    assert np.array_equal(
        volume_from_channels(channels, front).array_CDHW, volume_from_channels(straight, FINE).array_CDHW
    )
    for name, mask in masks_from_channels(channels, front).items():
        np.testing.assert_array_equal(mask, sample.masks[name])


def test_flipped_and_permuted_files_give_the_same_channels():
    sample = build.chest()
    array, affine = sample.item.array_CDHW, sample.item.affine
    swapped = affine[:, [2, 1, 0, 3]].copy()  # stored as (w, h, d), w running to the right
    swapped[:, 0] *= -1
    turned = Sample(
        "turned",
        Volume(np.ascontiguousarray(array.transpose(0, 3, 2, 1)[:, ::-1]), swapped, HU),
        sample.caption,
        masks={name: np.ascontiguousarray(mask.transpose(2, 1, 0)[::-1]) for name, mask in sample.masks.items()},
    )
    assert torch.equal(channels_from_sample(turned, FINE), channels_from_sample(sample, FINE))


def test_a_finer_volume_gives_every_kth_voxel():
    coarse, fine = channels_from_sample(build.chest(), build.GRID), channels_from_sample(build.chest(), FINE)
    assert torch.equal(coarse, fine[:, ::2, ::2, ::2])


def test_given_channels_are_stacked_in_the_models_order():
    values, given = stack_known({"airway": torch.full((8, 8, 8), 0.5)}, build.GRID)
    assert given.flatten().tolist() == [False, False, True, False]
    assert float(values[2].min()) == 0.5
    assert not stack_known(None, build.GRID)[1].any()


def changed(**changes) -> Sample:
    return replace(build.chest(), **changes)


def with_mask(name: str, mask: np.ndarray) -> Sample:
    return changed(masks={**build.chest().masks, name: mask})


def test_bad_volumes_are_refused():
    sample = build.chest()
    array, affine = sample.item.array_CDHW, sample.item.affine
    oblique = affine.copy()
    turn = np.array([[0.9, -0.436, 0], [0.436, 0.9, 0], [0, 0, 1]])
    oblique[:3, :3] = turn @ affine[:3, :3]
    wide = affine.copy()
    wide[0, 2] *= 2
    unit = Volume((array - array.min()) / np.ptp(array), affine, UNIT)
    in_hu = Volume((array - array.min()) / np.ptp(array), affine, ValueRange(-1024, 3071, "hu"))
    cases = [
        (Volume(array, oblique, HU), InputError, "oblique, its nearest axis is 26 degrees away"),
        (Volume(array, wide, HU), InputError, r"measure 44.00 mm along L, the model's 22.00 mm"),
        (
            Volume(array[:, :-1], affine, HU),
            InputError,
            "15x16x16 voxels .* are not a whole multiple of the model's 16x16x16",
        ),
        (Volume(array.repeat(2, 0), affine, HU), InputError, "one channel, got a volume of 2 channels"),
        (Picture(np.zeros((1, 4, 4), np.uint8)), InputError, "one channel, got Picture"),
        (unit, RangeError, "the volume is in 'unit', MedSyn takes HU"),
        (in_hu, RangeError, "looks like"),
    ]
    for item, error, text in cases:
        masks = {name: mask[:-1] for name, mask in sample.masks.items()} if "15x16" in text else sample.masks
        with pytest.raises(error, match=text):
            channels_from_sample(changed(item=item, masks=masks), FINE)


def test_bad_masks_are_refused():
    shape = (16, 16, 16)
    with pytest.raises(RangeError, match=r"mask 'lobe' holds 0, 9; allowed are whole numbers from 0 to 5 \(1 left"):
        channels_from_sample(with_mask("lobe", np.where(np.arange(16) > 8, 9, 0) * np.ones(shape, int)), FINE)
    with pytest.raises(RangeError, match=r"mask 'airway' holds 0.5"):
        channels_from_sample(with_mask("airway", np.full(shape, 0.5)), FINE)
    with pytest.raises(InputError, match=r"mask 'vessel' has shape \(8, 8, 8\), its CT \(16, 16, 16\)"):
        channels_from_sample(with_mask("vessel", np.zeros((8, 8, 8))), FINE)
    with pytest.raises(InputError, match="mask 'vessel' is missing, there are: airway, lobe"):
        channels_from_sample(changed(masks={k: v for k, v in build.chest().masks.items() if k != "vessel"}), FINE)


def test_bad_given_channels_are_refused():
    with pytest.raises(InputError, match="channel 'lung' is unknown, allowed: ct, lobe"):
        stack_known({"lung": torch.zeros(8, 8, 8)}, build.GRID)
    with pytest.raises(InputError, match=r"has shape \(4, 4, 4\), the model's grid"):
        stack_known({"lobe": torch.zeros(4, 4, 4)}, build.GRID)
    with pytest.raises(RangeError, match=r"must lie in \[-1, 1\]"):
        stack_known({"lobe": torch.full((8, 8, 8), 5.0)}, build.GRID)


def test_bad_grids_are_refused():
    with pytest.raises(ConfigError, match="axes must be S or I, then A or P, then L or R"):
        Grid(axes="LPS")
    with pytest.raises(ConfigError, match="a grid needs a shape and spacing above 0"):
        Grid(spacing_mm=(1.0, 0.0, 1.0))


def test_the_papers_grid_is_its_atlas():
    grid = Grid().finer(4)
    assert grid.shape == (256, 256, 256)
    assert grid.spacing_mm == (1.140625, 1.234375, 1.234375)
    assert np.allclose(np.diag(standing_affine(grid)), (0, 1.234375, 0, 1))
