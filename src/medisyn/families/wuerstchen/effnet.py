"""Würstchen's image encoder: EfficientNetV2-S features and a map to 16 channels. It defines Stage C's latent.

Shapes here: B batch, C channels, H, W rows and columns: of pixels before the encoder, of cells of 32 pixels after it.
Weights have the names of the published `effnet_state_dict`: `backbone.*` is what torchvision calls
`efficientnet_v2_s().features`, `mapper.*` the map. torchvision itself is not needed.
The encoder is frozen: batch normalisation uses its stored statistics, and there is no stochastic depth.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from medisyn.errors import InputError
from medisyn.families.wuerstchen.blocks import EvalBatchNorm2d
from medisyn.families.wuerstchen.config import EFFICIENTNET_V2_S, ImageEncoderConfig, Stage

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BACKBONE_EPS = 1e-3
LATENT_SCALE, LATENT_SHIFT = 42.0, 1.0  # published `latent_mean` and `latent_std`


def prior_from_features(features_BCHW: torch.Tensor) -> torch.Tensor:
    """Stage C's latent z = (f + 1) / 42 from the encoder's features f."""
    return (features_BCHW + LATENT_SHIFT) / LATENT_SCALE


def features_from_prior(latents_BCHW: torch.Tensor) -> torch.Tensor:
    """The features f = 42 z - 1 that Stage B reads, from Stage C's latent z. Inverse of `prior_from_features`."""
    return latents_BCHW * LATENT_SCALE - LATENT_SHIFT


def conv_norm(
    inner: int, outer: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, activate: bool = True
) -> nn.Sequential:
    """Convolution without bias, batch normalisation, and SiLU where asked for."""
    layers: list[nn.Module] = [
        nn.Conv2d(inner, outer, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        EvalBatchNorm2d(outer, eps=BACKBONE_EPS),
    ]
    return nn.Sequential(*layers, nn.SiLU()) if activate else nn.Sequential(*layers)


class SqueezeExcitation(nn.Module):
    """Each channel times a gate in (0, 1) that is computed from the means of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.fc2 = nn.Conv2d(squeezed, channels, kernel_size=1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        means_BC11 = x_BCHW.mean(dim=(2, 3), keepdim=True)
        return x_BCHW * self.fc2(nn.functional.silu(self.fc1(means_BC11))).sigmoid()


class InvertedResidual(nn.Module):
    """One block of EfficientNetV2, with a skip where size and width stay.

    "mb" expands by a 1 x 1 convolution, filters each channel by itself, gates, and projects back; "fused" expands and
    filters in one 3 x 3 convolution.
    """

    def __init__(self, kind: str, expansion: int, stride: int, inner: int, outer: int) -> None:
        super().__init__()
        wide = expansion * inner
        self.skips = stride == 1 and inner == outer
        if kind == "mb":
            layers: list[nn.Module] = [conv_norm(inner, wide)] if expansion > 1 else []
            layers += [
                conv_norm(wide, wide, 3, stride=stride, groups=wide),
                SqueezeExcitation(wide, max(1, inner // 4)),
                conv_norm(wide, outer, activate=False),
            ]
        elif expansion > 1:
            layers = [conv_norm(inner, wide, 3, stride=stride), conv_norm(wide, outer, activate=False)]
        else:
            layers = [conv_norm(inner, outer, 3, stride=stride)]
        self.block = nn.Sequential(*layers)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        out = self.block(x_BCHW)
        return x_BCHW + out if self.skips else out


def efficientnet_features(stages: Sequence[Stage], last_width: int) -> nn.Sequential:
    """The feature part of an EfficientNet: one cell per 32 pixels for the six stages of V2-S."""
    layers: list[nn.Module] = [conv_norm(3, stages[0][3], 3, stride=2)]
    for kind, expansion, stride, inner, outer, count in stages:
        widths = itertools.pairwise([inner] + [outer] * count)
        layers.append(
            nn.Sequential(
                *(
                    InvertedResidual(kind, expansion, stride if number == 0 else 1, a, b)
                    for number, (a, b) in enumerate(widths)
                )
            )
        )
    layers.append(conv_norm(stages[-1][4], last_width))
    return nn.Sequential(*layers)


class EfficientNetEncoder(ModelMixin, ConfigMixin):
    """Features of a picture, of which Stage C's latents are made. The arguments are those of `ImageEncoderConfig`."""

    @register_to_config
    def __init__(self, c_latent: int = 16, c_cond: int = 1280, stages: Sequence[Stage] = EFFICIENTNET_V2_S) -> None:
        super().__init__()
        self.backbone = efficientnet_features(stages, c_cond)
        self.mapper = nn.Sequential(nn.Conv2d(c_cond, c_latent, kernel_size=1, bias=False), EvalBatchNorm2d(c_latent))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """The features of RGB pictures in [0, 1], (B, c_latent, H / 32, W / 32), sides rounded up: what Stage B reads.

        768 pixels give 24 cells, 384 give 12. `prior_from_features` makes Stage C's latents of them.
        """
        if pixels_BCHW.ndim != 4 or pixels_BCHW.shape[1] != 3:
            raise InputError(
                f"the image encoder reads RGB pictures (B, 3, H, W) in [0, 1], got {tuple(pixels_BCHW.shape)}"
            )
        mean, std = (pixels_BCHW.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        return self.mapper(self.backbone((pixels_BCHW - mean) / std))


def build_image_encoder(config: ImageEncoderConfig, seed: int = 0) -> EfficientNetEncoder:
    """An encoder with random weights; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EfficientNetEncoder(**asdict(config))
