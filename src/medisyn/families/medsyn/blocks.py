"""The parts of MedSyn's U-Nets: factorised residual blocks, attention at the bottom, resizing in the slice.

Shapes here: B batch, C channels, D, H, W depth, height, width, S tokens of one slice, T report tokens, E text width,
N heads, K width per head, V time embedding width.
Arrays stay in the default memory layout: with bfloat16 on a CPU, convolutions in channels_last_3d are at most a
quarter faster, and group normalisation up to five times slower.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

IN_SLICE, IN_SPACE = (1, 3, 3), (3, 3, 3)  # kernels: within each slice, and through slices too


class TimeEmbedding(nn.Module):
    """Sines, then cosines, of the time at `width` / 2 frequencies from 1 down to 1/10000."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, times_B: torch.Tensor) -> torch.Tensor:
        half = self.width // 2
        steps = torch.arange(half, device=times_B.device, dtype=torch.float32)
        angles = times_B[:, None].float() * torch.exp(-math.log(10000) / (half - 1) * steps)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class ConvBlock(nn.Module):
    """Convolution, group normalisation, x * (scale + 1) + shift where the time asks for it, SiLU."""

    def __init__(self, inner: int, outer: int, kernel: tuple[int, int, int], groups: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(inner, outer, kernel, padding=(kernel[0] // 2, kernel[1] // 2, kernel[2] // 2))
        self.norm = nn.GroupNorm(groups, outer)

    def forward(
        self, x_BCDHW: torch.Tensor, scale_shift: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> torch.Tensor:
        x = self.norm(self.proj(x_BCDHW))
        if scale_shift is not None:
            scale, shift = scale_shift
            x = torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype) + 1)
        return F.silu(x)


class ResidualBlock(nn.Module):
    """Two ConvBlocks beside a skip; the first is modulated by the time embedding, where `time_width` is not 0."""

    def __init__(
        self, inner: int, outer: int, *, kernel: tuple[int, int, int], groups: int, time_width: int = 0
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_width, 2 * outer)) if time_width else None
        self.block1 = ConvBlock(inner, outer, kernel, groups)
        self.block2 = ConvBlock(outer, outer, kernel, groups)
        self.res_conv = nn.Conv3d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x_BCDHW: torch.Tensor, time_BV: torch.Tensor | None = None) -> torch.Tensor:
        scale_shift = None
        if self.mlp is not None:
            scale, shift = self.mlp(time_BV)[:, :, None, None, None].chunk(2, dim=1)
            scale_shift = (scale, shift)
        return self.block2(self.block1(x_BCDHW, scale_shift)) + self.res_conv(x_BCDHW)


class SliceAttention(nn.Module):
    """Each slice's tokens read each other; slices do not meet. One such module serves all blocks of the middle."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, x_BDSC: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(2, 3) for part in self.to_qkv(x_BDSC).chunk(3, -1))
        read_BDNSK = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(read_BDNSK.transpose(2, 3).flatten(-2))


class TextAttention(nn.Module):
    """Every voxel of the bottom reads the report. Keys and values are the same for all slices, so slices are merged.

    All T positions are read, also those after the report's end: the published weights were trained so.
    """

    def __init__(self, width: int, text_width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(text_width, 2 * heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width)

    def forward(self, x_BDSC: torch.Tensor, text_BTE: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(x_BDSC.flatten(1, 2)), *self.to_kv(text_BTE).chunk(2, -1))
        )
        read_BNSK = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(read_BNSK.transpose(1, 2).flatten(-2)).view_as(x_BDSC)


class MiddleBlock(nn.Module):
    """Attention within the slice, attention to the report where there is one, and a block through slices."""

    def __init__(
        self, width: int, *, text_width: int, heads: int, head_width: int, groups: int, time_width: int
    ) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width, bias=False)
        self.text_norm = nn.LayerNorm(width, bias=False) if text_width else None
        self.text_attention = TextAttention(width, text_width, heads, head_width) if text_width else None
        self.space = ResidualBlock(width, width, kernel=IN_SPACE, groups=groups, time_width=time_width)

    def forward(
        self,
        x_BCDHW: torch.Tensor,
        time_BV: torch.Tensor,
        self_attention: SliceAttention,
        text_BTE: torch.Tensor | None,
    ) -> torch.Tensor:
        height = x_BCDHW.shape[3]
        tokens_BDSC = x_BCDHW.permute(0, 2, 3, 4, 1).flatten(2, 3)
        tokens_BDSC = tokens_BDSC + self_attention(self.self_norm(tokens_BDSC))
        if self.text_attention is not None and self.text_norm is not None:
            tokens_BDSC = tokens_BDSC + self.text_attention(self.text_norm(tokens_BDSC), text_BTE)
        x_BCDHW = tokens_BDSC.unflatten(2, (height, -1)).permute(0, 4, 1, 2, 3).contiguous()
        return self.space(x_BCDHW, time_BV)


def halve_slice(channels: int) -> nn.Module:
    """Half the height and width; the depth stays."""
    return nn.Conv3d(channels, channels, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))


def double_slice(channels: int) -> nn.Module:
    """Twice the height and width; the depth stays."""
    return nn.ConvTranspose3d(channels, channels, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))
