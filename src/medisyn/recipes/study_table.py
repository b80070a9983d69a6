"""The table of a finished reader study, from any source: one row per answer, in one of two layouts.

    classification   reader, item, truth, answer, and optional source (or any grouping of items), confidence, repeat
    ranking          reader, block, system, rank, and optional group (rankings of different groups are analysed apart)

The layout is told by the columns. Names are compared without capitals and outer spaces; the first spelling is kept.
Messages name rows (counted below the header) and columns, never a reader or an item.
Shapes here: R readers, N items (or rankings), K systems.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medisyn.corpus.table import TableRow, read_table
from medisyn.errors import InputError, closest

REQUIRED = {
    "classification": ("reader", "item", "truth", "answer"),
    "ranking": ("reader", "block", "system", "rank"),
}
OPTIONAL = {"classification": ("source", "confidence", "repeat"), "ranking": ("group",)}
ALL = "all"  # name of the only group, where the table has no column for it
REPEATS = {"": False, "0": False, "no": False, "false": False, "1": True, "yes": True, "true": True}
EMPTY = ("", "nan")
LARGEST_CONFIDENCE = 5


@dataclass(frozen=True)
class Classification:
    """First answers as class numbers, (R, N), -1 where a reader did not see an item; second ones in `repeats_RN`.

    classes: those that are the truth of an item first. confidence_RN: 1 to 5, NaN where none was given.
    """

    readers: tuple[str, ...]
    classes: tuple[str, ...]
    group_N: np.ndarray  # names
    truth_N: np.ndarray
    answers_RN: np.ndarray
    confidence_RN: np.ndarray
    repeats_RN: np.ndarray
    unused: tuple[str, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.group_N.tolist()))

    @property
    def correct_RN(self) -> np.ndarray:
        """1, 0, or NaN where not seen."""
        return np.where(self.answers_RN < 0, np.nan, self.answers_RN == self.truth_N)


@dataclass(frozen=True)
class Rankings:
    """Rankings of one group, (N, K), 1 is best: each of one reader and one block."""

    systems: tuple[str, ...]
    ranks_NK: np.ndarray
    reader_N: np.ndarray  # numbers
    block_N: np.ndarray  # numbers


@dataclass(frozen=True)
class Ranking:
    """All rankings, by group."""

    readers: tuple[str, ...]
    groups: Mapping[str, Rankings]
    unused: tuple[str, ...]


def read_study(path: Path | str) -> Classification | Ranking:
    """Read and check a CSV, JSONL or Parquet file, or `answers.csv` of a folder.

    Raises InputError for columns that fit neither layout, empty cells, an answer or a rank given twice, a rank out of
    range, tied or missing, a confidence that is no whole number from 1 to 5, an item with two truths or sources, and a
    repeat without a first answer.
    """
    path = Path(path)
    path = path / "answers.csv" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"there is no table {path.name}. Name the file of answers, or a folder with answers.csv.")
    rows = read_table(path)
    names = {" ".join(name.split()).casefold(): name for name in rows[0]}
    layout = _layout(path.name, list(names))
    known = (*REQUIRED[layout], *OPTIONAL[layout])
    unused = _unused(path.name, list(names), known)
    table = [{column: row[names[column]] for column in known if column in names} for row in rows]
    _check_filled(path.name, table)
    make = _classification if layout == "classification" else _ranking
    return make(path.name, table, unused)


# ---- columns


def _layout(file: str, columns: Sequence[str]) -> str:
    """The layout whose required columns are all there; one and only one."""
    missing = {name: [column for column in needs if column not in columns] for name, needs in REQUIRED.items()}
    fits = [name for name, lacking in missing.items() if not lacking]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise InputError(f"{file} has the columns of a classification and of a ranking. Put the two into two files.")
    if len(columns) == 1 and ";" in columns[0]:
        raise InputError(f"{file} separates its columns by semicolons. Save it with commas.")
    spare = {name: [column for column in columns if column not in needs] for name, needs in REQUIRED.items()}
    told = [
        f"a {name} needs {', '.join(REQUIRED[name])} (missing: "
        f"{', '.join(column + closest(column, spare[name]) for column in lacking)})"
        for name, lacking in missing.items()
    ]
    raise InputError(f"{file} has the columns {', '.join(columns)}; {'; '.join(told)}.")


def _unused(file: str, columns: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Columns that nobody reads. InputError for one that looks like a misspelt optional column."""
    unused = [column for column in columns if column not in known]
    for column in unused:
        meant = difflib.get_close_matches(column, [name for name in known if name not in columns], n=1, cutoff=0.8)
        if meant:
            raise InputError(
                f"{file}: column {column!r} is unknown. Did you mean {meant[0]!r}? Rename it, or take it out."
            )
    return tuple(unused)


