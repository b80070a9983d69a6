"""Processes: this process's place among the ranks, starting several on one machine, and stopping without loss."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING, Any

from medisyn.errors import ConfigError, WorkerError

if TYPE_CHECKING:
    from accelerate import Accelerator

# One process may read real images from a slow disk, or write a large checkpoint, for hours while the others wait.
COLLECTIVE_TIMEOUT = timedelta(days=2)
SECONDS_TO_FOLLOW = 60.0  # after one process failed, the others get this long to end by themselves


def accelerator_for(precision: str) -> Accelerator:
    """This process's accelerator; ranks come from the environment (our `launch`, torchrun or accelerate)."""
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState

    # Accelerate keeps the first precision of a process for ever; a second run in one notebook may use another.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if precision == "bf16" else "no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
    )


def local_device() -> str:
    """Where this process's model belongs: its own GPU, or the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def is_worker() -> bool:
    """True in a process that `launch`, torchrun or accelerate started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


class StopSignals:
    """Within the block, the first SIGINT or SIGTERM only sets `received`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.received = False
        self.before: dict[int, Any] = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self.before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def launch(command: Sequence[str], processes: int) -> int:
    """Run `command` as `processes` ranks on this machine and return rank 0's exit code.

    Rank 0 has the terminal; what the others print is shown only when one of them is killed or fails by itself. Signals
    to this process are handed on. Raises WorkerError when a rank is killed or fails where rank 0 did not.
    """
    if processes < 1:
        raise ConfigError(f"processes must be at least 1, got {processes}")
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(processes - 1)]
        with StopSignals() as signals:
            ranks = _start(command, processes, logs)
            codes = _wait(ranks, signals)
        return _verdict(codes, logs)


def leave_together(code: int = 0) -> None:
    """End this process as one of several ranks, with exit code `code`. Of one process alone it does nothing.

    A rank waits for the others first: one that ends while others still hold their connection to it makes these abort.
    Then it ends without the interpreter's own shutdown, in which a thread of torch's process group that still drops a
    tensor aborts the process now and then (pytorch issue 190489). Exit handlers have run and output is flushed.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return
    with contextlib.suppress(RuntimeError):  # another rank failed and is gone; the launcher tells of it
        distributed.barrier()
    distributed.destroy_process_group()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _start(command: Sequence[str], processes: int, logs: Sequence[IO[bytes]]) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    ranks = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {"OMP_NUM_THREADS": threads, **os.environ} | {k: str(v) for k, v in (place | address).items()}
        output = None if rank == 0 else logs[rank - 1]
        ranks.append(
            subprocess.Popen(command, env=environment, stdout=output, stderr=output, preexec_fn=_follow_parent)
        )
    return ranks


def _follow_parent() -> None:
    """Ask the kernel to send SIGTERM when the launcher is killed, so that no rank goes on alone."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _wait(ranks: Sequence[subprocess.Popen[bytes]], signals: StopSignals) -> list[int]:
    handed_on, failed_at = False, None
    while any(rank.poll() is None for rank in ranks):
        if signals.received and not handed_on:
            handed_on = True
            for rank in ranks:
                rank.terminate()
        if failed_at is None and any(rank.poll() not in (None, 0) for rank in ranks):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > SECONDS_TO_FOLLOW:
            for rank in ranks:
                rank.kill()
        time.sleep(0.05)
    return [rank.returncode for rank in ranks]


def _verdict(codes: Sequence[int], logs: Sequence[IO[bytes]]) -> int:
    killed = [rank for rank, code in enumerate(codes) if code < 0]
    alone = [rank for rank, code in enumerate(codes) if code > 0 and codes[0] == 0]
    for rank in [rank for rank in (*killed, *alone) if rank > 0]:
        logs[rank - 1].seek(0)
        sys.stderr.write(logs[rank - 1].read()[-2000:].decode(errors="replace"))
    if killed or alone:
        raise WorkerError(
            f"training process(es) {', '.join(map(str, killed or alone))} of {len(codes)} died"
            f"{' (killed, often for lack of memory)' if killed else ''}. "
            "Repeat the command to go on from the last checkpoint."
        )
    return codes[0]
