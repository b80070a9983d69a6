"""Generated clips against real ones: Fréchet and kernel video distance, and how much moves from frame to frame.

Shapes here: T frames, H, W pixels, N clips.
"""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn.errors import InputError, ReadError
from medisyn.recipes.evaluate_sets import (
    SetEvaluation,
    SetSettings,
    evaluate_sets,
    files_fingerprint,
    halves,
    listed,
    set_warnings,
    write_set_page,
)
from medisyn.types import UINT8, Clip

if TYPE_CHECKING:
    from medisyn.evaluation.report import Table
    from medisyn.recipes.corpus_images import LabelledImage

ENDINGS = (".npz", ".gif")
ARRAY = "array_CTHW"


def read_clip(path: Path) -> Clip:
    """A clip from .npz (an array named array_CTHW, uint8, 1 or 3 channels) or an animated .gif."""
    try:
        array_CTHW = _from_gif(path) if path.suffix.lower() == ".gif" else _from_npz(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, SyntaxError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise ReadError(f"{path.name}: not a readable clip ({type(error).__name__})") from None
    return Clip(array_CTHW, UINT8)


def _from_npz(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as content:
        if ARRAY not in content:
            raise ReadError(f"{path.name}: no array named {ARRAY}; it holds {', '.join(content) or 'nothing'}")
        array = content[ARRAY]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[0] not in (1, 3):
        raise ReadError(f"{path.name}: {ARRAY} must be uint8 (1 or 3, T, H, W), got {array.shape} {array.dtype}")
    return array


def _from_gif(path: Path) -> np.ndarray:
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        frames = [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    return np.stack(frames).transpose(3, 0, 1, 2)


def rgb_frames(path: Path) -> np.ndarray:
    """A clip as extractors take it, (T, H, W, 3) uint8; grey is repeated to three channels."""
    array_CTHW = read_clip(path).array_CTHW
    if array_CTHW.shape[0] == 1:
        array_CTHW = np.repeat(array_CTHW, 3, axis=0)
    return np.ascontiguousarray(array_CTHW.transpose(1, 2, 3, 0))


def frame_step(clip_THWC: np.ndarray) -> float:
    """Mean absolute difference of neighbouring frames in grey levels: how much moves."""
    frames = clip_THWC.astype(np.float32)
    return float(np.mean([np.abs(b - a).mean() for a, b in itertools.pairwise(frames)]))


def evaluate_clips(
    synthetic: Path | str,
    against: Path | str,
    settings: SetSettings | None = None,
    *,
    weights: Path | None = None,
    cache: Path | None = None,
    out: Path | None = None,
) -> SetEvaluation:
    """Compare the clips (.npz or .gif) of two folders; see `evaluate_images` for the other arguments.

    The real clips are split into two halves of different patients: one to compare with, one for the baseline.
    `settings.extractor`: "medical-encoder-frames", or "i3d" with the TorchScript file as `weights`.
    """
    from medisyn.evaluation.features import load_extractor
    from medisyn.recipes.evaluate_images import user_cache
    from medisyn.recipes.results import made_by

    settings = settings or SetSettings(extractor="medical-encoder-frames")
    synthetic, against = Path(synthetic), Path(against)
    out = synthetic.with_name(f"{synthetic.name}-evaluation") if out is None else out
    generated, real = listed(synthetic, ENDINGS, rgb_frames), listed(against, ENDINGS, rgb_frames)
    held_out, other = halves(real, settings.seed)
    extractor = load_extractor(settings.extractor, weights, kind="clips")
    result = evaluate_sets(generated, (held_out, other), extractor, cache or user_cache(), settings)
    motion = _motion(generated, held_out, other)
    warnings = set_warnings(generated, real, result)
    found = SetEvaluation(
        kind="clips",
        result=result,
        extra={"motion": motion},
        settings=settings,
        warnings=warnings,
        page=out / "report.html",
        corpus=files_fingerprint(real),
        model=made_by(synthetic),
    )
    write_set_page(
        out,
        found,
        counts={"Generated clips": len(generated), "Real clips": len(real)},
        tables=[_motion_table(motion)],
        methods=[
            "The Fréchet video distance mostly sees the content of single frames and hardly their order (Ge et al., "
            "2024), so the movement is measured by itself: the mean absolute difference of neighbouring frames of each "
            "clip in grey levels, and the 1-dimensional Wasserstein distance between its distributions. Clips are "
            "taken as they are: clips padded with black frames are measured with their padding."
        ],
    )
    return found


def _motion(
    generated: Sequence[LabelledImage], real: Sequence[LabelledImage], other: Sequence[LabelledImage]
) -> dict[str, Any]:
    """Frame steps of each set, and the Wasserstein distance of their distributions to those of the real set."""
    from scipy.stats import wasserstein_distance

    steps = [np.array([frame_step(item.read()) for item in part]) for part in (generated, real, other)]
    return {
        name: {
            "n": len(found),
            "mean": float(found.mean()),
            "median": float(np.median(found)),
            "wasserstein": float(wasserstein_distance(found, steps[1])),
        }
        for name, found in zip(("generated", "real", "real, other half"), steps, strict=True)
    }


def _motion_table(motion: dict[str, Any]) -> Table:
    from medisyn.evaluation.report import Table, number

    rows = [
        (name, row["n"], number(row["mean"]), number(row["median"]), number(row["wasserstein"]))
        for name, row in motion.items()
    ]
    return Table(
        name="motion",
        title="How much moves from frame to frame",
        text=(
            "Mean absolute difference of neighbouring frames, in grey levels of 255. The last column is the distance "
            "of the distribution to that of the real half that all distances are measured to."
        ),
        columns=("set", "n", "mean", "median", "Wasserstein distance to real"),
        rows=tuple(rows),
        numeric=frozenset({1, 2, 3, 4}),
    )
