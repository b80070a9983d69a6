"""Anatomy of generated CTs as tables: each volume, all together, and pairs of prompts (MedSyn, Tables I to IV).

Shapes here: D, H, W voxels; N volumes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError
from medisyn.evaluation import anatomy
from medisyn.evaluation.alignment import PromptPair, prompt_pair
from medisyn.evaluation.bootstrap import mean_interval
from medisyn.evaluation.page import Table, Value
from medisyn.evaluation.plots import interval_plot
from medisyn.evaluation.report import between, number

LOBE_MEASURES = {label: f"lobe_ml_{name.replace(' ', '_')}" for label, name in anatomy.LOBES.items()}
MEASURES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "effusion_ml": ("pleural effusion, mL", ("effusion",)),
    "effusion_left_ml": ("pleural effusion on the left, mL", ("effusion", "lobe")),
    "effusion_right_ml": ("pleural effusion on the right, mL", ("effusion", "lobe")),
    "laa950_percent": ("low attenuation below -950 HU, % of lung", ("lobe", "airway")),
    "laa910_percent": ("low attenuation below -910 HU, % of lung", ("lobe", "airway")),
    "mean_lung_hu": ("mean lung density, HU", ("lobe", "airway")),
    "cardiothoracic_ratio": ("cardiothoracic ratio", ("heart", "lobe", "effusion")),
    "airway_ml": ("airways, mL (10 mL are MedSyn's 10^4 mm^3)", ("airway",)),
    "airway_length_mm": ("length of the airway tree, mm", ("airway",)),
    "vessel_ml": ("vessels, mL", ("vessel",)),
    "lung_ml": ("both lungs, mL", ("lobe",)),
    **{name: (f"{anatomy.LOBES[label]} lobe, mL", ("lobe",)) for label, name in LOBE_MEASURES.items()},
}  # name -> title, and the masks it needs; NaN where one is missing

# Finding -> words, what it raises. A sentence that says "no", or that the heart is normal, denies it.
FINDINGS: Mapping[str, tuple[str, str]] = {
    "pleural effusion": (r"effusion", "effusion_ml"),
    "cardiomegaly": (
        r"cardiomegaly|heart (size )?is (\w+ )?enlarged|enlarged heart|enlarged cardiac",
        "cardiothoracic_ratio",
    ),
    "bullae": (r"bulla|emphysema", "laa950_percent"),
}
DENIED = re.compile(r"\b(no|not|without|negative for|absence of|free of)\b", re.IGNORECASE)
NORMAL_HEART = re.compile(r"heart (size )?(is )?(\w+ )?normal|normal (heart|cardiac)", re.IGNORECASE)


@dataclass(frozen=True)
class Measured:
    """One volume: its numbers (NaN: not measurable), its prompt, and the source of the masks behind them."""

    key: str
    prompt: str
    values: Mapping[str, float]
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairAsked:
    """Two arms of volumes and the quantity that should be higher in the first. `normal` is the range of the absent."""

    name: str
    measure: str
    present: tuple[str, ...]  # keys of volumes
    absent: tuple[str, ...]
    direction: str = "higher"
    normal: tuple[float, float] | None = None


def measure_volume(
    hu_DHW: np.ndarray, masks: Mapping[str, np.ndarray], spacing_mm: tuple[float, float, float]
) -> dict[str, float]:
    """Every measure whose masks are there; NaN for the others and where a mask is empty that must not be.

    Arrays as `anatomy` wants them: d along the body, h from front to back, w from side to side.
    """
    found = dict.fromkeys(MEASURES, float("nan"))
    if "effusion" in masks:
        found["effusion_ml"] = anatomy.volume_ml(masks["effusion"], spacing_mm)
    if "vessel" in masks:
        found["vessel_ml"] = anatomy.volume_ml(masks["vessel"], spacing_mm)
    if "airway" in masks:
        found["airway_ml"] = anatomy.volume_ml(masks["airway"], spacing_mm)
        found["airway_length_mm"] = anatomy.tree_length_mm(masks["airway"], spacing_mm)
    if "lobe" in masks:
        by_lobe = anatomy.lobe_volumes_ml(masks["lobe"], spacing_mm)
        found |= {LOBE_MEASURES[label]: by_lobe[name] for label, name in anatomy.LOBES.items()}
        found["lung_ml"] = sum(by_lobe.values())
        found |= _density(hu_DHW, masks)
        if "effusion" in masks and masks["lobe"].any():
            sides = anatomy.side_volumes_ml(masks["effusion"], masks["lobe"], spacing_mm)
            found |= {f"effusion_{side}_ml": value for side, value in sides.items()}
    if {"lobe", "heart"} <= set(masks) and masks["heart"].any():
        chest = masks["lobe"] > 0
        if "effusion" in masks:
            chest = chest | (masks["effusion"] > 0)
        if chest[int(masks["heart"].any(axis=1).sum(axis=1).argmax())].any():
            found["cardiothoracic_ratio"] = anatomy.cardiothoracic_ratio(masks["heart"], chest)
    return found


def _density(hu_DHW: np.ndarray, masks: Mapping[str, np.ndarray]) -> dict[str, float]:
    lung, airway = masks["lobe"] > 0, masks.get("airway")
    if not (lung if airway is None else lung & ~(airway > 0)).any():
        return {}
    low = {
        f"laa{-level}_percent": anatomy.low_attenuation_percent(hu_DHW, lung, threshold=level, airway_DHW=airway)
        for level in (-950, -910)
    }
    return {**low, "mean_lung_hu": anatomy.mean_lung_hu(hu_DHW, lung, airway)}


def says(prompt: str, finding: str) -> bool | None:
    """Whether a prompt names a finding (True), denies it (False) or leaves it open (None), sentence by sentence.

    A prompt that does both is left open.
    """
    words, _ = FINDINGS[finding]
    heard = set()
    for sentence in re.split(r"[.;:\n]+", prompt):
        place = re.search(words, sentence, re.IGNORECASE)
        if place:
            heard.add(DENIED.search(sentence[: place.end()]) is None)
        elif finding == "cardiomegaly" and NORMAL_HEART.search(sentence):
            heard.add(False)
    return heard.pop() if len(heard) == 1 else None


def pairs_from_prompts(volumes: Sequence[Measured]) -> list[PairAsked]:
    """The pairs of MedSyn that the prompts hold: findings that at least two volumes name and two deny."""
    pairs = []
    for finding, (_, measure) in FINDINGS.items():
        arms = {said: tuple(one.key for one in volumes if says(one.prompt, finding) is said) for said in (True, False)}
        if min(map(len, arms.values())) >= 2:
            pairs.append(PairAsked(finding, measure, arms[True], arms[False]))
    return pairs


def pair_results(volumes: Sequence[Measured], pairs: Sequence[PairAsked]) -> list[tuple[PairAsked, PromptPair]]:
    """The test of each pair. Volumes in which the quantity could not be measured are left out of the arm's n.

    Raises InputError when fewer than two of an arm are left.
    """
    by_key = {one.key: one for one in volumes}
    found = []
    for pair in pairs:
        arms = [np.array([by_key[key].values[pair.measure] for key in keys]) for keys in (pair.present, pair.absent)]
        measured = [arm[np.isfinite(arm)] for arm in arms]
        if min(map(len, measured)) < 2:
            raise InputError(
                f"pair {pair.name}: {pair.measure} was measured in {len(measured[0])} and {len(measured[1])} volumes; "
                f"each arm needs 2. The source of the masks may lack {', '.join(MEASURES[pair.measure][1])}"
            )
        found.append((pair, prompt_pair(*measured, direction=pair.direction, normal_range=pair.normal)))
    return found


def volumes_table(volumes: Sequence[Measured]) -> Table:
    """One row per volume, with the source of its masks."""
    return Table(
        name="volumes",
        title="Every volume",
        text="What was measured in each volume. Empty: not measurable, because a mask is missing or empty.",
        columns=("volume", *(title for title, _ in MEASURES.values()), "masks", "notes", "prompt"),
        rows=tuple(
            (
                one.key,
                *(_cell(one.values[name]) for name in MEASURES),
                one.source,
                "; ".join(one.notes),
                one.prompt[:160],
            )
            for one in volumes
        ),
        numeric=frozenset(range(1, len(MEASURES) + 1)),
    )


def _cell(value: float) -> str:
    return number(value) if np.isfinite(value) else ""


def summary_table(volumes: Sequence[Measured]) -> Table:
    """Mean and SD over the volumes, with a bootstrap interval of the mean."""
    rows, values = [], []
    source = sources(volumes)
    for name, (title, _) in MEASURES.items():
        found = np.array([one.values[name] for one in volumes])
        found = found[np.isfinite(found)]
        if len(found) < 2:
            continue
        inside = mean_interval(found, resamples=2000, seed=0)
        mean, spread = float(found.mean()), float(found.std(ddof=1))
        rows.append((title, number(mean), number(spread), between(inside), len(found), source))
        values.append(
            Value(name, mean, low=inside.low, high=inside.high, level=inside.level, n=len(found), extractor=source)
        )
        values.append(Value(f"{name}_sd", spread, n=len(found), extractor=source))
    return Table(
        name="anatomy",
        title="Anatomy of all volumes",
        text="Mean, standard deviation and 95 % bootstrap interval of the mean over volumes where it was measurable.",
        columns=("measure", "mean", "SD", "95 % interval", "n", "masks"),
        rows=tuple(rows),
        numeric=frozenset({1, 2, 3, 4}),
        values=tuple(values),
    )


def sources(volumes: Sequence[Measured]) -> str:
    """The sources of all masks, each once."""
    return " / ".join(dict.fromkeys(one.source for one in volumes))


def pairs_table(volumes: Sequence[Measured], results: Sequence[tuple[PairAsked, PromptPair]]) -> Table:
    """Present against absent, one row per pair and arm of evidence."""
    source = sources(volumes)
    rows = []
    for pair, found in results:
        inside = "" if found.absent_in_range is None else f"{found.absent_in_range:.0%}"
        rows.append(
            (
                pair.name,
                MEASURES[pair.measure][0],
                f"{number(found.mean_present)} ± {number(found.sd_present)}",
                found.n_present,
                f"{number(found.mean_absent)} ± {number(found.sd_absent)}",
                found.n_absent,
                f"{found.superiority:.1%}",
                f"{found.superiority_interval.low:.1%} to {found.superiority_interval.high:.1%}",
                f"{found.p:.2g}",
                inside,
                source,
            )
        )
    points = [[(found.superiority, found.superiority_interval) for _, found in results]]
    return Table(
        name="pairs",
        title="Do prompts with a finding show it?",
        text=(
            "Mean ± SD in volumes whose prompt names the finding and in those whose prompt denies it. Superiority is "
            "the chance that a volume of the first kind measures more than one of the second (50 % is none; 95 % "
            "bootstrap interval). p: Mann-Whitney, one-sided. The last but one column is the share of the second kind "
            "inside the normal range, where one was given."
        ),
        columns=("finding", "measure", "present", "n", "absent", "n", "superiority", "95 % interval", "p",
                 "absent in normal range", "masks"),
        rows=tuple(rows),
        numeric=frozenset(range(2, 10)),
        plot=interval_plot([pair.name for pair, _ in results], {"generated": points[0]}, "superiority", high=1),
        plot_text="; ".join(f"{pair.name}: superiority {found.superiority:.1%}" for pair, found in results),
        plot_columns=("finding", "superiority", "low", "high"),
        plot_rows=tuple(
            (pair.name, found.superiority, found.superiority_interval.low, found.superiority_interval.high)
            for pair, found in results
        ),
        values=tuple(value for pair, found in results for value in _pair_values(pair, found, source)),
    )  # fmt: skip


def _pair_values(pair: PairAsked, found: PromptPair, source: str) -> list[Value]:
    """The arms' means and SDs as "present" and "absent", and the test."""
    both, chance = found.n_present + found.n_absent, found.superiority_interval
    return [
        Value(pair.measure, found.mean_present, "present", pair.name, n=found.n_present, extractor=source),
        Value(pair.measure, found.mean_absent, "absent", pair.name, n=found.n_absent, extractor=source),
        Value(f"{pair.measure}_sd", found.sd_present, "present", pair.name, n=found.n_present, extractor=source),
        Value(f"{pair.measure}_sd", found.sd_absent, "absent", pair.name, n=found.n_absent, extractor=source),
        Value(
            "superiority", found.superiority, "generated", pair.name, chance.low, chance.high, chance.level, both,
            extractor=source,
        ),
        Value("superiority_p", found.p, "generated", pair.name, n=both, extractor=source),
    ]  # fmt: skip
