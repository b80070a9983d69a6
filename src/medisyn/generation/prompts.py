"""Prompts as the user wrote them -> requests: one prompt string, or a table (CSV, TSV, JSONL, TXT).

Columns of a table: `prompt` (a corpus table's `caption` and an imagefolder's `text` are read as prompts where there is
no `prompt`), and, each optional, `key`, `seed`, `negative_prompt`, `n`, `height`, `width`, `steps`, `guidance`, and of
clips `frames`, `motion`, `appearance`. Every other column is kept as metadata of the pictures. Columns that MediSyn
writes itself (`provenance.WRITTEN`) are read over, so the `metadata.jsonl` of an earlier run is a table that makes the
same pictures again.
`toward_prompt`, `toward_seed` and `toward_share` are what the frames of an interpolation hold (types.Request). A prompt
may combine several, each with its weight (grammar.py).
A TXT file holds one prompt per line. Rows are counted from 1, below the header, without empty lines.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medisyn.errors import InputError, closest
from medisyn.generation.grammar import terms_for_request
from medisyn.generation.provenance import WRITTEN
from medisyn.seeding import seed_for
from medisyn.types import Request

PROMPT_COLUMNS = ("prompt", "caption", "text")  # the first one that a table has is its prompt
TOWARD = ("toward_prompt", "toward_seed", "toward_share")
OF_CLIPS = ("frames", "motion", "appearance")  # settings that only models of clips have
SETTING_COLUMNS = ("key", "seed", "negative_prompt", "n", "height", "width", "steps", "guidance", *TOWARD, *OF_CLIPS)
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")
SAFE_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a row gets that does not say otherwise. None: the model's own value."""

    n: int = 1  # pictures per prompt
    seed: int = 0  # of the run: a picture's own seed follows from it and the picture's key
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    steps: int | None = None
    guidance: float | None = None
    frames: int | None = None
    motion: float | None = None
    appearance: float | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in WHOLE_NUMBERS.items():
            if getattr(self, name) is not None:
                _whole(getattr(self, name), name, low, high, where="")
        for name in ("guidance", "motion"):
            if getattr(self, name) is not None:
                _not_negative(getattr(self, name), name, where="")
        if self.appearance is not None:
            number_within(self.appearance, "appearance", 0, 1, where="")


WHOLE_NUMBERS = {
    "n": (1, 1_000_000),
    "seed": (0, LARGEST_SEED),
    "height": (8, 16384),
    "width": (8, 16384),
    "steps": (1, 10000),
    "frames": (2, 10000),
}


def requests_from_prompt(prompt: str, defaults: Defaults) -> list[Request]:
    """`defaults.n` requests for one prompt. Raises InputError when the prompt is empty."""
    if not prompt.strip():
        raise InputError(
            "the prompt is empty: say what the picture shows, for instance 'Frontal (PA) chest X-ray image'"
        )
    return _expand(1, {"prompt": prompt.strip()}, {}, defaults, where="")


def requests_from_prompts(prompts: Sequence[str], defaults: Defaults) -> list[Request]:
    """`defaults.n` requests for each prompt of a list, keyed as the rows of a table."""
    rows = [{"prompt": prompt} for prompt in prompts]
    return _requests(rows, "prompts", defaults)


def requests_from_table(path: Path, defaults: Defaults) -> list[Request]:
    """The requests of a prompt table, row by row; see the head of this file for its columns.

    Raises InputError for a file that is missing, empty or not a table, a missing prompt column, an empty prompt, a bad
    number, a key that is no file name, and keys that occur twice.
    """
    return _requests(_read_rows(path), path.name, defaults)


def request_record(request: Request) -> dict[str, Any]:
    """A request as plain values, for JSON and for other processes."""
    record = {name: getattr(request, name) for name in Request.__dataclass_fields__ if name != "metadata"}
    return {**record, "metadata": dict(request.metadata)}


def request_from_record(record: Mapping[str, Any]) -> Request:
    """Inverse of `request_record`."""
    return Request(**record)


