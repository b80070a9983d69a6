"""The Dice of `medisyn generate segment` as a report: with and without the text, side by side (MedSyn, Table V)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medisyn import runs
from medisyn.recipes.medsyn_corpus import MASKS

if TYPE_CHECKING:
    from medisyn.evaluation.bootstrap import Interval
    from medisyn.evaluation.page import Table

ARMS = {"report": "with its report", "alone": "without a report"}
SOURCE = "the model, CT given"


def write_dice_page(out: Path, dice: Mapping[str, Mapping[str, Sequence[float]]], model: Mapping[str, str]) -> None:
    """report.html, result.json and run.json: the Dice of each arm and mask, and what the report changes."""
    from medisyn.evaluation.report import Page, write_report

    page = Page(
        title="Segmentation by keeping the CT",
        facts=(("Model", f"{model['id']} {model['digest'][:12]}"), ("Masks", SOURCE)),
        tables=(_table(dice),),
        methods=(
            "Dice of each CT on its own grid, against the masks that lie beside it; of lobes the mean over the five. "
            "Intervals: 95 % bootstrap of the mean over CTs. The last rows are differences CT by CT; an interval that "
            "holds 0 says that the report was not shown to help.",
        ),
    )
    write_report(out, page, {"kind": "generate segment", "dice": {arm: dict(values) for arm, values in dice.items()}})
    runs.write_run(out, kind="generate segment", model=dict(model))


def _table(dice: Mapping[str, Mapping[str, Sequence[float]]]) -> Table:
    """One row per arm and mask, and the difference of the arms."""
    from medisyn.evaluation.page import Table, Value
    from medisyn.evaluation.report import between, number

    rows, values = [], []
    told = {arm: (ARMS[arm], by_mask) for arm, by_mask in dice.items()}
    if set(dice) == set(ARMS):
        told["difference"] = (
            "difference",
            {name: [a - b for a, b in zip(dice["report"][name], dice["alone"][name], strict=True)] for name in MASKS},
        )
    for arm, (title, by_mask) in told.items():
        for name, scores in by_mask.items():
            if len(scores) < 2:
                continue
            mean, spread, inside = float(np.mean(scores)), float(np.std(scores, ddof=1)), _interval(scores)
            rows.append((title, name, number(mean), number(spread), between(inside), len(scores)))
            quantity = "dice" if arm != "difference" else "dice_difference"
            of = {"report": "with report", "alone": "no report"}.get(arm, "report against none")
            values.append(
                Value(quantity, mean, of, name, inside.low, inside.high, inside.level, len(scores), extractor=SOURCE)
            )
            values.append(Value(f"{quantity}_sd", spread, of, name, n=len(scores), extractor=SOURCE))
    return Table(
        name="dice",
        title="Dice against the masks beside each CT",
        text="MedSyn, Table V: the CT is given, the model fills in the masks.",
        columns=("", "mask", "mean", "SD", "95 % interval", "n"),
        rows=tuple(rows),
        numeric=frozenset({2, 3, 4, 5}),
        values=tuple(values),
    )


def _interval(scores: Sequence[float]) -> Interval:
    from medisyn.evaluation.bootstrap import mean_interval

    return mean_interval(np.asarray(scores), resamples=2000, seed=0)
