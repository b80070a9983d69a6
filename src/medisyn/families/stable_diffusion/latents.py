"""Pictures to latents and back through the autoencoder.

Shapes here: B pictures, C latent channels, H, W pixels, h, w latent rows and columns (H and W over the factor).
"Raw" latents are what the autoencoder makes; the denoiser works on scaled ones, with a spread near 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from medisyn.errors import InputError, ModelError
from medisyn.types import Picture, Sample


def pixels_from_samples(samples: Sequence[Sample], factor: int) -> torch.Tensor:
    """Pictures as one tensor (B, 3, H, W) in [-1, 1]; grey pictures fill all three channels.

    Raises InputError for anything but uint8 pictures of one size that divides by the autoencoder's factor.
    """
    planes = []
    for sample in samples:
        picture = sample.item
        if not isinstance(picture, Picture) or picture.array_CHW.dtype != np.uint8:
            raise InputError(f"sample {sample.key}: this model learns from uint8 pictures, got {_describe(picture)}")
        channels, height, width = picture.array_CHW.shape
        if height % factor or width % factor:
            raise InputError(
                f"sample {sample.key}: {height}x{width} pixels do not divide by the autoencoder's factor {factor}. "
                f"Curate the corpus at a size that does."
            )
        planes.append(np.broadcast_to(picture.array_CHW, (3, height, width)) if channels == 1 else picture.array_CHW)
    sizes = {plane.shape for plane in planes}
    if len(sizes) > 1:
        raise InputError(f"pictures of one batch must have one size, got {sorted(shape[1:] for shape in sizes)}")
    return torch.from_numpy(np.ascontiguousarray(np.stack(planes))).float() / 127.5 - 1


def _describe(item: Any) -> str:
    array = getattr(item, "array_CHW", None)
    return type(item).__name__ if array is None else f"a picture of {array.dtype}"


def draw_posterior(mean_BChw: torch.Tensor, logvar_BChw: torch.Tensor, noise_BChw: torch.Tensor) -> torch.Tensor:
    """A sample of the autoencoder's posterior: mean + exp(logvar / 2) * noise."""
    return mean_BChw + torch.exp(0.5 * logvar_BChw) * noise_BChw


def scale_latents(vae: Any, raw_BChw: torch.Tensor) -> torch.Tensor:
    """Raw latents as the denoiser sees them: centred and divided where the autoencoder says how, times its factor."""
    shift, spread = _statistics(vae, raw_BChw)
    return (raw_BChw - shift) / spread * vae.config.scaling_factor


def unscale_latents(vae: Any, latents_BChw: torch.Tensor) -> torch.Tensor:
    """Inverse of scale_latents."""
    shift, spread = _statistics(vae, latents_BChw)
    return latents_BChw * spread / vae.config.scaling_factor + shift


def _statistics(vae: Any, like: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    mean, deviation = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or deviation is None:
        return 0.0, 1.0
    return like.new_tensor(mean).view(1, -1, 1, 1), like.new_tensor(deviation).view(1, -1, 1, 1)


def decode_pictures(vae: Any, latents_BChw: torch.Tensor) -> list[Picture]:
    """Scaled latents as uint8 RGB pictures. Raises ModelError when a number is not finite."""
    if not torch.isfinite(latents_BChw).all():
        raise ModelError(
            "the denoiser made latents that are NaN or infinite: the training run diverged, or the weights were stored "
            "in a type too narrow for them. Use an earlier checkpoint."
        )
    pixels = vae.decode(unscale_latents(vae, latents_BChw).to(vae.dtype)).sample.float()
    if not torch.isfinite(pixels).all():
        raise ModelError(
            "the autoencoder made pixels that are NaN or infinite. The autoencoder of SDXL overflows in float16: keep "
            "it in float32 or bfloat16, or use a model whose autoencoder has the float16 fix (sdxl-vae-fp16-fix)."
        )
    array_BCHW = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return [Picture(array) for array in array_BCHW]
