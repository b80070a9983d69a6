"""DINOv2 features through transformers: the class token after the last norm (FD-DINOv2, Stein et al., 2023).

Shapes here: B batch, H, W pixels, D features.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from medisyn.errors import InputError, ModelError
from medisyn.evaluation.features import check_images
from medisyn.runs import file_sha256

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_SD = (0.229, 0.224, 0.225)


class Dinov2Extractor:
    """224 x 224 by Pillow's bicubic (squashed, nothing cropped away), ImageNet mean and SD, float32."""

    preprocessing = "squash224-pillow-bicubic-imagenet"

    def __init__(self, network: nn.Module, name: str, dim: int):
        self.network = network.float().eval().requires_grad_(False)
        self.id = f"dinov2:{name}"
        self.dim = dim

    @torch.inference_mode()
    def __call__(self, images: list[np.ndarray]) -> np.ndarray:
        check_images(images)
        tokens = self.network(pixel_values=prepare(images)).last_hidden_state
        return tokens[:, 0].numpy().astype(np.float32)


def prepare(images: list[np.ndarray]) -> Tensor:
    """(B, 3, 224, 224) float32, normalised by ImageNet mean and SD."""
    squashed = [np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)) for image in images]
    rgb_BHWC = np.stack(squashed).astype(np.float32) / 255.0
    normal = (rgb_BHWC - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_SD, np.float32)
    return torch.from_numpy(normal.transpose(0, 3, 1, 2).copy())


def load_dinov2(source: str) -> Dinov2Extractor:
    """A transformers DINOv2 folder, or a hub id, the one case that may reach the network (not with MEDISYN_OFFLINE)."""
    from safetensors import SafetensorError
    from transformers import Dinov2Model

    if not source:
        raise InputError(
            "extractor dinov2 needs its weights: dinov2:FOLDER with a transformers DINOv2 model (config.json and "
            "model.safetensors), or a hub id such as dinov2:facebook/dinov2-large"
        )
    folder = Path(source)
    for name in ("config.json", "model.safetensors"):
        if folder.is_dir() and not (folder / name).is_file():
            raise ModelError(f"dinov2: {folder.name}/ holds no {name}; weights as a pickle are not read")
    if not folder.is_dir() and source.count("/") != 1:
        raise ModelError(f"dinov2: {folder.name!r} is neither a folder nor a hub id of the form owner/name")
    offline = os.environ.get("MEDISYN_OFFLINE", "").lower() in ("1", "true", "yes")
    try:
        loaded: Any = Dinov2Model.from_pretrained(
            source, use_safetensors=True, output_loading_info=True, local_files_only=folder.is_dir() or offline
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"dinov2: the model cannot be loaded ({str(error).splitlines()[0]})") from None
    network, loading = loaded
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ModelError(f"dinov2: {len(missing)} weights are not in the file, for instance {missing[0]}")
    name = f"{file_sha256(folder / 'model.safetensors')[:8]}" if folder.is_dir() else source
    return Dinov2Extractor(network, name, int(network.config.hidden_size))
