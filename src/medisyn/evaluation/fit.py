"""Teach a small network the classes of labelled pictures: class-balanced draws, augmentation, bf16 on the CPU.

Shapes here: N images, B batch, H, W pixels, K classes.
Used for the medical encoder and for the judge classifier, which are two networks of two makes from two seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from medisyn.errors import InputError, TrainingError
from medisyn.seeding import generator_for


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How long and how."""

    steps: int
    seed: int
    batch_size: int = 32
    learning_rate: float = 2e-3  # AdamW on 0.6 M parameters, warmed up over 5 % of the steps, then a half cosine to 0
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    balance: float = 0.5  # 0: classes as often as their images; 1: all equally often, which overrates the rarest

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise InputError(f"fitting needs at least 1 step and 1 image, got {self.steps} and {self.batch_size}")


@dataclass(frozen=True)
class View:
    """One augmentation per image of a batch, drawn before it is applied: sampling grids, colours, noise."""

    affine_B23: Tensor
    gain_B3: Tensor
    offset_B3: Tensor
    noise: float


def draw_view(generator: torch.Generator, num_images: int) -> View:
    """Mirror left-right and top-bottom, turn up to 8 degrees, zoom 0.8 to 1.1, shift 8 %, contrast ± 20 %, tint ± 12 %.

    The tint and an offset of ± 24 grey levels keep a class from being known by the stain or the lamp of its slides.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * (high - low) + low

    angle = uniform(-8, 8, num_images) * torch.pi / 180
    zoom = uniform(0.8, 1.1, num_images)
    mirror_x = torch.where(uniform(0, 1, num_images) < 0.5, -1.0, 1.0)
    mirror_y = torch.where(uniform(0, 1, num_images) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = torch.stack([torch.stack([cos * mirror_x, -sin * mirror_y]), torch.stack([sin * mirror_x, cos * mirror_y])])
    affine = torch.cat([rows.permute(2, 0, 1), uniform(-0.08, 0.08, num_images, 2, 1)], dim=2)
    grey_gain = uniform(0.8, 1.2, num_images, 1)
    return View(
        affine_B23=affine,
        gain_B3=grey_gain * uniform(0.88, 1.12, num_images, 3),
        offset_B3=uniform(-24, 24, num_images, 1).expand(num_images, 3),
        noise=float(uniform(0, 6, 1)),
    )


def apply_view(rgb_BCHW: Tensor, view: View, generator: torch.Generator) -> Tensor:
    """The batch as the view shows it, clipped to 0..255."""
    grid = nn.functional.affine_grid(view.affine_B23, list(rgb_BCHW.shape), align_corners=False)
    seen = nn.functional.grid_sample(rgb_BCHW, grid, padding_mode="reflection", align_corners=False)
    seen = (seen - 127.5) * view.gain_B3[:, :, None, None] + 127.5 + view.offset_B3[:, :, None, None]
    return (seen + view.noise * torch.randn(seen.shape, generator=generator)).clamp(0, 255)


def draw_balanced(labels_N: np.ndarray, num_images: int, rng: np.random.Generator, balance: float) -> np.ndarray:
    """Indices of a batch: a class with a chance in proportion to images^(1 - balance), then one of its images."""
    classes, counts = np.unique(labels_N, return_counts=True)
    chances = counts.astype(np.float64) ** (1.0 - balance)
    drawn = rng.choice(classes, num_images, p=chances / chances.sum())
    return np.array([rng.choice(np.flatnonzero(labels_N == label)) for label in drawn])


def learning_rate_at(step: int, settings: FitSettings) -> float:
    """Linear warm-up over the first 5 % (at least 1 step), then a half cosine that ends at 0."""
    warm = max(1, settings.steps // 20)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, settings.steps - warm)
    return settings.learning_rate * 0.5 * (1 + float(np.cos(np.pi * done)))


def fit(
    network: nn.Module,
    images_NHWC: np.ndarray,
    labels_N: np.ndarray,
    settings: FitSettings,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train `network` (float RGB 0..255 in, class scores out) and return the loss of every step.

    `images_NHWC` is uint8 RGB at the network's size. Raises TrainingError when the loss is not finite.
    """
    if len(images_NHWC) != len(labels_N) or len(np.unique(labels_N)) < 2:
        raise InputError(
            f"a classifier needs images of at least 2 classes, one label each: got {len(images_NHWC)} images, "
            f"{len(labels_N)} labels, {len(np.unique(labels_N))} classes"
        )
    rng = np.random.default_rng(settings.seed)
    draws = generator_for(settings.seed, "views")
    criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=settings.weight_decay, fused=True)
    network.train()
    _lay_out(network, torch.channels_last)
    losses = []
    for step in range(settings.steps):
        chosen = draw_balanced(labels_N, settings.batch_size, rng, settings.balance)
        rgb = torch.from_numpy(images_NHWC[chosen]).permute(0, 3, 1, 2).float()
        rgb = apply_view(rgb, draw_view(draws, len(chosen)), draws)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        with torch.autocast("cpu", torch.bfloat16):
            scores = network(rgb.contiguous(memory_format=torch.channels_last))
        loss = criterion(scores.float(), torch.from_numpy(labels_N[chosen]).long())
        if not torch.isfinite(loss):
            raise TrainingError(f"classifier: the loss at step {step} is {loss.item()}; lower the learning rate")
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if on_step is not None:
            on_step(step, losses[-1])
    _lay_out(network.eval(), torch.contiguous_format)
    return losses


def _lay_out(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Convolutions on the CPU are up to twice as fast with the channels last."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
