"""Rows: a table or a folder of files as dictionaries of text, and the words that their cells become."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import string
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medisyn.corpus import headers
from medisyn.corpus.captions import join_words
from medisyn.corpus.source import Draw, Join, Source, compile_pattern
from medisyn.corpus.splits import position
from medisyn.corpus.takes import Boxes, SeriesSlices, Slices, Tiles, Words, companion_templates
from medisyn.errors import ConfigError, CorpusError, ReadError, closest

TableRow = dict[str, str]
FALSE_CELLS = ("", "0", "0.0", "-1", "-1.0", "false", "no", "nan", "none")


def read_table(path: Path) -> list[TableRow]:
    """Rows of a CSV (also .gz), JSONL or Parquet file as text; a missing value is "". Raises CorpusError."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            records = pq.read_table(path).to_pylist()
        elif path.suffix in (".jsonl", ".ndjson"):
            records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        else:
            content = path.read_bytes()
            text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
            records = list(csv.DictReader(io.StringIO(text, newline="")))
    except FileNotFoundError:
        raise CorpusError(
            f"table {path.name} does not exist in the source's folder. Give the folder with --root"
        ) from None
    except (OSError, ValueError, EOFError, zlib.error, csv.Error) as error:
        raise CorpusError(f"table {path.name} cannot be read ({type(error).__name__})") from None
    if not records:
        raise CorpusError(f"table {path.name} is empty: it has no row below its header")
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise CorpusError(f"table {path.name} row {number}: expected an object of columns")
        if None in record:  # csv puts what is too much there
            raise CorpusError(
                f"table {path.name} row {number} has more fields than the header has columns. "
                f'A cell that holds a comma must stand in "double quotes"'
            )
    columns = {name: None for record in records for name in record}
    return [{str(name): _text(record.get(name)) for name in columns} for record in records]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return json.dumps(value) if isinstance(value, dict | list) else str(value).strip()


def source_rows(source: Source, folder: Path) -> list[TableRow]:
    """The rows of a source after joining and filtering, each with every column that the description names.

    Raises CorpusError for a table or file pattern without rows, and for a missing column with the nearest name.
    """
    if source.files is not None:
        rows = _file_rows(source, folder)
    else:
        assert source.table is not None
        rows = [dict(row) for row in source.table.rows] or read_table(folder / str(source.table.path))
        if source.table.join is not None:
            rows = _join(rows, source.table.join, folder)
    check_columns(source, list(rows[0]))
    kept = [row for row in rows if source.table is None or matches(row, source.table.where)]
    if not kept:
        raise CorpusError(f"{source.name}: none of {len(rows)} rows passes `where`; compare its values with the table")
    return kept if source.table is None or source.table.draw is None else _draw(kept, source.table.draw, source.file)


def _draw(rows: list[TableRow], draw: Draw, file: str) -> list[TableRow]:
    """At most `draw.most` rows of each value, in the order of the table; a row's chance depends on its file alone."""
    taken: Counter[str] = Counter()
    kept = []
    for number in sorted(range(len(rows)), key=lambda number: position(fill(file, rows[number]))):
        value = rows[number][draw.column]
        taken[value] += 1
        if taken[value] <= draw.most:
            kept.append(number)
    return [rows[number] for number in sorted(kept)]


def _file_rows(source: Source, folder: Path) -> list[TableRow]:
    assert source.files is not None
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob(source.files.glob))
    if not names:
        raise CorpusError(f"{source.name}: no file matches {source.files.glob!r}. Give the folder with --root")
    if source.files.pattern is None:
        return [{"file": name} for name in names]
    pattern = compile_pattern(source.files.pattern, source.name)
    rows = []
    for name in names:
        found = pattern.search(name)
        groups = found.groupdict(default="") if found else dict.fromkeys(pattern.groupindex, "")
        rows.append({"file": name, **groups})
    return rows


def _join(rows: list[TableRow], join: Join, folder: Path) -> list[TableRow]:
    other = read_table(folder / join.path)
    for table in (rows, other):
        require([join.on], list(table[0]), "join")
    partners = {row[join.on]: row for row in other}
    if len(partners) < len(other):
        raise CorpusError(
            f"table {join.path}: {len(other) - len(partners)} rows repeat a value of {join.on!r}, the join key"
        )
    empty = dict.fromkeys(other[0], "")
    return [{**partners.get(row[join.on], empty), **row} for row in rows]