def _check_filled(file: str, table: Sequence[TableRow]) -> None:
    for number, row in enumerate(table, start=1):
        for column, cell in row.items():
            if cell.casefold() in EMPTY and column not in ("confidence", "repeat"):
                raise InputError(
                    f"{file} row {number}: column {column!r} is empty. Fill it in, or leave the row out where a reader "
                    "gave no answer."
                )


def _numbers(cells: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    """The different names in the order of the table, by their first spelling, and the number of each cell's name."""
    first: dict[str, int] = {}
    names: list[str] = []
    for cell in cells:
        if cell.casefold() not in first:
            first[cell.casefold()] = len(names)
            names.append(cell)
    return tuple(names), [first[cell.casefold()] for cell in cells]


# ---- classification


def _classification(file: str, table: Sequence[TableRow], unused: tuple[str, ...]) -> Classification:
    readers, reader_of = _numbers([row["reader"] for row in table])
    items, item_of = _numbers([row["item"] for row in table])
    groups, group_of = _numbers([row.get("source", ALL) for row in table])
    truths, _ = _numbers([row["truth"] for row in table])
    classes, class_of = _numbers([*sorted(truths), *(row[column] for column in ("truth", "answer") for row in table)])
    truth_of, answer_of = np.split(np.array(class_of[len(truths) :]), 2)
    repeat_of = [_repeat(file, number, row) for number, row in enumerate(table, start=1)]
    truth_N = _one_per_item(file, "truth", item_of, truth_of.tolist(), len(items))
    group_N = _one_per_item(file, "source", item_of, group_of, len(items))
    shape = len(readers), len(items)
    answers_RN, repeats_RN = np.full(shape, -1), np.full(shape, -1)
    confidence_RN = np.full(shape, np.nan)
    row_of: dict[tuple[bool, int, int], int] = {}
    for index, row in enumerate(table):
        key = (repeat_of[index], reader_of[index], item_of[index])
        if key in row_of:
            raise InputError(
                f"{file} rows {row_of[key] + 1} and {index + 1} hold two answers of one reader to one item. Delete "
                "one, or mark the second with 1 in a column 'repeat' where the item was shown again."
            )
        row_of[key] = index
        (repeats_RN if key[0] else answers_RN)[key[1:]] = answer_of[index]
        if not key[0]:
            confidence_RN[key[1:]] = _confidence(file, index + 1, row)
    for (is_repeat, *place), index in row_of.items():
        if is_repeat and (False, *place) not in row_of:
            raise InputError(f"{file} row {index + 1} is marked in 'repeat', but the reader gave no first answer.")
    named_N = np.array(groups, dtype=object)[group_N]
    return Classification(readers, classes, named_N, truth_N, answers_RN, confidence_RN, repeats_RN, unused)


def _one_per_item(file: str, column: str, item_of: Sequence[int], cells: Sequence[int], num_items: int) -> np.ndarray:
    """The value of each item; InputError where two rows disagree."""
    first: dict[int, int] = {}
    found_N = np.empty(num_items, dtype=np.int64)
    for index, (item, cell) in enumerate(zip(item_of, cells, strict=True)):
        before = first.setdefault(item, index)
        if cells[before] != cell:
            raise InputError(
                f"{file} rows {before + 1} and {index + 1} give one item two values in column {column!r}. An item has "
                "one; give each image a name of its own."
            )
        found_N[item] = cell
    return found_N


def _repeat(file: str, number: int, row: TableRow) -> bool:
    cell = row.get("repeat", "").casefold().removesuffix(".0")
    if cell not in REPEATS:
        raise InputError(
            f"{file} row {number}: column 'repeat' holds {cell!r}. Allowed: 1 where the item was shown again, else 0 "
            "or empty."
        )
    return REPEATS[cell]


def _confidence(file: str, number: int, row: TableRow) -> float:
    cell = row.get("confidence", "")
    if cell.casefold() in EMPTY:
        return np.nan
    value = _whole(cell)
    if value is None or not 1 <= value <= LARGEST_CONFIDENCE:
        raise InputError(
            f"{file} row {number}: column 'confidence' holds {cell!r}. Allowed: whole numbers from 1 to "
            f"{LARGEST_CONFIDENCE}, or empty."
        )
    return float(value)


def _whole(cell: str) -> int | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


# ---- ranking


def _ranking(file: str, table: Sequence[TableRow], unused: tuple[str, ...]) -> Ranking:
    readers, reader_of = _numbers([row["reader"] for row in table])
    groups, group_of = _numbers([row.get("group", ALL) for row in table])
    found = {}
    for group, name in enumerate(groups):
        rows = [index for index, of in enumerate(group_of) if of == group]
        found[name] = _rankings(file, table, rows, reader_of)
    return Ranking(readers, found, unused)


def _rankings(file: str, table: Sequence[TableRow], rows: Sequence[int], reader_of: Sequence[int]) -> Rankings:
    """The rankings of one group; `rows` are its rows."""
    systems, system_of = _numbers([table[index]["system"] for index in rows])
    if len(systems) < 2:
        raise InputError(f"{file} row {rows[0] + 1}: a ranking needs at least 2 systems in column 'system', got 1")
    _, block_of = _numbers([table[index]["block"] for index in rows])
    lines: dict[tuple[int, int], dict[int, int]] = {}  # reader and block -> system -> row
    for index, system, block in zip(rows, system_of, block_of, strict=True):
        line = lines.setdefault((reader_of[index], block), {})
        if system in line:
            raise InputError(
                f"{file} rows {line[system] + 1} and {index + 1} rank one system twice, for one reader and block."
            )
        line[system] = index
    ranks_NK = np.array([_ranks(file, table, line, systems) for line in lines.values()])
    return Rankings(systems, ranks_NK, np.array([key[0] for key in lines]), np.array([key[1] for key in lines]))


def _ranks(file: str, table: Sequence[TableRow], line: Mapping[int, int], systems: Sequence[str]) -> list[int]:
    """One ranking in the order of the systems: 1 to K, each once."""
    row_of: dict[int, int] = {}
    ranks = [0] * len(systems)
    for system, index in line.items():
        cell = table[index]["rank"]
        rank = _whole(cell)
        if rank is None or not 1 <= rank <= len(systems):
            raise InputError(
                f"{file} row {index + 1}: column 'rank' holds {cell!r}. Allowed: whole numbers from 1 (best) to "
                f"{len(systems)}, the number of systems."
            )
        if rank in row_of:
            raise InputError(
                f"{file} rows {row_of[rank] + 1} and {index + 1} both hold rank {rank}, for one reader and block. "
                "Ties are not allowed."
            )
        row_of[rank] = index
        ranks[system] = rank
    missing = [name for system, name in enumerate(systems) if system not in line]
    if missing:
        raise InputError(
            f"{file} row {min(line.values()) + 1}: this ranking (one reader and block) lacks the system "
            f"{', '.join(missing)}. Complete it, or leave its rows out."
        )
    return ranks
