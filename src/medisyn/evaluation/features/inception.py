"""Inception v3 as the Fréchet Inception Distance knows it: pool3 features of the network published in December 2015.

Shapes here: B batch, C channels, H, W pixels.
Our own module; parameter names are those of the published PyTorch port of the TensorFlow weights. It differs from the
common Inception v3: padding is not counted in the average pools of the A, C and first E blocks, the pool branch of the
last block takes the maximum, and there are 1008 classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from medisyn.errors import InputError, ModelError
from medisyn.evaluation.features import check_images
from medisyn.runs import file_sha256

ENVIRONMENT = "MEDISYN_INCEPTION"
FILES = (
    "pt_inception-2015-12-05-6726825d.pth (mseitzer/pytorch-fid, release fid_weights)",
    "weights-inception-2015-12-05-6726825d.pth (toshas/torch-fidelity, release v0.2.0)",
)
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # of both files
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
SIDE = 299


class BasicConv2d(nn.Module):
    """Convolution without bias, batch norm (epsilon 0.001), ReLU; `pad` keeps the sides."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool = True
    ):
        super().__init__()
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (high // 2, wide // 2) if pad and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(channels_in, channels_out, (high, wide), stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=0.001)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return nn.functional.relu(self.bn(self.conv(x_BCHW)))


def average(x_BCHW: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(x_BCHW, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    def __init__(self, channels_in: int, pool_features: int):
        super().__init__()
        self.branch1x1 = BasicConv2d(channels_in, 64, 1)
        self.branch5x5_1 = BasicConv2d(channels_in, 48, 1)
        self.branch5x5_2 = BasicConv2d(48, 64, 5)
        self.branch3x3dbl_1 = BasicConv2d(channels_in, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3)
        self.branch_pool = BasicConv2d(channels_in, pool_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(average(x))], dim=1)


class BlockB(nn.Module):
    def __init__(self, channels_in: int):
        super().__init__()
        self.branch3x3 = BasicConv2d(channels_in, 384, 3, stride=2)
        self.branch3x3dbl_1 = BasicConv2d(channels_in, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), three, nn.functional.max_pool2d(x, 3, stride=2)], dim=1)


class BlockC(nn.Module):
    def __init__(self, channels_in: int, channels_7x7: int):
        super().__init__()
        c = channels_7x7
        self.branch1x1 = BasicConv2d(channels_in, 192, 1)
        self.branch7x7_1 = BasicConv2d(channels_in, c, 1)
        self.branch7x7_2 = BasicConv2d(c, c, (1, 7))
        self.branch7x7_3 = BasicConv2d(c, 192, (7, 1))
        self.branch7x7dbl_1 = BasicConv2d(channels_in, c, 1)
        self.branch7x7dbl_2 = BasicConv2d(c, c, (7, 1))
        self.branch7x7dbl_3 = BasicConv2d(c, c, (1, 7))
        self.branch7x7dbl_4 = BasicConv2d(c, c, (7, 1))
        self.branch7x7dbl_5 = BasicConv2d(c, 192, (1, 7))
        self.branch_pool = BasicConv2d(channels_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(average(x))], dim=1)


class BlockD(nn.Module):
    def __init__(self, channels_in: int):
        super().__init__()
        self.branch3x3_1 = BasicConv2d(channels_in, 192, 1)
        self.branch3x3_2 = BasicConv2d(192, 320, 3, stride=2)
        self.branch7x7x3_1 = BasicConv2d(channels_in, 192, 1)
        self.branch7x7x3_2 = BasicConv2d(192, 192, (1, 7))
        self.branch7x7x3_3 = BasicConv2d(192, 192, (7, 1))
        self.branch7x7x3_4 = BasicConv2d(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, nn.functional.max_pool2d(x, 3, stride=2)], dim=1)


class BlockE(nn.Module):
    """`pool` is "average" in the first of the two blocks and "max" in the last."""

    def __init__(self, channels_in: int, pool: str):
        super().__init__()
        self.pool = pool
        self.branch1x1 = BasicConv2d(channels_in, 320, 1)
        self.branch3x3_1 = BasicConv2d(channels_in, 384, 1)
        self.branch3x3_2a = BasicConv2d(384, 384, (1, 3))
        self.branch3x3_2b = BasicConv2d(384, 384, (3, 1))
        self.branch3x3dbl_1 = BasicConv2d(channels_in, 448, 1)
        self.branch3x3dbl_2 = BasicConv2d(448, 384, 3)
        self.branch3x3dbl_3a = BasicConv2d(384, 384, (1, 3))
        self.branch3x3dbl_3b = BasicConv2d(384, 384, (3, 1))
        self.branch_pool = BasicConv2d(channels_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = average(x) if self.pool == "average" else nn.functional.max_pool2d(x, 3, stride=1, padding=1)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, dim=1)


