"""Residual networks: ResNet-10, -18 and -50 on pictures (torchvision's keys) and on volumes (MedicalNet's keys).

Shapes here: B batch, C channels, D, H, W depth, height, width, F features.
The published weights fit without renaming: torchvision's `resnet18-f37072fd.pth` and `resnet50-0676ba61.pth` for
pictures; MedicalNet's `resnet_10.pth`, `resnet_18.pth` and `resnet_50.pth` for volumes (Chen et al., 2019).
MedicalNet's last two stages keep their size and see further instead: stride 1 with dilation 2 and 4. The parameters
alone do not say so; a network with stride 2 loads the same file and gives other features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medisyn.errors import InputError, ModelError
from medisyn.runs import file_sha256

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}  # depth -> blocks per stage
MEDICALNET_SHORTCUT = {10: "B", 18: "A", 50: "B"}  # of each published file
HEADS = ("fc.", "conv_seg.")  # what a published file holds beside the trunk: 1,000 classes, or a segmentation head


def _conv(dims: int) -> Any:
    return nn.Conv3d if dims == 3 else nn.Conv2d


def _norm(dims: int, channels: int) -> nn.Module:
    return nn.BatchNorm3d(channels) if dims == 3 else nn.BatchNorm2d(channels)


class Pointwise2d(nn.Conv2d):
    """A convolution of width 1 and any stride: the places that the stride leaves, then stride 1.

    With a stride of its own, oneDNN writes past its buffer when it trains fewer than 8 (AVX2) or 16 (AVX-512) channels
    in channels-last (oneDNN issue 6035, open in torch 2.13).
    """

    def forward(self, x: Tensor) -> Tensor:
        down, right = self.stride
        return nn.functional.conv2d(x[..., ::down, ::right], self.weight, self.bias)


class PadShortcut(nn.Module):
    """Shortcut A (He et al., 2016): every stride-th voxel, and zeros for the channels that are new. No parameters."""

    def __init__(self, dims: int, channels_out: int, stride: int):
        super().__init__()
        self.dims, self.channels_out, self.stride = dims, channels_out, stride

    def forward(self, x: Tensor) -> Tensor:
        for axis in range(2, 2 + self.dims):
            x = x.index_select(axis, torch.arange(0, x.shape[axis], self.stride, device=x.device))
        zeros = x.new_zeros(x.shape[0], self.channels_out - x.shape[1], *x.shape[2:])
        return torch.cat([x, zeros], dim=1)


class BasicBlock(nn.Module):
    """Two 3-wide convolutions and the shortcut."""

    expansion = 1

    def __init__(self, dims: int, ins: int, planes: int, stride: int, dilation: int, downsample: nn.Module | None):
        super().__init__()
        conv, spread = _conv(dims), {"padding": dilation, "dilation": dilation, "bias": False}
        self.conv1, self.bn1 = conv(ins, planes, 3, stride=stride, **spread), _norm(dims, planes)
        self.conv2, self.bn2 = conv(planes, planes, 3, **spread), _norm(dims, planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(x)) + shortcut).relu()


class Bottleneck(nn.Module):
    """1-wide, 3-wide (which strides), 1-wide convolutions to four times the planes, and the shortcut."""

    expansion = 4

    def __init__(self, dims: int, ins: int, planes: int, stride: int, dilation: int, downsample: nn.Module | None):
        super().__init__()
        conv, outs = _conv(dims), planes * self.expansion
        self.conv1, self.bn1 = conv(ins, planes, 1, bias=False), _norm(dims, planes)
        self.conv2 = conv(planes, planes, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = _norm(dims, planes)
        self.conv3, self.bn3 = conv(planes, outs, 1, bias=False), _norm(dims, outs)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return (self.bn3(self.conv3(x)) + shortcut).relu()


class ResNet(nn.Module):
    """(B, C, H, W) or (B, C, D, H, W) to class scores; without `num_classes` to features (B, F), F = `self.dim`.

    `strides` and `dilations` are those of the four stages. `width` is the first stage's planes, 64 in every
    published network; a small one makes a network for tests.
    """

    def __init__(
        self,
        depth: int,
        dims: int,
        *,
        channels_in: int,
        num_classes: int | None,
        strides: Sequence[int],
        dilations: Sequence[int],
        shortcut: str = "B",
        width: int = 64,
    ):
        super().__init__()
        if depth not in BLOCKS or dims not in (2, 3) or shortcut not in ("A", "B") or width < 1:
            raise InputError(
                f"a ResNet has depth {', '.join(map(str, BLOCKS))}, 2 or 3 dimensions, shortcut A or B and a width of "
                f"at least 1; got depth {depth}, {dims} dimensions, shortcut {shortcut!r}, width {width}"
            )
        self.dims, self.shortcut = dims, shortcut
        self.block = Bottleneck if depth >= 50 else BasicBlock
        self.ins = width
        self.conv1 = _conv(dims)(channels_in, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = _norm(dims, width)
        stages = zip(BLOCKS[depth], strides, dilations, strict=True)
        for number, (blocks, stride, dilation) in enumerate(stages):
            self.add_module(f"layer{number + 1}", self._stage(width * 2**number, blocks, stride, dilation))
        self.dim = self.ins
        self.fc = nn.Linear(self.dim, num_classes) if num_classes is not None else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _stage(self, planes: int, blocks: int, stride: int, dilation: int) -> nn.Sequential:
        outs = planes * self.block.expansion
        downsample: nn.Module | None = None
        if stride != 1 or self.ins != outs:
            downsample = PadShortcut(self.dims, outs, stride)
            if self.shortcut == "B":
                conv = (Pointwise2d if self.dims == 2 else nn.Conv3d)(self.ins, outs, 1, stride=stride, bias=False)
                downsample = nn.Sequential(conv, _norm(self.dims, outs))
        first = self.block(self.dims, self.ins, planes, stride, dilation, downsample)
        self.ins = outs
        return nn.Sequential(
            first, *(self.block(self.dims, outs, planes, 1, dilation, None) for _ in range(blocks - 1))
        )

    def maps(self, x: Tensor) -> Tensor:
        """The last stage's maps (B, F, ...): a 32nd of each side in 2D, an 8th in MedicalNet's 3D networks."""
        pool = nn.functional.max_pool3d if self.dims == 3 else nn.functional.max_pool2d
        x = pool(self.bn1(self.conv1(x)).relu(), 3, stride=2, padding=1)
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return x

    def features(self, x: Tensor) -> Tensor:
        """(B, F): the mean of the last maps."""
        return self.maps(x).flatten(2).mean(dim=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x) if self.fc is None else self.fc(self.features(x))


def resnet2d(depth: int, num_classes: int | None = None, *, channels_in: int = 3, width: int = 64) -> ResNet:
    """torchvision's ResNet of that depth; without `num_classes` its features."""
    strides, dilations = (1, 2, 2, 2), (1, 1, 1, 1)
    return ResNet(
        depth, 2, channels_in=channels_in, num_classes=num_classes, strides=strides, dilations=dilations, width=width
    )


