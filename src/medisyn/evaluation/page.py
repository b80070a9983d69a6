"""What a report shows, before it is written: tables, numbers, image grids, and their form in JSON."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Value:
    """One number of a table for other programs, which never read the text of a cell.

    name: what was measured, such as "frechet"; of: the set or arm, such as "generated" or "real"; group: the class or
    specialty, or "" for all. `low` and `high` are the ends of the interval of confidence `level`. task: what a
    classifier told apart. Two values may stand side by side only where name, n, extractor (with preprocessing) and task
    agree.
    """

    name: str
    value: float
    of: str = "generated"
    group: str = ""
    low: float | None = None
    high: float | None = None
    level: float | None = None
    n: int | None = None
    n_real: int | None = None
    extractor: str = ""
    preprocessing: str = ""
    task: str = ""


@dataclass(frozen=True)
class Table:
    """One table of a report. `numeric` are the columns that stand to the right; `plot` is a PNG in base64, or "".

    plot_text: the text alternative. plot_columns, plot_rows: what was plotted, written as a CSV of its own.
    values: the table's numbers for other programs.
    notes: a column whose texts stand below the table on the page, each once; None for no such column.
    totals: so many rows at the end are totals.
    """

    name: str  # file name of the CSV
    title: str
    text: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    numeric: frozenset[int] = frozenset()
    plot: str = ""
    plot_text: str = ""
    plot_columns: tuple[str, ...] = ()
    plot_rows: tuple[tuple[Any, ...], ...] = ()
    values: tuple[Value, ...] = ()
    notes: int | None = None
    totals: int = 0

    @property
    def footnotes(self) -> list[str]:
        """The texts of the column `notes`, each once, in the order of the rows."""
        return (
            [] if self.notes is None else list(dict.fromkeys(row[self.notes] for row in self.rows if row[self.notes]))
        )


@dataclass(frozen=True)
class Grid:
    """Images of one class, as PNG in base64."""

    name: str
    generated: tuple[str, ...]
    real: tuple[str, ...]
    num_generated: int
    num_real: int


@dataclass(frozen=True)
class Pair:
    """A generated image (left) and its closest training image (right), as PNG in base64."""

    left: str
    right: str
    left_name: str
    right_name: str
    text: str


@dataclass(frozen=True)
class Page:
    """All that a report shows."""

    title: str
    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
    methods: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()
    pairs: tuple[Pair, ...] = ()


def page_as_dict(page: Page) -> dict[str, Any]:
    """The page without its images, ready for JSON; `page_from_dict` reads it."""
    return {
        "title": page.title,
        "facts": [list(fact) for fact in page.facts],
        "warnings": list(page.warnings),
        "methods": list(page.methods),
        "tables": [
            {
                "name": table.name,
                "title": table.title,
                "text": table.text,
                "columns": list(table.columns),
                "rows": [[_plain(cell) for cell in row] for row in table.rows],
                "numeric": sorted(table.numeric),
                "notes": table.notes,
                "totals": table.totals,
                "plot": f"plots/{table.name}.png" if table.plot else "",
                "plot_text": table.plot_text,
                "values": [{key: _plain(value) for key, value in asdict(value).items()} for value in table.values],
            }
            for table in page.tables
        ],
    }


def page_from_dict(content: Mapping[str, Any], folder: Path) -> Page:
    """The page that `page_as_dict` gave, without image grids and pairs; plots are read from `folder`."""
    tables = []
    for table in content["tables"]:
        plot = folder / table["plot"] if table["plot"] else None
        tables.append(
            Table(
                name=table["name"],
                title=table["title"],
                text=table["text"],
                columns=tuple(table["columns"]),
                rows=tuple(tuple(row) for row in table["rows"]),
                numeric=frozenset(table["numeric"]),
                plot=base64.b64encode(plot.read_bytes()).decode() if plot is not None and plot.is_file() else "",
                plot_text=table["plot_text"],
                values=tuple(Value(**value) for value in table["values"]),
                notes=table["notes"],
                totals=table["totals"],
            )
        )
    return Page(
        title=content["title"],
        facts=tuple((name, value) for name, value in content["facts"]),
        tables=tuple(tables),
        methods=tuple(content["methods"]),
        warnings=tuple(content["warnings"]),
    )


def _plain(value: Any) -> Any:
    """A NumPy number as Python's, and no infinities or NaN, which JSON does not know."""
    value = value.item() if isinstance(value, np.generic) else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
