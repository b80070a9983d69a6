"""`medisyn evaluate --motion`: what moves in generated clips, measured on their frames alone.

Three questions, each with n and an interval: does the quantity that a prompt names follow it (ejection fraction of
"severely reduced" against "normal")? Does more move where the motion factor is larger? Do frames flicker more than
those of held-out real clips? The same measures on the held-out clips say how far they can be trusted.
Shapes here: T frames, H, W pixels, N clips, S series of clips that differ in the motion factor alone, L levels of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError, MedisynError
from medisyn.evaluation.alignment import PromptPair, prompt_pair
from medisyn.evaluation.bootstrap import Interval, mean_interval, percentile
from medisyn.evaluation.monotone import Monotonicity, monotonicity
from medisyn.recipes.evaluate_clips import ClipFile, find_clips, read_clip
from medisyn.types import Clip

Measure = Callable[[np.ndarray], float]  # grey frames (T, H, W) uint8 -> a number; MedisynError: not measurable
RESAMPLES = 2000
LEAST_CLIPS = 32  # in each arm of a pair, as in the MedSyn paper


@dataclass(frozen=True)
class Pair:
    """Two kinds of prompts, and the quantity that should be higher (or lower) under the first.

    `wording` takes a prompt and gives True for the first kind, False for the second, None for neither.
    """

    name: str
    measure: str
    wording: Callable[[str], bool | None]
    direction: str = "higher"


@dataclass(frozen=True)
class MeasuredClip:
    """One clip: its numbers (NaN: not measurable, with the reason in `notes`), prompt, seed and motion factor."""

    key: str
    prompt: str
    values: Mapping[str, float]
    seed: int | None = None
    factor: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FactorResult:
    """Measured motion against the motion factor.

    `spearman` is the rank correlation over all clips. `means` and `intervals` are of each level, `rises` whether the
    means rise at every step. `series`, of clips with one prompt and seed at every level; None where there is none.
    """

    n: int
    levels: tuple[float, ...]
    counts: tuple[int, ...]
    means: tuple[float, ...]
    intervals: tuple[Interval | None, ...]
    rises: bool
    spearman: float
    spearman_interval: Interval
    series: Monotonicity | None


@dataclass(frozen=True)
class Ratio:
    """Mean of a measure over generated clips, as a multiple of its mean over held-out ones."""

    measure: str
    value: float
    interval: Interval
    n_generated: int
    n_held_out: int


@dataclass(frozen=True)
class MotionEvaluation:
    """What was found; `held_out_pairs` is the same test on the held-out clips, the measure's own trial."""

    clips: tuple[MeasuredClip, ...]
    held_out: tuple[MeasuredClip, ...]
    pairs: tuple[tuple[Pair, PromptPair], ...]
    held_out_pairs: tuple[tuple[Pair, PromptPair], ...]
    factor: FactorResult | None
    ratios: tuple[Ratio, ...]
    warnings: tuple[str, ...]
    page: Path

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; a quantity that could not be measured is null."""
        return {
            "kind": "motion",
            "clips": [_plain(one) for one in self.clips],
            "held_out": [_plain(one) for one in self.held_out],
            "pairs": [_plain_pair(*one) for one in self.pairs],
            "held_out_pairs": [_plain_pair(*one) for one in self.held_out_pairs],
            "factor": None if self.factor is None else asdict(self.factor),
            "ratios": [asdict(one) for one in self.ratios],
            "warnings": list(self.warnings),
        }

    def summary(self) -> str:
        """A few lines for a terminal."""
        lines = [f"{len(self.clips)} clips, {len(self.held_out)} held out"]
        for where, pairs in (("generated", self.pairs), ("held out", self.held_out_pairs)):
            for pair, found in pairs:
                lines.append(
                    f"{pair.name}, {where}: {found.mean_present:.3g} ± {found.sd_present:.2g} "
                    f"(n = {found.n_present}) against {found.mean_absent:.3g} ± {found.sd_absent:.2g} "
                    f"(n = {found.n_absent}), p = {found.p:.2g}"
                )
        if self.factor is not None:
            levels = zip(self.factor.levels, self.factor.means, strict=True)
            steps = ", ".join(f"{level:g}: {mean:.3g}" for level, mean in levels)
            inside = self.factor.spearman_interval
            lines.append(
                f"motion by factor: {steps}; Spearman {self.factor.spearman:.2f} ({inside.low:.2f} to "
                f"{inside.high:.2f}, n = {self.factor.n})"
            )
        lines += [
            f"{ratio.measure}, generated over held out: {ratio.value:.2f} ({ratio.interval.low:.2f} to "
            f"{ratio.interval.high:.2f}, n = {ratio.n_generated} and {ratio.n_held_out})"
            for ratio in self.ratios
        ]
        return "\n".join([*lines, *(f"Note: {warning}" for warning in self.warnings), f"Report: {self.page}"])


# ---- the measures, and the words of prompts


def standard_measures() -> dict[str, Measure]:
    """Ejection fraction by the heart phantom's own rule (%), motion value of HiGen, and flicker (grey levels)."""
    from medisyn.phantoms.heart.motion import flicker

    return {"ejection_fraction": ejection_fraction, "motion": mean_motion, "flicker": flicker}


