"""`medisyn evaluate`: which of the evaluations a folder needs, by what it holds."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from medisyn.errors import ConfigError, InputError
from medisyn.recipes import evaluate_clips, evaluate_volumes
from medisyn.recipes.evaluate_images import EvaluateSettings, ImageEvaluation, evaluate_images
from medisyn.recipes.evaluate_sets import SetEvaluation, SetSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

KINDS = ("images", "clips", "volumes")
DEFAULT_EXTRACTOR = {
    "images": "medical-encoder",
    "clips": "medical-encoder-frames",
    "volumes": "medical-encoder-slices",
}


def kind_of(folder: Path) -> str:
    """ "volumes" for a folder with NIfTI or NRRD files, "clips" with .npz or .gif files, else "images".

    InputError when there is no such folder and when it holds volumes and clips.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder.name}/ to evaluate")
    if (folder / "index.parquet").exists():
        return "images"
    names = [path.name.lower() for path in folder.rglob("*") if path.is_file()]
    found = [
        kind
        for kind, endings in (("volumes", evaluate_volumes.ENDINGS), ("clips", evaluate_clips.ENDINGS))
        if any(name.endswith(endings) for name in names)
    ]
    if len(found) == 2:
        raise InputError(f"{folder.name}/ holds volumes and clips; put them in two folders")
    return found[0] if found else "images"


def evaluate_folder(
    synthetic: Path | str,
    against: Path | str,
    settings: EvaluateSettings | None = None,
    *,
    extractor: str | None = None,
    weights: Path | None = None,
    cache: Path | None = None,
    out: Path | None = None,
    clip: Path | None = None,
) -> ImageEvaluation | SetEvaluation:
    """Evaluate generated images against a corpus, or clips or volumes against a folder of real ones.

    extractor: None is that of the settings, or the shipped encoder in its form for the kind. Raises ConfigError when a
    setting that only images have was changed for clips or volumes.
    """
    synthetic, against, settings = Path(synthetic), Path(against), settings or EvaluateSettings()
    kind = kind_of(synthetic)
    stated = settings.extractor if settings.extractor != EvaluateSettings().extractor else None
    chosen = extractor or stated or DEFAULT_EXTRACTOR[kind]
    if kind == "images":
        values = {field.name: getattr(settings, field.name) for field in fields(EvaluateSettings)}
        images = EvaluateSettings(**{**values, "extractor": chosen})
        return evaluate_images(synthetic, against, images, weights=weights, cache=cache, out=out, clip=clip)
    if clip is not None:
        raise ConfigError(f"clip: only images are looked for among the prompts of their classes, not {kind}")
    _refuse_for(kind, settings)
    common = SetSettings(
        extractor=chosen, mmd_alpha=settings.mmd_alpha, resamples=settings.resamples, seed=settings.seed
    )
    if kind == "clips":
        return evaluate_clips.evaluate_clips(synthetic, against, common, weights=weights, cache=cache, out=out)
    return evaluate_volumes.evaluate_volumes(
        synthetic,
        against,
        common,
        weights=weights,
        cache=cache,
        out=out,
        diversity_pairs=settings.diversity_pairs,
    )


def _refuse_for(kind: str, settings: EvaluateSettings) -> None:
    """Settings that would be ignored are an error."""
    of_images = ["split", "judge", "judge_steps", "neighbours", *(["diversity_pairs"] if kind == "clips" else [])]
    standard: Mapping[str, object] = {field.name: field.default for field in fields(EvaluateSettings)}
    changed = [name for name in of_images if getattr(settings, name) != standard[name]]
    if changed:
        raise ConfigError(f"{', '.join(changed)}: only images have this; {kind} are compared with a folder of {kind}")
