"""The names that the published HiGen state dict gives the weights, and its loading.

The published network numbers its blocks in one row: `input_blocks.0` is the first convolution, then follow the blocks
of each size and, as a number of its own, what halves the size; on the way up what doubles the size is the last part
of a block. The text resampler is part of the network there as here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch

from medisyn.errors import ModelError
from medisyn.families.higen.config import UNetConfig
from medisyn.families.higen.networks import HiGenUNet

TOP = {
    "stem": "input_blocks.0.0",
    "stem_temporal": "input_blocks.0.1",
    "prior_conv": "img_embedding",
    "time_mlp": "time_embed",
    "motion_mlp": "msim_embedding",
    "appearance_mlp": "asim_embedding",
    "resampler": "context_embedding",
    "head": "out",
}
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}
TRANSFORMER = {"enter": "proj_in", "leave": "proj_out", "layer": "transformer_blocks.0"}
LAYER = {"to_out": "to_out.0", "wide": "net.0.proj", "narrow": "net.2"}  # as in diffusers
RESAMPLER = {"enter": "input_mapping", "leave": "output_mapping", "layers": "context_transformer"}


def renamed(name: str, *tables: Mapping[str, str]) -> str:
    """Each part of a dotted name that stands in one of the tables, replaced."""
    words = {old: new for table in tables for old, new in table.items()}
    return ".".join(words.get(part, part) for part in name.split("."))


def published_names(network: HiGenUNet) -> dict[str, str]:
    """Our name of each weight -> its published name."""
    places = dict(_places(network))
    return {name: _published(name, places) for name in network.state_dict()}


def _places(network: HiGenUNet) -> Iterator[tuple[str, str]]:
    """Where each of our blocks stands in the published numbering."""
    number = 1
    for level, down in enumerate(network.downs):
        for block in range(len(down.blocks)):  # type: ignore[arg-type]
            yield f"downs.{level}.blocks.{block}", f"input_blocks.{number}"
            number += 1
        if down.resize is not None:
            yield f"downs.{level}.resize", f"input_blocks.{number}.op"
            number += 1
    number = 0
    for level, up in enumerate(network.ups):
        blocks = list(up.blocks)  # type: ignore[arg-type]
        for block in range(len(blocks)):
            yield f"ups.{level}.blocks.{block}", f"output_blocks.{number}"
            number += 1
        if up.resize is not None:
            parts = 1 if blocks[-1].spatial is None else 3
            yield f"ups.{level}.resize", f"output_blocks.{number - 1}.{parts}"


def _published(name: str, places: Mapping[str, str]) -> str:
    first, _, rest = name.partition(".")
    if first == "resampler":
        return f"{TOP[first]}.{renamed(rest, RESAMPLER, LAYER)}"
    if first in TOP:
        return f"{TOP[first]}.{renamed(rest, TRANSFORMER, LAYER)}"
    if first == "middle":
        number, part, inside = rest.split(".", 2)
        return _in_block("middle_block", "3" if number == "1" else "0", part, inside)
    found = re.match(r"\w+\.\d+\.(resize|blocks\.\d+)", name)
    assert found is not None, name
    place, inside = places[found[0]], name[found.end() + 1 :]
    if found[1] == "resize":
        return f"{place}.{inside}"
    part, inside = inside.split(".", 1)
    return _in_block(place, "0", part, inside)


def _in_block(place: str, residual: str, part: str, inside: str) -> str:
    if part == "residual":
        return f"{place}.{residual}.{renamed(inside, RESIDUAL)}"
    if part == "temporal_conv":
        kind, number, last = inside.split(".")
        position = 0 if kind == "norms" else 2 if number == "0" else 3  # all but the first have a dropout before
        return f"{place}.{residual}.temopral_conv.conv{int(number) + 1}.{position}.{last}"  # spelled so there
    return f"{place}.{1 if part == 'spatial' else 2}.{renamed(inside, TRANSFORMER, LAYER)}"


def to_published(network: HiGenUNet) -> dict[str, torch.Tensor]:
    """The network's weights under the published names, in the published shapes."""
    state = network.state_dict()
    return {name: _published_shape(ours, state[ours]) for ours, name in published_names(network).items()}


def _published_shape(ours: str, weight: torch.Tensor) -> torch.Tensor:
    """Through time the projections are 1-wide convolutions there, and the convolutions go over (T, H, W)."""
    if re.search(r"temporal(\.(enter|leave)|_conv\.convs\.\d)\.weight$", ours):
        return weight[..., None]
    return weight


