"""DINOv2 features through transformers: the class token after the last norm (FD-DINOv2, Stein et al., 2023).

Shapes here: B batch, H, W pixels, D features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from medisyn.evaluation.features import check_images
from medisyn.evaluation.features.from_transformers import load_network
from medisyn.evaluation.features.pixels import IMAGENET, normalised, squashed

SIDE = 224


class Dinov2Extractor:
    """224 x 224 by Pillow's bicubic (squashed, nothing cropped away), ImageNet mean and SD, float32."""

    preprocessing = "squash224-pillow-bicubic-imagenet"

    def __init__(self, network: nn.Module, name: str, dim: int):
        self.network = network
        self.id = f"dinov2:{name}"
        self.dim = dim

    @torch.inference_mode()
    def __call__(self, images: list[np.ndarray]) -> np.ndarray:
        check_images(images)
        pixels = normalised([squashed(image, SIDE) for image in images], IMAGENET)
        return self.network(pixel_values=pixels).last_hidden_state[:, 0].numpy().astype(np.float32)


def load_dinov2(source: str) -> Dinov2Extractor:
    """A transformers DINOv2 folder or hub id; see `load_network` for what is refused."""
    from transformers import Dinov2Model

    network, name = load_network(Dinov2Model, source, "dinov2", "facebook/dinov2-large")
    return Dinov2Extractor(network, name, int(network.config.hidden_size))