class InceptionV3(nn.Module):
    """(B, 3, 299, 299) in [-1, 1] to pool3 features (B, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, 3)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, 1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, 3, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, "average"), BlockE(2048, "max")
        self.fc = nn.Linear(2048, 1008)  # not used for features; in the published file

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x_BCHW)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(nn.functional.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(nn.functional.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))


def resize_clean(image_HWC: np.ndarray) -> np.ndarray:
    """(3, 299, 299) float32 0..255: Pillow's antialiased bicubic on float channels, unrounded (Parmar et al., 2022)."""
    channels = [Image.fromarray(image_HWC[:, :, c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(channel.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for channel in channels]
    return np.clip(np.stack(resized), 0.0, 255.0)


def resize_torch(image_HWC: np.ndarray) -> np.ndarray:
    """(3, 299, 299) float32 0..255: bilinear without antialiasing, as pytorch-fid resizes; aliases when it shrinks."""
    image = torch.from_numpy(np.array(image_HWC)).permute(2, 0, 1).float()[None]
    return nn.functional.interpolate(image, (SIDE, SIDE), mode="bilinear", align_corners=False)[0].numpy()


def resize_antialiased(image_HWC: np.ndarray) -> np.ndarray:
    """(3, 299, 299) float32 0..255: torch's antialiased bilinear, the default of torchmetrics."""
    image = torch.from_numpy(np.array(image_HWC)).permute(2, 0, 1).float()[None]
    return nn.functional.interpolate(image, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)[
        0
    ].numpy()


def resize_tensorflow(image_HWC: np.ndarray) -> np.ndarray:
    """(3, 299, 299) float32 0..255: bilinear on TensorFlow 1's grid, output i at input i * size / 299 (torch-fidelity).

    The grid is not centred: the image moves by up to half a pixel to the bottom right, and shrinking aliases.
    """
    x = image_HWC.astype(np.float32)
    for axis in (0, 1):
        size = x.shape[axis]
        place = np.arange(SIDE, dtype=np.float32) * np.float32(size / SIDE)
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
        below, above = np.take(x, low, axis), np.take(x, np.minimum(low + 1, size - 1), axis)
        x = below + (above - below) * share
    return np.ascontiguousarray(x.transpose(2, 0, 1), dtype=np.float32)


# name -> how it is done, its preprocessing id, and the centre and width of the scale to about [-1, 1]
RESIZES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str, float, float]] = {
    "clean": (resize_clean, "squash299-clean-bicubic", 128.0, 128.0),
    "torch-bilinear": (resize_torch, "squash299-torch-bilinear", 127.5, 127.5),
    "torch-antialias": (resize_antialiased, "squash299-torch-bilinear-antialias", 128.0, 128.0),
    "tf-bilinear": (resize_tensorflow, "squash299-tf1-bilinear", 128.0, 128.0),
}


class InceptionExtractor:
    """`resize` is a name in RESIZES: clean-fid's, pytorch-fid's, torchmetrics' or torch-fidelity's preprocessing."""

    dim = 2048

    def __init__(self, network: InceptionV3, digest: str, resize: str = "clean"):
        if resize not in RESIZES:
            raise InputError(f"inception: resize must be one of {', '.join(RESIZES)}, got {resize!r}")
        self.network = network.float().eval().requires_grad_(False)
        self.resize, self.preprocessing, self.centre, self.width = RESIZES[resize]
        self.id = f"inception-2015-12-05:{digest[:8]}"

    @torch.inference_mode()
    def __call__(self, images: list[np.ndarray]) -> np.ndarray:
        check_images(images)
        batch = (np.stack([self.resize(image) for image in images]) - self.centre) / self.width
        return self.network(torch.from_numpy(batch.astype(np.float32))).numpy()


def load_inception(path: Path | None = None, resize: str = "clean") -> InceptionExtractor:
    """The published weights from `path`, or from the file that MEDISYN_INCEPTION names; never anything else instead."""
    named = path if path is not None else Path(os.environ[ENVIRONMENT]) if ENVIRONMENT in os.environ else None
    if named is None or not named.is_file():
        problem = "no weight file was given" if named is None else f"{named.name} does not exist"
        raise ModelError(
            f"inception: {problem}. Download {' or '.join(FILES)}, sha256 {SHA256}, "
            f"and give its path with --weights or in {ENVIRONMENT}; the extractor inception:download fetches it once."
        )
    digest = file_sha256(named)
    return InceptionExtractor(_network_from(named, digest), digest, resize)


def _network_from(path: Path, digest: str) -> InceptionV3:
    """A .safetensors file as it is; a pickle only with the published sha256, and read as tensors alone."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        weights = load_file(path)
    elif digest == SHA256:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    else:
        raise ModelError(
            f"inception: {path.name} has sha256 {digest[:8]}..., expected {SHA256[:8]}...: not the published file, "
            f"or damaged. A converted copy is accepted as .safetensors."
        )
    network = InceptionV3()
    missing, unexpected = network.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ModelError(
            f"inception: {path.name} is not the FID Inception v3: {len(missing)} weights are missing and "
            f"{len(unexpected)} unknown, for instance {[*missing, *unexpected][0]}"
        )
    return network
