"""A volume in overlapping tiles: each tile is computed on its own, and the overlaps are blended.

Shapes here: B batch, C channels, D, H, W of the whole volume.
A function that looks at most `margin` voxels around each output voxel gives the same in tiles as in one piece, up to
rounding: within `margin` of an inner edge of a tile, nothing of that tile is used. Group normalisation and attention
look at the whole tile, so for MedSyn's network the two differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from medisyn.errors import ConfigError


def tile_starts(size: int, tile: int, overlap: int, multiple: int = 1) -> list[int]:
    """First voxel of each tile along one axis; every start is a multiple of `multiple`, the last tile ends at `size`.

    Raises ConfigError when size or tile is no multiple, or the overlap leaves no room to move on.
    """
    tile = min(tile, size)
    if size % multiple or tile % multiple:
        raise ConfigError(f"size {size} and tile {tile} must be multiples of {multiple}")
    stride = (tile - overlap) // multiple * multiple
    if tile < size and stride < 1:
        raise ConfigError(f"overlap {overlap} leaves no room to move tiles of {tile} by a multiple of {multiple}")
    return [0] if tile == size else [*range(0, size - tile, stride), size - tile]


def axis_weights(size: int, tile: int, overlap: int, multiple: int = 1) -> list[tuple[int, torch.Tensor]]:
    """(start, weights (tile,)) of each tile along one axis; at every voxel the weights of all tiles sum to 1.

    From an inner edge the weight is 0 for a quarter of the overlap, then rises evenly over the half in the middle.
    """
    starts = tile_starts(size, tile, overlap, multiple)
    if len(starts) == 1:
        return [(0, torch.ones(size))]
    margin = overlap // 4
    rise = torch.arange(1, max(overlap - 2 * margin, 0) + 1) / (max(overlap - 2 * margin, 0) + 1)
    ramp = torch.cat([torch.zeros(margin), rise, torch.ones(tile - margin - len(rise))])
    weights = []
    for start in starts:
        inner_start, inner_end = start > 0, start + tile < size
        weight = ramp if inner_start else torch.ones(tile)
        weights.append(torch.minimum(weight, ramp.flip(0)) if inner_end else weight)
    total = torch.zeros(size)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + tile] += weight
    return [(start, weight / total[start : start + tile]) for start, weight in zip(starts, weights, strict=True)]


def in_tiles(
    function: Callable[..., torch.Tensor],
    volumes_BCDHW: Sequence[torch.Tensor],
    *,
    tile: tuple[int, int, int],
    overlap: int,
    multiples: tuple[int, int, int] = (1, 1, 1),
) -> torch.Tensor:
    """`function(*volumes)` computed tile by tile, float32; its result has the spatial shape of the volumes."""
    shape = volumes_BCDHW[0].shape[2:]
    if all(side <= part for side, part in zip(shape, tile, strict=True)):
        return function(*volumes_BCDHW).float()
    axes = [
        axis_weights(side, part, overlap, multiple) for side, part, multiple in zip(shape, tile, multiples, strict=True)
    ]
    whole: torch.Tensor | None = None
    for (d, weight_D), (h, weight_H), (w, weight_W) in itertools.product(*axes):
        window = (..., slice(d, d + len(weight_D)), slice(h, h + len(weight_H)), slice(w, w + len(weight_W)))
        part = function(*(volume[window] for volume in volumes_BCDHW)).float()
        if whole is None:
            whole = part.new_zeros((*part.shape[:2], *shape))
        weight_DHW = weight_D[:, None, None] * weight_H[None, :, None] * weight_W[None, None, :]
        whole[window].addcmul_(part, weight_DHW.to(part.device))
    assert whole is not None
    return whole
