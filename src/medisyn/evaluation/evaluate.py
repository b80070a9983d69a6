"""Features in, one result out: the distances of generated to held-out real images, beside real to real.

Shapes here: N images, D features.
Every measure carries the sizes of both sets, the extractor, the preprocessing, an interval and the baseline: the same
measure with real training images in the place of the generated ones, at the same size. No measure knows which model
made an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from medisyn.errors import InputError
from medisyn.evaluation.bootstrap import Interval, bootstrap, mean_interval, recentred, resample
from medisyn.evaluation.frechet import check_features, frechet_distance
from medisyn.evaluation.kernel import kid, kid_interval
from medisyn.evaluation.manifold import manifold
from medisyn.seeding import seed_for


@dataclass(frozen=True)
class FeatureSet:
    """Features of one set of images and what made them; `patients` (one name per image) groups the bootstrap."""

    features_ND: np.ndarray
    extractor: str
    preprocessing: str
    patients: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_features(self.features_ND, "feature set", at_least=1)
        if self.patients is not None and len(self.patients) != len(self.features_ND):
            raise InputError(f"feature set: {len(self.features_ND)} images but {len(self.patients)} patient names")

    def __len__(self) -> int:
        return len(self.features_ND)

    def subset(self, n: int, seed: int) -> FeatureSet:
        """n images drawn without replacement."""
        if n > len(self):
            raise InputError(f"a subset of {n} images was asked of a set of {len(self)}")
        rows = np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False))
        patients = None if self.patients is None else tuple(self.patients[row] for row in rows)
        return FeatureSet(self.features_ND[rows], self.extractor, self.preprocessing, patients)


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on besides the images."""

    nearest_k: int = 5
    kid_subset_size: int = 1000
    kid_subsets: int = 100
    resamples: int = 200
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Measure:
    """One number: `n_first` images (generated, or real in a baseline) against `n_real` held-out real images."""

    name: str
    value: float
    interval: Interval
    n_first: int
    n_real: int
    dim: int
    extractor: str
    preprocessing: str
    note: str = ""


@dataclass(frozen=True)
class EvaluationResult:
    """The measures of generated against real, and of real against real at the same sizes."""

    measures: tuple[Measure, ...]
    baseline: tuple[Measure, ...]
    settings: Settings

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def measure(self, name: str) -> Measure:
        """The measure of that name; InputError when it is not there."""
        for measure in self.measures:
            if measure.name == name:
                return measure
        raise InputError(f"no measure {name!r}, there are: {', '.join(m.name for m in self.measures)}")


FRECHET_NOTE = (
    "biased upwards at this n; compare only at equal n. The interval is the spread of bootstrap resamples laid around "
    "the value: how far it moves with the images drawn"
)
MANIFOLD_NOTE = "interval over the images it averages, the other set held fixed"


def evaluate(
    generated: FeatureSet, real: FeatureSet, baseline: FeatureSet, settings: Settings | None = None
) -> EvaluationResult:
    """Compare `generated`, and for scale `baseline` (other real images, as a rule training images), with `real`.

    All three are brought to one n, the smallest of the three, by seeded draws: values of different n do not compare.
    """
    settings = settings or Settings()
    _same_making(generated, real)
    _same_making(baseline, real)
    n = min(len(generated), len(real), len(baseline))
    parts = [
        part.subset(n, seed_for(settings.seed, name))
        for part, name in ((generated, "generated"), (real, "real"), (baseline, "baseline"))
    ]
    return EvaluationResult(
        measures=measure_all(parts[0], parts[1], settings),
        baseline=measure_all(parts[2], parts[1], settings),
        settings=settings,
    )


def measure_all(first: FeatureSet, real: FeatureSet, settings: Settings) -> tuple[Measure, ...]:
    """Fréchet and kernel distance, precision, recall, density and coverage of one pair of sets."""
    frechet = frechet_distance(first.features_ND, real.features_ND)
    kernel = kid(
        first.features_ND,
        real.features_ND,
        subset_size=settings.kid_subset_size,
        subsets=settings.kid_subsets,
        seed=settings.seed,
    )
    kernel_interval = kid_interval(
        first.features_ND,
        real.features_ND,
        kernel.value,
        resamples=settings.resamples,
        seed=settings.seed,
        groups=(_names(first), _names(real)),
        level=settings.level,
    )
    kid_note = f"{kernel.subsets} subset(s) of {kernel.subset_size}"
    if kernel.subset_size < kernel.asked_subset_size:
        kid_note += f", lowered from {kernel.asked_subset_size} to fit"
    rows = [
        ("frechet", frechet, _frechet_interval(first, real, frechet, settings), FRECHET_NOTE),
        ("kid", kernel.value, kernel_interval, kid_note),
        *_manifold_rows(first, real, settings),
    ]
    dim = first.features_ND.shape[1]
    return tuple(
        Measure(name, value, interval, len(first), len(real), dim, real.extractor, real.preprocessing, note)
        for name, value, interval, note in rows
    )


