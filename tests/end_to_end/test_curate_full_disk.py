"""A curation on a disk that is really full: a clear message, nothing half-written, and the same command finishes.

Two forms: a limit on the size of a file (always), and a small tmpfs (where the system lets a test mount one).
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import build_source
from medisyn.corpus.checks import verify
from medisyn.corpus.curate import curate

COUNT = 24

CHILD = """
import resource, sys
sys.path.insert(0, {tests!r})
import build_source
from pathlib import Path
from medisyn.corpus.curate import curate
from medisyn.errors import MedisynError
if __name__ == "__main__":
    if {limit}:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    try:
        curate(build_source.source(Path({files!r}), size=96), Path({out!r}), shard_bytes=300_000, engine={engine!r})
    except MedisynError as error:
        sys.exit(str(error))
"""


@pytest.fixture
def files(tmp_path):
    """Pictures of noise: a PNG of 96 x 96 has about 27 kB, all of them 670 kB."""
    build_source.files(tmp_path / "files", COUNT)
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "files" / f"{number}.png", compress_level=1)
    return tmp_path / "files"


def run(files, out, limit=0, engine="inline"):
    """The message of a curation in a process of its own; "" when it went well."""
    tests = os.path.dirname(build_source.__file__)
    code = CHILD.format(tests=tests, files=str(files), out=str(out), limit=limit, engine=engine)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


def shards(folder):
    return {path.name: path.read_bytes() for path in [*(folder / "data").iterdir(), folder / "index.parquet"]}


def assert_nothing_is_half_written(out, whole):
    assert not list(out.rglob("*.tmp"))
    assert not (out / "index.parquet").exists()
    for path in (out / "data").glob("*.tar"):
        assert path.read_bytes() == (whole / "data" / path.name).read_bytes()


@pytest.mark.parametrize(("limit", "engine"), [(150_000, "inline"), (260_000, "processes:2")])
def test_a_limit_on_the_size_of_files(files, tmp_path, limit, engine):
    """150 kB stop the first part of eight pictures (222 kB); 260 kB let the parts pass and stop a shard of 300 kB."""
    curate(build_source.source(files, size=96), tmp_path / "whole", shard_bytes=300_000)
    message = run(files, tmp_path / "corpus", limit, engine)
    assert "corpus/ takes no file of the size that is needed" in message
    assert "repeat the command" in message
    assert_nothing_is_half_written(tmp_path / "corpus", tmp_path / "whole")
    assert run(files, tmp_path / "corpus", engine=engine) == ""
    assert verify(tmp_path / "corpus").problems == ()
    assert shards(tmp_path / "corpus") == shards(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 900 kB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(folder)]
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip("this user may not mount a tmpfs; the limit on file sizes is tested without it")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_of_900_kilobytes(files, tmp_path, small_disk):
    curate(build_source.source(files, size=96), tmp_path / "whole", shard_bytes=300_000)
    out = small_disk / "corpus"
    message = run(files, out)
    assert "the disk of corpus/ is full (" in message
    assert "Free some space" in message
    assert_nothing_is_half_written(out, tmp_path / "whole")
    kept = {path.name for path in (out / ".build").glob("*.json")}
    assert kept, "finished parts are kept"
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert run(files, out) == ""
    assert verify(out).problems == ()
    assert shards(out) == shards(tmp_path / "whole")
