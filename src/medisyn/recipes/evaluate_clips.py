"""Generated clips against real ones: distances in features of clips, and how much moves from frame to frame.

A folder of clips holds .mkv, .npz, .avi, .mp4, .mov, .webm and .gif files; where several have one name, the first of
these kinds is read, so that of `medisyn generate`'s files it is the lossless one. Real clips may also be a corpus; its
padding is cut off. Shapes here: C channels, T frames, H, W pixels, N clips.
"""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError, MedisynError, ReadError
from medisyn.recipes.evaluate_sets import (
    IN_HALVES,
    IN_SPLITS,
    SetEvaluation,
    SetSettings,
    evaluate_sets,
    files_fingerprint,
    halves,
    listed,
    listed_files,
    set_warnings,
    write_set_page,
)
from medisyn.seeding import seed_for
from medisyn.types import UINT8, Clip

if TYPE_CHECKING:
    from medisyn.corpus.loader import Corpus
    from medisyn.evaluation.report import Table
    from medisyn.recipes.corpus_images import LabelledImage

ENDINGS = (".mkv", ".npz", ".avi", ".mp4", ".mov", ".webm", ".gif")  # of one name, the first is read
ARRAY = "array_CTHW"
LABELS = "masks.npz"  # beside the clip of a phantom
SPLIT = "test"  # of a corpus of real clips


@dataclass(frozen=True)
class ClipFile:
    """A clip of a folder; `record` is its line of metadata.jsonl, else its sidecar, else empty."""

    key: str
    path: Path
    prompt: str
    record: Mapping[str, Any]


def find_clips(folder: Path) -> list[ClipFile]:
    """The clips of a folder and its subfolders with their prompts (text, prompt, or caption.txt beside the clip)."""
    records = {str(record.get("file_name")): record for record in runs.read_jsonl(folder / "metadata.jsonl")}
    found = []
    for place in clip_places(folder):
        path = folder / place
        record = records.get(place) or _sidecar(path.with_suffix(".json"))
        caption = path.with_name("caption.txt")
        prompt = str(record.get("text") or record.get("prompt") or "")
        if not record and caption.is_file():
            prompt = caption.read_text(encoding="utf-8").strip()
        found.append(ClipFile(str(record.get("key") or place), path, prompt, record))
    return found


