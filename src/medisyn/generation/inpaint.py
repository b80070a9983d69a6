"""Pictures painted anew inside a mask: what is asked, and the family that does it for `generate`.

Shapes here: B requests, C channels, H, W rows and columns of a picture.
Pixels outside the mask are those of the original, bit for bit: the painted picture is put together in uint8 pixels, not
in latents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn.errors import InputError
from medisyn.generation.masks import paste, resize_mask, resize_pixels, soft_edge
from medisyn.types import UINT8, Item, Picture, Request

if TYPE_CHECKING:
    import torch

STRENGTH, FEATHER = 1.0, 2.0

# Requests of one size, pictures of that size (uint8, RGB or grey), masks (B, H, W) from 0 to 1, strength -> pictures.
Paint = Callable[[Sequence[Request], Sequence[Picture], "torch.Tensor", float], list[Item]]


@dataclass(frozen=True, eq=False)
class Painting:
    """One picture to be painted: `mask_HW` is True where; `request` has the size at which the model works."""

    request: Request
    original: Picture
    mask_HW: np.ndarray
    strength: float = STRENGTH
    feather: float = FEATHER

    def __post_init__(self) -> None:
        where = f"request {self.request.key}: "
        if self.original.value_range != UINT8 or self.original.array_CHW.dtype != np.uint8:
            raise InputError(
                f"{where}inpainting needs a uint8 image, got {self.original.array_CHW.dtype} "
                f"({self.original.value_range.unit}). Save it windowed as PNG first"
            )
        if self.original.array_CHW.shape[1:] != self.mask_HW.shape:
            raise InputError(
                f"{where}the mask is {self.mask_HW.shape} and the image {self.original.array_CHW.shape[1:]}"
            )
        if not 0 < self.strength <= 1:
            raise InputError(f"{where}strength must lie above 0 and at most at 1, got {self.strength:g}")

    def facts(self) -> dict[str, Any]:
        """What a record says of the picture and its mask: digests and extents, no file names."""
        rows, columns = np.nonzero(self.mask_HW)
        return {
            "original_sha256": _digest(self.original.array_CHW),
            "mask_sha256": _digest(self.mask_HW),
            "mask_box": [int(v) for v in (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)],
            "mask_pixels": len(rows),
            "strength": self.strength,
            "feather": self.feather,
        }

    def with_facts(self) -> Painting:
        """The same, with `facts` in the metadata of its request."""
        return replace(self, request=replace(self.request, metadata={**self.request.metadata, **self.facts()}))


class PaintingFamily:
    """What `generate` samples: each request's painting, done by `paint` and put into its original.

    `sample` hands pictures on and `decode` returns them, since only here it is known which original a row belongs to.
    """

    def __init__(self, paintings: Sequence[Painting], paint: Paint) -> None:
        self.paintings: Mapping[str, Painting] = {painting.request.key: painting for painting in paintings}
        self.paint = paint

    def sample(self, requests: Sequence[Request]) -> list[Picture]:
        """One finished picture per request, of its original's size."""
        done: dict[int, Picture] = {}
        for strength in sorted({self.paintings[request.key].strength for request in requests}):
            rows = [i for i, request in enumerate(requests) if self.paintings[request.key].strength == strength]
            done |= dict(zip(rows, self._paint([requests[i] for i in rows], strength), strict=True))
        return [done[i] for i in range(len(requests))]

    def decode(self, pictures: list[Picture]) -> list[Item]:
        return list(pictures)

    def _paint(self, requests: Sequence[Request], strength: float) -> list[Picture]:
        import torch

        paintings = [self.paintings[request.key] for request in requests]
        sizes = [(request.height or 0, request.width or 0) for request in requests]
        originals = [
            Picture(resize_pixels(painting.original.array_CHW, *size))
            for painting, size in zip(paintings, sizes, strict=True)
        ]
        masks = [resize_mask(painting.mask_HW, *size) for painting, size in zip(paintings, sizes, strict=True)]
        painted = self.paint(requests, originals, torch.from_numpy(np.stack(masks)), strength)
        return [finish(painting, item) for painting, item in zip(paintings, painted, strict=True)]


def finish(painting: Painting, painted: Item) -> Picture:
    """The painted picture (uint8 RGB, at the size the model worked at) inside the mask, the original outside."""
    if not isinstance(painted, Picture):
        raise InputError(f"inpainting makes pictures; this model makes a {type(painted).__name__}")
    original_CHW = painting.original.array_CHW
    new_CHW = resize_pixels(painted.array_CHW, *original_CHW.shape[1:])
    return Picture(paste(original_CHW, new_CHW, soft_edge(painting.mask_HW, painting.feather)))


def _digest(array: np.ndarray) -> str:
    """Over values, shape and type: the same pixels in another file have the same digest."""
    return hashlib.sha256(f"{array.shape} {array.dtype} ".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
