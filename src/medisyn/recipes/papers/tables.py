"""The published tables, as printed, from the YAML files beside this module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medisyn.errors import InputError, closest

PAPERS = ("medisyn-v1", "medisyn-v2", "textual-inversion", "medsyn")


@dataclass(frozen=True)
class Slip:
    """A cell that is wrong in the paper, or a sentence (row and column are ""), and what is right."""

    row: str
    column: str
    printed: str
    right: str
    why: str


@dataclass(frozen=True)
class Ours:
    """Which number of ours belongs to a column: `name` in a result of `command`.

    row: the row it belongs to, "" for the column as a whole. group: "row" where the row's label names the group of our
    number (a class or specialty), else the group itself. of, arm: the set ("any" for all), or the arm of an experiment.
    n, extractor: what the paper used; n may be a column that holds it. scale: takes our number to the column's unit.
    """

    column: str
    command: str
    name: str
    row: str = ""
    group: str = ""
    of: str = "generated"
    arm: str = ""
    n: int | str | None = None
    extractor: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class PaperTable:
    """One table, or the key numbers of one figure. The first `key` columns name the row."""

    id: str
    label: str
    where: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    commands: tuple[str, ...]
    ours: tuple[Ours, ...]
    slips: tuple[Slip, ...] = ()
    notes: tuple[str, ...] = ()
    key: int = 1

    def row_label(self, row: tuple[str, ...]) -> str:
        return " | ".join(row[: self.key])

    def cell(self, label: str, column: str) -> str:
        """What is printed in a row and column; InputError where the table has none such."""
        for row in self.rows:
            if self.row_label(row) == label and column in self.columns:
                return row[self.columns.index(column)]
        raise InputError(f"{self.id} has no row {label!r} with a column {column!r}")


@dataclass(frozen=True)
class Difference:
    """Where the paper and the published code differ."""

    what: str
    paper: str
    code: str


@dataclass(frozen=True)
class Paper:
    name: str
    title: str
    authors: str
    tables: tuple[PaperTable, ...]
    differences: tuple[Difference, ...]


def load_paper(name: str) -> Paper:
    """The paper of that name in PAPERS; InputError with the nearest name for another."""
    if name not in PAPERS:
        raise InputError(f"paper {name!r} is unknown, allowed: {', '.join(PAPERS)}.{closest(name, PAPERS)}")
    content = yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8"))
    return Paper(
        name=content["name"],
        title=content["title"],
        authors=content["authors"],
        tables=tuple(_table(table) for table in content["tables"]),
        differences=tuple(Difference(**row) for row in content["differences"]),
    )


def _table(content: Mapping[str, Any]) -> PaperTable:
    parts = {
        **content,
        "columns": tuple(content["columns"]),
        "rows": tuple(tuple(row) for row in content["rows"]),
        "commands": tuple(content["commands"]),
        "ours": tuple(Ours(**row) for row in content["ours"]),
        "slips": tuple(Slip(**row) for row in content.get("slips", ())),
        "notes": tuple(" ".join(note.split()) for note in content.get("notes", ())),
    }
    return PaperTable(**parts)
