"""The training loop. The recipe built every argument; nothing is looked up by name here.

A run's whole state is its last checkpoint and two integers, (seed, step): the same call goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medisyn.families.base import Family
from medisyn.training.batches import Examples
from medisyn.training.launch import StopSignals
from medisyn.training.run import Judge, Run
from medisyn.training.settings import TrainSettings
from medisyn.training.step import NonFiniteLoss


@dataclass(frozen=True)
class TrainReport:
    """What a call of `train` did. `steps_done` counts from the very start; loss and speed are of this call."""

    steps_done: int
    num_steps: int
    resumed_from: int | None
    interrupted: bool
    loss: float | None  # of the last step; None when the run was finished before
    samples_per_second: float | None
    best_step: int | None
    kwh: float
    energy_source: str
    model: Path

    def summary(self) -> str:
        """One line for a person."""
        speed = f", {self.samples_per_second:.2f} samples/s" if self.samples_per_second else ""
        loss = f", loss {self.loss:.4f}" if self.loss is not None else ""
        best = f", best checkpoint: step {self.best_step}" if self.best_step else ""
        done = (
            f"step {self.steps_done} of {self.num_steps}{loss}{speed}{best}, {self.kwh:.3g} kWh ({self.energy_source})"
        )
        if self.interrupted:
            return f"stopped after {done}. A checkpoint was written; repeat the command to go on."
        return f"{self.model}: {done}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**dataclasses.asdict(self), "model": str(self.model)}


def train(
    family: Family,
    examples: Examples,
    settings: TrainSettings,
    run_dir: Path,
    *,
    save_model: Callable[[Path], object],
    preview: Callable[[Path], object] | None = None,
    judge: Judge | None = None,
    weights: Sequence[float] | np.ndarray | None = None,
    config: Mapping[str, Any] | None = None,
    corpus: str = "",
    notes: Mapping[str, Any] | None = None,
    announce: Callable[[str], object] = lambda line: None,
) -> TrainReport:
    """Train until `settings.num_steps`, or go on with the run in `run_dir`.

    examples  map-style rows of `family.encode`, see `batches.Examples`; `weights`: one sampling weight per key.
    save_model(folder) and preview(png path) are called by the main process, judge(step) by every one, all with the
    moving average in place; the judge also under the run's autocast. It returns a mapping with "score" (lower is
    better), of which the main process's counts; its best checkpoint becomes `run_dir/model`.
    config, corpus: the resolved configuration and the data's fingerprint; resuming with others raises ConfigError.
    notes: what else `run.json` is to say; it does not bind a resumed run.

    Raises TrainingError when a loss is not finite or a checkpoint cannot be written. SIGINT and SIGTERM end the run
    after the step at hand, with a checkpoint.
    """
    run = Run(family, examples, settings, run_dir, save_model, preview, judge, weights, announce)
    with run.opened(config or {}, corpus, notes or {}), StopSignals() as signals:
        for rows in run.rows():
            try:
                result, stop = run.stepper.run(rows, lambda: signals.received)
            except NonFiniteLoss:
                run.save(rows.step)
                raise
            done = run.finish_step(rows.step, result)
            if run.is_due("preview", done):
                run.write_preview(done)
            if stop or run.is_due("checkpoint", done):
                run.save(done)
            if stop:
                break
        return _report(run)


def _report(run: Run) -> TrainReport:
    run.accelerator.wait_for_everyone()  # the main process may still be writing what is read here
    best, latest = run.checkpoints.best(), run.checkpoints.latest()
    return TrainReport(
        steps_done=run.steps_done,
        num_steps=run.settings.num_steps,
        resumed_from=run.first_step or None,
        interrupted=run.steps_done < run.settings.num_steps,
        loss=run.last.loss if run.last else None,
        samples_per_second=run.speed() if run.last else None,
        best_step=best.step if best else None,
        kwh=float(latest.record["kwh"]) if latest else 0.0,
        energy_source=run.energy.source,
        model=run.run_dir / "model",
    )