def _requests(rows: list[dict[str, Any]], table: str, defaults: Defaults) -> list[Request]:
    if not rows:
        raise InputError(f"{table}: no prompts in it; one row per prompt is needed")
    column = _prompt_column(rows, table)
    requests: list[Request] = []
    for number, row in enumerate(rows, start=1):
        where = f"{table} row {number}: "
        prompt = row.get(column)
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"{where}the {column} is empty or not text (got {prompt!r}); fill it in or remove the row")
        settings = {name: row[name] for name in SETTING_COLUMNS if row.get(name) not in (None, "")}
        known = {column, *SETTING_COLUMNS, *WRITTEN}
        metadata = {name: value for name, value in row.items() if name not in known}
        requests += _expand(number, {**settings, "prompt": prompt.strip()}, metadata, defaults, where)
    _check_unique(requests, table)
    return requests


def _prompt_column(rows: list[dict[str, Any]], table: str) -> str:
    present = dict.fromkeys(name for row in rows for name in row)
    for name in PROMPT_COLUMNS:
        if name in present:
            return name
    raise InputError(
        f"{table}: no column 'prompt' (nor 'caption' or 'text'). Columns there: {', '.join(present) or 'none'}."
        f"{closest('prompt', present)}"
    )


def _expand(
    number: int, row: Mapping[str, Any], metadata: Mapping[str, Any], defaults: Defaults, where: str
) -> list[Request]:
    """The requests of one row: the first is named by the row's own key, where it has one, the others count on."""
    whole = {
        name: _whole(row[name], name, low, high, where) if name in row else getattr(defaults, name)
        for name, (low, high) in WHOLE_NUMBERS.items()
    }
    factors = _factors(row, defaults, where)
    negative = str(row.get("negative_prompt", defaults.negative_prompt))
    toward = _toward(row, where)
    terms = _terms(row["prompt"], where)
    own_key = _safe_key(str(row["key"]), where) if "key" in row else None
    requests = []
    for index in range(whole["n"]):
        key = own_key if own_key and index == 0 else f"{own_key or f'{number:05d}'}-{index:03d}"
        seed = _item_seed(whole["seed"], key, index, own="seed" in row)
        size: dict[str, Any] = {name: whole[name] for name in ("height", "width", "steps", "frames")}
        requests.append(
            Request(key, row["prompt"], seed, negative, **size, **factors, metadata=metadata, terms=terms, **toward)
        )
    return requests


def _factors(row: Mapping[str, Any], defaults: Defaults, where: str) -> dict[str, Any]:
    """Guidance, and of a clip its motion and appearance: the row's own, else the default."""
    factors = {
        name: _not_negative(row[name], name, where) if name in row else getattr(defaults, name)
        for name in ("guidance", "motion")
    }
    factors["appearance"] = defaults.appearance
    if "appearance" in row:
        factors["appearance"] = number_within(row["appearance"], "appearance", 0, 1, where)
    return factors


def _terms(prompt: str, where: str) -> tuple[tuple[str, float], ...]:
    try:
        return terms_for_request(prompt)
    except InputError as error:
        raise InputError(f"{where}{error}") from None


