"""The blocks of Würstchen's Stages C and B: depthwise convolution, time, and attention to the text.

Shapes here: B batch, C channels, H, W rows and columns, S image tokens (H * W), N text tokens, E text width.
The names of submodules are those of the published weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

EPS = 1e-6  # of every normalisation
MAX_POSITION = 10000


def time_embedding(times_B: torch.Tensor, width: int) -> torch.Tensor:
    """Sines, then cosines, of 10000 t at width // 2 frequencies from 1 down to 1/10000; (B, width) in float32.

    An odd width ends in a column of zeros.
    """
    half = width // 2
    steps = torch.arange(half, device=times_B.device, dtype=torch.float32)
    frequencies = torch.exp(-math.log(MAX_POSITION) / (half - 1) * steps)
    angles = MAX_POSITION * times_B[:, None].float() * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


class ChannelNorm(nn.Module):
    """Each position's channels to mean 0 and variance 1; it has no weights."""

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        return F.layer_norm(x_BHWC, x_BHWC.shape[-1:], eps=EPS).permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """Global response normalisation (ConvNeXt V2): a channel that is strong over the picture is made stronger."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        strength_B11C = torch.linalg.vector_norm(x_BHWC, dim=(1, 2), keepdim=True)
        relative = strength_B11C / (strength_B11C.mean(dim=-1, keepdim=True) + EPS)
        return x_BHWC + self.gamma * (x_BHWC * relative) + self.beta


def channel_mixer(inner: int, channels: int, dropout: float) -> nn.Sequential:
    """The two-layer network that every position goes through; 4 times wider inside."""
    wide = 4 * channels
    return nn.Sequential(
        nn.Linear(inner, wide), nn.GELU(), ResponseNorm(wide), nn.Dropout(dropout), nn.Linear(wide, channels)
    )


class ConvBlock(nn.Module):
    """Depthwise convolution, then the channel mixer, beside a skip.

    `extra` channels of another map are given to the mixer after the convolution (Stage B only).
    """

    def __init__(self, channels: int, *, extra: int = 0, kernel_size: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = ChannelNorm()
        self.channelwise = channel_mixer(channels + extra, channels, dropout)

    def forward(self, x_BCHW: torch.Tensor, extra_BCHW: torch.Tensor | None = None) -> torch.Tensor:
        mixed = self.norm(self.depthwise(x_BCHW))
        if extra_BCHW is not None:
            mixed = torch.cat([mixed, extra_BCHW.to(mixed.dtype)], dim=1)
        return x_BCHW + self.channelwise(mixed.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TimeBlock(nn.Module):
    """x * (1 + scale) + shift, both from the time embedding."""

    def __init__(self, channels: int, time_width: int) -> None:
        super().__init__()
        self.mapper = nn.Linear(time_width, 2 * channels)

    def forward(self, x_BCHW: torch.Tensor, time_BR: torch.Tensor) -> torch.Tensor:
        scale, shift = self.mapper(time_BR)[:, :, None, None].chunk(2, dim=1)
        return x_BCHW * (1 + scale) + shift


class Attention(nn.Module):
    """Multi-head attention with biases, under the names that diffusers gives its weights."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(dropout))

    def forward(self, tokens_BSC: torch.Tensor, read_BLC: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(tokens_BSC), self.to_k(read_BLC), self.to_v(read_BLC))
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class AttentionBlock(nn.Module):
    """Every position reads all positions and the text, in one attention over both. The text has no mask."""

    def __init__(self, channels: int, text_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = ChannelNorm()
        self.attention = Attention(channels, heads, dropout)
        self.kv_mapper = nn.Sequential(nn.SiLU(), nn.Linear(text_width, channels))

    def forward(self, x_BCHW: torch.Tensor, text_BNE: torch.Tensor) -> torch.Tensor:
        tokens_BSC = self.norm(x_BCHW).flatten(2).transpose(1, 2)
        text_BNC = self.kv_mapper(text_BNE)
        out_BSC = self.attention(tokens_BSC, torch.cat([tokens_BSC.to(text_BNC.dtype), text_BNC], dim=1))
        return x_BCHW + out_BSC.transpose(1, 2).unflatten(2, x_BCHW.shape[-2:])


class EvalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the stored statistics, also when what holds it is put in training mode."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps=eps)
        self.train(False)

    def train(self, mode: bool = True) -> EvalBatchNorm2d:
        return super().train(False)


def initialise(network: Any, *, num_blocks: int) -> None:
    """The published start of both stages: Xavier weights and zero biases; blocks that begin near the identity.

    The last layer of each ConvBlock is scaled by 1 / sqrt(num_blocks), and time starts without effect.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, ConvBlock):
            last: Any = module.channelwise[-1]
            with torch.no_grad():
                last.weight.mul_(num_blocks**-0.5)
        elif isinstance(module, TimeBlock):
            nn.init.zeros_(module.mapper.weight)