def clip_places(folder: Path) -> list[str]:
    """The places of a folder's clips, one file of each name. InputError where there is no folder and no clip."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder.name}/ to evaluate")
    chosen: dict[str, str] = {}
    for place in listed_files(folder, ENDINGS):
        if Path(place).name == LABELS:
            continue
        name = place[: -len(_ending(place))]
        if name not in chosen or ENDINGS.index(_ending(place)) < ENDINGS.index(_ending(chosen[name])):
            chosen[name] = place
    if not chosen:
        raise InputError(f"{folder.name}/ holds no clip: no file that ends in {', '.join(ENDINGS)}")
    return sorted(chosen.values())


def _ending(place: str) -> str:
    return Path(place).suffix.lower()


def _sidecar(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ReadError(f"{path.name}: not readable JSON; it stands beside a clip as its record") from None
    return dict(content.get("medisyn", {})) if isinstance(content, dict) else {}


def read_clip(path: Path) -> Clip:
    """A clip from a video file, a .gif, or an .npz (an array named array_CTHW, uint8, 1 or 3 channels)."""
    from medisyn.corpus.readers.video import read_clip as read_video

    try:
        return read_video(path) if path.suffix.lower() != ".npz" else Clip(_from_npz(path), UINT8)
    except MedisynError as error:
        raise type(error)(f"{path.name}: {str(error).removeprefix(f'{path.name}: ')}") from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise ReadError(f"{path.name}: not a readable clip ({type(error).__name__})") from None


def _from_npz(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as content:
        if ARRAY not in content:
            raise ReadError(f"{path.name}: no array named {ARRAY}; it holds {', '.join(content) or 'nothing'}")
        array = content[ARRAY]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[0] not in (1, 3):
        raise ReadError(f"{path.name}: {ARRAY} must be uint8 (1 or 3, T, H, W), got {array.shape} {array.dtype}")
    return array


def rgb_frames(path: Path) -> np.ndarray:
    """A clip file as extractors take it, (T, H, W, 3) uint8; grey is repeated to three channels."""
    return _rgb(read_clip(path).array_CTHW)


def _rgb(array_CTHW: np.ndarray) -> np.ndarray:
    if array_CTHW.shape[0] == 1:
        array_CTHW = np.repeat(array_CTHW, 3, axis=0)
    return np.ascontiguousarray(array_CTHW.transpose(1, 2, 3, 0))


def without_padding(array_CTHW: np.ndarray, valid_THW: np.ndarray | None) -> np.ndarray:
    """The part of a clip that holds every real pixel (`valid` 1); padding is measured nowhere."""
    if valid_THW is None:
        return array_CTHW
    real = [np.flatnonzero(valid_THW.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    if not real[0].size:
        raise InputError("a clip of the corpus is all padding; run `medisyn corpus verify`")
    return array_CTHW[(slice(None), *(slice(places[0], places[-1] + 1) for places in real))]


@dataclass(frozen=True)
class RealClips:
    """Real clips to compare with, others of other patients for the baseline, and how they were parted, in words."""

    held_out: list[LabelledImage]
    other: list[LabelledImage]
    parted: str
    fingerprint: str


def real_clips(against: Path, seed: int) -> RealClips:
    """Of a folder its two halves; of a corpus its test split, and for the baseline as many of its training clips.

    A corpus without a training split is parted in halves, too.
    """
    if not (against / "index.parquet").exists():
        clips = clips_of(against)
        return RealClips(*halves(clips, seed), IN_HALVES, files_fingerprint(clips))
    from medisyn.corpus.loader import Corpus

    corpus = Corpus(against)
    held_out, training = _of_split(corpus, SPLIT), _of_split(corpus, "train")
    if not held_out:
        raise InputError(f"the corpus has no clips in the split {SPLIT!r}")
    if not training:
        return RealClips(*halves(held_out, seed), IN_HALVES, corpus.fingerprint)
    order = np.random.default_rng(seed_for(seed, "baseline")).permutation(len(training))[: len(held_out)]
    other = [training[number] for number in sorted(order.tolist())]
    return RealClips(held_out, other, IN_SPLITS, corpus.fingerprint)


def _of_split(corpus: Corpus, split: str) -> list[LabelledImage]:
    from medisyn.recipes.corpus_images import LabelledImage

    def reader(row: Any) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            sample = corpus.read(row)
            if not isinstance(sample.item, Clip):
                raise InputError(f"{row.key} of the corpus is a {type(sample.item).__name__}, not a clip")
            return _rgb(without_padding(sample.item.array_CTHW, sample.masks.get("valid")))

        return read

    return [
        LabelledImage(row.key, row.sha256, row.caption, "", "", row.patient or row.key, reader(row))
        for row in corpus.rows(split)
    ]


def clips_of(folder: Path) -> list[LabelledImage]:
    """The clips of a folder as items to compare, one file of each name."""
    chosen = set(clip_places(folder))
    every = zip(listed(folder, ENDINGS, rgb_frames), listed_files(folder, ENDINGS), strict=True)
    return [item for item, place in every if place in chosen]


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
    """Compare the clips of a folder with real ones (a folder or a corpus); see `evaluate_images` for other arguments.

    `real_clips` says which of the real ones are compared with, and which are the baseline. `settings.extractor`:
    "medical-encoder-frames", whose distances are no FVD, or "i3d" with the TorchScript file as `weights`, whose are.
    """
    from medisyn.evaluation.features import load_extractor
    from medisyn.recipes.evaluate_images import user_cache
    from medisyn.recipes.results import made_by

    settings = settings or SetSettings(extractor="medical-encoder-frames")
    synthetic, against = Path(synthetic), Path(against)
    out = synthetic.with_name(f"{synthetic.name}-evaluation") if out is None else out
    generated, real = clips_of(synthetic), real_clips(against, settings.seed)
    extractor = load_extractor(settings.extractor, weights, kind="clips")
    result = evaluate_sets(generated, (real.held_out, real.other), extractor, cache or user_cache(), settings)
    motion = _motion(generated, real.held_out, real.other)
    warnings = set_warnings(generated, [*real.held_out, *real.other], result)
    found = SetEvaluation(
        kind="clips",
        result=result,
        extra={"motion": motion},
        settings=settings,
        warnings=warnings,
        page=out / "report.html",
        corpus=real.fingerprint,
        model=made_by(synthetic),
    )
    write_set_page(
        out,
        found,
        counts={"Generated clips": len(generated), "Real clips": len(real.held_out) + len(real.other)},
        parted=real.parted,
        tables=[_motion_table(motion)],
        methods=[_methods(settings.extractor)],
    )
    return found


def _methods(extractor: str) -> str:
    """What the distances see, and what is measured beside them."""
    seen = (
        "The features are those of the shipped image encoder, frame by frame: their mean over the clip, and their mean "
        "absolute step from frame to frame. These distances are no Fréchet video distance and compare with no "
        "published figure."
    )
    if extractor.startswith("i3d"):
        seen = (
            "The Fréchet video distance mostly sees the content of single frames and hardly their order (Ge et al., "
            "2024)."
        )
    return (
        f"{seen} So the movement is measured by itself: the mean absolute difference of neighbouring frames of each "
        f"clip in grey levels, and the 1-dimensional Wasserstein distance between its distributions. Clips of folders "
        f"are taken as they are, with any black padding; that of a corpus is cut off."
    )


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
        for name, found in zip(("generated", "real", "real, for the baseline"), steps, strict=True)
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
