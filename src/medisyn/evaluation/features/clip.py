"""CLIP image embeddings through transformers, divided by their length: what CMMD is defined on.

Shapes here: B batch, H, W pixels, D features.
CMMD uses openai/clip-vit-large-patch14-336 on images resized to 336 x 336 without a crop (Jayasumana et al., 2024).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from medisyn.errors import ModelError
from medisyn.evaluation.features import check_images
from medisyn.evaluation.features.from_transformers import load_network
from medisyn.evaluation.features.pixels import CLIP, normalised, squashed

SIDES = {"clip": 336, "clip-224": 224}


class ClipExtractor:
    """Squashed to the network's own side by Pillow's bicubic, CLIP's mean and SD; rows of length 1."""

    def __init__(self, network: nn.Module, name: str, side: int, dim: int):
        self.network, self.side, self.dim = network, side, dim
        self.id = f"clip:{name}"
        self.preprocessing = f"squash{side}-pillow-bicubic-clip-unit"

    @torch.inference_mode()
    def __call__(self, images: list[np.ndarray]) -> np.ndarray:
        check_images(images)
        pixels = normalised([squashed(image, self.side) for image in images], CLIP)
        embedded = self.network(pixel_values=pixels).image_embeds
        return nn.functional.normalize(embedded, dim=-1).numpy().astype(np.float32)


def load_clip(source: str, side: int) -> ClipExtractor:
    """A transformers CLIP folder or hub id; its text tower is not loaded. ModelError when it was made for another side.

    `side` is 336 for CMMD's network and 224 for the others: the position embeddings are of one size only.
    """
    from transformers import CLIPVisionModelWithProjection

    network, name = load_network(
        CLIPVisionModelWithProjection, source, "clip", f"openai/clip-vit-large-patch14{'-336' if side == 336 else ''}"
    )
    if network.config.image_size != side:
        raise ModelError(
            f"clip: this network takes images of {network.config.image_size} pixels, the extractor asked for {side}. "
            f"Use {' or '.join(f'{key} ({value})' for key, value in SIDES.items())} as its configuration says."
        )
    return ClipExtractor(network, name, side, int(network.config.projection_dim))
