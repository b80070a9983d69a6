"""Many phantoms in one folder, whatever they are: made in parallel, each whole or absent, and the same command goes on.

out/<key>/truth.json    what was asked for and what is true of the phantom, beside the files of its kind
out/table.csv           one row per phantom
out/phantoms.jsonl      one line per phantom: the content of its truth.json
out/source.yaml         a source description: `medisyn curate out/source.yaml --out corpus/`
out/run.json            what was asked for
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from medisyn import runs
from medisyn.errors import InputError
from medisyn.parallel import map_shards

Record = dict[str, Any]


@dataclass(frozen=True)
class PhantomKind:
    """One kind of phantom. Its functions stand at the top of a module, so that other processes find them.

    run      its name in run.json
    prefix   of the keys
    version  raised when the same seed makes another phantom: finished folders are then made again
    files    in the folder of each, besides truth.json
    asked    key and settings -> what a truth.json must say to be the phantom that is asked for
    make     a phantom's empty folder, its key and the settings -> what else truth.json says; writes the files
    row      a record -> its row of the table
    source   settings -> the source description
    """

    run: str
    prefix: str
    version: int
    files: tuple[str, ...]
    per_task: int
    asked: Callable[[str, Any], Record]
    make: Callable[[Path, str, Any], Record]
    row: Callable[[Record], Record]
    source: Callable[[Any], str]


@dataclass(frozen=True)
class Task:
    """Some phantoms for one process."""

    kind: PhantomKind
    out: Path
    keys: tuple[str, ...]
    settings: Any


def write_many(
    kind: PhantomKind,
    out: Path,
    count: int,
    settings: Any,
    engine: str,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Record], int]:
    """Make `count` phantoms; returns their records and how many were there before. `settings` is a dataclass.

    Raises InputError when `out` holds anything else or phantoms of other settings; BusyError when another process
    writes there.
    """
    with runs.lock(out):
        _claim(kind, out, settings)
        keys = [f"{kind.prefix}-{number:06d}" for number in range(count)]
        for key in keys:
            runs.recover_folder(out / key)
        missing = [key for key in keys if not _is_there(kind, out / key, settings)]
        parts = [tuple(missing[start : start + kind.per_task]) for start in range(0, len(missing), kind.per_task)]
        done = count - len(missing)
        for _, made in map_shards(write_task, [Task(kind, out, part, settings) for part in parts], engine):
            done += made
            if progress is not None:
                progress(done, count)
        records = [json.loads((out / key / "truth.json").read_text()) for key in keys]
        _write_tables(kind, out, settings, records)
    return records, count - len(missing)


def is_to_be_made(kind: PhantomKind, out: Path) -> bool:
    """Whether nothing is there yet, or phantoms of this kind whose making was interrupted."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return True
    run = runs.read_run(out) if out.is_dir() else None
    return run is not None and run.get("kind") == kind.run and "phantoms" not in run


def write_task(task: Task) -> int:
    """Make and write the phantoms of one task; returns how many."""
    for key in task.keys:
        with runs.atomic_folder(task.out / key) as folder:
            made = task.kind.make(folder, key, task.settings)
            record = {"key": key, **_asked(task.kind, key, task.settings), **made}
            (folder / "truth.json").write_text(json.dumps(record, indent=2) + "\n")
    return len(task.keys)


def _asked(kind: PhantomKind, key: str, settings: Any) -> Record:
    """As it comes back from a file: tuples are lists."""
    return dict(json.loads(json.dumps({"version": kind.version, **kind.asked(key, settings)})))


def _is_there(kind: PhantomKind, folder: Path, settings: Any) -> bool:
    """True when the phantom's folder is there and is what is asked for; a damaged one is made again."""
    try:
        record = json.loads((folder / "truth.json").read_text())
    except (FileNotFoundError, ValueError):
        return False
    asked = _asked(kind, folder.name, settings)
    default = _defaults(settings)
    return all(record.get(name, default.get(name)) == value for name, value in asked.items()) and all(
        (folder / name).exists() for name in kind.files
    )


def _claim(kind: PhantomKind, out: Path, settings: Any) -> None:
    """Make `out` the folder of these settings, or refuse."""
    run = runs.read_run(out)
    if run is None:
        if any(not path.name.startswith(".") for path in out.iterdir()):
            raise InputError(f"{out.name}/ holds files that are not of `medisyn phantom`. Choose another --out")
        runs.write_run(out, kind=kind.run, **asdict(settings))
        return
    if run.get("kind") != kind.run:
        raise InputError(f"{out.name}/ holds a {run.get('kind', 'different')} run; choose another --out")
    default = _defaults(settings)
    for name, value in json.loads(json.dumps(asdict(settings))).items():
        made_with = run.get(name, default.get(name))
        if made_with != value:
            raise InputError(
                f"{out.name}/ holds phantoms with {name} {made_with}, now it is {value}. Choose another --out"
            )


def _defaults(settings: Any) -> dict[str, Any]:
    """Values of settings that folders made before them do not name."""
    return {field.name: field.default for field in fields(settings) if field.default is not MISSING}


def _write_tables(kind: PhantomKind, out: Path, settings: Any, records: Sequence[Record]) -> None:
    """table.csv, phantoms.jsonl, source.yaml and run.json."""
    rows = [kind.row(record) for record in records]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    runs.write_text(out / "table.csv", text.getvalue())
    runs.write_text(out / "phantoms.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    runs.write_text(out / "source.yaml", kind.source(settings))
    runs.write_run(out, kind=kind.run, **asdict(settings), phantoms=len(records), version=kind.version)
