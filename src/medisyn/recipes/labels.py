"""Columns of a table that say how much of something is there: what text encoders learn to tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from medisyn.errors import CorpusError, closest


def read_labels(table: Path, names: Sequence[str], keys: Sequence[str] | None = None) -> list[tuple[float, ...]]:
    """The numbers in [0, 1] of the columns `names`, NaN where a cell is empty: of every row, or of the rows of `keys`.

    Raises CorpusError for a table, column or key that is not there, and for a cell that is no such number.
    """
    from medisyn.corpus.table import read_table

    if not table.is_file():
        raise CorpusError(
            f"the corpus has no {table.name}, from which labels are read. Write one with the columns key (the name of "
            f"the folder) and {', '.join(names)}, each a number from 0 to 1 or empty"
        )
    rows = read_table(table)
    for name in names:
        if name not in rows[0]:
            raise CorpusError(f"{table.name}: there is no column {name!r} of labels.{closest(name, rows[0])}")
    if keys is not None:
        by_key = {row.get("key", ""): row for row in rows}
        missing = [number for number, key in enumerate(keys, start=1) if key not in by_key]
        if missing:
            raise CorpusError(
                f"{table.name}: {len(missing)} of {len(keys)} texts have no row with their folder's name as key, first "
                f"number {missing[0]}"
            )
        rows = [by_key[key] for key in keys]
    return [tuple(_number(row[name], name, number) for name in names) for number, row in enumerate(rows, start=1)]


def _number(cell: str, name: str, row: int) -> float:
    try:
        value = float(cell) if cell.strip() else math.nan
    except ValueError:
        value = math.inf
    if not (math.isnan(value) or 0 <= value <= 1):
        raise CorpusError(f"row {row}: label {name!r} must be a number from 0 to 1, or empty; got {cell!r}")
    return value
