"""Pictures as the image encoder and Stage A read them, and pictures out of Stage A.

Shapes here: B pictures, C latent channels, H, W pixels, u, v rows and columns of Stage A's latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from medisyn.errors import InputError, ModelError
from medisyn.families.wuerstchen.config import ENCODER_STRIDE
from medisyn.families.wuerstchen.settings import LatentGrid
from medisyn.types import Item, Picture, Sample


def pixels_from_samples(samples: Sequence[Sample]) -> torch.Tensor:
    """Pictures as one tensor (B, 3, H, W) in [0, 1]; grey pictures fill all three channels.

    Raises InputError for anything but uint8 pictures of one size.
    """
    planes = []
    for sample in samples:
        picture = sample.item
        if not isinstance(picture, Picture) or picture.array_CHW.dtype != np.uint8:
            array = getattr(picture, "array_CHW", None)
            got = type(picture).__name__ if array is None else f"a picture of {array.dtype}"
            raise InputError(f"sample {sample.key}: this model learns from uint8 pictures, got {got}")
        planes.append(np.broadcast_to(picture.array_CHW, (3, *picture.array_CHW.shape[1:])))
    sizes = {plane.shape for plane in planes}
    if len(sizes) > 1:
        raise InputError(f"pictures of one batch must have one size, got {sorted(shape[1:] for shape in sizes)}")
    return torch.from_numpy(np.stack(planes)).float() / 255


def encoder_view(pixels_BCHW: torch.Tensor, grid: LatentGrid) -> torch.Tensor:
    """The picture at the size that gives its grid of cells: 32 pixels for each, resized with antialiasing.

    1024 pixels become 768, as the published models were trained.
    """
    height, width = pixels_BCHW.shape[2:]
    size = (grid.cells(height) * ENCODER_STRIDE, grid.cells(width) * ENCODER_STRIDE)
    return F.interpolate(pixels_BCHW, size=size, mode="bilinear", antialias=True).clamp(0, 1)


def decode_pictures(vqgan: Any, latents_BCuv: torch.Tensor) -> list[Item]:
    """Stage A's latents, as Stage B makes them, as uint8 RGB pictures; the quantiser is passed by, as published.

    Raises ModelError when a number is not finite.
    """
    if not torch.isfinite(latents_BCuv).all():
        raise ModelError(
            "Stage B or C made latents that are NaN or infinite: the training run diverged, or the weights were stored "
            "in a type too narrow for them. Use an earlier checkpoint."
        )
    pixels = vqgan.decode((latents_BCuv * vqgan.config.scale_factor).to(vqgan.dtype)).float()
    array_BCHW = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return [Picture(array) for array in array_BCHW]
