"""The published names of HiGen's weights: written out by hand, there and back, and what is refused."""

from dataclasses import asdict, replace

import pytest
import torch

from medisyn.errors import ModelError
from medisyn.families.higen.config import UNET_PAPER, UNET_TINY
from medisyn.families.higen.networks import HiGenUNet, build_unet
from medisyn.families.higen.published import infer_config, load_published, published_names, to_published

SIZES = {"head_width": 8, "norm_groups": 8, "any_length": True}  # of the tiny network, which shapes do not tell

BLOCK = [
    *(f"in_layers.{n}" for n in (0, 2)),
    "emb_layers.1",
    *(f"out_layers.{n}" for n in (0, 3)),
    *(f"temopral_conv.conv{n}.0" for n in (1, 2, 3, 4)),
    "temopral_conv.conv1.2",
    *(f"temopral_conv.conv{n}.3" for n in (2, 3, 4)),
]
LAYER = [
    *(f"attn{n}.to_{what}" for n in (1, 2) for what in ("q", "k", "v", "out.0")),
    "ff.net.0.proj",
    "ff.net.2",
    *(f"norm{n}" for n in (1, 2, 3)),
]
TRANSFORMER = ["norm", "proj_in", "proj_out", *(f"transformer_blocks.0.{name}" for name in LAYER)]


def paper_modules() -> set[str]:
    """Every module with weights of the published network, from its configuration: dim 320, multipliers 1, 2, 4, 4, two
    blocks, attention at scales 1, 1/2 and 1/4."""
    both = [f"{place}.{name}" for place in (1, 2) for name in TRANSFORMER]  # in the frame, and through time
    names = ["input_blocks.0.0", *(f"input_blocks.0.1.{name}" for name in TRANSFORMER)]
    for number in (1, 2, 4, 5, 7, 8, 10, 11):
        names += [f"input_blocks.{number}.0.{name}" for name in BLOCK]
    names += [f"input_blocks.{number}.0.skip_connection" for number in (4, 7)]
    names += [f"input_blocks.{number}.{name}" for number in (1, 2, 4, 5, 7, 8) for name in both]
    names += [f"input_blocks.{number}.op" for number in (3, 6, 9)]
    names += [f"middle_block.{place}.{name}" for place in (0, 3) for name in BLOCK]
    names += [f"middle_block.{name}" for name in both]
    for number in range(12):
        names += [f"output_blocks.{number}.0.{name}" for name in (*BLOCK, "skip_connection")]
    names += [f"output_blocks.{number}.{name}" for number in range(3, 12) for name in both]
    names += ["output_blocks.2.1.conv", "output_blocks.5.3.conv", "output_blocks.8.3.conv", "out.0", "out.2"]
    for name in ("time_embed", "asim_embedding", "msim_embedding"):
        names += [f"{name}.0", f"{name}.2"]
    names += ["img_embedding", "context_embedding.input_mapping", "context_embedding.output_mapping"]
    return {*names, *(f"context_embedding.context_transformer.{n}.{name}" for n in (0, 1) for name in LAYER)}


def paper() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return to_published(HiGenUNet(**asdict(UNET_PAPER)))


def test_the_papers_network_has_the_published_names_and_shapes():
    state = paper()
    assert {name.rpartition(".")[0] for name in state if not name.endswith("tokens")} == paper_modules()
    shapes = {name: tuple(weight.shape) for name, weight in state.items()}
    wanted = {
        "context_embedding.tokens": (1, 16, 1280),
        "context_embedding.input_mapping.weight": (1280, 1024),
        "asim_embedding.0.weight": (1280, 32),
        "msim_embedding.0.weight": (1280, 320),
        "img_embedding.weight": (320, 4, 3, 3),
        "input_blocks.0.0.weight": (320, 4, 3, 3),
        "input_blocks.0.1.proj_in.weight": (512, 320, 1),  # 8 heads of 64
        "input_blocks.0.1.transformer_blocks.0.attn2.to_k.weight": (512, 512),
        "input_blocks.4.0.temopral_conv.conv4.3.weight": (640, 640, 3, 1, 1),
        "input_blocks.4.1.proj_in.weight": (640, 640),
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 1024),
        "input_blocks.4.2.proj_out.weight": (640, 640, 1),
        "middle_block.2.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
        "output_blocks.0.0.skip_connection.weight": (1280, 2560, 1, 1),
        "output_blocks.11.0.in_layers.2.weight": (320, 640, 3, 3),
        "out.2.weight": (4, 320, 3, 3),
    }
    assert {name: shapes[name] for name in wanted} == wanted


def test_the_size_is_read_from_the_shapes():
    assert infer_config(paper()) == replace(UNET_PAPER, frames=32)  # the published weights know one length
    assert infer_config(paper(), any_length=True) == UNET_PAPER
    assert infer_config(to_published(build_unet(UNET_TINY)), **SIZES) == UNET_TINY
    everywhere = replace(UNET_TINY, multipliers=(1, 2, 2), blocks=2, attention_levels=(1, 2), text_tokens=5)
    assert infer_config(to_published(build_unet(everywhere)), **SIZES) == everywhere


def test_there_and_back_under_the_published_names():
    first, second = build_unet(UNET_TINY, seed=1), build_unet(UNET_TINY, seed=2)
    state = {**to_published(first), "betas": torch.ones(3)}
    assert load_published(second, state) == ["betas"]
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name
    assert len(set(published_names(first).values())) == len(first.state_dict())


def test_missing_weights_are_named_and_nothing_is_changed():
    network, state = build_unet(UNET_TINY), to_published(build_unet(UNET_TINY, seed=1))
    before = network.stem.weight.clone()
    for name in ("asim_embedding.0.bias", "output_blocks.0.0.temopral_conv.conv4.3.weight"):
        state.pop(name)
    with pytest.raises(ModelError, match=r"lacks 2 weights .*: asim_embedding.0.bias, output_blocks.0.0.temopral_conv"):
        load_published(network, state)
    assert torch.equal(network.stem.weight, before)
    with pytest.raises(ModelError, match=r"lacks \d+ weights .* and more. Nothing is filled in"):
        load_published(network, {})


def test_other_shapes_are_refused():
    network, state = build_unet(UNET_TINY), to_published(build_unet(UNET_TINY))
    state["input_blocks.0.0.weight"] = state["input_blocks.0.0.weight"].transpose(0, 1)
    with pytest.raises(ModelError, match=r"input_blocks.0.0.weight has shape \(4, 16, 3, 3\), the network needs \(16"):
        load_published(network, state)


def test_other_state_dicts_are_refused():
    with pytest.raises(ModelError, match=r"has no input_blocks.0.0.weight, .* not one of a HiGen network"):
        infer_config({"conv_in.weight": torch.zeros(1)})
    state = to_published(build_unet(UNET_TINY))
    image_model = {name: weight for name, weight in state.items() if not name.startswith("context_embedding")}
    with pytest.raises(ModelError, match=r"has no context_embedding.tokens"):
        infer_config(image_model, **SIZES)
    uneven = {**state, "input_blocks.4.0.in_layers.2.weight": torch.zeros(1)}
    with pytest.raises(ModelError, match="levels of the network have 1, 2 blocks, one number is needed"):
        infer_config(uneven, **SIZES)
