"""From one prompt, or one noise, to another in equal steps: the requests of the frames, a sheet and an animation.

Shapes here: S series (one seed each), N frames, H, W rows and columns.
A frame is an ordinary request, so `generate` makes it, resumes it and writes into it how it was made.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError, closest
from medisyn.generation.grammar import Term, format_prompt, parse_prompt, terms_for_request
from medisyn.generation.prompts import Defaults
from medisyn.generation.provenance import NOTICE
from medisyn.seeding import seed_for
from medisyn.types import Request

WAYS = ("weight", "embedding", "noise")
LEAST_FRAMES, MOST_FRAMES = 2, 1000
GAP = 2  # pixels between pictures
MILLISECONDS = 250  # per frame of the animation; the two ends stay three times as long


def frame_requests(start: str, end: str | None, *, frames: int, by: str, defaults: Defaults) -> list[Request]:
    """`defaults.n` series of `frames` requests each, series after series; frame i lies at share i / (frames - 1).

    weight: the prompt "end :share AND start :(1 - share)"; both prompts may themselves combine several.
    embedding: the text embedding (1 - share) * start + share * end; plain prompts only.
    noise: `start` at noise on the sphere between the series' seed and a second one; no `end`.
    A series keeps its seed, so nothing but the share changes along it. Raises InputError for what does not fit.
    """
    _check(start, end, frames, by)
    requests = []
    for series in range(defaults.n):
        seed = seed_for(defaults.seed, f"series-{series}")
        for frame in range(frames):
            share = frame / (frames - 1)
            facts = {"series": series, "frame": frame, "share": share, "by": by}
            requests.append(_request(start, end, by, share, seed, f"s{series:03d}-f{frame:03d}", facts, defaults))
    return requests


def _request(
    start: str,
    end: str | None,
    by: str,
    share: float,
    seed: int,
    key: str,
    facts: Mapping[str, Any],
    defaults: Defaults,
) -> Request:
    common: dict[str, Any] = {
        name: getattr(defaults, name) for name in ("negative_prompt", "height", "width", "steps", "guidance")
    }
    if by == "weight":
        prompt = weighted_prompt(start, str(end), share)
        return Request(key, prompt, seed, metadata=facts, terms=terms_for_request(prompt), **common)
    toward: dict[str, Any] = {"toward_share": share, "terms": terms_for_request(start)}
    toward |= {"toward_prompt": end} if by == "embedding" else {"toward_seed": seed_for(seed, "toward")}
    return Request(key, start, seed, metadata=facts, **toward, **common)


def weighted_prompt(start: str, end: str, share: float) -> str:
    """The terms of `start` times 1 - share and those of `end` times share, as one prompt; at an end, that end alone."""
    scaled = [Term(term.text, _scaled(term.weight, 1 - share)) for term in parse_prompt(start) if share < 1]
    scaled += [Term(term.text, _scaled(term.weight, share)) for term in parse_prompt(end) if share > 0]
    return format_prompt(scaled)


def _scaled(weight: float, share: float) -> float:
    """As a person would write it: 1 - 0.8 leaves 0.2, not 0.19999999999999996."""
    return round(weight * share, 6)


def _check(start: str, end: str | None, frames: int, by: str) -> None:
    if by not in WAYS:
        raise InputError(f"interpolation by {by!r} is unknown, allowed: {', '.join(WAYS)}.{closest(by, WAYS)}")
    if not LEAST_FRAMES <= frames <= MOST_FRAMES:
        raise InputError(f"frames must be a whole number from {LEAST_FRAMES} to {MOST_FRAMES}, got {frames}")
    if by == "noise":
        if end is not None:
            raise InputError("interpolation by noise goes from one seed to another with one prompt: leave --to out")
        parse_prompt(start)
        return
    if end is None:
        raise InputError(f"interpolation by {by} needs two prompts: give --to as well as --from")
    for prompt in (start, end):
        if len(parse_prompt(prompt)) > 1 and by == "embedding":
            raise InputError("interpolation by embedding takes plain prompts without AND; combined ones go by weight")


def sheet(pictures_SN: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Pictures (H, W, 3) uint8 of one size, one series per row, as one white-lined picture."""
    height, width = pictures_SN[0][0].shape[:2]
    rows, columns = len(pictures_SN), len(pictures_SN[0])
    shape = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    sheet_HW3 = np.full(shape, 255, dtype=np.uint8)
    for row, pictures in enumerate(pictures_SN):
        for column, picture in enumerate(pictures):
            top, left = row * (height + GAP), column * (width + GAP)
            sheet_HW3[top : top + height, left : left + width] = picture
    return sheet_HW3


def write_sheet(path: Path, pictures_SN: Sequence[Sequence[np.ndarray]], text: str) -> None:
    """The contact sheet as PNG; `text` says in the file what it shows."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_itxt("Disclaimer", NOTICE)
    chunks.add_itxt("Description", text)
    stream = io.BytesIO()
    Image.fromarray(sheet(pictures_SN)).save(stream, format="PNG", pnginfo=chunks)
    runs.write_bytes(path, stream.getvalue())


def write_animation(path: Path, pictures_SN: Sequence[Sequence[np.ndarray]], text: str) -> None:
    """All series side by side as an animated GIF that runs for ever, forwards; `text` stands in its comment."""
    from PIL import Image

    num_frames = len(pictures_SN[0])
    frames = [Image.fromarray(sheet([[series[i] for series in pictures_SN]])) for i in range(num_frames)]
    times = [3 * MILLISECONDS if i in (0, num_frames - 1) else MILLISECONDS for i in range(num_frames)]
    stream = io.BytesIO()
    frames[0].save(
        stream,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=times,
        loop=0,
        comment=f"{text}. {NOTICE}".encode(),
    )
    runs.write_bytes(path, stream.getvalue())
