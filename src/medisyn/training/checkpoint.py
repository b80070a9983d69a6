"""Checkpoints: a folder per step that appears whole or not at all, the state to go on from, and the model to use.

checkpoints/step-00001000/state.safetensors    weights, moving average and optimiser, bit for bit
                          training.json        step, energy, size of the state file
                          judgement.json       what the judge said, when there is one
                          model/               the exported model (moving average, when there is one)
model/                                         the best judged checkpoint's model, else the latest one's
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medisyn import runs
from medisyn.errors import InputError, TrainingError
from medisyn.families.base import ParamGroup
from medisyn.training.ema import Ema

REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "no file may grow that large here (limit of the file system or of the shell, see `ulimit -f`)",
}


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk. `score` is the judge's (lower is better), None when it was not judged."""

    step: int
    folder: Path
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def judgement(self) -> Mapping[str, Any] | None:
        path = self.folder / "judgement.json"
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def score(self) -> float | None:
        judgement = self.judgement
        return None if judgement is None else float(judgement["score"])


class Checkpoints:
    """The checkpoints of one run; only the main process writes."""

    def __init__(self, run_dir: Path, keep_last: int) -> None:
        self.run_dir, self.folder, self.keep_last = run_dir, run_dir / "checkpoints", keep_last

    def clear_unfinished(self) -> None:
        """Remove what a kill left half-written."""
        for leftover in [*self.folder.glob(".step-*"), *self.run_dir.glob(".model.*.tmp")]:
            shutil.rmtree(leftover, ignore_errors=True)
        runs.recover_folder(self.run_dir / "model")

    def complete(self) -> list[Checkpoint]:
        """Whole checkpoints, oldest first. One whose state file has not its recorded size is left out."""
        found = []
        for folder in self.folder.glob("step-*"):
            if re.fullmatch(r"step-\d+", folder.name) and (folder / "training.json").exists():
                record = json.loads((folder / "training.json").read_text())
                state = folder / "state.safetensors"
                if state.exists() and state.stat().st_size == record["state_bytes"]:
                    found.append(Checkpoint(record["step"], folder, record))
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def latest(self) -> Checkpoint | None:
        return max(self.complete(), key=lambda checkpoint: checkpoint.step, default=None)

    def best(self) -> Checkpoint | None:
        """The one with the lowest score; of equals the earlier."""
        judged = [(checkpoint.score, checkpoint) for checkpoint in self.complete() if checkpoint.score is not None]
        return min(judged, key=lambda pair: pair[0])[1] if judged else None

    def save(
        self,
        step: int,
        state: Mapping[str, torch.Tensor],
        save_model: Callable[[Path], object],
        record: Mapping[str, Any],
    ) -> Checkpoint:
        """Write a checkpoint, or raise TrainingError and leave the earlier ones as they are (disk full)."""
        target = self.folder / f"step-{step:08d}"
        try:
            with runs.atomic_folder(target) as folder:
                save_file(dict(state), folder / "state.safetensors")
                save_model(folder / "model")
                size = (folder / "state.safetensors").stat().st_size
                content = {**record, "step": step, "state_bytes": size}
                runs.write_json(folder / "training.json", content)
        except (OSError, SafetensorError) as error:
            raise self._write_error(step, error) from error
        return Checkpoint(step, target, content)

    def _write_error(self, step: int, error: Exception) -> TrainingError:
        # safetensors has its own error class, with the system's number in the text only
        codes = {getattr(error, "errno", None), *map(int, re.findall(r"os error (\d+)", str(error)))}
        reason = next((text for code, text in REASONS.items() if code in codes), type(error).__name__)
        kept = self.latest()
        where = f"The checkpoint of step {kept.step} is whole" if kept else "There is no earlier checkpoint"
        return TrainingError(
            f"the checkpoint of step {step} could not be written: {reason}. {where}; make room (keep_last is "
            f"{self.keep_last}) and repeat the command to go on from there."
        )

    def add_judgement(self, checkpoint: Checkpoint, judgement: Mapping[str, Any]) -> None:
        """Keep what the judge said. Raises InputError when it does not hold a finite `score`."""
        score = judgement.get("score")
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise InputError(f"the judge of a checkpoint must return a finite 'score' (lower is better), got {score!r}")
        runs.write_json(checkpoint.folder / "judgement.json", dict(judgement))

    def settle(self) -> Checkpoint | None:
        """Point `model/` to the best (else the latest) checkpoint and remove those that are neither best nor recent."""
        whole = self.complete()
        best = self.best()
        chosen = best or (whole[-1] if whole else None)
        if chosen is not None:
            with runs.atomic_folder(self.run_dir / "model") as folder:
                shutil.copytree(chosen.folder / "model", folder, copy_function=_link, dirs_exist_ok=True)
        for checkpoint in whole[: -self.keep_last]:
            if best is None or checkpoint.step != best.step:
                doomed = checkpoint.folder.with_name(f".{checkpoint.folder.name}.old")
                os.replace(checkpoint.folder, doomed)  # so that a kill in the middle leaves no part of a checkpoint
                shutil.rmtree(doomed, ignore_errors=True)
        return chosen


def _link(source: str, target: str) -> None:
    """A second name for the same bytes; some file systems know no hard links, and there it is a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def pack(groups: Sequence[ParamGroup], ema: Ema, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The whole state of a run besides its step, as named tensors."""
    state, number = {}, 0
    for group in groups:
        for index, parameter in enumerate(group.parameters):
            name = f"{group.name}/{index}"
            state[f"weight/{name}"] = parameter.detach()
            if ema.shadow is not None:
                state[f"ema/{name}"] = ema.shadow[number]
            for key, value in optimizer.state.get(parameter, {}).items():
                state[f"optimizer/{name}/{key}"] = value
            number += 1
    return {name: _own_memory(tensor.detach().cpu().contiguous()) for name, tensor in state.items()}


def _own_memory(tensor: torch.Tensor) -> torch.Tensor:
    """safetensors refuses tensors that are parts of one storage; those are copied, the others are not."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def unpack(path: Path, groups: Sequence[ParamGroup], ema: Ema, optimizer: torch.optim.Optimizer) -> None:
    """Put a packed state back, bit for bit. Raises InputError when it belongs to another model."""
    state = load_file(path)
    averages = []
    for group in groups:
        for index, parameter in enumerate(group.parameters):
            name = f"{group.name}/{index}"
            weight = state.get(f"weight/{name}")
            if weight is None or weight.shape != parameter.shape:
                raise InputError(
                    f"checkpoint {path.parent.name}: weight {name} has shape "
                    f"{None if weight is None else tuple(weight.shape)}, the model {tuple(parameter.shape)}; "
                    "the run was started with another model. Choose another --out."
                )
            parameter.data.copy_(weight)
            if f"ema/{name}" in state:
                averages.append(state[f"ema/{name}"].to(parameter.device))
            prefix = f"optimizer/{name}/"
            kept = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            if kept:
                optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in kept.items()}
    ema.shadow = averages or None
