"""The image encoder: EfficientNetV2-S without torchvision, held against its table and a reading by names alone."""

import re
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import EfficientNetConfig
from transformers.models.efficientnet.modeling_efficientnet import EfficientNetBlock

from build_wuerstchen_folders import randomise
from medisyn.errors import ConfigError, InputError
from medisyn.families.wuerstchen.config import IMAGE_ENCODER_TINY, IMAGE_ENCODER_V2
from medisyn.families.wuerstchen.effnet import (
    EfficientNetEncoder,
    InvertedResidual,
    build_image_encoder,
    features_from_prior,
    prior_from_features,
)

# Tan and Le (2021), table 4: operator, expansion, stride, width, layers; then a 1 x 1 convolution to 1280.
PUBLISHED_TABLE = (
    ("Fused-MBConv1", 1, 24, 2),
    ("Fused-MBConv4", 2, 48, 4),
    ("Fused-MBConv4", 2, 64, 4),
    ("MBConv4", 2, 128, 6),
    ("MBConv6", 1, 160, 9),
    ("MBConv6", 2, 256, 15),
)


def norm(width: int) -> int:
    return 2 * width


def weights_of_table() -> int:
    """Weights of the features from the paper's table; squeeze-and-excitation squeezes to a quarter of the input."""
    total, width = 3 * 24 * 9 + norm(24), 24
    for operator, _, outer, layers in PUBLISHED_TABLE:
        expansion = int(operator[-1])
        for _ in range(layers):
            wide = expansion * width
            if operator == "Fused-MBConv1":
                total += 9 * width * outer + norm(outer)
            elif operator.startswith("Fused"):
                total += 9 * width * wide + norm(wide) + wide * outer + norm(outer)
            else:
                squeezed = width // 4
                total += width * wide + norm(wide) + 9 * wide + norm(wide)
                total += (wide * squeezed + squeezed) + (squeezed * wide + wide) + wide * outer + norm(outer)
            width = outer
    return total + width * 1280 + norm(1280)


def test_paper_size_has_the_weights_of_the_published_table():
    with torch.device("meta"):
        network = EfficientNetEncoder()
    backbone = sum(parameter.numel() for parameter in network.backbone.parameters())
    assert backbone == weights_of_table() == 20_177_488
    # torchvision documents 21,458,488 weights with the classifier of 1000 classes
    assert backbone + 1280 * 1000 + 1000 == 21_458_488
    assert sum(parameter.numel() for parameter in network.parameters()) == 20_177_488 + 1280 * 16 + 2 * 16
    assert IMAGE_ENCODER_V2.stride == 32


def test_names_are_those_of_torchvision_features_and_the_mapper():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in EfficientNetEncoder().state_dict().items()}
    assert len(shapes) == 110 * 6 + 30 * 4 + 6  # convolutions with statistics, gates with bias, the map
    expected = {
        "backbone.0.0.weight": (24, 3, 3, 3),
        "backbone.0.1.running_var": (24,),
        "backbone.1.1.block.0.0.weight": (24, 24, 3, 3),  # Fused-MBConv1: one convolution
        "backbone.2.0.block.0.0.weight": (96, 24, 3, 3),
        "backbone.2.0.block.1.0.weight": (48, 96, 1, 1),
        "backbone.4.0.block.0.0.weight": (256, 64, 1, 1),
        "backbone.4.0.block.1.0.weight": (256, 1, 3, 3),
        "backbone.4.0.block.2.fc1.weight": (16, 256, 1, 1),
        "backbone.4.0.block.2.fc2.bias": (256,),
        "backbone.4.0.block.3.1.num_batches_tracked": (),
        "backbone.6.14.block.2.fc1.weight": (64, 1536, 1, 1),
        "backbone.7.0.weight": (1280, 256, 1, 1),
        "mapper.0.weight": (16, 1280, 1, 1),
        "mapper.1.running_mean": (16,),
    }
    assert {name: shapes[name] for name in expected} == expected
    assert not any(name.endswith("0.bias") for name in shapes)  # no convolution before a norm has a bias


def test_each_cell_is_32_pixels():
    with torch.device("meta"):
        assert EfficientNetEncoder()(torch.zeros(1, 3, 768, 384)).shape == (1, 16, 24, 12)
    with torch.no_grad():  # sides are rounded up
        assert build_image_encoder(IMAGE_ENCODER_TINY)(torch.zeros(1, 3, 65, 32)).shape == (1, 4, 3, 1)


