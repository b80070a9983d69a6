"""Pixels as vision transformers take them: squashed or cropped to a square, scaled by a mean and an SD per channel.

Shapes here: B batch, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and SD of red, green, blue in [0, 1]
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def squashed(image_HWC: np.ndarray, side: int) -> np.ndarray:
    """(side, side, 3) uint8 by Pillow's antialiased bicubic; nothing is cropped away, proportions may change."""
    return np.asarray(Image.fromarray(image_HWC).resize((side, side), Image.Resampling.BICUBIC))


def centre_cropped(image_HWC: np.ndarray, side: int) -> np.ndarray:
    """(side, side, 3) uint8: the short side brought to `side` by Pillow's bicubic, then the middle of the long one."""
    height, width = image_HWC.shape[:2]
    short = min(height, width)
    size = (side * width // short, side * height // short)
    resized = np.asarray(Image.fromarray(image_HWC).resize(size, Image.Resampling.BICUBIC))
    top, left = round((resized.shape[0] - side) / 2), round((resized.shape[1] - side) / 2)
    return resized[top : top + side, left : left + side]


def normalised(images: Sequence[np.ndarray], scale: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """uint8 images of one size as (B, 3, H, W) float32, (x / 255 - mean) / SD."""
    mean, sd = (np.array(part, np.float32) for part in scale)
    rgb_BHWC = np.stack(images).astype(np.float32) / 255.0
    return torch.from_numpy(((rgb_BHWC - mean) / sd).transpose(0, 3, 1, 2).copy())