def load_published(network: HiGenUNet, state: Mapping[str, torch.Tensor]) -> list[str]:
    """Put published weights into `network`; returns the names that were not used.

    Raises ModelError that names what is missing or has another shape.
    """
    names = published_names(network)
    copy_weights(network, {ours: (name, state.get(name)) for ours, name in names.items()}, "the checkpoint")
    return sorted(set(state) - set(names.values()))


def copy_weights(network: HiGenUNet, found: Mapping[str, tuple[str, torch.Tensor | None]], source: str) -> None:
    """Put weights into `network`: our name -> the source's name and its weight. All are checked before any is set."""
    missing = [name for name, weight in found.values() if weight is None]
    if missing:
        raise ModelError(
            f"{source} lacks {len(missing)} weights of a HiGen network of this size: {', '.join(missing[:5])}"
            f"{' and more' if len(missing) > 5 else ''}. Nothing is filled in; fetch it again."
        )
    own = {
        ours: _own_shape(name, weight, network.get_parameter(ours))
        for ours, (name, weight) in found.items()
        if weight is not None
    }
    network.load_state_dict(own, strict=False)


def _own_shape(name: str, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Last axes of 1 are the only difference in shape allowed: a 1-wide convolution is a linear layer."""
    if tuple(weight.shape) != (*target.shape, *[1] * (weight.ndim - target.ndim)):
        raise ModelError(f"{name} has shape {tuple(weight.shape)}, the network needs {tuple(target.shape)}")
    return weight.reshape(target.shape).to(target.dtype)


def infer_config(
    state: Mapping[str, torch.Tensor],
    *,
    head_width: int = 64,
    text_heads: int = 8,
    norm_groups: int = 32,
    any_length: bool = False,
) -> UNetConfig:
    """The size of a published network from the shapes of its weights, already without prefixes.

    The shapes do not tell `head_width`, `text_heads` and `norm_groups`; the defaults are the published network's. It
    reads a row of the appearance matrix as it is, so that the width of a row is the only clip length that it can do;
    `any_length` is for weights that were trained here, on rows resampled to that width.
    Raises ModelError when the state dict is not one of a HiGen network.
    """
    stem = _shape(state, "input_blocks.0.0.weight")
    levels = _levels(state)
    blocks = {len(level) for level in levels}
    if len(blocks) != 1 or not levels[0]:
        raise ModelError(f"the levels of the network have {', '.join(map(str, blocks))} blocks, one number is needed")
    tokens = _shape(state, "context_embedding.tokens")
    depth = _numbers(state, r"context_embedding\.context_transformer\.(\d+)\.")
    outer = [_shape(state, f"input_blocks.{level[-1]}.0.in_layers.2.weight")[0] for level in levels]
    attended = [any(f"input_blocks.{n}.1.proj_in.weight" in state for n in level) for level in levels]
    points = _shape(state, "asim_embedding.0.weight")[1]
    return UNetConfig(
        width=stem[0],
        multipliers=tuple(channels // stem[0] for channels in outer),
        blocks=len(levels[0]),
        attention_levels=tuple(number for number, attends in enumerate(attended) if attends),
        head_width=head_width,
        stem_heads=_shape(state, "input_blocks.0.1.proj_in.weight")[0] // head_width,
        latent_channels=stem[1],
        text_width=_shape(state, "context_embedding.input_mapping.weight")[1],
        context_width=_shape(state, "context_embedding.output_mapping.weight")[0],
        text_tokens=tokens[1],
        text_blocks=len(depth),
        text_heads=text_heads,
        appearance_points=points,
        norm_groups=norm_groups,
        frames=None if any_length else points,
    )


def _levels(state: Mapping[str, torch.Tensor]) -> list[Sequence[int]]:
    """The numbers of the residual blocks of each size on the way down: what halves the size stands between them."""
    levels: list[list[int]] = [[]]
    for number in _numbers(state, r"input_blocks\.(\d+)\."):
        if f"input_blocks.{number}.op.weight" in state:
            levels.append([])
        elif number:
            levels[-1].append(number)
    return list(levels)


def _numbers(state: Mapping[str, torch.Tensor], pattern: str) -> list[int]:
    return sorted({int(found[1]) for name in state if (found := re.match(pattern, name))})


def _shape(state: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...]:
    if name not in state:
        raise ModelError(
            f"the state dict has no {name}, from which the size is read: it is not one of a HiGen network. Give the "
            f"checkpoint of HiGen's U-Net."
        )
    return tuple(state[name].shape)
