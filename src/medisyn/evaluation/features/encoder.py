"""The small medical encoder: a strided CNN that ships with the package, so that distances exist without any download.

Shapes here: B batch, H, W pixels, D features.
About 0.6 million parameters; it is trained by `recipes/medical_encoder.py` to name the classes of the training split,
and its features are the global average of the last maps. It sees what tells those classes apart and little else:
its distances rank models of one corpus and compare with no published figure.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from medisyn.errors import ModelError
from medisyn.evaluation.features import check_images
from medisyn.runs import file_sha256, write_bytes, write_json

SHIPPED = Path(__file__).resolve().parents[2] / "starter" / "medical-encoder"
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def norm(channels: int) -> nn.GroupNorm:
    """Group norm: one image's features do not depend on which images share its batch."""
    return nn.GroupNorm(max(1, channels // 16), channels)


class Down(nn.Module):
    """Halve the sides, then add one residual convolution."""

    def __init__(self, channels_in: int, channels_out: int, residual: bool = True):
        super().__init__()
        self.down = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1)
        self.down_norm = norm(channels_out)
        self.residual = nn.Conv2d(channels_out, channels_out, 3, padding=1) if residual else None
        self.residual_norm = norm(channels_out) if residual else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = nn.functional.silu(self.down_norm(self.down(x_BCHW)))
        if self.residual is not None and self.residual_norm is not None:
            x_BCHW = x_BCHW + nn.functional.silu(self.residual_norm(self.residual(x_BCHW)))
        return x_BCHW


class MedicalEncoder(nn.Module):
    """RGB values 0..255 at `size` pixels to D = widths[-1] features, and to class scores while it is trained."""

    def __init__(self, classes: Sequence[str], widths: Sequence[int] = (32, 64, 128, 256), size: int = 128):
        super().__init__()
        self.config: dict[str, Any] = {"classes": list(classes), "widths": list(widths), "size": size}
        first, *others = widths
        self.stem = nn.Conv2d(3, first, 5, stride=2, padding=2)
        self.stem_norm = norm(first)
        ins = [first, *others[:-1]]
        self.stages = nn.ModuleList(Down(a, b, residual=b != widths[-1]) for a, b in zip(ins, others, strict=True))
        self.head = nn.Linear(widths[-1], len(classes))

    def features(self, rgb_BCHW: Tensor) -> Tensor:
        """(B, D) from float RGB 0..255."""
        x_BCHW = nn.functional.silu(self.stem_norm(self.stem(rgb_BCHW / 127.5 - 1.0)))
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
        return x_BCHW.mean(dim=(2, 3))

    def forward(self, rgb_BCHW: Tensor) -> Tensor:
        """Class scores (B, classes)."""
        return self.head(self.features(rgb_BCHW))


def to_batch(images: Sequence[np.ndarray], size: int) -> Tensor:
    """Images as one float batch (B, 3, size, size), 0..255; other sizes go through Pillow's antialiased bicubic."""
    rows = []
    for image in images:
        if image.shape[:2] != (size, size):
            image = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
        rows.append(torch.from_numpy(np.array(image)))
    return torch.stack(rows).permute(0, 3, 1, 2).float()


class EncoderExtractor:
    """The encoder as an extractor; computes in float32 whatever it was trained in."""

    def __init__(self, network: MedicalEncoder, digest: str):
        self.network = network.float().eval().requires_grad_(False)
        self.size: int = network.config["size"]
        self.id = f"medical-encoder:{digest[:8]}"
        self.preprocessing = f"squash{self.size}-pillow-bicubic"
        self.dim = int(network.config["widths"][-1])

    @torch.inference_mode()
    def __call__(self, images: list[np.ndarray]) -> np.ndarray:
        check_images(images)
        return self.network.features(to_batch(images, self.size)).numpy().astype(np.float32)


def save_network(network: MedicalEncoder | nn.Module, folder: Path, config: dict[str, Any]) -> str:
    """Write weights and config.json; the sha256 of the weights is returned."""
    from safetensors.torch import save

    weights = {name: tensor.detach().contiguous().float() for name, tensor in network.state_dict().items()}
    write_bytes(folder / WEIGHTS, save(weights, metadata={"format": "pt"}))
    write_json(folder / CONFIG, config)
    return file_sha256(folder / WEIGHTS)


def read_config(folder: Path, what: str) -> dict[str, Any]:
    """config.json of a network folder; ModelError when the folder is not complete."""
    missing = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{what}: {' and '.join(missing)} not found in {folder.name}/. "
            f"Make them with `medisyn train medical-encoder --corpus CORPUS --out DIR` and give that folder."
        )
    try:
        return dict(json.loads((folder / CONFIG).read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError, ValueError) as error:
        raise ModelError(f"{what}: {folder.name}/{CONFIG} is not a JSON object ({error})") from None


def load_weights(network: nn.Module, folder: Path, what: str) -> str:
    """Fill the network from the folder's safetensors file and return the file's sha256."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        first_line = str(error).splitlines()[0]
        raise ModelError(f"{what}: {folder.name}/{WEIGHTS} does not fit its config.json ({first_line})") from None
    return file_sha256(folder / WEIGHTS)


def load_encoder(folder: Path | None = None) -> EncoderExtractor:
    """The shipped encoder, or the one in `folder` (model.safetensors and config.json)."""
    folder = SHIPPED if folder is None else folder
    config = read_config(folder, "medical-encoder")
    try:
        network = MedicalEncoder(config["classes"], config["widths"], config["size"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"medical-encoder: {folder.name}/{CONFIG} lacks or breaks a field ({error!r})") from None
    return EncoderExtractor(network, load_weights(network, folder, "medical-encoder"))