def ejection_fraction(frames_THW: np.ndarray) -> float:
    """Percent, by `phantoms.heart.measure`. Raises InputError where no ventricle was found."""
    from medisyn.phantoms.heart.measure import measure_ejection

    found = measure_ejection(frames_THW)
    if found.ef is None:
        raise InputError(f"no ejection fraction: {found.reason}")
    return found.ef


def mean_motion(frames_THW: np.ndarray) -> float:
    """HiGen's motion value (0 to 1000), mean over the gaps of the clip."""
    from medisyn.families.higen.motion import motion_value

    return float(motion_value(Clip(frames_THW[None])).mean())


FUNCTION = re.compile(r"ejection fraction|systolic function|\bL?V?EF\b", re.IGNORECASE)
REDUCED = re.compile(r"\bseverely (reduced|impaired)\b", re.IGNORECASE)
NORMAL = re.compile(r"\b(normal|preserved)\b", re.IGNORECASE)


def names_severe_reduction(prompt: str) -> bool | None:
    """True for severely reduced ventricular function, False for normal, None for another grade, none, or both.

    >>> names_severe_reduction("A4C view. Severely impaired LV systolic function.")
    True
    >>> names_severe_reduction("Normal heart rate. Normal LVEF.")
    False
    """
    heard: set[bool | None] = set()
    for sentence in re.split(r"[.;\n]+", prompt):
        if FUNCTION.search(sentence):
            if REDUCED.search(sentence):
                heard.add(True)
            elif re.search(r"\b(reduced|impaired)\b", sentence, re.IGNORECASE):
                heard.add(None)
            elif NORMAL.search(sentence):
                heard.add(False)
    return heard.pop() if len(heard) == 1 else None


EJECTION = Pair("severely reduced against normal function", "ejection_fraction", names_severe_reduction, "lower")


# ---- the evaluation


