"""Previews while a HiGen model trains: the same prompts and seeds every time, eight frames of each clip in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medisyn import runs

if TYPE_CHECKING:
    from medisyn.families.higen.model import HiGen

FRAMES_SHOWN = 8


@dataclass(frozen=True)
class ClipPreview:
    """Called with the path of the PNG to write; one clip below the other."""

    family: HiGen
    prompts: Sequence[str]

    def __call__(self, path: Path) -> None:
        import io

        from PIL import Image

        from medisyn.types import Clip, Request

        requests = [Request(f"preview-{number}", prompt, number) for number, prompt in enumerate(self.prompts)]
        rows = []
        for clip in self.family.decode(self.family.sample(requests)):
            assert isinstance(clip, Clip)
            shown = np.linspace(0, clip.array_CTHW.shape[1] - 1, FRAMES_SHOWN).round().astype(int)
            rows.append(np.concatenate([clip.array_CTHW[:, number].transpose(1, 2, 0) for number in shown], axis=1))
        stream = io.BytesIO()
        Image.fromarray(np.concatenate(rows)).save(stream, "PNG")
        runs.write_bytes(path, stream.getvalue())
