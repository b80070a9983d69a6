"""Our numbers beside the published ones: matched by command and name, each with what forbids a comparison."""

from __future__ import annotations

from collections.abc import Collection as Names
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn.recipes.papers.tables import Ours, Paper, PaperTable, load_paper
from medisyn.recipes.results import Collection, collect

if TYPE_CHECKING:
    from medisyn.evaluation.page import Value

OTHER_IMAGES = "n and extractor agree; other images and another model"


@dataclass(frozen=True)
class Beside:
    """One of our numbers and the cell it belongs to; `differs` says why the two must not be compared."""

    table: str
    row: str  # "" for the whole column
    column: str
    published: str  # "" for the whole column
    result: str
    group: str  # ours; it may be finer than the row
    value: float
    interval: tuple[float, float] | None
    n: int | None
    extractor: str
    differs: tuple[str, ...]


@dataclass(frozen=True)
class PaperReport:
    """A paper's tables, the state of each, and what of ours stands beside them."""

    paper: Paper
    missing: dict[str, tuple[str, ...]]  # table id -> commands that this version does not have
    beside: tuple[Beside, ...]
    searched: bool  # results were given

    def state(self, table: PaperTable) -> str:
        if self.missing[table.id]:
            return f"not available in this version: {', '.join(self.missing[table.id])}"
        if any(row.table == table.id for row in self.beside):
            return "run"
        return "no result found" if self.searched else "not run"

    def as_dict(self) -> dict[str, Any]:
        tables = [
            {
                **asdict(table),
                "state": self.state(table),
                "not_available": list(self.missing[table.id]),
                "beside": [asdict(row) for row in self.beside if row.table == table.id],
            }
            for table in self.paper.tables
        ]
        return {**asdict(self.paper), "tables": tables}

    def text(self) -> str:
        """For a terminal: each table as printed, ours beside it, slips, notes and commands."""
        lines = [self.paper.title, self.paper.authors]
        for table in self.paper.tables:
            lines += ["", *self._table_lines(table)]
        lines += ["", "Where paper and published code differ"]
        rows = [(row.what, row.paper, row.code) for row in self.paper.differences]
        return "\n".join([*lines, *aligned([("", "paper", "code"), *rows])])

    def _table_lines(self, table: PaperTable) -> Iterator[str]:
        yield f"{table.label} ({table.where}): {table.title}"
        marked = {(slip.row, slip.column) for slip in table.slips}
        rows = [
            tuple(
                f"{cell} [slip]" if (table.row_label(row), column) in marked else cell
                for column, cell in zip(table.columns, row, strict=True)
            )
            for row in table.rows
        ]
        yield from aligned([table.columns, *rows])
        for slip in table.slips:
            yield f"  Slip: printed {slip.printed!r}, right is {slip.right!r}. {slip.why}"
        yield from (f"  Note: {note}" for note in table.notes)
        yield f"  Ours: {self.state(table)}"
        ours = [_beside_row(row) for row in self.beside if row.table == table.id]
        if ours:
            head = ("row", "column", "published", "ours", "interval", "n", "extractor", "result", "of", "comparable?")
            yield from aligned([head, *ours], indent=4)
        yield from (f"    {command}" for command in table.commands)


def paper_report(
    name: str, results: Sequence[Path | str] = (), *, commands: Names[str], presets: Names[str]
) -> PaperReport:
    """A paper beside what lies below the folders `results`.

    commands, presets: those of this version; a table that needs others is marked as not available.
    """
    paper = load_paper(name)
    found = collect([Path(folder) for folder in results]) if results else Collection()
    values = list(_values(found))
    missing = {table.id: tuple(not_available(table.commands, commands, presets)) for table in paper.tables}
    here = [table for table in paper.tables if not missing[table.id]]
    beside = [row for table in here for ours in table.ours for row in _matches(table, ours, values)]
    return PaperReport(paper, missing, tuple(beside), bool(results))


def not_available(lines: Iterable[str], commands: Names[str], presets: Names[str]) -> list[str]:
    """The parts of command lines that this version lacks, such as `medisyn study` or `medisyn train medsyn-base`."""
    lacking = []
    for line in lines:
        words = line.split()
        if words[1] not in commands:
            lacking.append(" ".join(words[:2]))
        elif words[1] == "train" and words[2] not in presets:
            lacking.append(" ".join(words[:3]))
    return list(dict.fromkeys(lacking))


# ---- ours