def _manifold_rows(first: FeatureSet, real: FeatureSet, settings: Settings) -> list[tuple[str, float, Interval, str]]:
    found = manifold(real.features_ND, first.features_ND, settings.nearest_k)
    note = f"k = {settings.nearest_k}; {MANIFOLD_NOTE}"
    rows = []
    for name, per_image, owner in (
        ("precision", found.generated_inside_M, first),
        ("recall", found.real_inside_N, real),
        ("density", found.generated_density_M, first),
        ("coverage", found.real_covered_N, real),
    ):
        interval = mean_interval(
            per_image, resamples=settings.resamples, seed=settings.seed, groups=_names(owner), level=settings.level
        )
        rows.append((name, float(per_image.mean()), interval, note))
    return rows


def _frechet_interval(first: FeatureSet, real: FeatureSet, value: float, settings: Settings) -> Interval:
    rng = np.random.default_rng(settings.seed)

    def again(index: np.ndarray) -> float:
        return frechet_distance(first.features_ND[index], real.features_ND[resample(len(real), rng, _names(real))])

    values = bootstrap(again, len(first), resamples=settings.resamples, seed=settings.seed + 1, groups=_names(first))
    found = recentred(values, value, settings.level)
    return replace(found, low=max(found.low, 0.0))  # no distance is below 0


def _names(features: FeatureSet) -> list[str] | None:
    return None if features.patients is None else list(features.patients)


def _same_making(a: FeatureSet, b: FeatureSet) -> None:
    for what in ("extractor", "preprocessing"):
        ours, theirs = getattr(a, what), getattr(b, what)
        if ours != theirs:
            raise InputError(f"the two sets were made with different {what}: {ours!r} and {theirs!r}")


def compare(a: EvaluationResult, b: EvaluationResult) -> list[dict[str, Any]]:
    """Two runs side by side, one row per measure; InputError when they differ in what makes numbers comparable.

    That is the number of images on either side, the features' width, the extractor, the preprocessing, the settings
    that decide a value, and the real images themselves: with the same ones the two baselines are equal.
    """
    names_a, names_b = [m.name for m in a.measures], [m.name for m in b.measures]
    if names_a != names_b:
        raise InputError(f"the runs hold different measures: {', '.join(names_a)} and {', '.join(names_b)}")
    for ours, theirs in zip(a.measures, b.measures, strict=True):
        for what in ("n_first", "n_real", "dim", "extractor", "preprocessing"):
            if getattr(ours, what) != getattr(theirs, what):
                raise InputError(
                    f"the runs do not compare: {what} of {ours.name} is {getattr(ours, what)!r} in the first and "
                    f"{getattr(theirs, what)!r} in the second. Evaluate both with the same {what}."
                )
    for what in ("nearest_k", "kid_subset_size", "kid_subsets", "seed"):
        if getattr(a.settings, what) != getattr(b.settings, what):
            raise InputError(f"the runs do not compare: their settings differ in {what}. Evaluate both alike.")
    scale_a, scale_b = ([measure.value for measure in run.baseline] for run in (a, b))
    if len(scale_a) != len(scale_b) or not np.allclose(scale_a, scale_b, rtol=1e-5, atol=1e-9):
        raise InputError(
            "the runs do not compare: real against real gave other numbers, so the real images were not the same. "
            "Evaluate both against the same corpus and split."
        )
    return [
        {"name": ours.name, "first": ours.value, "second": theirs.value, "difference": theirs.value - ours.value}
        for ours, theirs in zip(a.measures, b.measures, strict=True)
    ]


def result_from_dict(content: Mapping[str, Any]) -> EvaluationResult:
    """The result that `as_dict` wrote, for instance from a report's JSON file."""

    def measures(rows: Sequence[Mapping[str, Any]]) -> tuple[Measure, ...]:
        return tuple(Measure(**{**row, "interval": Interval(**row["interval"])}) for row in rows)

    try:
        return EvaluationResult(
            measures(content["measures"]), measures(content["baseline"]), Settings(**content["settings"])
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"this is not the result of an evaluation ({error!r})") from None
