"""BiomedCLIP's image tower: the published open_clip weights on a transformers ViT, with neither open_clip nor timm.

Shapes here: B batch, H, W pixels, D features.
Published as an open_clip state dict with a timm ViT-B/16 under `visual.trunk` and a linear projection to 512 under
`visual.head.proj` (Zhang et al., 2023). timm packs query, key and value into one matrix; its layer norms have epsilon
1e-6; the class token after the last norm is projected.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medisyn.errors import ModelError
from medisyn.evaluation.features import check_images
from medisyn.evaluation.features.pixels import CLIP, centre_cropped, normalised
from medisyn.evaluation.features.published import BIOMEDCLIP, digest_of, name_of

TRUNK, PROJECTION = "visual.trunk.", "visual.head.proj.weight"
HEADS_OF_WIDTH_768 = 12  # a head is 64 wide, in this network as in every ViT of its kind
# timm's name -> transformers' name, in a block and outside
BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}


def trunk_from_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A timm ViT's tensors (names without `visual.trunk.`) under transformers' names; unknown names are kept as is."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not name.startswith("blocks."):
            renamed[OUTSIDE.get(name, name)] = tensor
            continue
        _, block, rest = name.split(".", 2)
        part, _, kind = rest.rpartition(".")
        prefix = f"layers.{block}"
        if part == "attn.qkv":
            for which, piece in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{prefix}.attention.{which}_proj.{kind}"] = piece
        else:
            renamed[f"{prefix}.{BLOCK.get(part, part)}.{kind}"] = tensor
    return renamed


class BiomedClipVision(nn.Module):
    """(B, 3, H, W) normalised pixels to embeddings (B, D) of length 1."""

    def __init__(self, trunk: Any, projection_DW: Tensor):
        super().__init__()
        self.side = int(trunk.config.image_size)
        self.trunk = trunk
        self.projection = nn.Parameter(projection_DW)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        tokens = self.trunk(pixel_values=pixels_BCHW).last_hidden_state
        return nn.functional.normalize(tokens[:, 0] @ self.projection.T, dim=-1)


class BiomedClipExtractor:
    """224 pixels: short side by Pillow's bicubic, centre crop, CLIP's mean and SD, as published; rows of length 1."""

    def __init__(self, network: BiomedClipVision, name: str):
        self.network = network.float().eval().requires_grad_(False)
        self.side = network.side
        self.id = f"biomedclip:{name}"
        self.preprocessing = f"short{self.side}-centre-crop-pillow-bicubic-clip-unit"
        self.dim = int(network.projection.shape[0])

    @torch.inference_mode()
    def __call__(self, images: list[np.ndarray]) -> np.ndarray:
        check_images(images)
        pixels = normalised([centre_cropped(image, self.side) for image in images], CLIP)
        return self.network(pixels).numpy().astype(np.float32)


def load_biomedclip(path: Path | None) -> BiomedClipExtractor:
    """From `open_clip_pytorch_model.bin` (read as tensors alone) or the same as .safetensors; text weights are left.

    Raises ModelError when the file is missing, no file of tensors, or no such network.
    """
    digest = digest_of(BIOMEDCLIP, path)
    assert path is not None  # digest_of refuses None
    weights = _read(path)
    trunk = {name.removeprefix(TRUNK): tensor for name, tensor in weights.items() if name.startswith(TRUNK)}
    if PROJECTION not in weights or "pos_embed" not in trunk or "patch_embed.proj.weight" not in trunk:
        raise ModelError(
            f"biomedclip: {path.name} holds no open_clip image tower ({TRUNK}* and {PROJECTION} are not all there)"
        )
    return BiomedClipExtractor(_network(trunk, weights[PROJECTION], path.name), name_of(BIOMEDCLIP, digest))


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"biomedclip: {path.name} is not a file of tensors ({type(error).__name__})") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"biomedclip: {path.name} holds something other than named tensors")
    return content


def _network(trunk: Mapping[str, Tensor], projection: Tensor, file: str) -> BiomedClipVision:
    """A ViT of the sizes that the tensors have, filled; ModelError unless every weight has its place."""
    from transformers import ViTConfig, ViTModel

    width, _, patch, _ = trunk["patch_embed.proj.weight"].shape
    grid = round((trunk["pos_embed"].shape[1] - 1) ** 0.5)
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=sum(name.endswith("attn.qkv.weight") for name in trunk),
        num_attention_heads=max(1, width * HEADS_OF_WIDTH_768 // 768),
        intermediate_size=trunk["blocks.0.mlp.fc1.weight"].shape[0]
        if "blocks.0.mlp.fc1.weight" in trunk
        else 4 * width,
        image_size=grid * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
        hidden_act="gelu",
    )
    network = ViTModel(config, add_pooling_layer=False)
    try:
        network.load_state_dict(trunk_from_timm(trunk))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"biomedclip: {file} is not a ViT as timm stores it ({reason})") from None
    return BiomedClipVision(network, projection)
