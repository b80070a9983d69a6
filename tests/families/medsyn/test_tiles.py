"""Tiles: weights by hand, and equality with one piece for a function that looks a bounded way."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medisyn.errors import ConfigError
from medisyn.families.medsyn.tiles import axis_weights, in_tiles, tile_starts


def test_starts_by_hand():
    assert tile_starts(16, 8, 4) == [0, 4, 8]
    assert tile_starts(16, 8, 3, multiple=4) == [0, 4, 8]
    assert tile_starts(20, 12, 4, multiple=4) == [0, 8]
    assert tile_starts(8, 12, 4) == [0]


def test_weights_of_two_tiles_by_hand():
    # size 12, tile 8, overlap 4: margin 1, the ramp rises 1/3, 2/3 over two voxels, mirrored in the other tile
    (first, a), (second, b) = axis_weights(12, 8, 4)
    assert (first, second) == (0, 4)
    torch.testing.assert_close(a, torch.tensor([1, 1, 1, 1, 1, 2 / 3, 1 / 3, 0]))
    torch.testing.assert_close(b, torch.tensor([0, 1 / 3, 2 / 3, 1, 1, 1, 1, 1]))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(2, 10), st.integers(0, 6), st.sampled_from([1, 2]))
def test_weights_sum_to_one_everywhere(size, tile, overlap, multiple):
    size, tile = size * multiple, tile * multiple
    if tile - overlap < multiple:
        return
    total = torch.zeros(size)
    for start, weight in axis_weights(size, tile, overlap, multiple):
        assert start % multiple == 0
        total[start : start + len(weight)] += weight
    torch.testing.assert_close(total, torch.ones(size))


def local_network() -> nn.Module:
    """Two 3 x 3 x 3 convolutions: a voxel's result depends on at most 2 voxels around it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv3d(4, 1, 3, padding=1)).requires_grad_(False)


def test_a_local_function_gives_the_same_in_tiles_as_in_one_piece():
    network, volume = local_network(), torch.randn(2, 2, 20, 24, 12)
    whole = network(volume)
    tiled = in_tiles(lambda v: network(v), [volume], tile=(12, 16, 12), overlap=8)  # margin 2
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-6)  # float32 rounding
    too_little = in_tiles(lambda v: network(v), [volume], tile=(12, 16, 12), overlap=0)
    assert (too_little - whole).abs().max() > 1e-3  # seams, so the test can fail


def test_several_volumes_are_cut_alike_and_one_tile_is_one_call():
    calls = []

    def add(a, b):
        calls.append(a.shape[2:])
        return a + b

    a, b = torch.randn(1, 1, 6, 6, 6), torch.randn(1, 1, 6, 6, 6)
    torch.testing.assert_close(in_tiles(add, [a, b], tile=(4, 6, 6), overlap=2), a + b)
    assert len(calls) == 2
    assert torch.equal(in_tiles(add, [a, b], tile=(8, 8, 8), overlap=2), a + b)
    assert len(calls) == 3


def test_tiles_that_cannot_be_laid_are_refused():
    with pytest.raises(ConfigError, match="size 18 and tile 8 must be multiples of 4"):
        tile_starts(18, 8, 2, multiple=4)
    with pytest.raises(ConfigError, match="overlap 6 leaves no room to move tiles of 8 by a multiple of 4"):
        tile_starts(16, 8, 6, multiple=4)