def _values(found: Collection) -> Iterator[tuple[str, str, Value]]:
    """Command, name of the result and number, of everything that was found."""
    from medisyn.evaluation.page import Value
    from medisyn.recipes.combined_report import corpus_tables

    for result in found.results:
        command = result.kind.split()[0] if result.kind else ""  # "evaluate clips" is of `medisyn evaluate`
        yield from ((command, result.name, value) for value in result.values)
    for entry in found.corpora:
        for table in corpus_tables(entry):
            yield from (("curate", entry.name, value) for value in table.values)
    for entry in found.training:
        energy = entry.run.get("energy") or {}
        if "kwh" in energy:
            yield "train", entry.name, Value("training_energy_kwh", float(energy["kwh"]))


def _matches(table: PaperTable, ours: Ours, values: Iterable[tuple[str, str, Value]]) -> Iterator[Beside]:
    named = [(result, value) for command, result, value in values if (command, value.name) == (ours.command, ours.name)]
    for label in _labels(table, ours):
        group = label if ours.group == "row" else ours.group
        for result, value in _of_arm(ours, [entry for entry in named if _is_group(entry[1].group, group)]):
            yield Beside(
                table=table.id,
                row=label,
                column=ours.column,
                published=table.cell(label, ours.column) if label else "",
                result=result,
                group=value.group,
                value=value.value * ours.scale,
                interval=None
                if value.low is None or value.high is None
                else (value.low * ours.scale, value.high * ours.scale),
                n=value.n,
                extractor=value.extractor,
                differs=tuple(_differences(table, ours, label, value)),
            )


def _labels(table: PaperTable, ours: Ours) -> list[str]:
    return [table.row_label(row) for row in table.rows] if ours.group == "row" else [ours.row]


def _is_group(ours: str, theirs: str) -> bool:
    """Our groups may be finer: `radiology / computed tomography` belongs to `Radiology`."""
    ours, theirs = ours.casefold(), theirs.casefold()
    return ours == theirs or (bool(theirs) and ours.startswith(f"{theirs} / "))


def _of_arm(ours: Ours, entries: list[tuple[str, Value]]) -> list[tuple[str, Value]]:
    """The entries of the set or arm asked for; where a result lacks that arm, those of its kind at other sizes."""
    if not ours.arm:
        return [entry for entry in entries if ours.of in ("any", entry[1].of)]
    exact = {result for result, value in entries if value.of == ours.arm}
    return [
        (result, value)
        for result, value in entries
        if value.of == ours.arm or (result not in exact and _kind(value.of) == _kind(ours.arm))
    ]


def _kind(arm: str) -> list[str]:
    return [word for word in arm.replace(",", " ").split() if word in ("real", "synthetic", "then")]


def _differences(table: PaperTable, ours: Ours, label: str, value: Value) -> Iterator[str]:
    """What differs from the paper in n, extractor and arm, in words; counts and costs are of other data altogether.

    The classes that a classifier of ours told apart are always named: papers say them in prose.
    """
    if ours.n is None and not ours.extractor and not ours.arm:
        yield "of other data"
    if value.task:
        yield f"task: {value.task}"
    if ours.arm and value.of != ours.arm:
        yield f"trained on {value.of}, paper {ours.arm}"
    n = table.cell(label, ours.n) if isinstance(ours.n, str) else ours.n
    wanted = None if n is None else int(str(n).replace(",", ""))
    if wanted is not None and value.n != wanted:
        yield f"n {'not recorded' if value.n is None else f'{value.n:,}'}, paper {wanted:,}"
    if ours.extractor and not value.extractor.casefold().startswith(ours.extractor):
        yield f"extractor {value.extractor or 'not recorded'}, paper {ours.extractor}"


def _beside_row(row: Beside) -> tuple[str, ...]:
    from medisyn.evaluation.report import number

    interval = "" if row.interval is None else f"{number(row.interval[0])} to {number(row.interval[1])}"
    verdict = f"no: {'; '.join(row.differs)}" if row.differs else OTHER_IMAGES
    n = "" if row.n is None else f"{row.n:,}"
    value = f"{row.value:,.0f}" if float(row.value).is_integer() else number(row.value)
    return (
        row.row, row.column, row.published, value, interval, n, row.extractor, row.result, row.group, verdict,
    )  # fmt: skip


def aligned(rows: Sequence[Sequence[str]], indent: int = 2) -> list[str]:
    """Rows as lines with columns of equal width."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        " " * indent + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
