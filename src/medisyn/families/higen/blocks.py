"""The parts of HiGen's U-Net: Stable Diffusion 2's blocks on single frames, and blocks through time between them.

Shapes here: B clips, T frames, F = B * T frames (clip after clip), C channels, H, W height, width, S tokens, N text
tokens, E width of what is read, V time embedding width, A heads, K width per head.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F

Module = TypeVar("Module", bound=nn.Module)
PIXELS_AT_ONCE = 32768  # through time: attention kernels of CUDA take at most 65,535 rows


def sinusoids(values: torch.Tensor, width: int) -> torch.Tensor:
    """Cosines, then sines, of each value at `width` / 2 frequencies from 1 towards 1/10000; a new last axis."""
    steps = torch.arange(width // 2, device=values.device, dtype=torch.float32)
    angles = values.float()[..., None] * 10000.0 ** (-steps / (width // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def embedding_mlp(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inner, outer), nn.SiLU(), nn.Linear(outer, outer))


def zeroed(module: Module) -> Module:
    """The module with all weights 0: it starts by adding nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResidualBlock(nn.Module):
    """Two convolutions within each frame beside a skip; the frame's time embedding is added between them."""

    def __init__(self, inner: int, outer: int, *, time_width: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.time_proj = nn.Linear(time_width, outer)
        self.norm2 = nn.GroupNorm(groups, outer)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(outer, outer, 3, padding=1))
        self.skip = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x_FCHW: torch.Tensor, time_FV: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x_FCHW))) + self.time_proj(F.silu(time_FV))[:, :, None, None]
        return self.skip(x_FCHW) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class TemporalConv(nn.Module):
    """Four convolutions of each pixel with itself in the frames before and after; adds nothing at the start.

    They run over (T, H * W), which is the published convolution over (T, H, W) and up to twice as fast on a CPU.
    """

    def __init__(self, channels: int, *, groups: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels) for _ in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)) for _ in range(4))
        zeroed(self.convs[-1])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_FCHW: torch.Tensor, frames: int) -> torch.Tensor:
        h_BCTS = _clips(x_FCHW, frames).flatten(3)
        for number, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            h_BCTS = F.silu(norm(h_BCTS))
            h_BCTS = conv(h_BCTS if number == 0 else self.dropout(h_BCTS))
        return x_FCHW + _frames(h_BCTS).view_as(x_FCHW)


class Attention(nn.Module):
    """Tokens read other tokens, of the same clip or of a text."""

    def __init__(self, width: int, heads: int, head_width: int, read_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_k = nn.Linear(read_width or width, heads * head_width, bias=False)
        self.to_v = nn.Linear(read_width or width, heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width)

    def forward(self, x_BSC: torch.Tensor, read_BNE: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(x_BSC), self.to_k(read_BNE), self.to_v(read_BNE))
        )
        read_BASK = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(read_BASK.transpose(1, 2).flatten(-2))


