"""Train a preset on a corpus: the one call behind `medisyn train`, on one process or several."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medisyn import errors
from medisyn.errors import ConfigError, MedisynError, WorkerError
from medisyn.recipes import Preset, Report, get_preset, with_overrides

Announce = Callable[[str], object]
WORKER = "import sys; from medisyn.recipes.train_preset import worker; worker(*sys.argv[1:])"


@dataclass(frozen=True)
class WorkersReport:
    """What rank 0 of several processes reported."""

    text: str
    values: dict[str, Any]

    def summary(self) -> str:
        return self.text

    def as_dict(self) -> dict[str, Any]:
        return self.values


def preset_for(name: str, assignments: Sequence[str] = (), num_steps: int | None = None) -> Preset:
    """A preset with `key=value` changes; `num_steps` is short for num_steps=N."""
    steps = [] if num_steps is None else [f"num_steps={num_steps}"]
    return with_overrides(get_preset(name), [*assignments, *steps])


def train_preset(
    name: str,
    corpus: Path,
    out: Path,
    *,
    assignments: Sequence[str] = (),
    num_steps: int | None = None,
    processes: int = 1,
    announce: Announce = lambda line: None,
) -> Report:
    """Train `name` on `corpus` into `out`, or go on where the same call was stopped.

    Inside a process started by torchrun or accelerate it is one rank's part: rank 0 prepares, the others wait.
    """
    from medisyn.training.launch import is_worker

    preset = preset_for(name, assignments, num_steps)
    if processes < 1:
        raise ConfigError(f"processes must be at least 1, got {processes}")
    if is_worker():
        return _run_as_rank(preset, corpus, out, announce)
    preset.prepare(corpus, out, announce, processes=processes)
    if processes == 1:
        return preset.run(corpus, out, announce)
    return _run_workers(name, corpus, out, assignments, num_steps, processes)


def _run_as_rank(preset: Preset, corpus: Path, out: Path, announce: Announce) -> Report:
    from medisyn.training.launch import accelerator_for

    accelerator = accelerator_for("fp32")
    if not accelerator.is_main_process:
        announce = _silent
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            preset.prepare(corpus, out, announce, processes=1)
    return preset.run(corpus, out, announce)


def _silent(line: str) -> None:
    """Only the main process speaks."""


def _run_workers(
    name: str,
    corpus: Path,
    out: Path,
    assignments: Sequence[str],
    num_steps: int | None,
    processes: int,
) -> Report:
    """Start the ranks, wait, and hand on what rank 0 reported: a result, or an error of our own."""
    from medisyn.training.launch import launch

    steps = [] if num_steps is None else [f"num_steps={num_steps}"]
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        arguments = json.dumps([name, str(corpus), str(out), [*assignments, *steps], str(result)])
        launch([sys.executable, "-c", WORKER, arguments], processes)
        if not result.exists():
            raise WorkerError("the training processes ended without a result; what they printed stands above")
        content = json.loads(result.read_text())
    if "error" in content:
        raise getattr(errors, content["error"], MedisynError)(content["message"])
    return WorkersReport(content["summary"], content["values"])


def worker(arguments: str) -> None:
    """One rank. Rank 0 writes its report, or its error, to the result file."""
    name, corpus, out, assignments, result = json.loads(arguments)
    is_main = os.environ["RANK"] == "0"
    from medisyn.training.launch import leave_together

    announce: Announce = (lambda line: print(line, file=sys.stderr, flush=True)) if is_main else _silent
    try:
        report = preset_for(name, assignments).run(Path(corpus), Path(out), announce)
        content = {"summary": report.summary(), "values": dict(report.as_dict())}
    except MedisynError as error:
        content = {"error": _public_name(error), "message": str(error)}
    if is_main:
        Path(result).write_text(json.dumps(content, default=str))
    if "error" in content:
        raise SystemExit(1)  # at once: another rank may wait for this one elsewhere than at the end
    leave_together()


def _public_name(error: MedisynError) -> str:
    """The nearest class of the exception tree in `errors`."""
    return next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
