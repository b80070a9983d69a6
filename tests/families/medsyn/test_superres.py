"""The super-resolution model: crops and condition noise in training, tiles in sampling."""

from dataclasses import replace

import pytest
import torch

import build_medsyn as build
from medisyn.errors import ConfigError, InputError, ModelError
from medisyn.families.medsyn.config import BASE_TINY, SUPERRES_TINY, SuperResolutionConfig
from medisyn.families.medsyn.networks import build_unet
from medisyn.families.medsyn.objective import (
    cut,
    draw_superres,
    keep_voxels,
    lower_resolution,
    noisy_condition,
    repeat_voxels,
)
from medisyn.families.medsyn.superres import MedSynSuperResolution
from medisyn.seeding import generator_for
from medisyn.types import Request


def draws(count: int) -> list[torch.Generator]:
    return [generator_for(0, f"0/{number}") for number in range(count)]


def test_crops_start_on_the_coarse_grid_and_lie_inside():
    config = SuperResolutionConfig(factor=2, crop=(4, 8, 8))
    drawn = draw_superres(draws(60), (4, 8, 16, 8), config)
    assert {d for d, _, _ in drawn.corners} == {0, 2, 4}
    assert {h for _, h, _ in drawn.corners} == {0, 2, 4, 6, 8}
    assert {w for _, _, w in drawn.corners} == {0}
    assert float(drawn.noise_levels_B.min()) >= 0
    assert 0.3 < float(drawn.noise_levels_B.max()) < 0.4
    volume = torch.arange(60 * 1024.0).view(60, 1, 8, 16, 8)
    crop = cut(volume, drawn.corners, (4, 8, 8))
    d, h, w = drawn.corners[7]
    assert float(crop[7, 0, 0, 0, 0]) == float(volume[7, 0, d, h, w])


def test_low_resolution_and_condition_noise_by_hand():
    volume = torch.arange(8.0).view(1, 1, 2, 2, 2)
    low = lower_resolution(volume, 2)
    assert low.flatten().tolist() == [0.0]
    assert torch.equal(repeat_voxels(low + 3, 2), torch.full((1, 1, 2, 2, 2), 3.0))
    mixed = noisy_condition(torch.ones(1, 1, 1, 1, 1), torch.full((1, 1, 1, 1, 1), 5.0), torch.tensor([0.25]))
    assert float(mixed) == 0.75 * 1 + 0.25 * 5


def test_losses_are_per_sample_and_every_weight_is_trained():
    model = build.superres()
    rows = model.encode(build.chests(3))
    assert rows["channels"].shape == (3, 4, 16, 16, 16)
    losses = model.loss(rows, draws(3))
    alone = model.loss({"channels": rows["channels"][2:]}, draws(3)[2:])
    torch.testing.assert_close(alone[0], losses[2], rtol=1e-4, atol=1e-6)
    (group,) = model.trainable()
    losses.sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in group.parameters)


def test_upscaling_makes_the_fine_grid_and_follows_seed_and_condition():
    model = build.superres(defaults=replace(build.DEFAULTS, superres_steps=1, tile=(16, 16, 8)))
    low = torch.rand(2, 4, 8, 8, 8) * 2 - 1
    fine = model.upscale(low, [1, 1])
    assert fine.shape == (2, 4, 16, 16, 16)
    assert fine.abs().max() <= 1
    torch.testing.assert_close(model.upscale(low[1:], [1])[0], fine[1])
    assert not torch.allclose(fine[0], fine[1])
    assert not torch.allclose(model.upscale(low[:1], [2])[0], fine[0])
    [volume] = model.decode(fine[:1])
    assert volume.spacing_mm == pytest.approx((20, 22, 22))


def test_steps_and_tiles_decide_the_network_calls():
    model = build.superres()  # 16³ in tiles of 16 x 8 x 8 that share 4: 1 x 3 x 3 tiles, 2 steps are 3 calls
    shapes = []
    model.unet.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    model.upscale(torch.zeros(1, 4, 8, 8, 8), [0])
    assert shapes == [(1, 4, 16, 8, 8)] * 27


