"""I3D features of clips for the Fréchet video distance: the TorchScript port that published FVD figures use.

Shapes here: T frames, H, W pixels, B batch, D features.
400 Kinetics logits before the softmax (Unterthiner et al., 2018). The network squashes frames to 224 x 224 itself and
scales 0..255 to [-1, 1]; other codes crop instead, which gives other numbers, so the resize stands in the id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from medisyn.errors import InputError, ModelError
from medisyn.evaluation.features import check_clips
from medisyn.evaluation.features.published import I3D, digest_of, name_of

FRAMES = 16  # the convention; MediSyn v1 has 32 frames in a clip
LEAST_FRAMES = 10  # the network's own strides leave nothing of fewer


class I3dExtractor:
    """The first `frames` frames of each clip. A shorter clip is refused: padding it with black would be measured."""

    dim = 400

    def __init__(self, network: Any, name: str, frames: int):
        self.network, self.frames = network, frames
        self.id = f"i3d-sgv:{name}"
        self.preprocessing = f"first-{frames}-frames-squash224"

    @torch.inference_mode()
    def __call__(self, clips: list[np.ndarray]) -> np.ndarray:
        check_clips(clips)
        rows = []
        for number, clip_THWC in enumerate(clips):
            if len(clip_THWC) < self.frames:
                raise InputError(
                    f"clip {number} of the batch has {len(clip_THWC)} frames, this extractor takes {self.frames}; ask "
                    f"for fewer (i3d:{LEAST_FRAMES} is the least) or leave short clips out on both sides"
                )
            frames_BCTHW = torch.from_numpy(clip_THWC[: self.frames].transpose(3, 0, 1, 2).copy())[None].float()
            rows.append(self.network(frames_BCTHW, rescale=True, resize=True, return_features=True)[0])
        features = torch.stack(rows)
        if features.shape != (len(clips), self.dim):
            raise ModelError(f"i3d: the network gave features of shape {tuple(features.shape)}, not (n, {self.dim})")
        return features.float().numpy()


def load_i3d(path: Path | None, frames: int = FRAMES) -> I3dExtractor:
    """The TorchScript file at `path`.

    TorchScript is a program: running it runs what its author wrote, restricted to TorchScript's own operators, but not
    harmless as a file of numbers is. So no such file is ever fetched or found by itself. It runs only when the user
    gives its path; a file that is not the one known by its sha256 runs too, and is called "other" in the id, because
    giving its path is the user's word for it. Raises ModelError when it is missing or no TorchScript.
    """
    if frames < LEAST_FRAMES:
        raise InputError(f"i3d takes clips of at least {LEAST_FRAMES} frames, got {frames}")
    digest = digest_of(I3D, path)
    try:
        network = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise ModelError(f"i3d: {Path(str(path)).name} is no TorchScript file ({reason})") from None
    return I3dExtractor(network, name_of(I3D, digest), frames)