def resnet3d(depth: int, num_classes: int | None = None, *, channels_in: int = 1, width: int = 64) -> ResNet:
    """MedicalNet's ResNet of that depth with its dilated last stages and the shortcut of its published file."""
    return ResNet(
        depth,
        3,
        channels_in=channels_in,
        num_classes=num_classes,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        shortcut=MEDICALNET_SHORTCUT.get(depth, "B"),
        width=width,
    )


def load_trunk(network: ResNet, path: Path) -> str:
    """Fill everything but the classification head from a published file, and return the file's sha256.

    The file is .safetensors, or a pickle read as tensors alone. `state_dict` nesting and the prefix "module." are
    undone, and the file's own head (`fc.`, `conv_seg.`) is left out. Raises ModelError for a missing file, one whose
    name states another sha256, and any missing, unknown or misshapen weight: nothing is loaded in part.
    """
    digest = _checked_digest(path)
    weights = {name: tensor for name, tensor in _read(path).items() if not name.startswith(HEADS)}
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(HEADS)}
    needed = {name for name in own if not name.endswith("num_batches_tracked")}  # absent from files before 2018
    missing, unknown = sorted(needed - weights.keys()), sorted(weights.keys() - own.keys())
    misshapen = [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
    if missing or unknown or misshapen:
        raise ModelError(
            f"ResNet: {path.name} does not fit this network: {len(missing)} weights are missing, {len(unknown)} are "
            f"unknown, {len(misshapen)} have another shape, for instance "
            f"{[*missing, *unknown, *sorted(misshapen)][0]}. Give the file of the same depth and dimensions."
        )
    network.load_state_dict(weights, strict=False)
    return digest


def _checked_digest(path: Path) -> str:
    if not path.is_file():
        raise ModelError(
            f"ResNet: the weight file {path.name} does not exist. Download torchvision's resnet18-f37072fd.pth or "
            f"resnet50-0676ba61.pth (pictures) or MedicalNet's resnet_50.pth (volumes) and give its path."
        )
    digest = file_sha256(path)
    stated = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if stated is not None and not digest.startswith(stated.group(1)):
        raise ModelError(f"ResNet: {path.name} has sha256 {digest[:8]}..., not the one in its name: it is damaged")
    return digest


def _read(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a weight file under the names that the network uses."""
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"ResNet: {path.name} is not a file of tensors ({type(error).__name__})") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"ResNet: {path.name} holds something other than one set of named tensors")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}
