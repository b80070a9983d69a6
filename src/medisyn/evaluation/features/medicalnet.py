"""MedicalNet's ResNet-50 on CT volumes: the features behind MedSyn's and HA-GAN's Fréchet distance and MMD.

Shapes here: D, H, W voxels, B batch, F features.
Hounsfield units clipped to [-1024, 600] and scaled to [-1, 1] (MedSyn; no z-score, unlike MedicalNet's training), a
cube of 256 voxels, and the mean of the last maps: 2,048 features. The last two stages are dilated, not strided.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from medisyn.evaluation.features import check_volumes
from medisyn.evaluation.features.published import MEDICALNET, digest_of, name_of
from medisyn.nn.resnet import ResNet, load_trunk, resnet3d

LOW_HU, HIGH_HU = -1024.0, 600.0  # MedSyn, section IV
SIDE = 256


class MedicalNetExtractor:
    """Volumes in HU of any size, brought to a cube of `side` voxels by trilinear interpolation, one at a time."""

    def __init__(self, network: ResNet, name: str, side: int):
        self.network = network.float().eval().requires_grad_(False)
        self.side, self.dim = side, network.dim
        self.id = f"med3d-resnet50:{name}"
        self.preprocessing = f"hu{LOW_HU:.0f}..{HIGH_HU:.0f}-symmetric-cube{side}-trilinear"

    @torch.inference_mode()
    def __call__(self, volumes: list[np.ndarray]) -> np.ndarray:
        check_volumes(volumes)
        return torch.cat([self.network.features(self._prepare(volume)) for volume in volumes]).numpy()

    def _prepare(self, volume_DHW: np.ndarray) -> torch.Tensor:
        hu = torch.from_numpy(np.asarray(volume_DHW, dtype=np.float32).copy()).clamp_(LOW_HU, HIGH_HU)[None, None]
        scaled = (hu - LOW_HU) / (HIGH_HU - LOW_HU) * 2 - 1
        if scaled.shape[2:] == (self.side,) * 3:
            return scaled
        return torch.nn.functional.interpolate(scaled, (self.side,) * 3, mode="trilinear", align_corners=False)


def load_medicalnet(path: Path | None, side: int = SIDE, *, width: int = 64) -> MedicalNetExtractor:
    """From MedicalNet's `resnet_50.pth`; `width` is 64 in every published file, less in tests.

    Raises ModelError when the file is missing or of another network. A cube of 256 needs a GPU or minutes per volume.
    """
    digest = digest_of(MEDICALNET, path)
    assert path is not None  # digest_of refuses None
    network = resnet3d(50, width=width)
    load_trunk(network, path)
    return MedicalNetExtractor(network, name_of(MEDICALNET, digest), side)