def evaluate_motion(
    folder: Path | str,
    held_out: Path | str | None = None,
    *,
    measures: Mapping[str, Measure] | None = None,
    pairs: Sequence[Pair] = (EJECTION,),
    out: Path | None = None,
    seed: int = 0,
) -> MotionEvaluation:
    """Measure every clip of a folder that `medisyn generate` wrote, and of a folder of held-out real clips.

    measures: None is `standard_measures`; each takes grey frames, and a MedisynError of it means "not measurable" for
    that clip. One named "motion" is compared with the motion factor, and one named "flicker" with the held-out clips.
    Writes report.html, result.json and CSV tables.
    """
    from medisyn.recipes.motion_page import write_motion_page

    folder = Path(folder)
    out = folder.with_name(f"{folder.name}-motion") if out is None else out
    measures = standard_measures() if measures is None else measures
    clips = measured_clips(folder, measures, "generated")
    real = [] if held_out is None else measured_clips(Path(held_out), measures, "held out")
    found_pairs = pair_results(clips, pairs, seed)
    factor = factor_result(clips, seed) if "motion" in measures else None
    ratios = [ratio for name in ("flicker", "motion") if real and (ratio := ratio_of(name, clips, real, seed))]
    result = MotionEvaluation(
        tuple(clips),
        tuple(real),
        tuple(found_pairs),
        tuple(pair_results(real, pairs, seed)),
        factor,
        tuple(ratios),
        _warnings(clips, real, found_pairs, factor),
        out / "report.html",
    )
    write_motion_page(out, result)
    runs.write_run(out, kind="evaluate motion", clips=len(clips), held_out=len(real), measures=list(measures))
    return result


def measured_clips(folder: Path, measures: Mapping[str, Measure], what: str) -> list[MeasuredClip]:
    """Every clip of a folder with its numbers. InputError where there is none."""
    from tqdm import tqdm

    files = find_clips(folder)
    return [_measured(file, measures) for file in tqdm(files, desc=what, unit="clip", disable=None)]


