"""The sizes of Würstchen's four networks as frozen values. No torch here: presets can be listed without loading it.

The field names are those of the published config.json files, so that a file is read and written without a table.
Stage C, the prior, makes a small latent from text. Stage B, the decoder, makes from it the latent of Stage A, the
VQGAN, which makes the picture. The image encoder, an EfficientNetV2-S, defines Stage C's latent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from medisyn.errors import ConfigError

ENCODER_STRIDE = 32  # pixels that the image encoder reads per cell of Stage C's grid
BLOCK_LETTERS = "CTA"  # convolution, time, attention


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Stage C. Defaults are the published v2."""

    c_in: int = 16  # channels of the latent
    c: int = 1536
    c_cond: int = 1280  # width of the text: CLIP ViT-bigG-14
    c_r: int = 64  # width of the time embedding
    depth: int = 32
    nhead: int = 24
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if min(self.c_in, self.c, self.c_cond, self.depth, self.nhead) < 1:
            raise ConfigError(f"a prior's sizes must be at least 1, got {self}")
        if self.c % self.nhead:
            raise ConfigError(f"the prior's width c {self.c} must divide by its heads, nhead {self.nhead}")
        _check_time_width(self.c_r)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Stage B, a U-Net of `c_hidden` levels. Defaults are the published v2.

    level_config  the blocks of a level, repeated `blocks` times: C convolution, T time, A attention
    inject_effnet whether a level reads the features of the image encoder
    """

    c_in: int = 4
    c_out: int = 4
    c_r: int = 64
    patch_size: int = 2
    c_cond: int = 1024
    c_hidden: tuple[int, ...] = (320, 640, 1280, 1280)
    nhead: tuple[int, ...] = (-1, 10, 20, 20)  # -1 where a level has no attention
    blocks: tuple[int, ...] = (4, 4, 14, 4)
    level_config: tuple[str, ...] = ("CT", "CTA", "CTA", "CTA")
    inject_effnet: tuple[bool, ...] = (False, True, True, True)
    effnet_embd: int = 16
    clip_embd: int = 1024  # width of the text: CLIP ViT-H-14
    kernel_size: int = 3
    dropout: float = 0.1

    def __post_init__(self) -> None:
        per_level = (self.c_hidden, self.nhead, self.blocks, self.level_config, self.inject_effnet)
        if len({len(values) for values in per_level}) != 1 or not self.c_hidden:
            raise ConfigError(
                f"c_hidden, nhead, blocks, level_config and inject_effnet need one value per level, got "
                f"{', '.join(str(len(values)) for values in per_level)}"
            )
        for width, heads, letters in zip(self.c_hidden, self.nhead, self.level_config, strict=True):
            if not letters or set(letters) - set(BLOCK_LETTERS):
                raise ConfigError(f"level_config {letters!r} must be made of {', '.join(BLOCK_LETTERS)}")
            if "A" in letters and (heads < 1 or width % heads):
                raise ConfigError(f"a level of width {width} with attention needs heads that divide it, got {heads}")
        _check_time_width(self.c_r)

    @property
    def factor(self) -> int:
        """What the sides of Stage B's latent must divide by: 16 for the published network."""
        return int(self.patch_size * 2 ** (len(self.c_hidden) - 1))


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Stage A. Defaults are the published `vqgan_f4_v1_500k`."""

    in_channels: int = 3
    out_channels: int = 3
    up_down_scale_factor: int = 2
    levels: int = 2
    bottleneck_blocks: int = 12
    embed_dim: int = 384
    latent_channels: int = 4
    num_vq_embeddings: int = 8192
    scale_factor: float = 0.3764  # the network's own latent is this times Stage B's

    def __post_init__(self) -> None:
        if self.levels < 1 or self.embed_dim % 2 ** (self.levels - 1):
            raise ConfigError(
                f"embed_dim must halve once per level but the first, got {self.embed_dim} for {self.levels} levels"
            )
        if self.scale_factor <= 0:
            raise ConfigError(f"scale_factor must be above 0, got {self.scale_factor}")

    @property
    def factor(self) -> int:
        """Pixels per cell of its latent: 4 for the published network."""
        return int(self.up_down_scale_factor * 2 ** (self.levels - 1))


# Kind of block, expansion, stride, width in, width out, number of blocks (EfficientNetV2, table 4, as torchvision
# builds it: "fused" is Fused-MBConv without squeeze-and-excitation, "mb" is MBConv with 1/4).
Stage = tuple[str, int, int, int, int, int]
EFFICIENTNET_V2_S: tuple[Stage, ...] = (
    ("fused", 1, 1, 24, 24, 2),
    ("fused", 4, 2, 24, 48, 4),
    ("fused", 4, 2, 48, 64, 4),
    ("mb", 4, 2, 64, 128, 6),
    ("mb", 6, 1, 128, 160, 9),
    ("mb", 6, 2, 160, 256, 15),
)


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """EfficientNetV2-S and the 1 x 1 convolution to Stage C's channels. Defaults are the published v2."""

    c_latent: int = 16
    c_cond: int = 1280  # width of the last feature map
    stages: tuple[Stage, ...] = EFFICIENTNET_V2_S

    def __post_init__(self) -> None:
        width = self.stages[0][3] if self.stages else 0
        for kind, _, stride, inner, outer, count in self.stages:
            if kind not in ("fused", "mb") or stride not in (1, 2) or count < 1 or inner != width:
                raise ConfigError(
                    f"a stage is (fused or mb, expansion, stride 1 or 2, width in, width out, blocks) and starts with "
                    f"the width {width} before it, got {(kind, _, stride, inner, outer, count)}"
                )
            width = outer
        if self.stride != ENCODER_STRIDE:
            raise ConfigError(f"the image encoder must reduce its picture by {ENCODER_STRIDE}, got {self.stride}")

    @property
    def stride(self) -> int:
        """Pixels per cell: the first convolution halves, then each stage of stride 2."""
        return int(2 * math.prod(stage[2] for stage in self.stages))


def _check_time_width(c_r: int) -> None:
    if c_r < 4:
        raise ConfigError(f"the time embedding c_r must be at least 4 wide, got {c_r}")


PRIOR_V2, DECODER_V2, VQGAN_F4, IMAGE_ENCODER_V2 = PriorConfig(), DecoderConfig(), VQGANConfig(), ImageEncoderConfig()

PRIOR_TINY = PriorConfig(c_in=4, c=32, c_cond=32, c_r=8, depth=2, nhead=2, dropout=0.0)
DECODER_TINY = DecoderConfig(
    c_r=8,
    c_cond=16,
    c_hidden=(8, 16),
    nhead=(-1, 2),
    blocks=(1, 2),
    level_config=("CT", "CTA"),
    inject_effnet=(False, True),
    effnet_embd=4,
    clip_embd=32,
    dropout=0.0,
)
VQGAN_TINY = VQGANConfig(bottleneck_blocks=2, embed_dim=16, num_vq_embeddings=32)
IMAGE_ENCODER_TINY = ImageEncoderConfig(
    c_latent=4,
    c_cond=32,
    stages=(
        ("fused", 1, 1, 8, 8, 1),
        ("fused", 2, 2, 8, 12, 2),
        ("fused", 2, 2, 12, 16, 1),
        ("mb", 2, 2, 16, 24, 2),
        ("mb", 2, 2, 24, 32, 2),
    ),
)
