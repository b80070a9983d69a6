"""From one prompt to another in frames, and a classifier's view of them: behind `medisyn generate interpolate`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError, closest
from medisyn.evaluation.monotone import Monotonicity, monotonicity
from medisyn.generation.generate import GenerateReport, generate
from medisyn.generation.grammar import check_tokens, lost_words
from medisyn.generation.interpolate import frame_requests, write_animation, write_sheet
from medisyn.generation.prompts import Defaults
from medisyn.recipes.generate_images import DEFAULT_MODEL, default_folder, device_name, open_for_sampling
from medisyn.recipes.shipped_models import FOLDER
from medisyn.types import Request

if TYPE_CHECKING:
    from medisyn.evaluation.classify import Judge

SHIPPED_JUDGE = FOLDER / "medical-encoder" / "judge"
# Below the folder of frames, so that a reader of that folder does not take them for frames.
SHEET, ANIMATION, RESULT = "series/sheet.png", "series/animation.gif", "series/monotone.json"

# Pictures (H, W, 3) uint8 -> one score each, such as the log-odds of a class.
Score = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class InterpolationReport:
    """What was made; `monotone` is None where no score was asked for. `scored_by` says what the score is."""

    frames: GenerateReport
    monotone: Monotonicity | None
    scored_by: str

    @property
    def out(self) -> Path:
        return self.frames.out

    def summary(self) -> str:
        """Lines for a person."""
        lines = [self.frames.summary(), f"Sheet: {self.out / SHEET}  Animation: {self.out / ANIMATION}"]
        if self.monotone is not None:
            lines.append(f"{self.scored_by}: {self.monotone.summary()}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        measured = None if self.monotone is None else self.monotone.as_dict()
        return {**self.frames.as_dict(), "monotone": measured, "scored_by": self.scored_by}


def interpolate_images(
    start: str,
    end: str | None = None,
    *,
    frames: int = 9,
    by: str = "weight",
    n: int = 1,
    seed: int = 0,
    model: str = DEFAULT_MODEL,
    out: Path | str | None = None,
    negative_prompt: str = "",
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    solver: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    target: str | None = None,
    judge: Path | str | None = None,
    score: Score | None = None,
) -> InterpolationReport:
    """Make `n` series of `frames` pictures from `start` to `end`, each with a seed of its own that it keeps.

    by: "weight" (the prompts are combined with weights 1 - share and share), "embedding" (the text embeddings are
        mixed), or "noise" (one prompt; the noise goes from one seed to another).
    target: a class of the judge; the log-odds of that class are its score, and whether they rise along each series is
        measured. judge: the folder of a classifier; None: the shipped one, trained on real images.
    score: a score of your own instead.
    The other options are those of `generate_images`. Writes the frames as `generate` does, a contact sheet, an
    animation and, with a score, `monotone.json`.
    """
    if score is not None and (target is not None or judge is not None):
        raise InputError("give either a score of your own, or a target class with a judge")
    if judge is not None and target is None:
        raise InputError("a judge needs a target class: name the one whose score should rise")
    defaults = Defaults(
        n=n, seed=seed, negative_prompt=negative_prompt, height=height, width=width, steps=steps, guidance=guidance
    )
    requests = frame_requests(start, end, frames=frames, by=by, defaults=defaults)
    scored_by = "score" if score is not None else ""
    if target is not None:
        score, scored_by = log_odds_of(target, SHIPPED_JUDGE if judge is None else Path(judge))
    opened, facts, device = open_for_sampling(model, device, dtype, solver, only_images="interpolation")
    requests = [opened.resolve(request) for request in requests]
    check_tokens(requests, opened.known_tokens)
    lost = {request.prompt: lost_words(request, opened.lost_words) for request in requests}
    way = f"{start} to {end}" if end is not None else start
    folder = Path(out) if out is not None else default_folder(way, defaults, {**facts, "by": by, "frames": str(frames)})
    made = generate(
        requests,
        opened.family,
        folder,
        model=facts,
        batch_size=batch_size,
        lost_words=lost.__getitem__,
        settings={"device": device_name(device), "seed": seed, "from": start, "to": end, "by": by, "frames": frames},
    )
    pictures = read_series(folder, requests, frames)
    text = f"{way}, by {by}, {frames} frames, {n} seeds, {facts['id']}"
    write_sheet(folder / SHEET, pictures, text)
    write_animation(folder / ANIMATION, pictures, text)
    measured = None if score is None else measure(pictures, score)
    if measured is not None:
        runs.write_json(folder / RESULT, {"scored_by": scored_by, **measured.as_dict()})
    return InterpolationReport(made, measured, scored_by)


def read_series(folder: Path, requests: Sequence[Request], frames: int) -> list[list[np.ndarray]]:
    """The pictures (H, W, 3) uint8 of the folder, one list per series, in the order of the requests."""
    from PIL import Image

    pictures = [np.asarray(Image.open(folder / f"{request.key}.png").convert("RGB")) for request in requests]
    return [pictures[start : start + frames] for start in range(0, len(pictures), frames)]


def measure(pictures_SN: Sequence[Sequence[np.ndarray]], score: Score) -> Monotonicity:
    """Whether the score of the pictures rises along each series."""
    flat = [picture for series in pictures_SN for picture in series]
    return monotonicity(np.asarray(score(flat), dtype=np.float64).reshape(len(pictures_SN), -1))


def log_odds_of(target: str, folder: Path) -> tuple[Score, str]:
    """log(p / (1 - p)) of one class by the judge of `folder`, and its name. Raises InputError for an unknown class."""
    from medisyn.evaluation.classify import load_judge

    judge = load_judge(folder)
    if target not in judge.classes:
        raise InputError(
            f"the judge {judge.id} knows no class {target!r}.{closest(target, judge.classes)} "
            f"Its classes: {', '.join(judge.classes)}"
        )
    return functools.partial(_log_odds, judge, judge.classes.index(target)), f"log-odds of {target!r} by {judge.id}"


def _log_odds(judge: Judge, number: int, pictures: Sequence[np.ndarray]) -> np.ndarray:
    import torch

    from medisyn.evaluation.features.encoder import to_batch

    with torch.inference_mode():
        logits_NK = judge.network(to_batch(pictures, judge.network.config["size"])).double()
    others_NK = logits_NK[:, [k for k in range(logits_NK.shape[1]) if k != number]]
    return (logits_NK[:, number] - others_NK.logsumexp(dim=1)).numpy()
