"""Würstchen's Stage A: a VQGAN between pictures and a latent of 4 channels, one cell per 4 pixels. It stays frozen.

Shapes here: B batch, C channels, H, W rows and columns, K codes.
Weights have the published names; `PaellaVQModel` of diffusers (deprecated there) gives equal outputs.
Its latents have about variance 1 after `encode`; Stage B works on them divided by `config.scale_factor`.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from medisyn.errors import InputError
from medisyn.families.wuerstchen.blocks import ChannelNorm, EvalBatchNorm2d
from medisyn.families.wuerstchen.config import VQGANConfig

CELLS_AT_ONCE = 8192  # of which the distances to all codes are held at a time


class MixingBlock(nn.Module):
    """Depthwise convolution, then a two-layer network, each gated by learned scales in `gammas`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm()
        self.depthwise = nn.Sequential(
            nn.ReplicationPad2d(1), nn.Conv2d(channels, channels, kernel_size=3, groups=channels)
        )
        self.channelwise = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.gammas = nn.Parameter(torch.zeros(6))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.gammas
        x = x_BCHW + self.depthwise(self.norm(x_BCHW) * (1 + scale1) + shift1) * gate1
        mixed = (self.norm(x) * (1 + scale2) + shift2).permute(0, 2, 3, 1)
        return x + self.channelwise(mixed).permute(0, 3, 1, 2) * gate2


class Codebook(nn.Module):
    """K vectors, of which the nearest replaces each cell of a latent."""

    def __init__(self, num_codes: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, channels)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)

    def forward(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        cells = latents_BCHW.permute(0, 2, 3, 1)
        codes = self.embedding.weight
        parts = cells.flatten(0, 2).split(CELLS_AT_ONCE)
        nearest = torch.cat([torch.cdist(part, codes.to(part.dtype)).argmin(dim=1) for part in parts])
        return self.embedding(nearest).to(cells.dtype).unflatten(0, cells.shape[:3]).permute(0, 3, 1, 2)


class PaellaVQ(ModelMixin, ConfigMixin):
    """Pictures in [0, 1] to latents and back. The arguments are those of `VQGANConfig`."""

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        up_down_scale_factor: int = 2,
        levels: int = 2,
        bottleneck_blocks: int = 12,
        embed_dim: int = 384,
        latent_channels: int = 4,
        num_vq_embeddings: int = 8192,
        scale_factor: float = 0.3764,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.factor = up_down_scale_factor * 2 ** (levels - 1)
        widths = [embed_dim // 2**level for level in reversed(range(levels))]
        patch = up_down_scale_factor**2

        down: list[nn.Module] = [MixingBlock(widths[0])]
        for inner, outer in itertools.pairwise(widths):
            down += [nn.Conv2d(inner, outer, kernel_size=4, stride=2, padding=1), MixingBlock(outer)]
        to_latent = nn.Conv2d(widths[-1], latent_channels, kernel_size=1, bias=False)
        up: list[nn.Module] = [nn.Sequential(nn.Conv2d(latent_channels, widths[-1], kernel_size=1))]
        up += [MixingBlock(widths[-1]) for _ in range(bottleneck_blocks)]
        for outer, inner in zip(widths[-2::-1], widths[:0:-1], strict=True):
            up += [nn.ConvTranspose2d(inner, outer, kernel_size=4, stride=2, padding=1), MixingBlock(outer)]

        self.in_block = nn.Sequential(
            nn.PixelUnshuffle(up_down_scale_factor), nn.Conv2d(in_channels * patch, widths[0], kernel_size=1)
        )
        self.down_blocks = nn.Sequential(*down, nn.Sequential(to_latent, EvalBatchNorm2d(latent_channels)))
        self.vquantizer = Codebook(num_vq_embeddings, latent_channels)
        self.up_blocks = nn.Sequential(*up)
        self.out_block = nn.Sequential(
            nn.Conv2d(widths[0], out_channels * patch, kernel_size=1), nn.PixelShuffle(up_down_scale_factor)
        )

    def encode(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Pictures in [0, 1] as latents, not quantised. Sides must divide by `factor` (4)."""
        if pixels_BCHW.ndim != 4 or pixels_BCHW.shape[1] != self.in_channels:
            raise InputError(
                f"Stage A reads pictures (B, {self.in_channels}, H, W) in [0, 1], got {tuple(pixels_BCHW.shape)}"
            )
        if any(side % self.factor for side in pixels_BCHW.shape[2:]):
            raise InputError(f"the sides of a picture must divide by {self.factor}, got {tuple(pixels_BCHW.shape[2:])}")
        return self.down_blocks(self.in_block(pixels_BCHW))

    def quantise(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """Each cell replaced by the nearest of the codes. The published pipeline leaves this out."""
        return self.vquantizer(latents_BCHW)

    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """Latents as pictures, (B, 3, factor * H, factor * W); about [0, 1], not clamped."""
        return self.out_block(self.up_blocks(latents_BCHW))

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """The pictures as Stage A alone reconstructs them."""
        return self.decode(self.encode(pixels_BCHW))


def build_vqgan(config: VQGANConfig, seed: int = 0) -> PaellaVQ:
    """A Stage A with random weights; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PaellaVQ(**asdict(config))
