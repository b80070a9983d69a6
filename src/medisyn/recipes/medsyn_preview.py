"""Previews of a CT run: volumes from the same prompts and seeds every time, cut along three planes, on one PNG."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medisyn import runs
from medisyn.errors import RangeError

if TYPE_CHECKING:
    from medisyn.families.medsyn.base_model import MedSynBase


@dataclass(frozen=True)
class VolumePreview:
    """Called with the path of the PNG to write; one volume below the other, with its masks drawn on it."""

    family: MedSynBase
    prompts: Sequence[str]

    def __call__(self, path: Path) -> None:
        import io

        import numpy as np
        from PIL import Image

        from medisyn.generation.volume_files import planes
        from medisyn.types import Request

        requests = [Request(f"preview-{number}", prompt, number) for number, prompt in enumerate(self.prompts)]
        latents = self.family.sample(requests)
        pictures = []
        for volume, masks in zip(self.family.decode(latents), self.family.masks(latents), strict=True):
            with contextlib.suppress(RangeError):  # in its first steps a network may make a volume of one value
                pictures.append(planes(volume, masks).array_CHW.transpose(1, 2, 0))  # type: ignore[arg-type]
        if pictures:
            stream = io.BytesIO()
            Image.fromarray(np.concatenate(pictures)).save(stream, "PNG")
            runs.write_bytes(path, stream.getvalue())
