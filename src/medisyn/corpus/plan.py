"""What a curation will do, decided before a picture is read: files, pseudonyms, parts, and one digest of it all."""

from __future__ import annotations

import contextlib
import os
import secrets
import string
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medisyn import __version__, runs
from medisyn.corpus.opened import companion, is_there
from medisyn.corpus.parts import RECORDS, FileJob, PartTask, group_of, prepare
from medisyn.corpus.shards import FORMAT, INDEX
from medisyn.corpus.source import PUBLIC_KEY, Source, load_source
from medisyn.corpus.splits import Shares, pseudonym
from medisyn.corpus.table import TableRow, cell, fill, source_rows
from medisyn.corpus.takes import Boxes, Clips, SeriesSlices, Slices, companion_templates
from medisyn.errors import ConfigError, CorpusError, ReadError

FEWEST_FILES, MOST_FILES, PARTS = 8, 256, 64  # per part, and the number of parts aimed at
MOST_CLIPS = 16  # per part: a clip takes seconds, and a part that was killed begins anew
BUILD = ".build"  # unfinished work, inside the corpus folder


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before a picture is read."""

    sources: tuple[Source, ...]
    tasks: tuple[PartTask, ...]
    quarantined: tuple[dict[str, str], ...]
    shares: Shares
    test_per_specialty: int | None
    digest: str

    @property
    def num_files(self) -> int:
        """Files that exist; those that a table names and that are missing stand in the quarantine."""
        return sum(len(task.jobs) for task in self.tasks)


def make_plan(
    listed: Sequence[str | Path | Source],
    out: Path,
    root: Path | str | None,
    size: int | None,
    key_file: Path | str | None,
    shares: Shares,
    test_per_specialty: int | None,
    shard_bytes: int,
) -> Plan:
    """Read descriptions and tables, find the files, and cut them into parts."""
    loaded = [load_source(each) for each in listed]
    sources = tuple(s if size is None else s.model_copy(update={"size": size}) for s, _ in loaded)
    names = [s.name for s in sources]
    if len(set(names)) < len(names):
        raise CorpusError(f"two source descriptions have the same name: {', '.join(sorted(names))}")
    _require_one_form(sources)
    secret = None if all(s.public_ids for s in sources) else corpus_key(out, key_file)
    tasks: list[PartTask] = []
    quarantined: list[dict[str, str]] = []
    for source, (_, base) in zip(sources, loaded, strict=True):
        key = PUBLIC_KEY if source.public_ids or secret is None else secret
        for number in range(len(source.samples)):
            prepare(source, number)  # an unknown geometry or window is found before work starts
        folder = source_folder(source, base if root is None else Path(root))
        jobs, bad = _jobs(source, folder, key)
        quarantined += bad
        tasks += _parts(source, folder, jobs, out / BUILD, key)
    settings = [FORMAT, __version__, asdict(shares), test_per_specialty, shard_bytes, quarantined]
    digest = runs.digest([settings, [task.name for task in tasks]])
    return Plan(sources, tuple(tasks), tuple(quarantined), shares, test_per_specialty, digest)


def _require_one_form(sources: Sequence[Source]) -> None:
    """A model learns from one size, and a WebDataset shard holds pictures or clips: two kinds of files in one break
    every reader that expects all samples to look alike."""
    sizes = sorted({s.size for s in sources})
    if len(sizes) > 1:
        raise ConfigError(
            f"the descriptions make pictures of {' and '.join(map(str, sizes))} pixels, but a model learns from one "
            f"size. Give it with --size"
        )
    takes = [take for s in sources for take in s.samples]
    aspects = sorted({take.aspect for take in takes if isinstance(take, Clips)})
    if aspects and not all(isinstance(take, Clips) for take in takes):
        raise ConfigError("the descriptions make pictures and clips. Curate them into two corpora")
    if len(aspects) > 1:
        shown = " and ".join(f"{aspect:g}" for aspect in aspects)
        raise ConfigError(f"the descriptions make clips of the aspects {shown}, but a model learns from one")


def source_folder(source: Source, root: Path) -> Path:
    """`root`/`source.root`, else `root` itself when the source's table or files lie there."""
    below = root / source.root
    if below.is_dir():
        return below
    if source.table is not None and source.table.path is not None and (root / source.table.path).exists():
        return root
    if source.files is not None and next(root.glob(source.files.glob), None) is not None:
        return root
    raise CorpusError(
        f"{source.name}: its folder {source.root!r} is not in the given root, and its table or files are not there "
        f"either. Give the folder that holds it with --root"
    )


