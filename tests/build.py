"""Tiny models and pictures for tests: random weights, a tokenizer trained on the spot, captioned coloured shapes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from medisyn.families.stable_diffusion.config import NetworkConfig, StableDiffusionConfig
from medisyn.types import Picture, Sample

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230), "yellow": (230, 220, 40)}
SHAPES = ("square", "disc", "cross")

TINY_SD1 = NetworkConfig(
    image_size=32,
    vae_widths=(8, 16),
    latent_channels=4,
    unet_widths=(16, 32),
    unet_layers=1,
    unet_attention=(True, False),
    unet_heads=2,
    text_width=16,
    text_layers=2,
    text_heads=2,
    time_id_width=8,
    norm_groups=4,
)
TINY_SD2 = replace(TINY_SD1, prediction_type="v_prediction")
TINY_ZERO_SNR = replace(TINY_SD1, prediction_type="v_prediction", zero_terminal_snr=True)
TINY_SDXL = replace(TINY_SD1, xl=True, unet_attention=(False, True))


def captions() -> list[str]:
    return [f"{colour} {shape} on black" for colour in COLOURS for shape in SHAPES]


def shape_pixels(colour: str, shape: str, size: int = 32) -> np.ndarray:
    """A filled shape in the middle of a black picture, (3, size, size) uint8."""
    row, column = np.mgrid[:size, :size] - (size - 1) / 2
    inside = {
        "square": np.maximum(abs(row), abs(column)) < size / 4,
        "disc": np.hypot(row, column) < size / 3,
        "cross": np.minimum(abs(row), abs(column)) < size / 8,
    }[shape]
    return (inside[None] * np.array(COLOURS[colour])[:, None, None]).astype(np.uint8)


def samples(count: int, size: int = 32) -> list[Sample]:
    """Coloured shapes with captions, `count` of the twelve kinds in turn."""
    made = []
    for i, caption in zip(range(count), captions() * (count // 12 + 1), strict=False):
        colour, shape = caption.split()[:2]
        made.append(Sample(f"item-{i:03d}", Picture(shape_pixels(colour, shape, size)), caption))
    return made


@cache
def tokenizer() -> Any:
    """A CLIPTokenizer trained on the captions of the shapes."""
    from medisyn.families.stable_diffusion.text import train_tokenizer

    return train_tokenizer(captions(), vocab_size=600)


def tiny_model(network: NetworkConfig = TINY_SD1, config: StableDiffusionConfig | None = None, **options: Any) -> Any:
    """A StableDiffusion in memory, with random weights."""
    from medisyn.families.stable_diffusion.model import StableDiffusion

    return StableDiffusion.from_config(network, tokenizer(), config, **options)


def tiny_folder(folder: Path, network: NetworkConfig = TINY_SD1, **options: Any) -> Path:
    """The same, saved as a diffusers folder; returns the folder."""
    tiny_model(network, **options).save(folder)
    return folder


def with_scheduler(networks: Any, scheduler_config: dict[str, Any]) -> Any:
    """The same networks under another scheduler config."""
    return replace(networks, scheduler_config=scheduler_config)