def _measured(file: ClipFile, measures: Mapping[str, Measure]) -> MeasuredClip:
    from medisyn.families.higen.motion import luma

    array_CTHW = read_clip(file.path).array_CTHW
    frames_THW = np.stack([np.rint(luma(array_CTHW[:, t])) for t in range(array_CTHW.shape[1])]).astype(np.uint8)
    values, notes = {}, []
    for name, measure in measures.items():
        try:
            values[name] = float(measure(frames_THW))
        except MedisynError as error:
            values[name] = float("nan")
            notes.append(f"{name}: {error}")
    seed, factor = file.record.get("seed"), file.record.get("motion")
    return MeasuredClip(
        file.key, file.prompt, values, None if seed is None else int(seed), _number(factor), tuple(notes)
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def pair_results(clips: Sequence[MeasuredClip], pairs: Sequence[Pair], seed: int) -> list[tuple[Pair, PromptPair]]:
    """The test of each pair of which both arms hold two clips or more in which the quantity could be measured."""
    results = []
    for pair in pairs:
        arms = [
            [one.values[pair.measure] for one in clips if pair.wording(one.prompt) is said] for said in (True, False)
        ]
        finite = [[value for value in arm if np.isfinite(value)] for arm in arms]
        if min(map(len, finite)) >= 2:
            results.append((pair, prompt_pair(*finite, direction=pair.direction, resamples=RESAMPLES, seed=seed)))
    return results


def factor_result(clips: Sequence[MeasuredClip], seed: int = 0) -> FactorResult | None:
    """Measured motion against the factor that was asked for; None where all clips have one factor or none."""
    asked = [one for one in clips if one.factor is not None and np.isfinite(one.values["motion"])]
    factors_N = np.array([one.factor for one in asked], dtype=np.float64)
    motion_N = np.array([one.values["motion"] for one in asked])
    levels = np.unique(factors_N)
    if len(levels) < 2:
        return None
    parts = [motion_N[factors_N == level] for level in levels]
    rng = np.random.default_rng(seed)
    drawn_BN = np.concatenate([rng.choice(part, (RESAMPLES, len(part))) for part in parts], axis=1)
    means = [float(part.mean()) for part in parts]
    return FactorResult(
        n=len(asked),
        levels=tuple(float(level) for level in levels),
        counts=tuple(len(part) for part in parts),
        means=tuple(means),
        intervals=tuple(
            mean_interval(part, resamples=RESAMPLES, seed=seed) if len(part) > 1 else None for part in parts
        ),
        rises=bool((np.diff(means) > 0).all()),
        spearman=float(_rank_correlations(factors_N, motion_N[None])[0]),
        spearman_interval=percentile(_rank_correlations(np.sort(factors_N), drawn_BN)),
        series=_series(asked, [float(level) for level in levels], seed),
    )


def _rank_correlations(factors_N: np.ndarray, motion_BN: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row with the factors, (B,); 0 where a row does not change."""
    from scipy.stats import rankdata

    a_N, b_BN = rankdata(factors_N), rankdata(motion_BN, axis=1)
    a_N, b_BN = a_N - a_N.mean(), b_BN - b_BN.mean(axis=1, keepdims=True)
    size_B = np.sqrt((a_N**2).sum() * (b_BN**2).sum(axis=1))
    return np.where(size_B > 0, b_BN @ a_N / np.maximum(size_B, 1e-12), 0.0)


def _series(asked: Sequence[MeasuredClip], levels: Sequence[float], seed: int) -> Monotonicity | None:
    """Of clips with one prompt and one seed, made at every level: the ones that differ in the factor alone."""
    by_start: dict[tuple[str, int | None], dict[float, float]] = {}
    for one in asked:
        by_start.setdefault((one.prompt, one.seed), {})[float(one.factor or 0.0)] = one.values["motion"]
    rows = [[row[level] for level in levels] for row in by_start.values() if set(row) == set(levels)]
    return monotonicity(np.array(rows), seed=seed) if rows else None


def ratio_of(measure: str, clips: Sequence[MeasuredClip], real: Sequence[MeasuredClip], seed: int = 0) -> Ratio | None:
    """Mean over generated clips / mean over held-out ones, with a bootstrap of both.

    None where it was not measured, or the held-out clips have a mean of 0.
    """
    arms = [np.array([one.values.get(measure, np.nan) for one in part]) for part in (clips, real)]
    generated_N, real_N = (arm[np.isfinite(arm)] for arm in arms)
    if not len(generated_N) or not len(real_N) or real_N.mean() <= 0:
        return None
    rng = np.random.default_rng(seed)
    above_B, below_B = (rng.choice(arm, (RESAMPLES, len(arm))).mean(axis=1) for arm in (generated_N, real_N))
    value = float(generated_N.mean() / real_N.mean())
    return Ratio(measure, value, percentile(above_B / np.maximum(below_B, 1e-12)), len(generated_N), len(real_N))


def _plain(one: MeasuredClip) -> dict[str, Any]:
    return {**asdict(one), "values": {name: v if np.isfinite(v) else None for name, v in one.values.items()}}


def _plain_pair(pair: Pair, found: PromptPair) -> dict[str, Any]:
    return {"name": pair.name, "measure": pair.measure, "found": asdict(found)}


def _warnings(
    clips: Sequence[MeasuredClip],
    real: Sequence[MeasuredClip],
    pairs: Sequence[tuple[Pair, PromptPair]],
    factor: FactorResult | None,
) -> tuple[str, ...]:
    notes = []
    if not real:
        notes.append("No held-out clips: name them with --against; a measure that fails on real clips says nothing.")
    if not pairs:
        notes.append("No pair of prompts: two clips or more are needed for each of its sides.")
    if any(min(found.n_present, found.n_absent) < LEAST_CLIPS for _, found in pairs):
        notes.append(f"A pair has fewer than {LEAST_CLIPS} clips in an arm.")
    if factor is None:
        notes.append("Motion was not compared with the motion factor: all clips were made with one.")
    elif factor.series is None:
        notes.append(
            "No prompt and seed was made at every motion factor, so what differs between clips is not the factor "
            "alone. Give rows of a table the same seed."
        )
    for name, part in (("generated", clips), ("held-out", real)):
        lost = sum(bool(one.notes) for one in part)
        if lost:
            notes.append(f"Of {lost} of {len(part)} {name} clips something could not be measured; see the tables.")
    return tuple(notes)
