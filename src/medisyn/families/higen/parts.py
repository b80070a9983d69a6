"""Whether the parts of a HiGen model belong together, and settings back from JSON."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from medisyn.errors import ModelError
from medisyn.families.higen.config import ClipGrid
from medisyn.families.higen.settings import HiGenDefaults

T = TypeVar("T")


def vae_factor(vae: Any) -> int:
    """Pixels per latent along each side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def unet_factor(unet: Any) -> int:
    """What the height and width of a latent must divide by."""
    return int(2 ** (len(unet.config["multipliers"]) - 1))


def check_parts(unet: Any, vae: Any, text_encoder: Any, grid: ClipGrid, defaults: HiGenDefaults) -> None:
    pairs = {
        "latent channels": (unet.config["latent_channels"], vae.config.latent_channels, "autoencoder makes"),
        "text width": (unet.config["text_width"], text_encoder.config.hidden_size, "text encoder makes"),
    }
    for what, (read, made, maker) in pairs.items():
        if read != made:
            raise ModelError(f"{what}: the U-Net reads {read}, the {maker} {made}: they do not belong together")
    frames = unet.config["frames"]
    if frames is not None and grid.frames != frames:
        raise ModelError(f"the U-Net's weights know clips of {frames} frames, the grid has {grid.frames}")
    factor = vae_factor(vae) * unet_factor(unet)
    if grid.height % factor or grid.width % factor:
        raise ModelError(f"height and width of the clips must divide by {factor}, got {grid.height} x {grid.width}")
    if defaults.overlap >= grid.frames:
        raise ModelError(f"overlap must be below the {grid.frames} frames of a window, got {defaults.overlap}")


def from_json(kind: type[T], values: dict[str, Any]) -> T:
    """Settings from JSON. Raises ModelError for a key that they do not have."""
    allowed = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in allowed:
            raise ModelError(f"higen.json: {name!r} is no setting of {kind.__name__}, allowed: {', '.join(allowed)}")
    return kind(**values)
