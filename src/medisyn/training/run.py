"""One run on disk and in memory: what the lines of the loop stand for."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from medisyn import runs
from medisyn.errors import ConfigError
from medisyn.families.base import Family
from medisyn.machine import fast_dtype
from medisyn.training import memory
from medisyn.training.batches import Examples, StepRows, kinds_of, orders_of, stream, variants_of
from medisyn.training.checkpoint import Checkpoint, Checkpoints, pack, unpack
from medisyn.training.ema import Ema
from medisyn.training.energy import EnergyMeter, find_counters, gpu_uuid_of
from medisyn.training.launch import accelerator_for
from medisyn.training.log import TrainLog
from medisyn.training.optim import build_optimizer, check_groups
from medisyn.training.order import Order, Split
from medisyn.training.settings import TrainSettings, keys_that_forbid_resuming, resolved
from medisyn.training.step import LossModule, Stepper, StepResult

Judge = Callable[[int], Mapping[str, Any]]  # called by every rank; the main rank's answer counts


class Run:
    """One run on disk and in memory: what the loop's lines stand for."""

    def __init__(
        self,
        family: Family,
        examples: Examples,
        settings: TrainSettings,
        run_dir: Path,
        save_model: Callable[[Path], object],
        preview: Callable[[Path], object] | None,
        judge: Judge | None,
        weights: Sequence[float] | np.ndarray | None,
        announce: Callable[[str], object],
    ) -> None:
        self.family, self.examples, self.run_dir = family, examples, run_dir
        self.settings = settings = settings.settled(len(examples.keys))
        self.save_model, self.preview, self.judge, self.announce = save_model, preview, judge, announce
        self.order = Order(
            len(examples.keys),
            settings.batch_size,
            settings.seed,
            variants_of(examples),
            None if weights is None else np.asarray(weights),
        )
        self.kinds = kinds_of(examples, settings.batch_size, settings.micro_batch_size)
        self.orders = orders_of(self.kinds, self.order)
        self.accelerator = accelerator_for(settings.precision)
        self.split = Split(
            tuple(kind.batch_size for kind in self.kinds),
            tuple(kind.weight for kind in self.kinds),
            self.accelerator.num_processes,
        )
        self.checkpoints = Checkpoints(run_dir, settings.keep_last)

    # --- opening -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def opened(self, config: Mapping[str, Any], corpus: str, notes: Mapping[str, Any]) -> Iterator[None]:
        """Hold the folder, put back the latest checkpoint, and keep the log open for the length of the block."""
        self.config, self.corpus = {**config, "train": resolved(self.settings)}, corpus
        self.notes = notes
        with runs.lock(self.run_dir) if self.is_main else contextlib.nullcontext():
            refuse_another_run(self.run_dir, self.config, self.corpus)
            self._start()
            with self.log:
                yield

    def _start(self) -> None:
        """Estimate memory, build the optimiser and put back the latest checkpoint."""
        self.groups = self.family.trainable()
        check_groups(self.groups)
        parameters = [parameter for group in self.groups for parameter in group.parameters]
        self.memory = memory.estimate(self.family, self.groups, self.examples[0], self.settings)
        self.ema = Ema(parameters, self.settings)
        self.optimizer = build_optimizer(self.groups, self.settings)
        if self.is_main:
            self.checkpoints.clear_unfinished()
        self.accelerator.wait_for_everyone()
        latest = self.checkpoints.latest()
        self._restore(latest)
        module = self.accelerator.prepare_model(LossModule(self.family, parameters))
        self.stepper = Stepper(module, parameters, self.optimizer, self.accelerator, self.settings, self.split)
        self._write_run_json()
        self.log = TrainLog(
            self.run_dir,
            self.first_step,
            self.settings.num_steps,
            is_main=self.is_main,
            tensorboard=self.settings.tensorboard,
        )
        self._say_hello()
        self._judge(latest)
        if self.is_main and latest is not None:
            self.checkpoints.settle()  # a kill may have come between the checkpoint, its judgement and `model/`
        self.last: StepResult | None = None
        self.started = time.monotonic()

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def _restore(self, latest: Checkpoint | None) -> None:
        self.first_step = self.steps_done = latest.step if latest else 0
        local = self.accelerator.local_process_index
        counters = find_counters(local, gpu_uuid_of(self.accelerator.device))
        before = float(latest.record.get("kwh", 0.0)) if latest and self.is_main else 0.0
        self.energy = EnergyMeter(counters, before)
        if latest:
            unpack(latest.folder / "state.safetensors", self.groups, self.ema, self.optimizer)

    def _say_hello(self) -> None:
        if self.is_main:
            done = f", resuming after step {self.first_step}" if self.first_step else ""
            self.announce(
                f"{len(self.examples.keys)} samples, {self.settings.num_steps} steps of "
                f"{' and '.join(f'{kind.batch_size} {kind.name}'.strip() for kind in self.kinds)} "
                f"({self.order.epoch(self.settings.num_steps):.1f} epochs) on {self.accelerator.num_processes} "
                f"process(es), {self.accelerator.device.type}, {self.settings.precision}{done}"
            )
            for line in self.memory.lines():
                self.announce(line)
            if self.settings.precision == "bf16" and fast_dtype(self.accelerator.device.type) != "bfloat16":
                self.announce(
                    "note: this processor does not compute in bfloat16, which is many times slower here than float32; "
                    "a new run with --set precision=auto takes float32"
                )

    # --- the loop's words --------------------------------------------------------------------------------------

    def rows(self) -> Iterator[StepRows]:
        """This rank's rows of every step still to do."""
        steps = range(self.first_step, self.settings.num_steps)
        return stream(self.kinds, self.orders, self.split, steps, self.accelerator.process_index)

    def finish_step(self, step: int, result: StepResult) -> int:
        """Average the weights and log. Returns the number of steps done."""
        self.steps_done, self.last = step + 1, result
        self.ema.update(self.steps_done)
        self.log.step(result.loss)
        if self.is_due("log", self.steps_done):
            values = dataclasses.asdict(result)
            means_K = values.pop("means_K")
            if len(self.kinds) > 1:
                values |= {f"loss_{kind.name}": mean for kind, mean in zip(self.kinds, means_K, strict=True)}
            self.log.write(
                self.steps_done, **values, epoch=self.order.epoch(self.steps_done), samples_per_second=self.speed()
            )
        return self.steps_done

    def is_due(self, what: str, done: int) -> bool:
        if what == "preview" and self.preview is None:
            return False
        every = getattr(self.settings, f"{what}_every")
        if what == "checkpoint" and every == 0:
            return done > 0 and (self.order.ends_epoch(done) or done == self.settings.num_steps)
        return every > 0 and done > 0 and (done % every == 0 or (what != "log" and done == self.settings.num_steps))

    def speed(self) -> float:
        """Samples per second since this call started, previews and checkpoints included."""
        samples = (self.steps_done - self.first_step) * sum(self.split.sizes_K)
        return round(samples / max(time.monotonic() - self.started, 1e-9), 3)

    def write_preview(self, done: int) -> None:
        if self.is_main and self.preview is not None:
            with self.ema.swapped_in():
                self.preview(self.run_dir / "previews" / f"step-{done:08d}.png")
            self.family.trainable()  # back to training mode

    def save(self, done: int) -> None:
        """A checkpoint after `done` steps, unless there is one, judged where that is due; all ranks take part."""
        kwh = self._total_kwh()
        latest = self._write_checkpoint(done, kwh) if self.is_main else None
        self._judge(latest)
        if self.is_main:
            self.checkpoints.settle()
            self._write_run_json()

    def _write_checkpoint(self, done: int, kwh: float) -> Checkpoint:
        latest = self.checkpoints.latest()
        if latest is None or latest.step != done:
            state = pack(self.groups, self.ema, self.optimizer)
            with self.ema.swapped_in():
                latest = self.checkpoints.save(done, state, self.save_model, {"kwh": kwh})
            self.family.trainable()
        return latest

    def _judge(self, checkpoint: Checkpoint | None) -> None:
        """Judge a checkpoint that was due to be judged and is not yet (a run may be killed in between).

        The main process, which knows the checkpoint, decides; all ranks judge.
        """
        if self.judge is None:
            return
        due = checkpoint is not None and checkpoint.score is None and self.is_due("checkpoint", checkpoint.step)
        step = self._told_by_main(checkpoint.step if checkpoint is not None and due else 0)
        if step == 0:
            return
        with self.ema.swapped_in(), self.accelerator.autocast():
            judgement = self.judge(step)
        if self.is_main and checkpoint is not None:
            self.checkpoints.add_judgement(checkpoint, judgement)
        self.family.trainable()

    def _told_by_main(self, value: int) -> int:
        if self.accelerator.num_processes == 1:
            return value
        return int(broadcast_object_list([value])[0])

    def _total_kwh(self) -> float:
        own = self.energy.kwh()
        if self.accelerator.num_processes == 1:
            return own
        device = self.accelerator.device
        return float(self.accelerator.reduce(torch.tensor(own, dtype=torch.float32, device=device), reduction="sum"))

    def _write_run_json(self) -> None:
        if not self.is_main:
            return
        latest = self.checkpoints.latest()
        runs.write_run(
            self.run_dir,
            command="train",
            config=self.config,
            corpus=self.corpus,
            seed=self.settings.seed,
            device=self.accelerator.device.type,
            processes=self.accelerator.num_processes,
            memory=self.memory.record(),
            notes=dict(self.notes),
            steps_done=latest.step if latest else 0,
            energy={"kwh": latest.record.get("kwh", 0.0) if latest else 0.0, "source": self.energy.source},
        )


def refuse_another_run(run_dir: Path, config: Mapping[str, Any], corpus: str) -> None:
    """Raises ConfigError, naming the keys, when the folder holds a run of another configuration or corpus.

    `config` is what `train` was given plus the resolved settings under "train".
    """
    before = runs.read_run(run_dir)
    if before is None:
        return
    as_stored = json.loads(json.dumps(config, default=str))  # tuples come back as lists
    keys = keys_that_forbid_resuming(before.get("config", {}), as_stored, config["train"]["schedule"])
    if before.get("corpus", "") != corpus:
        keys.append("corpus")
    if keys == ["train.precision"]:
        begun = before["config"]["train"]["precision"]
        raise ConfigError(
            f"{run_dir.name}/ was begun in {begun}, here it would go on in {config['train']['precision']}. Go on in "
            f"{begun} with --set precision={begun}, or choose another --out."
        )
    if keys:
        raise ConfigError(
            f"{run_dir.name}/ holds a run with other values of: {', '.join(keys)}. Repeat its command to resume it, "
            "or choose another --out."
        )
