"""Würstchen's Stage B: from Stage C's latent and the text to the latent of Stage A. It stays frozen.

Shapes here: B batch, C channels, H, W rows and columns of Stage A's latent (one cell per 4 pixels), N text tokens,
E text width. `effnet_BCHW` are features of the image encoder at their own, smaller size.
Weights have the published names; `WuerstchenDiffNeXt` of diffusers (deprecated there) gives equal outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from medisyn.errors import InputError
from medisyn.families.wuerstchen.blocks import (
    EPS,
    AttentionBlock,
    ChannelNorm,
    ConvBlock,
    TimeBlock,
    initialise,
    time_embedding,
)
from medisyn.families.wuerstchen.config import DecoderConfig

B_FLOOR = 1e-3  # b lies in [B_FLOOR, 1 - B_FLOOR]


class WuerstchenDecoder(ModelMixin, ConfigMixin):
    """Predicts the noise in Stage A's latent. The arguments are those of `DecoderConfig`."""

    @register_to_config
    def __init__(
        self,
        c_in: int = 4,
        c_out: int = 4,
        c_r: int = 64,
        patch_size: int = 2,
        c_cond: int = 1024,
        c_hidden: Sequence[int] = (320, 640, 1280, 1280),
        nhead: Sequence[int] = (-1, 10, 20, 20),
        blocks: Sequence[int] = (4, 4, 14, 4),
        level_config: Sequence[str] = ("CT", "CTA", "CTA", "CTA"),
        inject_effnet: Sequence[bool] = (False, True, True, True),
        effnet_embd: int = 16,
        clip_embd: int = 1024,
        kernel_size: int = 3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.c_in, self.c_r, self.effnet_embd, self.clip_embd = c_in, c_r, effnet_embd, clip_embd
        self.factor = patch_size * 2 ** (len(c_hidden) - 1)
        levels = range(len(c_hidden))

        def stack(level: int, skip: int) -> list[nn.Module]:
            """The blocks of one level; the first convolution reads `skip` channels more, from the way down."""
            injected = c_cond if inject_effnet[level] else 0
            made: list[nn.Module] = []
            for number, letter in enumerate(blocks[level] * level_config[level]):
                if letter == "C":
                    extra = injected + (skip if number == 0 else 0)
                    made.append(ConvBlock(c_hidden[level], extra=extra, kernel_size=kernel_size, dropout=dropout))
                elif letter == "A":
                    made.append(AttentionBlock(c_hidden[level], c_cond, nhead[level], dropout))
                else:
                    made.append(TimeBlock(c_hidden[level], c_r))
            return made

        entry = nn.Conv2d(c_in * patch_size**2, c_hidden[0], kernel_size=1)
        head = nn.Conv2d(c_hidden[0], 2 * c_out * patch_size**2, kernel_size=1)
        mappers: list[Any] = [
            nn.Conv2d(effnet_embd, c_cond, kernel_size=1) if inject_effnet[level] else None
            for level in (*levels, *reversed(levels))
        ]

        self.clip_mapper = nn.Linear(clip_embd, c_cond)
        self.effnet_mappers = nn.ModuleList(mappers)
        self.embedding = nn.Sequential(nn.PixelUnshuffle(patch_size), entry, ChannelNorm())
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for level in levels:
            arrive = [_halve(c_hidden[level - 1], c_hidden[level])] if level > 0 else []
            self.down_blocks.append(nn.ModuleList([*arrive, *stack(level, skip=0)]))
        for level in reversed(levels):
            leave = [_double(c_hidden[level], c_hidden[level - 1])] if level > 0 else []
            skip = c_hidden[level] if level < levels[-1] else 0
            self.up_blocks.append(nn.ModuleList([*stack(level, skip), *leave]))
        self.clf = nn.Sequential(ChannelNorm(), head, nn.PixelShuffle(patch_size))

        initialise(self, num_blocks=sum(blocks))
        for layer in (self.clip_mapper, *(mapper for mapper in mappers if mapper is not None)):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.xavier_uniform_(entry.weight, 0.02)
        nn.init.zeros_(head.weight)

    def forward(
        self, noisy_BCHW: torch.Tensor, times_B: torch.Tensor, effnet_BCHW: torch.Tensor, text_BNE: torch.Tensor
    ) -> torch.Tensor:
        """The predicted noise, (B, C, H, W), of latents at times in [0, 1].

        `effnet_BCHW` are features as the image encoder gives them, not Stage C's latents; zeros stand for "no picture".
        The network gives a and b; the noise is (x - a) / b, with b between 0.001 and 0.999.
        """
        self._check_shapes(noisy_BCHW, times_B, effnet_BCHW, text_BNE)
        text = self.clip_mapper(text_BNE)
        text = F.layer_norm(text, text.shape[-1:], eps=EPS)
        time = time_embedding(times_B, self.c_r).to(text.dtype)
        x = self.embedding(noisy_BCHW)
        depth, skips, maps = len(self.down_blocks), [], []
        for level, stage in enumerate(self.down_blocks):
            stage_blocks = _modules(stage)
            if level > 0:
                x = stage_blocks.pop(0)(x)
            maps.append(_resize(effnet_BCHW, x) if self.effnet_mappers[level] is not None else None)
            x = self._level(stage_blocks, x, self._injected(level, maps[level]), None, time, text)
            skips.append(x)
        for number, stage in enumerate(self.up_blocks):
            level, stage_blocks = depth - 1 - number, _modules(stage)
            leave = stage_blocks.pop() if level > 0 else None
            skip = skips[level] if number > 0 else None
            x = self._level(stage_blocks, x, self._injected(depth + number, maps[level]), skip, time, text)
            x = x if leave is None else leave(x)
        a, b = self.clf(x).to(noisy_BCHW.dtype).chunk(2, dim=1)
        return (noisy_BCHW - a) / (b.sigmoid() * (1 - 2 * B_FLOOR) + B_FLOOR)

    def _injected(self, number: int, map_BCHW: torch.Tensor | None) -> torch.Tensor | None:
        """The picture's features in the width that a level reads, where it reads any."""
        return None if map_BCHW is None else self.effnet_mappers[number](map_BCHW)

    @staticmethod
    def _level(
        blocks: Iterable[nn.Module],
        x: torch.Tensor,
        injected: torch.Tensor | None,
        skip: torch.Tensor | None,
        time: torch.Tensor,
        text: torch.Tensor,
    ) -> torch.Tensor:
        for number, block in enumerate(blocks):
            if isinstance(block, ConvBlock):
                given = [part for part in (skip if number == 0 else None, injected) if part is not None]
                x = block(x, torch.cat([part.to(x.dtype) for part in given], dim=1) if given else None)
            else:
                x = block(x, text if isinstance(block, AttentionBlock) else time)
        return x

    def _check_shapes(
        self, noisy_BCHW: torch.Tensor, times_B: torch.Tensor, effnet_BCHW: torch.Tensor, text_BNE: torch.Tensor
    ) -> None:
        rows = noisy_BCHW.shape[0]
        if noisy_BCHW.ndim != 4 or noisy_BCHW.shape[1] != self.c_in:
            raise InputError(f"Stage B reads latents (B, {self.c_in}, H, W), got {tuple(noisy_BCHW.shape)}")
        if any(side % self.factor for side in noisy_BCHW.shape[2:]):
            raise InputError(f"Stage B's latents divide by {self.factor}, got {tuple(noisy_BCHW.shape[2:])}")
        if times_B.shape != (rows,):
            raise InputError(f"Stage B reads one time per latent, ({rows},), got {tuple(times_B.shape)}")
        if effnet_BCHW.ndim != 4 or effnet_BCHW.shape[:2] != (rows, self.effnet_embd):
            raise InputError(
                f"Stage B reads features ({rows}, {self.effnet_embd}, h, w), got {tuple(effnet_BCHW.shape)}"
            )
        if text_BNE.ndim != 3 or text_BNE.shape[0] != rows or text_BNE.shape[2] != self.clip_embd:
            raise InputError(f"Stage B reads text of shape ({rows}, N, {self.clip_embd}), got {tuple(text_BNE.shape)}")


def _modules(stage: Any) -> list[nn.Module]:
    return list(stage)


def _halve(inner: int, outer: int) -> nn.Module:
    return nn.Sequential(ChannelNorm(), nn.Conv2d(inner, outer, kernel_size=2, stride=2))


def _double(inner: int, outer: int) -> nn.Module:
    return nn.Sequential(ChannelNorm(), nn.ConvTranspose2d(inner, outer, kernel_size=2, stride=2))


def _resize(effnet_BCHW: torch.Tensor, like_BCHW: torch.Tensor) -> torch.Tensor:
    """Features at the size of `like_BCHW`; bicubic with corners aligned, as the published weights were trained."""
    size = like_BCHW.shape[-2:]
    resized = F.interpolate(effnet_BCHW.float(), size=size, mode="bicubic", antialias=True, align_corners=True)
    return resized.to(effnet_BCHW.dtype)


def build_decoder(config: DecoderConfig, seed: int = 0) -> WuerstchenDecoder:
    """A Stage B with random weights; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WuerstchenDecoder(**asdict(config))
