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
from medisyn.evaluation.frechet import (
    LEAST_TO_EXTRAPOLATE,
    RELIABLE_TO_EXTRAPOLATE,
    check_features,
    frechet_distance,
    frechet_extrapolated,
    frechet_weighted,
)
from medisyn.evaluation.kernel import (
    cmmd,
    cmmd_interval,
    gaussian_mmd2,
    gaussian_mmd2_interval,
    is_unit,
    kid,
    kid_interval,
    median_alpha,
)
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
    """What the numbers depend on besides the images.

    mmd_alpha: the Gaussian kernel's exp(-alpha d^2); None takes 1 / median d^2 of the real images, held-out and
    baseline together, so that every set compared with the same real images has the same kernel.
    """

    nearest_k: int = 5
    kid_subset_size: int = 1000
    kid_subsets: int = 100
    mmd_alpha: float | None = None
    resamples: int = 200
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Measure:
    """One number: `n_first` images (generated, or real in a baseline) against `n_real` held-out real images.

    `kernel_alpha` is the alpha of the Gaussian kernel that made it, None where there is none.
    """

    name: str
    value: float
    interval: Interval
    n_first: int
    n_real: int
    dim: int
    extractor: str
    preprocessing: str
    note: str = ""
    kernel_alpha: float | None = None


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
EXTRAPOLATED_NOTE = (
    "extrapolated to infinite n from {low} to {high} images by a + b/n; interval of the line's fit alone, not of the "
    "images drawn"
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
    named = {"generated": generated, "real": real, "baseline": baseline}
    for name, part in named.items():
        if len(part) <= settings.nearest_k:
            raise InputError(
                f"{TITLES[name]}: precision and recall with {settings.nearest_k} nearest neighbours need at least "
                f"{settings.nearest_k + 1} images, got {len(part)}"
            )
    n = min(len(part) for part in named.values())
    parts = {name: part.subset(n, seed_for(settings.seed, name)) for name, part in named.items()}
    alpha = settings.mmd_alpha
    if alpha is None:
        alpha = median_alpha(parts["baseline"].features_ND, parts["real"].features_ND, settings.seed)
    return EvaluationResult(
        measures=measure_all(parts["generated"], parts["real"], settings, alpha),
        baseline=measure_all(parts["baseline"], parts["real"], settings, alpha),
        settings=settings,
    )


TITLES = {"generated": "generated set", "real": "held-out real set", "baseline": "real baseline (training) set"}

Row = tuple[str, float, Interval, str, float | None]  # name, value, interval, note, kernel alpha


def measure_all(first: FeatureSet, real: FeatureSet, settings: Settings, alpha: float) -> tuple[Measure, ...]:
    """Every measure of one pair of sets; MMD with the given alpha. Features of unit length get CMMD too.

    The extrapolated Fréchet distance needs 60 images on each side and is left out below that.
    """
    rows = [*_frechet_rows(first, real, settings), *_kernel_rows(first, real, settings, alpha)]
    rows += _manifold_rows(first, real, settings)
    dim = first.features_ND.shape[1]
    return tuple(
        Measure(name, value, interval, len(first), len(real), dim, real.extractor, real.preprocessing, note, used)
        for name, value, interval, note, used in rows
    )


def _frechet_rows(first: FeatureSet, real: FeatureSet, settings: Settings) -> list[Row]:
    value = frechet_distance(first.features_ND, real.features_ND)
    rows: list[Row] = [("frechet", value, _frechet_interval(first, real, value, settings), FRECHET_NOTE, None)]
    n, dim = min(len(first), len(real)), first.features_ND.shape[1]
    if n < LEAST_TO_EXTRAPOLATE:
        return rows
    found = frechet_extrapolated(first.features_ND, real.features_ND, settings.seed)
    note = EXTRAPOLATED_NOTE.format(low=found.sizes[0], high=found.sizes[-1])
    if n < RELIABLE_TO_EXTRAPOLATE or found.sizes[0] <= dim:
        note += f"; unreliable below {RELIABLE_TO_EXTRAPOLATE:,} images and where n does not exceed {dim} features"
    half = 1.96 * found.standard_error
    interval = Interval(found.value - half, found.value + half, 0.95, "least squares")
    return [*rows, ("frechet_extrapolated", found.value, interval, note, None)]


def _kernel_rows(first: FeatureSet, real: FeatureSet, settings: Settings, alpha: float) -> list[Row]:
    sets = first.features_ND, real.features_ND
    groups = (_names(first), _names(real))

    def interval(function: Any, *arguments: float) -> Interval:
        options = {"resamples": settings.resamples, "seed": settings.seed, "groups": groups, "level": settings.level}
        return function(*sets, *arguments, **options)

    kernel = kid(*sets, subset_size=settings.kid_subset_size, subsets=settings.kid_subsets, seed=settings.seed)
    kid_note = f"{kernel.subsets} subset(s) of {kernel.subset_size}"
    if kernel.subset_size < kernel.asked_subset_size:
        kid_note += f", lowered from {kernel.asked_subset_size} to fit"
    mmd2 = gaussian_mmd2(*sets, alpha)
    rule = "given" if settings.mmd_alpha is not None else "1 / median squared distance of the real images"
    mmd_note = f"unbiased MMD², exp(-alpha d²) with alpha = {alpha:.6g} ({rule})"
    rows: list[Row] = [
        ("kid", kernel.value, interval(kid_interval, kernel.value), kid_note, None),
        ("mmd", mmd2, interval(gaussian_mmd2_interval, mmd2, alpha), mmd_note, alpha),
    ]
    if all(is_unit(part) for part in sets):
        value = cmmd(*sets)
        note = "sigma 10, times 1,000, biased; all but blind to anything except the means"
        rows.append(("cmmd", value, interval(cmmd_interval, value), note, None))
    return rows


def _manifold_rows(first: FeatureSet, real: FeatureSet, settings: Settings) -> list[Row]:
    found = manifold(real.features_ND, first.features_ND, settings.nearest_k)
    note = f"k = {settings.nearest_k}; {MANIFOLD_NOTE}"
    rows: list[Row] = []
    for name, per_image, owner in (
        ("precision", found.generated_inside_M, first),
        ("recall", found.real_inside_N, real),
        ("density", found.generated_density_M, first),
        ("coverage", found.real_covered_N, real),
    ):
        interval = mean_interval(
            per_image, resamples=settings.resamples, seed=settings.seed, groups=_names(owner), level=settings.level
        )
        rows.append((name, float(per_image.mean()), interval, note, None))
    return rows


def _frechet_interval(first: FeatureSet, real: FeatureSet, value: float, settings: Settings) -> Interval:
    rng = np.random.default_rng(settings.seed)
    a, b = first.features_ND.astype(np.float64), real.features_ND.astype(np.float64)

    def again(index: np.ndarray) -> float:
        other = resample(len(real), rng, _names(real))
        return frechet_weighted(a, b, *(np.bincount(i, minlength=len(x)) for i, x in ((index, a), (other, b))))

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
    for what in ("nearest_k", "kid_subset_size", "kid_subsets", "mmd_alpha", "seed"):
        if getattr(a.settings, what) != getattr(b.settings, what):
            raise InputError(f"the runs do not compare: their settings differ in {what}. Evaluate both alike.")
    scale_a, scale_b = ([measure.value for measure in run.baseline] for run in (a, b))
    if len(scale_a) != len(scale_b) or not np.allclose(scale_a, scale_b, rtol=1e-5, atol=1e-9):
        raise InputError(
            "the runs do not compare: real against real gave other numbers, so the real images were not the same. "
            "Evaluate both against the same corpus and split."
        )
    for ours, theirs in zip(a.measures, b.measures, strict=True):
        alphas = [float("nan") if measure.kernel_alpha is None else measure.kernel_alpha for measure in (ours, theirs)]
        if not np.isclose(alphas[0], alphas[1], rtol=1e-5, equal_nan=True):
            raise InputError(
                f"the runs do not compare: the kernel of {ours.name} has alpha {alphas[0]:g} in the first and "
                f"{alphas[1]:g} in the second. Evaluate both with one bandwidth."
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