class GatedFeedForward(nn.Module):
    """Four times the width, half of it a gate (GEGLU), and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Linear(width, 8 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x_BSC: torch.Tensor) -> torch.Tensor:
        h, gate = self.wide(x_BSC).chunk(2, dim=-1)
        return self.narrow(h * F.gelu(gate))


class TransformerLayer(nn.Module):
    """Two attentions and a feed-forward. `reads` are the widths of what each attention reads; None: itself."""

    def __init__(self, width: int, heads: int, head_width: int, reads: tuple[int | None, int | None]) -> None:
        super().__init__()
        self.reads = reads
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, head_width, reads[0])
        self.attn2 = Attention(width, heads, head_width, reads[1])
        self.ff = GatedFeedForward(width)

    def forward(self, x_BSC: torch.Tensor, read_BNE: torch.Tensor | None = None) -> torch.Tensor:
        for norm, attention, width in zip((self.norm1, self.norm2), (self.attn1, self.attn2), self.reads, strict=True):
            normed = norm(x_BSC)
            x_BSC = x_BSC + attention(normed, normed if width is None else read_BNE)
        return x_BSC + self.ff(self.norm3(x_BSC))


class SpatialTransformer(nn.Module):
    """The tokens of each frame read each other, then the text."""

    def __init__(self, channels: int, *, heads: int, head_width: int, context_width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.enter = nn.Linear(channels, heads * head_width)
        self.layer = TransformerLayer(heads * head_width, heads, head_width, (None, context_width))
        self.leave = zeroed(nn.Linear(heads * head_width, channels))

    def forward(self, x_FCHW: torch.Tensor, text_FNE: torch.Tensor) -> torch.Tensor:
        h_FSC = self.layer(self.enter(self.norm(x_FCHW).flatten(2).transpose(1, 2)), text_FNE)
        return x_FCHW + self.leave(h_FSC).transpose(1, 2).view_as(x_FCHW)


class TemporalTransformer(nn.Module):
    """Each pixel reads itself in all frames, twice; adds nothing at the start. It knows no order of the frames."""

    def __init__(self, channels: int, *, heads: int, head_width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.enter = nn.Linear(channels, heads * head_width)
        self.layer = TransformerLayer(heads * head_width, heads, head_width, (None, None))
        self.leave = zeroed(nn.Linear(heads * head_width, channels))

    def forward(self, x_FCHW: torch.Tensor, frames: int) -> torch.Tensor:
        normed_BCTHW = self.norm(_clips(x_FCHW, frames))
        batch, _, _, height, width = normed_BCTHW.shape
        pixels_BTC = normed_BCTHW.permute(0, 3, 4, 2, 1).flatten(0, 2)  # one row of T tokens per pixel
        h_BTC = torch.cat([self.leave(self.layer(self.enter(part))) for part in pixels_BTC.split(PIXELS_AT_ONCE)])
        return x_FCHW + _frames(h_BTC.unflatten(0, (batch, height, width)).permute(0, 4, 3, 1, 2))


def _clips(x_FCHW: torch.Tensor, frames: int) -> torch.Tensor:
    return x_FCHW.unflatten(0, (-1, frames)).transpose(1, 2)


def _frames(x_BCT: torch.Tensor) -> torch.Tensor:
    return x_BCT.transpose(1, 2).flatten(0, 1).contiguous()


class SpaceTimeBlock(nn.Module):
    """A residual block and, where the level has it, attention within frames; each followed by its block through time.

    With one frame the blocks through time are left out, as published: there they are computed and multiplied by 0.
    """

    def __init__(
        self,
        residual: ResidualBlock,
        temporal_conv: TemporalConv,
        spatial: SpatialTransformer | None = None,
        temporal: TemporalTransformer | None = None,
    ) -> None:
        super().__init__()
        self.residual, self.temporal_conv = residual, temporal_conv
        self.spatial, self.temporal = spatial, temporal

    def forward(self, x_FCHW: torch.Tensor, time_FV: torch.Tensor, text_FNE: torch.Tensor, frames: int) -> torch.Tensor:
        x_FCHW = self.residual(x_FCHW, time_FV)
        if frames > 1:
            x_FCHW = self.temporal_conv(x_FCHW, frames)
        if self.spatial is not None:
            x_FCHW = self.spatial(x_FCHW, text_FNE)
        if self.temporal is not None and frames > 1:
            x_FCHW = self.temporal(x_FCHW, frames)
        return x_FCHW


class Double(nn.Module):
    """Twice the height and width, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x_FCHW, scale_factor=2.0, mode="nearest"))


class TextResampler(nn.Module):
    """A caption of any number of tokens as a few: learned tokens read it, twice per layer."""

    def __init__(
        self, text_width: int, width: int, context_width: int, *, tokens: int, blocks: int, heads: int
    ) -> None:
        super().__init__()
        self.tokens = nn.Parameter(width**-0.5 * torch.randn(1, tokens, width))
        self.enter = nn.Linear(text_width, width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, heads, width // heads, (width, width)) for _ in range(blocks)
        )
        self.leave = nn.Linear(width, context_width)

    def forward(self, text_BNE: torch.Tensor) -> torch.Tensor:
        read_BNE = self.enter(text_BNE)
        tokens = self.tokens.expand(text_BNE.shape[0], -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, read_BNE)
        return self.leave(tokens)