def corpus_key(out: Path, key_file: Path | str | None) -> bytes:
    """The secret of a corpus, made on first use with access for its owner alone."""
    folder = out.absolute()  # "." has no name
    path = folder.with_name(f"{folder.name}.key") if key_file is None else Path(key_file)
    if not path.exists():
        if (out / INDEX).exists():
            raise CorpusError(
                f"the key of {out.name}/ ({path.name}) is missing; with a new one every patient would change names and "
                f"split. Give it with --key-file, or choose another --out"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            _make_key(path)
    try:
        key = bytes.fromhex(path.read_text().strip())
    except (ValueError, OSError):
        key = b""
    if not 16 <= len(key) <= 64:
        raise CorpusError(f"key file {path.name} must hold 32 to 128 hex digits, for instance of: openssl rand -hex 32")
    return key


def _make_key(path: Path) -> None:
    """A new key, readable by its owner alone. FileExistsError when another process was first."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(secrets.token_hex(32) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink()  # a full disk would leave an empty key, which no later run could use
        raise


def _jobs(source: Source, folder: Path, key: bytes) -> tuple[list[FileJob], list[dict[str, str]]]:
    """One job per file, sorted by key; rows without a usable file, patient or split go to quarantine."""
    by_path: dict[str, list[TableRow]] = {}
    jobs, quarantined = [], []
    for number, row in enumerate(source_rows(source, folder)):
        if _names_a_file(source.file, row):
            by_path.setdefault(fill(source.file, row), []).append(row)
        else:
            reason = "the row names no file; a caption alone is no sample"
            row_key = pseudonym(key, source.name, "row", str(number))
            quarantined.append({"key": row_key, "source": source.name, "reason": reason})
    for name, rows in by_path.items():
        file_key = pseudonym(key, source.name, "file", name)
        try:
            if any(row != rows[0] for row in rows):
                raise ReadError(f"{len(rows)} rows of the table name this file and contradict each other")
            jobs.append(_job(source, folder, key, name, file_key, rows[0]))
        except ReadError as error:
            quarantined.append({"key": file_key, "source": source.name, "reason": str(error)})
        for _ in rows[1:] if all(row == rows[0] for row in rows) else ():
            reason = "the table names this file again in an equal row; it was used once"
            quarantined.append({"key": file_key, "source": source.name, "reason": reason})
    return sorted(jobs, key=lambda job: job.key), sorted(quarantined, key=lambda entry: entry["key"])


def _names_a_file(template: str, row: TableRow) -> bool:
    """False where every column that the template reads is empty: a row of text alone."""
    columns = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    return not columns or any(row[name].strip() for name in columns)


def _job(source: Source, folder: Path, key: bytes, name: str, file_key: str, row: TableRow) -> FileJob:
    candidates = [folder / part / name for part in source.folders]
    path = next((path for path in candidates if is_there(path)), None)
    if path is None:
        raise ReadError("the file that the table names is missing")
    split = source.split
    group = None if split.in_header else group_of(source, key, _group_name(source, name, row))
    given = None
    if split.given is not None:
        if row[split.given.column] not in split.given.values:
            raise ReadError(f"column {split.given.column!r} names a split that the description does not list")
        given = split.given.values[row[split.given.column]]
    return FileJob(file_key, path, row, group, given)


def _group_name(source: Source, name: str, row: TableRow) -> str:
    """The patient, lesion or slide that the table names; without a column every file is its own."""
    split = source.split
    group = name if split.column is None else cell(row, split.column, split.pattern)
    if not group:
        raise ReadError(f"column {split.column!r} is empty: the {split.unit} of this file is unknown")
    return group


def _parts(source: Source, folder: Path, jobs: list[FileJob], build: Path, key: bytes) -> Iterator[PartTask]:
    """Parts of 8 to 256 pictures, of 1 to 16 clips, or of one volume, slide or array file.

    The name holds the digest of what the result depends on: files, rows, description.
    """
    small = all(take.kind in ("whole", "boxes") for take in source.samples)
    clips = all(take.kind == "clip" for take in source.samples)
    fewest, most = (FEWEST_FILES, MOST_FILES) if small else (1, MOST_CLIPS if clips else 1)
    per_part = min(max(len(jobs) // PARTS, fewest), most)
    described = [FORMAT, RECORDS, __version__, source.model_dump(mode="json", exclude={"root"}), pseudonym(key, "key")]
    for start in range(0, len(jobs), per_part):
        chunk = tuple(jobs[start : start + per_part])
        states = [
            (job.key, job.row, job.group, job.given, _state(job.path), [*_companions(source, folder, job.row)])
            for job in chunk
        ]
        name = f"{source.name}-{start // per_part:06d}-{runs.digest([described, states])}"
        yield PartTask(name, source, folder, chunk, build, key)


def _companions(source: Source, folder: Path, row: TableRow) -> Iterator[list[Any]]:
    """The state of each mask, annotation, channel and slice table that a file is read with."""
    for take in source.samples:
        templates = companion_templates(take)
        if isinstance(take, Boxes) and take.format not in ("json", "cell"):
            templates.append(take.file)
        names = [fill(template, row) for template in templates]
        if isinstance(take, Slices | SeriesSlices) and take.table is not None:
            names.append(take.table.path)
        paths = [companion(source, folder, name) for name in names if name]
        yield from (_state(path) for path in paths if is_there(path))


def _state(path: Path) -> list[Any]:
    """Size and time of a file, or of everything in a folder: another state makes another part."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
