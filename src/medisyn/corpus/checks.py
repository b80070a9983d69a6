"""Is a corpus whole? Every shard, member, hash, caption and split is checked against the index."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medisyn import runs
from medisyn.corpus.loader import Corpus
from medisyn.corpus.shards import INDEX, Row
from medisyn.corpus.splits import SPLITS, leaks
from medisyn.errors import CorpusError

MOST = 20  # problems of one corpus that are listed; the rest is counted
# A repeated curate looks at the size of each shard only: hashing a large corpus each time would cost hours.
MEND = "repeat the curate command, which makes it again, or copy it again"
MEND_DAMAGED = f"delete it, then {MEND}"


@dataclass(frozen=True)
class VerifyReport:
    """How much was checked, and what is wrong."""

    shards: int
    samples: int
    problems: tuple[str, ...]

    def raise_if_broken(self) -> None:
        """CorpusError with every problem (20 at most) in one line."""
        if self.problems:
            more = f"; and {len(self.problems) - MOST} more" if len(self.problems) > MOST else ""
            raise CorpusError(f"{len(self.problems)} problems: " + "; ".join(self.problems[:MOST]) + more)


def verify(folder: Path | str) -> VerifyReport:
    """Read the whole corpus. CorpusError when there is no index at all; everything else is listed as a problem."""
    corpus = Corpus(folder)
    rows = corpus.rows()
    by_shard: dict[str, list[Row]] = {}
    for row in rows:
        by_shard.setdefault(row.shard, []).append(row)
    problems = [*_index_problems(rows), *_stray_shards(corpus.path, set(by_shard))]
    report = (runs.read_run(corpus.path) or {}).get("report", {})
    if report.get("fingerprint", corpus.fingerprint) != corpus.fingerprint:
        problems.append(f"{INDEX} is not the one that run.json tells of: {MEND_DAMAGED}")
    for shard, members in sorted(by_shard.items()):
        problems += _shard_problems(corpus.path / shard, members)
    return VerifyReport(len(by_shard), len(rows), tuple(problems))


def _index_problems(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        yield "the index is empty"
    if len({row.key for row in rows}) < len(rows):
        yield f"the index repeats {len(rows) - len({row.key for row in rows})} keys"
    units: dict[str, set[str]] = {}
    for row in rows:
        units.setdefault(row.patient, set()).add(row.split)
        if not row.caption.strip():
            yield f"{row.key}: the caption is empty"
        if row.split not in SPLITS or not Path(row.shard).name.startswith(f"{row.split}-"):
            yield f"{row.key}: split {row.split!r} does not fit its shard {row.shard}"
    for unit in leaks(units):
        yield f"{unit} is in more than one split: {', '.join(sorted(units[unit]))}"


def _stray_shards(folder: Path, known: set[str]) -> Iterator[str]:
    for path in sorted((folder / "data").glob("*.tar")):
        if f"data/{path.name}" not in known:
            yield f"shard {path.name} is not in the index"


def _shard_problems(path: Path, rows: Sequence[Row]) -> Iterator[str]:
    """What is wrong with one shard; damage is one line per shard, however many samples it took."""
    try:
        with tarfile.open(path, "r:") as shard:
            members = {info.name: info for info in shard.getmembers()}
            damaged = []
            for row in rows:
                problem, is_damage = _sample_problem(shard, members, row)
                if is_damage:
                    damaged.append(problem)
                elif problem:
                    yield problem
    except FileNotFoundError:
        yield f"shard {path.name} is missing: {MEND}"
        return
    except (tarfile.TarError, OSError, EOFError) as error:
        yield f"shard {path.name} is not readable ({type(error).__name__}): {MEND_DAMAGED}"
        return
    if damaged:
        count = f"{len(damaged):,} of {len(rows):,} samples"
        yield f"shard {path.name} is damaged in {count} ({damaged[0]}): {MEND_DAMAGED}"
    for key in sorted({name.rpartition(".")[0] for name in members} - {row.key for row in rows}):
        yield f"{key} is in shard {path.name} and not in the index"


def _sample_problem(shard: tarfile.TarFile, members: dict[str, tarfile.TarInfo], row: Row) -> tuple[str, bool]:
    """The first thing that is wrong with a sample, or "", and whether the bytes of the shard are to blame."""
    found = [members.get(f"{row.key}.{kind}") for kind in (row.kind, "txt", "json")]
    if None in found:
        return f"{row.key}: its {row.kind}, txt or json is not in its shard", True
    what = "clip" if row.is_clip else "picture"
    content, text, metadata = (shard.extractfile(info).read() for info in found if info is not None)  # type: ignore[union-attr]
    info = members[f"{row.key}.{row.kind}"]
    if (info.offset_data, info.size) != (row.offset, row.size):
        return f"{row.key}: the index points to byte {row.offset}, its {what} begins at {info.offset_data}", False
    if hashlib.sha256(content).hexdigest() != row.sha256:
        return f"{row.key}: its {what} was changed (sha256 differs)", True
    if text.decode("utf-8", errors="replace") != row.caption:
        return f"{row.key}: its caption differs from the index", True
    try:
        facts = json.loads(metadata)
    except ValueError:
        facts = {}
    if not isinstance(facts, dict) or any(facts.get(name) != getattr(row, name) for name in ("key", "split", "frames")):
        return f"{row.key}: its metadata differs from the index", True
    return "", False


def summary(folder: Path | str, captions: int = 10) -> dict[str, Any]:
    """Counts of a corpus per specialty, image type, source and split, and its most frequent captions."""
    corpus = Corpus(folder)
    rows = corpus.rows()
    counted: dict[str, Any] = {"samples": len(rows), "fingerprint": corpus.fingerprint}
    for column in ("specialty", "image_type", "source"):
        counts: dict[str, dict[str, int]] = {}
        for row in rows:
            counts.setdefault(getattr(row, column), dict.fromkeys(SPLITS, 0))[row.split] += 1
        counted[column] = counts
    lengths = [row.frames for row in rows if row.frames is not None]
    if lengths:
        counted["frames"] = {"total": sum(lengths), "fewest": min(lengths), "most": max(lengths)}
    counted["captions"] = dict(Counter(row.caption for row in rows).most_common(captions))
    return counted


def summary_text(counted: dict[str, Any]) -> str:
    """A summary as a table of fixed width."""
    lines = [f"{counted['samples']:,} samples, fingerprint {counted['fingerprint']}"]
    if "frames" in counted:
        lengths = counted["frames"]
        lines.append(f"clips of {lengths['fewest']:,} to {lengths['most']:,} frames, {lengths['total']:,} in all")
    for column, title in (("specialty", "specialty"), ("image_type", "image type"), ("source", "source")):
        lines += ["", f"{title:32}" + "".join(f"{split:>12}" for split in SPLITS) + f"{'total':>12}"]
        for name, counts in sorted(counted[column].items()):
            lines.append(f"{name:32}" + "".join(f"{n:12,}" for n in [*counts.values(), sum(counts.values())]))
    lines += ["", "frequent captions"]
    lines += [f"{count:8,}  {caption}" for caption, count in counted["captions"].items()]
    return "\n".join(lines)
