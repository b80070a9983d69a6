"""Share idempotent tasks among processes.

A task is any picklable value; `work(task)` does it, writes its own output atomically and returns a small picklable
result. A task that was done before must find its output and return the same result, so a killed run is repeated whole.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from medisyn.errors import ConfigError, WorkerError

Task = TypeVar("Task")
Result = TypeVar("Result")


def num_workers(engine: str) -> int:
    """Worker processes of an engine: "inline" is 0, "processes" one per core, "processes:4" four."""
    name, _, count = engine.partition(":")
    if engine == "inline":
        return 0
    if engine == "processes":
        return num_cores()
    if name == "processes" and count.isdecimal() and int(count) > 0:
        return int(count)
    raise ConfigError(f"engine {engine!r} is unknown, allowed: inline, processes, processes:N with N at least 1")


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    """One worker, one core: workers that each start a thread per core get in each other's way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave when the parent is gone: a worker whose parent was killed would otherwise wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def map_shards(
    work: Callable[[Task], Result], tasks: Sequence[Task], engine: str = "inline"
) -> Iterator[tuple[int, Result]]:
    """Yield (task number, result) as tasks finish; with "inline" in order.

    The first error stops the rest and is raised as it is; a worker that died (killed, out of memory) as WorkerError.
    After Ctrl-C the workers are ended at once. What tasks had written stays, and the same call finishes the work.
    """
    workers = num_workers(engine)
    if workers == 0:
        for number, task in enumerate(tasks):
            yield number, work(task)
        return
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(min(workers, max(len(tasks), 1)), context, _start_worker)
    try:
        numbers = {pool.submit(work, task): number for number, task in enumerate(tasks)}
        for future in concurrent.futures.as_completed(numbers):
            yield numbers[future], future.result()
    except BrokenProcessPool:
        raise WorkerError(
            "a worker process died, often for lack of memory. Repeat the command with fewer processes; "
            "finished shards are kept."
        ) from None
    except (KeyboardInterrupt, GeneratorExit):
        for process in list(pool._processes.values()):  # Python 3.14 offers terminate_workers() for this
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
