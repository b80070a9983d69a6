"""A HiGen network that starts on an image model makes that model's pictures."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from medisyn.errors import ModelError
from medisyn.families.higen.config import UNET_PAPER, UNET_TINY
from medisyn.families.higen.networks import HiGenUNet, build_unet
from medisyn.families.higen.spatial_start import config_like, start_on

CHANGES = {"stem_heads": 2, "text_tokens": 4, "text_blocks": 1}
CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def image_model(**changes) -> UNet2DConditionModel:
    """A tiny U-Net in Stable Diffusion 2's layout, all weights random."""
    torch.manual_seed(0)
    options = {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        **CROSS,
        "cross_attention_dim": 16,
        "attention_head_dim": (2, 4),  # diffusers' name for the number of heads
        "use_linear_projection": True,
        "norm_num_groups": 8,
        **changes,
    }
    return UNet2DConditionModel(**options).eval()


def given(frames: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "noisy_BCTHW": torch.randn(2, 4, frames, 8, 8, generator=generator),
        "times_B": torch.tensor([3, 981]),
        "text_BNE": torch.randn(2, 77, 16, generator=generator),
    }


def started(model: UNet2DConditionModel) -> HiGenUNet:
    network = build_unet(config_like(model, **CHANGES)).eval()
    start_on(network, model)
    return network


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_linear_projection": False},  # 1 x 1 convolutions are the same matrices
        {
            "block_out_channels": (16, 32, 32),
            "layers_per_block": 2,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (1, 4, 4),
        },
    ],
)
def test_a_picture_is_the_image_models(changes):
    model = image_model(**changes)
    network, inputs = started(model), given(frames=1)
    with torch.no_grad():
        text = network.resampler(inputs["text_BNE"])
        wanted = model(inputs["noisy_BCTHW"][:, :, 0], inputs["times_B"], text).sample
        torch.testing.assert_close(network(**inputs)[:, :, 0], wanted, rtol=1e-5, atol=1e-5)
    assert wanted.std() > 0.01


def test_a_clip_is_the_image_models_pictures():
    model = image_model()
    network, inputs = started(model), given(frames=3)
    told = {
        "prior_BCHW": torch.randn(2, 4, 8, 8),
        "motion_BT": torch.full((2, 2), 300.0),
        "appearance_BTT": torch.rand(2, 3, 3),
    }
    with torch.no_grad():
        clip, text = network(**inputs, **told), network.resampler(inputs["text_BNE"])
        for t in range(3):
            wanted = model(inputs["noisy_BCTHW"][:, :, t], inputs["times_B"], text).sample
            torch.testing.assert_close(clip[:, :, t], wanted, rtol=1e-5, atol=1e-5)


def test_stable_diffusion_2_gives_the_papers_network():
    with torch.device("meta"):
        model = UNet2DConditionModel(
            cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        )
    assert config_like(model) == UNET_PAPER
    assert config_like(image_model(), **CHANGES) == UNET_TINY


def test_what_is_not_in_the_image_model_is_named():
    model = image_model()
    network = build_unet(UNET_TINY)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    rest = set(start_on(network, model))
    assert {name.split(".")[0] for name in rest if "temporal" not in name} == {
        "prior_conv",
        "motion_mlp",
        "appearance_mlp",
        "resampler",
    }
    assert {name for name, _ in network.temporal_parameters()} <= rest
    for name, weight in network.state_dict().items():
        if name in rest:
            assert torch.equal(weight, before[name]), name
    assert len(rest) + len(model.state_dict()) == len(before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 9}, "reads 9 channels and writes 4: give one for plain text to image"),
        ({"attention_head_dim": 4}, "attention heads are 4, 8 wide, one width is needed"),
        ({"flip_sin_to_cos": False}, "has flip_sin_to_cos False, needed is True"),
        ({"transformer_layers_per_block": (1, 2)}, r"has transformer_layers_per_block \(1, 2\), needed is 1"),
        ({"layers_per_block": (1, 2)}, r"layers_per_block is \(1, 2\), one number is needed"),
        ({"block_out_channels": (16, 24), "attention_head_dim": (2, 3)}, r"widths \(16, 24\) are not multiples"),
        (
            {"down_block_types": ("CrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D")},
            "has blocks CrossAttnDownBlock2D, SimpleCrossAttnDownBlock2D, UpBlock2D",
        ),
        ({"up_block_types": ("UpBlock2D", "UpBlock2D")}, "allowed are DownBlock2D, CrossAttnDownBlock2D and"),
    ],
)
def test_image_models_of_another_layout_are_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        config_like(image_model(**changes))


def test_weights_that_do_not_fit_are_refused():
    larger = build_unet(replace(UNET_TINY, blocks=2))
    with pytest.raises(ModelError, match=r"the image model lacks \d+ weights .*down_blocks.0.resnets.1.norm1.weight"):
        start_on(larger, image_model())
    with pytest.raises(ModelError, match=r"the image model has \d+ weights that a HiGen network has no place for"):
        start_on(build_unet(UNET_TINY), image_model(layers_per_block=2))
    wider = build_unet(replace(UNET_TINY, context_width=24))
    with pytest.raises(ModelError, match=r"attn2.to_k.weight has shape \(16, 16\), the network needs \(16, 24\)"):
        start_on(wider, image_model())
