"""The report of `medisyn study report`: its files, and the tables of a classification with the numbers in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn.evaluation.page import Page, Table, Value
from medisyn.evaluation.plots import interval_plot
from medisyn.evaluation.report import MAX_PLOT_ROWS, number, write_report
from medisyn.recipes.study_ranks_page import MAX_SERIES, p_text, ranking_facts, ranking_methods, ranking_tables

if TYPE_CHECKING:
    from medisyn.evaluation.agreement import Kappa
    from medisyn.evaluation.bootstrap import Interval
    from medisyn.recipes.study_report import ClassificationStudy, StudyReport

MEAN = "mean of readers"


def write_study_page(out: Path, found: StudyReport) -> None:
    """report.html, result.json and the CSV tables."""
    from medisyn.recipes.study_report import ClassificationStudy

    study = found.study
    if isinstance(study, ClassificationStudy):
        title, facts = "Reader study: classification", _classification_facts(study, found.asked["margin"])
        tables, methods = _classification(study), _classification_methods(study)
    else:
        title, facts = "Reader study: ranking", ranking_facts(study)
        tables, methods = ranking_tables(study), ranking_methods()
    page = Page(title=title, facts=facts, tables=tuple(tables), methods=methods, warnings=found.notes)
    write_report(out, page, found.as_dict())


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _range(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"


def _points(interval: Interval) -> str:
    return f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"


# ---- classification


def _classification_facts(study: ClassificationStudy, margin: float) -> tuple[tuple[str, str], ...]:
    groups = ", ".join(f"{name} ({group.items} items)" for name, group in study.accuracy.groups.items())
    return (
        ("Readers", str(len(study.readers))),
        ("Answers", f"{study.answers:,}"),
        ("Groups", groups),
        ("Classes", ", ".join(study.classes)),
        ("Margin of equivalence", f"{100 * margin:g} percentage points of accuracy"),
    )


def _classification(study: ClassificationStudy) -> list[Table]:
    tables = [_accuracy_table(study), _readers_table(study)]
    if study.accuracy.differences:
        tables.append(_differences_table(study))
    if len(study.readers) > 1:
        tables += [_agreement_table(study), _pairs_table(study)]
    if any(study.confidence.values()):
        tables.append(_confidence_table(study))
    if study.repeats:
        tables.append(_repeats_table(study))
    return [*tables, _confusion_table(study)]


def _accuracy_table(study: ClassificationStudy) -> Table:
    task, rows, values = ", ".join(study.classes), [], []
    for name, group in study.accuracy.groups.items():
        seen = sum(share is not None for share in group.per_reader)
        spread = "" if group.sd is None else f" ± {100 * group.sd:.2f}"
        inside = group.interval
        rows.append((name, group.items, seen, f"{100 * group.mean:.2f}{spread} %", _range(inside)))
        values.append(
            Value("reader_accuracy", group.mean, name, "", inside.low, inside.high, inside.level, group.items,
                  task=task)
        )  # fmt: skip
        if group.sd is not None:
            values.append(Value("reader_accuracy_sd", group.sd, name, n=group.items, task=task))
    over = "readers and items" if len(study.readers) > 1 else "items"
    return Table(
        name="accuracy",
        title="How often are the readers right?",
        text=(
            "Mean of the readers' accuracies ± their standard deviation (n - 1), as MediSyn v2 prints it. The interval "
            f"is a bootstrap over {over}: how the mean would move with others of them."
        ),
        columns=("group", "items", "readers", "accuracy", "95 % interval"),
        rows=tuple(rows),
        numeric=frozenset({1, 2, 3, 4}),
        values=tuple(values),
    )


def _readers_table(study: ClassificationStudy) -> Table:
    groups = study.accuracy.groups
    rows = []
    for index, reader in enumerate(study.readers):
        for name, group in groups.items():
            share = group.per_reader[index]
            if share is not None:
                rows.append(
                    (reader, name, f"{share.correct} of {share.n}", _percent(share.value), _range(share.interval))
                )
    return Table(
        name="readers",
        title="Each reader",
        text="Right answers of each reader, with Wilson's 95 % interval over the items.",
        columns=("reader", "group", "right", "accuracy", "95 % interval"),
        rows=tuple(rows),
        numeric=frozenset({2, 3, 4}),
        **_readers_plot(study),
    )


def _readers_plot(study: ClassificationStudy) -> dict[str, Any]:
    """The fields of a table that hold its plot; none where there are more groups or readers than it can show."""
    groups = study.accuracy.groups
    if len(groups) > MAX_SERIES or len(study.readers) >= MAX_PLOT_ROWS:
        return {}
    names, points = list(study.readers), {}
    for name, group in reversed(groups.items()):  # the reference last: real images are orange in every report
        points[name] = [None if share is None else (share.value, share.interval) for share in group.per_reader]
    if len(names) > 1:
        names.append(MEAN)
        for name, group in groups.items():
            points[name].append((group.mean, group.interval))
    plotted = [
        (row, name, *point) for name, part in points.items() for row, point in zip(names, part, strict=True) if point
    ]
    return {
        "plot": interval_plot(names, points, "share right, 95 % interval", high=1),
        "plot_text": "; ".join(f"{row}, {name}: {_percent(value)}" for row, name, value, _ in plotted),
        "plot_columns": ("reader", "group", "share", "low", "high"),
        "plot_rows": tuple((row, name, value, inside.low, inside.high) for row, name, value, inside in plotted),
    }


def _differences_table(study: ClassificationStudy) -> Table:
    reference, rows, values = study.accuracy.reference, [], []
    for name, gap in study.accuracy.differences.items():
        told = f"{name} minus {reference}"
        for reader, pair in zip(study.readers, gap.per_reader, strict=True):
            if pair is not None and len(study.readers) > 1:
                rows.append((told, reader, f"{100 * pair[0]:+.1f}", _points(pair[1]), "", ""))
        rows.append(
            (told, MEAN if len(study.readers) > 1 else study.readers[0], f"{100 * gap.value:+.2f}",
             _points(gap.interval), _points(gap.equivalence.interval), gap.equivalence.verdict)
        )  # fmt: skip
        inside = gap.interval
        values.append(
            Value("reader_accuracy_difference", gap.value, told, "", inside.low, inside.high, inside.level,
                  study.accuracy.groups[name].items, task=", ".join(study.classes))
        )  # fmt: skip
    margin = next(iter(study.accuracy.differences.values())).equivalence.margin
    return Table(
        name="differences",
        title=f"Is any group read otherwise than {reference}?",
        text=(
            "Differences in percentage points of accuracy. A difference is shown where the 95 % interval leaves out 0. "
            f"Equivalence is shown where the 90 % interval lies within ±{100 * margin:g} points (two one-sided tests, "
            "5 % each); the margin is a judgement that belongs into the protocol, before the study. Where neither is "
            "shown, the question is open: no difference shown is not equivalence. A higher accuracy on synthetic items "
            "may mean that they vary less than real ones."
        ),
        columns=("difference", "reader", "points", "95 % interval", "90 % interval", "equivalence"),
        rows=tuple(rows),
        numeric=frozenset({2, 3, 4}),
        values=tuple(values),
    )


def _kappa_cells(kappa: Kappa) -> tuple[str, str, str, int]:
    value = "not defined" if kappa.value is None else f"{kappa.value:.3f}"
    inside = "" if kappa.interval is None else f"{kappa.interval.low:.3f} to {kappa.interval.high:.3f}"
    return value, inside, _percent(kappa.observed), kappa.items


def _agreement_table(study: ClassificationStudy) -> Table:
    found = {name: kappa for name, kappa in study.kappas.items() if kappa is not None}
    return Table(
        name="agreement",
        title="Do the readers agree with each other?",
        text=(
            "Fleiss' kappa of the answers, whether right or wrong: 1 is perfect agreement, 0 that of chance. Interval: "
            "bootstrap over items. Kappa falls where nearly all answers are one class, and is not defined where all "
            "are; then read the share of pairs of answers that agree."
        ),
        columns=("group", "Fleiss' kappa", "95 % interval", "pairs that agree", "items"),
        rows=tuple((name, *_kappa_cells(kappa)) for name, kappa in found.items()),
        numeric=frozenset({1, 2, 3, 4}),
        values=tuple(
            Value("reader_kappa", kappa.value, name, "", kappa.interval.low, kappa.interval.high,
                  kappa.interval.level, kappa.items, task=", ".join(study.classes))
            for name, kappa in found.items()
            if kappa.value is not None and kappa.interval is not None
        ),
    )  # fmt: skip


def _pairs_table(study: ClassificationStudy) -> Table:
    return Table(
        name="reader_pairs",
        title="Is one reader better than another?",
        text=(
            "Over the items of all groups that both saw: how many only one of the two had right, and the exact McNemar "
            "p, raw and after Holm's correction for all pairs. Groups hold different items, so this test says nothing "
            "about them."
        ),
        columns=("first", "second", "items", "only first right", "only second right", "p", "p, Holm"),
        rows=tuple(
            (study.readers[pair.first], study.readers[pair.second], pair.n, pair.first_only, pair.second_only,
             p_text(pair.p), p_text(pair.p_adjusted))
            for pair in study.pairs
        ),
        numeric=frozenset(range(2, 7)),
    )  # fmt: skip


def _confidence_table(study: ClassificationStudy) -> Table:
    task, rows, values = ", ".join(study.classes), [], []
    for name, found in study.confidence.items():
        if found is None:
            continue
        spread = "" if found.sd is None else f" ± {found.sd:.2f}"
        p = study.confidence_p.get(name)
        rows.append(
            (name, found.n, number(found.median), f"{number(found.low_quartile)} to {number(found.high_quartile)}",
             f"{found.mean:.2f}{spread}", ", ".join(f"{mean:.2f}" for mean in found.per_reader if np.isfinite(mean)),
             "" if p is None else p_text(p))
        )  # fmt: skip
        items = study.accuracy.groups[name].items
        values.append(Value("reader_confidence", found.mean, name, n=items, task=task))
        if found.sd is not None:
            values.append(Value("reader_confidence_sd", found.sd, name, n=items, task=task))
    least = p_text(2 / 2 ** len(study.readers))
    return Table(
        name="confidence",
        title="How sure were they?",
        text=(
            "From 1 to 5. The steps of such a scale have an order and no size, so the median and the quartiles of all "
            "answers come first; the mean ± SD is of the readers' means, and these follow. p: Wilcoxon's signed-rank "
            f"test of the readers' means against {study.accuracy.reference}; with {len(study.readers)} readers it "
            f"cannot be below {least}."
        ),
        columns=("group", "answers", "median", "quartiles", "mean ± SD", "readers' means", "p"),
        rows=tuple(rows),
        numeric=frozenset(range(1, 7)),
        values=tuple(values),
    )


def _repeats_table(study: ClassificationStudy) -> Table:
    return Table(
        name="repeats",
        title="Do the readers agree with themselves?",
        text=(
            "Cohen's kappa of the first and the second answer to the same item. The second answers count nowhere else."
        ),
        columns=("reader", "Cohen's kappa", "95 % interval", "the same answer", "items"),
        rows=tuple((reader, *_kappa_cells(kappa)) for reader, kappa in study.repeats.items()),
        numeric=frozenset({1, 2, 3, 4}),
    )


def _confusion_table(study: ClassificationStudy) -> Table:
    rows = [
        (name, truth, *counts.tolist(), int(counts.sum()))
        for name, found_KK in study.confusion.items()
        for truth, counts in zip(study.classes, found_KK, strict=True)
        if counts.sum()
    ]
    return Table(
        name="confusion",
        title="What was taken for what?",
        text="Answers of all readers: the truth in rows, the answer in columns.",
        columns=("group", "truth", *study.classes, "all"),
        rows=tuple(rows),
        numeric=frozenset(range(2, len(study.classes) + 3)),
    )


def _classification_methods(study: ClassificationStudy) -> tuple[str, ...]:
    return (
        f"Accuracy. {study.accuracy.resamples} bootstrap resamples drew "
        f"{'readers and ' if len(study.readers) > 1 else ''}items of each group with replacement, the same readers for "
        "all groups; percentile intervals. Intervals of single readers: Wilson (1927); of their differences: Newcombe "
        "(1998, method 10), for the groups hold different items.",
        "Agreement. Fleiss (1971), each item with the same weight; Cohen (1960). Resamples in which all answers are "
        "one class have no kappa and are left out. McNemar's test is exact (binomial, two-sided), Wilcoxon's "
        "signed-rank test two-sided, differences of 0 dropped.",
    )
