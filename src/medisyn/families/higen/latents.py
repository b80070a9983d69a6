"""Frames to latents and back through the autoencoder, a few at a time.

Shapes here: B samples, C channels, T frames, H, W pixels, h, w latent rows and columns (H and W over the factor).
"Raw" latents are what the autoencoder makes; the denoiser works on scaled ones, with a spread near 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from medisyn.errors import InputError, ModelError
from medisyn.types import Clip, Picture, Sample

FRAMES_AT_ONCE = 8  # of one clip through the autoencoder: memory does not grow with the clip


def clip_of(sample: Sample) -> Clip:
    """The sample's clip, or its picture as a clip of one frame. Raises InputError for anything but uint8 pixels."""
    item = sample.item
    if isinstance(item, Picture):
        item = Clip(item.array_CHW[:, None], item.value_range)
    if not isinstance(item, Clip) or item.array_CTHW.dtype != np.uint8 or item.array_CTHW.shape[0] not in (1, 3):
        raise InputError(
            f"sample {sample.key}: this model learns from uint8 clips and pictures, grey or RGB, got a "
            f"{type(sample.item).__name__}"
        )
    return item


def valid_of(sample: Sample, clip: Clip) -> np.ndarray:
    """The sample's mask of real pixels, (T, H, W), all 1 where it has none. InputError when its shape is another."""
    shape = clip.array_CTHW.shape[1:]
    mask = sample.masks.get("valid")
    if mask is None:
        return np.ones(shape, dtype=np.uint8)
    valid_THW = np.asarray(mask)
    if valid_THW.shape != shape:
        raise InputError(f"sample {sample.key}: the mask 'valid' has shape {valid_THW.shape}, the frames {shape}")
    return valid_THW


def without_padding(clip: Clip, valid_THW: np.ndarray) -> Clip:
    """The clip with black where its pixels are not real, whatever it holds there."""
    if (valid_THW > 0).all():
        return clip
    return dataclasses.replace(clip, array_CTHW=np.where(valid_THW[None] > 0, clip.array_CTHW, np.uint8(0)))


def pixels_of(clip: Clip) -> torch.Tensor:
    """Frames (T, 3, H, W) in [-1, 1]; grey fills all three channels."""
    array_CTHW = clip.array_CTHW
    frames_TCHW = np.broadcast_to(array_CTHW, (3, *array_CTHW.shape[1:])).transpose(1, 0, 2, 3)
    return torch.from_numpy(np.array(frames_TCHW)).float() / 127.5 - 1


def encode_frames(vae: Any, pixels_TCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log-variance of each frame's raw latent, both float32 (C, T, h, w) on the CPU."""
    means, logvars = [], []
    for part in pixels_TCHW.split(FRAMES_AT_ONCE):
        posterior = vae.encode(part.to(vae.device, vae.dtype)).latent_dist
        means.append(posterior.mean.float().cpu())
        logvars.append(posterior.logvar.float().cpu())
    return torch.cat(means).transpose(0, 1), torch.cat(logvars).transpose(0, 1)


def decode_frames(vae: Any, latents_CThw: torch.Tensor) -> np.ndarray:
    """Scaled latents of one clip as uint8 RGB frames (3, T, H, W). Raises ModelError when a number is not finite."""
    if not torch.isfinite(latents_CThw).all():
        raise ModelError(
            "the denoiser made latents that are NaN or infinite: the training run diverged, or the weights were stored "
            "in a type too narrow for them. Use an earlier checkpoint."
        )
    frames = []
    for part in latents_CThw.transpose(0, 1).split(FRAMES_AT_ONCE):
        pixels = vae.decode((part / vae.config.scaling_factor).to(vae.device, vae.dtype)).sample.float()
        if not torch.isfinite(pixels).all():
            raise ModelError(
                "the autoencoder made pixels that are NaN or infinite. Keep it in float32 or bfloat16, or use a model "
                "whose autoencoder is sound."
            )
        frames.append(((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu())
    return np.ascontiguousarray(torch.cat(frames).transpose(0, 1).numpy())


def key_frame_of(valid_THW: np.ndarray) -> int:
    """The middle of the frames that hold a real pixel (MediSyn v1 section 3.4; HiGen's code takes the first)."""
    real = np.flatnonzero(valid_THW.any(axis=(1, 2)))
    if not real.size:
        raise InputError("a clip without a single real pixel cannot be learnt from")
    return int(real[len(real) // 2])


def one_shape(samples: Sequence[Sample], clips: Sequence[Clip], factor: int) -> None:
    """Raise InputError unless all clips have one shape whose height and width divide by `factor`."""
    for sample, clip in zip(samples, clips, strict=True):
        height, width = clip.array_CTHW.shape[2:]
        if height % factor or width % factor:
            raise InputError(
                f"sample {sample.key}: {height}x{width} pixels do not divide by {factor}, as this model's latents "
                f"must. Curate the corpus at a size that does."
            )
    shapes = {clip.array_CTHW.shape[1:] for clip in clips}
    if len(shapes) > 1:
        raise InputError(f"clips of one batch must have one shape, got (T, H, W) {sorted(shapes)}")