def test_a_tile_as_large_as_the_volume_is_the_untiled_run_and_small_tiles_are_not():
    """Group normalisation and attention see one tile, so the two differ: bounds for trained networks are measured."""
    low = torch.rand(1, 4, 8, 8, 8) * 2 - 1
    whole = build.superres(defaults=replace(build.DEFAULTS, tile=(16, 16, 16))).upscale(low, [3])
    larger = build.superres(defaults=replace(build.DEFAULTS, tile=(32, 32, 32))).upscale(low, [3])
    assert torch.equal(whole, larger)
    difference = (build.superres().upscale(low, [3]) - whole).abs().mean()
    assert 0 < float(difference) < 0.4  # of a range of 2, random weights, four cells of attention per slice and tile


def test_what_low_voxels_miss_is_spread_by_straight_lines():
    fine, low = torch.zeros(1, 1, 4, 4, 8), torch.zeros(1, 1, 1, 1, 2)
    low[..., 0], low[..., 1] = 4.0, 8.0
    assert keep_voxels(fine, low, 4)[0, 0, 0, 0].tolist() == [4, 5, 6, 7, 8, 8, 8, 8]
    anything = torch.randn(2, 3, 8, 8, 8)
    low = torch.randn(2, 3, 4, 4, 4)
    assert torch.allclose(lower_resolution(keep_voxels(anything, low, 2), 2), low, atol=1e-6)
    assert torch.equal(keep_voxels(anything, lower_resolution(anything, 2), 2), anything)


def test_the_base_models_ct_voxels_are_kept_where_that_is_asked_for():
    low = torch.rand(1, 4, 8, 8, 8) * 1.8 - 0.9
    kept = build.superres(defaults=replace(build.DEFAULTS, keep_base=True)).upscale(low, [0])
    assert torch.allclose(lower_resolution(kept, 2)[:, 0], low[:, 0], atol=1e-6)
    free = build.superres().upscale(low, [0])
    assert (lower_resolution(free, 2)[:, 0] - low[:, 0]).abs().mean() > 0.1
    given = torch.rand(16, 16, 16)  # at the fine grid: the base model's voxels give way
    both = build.superres(defaults=replace(build.DEFAULTS, keep_base=True)).upscale(low, [0], known=[{"ct": given}])
    assert torch.equal(both[0, 0], given)


def test_a_network_of_patches_refines_in_tiles_that_it_can_divide():
    unet = build_unet(replace(SUPERRES_TINY, patch=2))
    model = MedSynSuperResolution(unet, build.GRID, build.SUPERRES, replace(build.DEFAULTS, tile=(8, 8, 8)))
    assert model.upscale(torch.zeros(1, 4, 8, 8, 8), [0]).shape == (1, 4, 16, 16, 16)
    with pytest.raises(ModelError, match=r"the tile must divide by 4, its depth by 2, got \(7, 8, 8\)"):
        MedSynSuperResolution(unet, build.GRID, build.SUPERRES, replace(build.DEFAULTS, tile=(7, 8, 8)))


def test_what_does_not_fit_is_refused():
    model = build.superres()
    with pytest.raises(InputError, match="use `upscale`"):
        model.sample([Request(key="a", prompt="", seed=0)])
    with pytest.raises(InputError, match="base and super-resolution model do not belong together"):
        model.upscale(torch.zeros(1, 4, 4, 4, 4), [0])
    with pytest.raises(ModelError, match="this is a base network"):
        MedSynSuperResolution(build_unet(BASE_TINY), build.GRID, build.SUPERRES)
    with pytest.raises(ModelError, match="height and width of the tile must divide by 2"):
        build.superres(defaults=replace(build.DEFAULTS, tile=(16, 7, 8)))
    with pytest.raises(ConfigError, match="factor must be at least 2, got 1"):
        SuperResolutionConfig(factor=1)
    with pytest.raises(ConfigError, match="crop must divide by the factor 4"):
        SuperResolutionConfig(crop=(8, 8, 6))
    with pytest.raises(ConfigError, match=r"condition_noise must lie in \[0, 1\), got 1"):
        SuperResolutionConfig(condition_noise=1.0)
