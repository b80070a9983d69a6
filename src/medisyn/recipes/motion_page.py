"""The report of `medisyn evaluate --motion`: tables, and the numbers in them for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medisyn.evaluation.page import Page, Table, Value
from medisyn.evaluation.report import between, number, write_report

if TYPE_CHECKING:
    from medisyn.evaluation.alignment import PromptPair
    from medisyn.recipes.evaluate_motion import FactorResult, MeasuredClip, MotionEvaluation, Pair, Ratio

TITLES = {
    "ejection_fraction": "ejection fraction, %",
    "motion": "motion value, 0 to 1000",
    "flicker": "flicker, grey levels",
}


def write_motion_page(out: Path, found: MotionEvaluation) -> None:
    """report.html, result.json and the CSV tables."""
    tables = []
    if found.pairs or found.held_out_pairs:
        tables.append(_pairs_table(found.pairs, found.held_out_pairs))
    if found.factor is not None:
        tables.append(_factor_table(found.factor))
    if found.ratios:
        tables.append(_ratio_table(found.ratios))
    tables += [
        _clips_table(name, title, part)
        for name, title, part in (
            ("clips", "Every generated clip", found.clips),
            ("held_out", "Every held-out clip", found.held_out),
        )
        if part
    ]
    page = Page(
        title="What moves in generated clips",
        facts=(("Generated clips", str(len(found.clips))), ("Held-out clips", str(len(found.held_out)))),
        tables=tuple(tables),
        methods=(
            "Every number is measured on the grey frames (Rec. 601 luma) alone. Ejection fraction: the rule of the "
            "heart phantoms, which lays the outline of a ventricle over the frames; it knows no other heart. Motion: "
            "100 times the mean absolute difference of neighbouring frames in grey levels, at most 1000. Flicker: mean "
            "absolute second difference in time where least moves. Clips are compared at one size, rate and length.",
        ),
        warnings=found.warnings,
    )
    write_report(out, page, found.as_dict())


def _pairs_table(generated: Sequence[tuple[Pair, PromptPair]], held_out: Sequence[tuple[Pair, PromptPair]]) -> Table:
    rows, values = [], []
    for of, pairs in (("generated", generated), ("held out", held_out)):
        for pair, found in pairs:
            inside = found.superiority_interval
            rows.append(
                (
                    pair.name,
                    of,
                    _title(pair.measure),
                    f"{number(found.mean_present)} ± {number(found.sd_present)}",
                    found.n_present,
                    f"{number(found.mean_absent)} ± {number(found.sd_absent)}",
                    found.n_absent,
                    f"{found.superiority:.1%}",
                    f"{inside.low:.1%} to {inside.high:.1%}",
                    f"{found.p:.2g}",
                )
            )
            both = found.n_present + found.n_absent
            values += [
                Value(f"{pair.measure}_present", found.mean_present, of, pair.name, n=found.n_present),
                Value(f"{pair.measure}_absent", found.mean_absent, of, pair.name, n=found.n_absent),
                Value("superiority", found.superiority, of, pair.name, inside.low, inside.high, inside.level, both),
                Value("superiority_p", found.p, of, pair.name, n=both),
            ]
    return Table(
        name="pairs",
        title="Do clips show what their prompts say?",
        text=(
            "Mean ± SD in clips of the first kind of prompt and of the second. Superiority is the chance that a clip "
            "of the first kind lies on the right side of one of the second (50 % is none; 95 % bootstrap interval). p: "
            "Mann-Whitney, one-sided. The rows of held-out clips show what the measure itself can tell apart."
        ),
        columns=("pair", "clips", "measure", "first", "n", "second", "n", "superiority", "95 % interval", "p"),
        rows=tuple(rows),
        numeric=frozenset(range(3, 10)),
        values=tuple(values),
    )


def _factor_table(found: FactorResult) -> Table:
    inside = found.spearman_interval
    series = (
        ""
        if found.series is None
        else f" Of clips that differ in the factor alone (one prompt and seed): {found.series.summary()}."
    )
    levels = zip(found.levels, found.counts, found.means, found.intervals, strict=True)
    return Table(
        name="factor",
        title="Does more move where the motion factor is larger?",
        text=(
            f"Mean motion of the clips made with each factor. The means {'rise' if found.rises else 'do not rise'} at "
            f"every step; Spearman's correlation over {found.n} clips is {found.spearman:.2f} ({inside.low:.2f} to "
            f"{inside.high:.2f}, 95 % bootstrap within the factors).{series}"
        ),
        columns=("motion factor", "n", "motion value", "95 % interval"),
        rows=tuple(
            (f"{level:g}", n, number(mean), "" if interval is None else between(interval))
            for level, n, mean, interval in levels
        ),
        numeric=frozenset({0, 1, 2, 3}),
        values=(
            Value(
                "motion_factor_spearman",
                found.spearman,
                low=inside.low,
                high=inside.high,
                level=inside.level,
                n=found.n,
            ),
            *(
                Value("motion", mean, group=f"factor {level:g}", n=n)
                for level, n, mean in zip(found.levels, found.counts, found.means, strict=True)
            ),
        ),
    )


def _ratio_table(ratios: Sequence[Ratio]) -> Table:
    return Table(
        name="ratios",
        title="Against held-out clips",
        text="Mean over the generated clips as a multiple of that over the held-out ones; 95 % bootstrap of both.",
        columns=("measure", "ratio", "95 % interval", "n generated", "n held out"),
        rows=tuple(
            (_title(one.measure), number(one.value), between(one.interval), one.n_generated, one.n_held_out)
            for one in ratios
        ),
        numeric=frozenset({1, 2, 3, 4}),
        values=tuple(
            Value(
                f"{one.measure}_ratio", one.value, low=one.interval.low, high=one.interval.high,
                level=one.interval.level, n=one.n_generated, n_real=one.n_held_out,
            )
            for one in ratios
        ),
    )  # fmt: skip


def _clips_table(name: str, title: str, clips: Sequence[MeasuredClip]) -> Table:
    measures = list(clips[0].values)
    return Table(
        name=name,
        title=title,
        text="Empty: not measurable, for the reason under notes.",
        columns=("clip", *(_title(measure) for measure in measures), "motion factor", "notes", "prompt"),
        rows=tuple(
            (
                one.key,
                *(number(one.values[measure]) if np.isfinite(one.values[measure]) else "" for measure in measures),
                "" if one.factor is None else f"{one.factor:g}",
                "; ".join(one.notes),
                one.prompt[:160],
            )
            for one in clips
        ),
        numeric=frozenset(range(1, len(measures) + 2)),
    )


def _title(measure: str) -> str:
    return TITLES.get(measure, measure.replace("_", " "))
