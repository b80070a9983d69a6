"""HiGen's U-Net: noise to video, by Stable Diffusion 2's spatial blocks with blocks through time between them.

Shapes here: B clips, C latent channels, T frames, H, W height and width of the latents, F = B * T frames, N text
tokens, E text width, V time embedding width, P points of an appearance row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from medisyn.errors import InputError
from medisyn.families.higen.blocks import (
    Double,
    ResidualBlock,
    SpaceTimeBlock,
    SpatialTransformer,
    TemporalConv,
    TemporalTransformer,
    TextResampler,
    embedding_mlp,
    sinusoids,
    zeroed,
)
from medisyn.families.higen.config import UNetConfig


class Level(nn.Module):
    """The blocks of one size, and what changes the size after them."""

    def __init__(self, blocks: list[SpaceTimeBlock], resize: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resize = resize


class HiGenUNet(ModelMixin, ConfigMixin):
    """Predicts v = alpha * noise - sigma * clean of a clip's latents, or of one picture's (T = 1).

    The conditions that HiGen adds to a text start without effect, as do all blocks through time: a fresh network on
    the weights of Stable Diffusion 2 makes T independent pictures.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        width: int = 320,
        multipliers: tuple[int, ...] = (1, 2, 4, 4),
        blocks: int = 2,
        attention_levels: tuple[int, ...] = (0, 1, 2),
        head_width: int = 64,
        stem_heads: int = 8,
        latent_channels: int = 4,
        text_width: int = 1024,
        context_width: int = 1024,
        text_tokens: int = 16,
        text_blocks: int = 2,
        text_heads: int = 8,
        pooled_text: bool = False,
        appearance_points: int = 32,
        norm_groups: int = 32,
        dropout: float = 0.1,
        frames: int | None = None,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        widths, time_width = [width * m for m in multipliers], 4 * width
        last = len(widths) - 1

        def block(inner: int, outer: int, attends: bool) -> SpaceTimeBlock:
            residual = ResidualBlock(inner, outer, time_width=time_width, groups=norm_groups, dropout=dropout)
            conv = TemporalConv(outer, groups=norm_groups, dropout=dropout)
            if not attends:
                return SpaceTimeBlock(residual, conv)
            shape = {"heads": outer // head_width, "head_width": head_width, "groups": norm_groups}
            spatial = SpatialTransformer(outer, context_width=context_width, **shape)
            return SpaceTimeBlock(residual, conv, spatial, TemporalTransformer(outer, **shape))

        self.time_mlp = embedding_mlp(width, time_width)
        self.motion_mlp = embedding_mlp(width, time_width)
        self.appearance_mlp = embedding_mlp(appearance_points, time_width)
        zeroed(self.motion_mlp[-1]), zeroed(self.appearance_mlp[-1])
        if pooled_text:
            self.text_mlp = nn.Sequential(nn.LayerNorm(text_width), *embedding_mlp(text_width, time_width))
            zeroed(self.text_mlp[-1])
        self.resampler = TextResampler(
            text_width, time_width, context_width, tokens=text_tokens, blocks=text_blocks, heads=text_heads
        )
        self.stem = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.prior_conv = zeroed(nn.Conv2d(latent_channels, width, 3, padding=1))
        self.stem_temporal = TemporalTransformer(width, heads=stem_heads, head_width=head_width, groups=norm_groups)

        self.downs, skips, channels = nn.ModuleList(), [width], width
        for level, outer in enumerate(widths):
            made = [block(channels if n == 0 else outer, outer, level in attention_levels) for n in range(blocks)]
            halve = None if level == last else nn.Conv2d(outer, outer, 3, stride=2, padding=1)
            self.downs.append(Level(made, halve))
            skips += [outer] * (blocks if halve is None else blocks + 1)
            channels = outer

        self.middle = nn.ModuleList([block(channels, channels, True), block(channels, channels, False)])

        self.ups = nn.ModuleList()
        for level, outer in reversed(list(enumerate(widths))):
            made = []
            for _ in range(blocks + 1):
                made.append(block(channels + skips.pop(), outer, level in attention_levels))
                channels = outer
            self.ups.append(Level(made, None if level == 0 else Double(outer)))

        head = zeroed(nn.Conv2d(width, latent_channels, 3, padding=1))
        self.head = nn.Sequential(nn.GroupNorm(norm_groups, width), nn.SiLU(), head)

    def forward(
        self,
        noisy_BCTHW: torch.Tensor,
        times_B: torch.Tensor,
        *,
        text_BNE: torch.Tensor,
        prior_BCHW: torch.Tensor | None = None,
        motion_BT: torch.Tensor | None = None,
        appearance_BTT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """v, (B, C, T, H, W).

        times_B         steps of the training schedule, 0 to 999
        text_BNE        the text encoder's hidden states, any number of tokens
        prior_BCHW      latent of the key frame; None: zeros, there is none
        motion_BT       motion value of each of the T - 1 gaps between frames; None: 0, as for pictures
        appearance_BTT  similarity of each frame to each; None: ones, as for pictures
        A row of either that holds NaN is not told; only weights that were trained so know what to do then.
        """
        self._check(noisy_BCTHW, times_B, text_BNE, prior_BCHW, motion_BT, appearance_BTT)
        batch, _, frames, _, _ = noisy_BCTHW.shape
        x = noisy_BCTHW.transpose(1, 2).flatten(0, 1)
        time_FV = self._embed(times_B, text_BNE, frames, motion_BT, appearance_BTT, x.dtype)
        text_FNE = self.resampler(text_BNE.to(x.dtype)).repeat_interleave(frames, dim=0)
        prior_BCHW = noisy_BCTHW.new_zeros(noisy_BCTHW[:, :, 0].shape) if prior_BCHW is None else prior_BCHW

        x = self.stem(x) + self.prior_conv(prior_BCHW.to(x.dtype)).repeat_interleave(frames, dim=0)
        if frames > 1:
            x = self._run(self.stem_temporal, x, frames)

        skips = [x]
        for level in self.downs:
            for block in level.blocks:  # type: ignore[union-attr]
                x = self._run(block, x, time_FV, text_FNE, frames)
                skips.append(x)
            if level.resize is not None:
                x = level.resize(x)  # type: ignore[operator]
                skips.append(x)

        for block in self.middle:
            x = self._run(block, x, time_FV, text_FNE, frames)

        for level in self.ups:
            for block in level.blocks:  # type: ignore[union-attr]
                x = self._run(block, torch.cat([x, skips.pop()], dim=1), time_FV, text_FNE, frames)
            if level.resize is not None:
                x = level.resize(x)  # type: ignore[operator]

        v_BCTHW = self.head(x).unflatten(0, (batch, frames)).transpose(1, 2)
        return v_BCTHW if frames > 1 else v_BCTHW + self._temporal_zero()

    def temporal_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and weights of the blocks through time, which a single picture does not use."""
        return ((name, parameter) for name, parameter in self.named_parameters() if "temporal" in name)

    def _run(self, block: nn.Module, *inputs: torch.Tensor | int) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    def _embed(
        self,
        times_B: torch.Tensor,
        text_BNE: torch.Tensor,
        frames: int,
        motion_BT: torch.Tensor | None,
        appearance_BTT: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """What each frame is told of the time, the motion around it and its likeness to the others, (F, V).

        With `pooled_text` also of the caption, by the mean of its states.
        """
        if appearance_BTT is None:
            appearance_BTT = torch.ones(len(times_B), frames, frames, device=times_B.device)
        if motion_BT is None:
            motion_BT = torch.zeros(len(times_B), frames - 1, device=times_B.device)
        rows_BTP = resample_rows(appearance_BTT.float().nan_to_num(), self.config["appearance_points"])
        likeness_BTV = nothing_where_untold(self.appearance_mlp(rows_BTP.to(dtype)), appearance_BTT)
        gaps_BTV = motion_per_frame(motion_BT.nan_to_num(), self.config["width"])
        motion_BTV = nothing_where_untold(self.motion_mlp(gaps_BTV.to(dtype)), motion_BT)
        time_BV = self.time_mlp(sinusoids(times_B, self.config["width"]).to(dtype))
        if self.config["pooled_text"]:
            time_BV = time_BV + self.text_mlp(text_BNE.mean(dim=1).to(dtype))
        return (time_BV[:, None] + motion_BTV + likeness_BTV).flatten(0, 1)

    def _temporal_zero(self) -> torch.Tensor | float:
        """0, with every block through time behind it: with pictures on some workers and clips on others, each weight
        then has a gradient everywhere, of 0 where it was not used."""
        if not torch.is_grad_enabled():
            return 0.0
        used = [parameter.flatten()[0] for _, parameter in self.temporal_parameters() if parameter.requires_grad]
        return 0.0 * torch.stack(used).sum() if used else 0.0

    def _check(
        self,
        noisy_BCTHW: torch.Tensor,
        times_B: torch.Tensor,
        text_BNE: torch.Tensor,
        prior_BCHW: torch.Tensor | None,
        motion_BT: torch.Tensor | None,
        appearance_BTT: torch.Tensor | None,
    ) -> None:
        channels, factor = self.config["latent_channels"], 2 ** (len(self.config["multipliers"]) - 1)
        shape = tuple(noisy_BCTHW.shape)
        if len(shape) != 5 or shape[1] != channels or shape[3] % factor or shape[4] % factor:
            raise InputError(
                f"the network takes (B, {channels}, T, H, W) with H and W multiples of {factor}, got {shape}"
            )
        batch, _, frames, height, width = shape
        check_frames(frames, self.config["frames"])
        if text_BNE.ndim != 3 or text_BNE.shape[-1] != self.config["text_width"]:
            raise InputError(f"the text must be (B, N, {self.config['text_width']}), got {tuple(text_BNE.shape)}")
        for name, given, wanted in (
            ("times", times_B, (batch,)),
            ("the text", text_BNE[:, 0, 0], (batch,)),
            ("the prior", prior_BCHW, (batch, channels, height, width)),
            ("the motion", motion_BT, (batch, frames - 1)),
            ("the appearance", appearance_BTT, (batch, frames, frames)),
        ):
            if given is not None and tuple(given.shape) != wanted:
                raise InputError(f"{name} must have shape {wanted} for these latents, got {tuple(given.shape)}")


def check_frames(frames: int, trained: int | None) -> None:
    """Raises InputError for a clip length that the weights cannot do; `trained` None: they can do any."""
    if trained is not None and frames not in (1, trained):
        raise InputError(
            f"these weights were trained on clips of {trained} frames and on pictures, got {frames} frames. Ask for "
            f"{trained} or more (longer clips are made of overlapping windows), or train weights of your own."
        )


def motion_per_frame(motion_BT: torch.Tensor, width: int) -> torch.Tensor:
    """The motion values of T - 1 gaps as sinusoids of `width` numbers for T frames, interpolated linearly between the
    gaps (the sinusoids, as published, not the values). No gap, a picture: motion 0."""
    frames = motion_BT.shape[1] + 1
    if frames == 1:
        return sinusoids(motion_BT.new_zeros(len(motion_BT), 1), width)
    gaps_BVT = sinusoids(motion_BT, width).transpose(1, 2)
    return F.interpolate(gaps_BVT, size=frames, mode="linear", align_corners=False).transpose(1, 2)


def nothing_where_untold(embedding_BTV: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """0 for the rows (B, ...) of the condition that hold NaN, which says that the clip is not told it."""
    told_B = ~condition.flatten(1).isnan().any(dim=1)
    return torch.where(told_B[:, None, None], embedding_BTV, 0.0)


def resample_rows(matrix_BTT: torch.Tensor, points: int) -> torch.Tensor:
    """Each row of the appearance matrix at `points` equal steps from the first frame to the last, linearly, so that
    clips of any length are told alike; (B, T, P). With T = P, as published, the rows themselves; with one frame its
    value everywhere."""
    frames = matrix_BTT.shape[-1]
    if frames == points:
        return matrix_BTT
    if frames == 1:
        return matrix_BTT.expand(-1, -1, points)
    return F.interpolate(matrix_BTT, size=points, mode="linear", align_corners=True)


def build_unet(config: UNetConfig, *, seed: int = 0) -> HiGenUNet:
    """A network with random weights; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HiGenUNet(**asdict(config))


def count_parameters(config: UNetConfig) -> int:
    """Weights of a network of this size, without allocating one."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in HiGenUNet(**asdict(config)).parameters())
