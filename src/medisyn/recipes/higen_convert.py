"""The published HiGen checkpoint as one of our model folders.

The checkpoint holds the U-Net alone, with the text resampler in it. Autoencoder, text encoder and tokenizer are those
of Stable Diffusion 2.1, as published, and are taken from a model of that layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn.errors import InputError, ModelError
from medisyn.families.higen.config import ClipGrid
from medisyn.families.higen.settings import TEXT_LAYERS, HiGenDefaults, HiGenSettings
from medisyn.recipes.medsyn_convert import Conversion, read_state, without_prefix

if TYPE_CHECKING:
    from medisyn.families.higen.networks import HiGenUNet

# The published text is the 23rd of ViT-H's 24 layers. Stable Diffusion 2's folders lack the 24th.
LAYER_OF_COUNT = {23: "last", 24: "penultimate"}


def convert_higen(
    checkpoint: Path,
    base: str,
    out: Path,
    *,
    text_layer: str | None = None,
    grid: ClipGrid | None = None,
    defaults: HiGenDefaults | None = None,
    head_width: int = 64,
    text_heads: int = 8,
    norm_groups: int = 32,
) -> Conversion:
    """Read the U-Net's file and the parts of `base`, and write a model folder.

    base        a folder or hub id in the layout of Stable Diffusion 2
    text_layer  "penultimate" or "last" of the text encoder; None: as its number of layers tells
    grid        None: 256 x 448 pixels, and as many frames as the weights can do

    The last three cannot be read from the weights; the defaults are the published network's. Raises ModelError for
    what is missing or does not fit, and InputError for a text layer that must be told.
    """
    from medisyn.families.higen.model import HiGen

    if text_layer is not None and text_layer not in TEXT_LAYERS:
        raise InputError(f"text_layer must be one of {', '.join(TEXT_LAYERS)}, got {text_layer!r}")
    sizes = {"head_width": head_width, "text_heads": text_heads, "norm_groups": norm_groups}
    unet, line = _unet(checkpoint, sizes)
    frames = unet.config["frames"]
    vae, encoder, tokenizer = _image_parts(base)
    layer = text_layer or _layer(encoder)
    HiGen(
        unet,
        vae,
        encoder,
        tokenizer,
        grid=grid or ClipGrid(frames=frames),
        settings=HiGenSettings(text_layer=layer),
        defaults=defaults,
    ).save(out)
    layers = encoder.config.num_hidden_layers
    text = f"text encoder: {layer} of {layers} layers, {encoder.config.hidden_size} wide; as the autoencoder of {base}"
    return Conversion(out, (line, f"clips: {frames} frames, the only length that these weights know", text))


def _unet(file: Path, sizes: Mapping[str, int]) -> tuple[HiGenUNet, str]:
    """The network with the checkpoint's weights, and what was read, for a person."""
    import torch

    from medisyn.families.higen.networks import HiGenUNet
    from medisyn.families.higen.published import infer_config, load_published

    if not file.is_file():
        raise ModelError(f"there is no file {file.name}: give HiGen's checkpoint, a .pth or .safetensors file")
    everything = read_state(file)
    state = without_prefix(everything, r"input_blocks\.0\.0\.weight")
    config = infer_config(state, **sizes)  # type: ignore[arg-type]
    with torch.device("meta"):
        network = HiGenUNet(**asdict(config))
    network.to_empty(device="cpu")  # every weight is set below, or refused
    num_unused = len(everything) - len(state) + len(load_published(network, state))
    count = sum(parameter.numel() for parameter in network.parameters())
    left = f", {num_unused} entries that it has no place for left out" if num_unused else ""
    return network.eval(), f"U-Net: {file.name}, {count:,} weights, width {config.width} x {config.multipliers}{left}"


def _image_parts(base: str) -> tuple[Any, Any, Any]:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel

    from medisyn.families.higen.folders import open_part, open_tokenizer
    from medisyn.recipes.models import find_model

    folder = find_model(base).folder
    return (
        open_part(folder / "vae", AutoencoderKL),
        open_part(folder / "text_encoder", CLIPTextModel),
        open_tokenizer(folder / "tokenizer"),
    )


def _layer(encoder: Any) -> str:
    layers = encoder.config.num_hidden_layers
    if layers not in LAYER_OF_COUNT:
        raise InputError(
            f"the text encoder has {layers} layers, not the 23 or 24 of ViT-H: say with --text-layer which one the "
            f"U-Net was trained on, penultimate or last"
        )
    return LAYER_OF_COUNT[layers]
