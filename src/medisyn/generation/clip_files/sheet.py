"""Frames of a clip side by side, above its prompt: for a report, a mail or a first look where no video plays.

Shapes here: T frames, H, W pixels, C channels.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import runs
from medisyn.generation.clip_files.video import frames_THWC, rate_of
from medisyn.generation.provenance import KEYWORD
from medisyn.generation.volume_files.record import full_record, record_json
from medisyn.types import Clip

FRAMES = 8
GAP, STRIP, FONT = 2, 18, 12  # pixels: between frames, of a line of text, of its letters
LETTER = 6.2  # mean width of a letter, pixels
LEAST_WIDTH, LINES = 480, 3  # of the sheet, and of the prompt: a longer one is cut
GREY = (170, 170, 170)


def shown_frames(num_frames: int) -> list[int]:
    """At most 8 frames, evenly spaced from the first to the last."""
    return sorted({int(t) for t in np.rint(np.linspace(0, num_frames - 1, min(num_frames, FRAMES)))})


def frame_sheet(clip: Clip, caption: str) -> np.ndarray:
    """(H, W, 3) uint8: up to 8 frames in one row at their own size, each with its time in seconds, then the caption."""
    from PIL import Image, ImageDraw, ImageFont

    frames, rate = frames_THWC(clip), rate_of(clip)
    chosen = shown_frames(len(frames))
    height, width = frames.shape[1:3]
    total = max(LEAST_WIDTH, len(chosen) * (width + GAP) - GAP)
    lines = textwrap.wrap(caption, max(20, int(total / LETTER)), max_lines=LINES, placeholder=" ...")
    canvas = Image.new("RGB", (total, height + STRIP * (1 + len(lines))), (0, 0, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT)
    for column, t in enumerate(chosen):
        left = column * (width + GAP)
        canvas.paste(Image.fromarray(np.broadcast_to(frames[t], (height, width, 3)).copy()), (left, 0))
        draw.text((left + 2, height + 2), f"{t / rate:.2f} s", GREY, font)
    for number, line in enumerate(lines, start=1):
        draw.text((2, height + 2 + STRIP * number), line, GREY, font)
    return np.asarray(canvas)


def write_frame_sheet(path: Path, clip: Clip, record: Mapping[str, Any]) -> None:
    """Write `frame_sheet` as a PNG whose text holds the record (`generation.provenance.read` reads it); atomic."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    content, chunks = full_record(record), PngInfo()
    chunks.add_itxt("Disclaimer", content["notice"])
    chunks.add_itxt("Description", content["prompt"])
    chunks.add_itxt("Software", content["software"])
    chunks.add_itxt(KEYWORD, record_json(content))
    sheet = frame_sheet(clip, f"{content['prompt']} - {content['notice']}")
    with runs.atomic_file(path) as stream:
        Image.fromarray(sheet).save(stream, format="PNG", pnginfo=chunks)
