"""Clips and volumes through the shipped image encoder, frame by frame or slice by slice, so that numbers exist offline.

Shapes here: T frames, D slices, H, W pixels, F features of one picture.
These are extractors of their own, asked for by name. They see single pictures, so they know little of how slices fit
together; their figures rank models of one corpus and compare with no published FVD or 3D distance.
"""

from __future__ import annotations

import numpy as np

from medisyn.evaluation.features import check_clips, check_volumes
from medisyn.evaluation.features.encoder import EncoderExtractor
from medisyn.evaluation.features.medicalnet import HIGH_HU, LOW_HU
from medisyn.intensity import window

PICTURES = 32  # frames or slices of one clip or volume, evenly spaced from the first to the last


class FramesExtractor:
    """Mean over frames, and mean absolute step from frame to frame, of a picture extractor's features: 2 F."""

    def __init__(self, pictures: EncoderExtractor):
        self.pictures = pictures
        self.id = f"{pictures.id.replace(':', '-frames:')}"
        self.preprocessing = f"{PICTURES}-even-frames-{pictures.preprocessing}"
        self.dim = 2 * pictures.dim

    def __call__(self, clips: list[np.ndarray]) -> np.ndarray:
        check_clips(clips)
        rows = []
        for clip_THWC in clips:
            features_TF = self.pictures([np.ascontiguousarray(clip_THWC[t]) for t in evenly(len(clip_THWC))])
            steps_F = np.abs(np.diff(features_TF, axis=0)).mean(axis=0)
            rows.append(np.concatenate([features_TF.mean(axis=0), steps_F]))
        return np.stack(rows)


class SlicesExtractor:
    """Mean over axial slices of a picture extractor's features, F. HU from -1024 to 600 become grey 0 to 255."""

    def __init__(self, pictures: EncoderExtractor):
        self.pictures = pictures
        self.id = f"{pictures.id.replace(':', '-slices:')}"
        self.preprocessing = f"{PICTURES}-even-axial-slices-hu{LOW_HU:.0f}..{HIGH_HU:.0f}-{pictures.preprocessing}"
        self.dim = pictures.dim

    def __call__(self, volumes: list[np.ndarray]) -> np.ndarray:
        check_volumes(volumes)
        return np.stack([self._features(volume) for volume in volumes])

    def _features(self, volume_DHW: np.ndarray) -> np.ndarray:
        grey_DHW = window(volume_DHW[evenly(len(volume_DHW))], HIGH_HU - LOW_HU, (HIGH_HU + LOW_HU) / 2)
        return self.pictures([np.repeat(slice_HW[:, :, None], 3, axis=2) for slice_HW in grey_DHW]).mean(axis=0)


def evenly(count: int) -> np.ndarray:
    """At most 32 indices from the first to the last, evenly spaced."""
    return np.unique(np.rint(np.linspace(0, count - 1, min(count, PICTURES))).astype(int))
