"""`kill -9` at random moments of a curation: nothing is lost or half-written, the same command finishes the work.

MEDISYN_KILLS sets the number of kills (default 3; 20 for the long form). The moments differ from run to run.
"""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image

import build_source
from medisyn.corpus.checks import verify
from medisyn.corpus.curate import curate
from medisyn.corpus.loader import Corpus

KILLS = int(os.environ.get("MEDISYN_KILLS", "3"))
COUNT = 90

CHILD = """
import sys
sys.path.insert(0, {tests!r})
import build_source
from pathlib import Path
from medisyn.corpus.curate import curate
if __name__ == "__main__":
    print("ready", flush=True)
    curate(build_source.source(Path({files!r}), size=192), Path({out!r}), shard_bytes=400_000, engine="inline")
"""


def start(tmp_path, out):
    tests = str(os.path.dirname(build_source.__file__))
    code = CHILD.format(tests=tests, files=str(tmp_path / "files"), out=str(out))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def shards(folder):
    return {path.name: path.read_bytes() for path in (folder / "data").iterdir()} | {
        "index": (folder / "index.parquet").read_bytes()
    }


def test_a_killed_curation_is_finished_by_the_same_command(tmp_path):
    build_source.files(tmp_path / "files", COUNT)
    for number in range(COUNT):  # noise takes long to compress: there is time to be killed
        pixels = np.random.default_rng(number).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "files" / f"{number}.png", compress_level=0)
    started = time.monotonic()
    source = build_source.source(tmp_path / "files", size=192)
    curate(source, tmp_path / "whole", shard_bytes=400_000)
    duration = time.monotonic() - started

    moments, out, killed, finished = random.Random(), tmp_path / "corpus", 0, 0
    while killed < KILLS:
        child = start(tmp_path, out)
        try:
            child.wait(timeout=moments.uniform(0.02, 0.6) * duration)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            killed += 1
            assert not (out / "index.parquet").exists() or verify(out).problems == ()
        else:  # it was done before its moment came: check it, and begin again
            assert shards(out) == shards(tmp_path / "whole")
            finished += 1
            out = tmp_path / f"corpus-{finished}"
    child = start(tmp_path, out)
    assert child.wait() == 0
    assert verify(out).problems == ()
    assert shards(out) == shards(tmp_path / "whole")
    assert len(Corpus(out)) == COUNT
    assert {path.name for path in out.iterdir() if path.name.startswith(".")} == {".lock"}
    assert not list(out.rglob("*.tmp"))
