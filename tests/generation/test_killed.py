"""kill -9 at random moments: nothing is lost or half-written, and the same call finishes the work.

MEDISYN_KILLS sets how often each run is killed (default 5).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from generation.fake_family import MODEL, FakeFamily, contents, requests
from medisyn import runs
from medisyn.generation import provenance
from medisyn.generation.generate import generate

KILLS = int(os.environ.get("MEDISYN_KILLS", "5"))
NUM_REQUESTS = 160
LONGEST = {"inline": 0.35, "processes:2": 0.5}  # seconds from the start of the work to the kill

SCRIPT = """
import sys
from pathlib import Path
from generation.fake_family import MODEL, open_fake, requests
from medisyn.generation.generate import generate

if __name__ == "__main__":
    several = sys.argv[2] != "inline"
    print("ready", flush=True)
    generate(requests({num}), None if several else open_fake(), Path(sys.argv[1]), model=MODEL, batch_size=2,
             engine=sys.argv[2], open_family=open_fake if several else None)
"""


def start(script: Path, out: Path, engine: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, str(script), str(out), engine]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize("engine", ["inline", "processes:2"])
def test_killed_at_random_moments(tmp_path: Path, engine: str) -> None:
    script, out = tmp_path / "run.py", tmp_path / "out"
    script.write_text(SCRIPT.format(num=NUM_REQUESTS))
    generate(requests(NUM_REQUESTS), FakeFamily(), tmp_path / "straight", model=MODEL)
    whole = contents(tmp_path / "straight")
    done: set[str] = set()
    killed = 0

    for moment in range(KILLS):
        process = start(script, out, engine)
        time.sleep(random.Random(moment).uniform(0, LONGEST[engine]))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)  # ends when no process holds the pipe: no worker outlives its parent

        there = {path.name for path in out.glob("[0-9]*.png")}
        assert done <= there, "a finished picture was lost"
        assert all((out / name).read_bytes() == whole[name] for name in there), "a half-written picture"
        listed = runs.read_jsonl(out / "metadata.jsonl")
        assert all(record == provenance.read(out / record["file_name"]) for record in listed)
        done = there

    process = start(script, out, engine)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    assert contents(out) == whole
    assert not list(out.glob(".*.tmp"))
    assert killed, "no run was killed while it worked: the moments are too late"
