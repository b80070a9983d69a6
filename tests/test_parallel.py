"""One process and many give the same results; a worker that dies, an error and a killed parent end well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medisyn.errors import ConfigError, ReadError, WorkerError
from medisyn.parallel import map_shards, num_cores, num_workers

# Workers import this file by its path, and find the functions below without the name that pytest gave it.
TASKS = """
import os, signal, sys, time
from pathlib import Path
from medisyn.errors import ReadError
from medisyn.parallel import map_shards

def square(task):
    return os.getpid(), os.environ.get("OMP_NUM_THREADS"), task * task

def die(task):
    if task == 1:
        os._exit(9)
    return task

def refuse(task):
    if task == 1:
        raise ReadError("series 12: not a picture")
    return task

def write(task):
    folder, number = task
    time.sleep(0.3)
    (Path(folder) / f"{number}-{os.getpid()}").touch()
    return number
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """The module above, importable in this process and in spawned workers."""
    (tmp_path / "work_for_workers.py").write_text(TASKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import work_for_workers

    yield work_for_workers
    del sys.modules["work_for_workers"]


def double(task: int) -> int:
    return 2 * task


def test_inline_yields_in_order_and_only_when_asked():
    done = []

    def work(task):
        done.append(task)
        return -task

    results = map_shards(work, [5, 6, 7])
    assert done == []
    assert next(results) == (0, -5)
    assert done == [5]
    assert list(results) == [(1, -6), (2, -7)]


def test_processes_give_what_inline_gives(tasks):
    inline = dict(map_shards(tasks.square, list(range(6))))
    spread = dict(map_shards(tasks.square, list(range(6)), "processes:2"))
    assert {n: r[2] for n, r in spread.items()} == {n: r[2] for n, r in inline.items()} == {n: n * n for n in range(6)}
    assert {pid for pid, _, _ in inline.values()} == {os.getpid()}
    assert os.getpid() not in {pid for pid, _, _ in spread.values()}
    assert {threads for _, threads, _ in spread.values()} == {"1"}


def test_no_tasks_is_no_error():
    assert list(map_shards(double, [])) == []
    assert list(map_shards(double, [], "processes:2")) == []


def test_a_dead_worker_is_named_with_the_next_step(tasks):
    with pytest.raises(WorkerError, match=r"a worker process died.*Repeat the command with fewer processes"):
        list(map_shards(tasks.die, [0, 1, 2], "processes:2"))


@pytest.mark.parametrize("engine", ["inline", "processes:1"])
def test_an_error_of_ours_arrives_as_it_was_raised(tasks, engine):
    with pytest.raises(ReadError, match="series 12: not a picture"):
        list(map_shards(tasks.refuse, [0, 1, 2], engine))


@pytest.mark.parametrize(("engine", "workers"), [("inline", 0), ("processes:1", 1), ("processes:12", 12)])
def test_the_number_of_workers_stands_in_the_engine(engine, workers):
    assert num_workers(engine) == workers


def test_processes_alone_means_one_per_core():
    assert num_workers("processes") == num_cores() >= 1


@pytest.mark.parametrize(
    "engine", ["", "threads", "inline:2", "processes:", "processes:0", "processes:-1", "processes:²"]
)
def test_an_unknown_engine_is_refused(engine):
    with pytest.raises(ConfigError, match="is unknown, allowed: inline, processes, processes:N"):
        list(map_shards(double, [1], engine))


def _alive(folder: Path) -> set[int]:
    """The workers that have left a file in the folder and still run."""
    pids = {int(path.name.partition("-")[2]) for path in folder.iterdir()}
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(tasks, tmp_path, kill):
    out = tmp_path / "out"
    out.mkdir()
    code = (
        "import sys; from work_for_workers import *\n"
        f"for _ in map_shards(write, [({str(out)!r}, n) for n in range(1000)], 'processes:2'): pass"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.DEVNULL,
        env=dict(os.environ),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    )
    deadline = time.monotonic() + 30
    while not any(out.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.send_signal(kill)
    parent.wait(timeout=20)
    while _alive(out) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert 1 <= len(list(out.iterdir())) < 1000
    assert _alive(out) == set()
