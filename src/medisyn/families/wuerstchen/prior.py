"""Würstchen's Stage C: text to a latent of 16 channels, one cell per 42.67 pixels. The stage that is fine-tuned.

Shapes here: B batch, C latent channels, H, W rows and columns of cells, N text tokens, E text width.
Weights have the published names; `WuerstchenPrior` of diffusers (deprecated there) opens them and gives equal outputs.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from medisyn.errors import InputError
from medisyn.families.wuerstchen.blocks import (
    AttentionBlock,
    ChannelNorm,
    ConvBlock,
    TimeBlock,
    initialise,
    time_embedding,
)
from medisyn.families.wuerstchen.config import PriorConfig


class WuerstchenPrior(ModelMixin, ConfigMixin):
    """Predicts the noise in a latent from its text. The arguments are those of `PriorConfig`."""

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        c_in: int = 16,
        c: int = 1280,
        c_cond: int = 1024,
        c_r: int = 64,
        depth: int = 16,
        nhead: int = 16,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.c_in, self.c_cond, self.c_r = c_in, c_cond, c_r
        first, last = nn.Linear(c_cond, c), nn.Linear(c, c)
        head = nn.Conv2d(c, 2 * c_in, kernel_size=1)
        self.projection = nn.Conv2d(c_in, c, kernel_size=1)
        self.cond_mapper = nn.Sequential(first, nn.LeakyReLU(0.2), last)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            self.blocks.append(ConvBlock(c, dropout=dropout))
            self.blocks.append(TimeBlock(c, c_r))
            self.blocks.append(AttentionBlock(c, c, nhead, dropout))
        self.out = nn.Sequential(ChannelNorm(), head)
        initialise(self, num_blocks=depth)
        for layer in (self.projection, first, last):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(head.weight)

    def forward(self, noisy_BCHW: torch.Tensor, times_B: torch.Tensor, text_BNE: torch.Tensor) -> torch.Tensor:
        """The predicted noise, (B, C, H, W), of latents at times in [0, 1] (1 is pure noise).

        The network gives a and b; the noise is (x - a) / (|1 - b| + 1e-5). Every text token is read: there is no mask.
        """
        _check_shapes(noisy_BCHW, times_B, text_BNE, self.c_in, self.c_cond)
        x = self.projection(noisy_BCHW)
        text = self.cond_mapper(text_BNE)
        time = time_embedding(times_B, self.c_r).to(text.dtype)
        for block in self.blocks:
            given = _condition(block, time, text)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, *given)
            else:
                x = block(x, *given)
        a, b = self.out(x).to(noisy_BCHW.dtype).chunk(2, dim=1)
        return (noisy_BCHW - a) / ((1 - b).abs() + 1e-5)


def _condition(block: nn.Module, time_BR: torch.Tensor, text_BNE: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if isinstance(block, AttentionBlock):
        return (text_BNE,)
    return (time_BR,) if isinstance(block, TimeBlock) else ()


def _check_shapes(
    noisy_BCHW: torch.Tensor, times_B: torch.Tensor, text_BNE: torch.Tensor, channels: int, text_width: int
) -> None:
    rows = noisy_BCHW.shape[0]
    if noisy_BCHW.ndim != 4 or noisy_BCHW.shape[1] != channels:
        raise InputError(f"the prior reads latents (B, {channels}, H, W), got {tuple(noisy_BCHW.shape)}")
    if times_B.shape != (rows,):
        raise InputError(f"the prior reads one time per latent, ({rows},), got {tuple(times_B.shape)}")
    if text_BNE.ndim != 3 or text_BNE.shape[0] != rows or text_BNE.shape[2] != text_width:
        raise InputError(f"the prior reads text of shape ({rows}, N, {text_width}), got {tuple(text_BNE.shape)}")


def build_prior(config: PriorConfig, seed: int = 0) -> WuerstchenPrior:
    """A Stage C with random weights; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WuerstchenPrior(**asdict(config))
