"""Requests in, PNG files out: in batches, on one process or several, resumable after a kill at any moment.

Every picture's noise comes from its own seed, so batch size, number of processes and what was done before change a
picture by no more than the rounding of the arithmetic.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError
from medisyn.families.base import Family
from medisyn.generation import export, folder, provenance
from medisyn.generation.prompts import request_from_record, request_record
from medisyn.parallel import map_shards, num_workers
from medisyn.seeding import seed_for
from medisyn.types import Item, Request

# Requests and their (H, W, C) uint8 pictures -> why each picture is thrown away, or None. A picture's answer must not
# depend on the others of its batch.
Reject = Callable[[Sequence[Request], Sequence[np.ndarray]], Sequence[str | None]]
BatchWork = Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]

LARGEST_BATCH = 8
PIXELS_PER_BATCH = 1024 * 1024


@dataclass(frozen=True)
class GenerateReport:
    """What one call of `generate` did. `made` are new pictures, `skipped` were there before; `rejected` have none."""

    out: Path
    made: int
    skipped: int
    rejected: int
    redrawn: int  # draws thrown away, of all requests of the folder
    seconds: float  # from the first batch to the last, without loading the model
    lost_words: Mapping[str, str] = field(default_factory=dict)  # prompt -> its words beyond the text window

    @property
    def seconds_per_image(self) -> float | None:
        """None when nothing was made."""
        return self.seconds / self.made if self.made else None

    def summary(self) -> str:
        """One line for a person."""
        made = f"{self.made} made ({self.seconds / self.made:.2f} s each)" if self.made else "none left to make"
        there = f", {self.skipped} there before" if self.skipped else ""
        lost = f", {self.redrawn} draws thrown away" if self.redrawn else ""
        lost += f", {self.rejected} rejected (see {self.out / 'rejected'})" if self.rejected else ""
        return f"{self.out}: {self.made + self.skipped} pictures, {made}{there}{lost}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "out": str(self.out),
            "made": self.made,
            "skipped": self.skipped,
            "rejected": self.rejected,
            "redrawn": self.redrawn,
            "seconds": round(self.seconds, 3),
            "seconds_per_image": self.seconds_per_image,
            "lost_words": dict(self.lost_words),
        }


@dataclass(frozen=True)
class Batches:
    """What all batches of a run share; picklable, so that other processes can make them."""

    out: Path
    model: Mapping[str, str]
    lost_words: Mapping[str, str] = field(default_factory=dict)  # prompt -> words
    reject: Reject | None = None
    tries: int = 3


def generate(
    requests: Sequence[Request],
    family: Family | None,
    out: Path,
    *,
    model: Mapping[str, str],
    batch_size: int | None = None,
    engine: str = "inline",
    open_family: Callable[[], Family] | None = None,
    lost_words: Callable[[str], str] | None = None,
    reject: Reject | None = None,
    rejecting: Mapping[str, Any] | None = None,
    tries: int = 3,
    settings: Mapping[str, Any] | None = None,
) -> GenerateReport:
    """Write `out/<key>.png` for every request that has none yet, and `out/metadata.jsonl` over all of them.

    model: id, digest, solver and dtype of the model, for the record of every picture.
    batch_size: pictures made at once; None: up to 8, fewer for large pictures.
    engine: "inline" (with `family`), or "processes:N" with `open_family`, a picklable function that opens the model
        and is called once in each process. `reject` must be picklable then, too.
    lost_words: the words of a prompt beyond the model's text window; told on stderr once per prompt, and recorded.
    reject: names the pictures to throw away, for instance near-copies of training images. Each is drawn again with a
        seed of its own, up to `tries` draws; then the request stays without a picture (`out/rejected/<key>.json`).
    rejecting: what `reject` goes by, for run.json; a folder keeps to one, and to one number of tries.
    settings: what else `run.json` shall say, such as the device.

    The same call finishes what was interrupted. Raises InputError when `out` belongs to other requests or another
    model (requests may be added), BusyError when another process writes there.
    """
    _check_options(batch_size, tries)
    rule = None if reject is None else {**(rejecting or {}), "tries": tries}
    shared = Batches(out, dict(model), _lost_words(requests, lost_words), reject, tries)
    work = _batch_work(family, open_family, engine, shared)
    with runs.lock(out):
        timing = folder.claim(out, requests, model, settings or {}, rule)
        records = folder.finished(out, requests)
        skipped = len(records)
        done = records.keys() | folder.rejected(out, requests).keys()
        batches = batches_of([request for request in requests if request.key not in done], batch_size)
        started = time.perf_counter()
        try:
            for made in _run(work, batches, engine):
                records.update((record["key"], record) for record in made)
        finally:  # also after Ctrl-C: what is there is listed
            made_now, seconds = len(records) - skipped, time.perf_counter() - started
            folder.write_metadata(out, requests, records)
            timing = folder.Timing(timing.pictures + made_now, round(timing.seconds + seconds, 3))
            lost = folder.rejected(out, requests)
            redrawn = sum(record["tries"] - 1 for record in records.values())
            redrawn += sum(len(record["reasons"]) for record in lost.values())
            folder.write_run(out, requests, model, timing, settings or {}, rule, {"draws": redrawn, "lost": len(lost)})
    return GenerateReport(out, made_now, skipped, len(lost), redrawn, seconds, shared.lost_words)


def make_batch(requests: Sequence[Mapping[str, Any]], *, family: Family, shared: Batches) -> list[dict[str, Any]]:
    """Draw and write the pictures of one batch and return their records.

    `requests` are `request_record`s of one size, steps and guidance.
    """
    waiting = [request_from_record(record) for record in requests]
    reasons: dict[str, list[str]] = {request.key: [] for request in waiting}
    records: list[dict[str, Any]] = []
    for attempt in range(shared.tries):
        items = family.decode(family.sample([draw(request, attempt) for request in waiting]))
        verdicts: Sequence[str | None] = [None] * len(items)
        if shared.reject is not None:
            verdicts = shared.reject(waiting, [export.pixels_HWC(item) for item in items])
        kept = []
        for request, item, verdict in zip(waiting, items, verdicts, strict=True):
            if verdict is None:
                records.append(_write(draw(request, attempt), item, reasons[request.key], shared))
                kept.append(request)
            else:
                reasons[request.key].append(verdict)
        waiting = [request for request in waiting if request not in kept]
        if not waiting:
            break
    for request in waiting:
        folder.write_rejected(shared.out, request, reasons[request.key])
    return records


def _write(request: Request, item: Item, reasons: Sequence[str], shared: Batches) -> dict[str, Any]:
    height, width, _ = export.pixels_HWC(item).shape
    lost = shared.lost_words.get(request.prompt, "")
    record = provenance.record_of(request, shared.model, size=(height, width), lost_words=lost, rejected=reasons)
    export.write_png(shared.out / record["file_name"], item, record)
    return record


def draw(request: Request, attempt: int) -> Request:
    """The request as drawn: with its own seed first, then with seeds derived from it."""
    return request if attempt == 0 else replace(request, seed=seed_for(request.seed, f"draw-{attempt}"))


def batches_of(requests: Sequence[Request], batch_size: int | None = None) -> list[list[Request]]:
    """Requests that can be sampled together, in their order: of one size, steps and guidance."""
    groups: dict[tuple[Any, ...], list[Request]] = {}
    for request in requests:
        groups.setdefault((request.height, request.width, request.steps, request.guidance), []).append(request)
    batches: list[list[Request]] = []
    for (height, width, *_), group in groups.items():
        size = batch_size or default_batch_size(height, width)
        batches += [group[start : start + size] for start in range(0, len(group), size)]
    return batches


def default_batch_size(height: int | None, width: int | None) -> int:
    """8 pictures, fewer when they are large: one of 1024 x 1024, four of 512 x 512."""
    if height is None or width is None:
        return LARGEST_BATCH
    return max(1, min(LARGEST_BATCH, PIXELS_PER_BATCH // (height * width)))


def _run(work: BatchWork, batches: Sequence[Sequence[Request]], engine: str) -> Iterator[list[dict[str, Any]]]:
    """The records of each batch as it is finished, with a progress bar on a terminal."""
    from tqdm import tqdm

    tasks = [[request_record(request) for request in batch] for batch in batches]
    with tqdm(total=sum(map(len, batches)), unit="image", disable=None, dynamic_ncols=True) as bar:
        for number, records in map_shards(work, tasks, engine):
            bar.update(len(batches[number]))
            yield records


_family_of_this_worker: Family | None = None


def _make_batch_in_worker(
    requests: Sequence[Mapping[str, Any]], *, open_family: Callable[[], Family], shared: Batches
) -> list[dict[str, Any]]:
    """`make_batch` in a process of its own, which opens the model with its first batch and keeps it."""
    global _family_of_this_worker
    if _family_of_this_worker is None:
        _family_of_this_worker = open_family()
    return make_batch(requests, family=_family_of_this_worker, shared=shared)


def _lost_words(requests: Sequence[Request], lost_words: Callable[[str], str] | None) -> dict[str, str]:
    """Prompt -> words beyond the text window, for the prompts that have any; each is told once."""
    if lost_words is None:
        return {}
    lost = {prompt: lost_words(prompt) for prompt in dict.fromkeys(request.prompt for request in requests)}
    lost = {prompt: words for prompt, words in lost.items() if words}
    for prompt, words in lost.items():
        start = " ".join(prompt.split()[:6])
        print(f"warning: the prompt '{start} ...' is longer than the model reads; lost: {words}", file=sys.stderr)
    return lost


def _batch_work(
    family: Family | None, open_family: Callable[[], Family] | None, engine: str, shared: Batches
) -> BatchWork:
    if num_workers(engine) == 0 and family is not None and open_family is None:
        return functools.partial(make_batch, family=family, shared=shared)
    if num_workers(engine) > 0 and family is None and open_family is not None:
        return functools.partial(_make_batch_in_worker, open_family=open_family, shared=shared)
    raise InputError("generate: give `family` for the engine 'inline', and only `open_family` for several processes")


def _check_options(batch_size: int | None, tries: int) -> None:
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch size must be at least 1, got {batch_size}")
    if tries < 1:
        raise InputError(f"tries must be at least 1, got {tries}")
