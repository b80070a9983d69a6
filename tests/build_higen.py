"""Tiny HiGen models and clips: random weights, a vocabulary trained on the spot, bright discs that beat."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from medisyn.families.higen.config import UNET_TINY, ClipGrid
from medisyn.families.higen.model import HiGen
from medisyn.families.higen.networks import build_unet
from medisyn.families.higen.settings import HiGenDefaults, HiGenSettings
from medisyn.families.stable_diffusion.config import NetworkConfig
from medisyn.families.stable_diffusion.networks import build_networks
from medisyn.families.stable_diffusion.text import train_tokenizer
from medisyn.types import Clip, Request, Sample

FRAMES, HEIGHT, WIDTH = 4, 16, 24
GRID = ClipGrid(frames=FRAMES, height=HEIGHT, width=WIDTH)
DEFAULTS = HiGenDefaults(steps=2, guidance=2.0, overlap=1)
CAPTIONS = ("a small heart, normal function", "a large heart, reduced function")
IMAGE = NetworkConfig(
    image_size=16,
    vae_widths=(8, 8, 16),
    unet_widths=(8,),
    unet_layers=1,
    unet_attention=(True,),
    unet_heads=1,
    text_width=16,
    text_layers=2,
    text_heads=2,
    text_window=12,
    norm_groups=8,
)


def beating(amplitude: float = 2.0, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A grey clip (1, T, H, W): a disc whose radius swings by `amplitude` pixels."""
    rows, columns = np.mgrid[:height, :width]
    away = np.hypot(rows - height / 2, columns - width / 2)
    radii = height / 3 + amplitude * np.sin(np.arange(frames))
    return np.stack([np.where(away < radius, 200, 30) for radius in radii]).astype(np.uint8)[None]


def sample(number: int = 0, **changes: Any) -> Sample:
    return Sample(f"clip-{number}", Clip(beating(1.0 + number)), CAPTIONS[number % 2], **changes)


def mean_and_spread(frames: list[np.ndarray]) -> np.ndarray:
    """A stand-in for an encoder of frames."""
    return np.array([[frame.mean(), frame.std(), 1.0] for frame in frames])


@cache
def _parts() -> tuple[Any, Any]:
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=600, window=IMAGE.text_window)
    return build_networks(IMAGE, tokenizer, seed=0), tokenizer


def unet(seed: int = 0, **changes: Any) -> Any:
    """A network whose zeros are filled, so that every condition has an effect."""
    from dataclasses import replace

    network = build_unet(replace(UNET_TINY, dropout=0.0, **changes), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.any():
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return network


def model(settings: HiGenSettings | None = None, defaults: HiGenDefaults = DEFAULTS, **changes: Any) -> HiGen:
    """A tiny model with its own copies of the networks."""
    import copy

    networks, tokenizer = _parts()
    parts = {"unet": unet(), "grid": GRID, "frame_features": mean_and_spread} | changes
    return HiGen(
        parts.pop("unet"),
        copy.deepcopy(networks.vae),
        copy.deepcopy(networks.text_encoders[0]),
        tokenizer,
        settings=settings,
        defaults=defaults,
        **parts,
    )


def request(seed: int = 0, **changes: Any) -> Request:
    return Request(f"item-{seed}", CAPTIONS[0], seed, **changes)
