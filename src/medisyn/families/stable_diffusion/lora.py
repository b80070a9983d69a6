"""Low-rank adapters: put on, saved as the file that every diffusers tool loads, and loaded again."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from medisyn.errors import ConfigError, ModelError
from medisyn.families.stable_diffusion import load
from medisyn.families.stable_diffusion.config import StableDiffusionConfig
from medisyn.families.stable_diffusion.networks import Networks
from medisyn.nn.folders import quiet

LORA_FILE = "pytorch_lora_weights.safetensors"


def add_lora(networks: Networks, config: StableDiffusionConfig, *, seed: int = 0) -> None:
    """Freeze the networks and put adapters on the U-Net, and on the text encoders when they are trained.

    A fresh adapter changes nothing: its second matrix is zero. Raises ConfigError when no layer has a target's name.
    """
    from peft import LoraConfig

    def adapter(targets: Sequence[str]) -> LoraConfig:
        return LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha or config.lora_rank,
            init_lora_weights="gaussian",
            target_modules=list(targets),
        )

    parts: list[tuple[str, Any, Sequence[str]]] = [("unet", networks.unet, config.lora_targets)]
    if config.train_text_encoder:
        parts += [("text encoder", encoder, config.lora_text_targets) for encoder in networks.text_encoders]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module, targets in parts:
            _check_targets(name, module, targets)
            module.requires_grad_(False)
            module.add_adapter(adapter(targets))


def _check_targets(name: str, module: torch.nn.Module, targets: Sequence[str]) -> None:
    names = [layer for layer, _ in module.named_modules()]
    for target in targets:
        if not any(layer == target or layer.endswith(f".{target}") for layer in names):
            raise ConfigError(f"LoRA target {target!r} is the name of no layer of the {name}")


def save_lora(networks: Networks, config: StableDiffusionConfig, folder: Path) -> None:
    """Write the adapter, with rank and alpha, as `pytorch_lora_weights.safetensors` for `pipe.load_lora_weights`."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    modules: dict[str, Any] = {"unet": networks.unet}
    if config.train_text_encoder:
        names = ("text_encoder", "text_encoder_2")
        modules |= dict(zip(names, networks.text_encoders, strict=False))
    layers = {
        f"{name}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(module))
        for name, module in modules.items()
    }
    pipeline = StableDiffusionXLPipeline if networks.is_xl else StableDiffusionPipeline
    pipeline.save_lora_weights(folder, **layers, **_collate_lora_metadata(modules))


def merge_lora(networks: Networks, folder: Path) -> None:
    """Add the adapter in `folder` to the networks' weights. Raises ModelError when it was made for another model."""
    from diffusers import EulerDiscreteScheduler

    pipeline = load.pipeline_of(networks, EulerDiscreteScheduler(steps_offset=1))  # 0 is deprecated
    try:
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "While injecting the PEFT adapters")  # pages long; errors are told below
            pipeline.load_lora_weights(str(folder), weight_name=LORA_FILE, local_files_only=True)
    except (RuntimeError, ValueError, KeyError) as error:  # wrong shapes, no layer, wrong names
        raise ModelError(
            f"the adapter {folder.name}/ does not fit its base model ({str(error).strip().splitlines()[0][:120]}). "
            f"Open it with the model that it was trained on."
        ) from error
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