def test_equal_to_a_reading_of_the_names_alone():
    network = randomise(build_image_encoder(IMAGE_ENCODER_TINY))
    state = network.state_dict()
    pixels = torch.rand(2, 3, 64, 96)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (pixels - mean[:, None, None]) / std[:, None, None]

    def conv(x, name, stride=1, eps=1e-3):
        weight = state[f"{name}.0.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        parts = (state[f"{name}.1.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias"))
        average, variance, scale, shift = parts
        return (x - average) / (variance + eps).sqrt() * scale + shift

    x = F.silu(conv(x, "backbone.0", stride=2))
    for number, stage in enumerate(IMAGE_ENCODER_TINY.stages, start=1):
        for block in range(stage[5]):
            before, layers = x, f"backbone.{number}.{block}.block"
            last = max(int(found[1]) for name in state if (found := re.match(rf"{layers}\.(\d)", name)))
            stride = stage[2] if block == 0 else 1
            for layer in range(last + 1):
                place = f"{layers}.{layer}"
                if f"{place}.fc1.weight" in state:
                    gate = F.conv2d(
                        x.mean((2, 3), keepdim=True), state[f"{place}.fc1.weight"], state[f"{place}.fc1.bias"]
                    )
                    gate = F.conv2d(F.silu(gate), state[f"{place}.fc2.weight"], state[f"{place}.fc2.bias"])
                    x = x * gate.sigmoid()
                    continue
                wide = state[f"{place}.0.weight"].shape[-1] == 3
                x = conv(x, place, stride if wide else 1)
                x = F.silu(x) if layer < last or last == 0 else x  # a projection has no activation
            x = x + before if x.shape == before.shape else x
    x = F.silu(conv(x, f"backbone.{len(IMAGE_ENCODER_TINY.stages) + 1}"))
    with torch.no_grad():
        torch.testing.assert_close(network(pixels), conv(x, "mapper", eps=1e-5), rtol=1e-5, atol=1e-5)


def test_mbconv_equals_the_block_of_transformers():
    # EfficientNet's first version has the same MBConv; at stride 1 its padding is the same too
    config = EfficientNetConfig(batch_norm_eps=1e-3, squeeze_expansion_ratio=0.25, hidden_act="swish")
    theirs = EfficientNetBlock(
        config, 8, 8, stride=1, expand_ratio=4, kernel_size=3, drop_rate=0.0, id_skip=False, adjust_padding=True
    )
    randomise(theirs)
    ours = InvertedResidual("mb", 4, 1, 8, 8)
    parts = {
        "block.0.0": theirs.expansion.expand_conv,
        "block.0.1": theirs.expansion.expand_bn,
        "block.1.0": theirs.depthwise_conv.depthwise_conv,
        "block.1.1": theirs.depthwise_conv.depthwise_norm,
        "block.2.fc1": theirs.squeeze_excite.reduce,
        "block.2.fc2": theirs.squeeze_excite.expand,
        "block.3.0": theirs.projection.project_conv,
        "block.3.1": theirs.projection.project_bn,
    }
    ours.load_state_dict(
        {f"{place}.{name}": value for place, module in parts.items() for name, value in module.state_dict().items()}
    )
    x = torch.randn(2, 8, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_statistics_stay_as_stored_in_training_mode():
    network = randomise(build_image_encoder(IMAGE_ENCODER_TINY)).train()
    assert network.training
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(pixels), network.eval()(pixels))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_features_and_latents_of_stage_c_are_one_map_and_its_inverse():
    # z = (f + 1) / 42: f = -1 gives 0, f = 41 gives 1
    torch.testing.assert_close(prior_from_features(torch.tensor([-1.0, 41.0])), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(features_from_prior(torch.tensor([0.0, 1.0])), torch.tensor([-1.0, 41.0]))
    features = torch.linspace(-60, 60, 241)
    torch.testing.assert_close(features_from_prior(prior_from_features(features)), features, rtol=1e-5, atol=1e-5)


def test_wrong_pictures_and_tables_are_refused():
    with pytest.raises(InputError, match=r"RGB pictures \(B, 3, H, W\) in \[0, 1\], got \(1, 1, 64, 64\)"):
        build_image_encoder(IMAGE_ENCODER_TINY)(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ConfigError, match="starts with the width 8 before it, got \\('fused', 2, 2, 10, 12, 2\\)"):
        replace(IMAGE_ENCODER_TINY, stages=(("fused", 1, 1, 8, 8, 1), ("fused", 2, 2, 10, 12, 2)))
    with pytest.raises(ConfigError, match="must reduce its picture by 32, got 16"):
        replace(IMAGE_ENCODER_TINY, stages=IMAGE_ENCODER_TINY.stages[:-1])
