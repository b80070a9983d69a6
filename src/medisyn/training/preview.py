"""Previews: the same prompts and seeds every time, on one PNG, so that a run can be watched by eye."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from medisyn.errors import InputError
from medisyn.families.base import Family
from medisyn.types import UINT8, Item, Picture, Request

GAP = 2  # pixels between tiles


@dataclass(frozen=True)
class Preview:
    """Called with the path of the PNG to write. Pictures only: requests share one size, step count and guidance."""

    family: Family
    requests: Sequence[Request]

    def __call__(self, path: Path) -> None:
        with torch.no_grad():
            pictures = self.family.decode(self.family.sample(list(self.requests)))
        note = PngImagePlugin.PngInfo()
        for number, request in enumerate(self.requests):
            note.add_itxt(f"tile {number}", f"{request.prompt} (seed {request.seed})")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile(pictures)).save(path, pnginfo=note)


def tile(pictures: Sequence[Item]) -> np.ndarray:
    """Pictures (uint8) of one size on a near-square grid, row by row: (H, W, 3), white between them."""
    arrays = []
    for picture in pictures:
        if not isinstance(picture, Picture) or picture.value_range != UINT8:
            raise InputError(f"previews show uint8 pictures only, got a {type(picture).__name__.lower()}")
        arrays.append(np.broadcast_to(picture.array_CHW, (3, *picture.array_CHW.shape[1:])).transpose(1, 2, 0))
    columns = math.ceil(math.sqrt(len(arrays)))
    rows = math.ceil(len(arrays) / columns)
    height, width = arrays[0].shape[:2]
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, dtype=np.uint8)
    for number, array in enumerate(arrays):
        top, left = number // columns * (height + GAP), number % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = array
    return sheet
