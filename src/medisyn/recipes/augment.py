"""Augmented variants of a training picture that keep what the caption says true.

A chest X-ray or an axial CT is never mirrored: that would move the heart or the liver to the other side.
Shapes here: C channels, H, W pixels.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from medisyn.errors import InputError
from medisyn.recipes.reword import reword
from medisyn.seeding import seed_for
from medisyn.types import Picture, Sample

# Image types without an up or a left: all eight turns and mirrors show an equally possible specimen.
ANY_TURN = ("blood smear microscopy", "histopathology")
ANY_SIDE = ("ultrasound", "endoscopy")


@dataclass(frozen=True)
class Variation:
    """A drawn augmentation: quarter turns, mirror, then zoom, angle in degrees, shift in pixels, and gamma."""

    quarter_turns: int = 0
    mirror: bool = False
    zoom: float = 1.0
    angle: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    gamma: float = 1.0

    def __call__(self, array_CHW: np.ndarray) -> np.ndarray:
        """A uint8 picture of the same size; what lies outside is filled with the nearest edge pixel."""
        array_CHW = np.rot90(array_CHW, self.quarter_turns, axes=(1, 2))
        if self.mirror:
            array_CHW = array_CHW[:, :, ::-1]
        if (self.zoom, self.angle, self.shift) != (1.0, 0.0, (0.0, 0.0)):
            array_CHW = self._moved(array_CHW)
        if self.gamma != 1.0:
            table = np.rint(255 * (np.arange(256) / 255) ** self.gamma).astype(np.uint8)
            array_CHW = table[array_CHW]
        return np.ascontiguousarray(array_CHW)

    def _moved(self, array_CHW: np.ndarray) -> np.ndarray:
        height, width = array_CHW.shape[1:]
        pad = max(height, width) // 4
        padded_CHW = np.pad(array_CHW, ((0, 0), (pad, pad), (pad, pad)), mode="edge")
        cos, sin = np.cos(np.deg2rad(self.angle)) / self.zoom, np.sin(np.deg2rad(self.angle)) / self.zoom
        across, down = self.shift
        middle_x, middle_y = width / 2, height / 2
        matrix = (
            *(cos, sin, pad + middle_x + across - cos * middle_x - sin * middle_y),
            *(-sin, cos, pad + middle_y + down + sin * middle_x - cos * middle_y),
        )
        return np.stack(
            [
                np.asarray(
                    Image.fromarray(channel).transform(
                        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
                    )
                )
                for channel in padded_CHW
            ]
        )


def draw_variation(rng: np.random.Generator, image_type: str) -> Variation:
    """Zoom 0.96-1.06, 4 degrees, 4 pixels and gamma 0.9 to 1.1 at most; turns and mirrors where they do no harm."""
    zoom, gamma = np.exp(rng.uniform(np.log([0.96, 0.9]), np.log([1.06, 1.1])))
    angle, across, down = rng.uniform([-4, -4, -4], [4, 4, 4])
    turns = int(rng.integers(4)) if image_type in ANY_TURN else 0
    mirror = bool(rng.integers(2)) if image_type in (*ANY_TURN, *ANY_SIDE) else False
    return Variation(turns, mirror, float(zoom), float(angle), (float(across), float(down)), float(gamma))


def short_caption(caption: str) -> str:
    """A caption without what it says is shown: "Frontal (PA) chest X-ray image showing COVID-19" up to "image"."""
    return re.split(r",? showing ", caption, maxsplit=1)[0]


def vary(sample: Sample, variant: int) -> Sample:
    """Variant 0 is the sample itself; the others are drawn from the sample's key, the same in every run.

    Variant 2 has the caption in other words, variant 3 the short one in other words, so that a prompt need neither
    follow the corpus's template nor name a finding.
    """
    if variant == 0:
        return sample
    if not isinstance(sample.item, Picture):
        raise InputError(f"sample {sample.key}: only pictures are augmented")
    rng = np.random.default_rng(seed_for(variant, sample.key))
    variation = draw_variation(rng, str(sample.metadata.get("image_type", "")))
    item = dataclasses.replace(sample.item, array_CHW=variation(sample.item.array_CHW))
    caption = short_caption(sample.caption) if variant == 3 else sample.caption
    return dataclasses.replace(sample, item=item, caption=reword(caption, rng) if variant > 1 else caption)
