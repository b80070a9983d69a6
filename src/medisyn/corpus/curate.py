"""Source descriptions -> a corpus: plan files, make parts, decide splits, write shards, index, card and run.json.

Killed at any moment, the same command finishes the work: parts and shards that are done are found and kept, and
`index.parquet`, written last, is what makes the folder a corpus.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medisyn import runs
from medisyn.corpus import card, splits
from medisyn.corpus.duplicates import Print, contents
from medisyn.corpus.parts import read_part, write_part
from medisyn.corpus.plan import BUILD, Plan, make_plan
from medisyn.corpus.shards import (
    INDEX,
    Entry,
    Row,
    fingerprint,
    pack,
    read_at,
    sidecar,
    values_of,
    write_index,
    write_shard,
)
from medisyn.corpus.source import Source
from medisyn.corpus.splits import Member, Shares
from medisyn.errors import CorpusError, MedisynError
from medisyn.parallel import map_shards

SHARD_BYTES = 256 * 1024**2
SHARD_SAMPLES = 10_000
FEWEST_SHARDS = 8  # below, starting processes takes longer than copying
QUARANTINE = "quarantine.jsonl"
DEFAULT_SHARES = Shares()

Progress = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True)
class CurateReport:
    """What a curation did: files that the tables name, samples kept, and what was set aside (files and pictures)."""

    read: int
    kept: int
    quarantined: int
    left_out: int  # samples above a class's cap
    splits: dict[str, int]
    fingerprint: str
    seconds: float

    def text(self) -> str:
        counts = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
        lines = [f"files read {self.read:,}, samples kept {self.kept:,} ({counts})"]
        if self.left_out:
            lines.append(f"left out above a class's cap: {self.left_out:,}")
        if self.quarantined:
            lines.append(f"quarantined {self.quarantined:,}: reasons in {QUARANTINE}")
        return "\n".join(lines)


@dataclass(frozen=True)
class ShardTask:
    """One shard: where its pictures or clips lie in the parts, and the rows they become."""

    folder: Path
    shard: str
    pictures: tuple[tuple[str, int, int], ...]  # part, offset, size
    rows: tuple[Row, ...]


def curate(
    source: str | Path | Source | Sequence[str | Path | Source],
    out: Path | str,
    *,
    root: Path | str | None = None,
    size: int | None = None,
    engine: str = "inline",
    key_file: Path | str | None = None,
    shares: Shares = DEFAULT_SHARES,
    test_per_specialty: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> CurateReport:
    """Curate one or several sources into `out`.

    source    YAML files, names of shipped descriptions, or Source values
    root      folder that holds the sources' folders (or, for one source, its folder)
    size      pixels of both sides (of a clip the height), instead of the descriptions'
    key_file  secret for pseudonyms; default: made once, beside `out` as `<out>.key`, never inside it. Sources whose ids
              are public use a fixed key and need none
    shares    train:validation:test by keyed hash of the patient; `test_per_specialty` reserves samples for test

    Bad files go to `quarantine.jsonl`. Raises CorpusError or ConfigError for a description, table or option that is
    wrong, for an `out` with other files in it, and when nothing is kept; BusyError when another process writes to
    `out`; MedisynError when the disk is full. The same call then finishes the work.
    """
    started, out = time.monotonic(), Path(out)
    _refuse_foreign(out)
    listed = [source] if isinstance(source, str | Path | Source) else list(source)
    with _explain_full_disk(out):
        plan = make_plan(listed, out, root, size, key_file, shares, test_per_specialty, shard_bytes)
    with _explain_full_disk(out), runs.lock(out):
        done = _finished(out, plan)
        if done is not None:
            return done
        _clear_leftovers(out)
        made = 0
        for _, files in map_shards(write_part, plan.tasks, engine):
            made += files
            if progress is not None:
                progress("files", made, plan.num_files)
        return _publish(out, plan, engine, shard_bytes, started, progress)


def _refuse_foreign(out: Path) -> None:
    """A folder that holds anything but a corpus is left alone: its README.md and data/*.tar would be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise CorpusError(f"{out.name} is a file; --out names the folder of the corpus")
    run = runs.read_run(out)
    ours = (out / BUILD).exists() or (out / INDEX).exists() if run is None else run.get("command") == "curate"
    if not ours and any(not path.name.startswith(".") for path in out.iterdir()):
        raise CorpusError(
            f"{out.name}/ holds files that are not of a corpus, and some would be replaced. Choose another --out"
        )


def _finished(out: Path, plan: Plan) -> CurateReport | None:
    """The report of an earlier run with the same plan, when it was finished and no shard was lost or cut since."""
    before = runs.read_run(out)
    if before is None or before.get("digest") != plan.digest or not (out / INDEX).exists():
        return None
    for shard, size in before.get("shards", {}).items():
        if not (out / shard).exists() or (out / shard).stat().st_size != size:
            return None
    shutil.rmtree(out / BUILD, ignore_errors=True)
    return CurateReport(**before["report"])


def _clear_leftovers(out: Path) -> None:
    """Temporary files of a killed run."""
    for folder in (out, out / BUILD, out / "data"):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)


def _publish(
    out: Path, plan: Plan, engine: str, shard_bytes: int, started: float, progress: Progress | None
) -> CurateReport:
    """Everything after the pictures: splits, shards, quarantine, card, run.json and, last, the index."""
    records, quarantined = _collect(out / BUILD, plan)
    kept, left_out = _apply_caps(records)
    if not kept:
        reasons = sorted({entry["reason"] for entry in quarantined})[:3]
        raise CorpusError(f"nothing was kept: all {len(quarantined)} were quarantined. " + "; ".join(reasons))
    tasks = _shard_tasks(out, plan, kept, shard_bytes)
    (out / INDEX).unlink(missing_ok=True)
    rows: list[list[Row]] = [[] for _ in tasks]
    copying = engine if len(tasks) >= FEWEST_SHARDS else "inline"
    for number, (done, shard_rows) in enumerate(map_shards(write_shard_task, tasks, copying), start=1):
        rows[done] = shard_rows
        if progress is not None:
            progress("shards", number, len(tasks))
    _remove_other_shards(out, {task.shard for task in tasks})
    flat = [row for shard_rows in rows for row in shard_rows]
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in quarantined)
    runs.write_text(out / QUARANTINE, lines)
    counts = {name: sum(row.split == name for row in flat) for name in splits.SPLITS}
    report = CurateReport(
        read=plan.num_files + len(plan.quarantined),
        kept=len(flat),
        quarantined=len(quarantined),
        left_out=left_out,
        splits=counts,
        fingerprint=fingerprint(flat),
        seconds=round(time.monotonic() - started, 2),
    )
    card.write(out, flat, plan.sources, plan.shares, plan.test_per_specialty, asdict(report))
    config = {
        "sources": [source.model_dump(mode="json", exclude={"root"}) for source in plan.sources],
        "shares": asdict(plan.shares),
    }
    sizes = {task.shard: (out / task.shard).stat().st_size for task in tasks}
    runs.write_run(out, command="curate", digest=plan.digest, report=asdict(report), config=config, shards=sizes)
    write_index(out / INDEX, flat)
    shutil.rmtree(out / BUILD, ignore_errors=True)
    return report


def _collect(build: Path, plan: Plan) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """All records, each with its part, source and licence, and the whole quarantine."""
    records: list[dict[str, Any]] = []
    quarantined = list(plan.quarantined)
    for task in plan.tasks:
        part = read_part(build, task.name)
        extra = {"part": task.name, "source": task.source.name, "licence": task.source.licence}
        records += [{**record, **extra} for record in part["records"]]
        quarantined += part["quarantined"]
    return records, quarantined


def _apply_caps(records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Drop samples above their class's cap; which stay is fixed by their keys' hashes."""
    taken: dict[str, int] = {}
    kept = []
    for record in sorted(records, key=lambda record: splits.position(record["key"])):
        if record["cap"] is not None:
            name, limit = record["cap"]
            taken[name] = taken.get(name, 0) + 1
            if taken[name] > limit:
                continue
        kept.append(record)
    return kept, len(records) - len(kept)


def _shard_tasks(out: Path, plan: Plan, records: list[dict[str, Any]], shard_bytes: int) -> list[ShardTask]:
    """Split the records and pack them, in the order of their keys' hashes so that every shard is a mixture."""
    chosen = _assign(plan, records)
    tasks = []
    for split in splits.SPLITS:
        inside = [record for record in records if chosen[record["unit"]] == split]
        for number, part in enumerate(
            pack([r["size"] for r in inside], shard_bytes=shard_bytes, shard_samples=SHARD_SAMPLES)
        ):
            shard = f"data/{split}-{number:05d}.tar"
            members = [inside[index] for index in part]
            pictures = tuple((record["part"], record["offset"], record["size"]) for record in members)
            tasks.append(ShardTask(out, shard, pictures, tuple(_row(record, shard, split) for record in members)))
    return tasks


def _assign(plan: Plan, records: list[dict[str, Any]]) -> dict[str, str]:
    """Unit -> split, over all records."""
    prints = [Print(r["image_type"], r["group"], r["pixels"], r["phash"], r["thumb"]) for r in records]
    present: dict[str, list[int]] = {}
    for record in records:
        if record["region"] is not None:
            present.setdefault(record["group"], []).append(record["region"])
    regions = {group: splits.region_splits(found, group, plan.shares) for group, found in present.items()}
    members = []
    for record, content in zip(records, contents(prints), strict=True):
        given = record["given"]
        if given is None and record["region"] is not None:
            given = regions[record["group"]][record["region"]]
        members.append(Member(record["unit"], record["specialty"], content, given))
    return splits.assign(members, plan.shares, plan.test_per_specialty)


def _row(record: dict[str, Any], shard: str, split: str) -> Row:
    spacing = record["spacing"]
    return Row(
        key=record["key"],
        shard=shard,
        offset=-1,  # known when the shard is written
        size=record["size"],
        split=split,
        specialty=record["specialty"],
        image_type=record["image_type"],
        caption=record["caption"],
        labels=tuple(record["labels"]),
        patient=record["unit"],
        source=record["source"],
        licence=record["licence"],
        sha256=record["sha256"],
        phash=record["phash"],
        low=0.0,
        high=255.0,
        unit="uint8",
        spacing=None if spacing is None else (spacing[0], spacing[1]),
        original_height=record["original_size"][0],
        original_width=record["original_size"][1],
        crop_top=record["crop_top_left"][0],
        crop_left=record["crop_top_left"][1],
        frames=record.get("frames"),
        fps=record.get("fps"),
        valid=tuple(record["valid"]) if "valid" in record else None,
    )


def write_shard_task(task: ShardTask) -> list[Row]:
    """Write one shard unless its manifest says that it is there; returns its rows with their offsets."""
    path = task.folder / task.shard
    manifest = task.folder / BUILD / f"{path.name}.json"
    wanted = runs.digest([values_of(row) for row in task.rows])
    before = read_part(manifest.parent, path.name) if manifest.exists() else {}
    if before.get("digest") == wanted and path.exists() and path.stat().st_size == before["bytes"]:
        offsets = before["offsets"]
    else:
        manifest.unlink(missing_ok=True)
        offsets = write_shard(path, _entries(task))
        runs.write_json(manifest, {"digest": wanted, "bytes": path.stat().st_size, "offsets": offsets})
    return [replace(row, offset=offset) for row, offset in zip(task.rows, offsets, strict=True)]


def _entries(task: ShardTask) -> Iterator[Entry]:
    for (part, offset, size), row in zip(task.pictures, task.rows, strict=True):
        content = read_at(task.folder / BUILD / f"{part}.bin", offset, size)
        yield Entry(row.key, content, row.caption, sidecar(row), row.kind)


def _remove_other_shards(out: Path, wanted: set[str]) -> None:
    for path in (out / "data").glob("*.tar"):
        if f"data/{path.name}" not in wanted:
            path.unlink()


@contextlib.contextmanager
def _explain_full_disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise MedisynError(
                f"{out.name}/ takes no file of the size that is needed: the system limits it (`ulimit -f`, or a disk "
                f"with an old file system). Raise the limit, or choose another --out, and repeat the command: finished "
                f"parts are kept, and nothing half-written is left"
            ) from None
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(out if out.exists() else out.parent).free
        raise MedisynError(
            f"the disk of {out.name}/ is full ({free / 1e6:.0f} MB free). Free some space, or choose another --out, "
            f"and repeat the command: finished parts are kept, and nothing half-written is left"
        ) from None
