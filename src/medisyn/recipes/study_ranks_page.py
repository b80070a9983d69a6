"""The tables of a ranking in the report of `medisyn study report`, and the numbers in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medisyn.evaluation.page import Table, Value
from medisyn.evaluation.plots import interval_plot
from medisyn.evaluation.report import MAX_PLOT_ROWS
from medisyn.recipes.study_table import ALL

if TYPE_CHECKING:
    from medisyn.evaluation.bootstrap import Interval
    from medisyn.evaluation.rank_tests import RankTests
    from medisyn.recipes.study_report import RankingStudy

MAX_SERIES = 3  # of a plot
BLOCKS = {"by_reader": "one ranking per reader", "all_rankings": "all rankings"}


def p_text(value: float) -> str:
    """Two significant digits; what is too small for these to mean anything is "< 1e-15"."""
    return "< 1e-15" if value < 1e-15 else f"{value:.2g}"


def _group(name: str) -> str:
    return "" if name == ALL else name


def ranking_facts(study: RankingStudy) -> tuple[tuple[str, str], ...]:
    return (
        ("Readers", str(len(study.readers))),
        *(
            (
                "Rankings" if name == ALL else f"Rankings, {name}",
                f"{group.rankings} of {len(group.systems)} systems: {group.readers} readers, {group.blocks} blocks",
            )
            for name, group in study.groups.items()
        ),
    )


def ranking_tables(study: RankingStudy) -> list[Table]:
    tables = [_means_table(study)]
    if _tests(study):
        tables += [_friedman_table(study), _posthoc_table(study)]
    return tables


def _tests(study: RankingStudy) -> list[tuple[str, str, RankTests]]:
    """Group, blocks and what was found, one ranking per reader first."""
    return [
        (name, blocks, tests)
        for name, group in study.groups.items()
        for blocks in BLOCKS
        if (tests := getattr(group, blocks)) is not None
    ]


def _means_table(study: RankingStudy) -> Table:
    most = max(len(group.systems) for group in study.groups.values())
    rows, values = [], []
    for name, group in study.groups.items():
        for system, mean in sorted(zip(group.systems, group.means, strict=True), key=lambda pair: pair[1].value):
            inside = mean.interval
            counts = [*mean.counts, *[""] * (most - len(mean.counts))]
            rows.append(
                (
                    name,
                    system,
                    f"{mean.value:.2f}",
                    "" if inside is None else f"{inside.low:.2f} to {inside.high:.2f}",
                    *counts,
                )
            )
            low, high = (None, None) if inside is None else (inside.low, inside.high)
            level = None if inside is None else inside.level
            values.append(Value("mean_rank", mean.value, system, _group(name), low, high, level, group.readers))
    return Table(
        name="mean_ranks",
        title="Which systems rank first?",
        text=(
            "1 is best. Each reader counts the same; the interval is a bootstrap over readers (over rankings where "
            "there is one reader). The columns to the right count how often each rank was given."
        ),
        columns=("group", "system", "mean rank", "95 % interval", *(f"rank {rank + 1}" for rank in range(most))),
        rows=tuple(rows),
        numeric=frozenset(range(2, most + 4)),
        values=tuple(values),
        **_means_plot(study, most),
    )


def _means_plot(study: RankingStudy, most: int) -> dict[str, Any]:
    """The fields of a table that hold its plot; none without intervals, or with more rows or groups than fit."""
    names = list(dict.fromkeys(system for group in study.groups.values() for system in group.systems))
    points: dict[str, Sequence[tuple[float, Interval] | None]] = {}
    for name, group in study.groups.items():
        of = {s: (m.value, m.interval) for s, m in zip(group.systems, group.means, strict=True) if m.interval}
        points[name] = [of.get(system) for system in names]
    plotted = [(row, name, *point) for name, part in points.items() for row, point in zip(names, part, strict=True)
               if point]  # fmt: skip
    if len(points) > MAX_SERIES or len(names) > MAX_PLOT_ROWS or not plotted:
        return {}
    return {
        "plot": interval_plot(names, points, "mean rank (1 is best), 95 % interval", high=most),
        "plot_text": "; ".join(f"{row}, {name}: {value:.2f}" for row, name, value, _ in plotted),
        "plot_columns": ("system", "group", "mean rank", "low", "high"),
        "plot_rows": tuple((row, name, value, inside.low, inside.high) for row, name, value, inside in plotted),
    }


def _friedman_table(study: RankingStudy) -> Table:
    rows, values = [], []
    for name, blocks, tests in _tests(study):
        found, told = tests.friedman, BLOCKS[blocks]
        rows.append((name, told, found.n, f"{found.chi2:.2f}", found.k - 1, p_text(found.p), f"{found.w:.3f}"))
        values.append(Value("kendalls_w", found.w, told, _group(name), n=found.n))
        values.append(Value("friedman_p", found.p, told, _group(name), n=found.n))
    return Table(
        name="friedman",
        title="Do the ranks differ, and do the readers agree?",
        text=(
            "Friedman's test that no system ranks above another, and Kendall's W = chi-squared / (n (k - 1)): 1 where "
            "all blocks rank alike, 0 where they have nothing in common. One ranking per reader: the reader's mean "
            "ranks over the blocks, ranked again. All rankings: each reader and block by itself, as if each came from "
            "another reader; its p is too small where readers ranked several blocks. The two W are not one quantity: "
            "averages agree more than single rankings do."
        ),
        columns=("group", "blocks", "n", "chi-squared", "df", "p", "Kendall's W"),
        rows=tuple(rows),
        numeric=frozenset(range(2, 7)),
        values=tuple(values),
    )


def _posthoc_table(study: RankingStudy) -> Table:
    rows = [
        (name, BLOCKS[blocks], f"{study.groups[name].systems[pair.first]}, {study.groups[name].systems[pair.second]}",
         f"{pair.difference:+.2f}", f"{pair.z:+.2f}", p_text(pair.dunn_adjusted), p_text(pair.nemenyi_p),
         p_text(pair.wilcoxon_adjusted))
        for name, blocks, tests in _tests(study)
        for pair in tests.pairs
    ]  # fmt: skip
    return Table(
        name="posthoc",
        title="Which systems differ?",
        text=(
            "Mean rank of the first minus that of the second, in the blocks of the test: below 0 the first is better. "
            "Three p values, each corrected for all pairs: Dunn's with Bonferroni, Nemenyi's, and Wilcoxon's "
            "signed-rank test with Holm. A p above 0.05 does not show that two systems are equal."
        ),
        columns=("group", "blocks", "systems", "difference", "z", "p, Dunn", "p, Nemenyi", "p, Wilcoxon"),
        rows=tuple(rows),
        numeric=frozenset(range(3, 8)),
    )


def ranking_methods() -> tuple[str, ...]:
    return (
        "Friedman's chi-squared and Kendall's W are corrected for ties (which only the mean ranks of a reader have). "
        "Dunn: z = (R_i - R_j) / sqrt(k (k + 1) / (6 n)) on mean ranks over n blocks of k systems, p times the number "
        "of pairs. Nemenyi: studentised range of sqrt(2) |z| with infinite degrees of freedom. Wilcoxon: "
        "two-sided, on the ranks of each block (or the reader's mean ranks), differences of 0 dropped.",
    )
