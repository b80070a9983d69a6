"""A HiGen network that starts on the weights of an image model: a diffusers U-Net in Stable Diffusion 2's layout.

The blocks on single frames take over its weights; the blocks through time and HiGen's conditions start without
effect, so that the first clips are independent pictures of the image model. The text resampler is new and random:
until it is trained, the pictures are sharp and do not follow the caption.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from medisyn.errors import ModelError
from medisyn.families.higen.config import UNetConfig
from medisyn.families.higen.networks import HiGenUNet
from medisyn.families.higen.published import LAYER, TRANSFORMER, copy_weights, renamed

TOP = {"stem": "conv_in", "time_mlp.0": "time_embedding.linear_1", "time_mlp.2": "time_embedding.linear_2"}
TOP |= {"head.0": "conv_norm_out", "head.2": "conv_out"}
RESIDUAL = {"time_proj": "time_emb_proj", "skip": "conv_shortcut"}
RESIZE = {"downs": "downsamplers.0.conv", "ups": "upsamplers.0"}

# What our blocks on single frames are, in the words of diffusers' configuration.
NEEDED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "addition_embed_type": (None,),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "transformer_layers_per_block": (1,),
}
DOWN_TYPES = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}  # whether the level has attention


def config_like(unet: Any, **changes: Any) -> UNetConfig:
    """The size of a HiGen network that can start on `unet`, a diffusers UNet2DConditionModel, with `changes`.

    Raises ModelError for an image model of another layout (Stable Diffusion 1's heads, SDXL, inpainting).
    """
    config = unet.config
    for name, allowed in NEEDED.items():
        if config.get(name, allowed[0]) not in allowed:
            raise ModelError(
                f"the image model's U-Net has {name} {config[name]!r}, needed is {allowed[0]!r}: give one in the "
                f"layout of Stable Diffusion 2"
            )
    if config["in_channels"] != config["out_channels"]:
        raise ModelError(
            f"the image model's U-Net reads {config['in_channels']} channels and writes {config['out_channels']}: give "
            f"one for plain text to image, not for inpainting or depth"
        )
    attended = _attention_levels(config["down_block_types"], config["up_block_types"])
    widths = config["block_out_channels"]
    multipliers = tuple(width // widths[0] for width in widths)
    if tuple(widths[0] * m for m in multipliers) != tuple(widths):
        raise ModelError(f"the image model's widths {tuple(widths)} are not multiples of the first")
    made = UNetConfig(
        width=widths[0],
        multipliers=multipliers,
        blocks=_one(config["layers_per_block"], "layers_per_block"),
        attention_levels=attended,
        head_width=_head_width(config, attended),
        latent_channels=config["in_channels"],
        text_width=_one(config["cross_attention_dim"], "cross_attention_dim"),
        context_width=_one(config["cross_attention_dim"], "cross_attention_dim"),
        norm_groups=config["norm_num_groups"],
    )
    return dataclasses.replace(made, **changes)


def start_on(network: HiGenUNet, unet: Any) -> list[str]:
    """Copy the image model's weights into `network`, in place; returns the names of our weights that are not in it.

    Raises ModelError, and changes nothing, when a weight is missing, left over or of another shape.
    """
    names = {ours: theirs for ours in network.state_dict() if (theirs := name_in_diffusers(ours))}
    state = unet.state_dict()
    unused = sorted(set(state) - set(names.values()))
    if unused:
        raise ModelError(
            f"the image model has {len(unused)} weights that a HiGen network has no place for: {unused[0]}"
        )
    copy_weights(network, {ours: (name, state.get(name)) for ours, name in names.items()}, "the image model")
    return sorted(set(network.state_dict()) - set(names))


def name_in_diffusers(ours: str) -> str | None:
    """The name in diffusers; None: a weight that an image model does not have."""
    for mine, name in TOP.items():
        if ours.startswith(f"{mine}."):
            return name + ours.removeprefix(mine)
    parts = ours.split(".")
    if parts[0] == "middle":
        return _in_block("mid_block", parts[1], parts[2], ".".join(parts[3:]))
    if parts[0] not in RESIZE:
        return None
    place = f"{'down' if parts[0] == 'downs' else 'up'}_blocks.{parts[1]}"
    if parts[2] == "resize":
        return f"{place}.{RESIZE[parts[0]]}.{'.'.join(parts[3:])}"
    return _in_block(place, parts[3], parts[4], ".".join(parts[5:]))


def _in_block(place: str, number: str, part: str, inside: str) -> str | None:
    if part == "residual":
        return f"{place}.resnets.{number}.{renamed(inside, RESIDUAL)}"
    if part == "spatial":
        return f"{place}.attentions.{number}.{renamed(inside, TRANSFORMER, LAYER)}"
    return None


def _attention_levels(down: tuple[str, ...], up: tuple[str, ...]) -> tuple[int, ...]:
    mirrored = tuple(name.replace("Up", "Down") for name in reversed(up))
    if tuple(down) != mirrored or not set(down) <= set(DOWN_TYPES):
        raise ModelError(
            f"the image model's U-Net has blocks {', '.join((*down, *up))}; allowed are {', '.join(DOWN_TYPES)} and "
            f"their mirror image"
        )
    return tuple(level for level, name in enumerate(down) if DOWN_TYPES[name])


def _head_width(config: Any, attended: tuple[int, ...]) -> int:
    """diffusers writes the number of heads into `attention_head_dim`."""
    heads = config["num_attention_heads"] or config["attention_head_dim"]
    widths = config["block_out_channels"]
    counts = [heads] * len(widths) if isinstance(heads, int) else list(heads)
    found = {widths[level] // counts[level] for level in {*attended, len(widths) - 1}}
    if len(found) != 1:
        raise ModelError(
            f"the image model's attention heads are {', '.join(map(str, sorted(found)))} wide, one width is needed: "
            f"give a model in the layout of Stable Diffusion 2"
        )
    return found.pop()


def _one(value: Any, name: str) -> int:
    if not isinstance(value, int):
        raise ModelError(f"the image model's {name} is {value!r}, one number is needed")
    return value
