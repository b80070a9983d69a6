"""The folder that generated pictures go to: an imagefolder that can be continued, and never mixes two runs.

    out/<key>.png          whole or absent; carries its own record (provenance.py)
    out/metadata.jsonl     the records, one line per picture, in the order of the requests
    out/requests.jsonl     what was asked for, one line per picture; it may only grow
    out/rejected/<key>.json   a request of which every draw was thrown away, and why
    out/run.json           model, versions, timing

A picture's record is read from the picture, so no second file has to be kept in step with it while pictures are made:
after a kill at any moment, what is missing is made and `metadata.jsonl` is written anew from what is there.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medisyn import runs
from medisyn.errors import InputError, ReadError
from medisyn.generation import provenance
from medisyn.generation.prompts import SETTING_COLUMNS, request_from_record, request_record
from medisyn.types import Request

Records = dict[str, dict[str, Any]]  # key -> record

KIND = "generate"
SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Timing:
    """Pictures made and seconds spent on them, over all calls that ended without being killed."""

    pictures: int
    seconds: float


def claim(
    out: Path,
    requests: Sequence[Request],
    model: Mapping[str, str],
    settings: Mapping[str, Any],
    rejecting: Mapping[str, Any] | None = None,
) -> Timing:
    """Make `out` the folder of these requests and this model, or find that it already is. Call it under `runs.lock`.

    Requests may be added to those a folder already has. Returns the timing of earlier calls. Raises InputError when
    the folder belongs to another kind of run, another model, another rule for throwing pictures away or other requests
    (saying what differs), or holds pictures that no run of ours put there.
    """
    _check_requests(requests)
    run = runs.read_run(out)
    if run is None:
        _check_unused(out)
    else:
        _check_model(out, run, model)
        _check_rejecting(out, run, rejecting)
        _check_grown(out, requests)
    for unfinished in (*out.glob(".*.tmp"), *out.glob("*/.*.tmp")):
        unfinished.unlink(missing_ok=True)
    lines = [json.dumps(request_record(request), ensure_ascii=False, default=str) + "\n" for request in requests]
    runs.write_text(out / "requests.jsonl", "".join(lines))
    timing = Timing(0, 0.0) if run is None else Timing(**run["timing"])
    before = {"draws": 0, "lost": 0} if run is None else run.get("rejections")
    write_run(out, requests, model, timing, settings, rejecting, before)
    return timing


def complete(
    out: Path,
    requests: Sequence[Request],
    model: Mapping[str, str],
    settings: Mapping[str, Any],
    *,
    holds: str,
    patterns: Sequence[str],
    there: Callable[[], Records],
    make: Callable[[list[Request], Records], None],
) -> tuple[int, int, float]:
    """Make what is not there yet, in this process and under the lock: how many were made, how many were there, seconds.

    holds, patterns: what such a folder holds and under which names, to refuse one that was filled by something else.
    there: the records of items that are whole. make: makes the requests and adds each record when its item is whole.
    """
    with runs.lock(out):
        if runs.read_run(out) is None and any(file for pattern in patterns for file in out.glob(pattern)):
            raise InputError(
                f"{out.name}/ holds {holds} but no run.json: not a folder of `medisyn generate`. Choose another --out"
            )
        timing = claim(out, requests, model, settings)
        records = there()
        skipped = len(records)
        started = time.perf_counter()
        try:
            make([request for request in requests if request.key not in records], records)
        finally:  # also after Ctrl-C: what is there is listed
            made, seconds = len(records) - skipped, time.perf_counter() - started
            write_metadata(out, requests, records)
            timing = Timing(timing.pictures + made, round(timing.seconds + seconds, 3))
            write_run(out, requests, model, timing, settings)
    return made, skipped, seconds


def write_run(
    out: Path,
    requests: Sequence[Request],
    model: Mapping[str, str],
    timing: Timing,
    settings: Mapping[str, Any],
    rejecting: Mapping[str, Any] | None = None,
    rejections: Mapping[str, int] | None = None,
) -> None:
    """`run.json`: model, number of requests, timing and what else was set, with versions and machine.

    `rejecting` is the rule by which pictures were thrown away (None: none were), `rejections` how many draws and how
    many whole requests were lost to it.
    """
    content: dict[str, Any] = {
        "model": dict(model),
        "requests": len(requests),
        "timing": dataclasses.asdict(timing),
        "settings": dict(settings),
    }
    if rejecting is not None:
        content |= {"rejecting": dict(rejecting), "rejections": dict(rejections or {})}
    runs.write_run(out, kind=KIND, **content)


def finished(out: Path, requests: Sequence[Request]) -> dict[str, dict[str, Any]]:
    """Key -> record of every request whose picture is there and whole."""
    records = {}
    for request in requests:
        try:
            records[request.key] = provenance.read(out / f"{request.key}.png")
        except ReadError:
            continue  # absent or damaged: it will be made (again)
    return records


def rejected(out: Path, requests: Sequence[Request]) -> dict[str, dict[str, Any]]:
    """Key -> what was written by `write_rejected`. Remove a file to have its request tried again."""
    paths = {request.key: out / "rejected" / f"{request.key}.json" for request in requests}
    return {key: json.loads(path.read_text()) for key, path in paths.items() if path.exists()}


def write_rejected(out: Path, request: Request, reasons: Sequence[str]) -> None:
    """Record that every draw of a request was thrown away, with the reason for each."""
    content = {"key": request.key, "prompt": request.prompt, "seed": request.seed, "reasons": list(reasons)}
    runs.write_json(out / "rejected" / f"{request.key}.json", content)


def write_metadata(out: Path, requests: Sequence[Request], records: Mapping[str, Mapping[str, Any]]) -> None:
    """`metadata.jsonl` from the records of the pictures that are there, in the order of the requests."""
    lines = [
        json.dumps(records[request.key], ensure_ascii=False, default=str) + "\n"
        for request in requests
        if request.key in records
    ]
    runs.write_text(out / "metadata.jsonl", "".join(lines))


def _check_requests(requests: Sequence[Request]) -> None:
    if not requests:
        raise InputError("nothing to generate: the list of requests is empty")
    keys = [request.key for request in requests]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"the key {twice!r} occurs twice among the requests; every picture needs its own")
    taken = {*SETTING_COLUMNS, *provenance.WRITTEN}
    for request in requests:
        if clash := sorted(taken & set(request.metadata)):
            raise InputError(f"request {request.key}: metadata {clash[0]!r} is a name that MediSyn writes; rename it")


def _check_unused(out: Path) -> None:
    if any(out.glob("*.png")) or (out / "metadata.jsonl").exists():
        raise InputError(
            f"{out.name}/ holds pictures but no run.json: not a folder of `medisyn generate`. Choose another --out"
        )


def _check_model(out: Path, run: Mapping[str, Any], model: Mapping[str, str]) -> None:
    if run.get("kind") != KIND:
        raise InputError(f"{out.name}/ holds a {run.get('kind', 'different')} run; choose another --out")
    before = run["model"]
    for name in sorted(model.keys() - {"id"}):  # the digest says which model it is, wherever its folder stands now
        if before.get(name) != model[name]:
            raise InputError(
                f"{out.name}/ was made with {name.replace('_', ' ')} {_short(before.get(name))} "
                f"(model {before.get('id')!r}), now it is {_short(model[name])} ({model['id']!r}). "
                "A folder holds the pictures of one model: choose another --out"
            )


def _check_rejecting(out: Path, run: Mapping[str, Any], rejecting: Mapping[str, Any] | None) -> None:
    """A folder of which some pictures were checked and some were not would pass for a checked one."""
    before = run.get("rejecting")
    now = None if rejecting is None else json.loads(json.dumps(rejecting, default=str))
    if before != now:
        differs = sorted(
            name for name in {*(before or {}), *(now or {})} if (before or {}).get(name) != (now or {}).get(name)
        )
        raise InputError(
            f"{out.name}/ was made {_rule(before)}, now pictures would be made {_rule(now)} "
            f"(different: {', '.join(differs)}). A folder keeps to one rule: choose another --out"
        )


def _rule(rejecting: Mapping[str, Any] | None) -> str:
    return "without rejecting any" if rejecting is None else "rejecting some"


def _check_grown(out: Path, requests: Sequence[Request]) -> None:
    now = {request.key: request_record(request) for request in requests}
    for record in runs.read_jsonl(out / "requests.jsonl"):
        before = request_record(request_from_record(record))
        key = before["key"]
        if key not in now:
            raise InputError(
                f"{out.name}/ also holds {key!r} ({_short(before['prompt'])}), which is no longer asked for. "
                "Prompts may be added to a folder, not taken away: choose another --out"
            )
        for name, value in before.items():
            if now[key][name] != value:
                raise InputError(
                    f"{out.name}/ holds {key!r} with {name.replace('_', ' ')} {_short(value)}, now it is "
                    f"{_short(now[key][name])}. Choose another --out"
                )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
