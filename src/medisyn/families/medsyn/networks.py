"""MedSyn's two U-Nets as one class, and the names that the published state dicts give its weights.

Shapes here: B batch, C channels (CT, lobe, airway, vessel), D, H, W depth, height, width, T report tokens, E text
width. Depth is never halved; height and width are, once per level but the last.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import asdict

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from medisyn.errors import InputError, ModelError
from medisyn.families.medsyn.blocks import (
    IN_SLICE,
    IN_SPACE,
    MiddleBlock,
    ResidualBlock,
    SliceAttention,
    TimeEmbedding,
    double_slice,
    halve_slice,
)
from medisyn.families.medsyn.config import CHANNELS, UNetConfig

TIME_SCALE = 1000  # the network is told t * 1000


class DownLevel(nn.Module):
    """Two blocks in the slice, half the height and width, a block through slices; gives what is skipped over too."""

    def __init__(self, entry: nn.Module, slice_block: nn.Module, space: nn.Module, resize: nn.Module) -> None:
        super().__init__()
        self.entry, self.slice, self.space, self.resize = entry, slice_block, space, resize

    def forward(self, x_BCDHW: torch.Tensor, time_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        skip = self.slice(self.entry(x_BCDHW, time_BV), time_BV)
        return skip, self.space(self.resize(skip), time_BV)


class UpLevel(nn.Module):
    """The same on the way up. The size doubles at the end ("late") or after the first block ("mid")."""

    def __init__(
        self, entry: nn.Module, slice_block: nn.Module, space: nn.Module, resize: nn.Module, order: str
    ) -> None:
        super().__init__()
        self.entry, self.slice, self.space, self.resize = entry, slice_block, space, resize
        self.order = order

    def forward(self, x_BCDHW: torch.Tensor, skip_BCDHW: torch.Tensor, time_BV: torch.Tensor) -> torch.Tensor:
        x = self.entry(torch.cat([x_BCDHW, skip_BCDHW], dim=1), time_BV)
        if self.order == "mid":
            return self.space(self.slice(self.resize(x), time_BV), time_BV)
        return self.resize(self.space(self.slice(x, time_BV), time_BV))


class MedSynUNet(ModelMixin, ConfigMixin):
    """Predicts the clean volume from a noisy one (x0-prediction).

    With `text_width` it is the base model: it reads a report by cross-attention at the bottom, or its learned null
    text; with `pooled_text`, which MedSyn's has not, also as one vector beside the time. Without, it is the
    super-resolution model: it reads a second volume of the same shape. With `patch` above 1, which MedSyn's has not
    either, all this happens at one place per cube of `patch` voxels a side; a last block works on single voxels.
    """

    @register_to_config
    def __init__(
        self,
        width: int = 160,
        multipliers: tuple[int, ...] = (1, 2, 4, 8),
        heads: int = 8,
        head_width: int = 32,
        norm_groups: int = 8,
        text_width: int = 768,
        text_tokens: int = 192,
        pooled_text: bool = False,
        middle_blocks: int = 4,
        up_order: str = "late",
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.reads_text = text_width > 0
        channels = len(CHANNELS) if self.reads_text else 2 * len(CHANNELS)
        widths = [width, *(width * m for m in multipliers)]
        pairs, bottom, time_width = list(itertools.pairwise(widths)), widths[-1], 4 * width
        last = len(pairs) - 1

        def block(inner: int, outer: int, kernel: tuple[int, int, int] = IN_SLICE) -> ResidualBlock:
            return ResidualBlock(inner, outer, kernel=kernel, groups=norm_groups, time_width=time_width)

        self.stem = nn.Conv3d(channels, width, 7, padding=3)
        if patch > 1:
            self.patch_stem = nn.Conv3d(channels, width, 3 * patch, stride=patch, padding=patch)
        self.time_mlp = nn.Sequential(
            TimeEmbedding(width), nn.Linear(width, time_width), nn.GELU(), nn.Linear(time_width, time_width)
        )
        if self.reads_text:
            self.null_text = nn.Parameter(torch.randn(1, text_tokens, text_width))
        if pooled_text:
            self.text_mlp = nn.Sequential(
                nn.Linear(text_width, time_width), nn.GELU(), nn.Linear(time_width, time_width)
            )
            self.register_buffer("text_mean", torch.zeros(text_width))
            self.register_buffer("text_sd", torch.ones(text_width))
        self.downs = nn.ModuleList(
            DownLevel(
                block(a, b), block(b, b), block(b, b, IN_SPACE), nn.Identity() if number == last else halve_slice(b)
            )
            for number, (a, b) in enumerate(pairs)
        )
        self.middle_in = block(bottom, bottom)
        self.self_attention = SliceAttention(bottom, heads, head_width)
        self.middle = nn.ModuleList(
            MiddleBlock(
                bottom,
                text_width=text_width,
                heads=heads,
                head_width=head_width,
                groups=norm_groups,
                time_width=time_width,
            )
            for _ in range(middle_blocks)
        )
        self.middle_out = block(bottom, bottom)
        self.ups = nn.ModuleList(
            UpLevel(
                block(2 * b, a),
                block(a, a),
                block(a, a, IN_SPACE),
                nn.Identity() if number == last else double_slice(a),
                up_order,
            )
            for number, (a, b) in enumerate(reversed(pairs))
        )
        self.head_block = ResidualBlock(2 * width, width, kernel=IN_SLICE, groups=norm_groups)
        self.head = nn.Conv3d(width, len(CHANNELS) * patch**3, 1)
        if patch > 1:
            fine = 2 * norm_groups
            self.detail = ResidualBlock(
                channels + len(CHANNELS), fine, kernel=IN_SPACE, groups=norm_groups, time_width=time_width
            )
            self.detail_head = nn.Conv3d(fine, len(CHANNELS), 1)

    def forward(
        self,
        noisy_BCDHW: torch.Tensor,
        times_B: torch.Tensor,
        *,
        text_BTE: torch.Tensor | None = None,
        condition_BCDHW: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The clean volume, in [-1, 1] when trained. `times_B` lie in [0, 1]."""
        self._check(noisy_BCDHW, text_BTE, condition_BCDHW)
        seen = noisy_BCDHW if condition_BCDHW is None else torch.cat([condition_BCDHW, noisy_BCDHW], dim=1)
        start = x = self._begin(seen)
        time_BV = self.time_mlp[1:](self.time_mlp[0](times_B.float() * TIME_SCALE).to(x.dtype))
        if self.config["pooled_text"] and text_BTE is not None:
            time_BV = time_BV + self.text_mlp((text_BTE.mean(dim=1) - self.text_mean) / self.text_sd)

        skips = []
        for level in self.downs:
            skip, x = level(x, time_BV)
            skips.append(skip)

        x = self.middle_in(x, time_BV)
        for block in self.middle:
            x = block(x, time_BV, self.self_attention, text_BTE)
        x = self.middle_out(x, time_BV)

        for level in self.ups:
            x = level(x, skips.pop(), time_BV)
        drawn = self.head(self.head_block(torch.cat([x, start], dim=1)))
        return drawn if self.config["patch"] == 1 else self._in_detail(seen, drawn, time_BV)

    @property
    def factor(self) -> int:
        """What height and width of a volume must divide by."""
        return int(self.config["patch"] * 2 ** (len(self.config["multipliers"]) - 1))

    def _begin(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        """One place per patch: the first voxel of each through MedSyn's stem, all of them and their neighbours beside.

        The first voxels are the volume of the coarser model, whose weights a network of patches can go on from.
        """
        patch = self.config["patch"]
        if patch == 1:
            return self.stem(x_BCDHW)
        return self.stem(x_BCDHW[..., ::patch, ::patch, ::patch]) + self.patch_stem(x_BCDHW)

    def _in_detail(self, seen_BCDHW: torch.Tensor, drawn_BVdhw: torch.Tensor, time_BV: torch.Tensor) -> torch.Tensor:
        """Each place's values as the voxels of its patch, and what a block at their own resolution adds to them.

        The places cannot hold what single voxels of a noisy volume show; that block sees them again.
        """
        patch = self.config["patch"]
        x_BCijkdhw = drawn_BVdhw.unflatten(1, (len(CHANNELS), patch, patch, patch))
        drawn_BCDHW = x_BCijkdhw.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return drawn_BCDHW + self.detail_head(self.detail(torch.cat([seen_BCDHW, drawn_BCDHW], dim=1), time_BV))

    def begin_with_coarser(self, coarser: MedSynUNet) -> None:
        """Take the weights of the network of this size without patches: at first each patch is what its first voxel is.

        Raises ModelError when the sizes differ in anything else.
        """
        cube = self.config["patch"] ** 3
        state = dict(coarser.state_dict())
        state["head.weight"] = state["head.weight"].repeat_interleave(cube, dim=0)
        state["head.bias"] = state["head.bias"].repeat_interleave(cube, dim=0)
        for name, weight in self.state_dict().items():
            if name.startswith(("patch_stem.", "detail_head.")):
                state[name] = torch.zeros_like(weight)
            elif name.startswith("detail."):
                state[name] = weight
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise ModelError(f"the coarser network has other sizes than this one: {error}") from None

    def begin_with_reports(self, text_NTE: torch.Tensor) -> None:
        """Where the text is pooled: take its mean and spread from the training reports, and their mean as null text.

        What reports have in common is most of their mean vector, and would drown in the time what they differ in.
        """
        if not self.config["pooled_text"]:
            return
        text_NTE = text_NTE.float()
        pooled_NE = text_NTE.mean(dim=1)
        with torch.no_grad():
            self.text_mean.copy_(pooled_NE.mean(dim=0))
            self.text_sd.copy_(pooled_NE.std(dim=0).clamp_min(1e-3))
            self.null_text.copy_(text_NTE.mean(dim=0, keepdim=True))

    def use_up_order(self, order: str) -> None:
        """Run the same weights in the other order of the published scripts, in place."""
        for level in self.ups:
            level.order = order  # type: ignore[assignment]
        self.register_to_config(up_order=order)

    def _check(
        self, noisy_BCDHW: torch.Tensor, text_BTE: torch.Tensor | None, condition_BCDHW: torch.Tensor | None
    ) -> None:
        patch, factor = self.config["patch"], self.factor
        depth, height, width = noisy_BCDHW.shape[-3:]
        right = noisy_BCDHW.ndim == 5 and noisy_BCDHW.shape[1] == len(CHANNELS)
        if not right or depth % patch or height % factor or width % factor:
            raise InputError(
                f"the network takes (B, {len(CHANNELS)}, D, H, W) with H and W multiples of {factor}"
                f"{f' and D of {patch}' if patch > 1 else ''}, got {tuple(noisy_BCDHW.shape)}"
            )
        if (text_BTE is None) == self.reads_text or (condition_BCDHW is None) != self.reads_text:
            wanted = "a text and no condition" if self.reads_text else "a condition and no text"
            raise InputError(f"this network takes {wanted}")


def build_unet(config: UNetConfig, *, seed: int = 0) -> MedSynUNet:
    """A network with random weights; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MedSynUNet(**asdict(config))


def count_parameters(config: UNetConfig) -> int:
    """Weights of a network of this size, without allocating one."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MedSynUNet(**asdict(config)).parameters())


# The published names. A residual block's inside (mlp.1, block1, block2, res_conv) is called the same on both sides.

BASE_PLACES = {"entry": 0, "slice": 1, "space": 2, "resize": 3}
SUPERRES_PLACES = {"entry": 0, "slice": 1, "space": 4, "resize": 5}  # 2 and 3 hold attention that is switched off


def published_names(network: MedSynUNet) -> dict[str, list[str]]:
    """Our name of each weight -> the published names of it: several for the attention that all middle blocks share."""
    return {name: _published(name, network) for name in network.state_dict()}


def _published(name: str, network: MedSynUNet) -> list[str]:
    base = network.reads_text
    places, suffix = (BASE_PLACES, "") if base else (SUPERRES_PLACES, "0")
    numbers = [str(number + 1) if base else "" for number in range(len(network.middle))]
    parent, _, rest = name.partition(".")
    if parent in ("downs", "ups"):
        level, part, inside = rest.split(".", 2)
        return [f"{parent}.{level}.{places[part]}.{inside}"]
    if parent == "self_attention":
        return [f"mid_spatial_attn{number}.fn.fn.fn.{rest}" for number in numbers]
    if parent == "middle":
        index, part, inside = rest.split(".", 2)
        number = numbers[int(index)]
        return [
            {
                "self_norm": f"mid_spatial_attn{number}.fn.norm.gamma",
                "text_norm": f"mid_cross_attn{number}.fn.norm.gamma",
                "text_attention": f"mid_cross_attn{number}.fn.fn.{inside}",
                "space": f"mid_temporal_attn{number}.{inside}" if base else f"mid_temporal_conv.{inside}",
            }[part]
        ]
    renamed = {
        "stem": f"init_conv{suffix}",
        "null_text": "null_cond_emb",
        "middle_in": "mid_block1",
        "middle_out": "mid_block2",
        "head_block": f"final_conv{suffix}.0",
        "head": f"final_conv{suffix}.1",
    }
    first = renamed.get(parent, parent)
    return [f"{first}.{rest}" if rest else first]


def to_published(network: MedSynUNet) -> dict[str, torch.Tensor]:
    """The network's weights under the published names, in the published shapes; shared weights appear once per name."""
    state = network.state_dict()
    return {
        name: _published_shape(name, state[ours]) for ours, names in published_names(network).items() for name in names
    }


def _published_shape(name: str, weight: torch.Tensor) -> torch.Tensor:
    if name.endswith("norm.gamma"):
        return weight.view(1, -1, 1, 1, 1)
    if re.search(r"mid_cross_attn\d\.fn\.fn\.to_(q|out)\.weight", name):
        return weight[:, :, None, None]  # 1 x 1 convolutions there
    return weight


def infer_config(state: Mapping[str, torch.Tensor], *, head_width: int = 32, up_order: str = "late") -> UNetConfig:
    """The size of a published network from the shapes of its weights, already without prefixes.

    `head_width` cannot be read from the shapes: 32 in all published networks. Raises ModelError when the state dict is
    not one of a MedSyn network.
    """
    stem = state.get("init_conv.weight", state.get("init_conv0.weight"))
    levels = sorted({int(found[1]) for name in state if (found := re.match(r"downs\.(\d+)\.", name))})
    qkv = [weight for name, weight in state.items() if re.match(r"mid_spatial_attn\d*\..*to_qkv\.weight$", name)]
    if stem is None or not levels or not qkv:
        raise ModelError(
            "this is no state dict of a MedSyn network: init_conv, downs or mid_spatial_attn is missing. Give the "
            "checkpoint of the base model or of the super-resolution model."
        )
    width = int(stem.shape[0])
    ends = [state.get(f"downs.{level}.1.block2.proj.weight") for level in levels]
    if any(end is None for end in ends):
        raise ModelError("the state dict lacks downs.*.1.block2.proj.weight, from which the widths are read")
    null = state.get("null_cond_emb")
    middle = len({name.split(".")[0] for name in state if name.startswith("mid_temporal_")})
    return UNetConfig(
        width=width,
        multipliers=tuple(int(end.shape[0]) // width for end in ends if end is not None),
        heads=int(qkv[0].shape[0]) // (3 * head_width),
        head_width=head_width,
        text_width=0 if null is None else int(null.shape[-1]),
        text_tokens=0 if null is None else int(null.shape[-2]),
        middle_blocks=max(middle, 1),
        up_order=up_order,
    )


def load_published(network: MedSynUNet, state: Mapping[str, torch.Tensor]) -> list[str]:
    """Put published weights into `network`; returns the names that were not used (schedule buffers and such).

    A shared weight may be there under one or all of its names; the copies must be equal. Raises ModelError that names
    what is missing, differs, or has another shape.
    """
    found, missing = {}, []
    for ours, names in published_names(network).items():
        copies = [state[name] for name in names if name in state]
        if not copies:
            missing.append(names[0])
            continue
        if any(not torch.equal(copies[0], copy) for copy in copies[1:]):
            raise ModelError(
                f"{names[0]} and its copies {', '.join(names[1:])} differ; in MedSyn they are one shared attention"
            )
        found[ours] = _own_shape(names[0], copies[0], network.get_parameter(ours))
    if missing:
        raise ModelError(
            f"the checkpoint lacks {len(missing)} weights of a MedSyn network of this size: {', '.join(missing[:5])}"
            f"{' and more' if len(missing) > 5 else ''}. Nothing is filled in; fetch the checkpoint again."
        )
    network.load_state_dict(found)
    used = {name for names in published_names(network).values() for name in names}
    return sorted(set(state) - used)


def _own_shape(name: str, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A 1 x 1 convolution and a linear layer are the same matrix; any other difference in shape is an error."""
    plain = [side for side in weight.shape if side != 1]
    if plain != [side for side in target.shape if side != 1]:
        raise ModelError(f"{name} has shape {tuple(weight.shape)}, the network needs {tuple(target.shape)}")
    return weight.reshape(target.shape).to(target.dtype)