def require(names: Iterable[str], columns: list[str], what: str) -> None:
    """Raise CorpusError for a column that the table lacks; columns of a header are not listed."""
    for name in names:
        if name not in columns:
            has = ", ".join(column for column in columns if not headers.is_header(column))
            raise CorpusError(f"{what}: column {name!r} is not in the table; it has {has}.{closest(name, columns)}")


def check_columns(source: Source, columns: list[str]) -> None:
    """Every column that the description names must be in the table."""
    require(template_columns(source.file), columns, f"{source.name}: file")
    named = (source.split.column if not source.split.in_header else None, getattr(source.split.given, "column", None))
    require(filter(None, named), columns, f"{source.name}: split")
    if source.table is not None:
        require(source.table.where, columns, f"{source.name}: where")
        require(filter(None, [getattr(source.table.draw, "column", None)]), columns, f"{source.name}: draw")
    for number, take in enumerate(source.samples):
        where = f"{source.name}: samples.{number}"
        available = [*columns, *headers.COLUMNS]
        require(take.where, available, f"{where}.where")
        if isinstance(take, Slices | SeriesSlices) and take.table is not None:
            require(filter(None, [take.table.on]), columns, f"{where}.table.on")
            available += take.table.columns
        for name, words in source.words(take).items():
            require(words.columns(name), available, f"{where}.fields.{name}")
        for template in companion_templates(take):
            require(template_columns(template), columns, f"{where}.masks, channels or labels_file")
        if isinstance(take, Boxes):
            require(template_columns(take.file), columns, f"{where}.file")
        if isinstance(take, Tiles):
            require([take.mpp], columns, f"{where}.mpp")


def matches(row: Mapping[str, str], where: Mapping[str, str | tuple[str, ...]]) -> bool:
    """True when every named column holds (one of) the wanted values."""
    return all(row[name] in ((wanted,) if isinstance(wanted, str) else wanted) for name, wanted in where.items())


def template_columns(template: str) -> list[str]:
    """Columns in a path template like "images/{image_id}.jpg"; ConfigError for one that is broken."""
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ConfigError(f"path template {template!r}: {error}") from None
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise ConfigError(f"path template {template!r}: write {{column}} and nothing behind the name")
    return [str(name) for _, name, _, _ in parts]


def fill(template: str, row: Mapping[str, str]) -> str:
    return template.format_map(row)


def cell(row: Mapping[str, str], column: str, pattern: str | None) -> str:
    """A cell, or the first group of `pattern` in it; ReadError when the pattern finds nothing."""
    text = row[column]
    if pattern is None or not text:
        return text
    compiled = compile_pattern(pattern, column)
    if not compiled.groups:
        raise ConfigError(
            f"column {column!r}: pattern {pattern!r} needs a group in ( ), which is what replaces the cell"
        )
    found = compiled.search(text)
    if found is None:
        raise ReadError(f"column {column!r}: the cell does not match the pattern {pattern!r}")
    return found.group(1)


def words_of(name: str, words: Words, row: Mapping[str, str]) -> str:
    """What a field says for one row; "" when the row has nothing to say. ReadError for a cell that is not listed."""
    if words.flags:
        return join_words([word for column, word in words.flags.items() if _positive(row[column], words)])
    text = cell(row, words.column or name, words.pattern)
    if not text and words.otherwise is not None:
        text = row[words.otherwise]
    if words.filled is not None:
        return words.filled if _positive(text, words) else ""
    if words.counts:
        return join_words([_word(name, part, words) for part in _largest(name, text, words.most)])
    parts = [part.strip() for part in text.split(words.separator)] if words.separator else [text]
    return join_words([word for part in parts if (word := _word(name, part, words))])


def _positive(text: str, words: Words) -> bool:
    return text in words.positive if words.positive is not None else text.lower() not in FALSE_CELLS


def _word(name: str, part: str, words: Words) -> str:
    if words.values is None:
        return part
    if part not in words.values:
        if not part:
            return ""
        raise ReadError(
            f"field {name!r}: a value of the table is not listed under `values`; listed: {', '.join(words.values)}"
        )
    return words.values[part]


def _largest(name: str, text: str, most: int) -> list[str]:
    try:
        counts = {str(word): float(count) for word, count in json.loads(text or "{}").items()}
    except (ValueError, AttributeError, TypeError):
        raise ReadError(f"field {name!r}: expected a JSON object of counts") from None
    present = [word for word, count in counts.items() if count > 0]
    return sorted(present, key=lambda word: (-counts[word], word))[:most]