def _toward(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a row says of the way to another prompt or seed; the defaults of Request where it says nothing."""
    toward: dict[str, Any] = {}
    if "toward_prompt" in row:
        toward["toward_prompt"] = str(row["toward_prompt"])
    if "toward_seed" in row:
        toward["toward_seed"] = _whole(row["toward_seed"], "toward_seed", 0, LARGEST_SEED, where)
    if "toward_share" in row:
        toward["toward_share"] = number_within(row["toward_share"], "toward_share", 0, 1, where)
    return toward


def _item_seed(seed: int, key: str, index: int, *, own: bool) -> int:
    """A row's own seed is taken as it is for its first picture; the run's seed is combined with the key."""
    if own:
        return seed if index == 0 else seed_for(seed, str(index))
    return seed_for(seed, key)


def _check_unique(requests: Sequence[Request], table: str) -> None:
    seen: dict[str, str] = {}
    for request in requests:
        name = request.key.casefold()  # some file systems take A.png and a.png for one file
        if name in seen:
            both = f"{seen[name]!r} and {request.key!r}" if seen[name] != request.key else f"{request.key!r}"
            raise InputError(f"{table}: the key {both} occurs twice; every picture needs a file name of its own")
        seen[name] = request.key


def _safe_key(key: str, where: str) -> str:
    if not SAFE_KEY.fullmatch(key):
        raise InputError(
            f"{where}key {key!r} cannot be a file name: up to 100 of A-Z a-z 0-9 . _ -, and a letter or digit first"
        )
    return key


def _whole(value: Any, name: str, low: int, high: int, where: str) -> int:
    """A whole number within [low, high]; spreadsheets write 30 as 30.0, so that is one too."""
    try:
        number = int(value) if not isinstance(value, float) else _exact(value)
    except (TypeError, ValueError, OverflowError):
        number = _exact_text(value)
    if isinstance(value, bool) or number is None or not low <= number <= high:
        raise InputError(f"{where}{name} must be a whole number from {low} to {high}, got {value!r}")
    return number


def _exact(value: float) -> int | None:
    return int(value) if math.isfinite(value) and value == int(value) else None


def _exact_text(value: Any) -> int | None:
    try:
        return _exact(float(value)) if isinstance(value, str) else None
    except ValueError:
        return None


def _not_negative(value: Any, name: str, where: str) -> float:
    number = _finite(value)
    if number is None or number < 0:
        raise InputError(f"{where}{name} must be a number of 0 or more, got {value!r}")
    return number


def number_within(value: Any, name: str, low: float, high: float, where: str) -> float:
    """A number from `low` to `high`, also written as text. Raises InputError."""
    number = _finite(value)
    if number is None or not low <= number <= high:
        raise InputError(f"{where}{name} must be a number from {low:g} to {high:g}, got {value!r}")
    return number


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def _read_rows(path: Path) -> list[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise InputError(
            f"{path.name}: a prompt table ends with {', '.join(TABLE_SUFFIXES)}, not {suffix or 'nothing'}"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name}: not UTF-8 text at byte {error.start}; save the table as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error.strerror})") from None
    if suffix == ".txt":
        return [{"prompt": line} for line in text.split("\n") if line.strip()]
    return list(_json_rows(text, path.name) if suffix == ".jsonl" else _csv_rows(text, path.name))


def _json_rows(text: str, table: str) -> Iterator[dict[str, Any]]:
    lines = [line for line in text.split("\n") if line.strip()]
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{table} row {number}: not JSON ({error.msg} at character {error.pos + 1})") from None
        if not isinstance(row, dict):
            raise InputError(f'{table} row {number}: expected an object such as {{"prompt": ...}}, got {line[:40]!r}')
        yield row


def _csv_rows(text: str, table: str) -> Iterator[dict[str, Any]]:
    """Rows of a table with a header; the separator is the one of , ; and tab that the header holds most."""
    first_line = text.split("\n", 1)[0]
    separator = max(",;\t", key=first_line.count)
    try:
        lines = [fields for fields in csv.reader(io.StringIO(text), delimiter=separator, strict=True) if fields]
    except csv.Error as error:
        raise InputError(f"{table}: not a table of separated values ({error})") from None
    if not lines:
        return
    header = [name.strip() for name in lines[0]]
    if len(set(header)) < len(header):
        raise InputError(f"{table}: a column name occurs twice in the header: {', '.join(header)}")
    for number, fields in enumerate(lines[1:], start=1):
        if len(fields) != len(header):
            raise InputError(
                f"{table} row {number}: {len(fields)} fields for {len(header)} columns. "
                f'A prompt that holds the separator {separator!r} must stand in "double quotes".'
            )
        yield dict(zip(header, fields, strict=True))
