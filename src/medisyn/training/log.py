"""What a run says while it works: `metrics.jsonl`, tensorboard where asked for, and a progress bar."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from medisyn import runs
from medisyn.errors import MissingDependency


class TrainLog:
    """Only the main process writes. Resuming at a step cuts the records after it, so that none appears twice."""

    def __init__(self, run_dir: Path, first_step: int, num_steps: int, *, is_main: bool, tensorboard: bool) -> None:
        self.path, self.is_main = run_dir / "metrics.jsonl", is_main
        self.board = _open_tensorboard(run_dir / "tensorboard", first_step) if tensorboard and is_main else None
        if is_main:
            cut_after(self.path, first_step)
        # disable=None: silent where the output is not a terminal
        self.bar = tqdm(total=num_steps, initial=first_step, unit="step", disable=None if is_main else True)

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if self.board is not None:
            self.board.close()

    def step(self, loss: float) -> None:
        self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self.bar.update()

    def write(self, step: int, **values: float) -> None:
        """One record: `step` is the number of optimiser steps done."""
        if not self.is_main:
            return
        record: dict[str, Any] = {"step": step, **values, "time": round(time.time(), 3)}
        runs.append_jsonl(self.path, record)
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)


def cut_after(path: Path, step: int) -> None:
    """Drop the records of steps after `step` (they will be made again) and a last line that a kill cut short."""
    kept = [record for record in runs.read_jsonl(path) if record["step"] <= step]
    if path.exists():
        runs.write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))


def _open_tensorboard(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingDependency(
            "tensorboard=true needs the tensorboard package: pip install 'medisyn[track]'"
        ) from None
    return SummaryWriter(str(folder), purge_step=first_step + 1)
