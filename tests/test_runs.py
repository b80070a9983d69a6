"""Files and folders that are whole or absent, also after kill -9; locks, JSON lines, and run.json."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisyn import runs
from medisyn.errors import BusyError, InputError


def run_until_it_says(code: str, word: str) -> subprocess.Popen[str]:
    """A Python process that has printed `word` and goes on; the test kills it."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)


# ---- files


def test_a_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "a.txt"
    runs.write_text(path, "old")
    runs.write_text(path, "café")
    assert path.read_bytes() == b"caf\xc3\xa9"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_file_has_the_permissions_of_any_new_file(tmp_path):
    runs.write_text(tmp_path / "ours", "")
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def write_half(stream) -> None:
    stream.write(b"half")
    raise ZeroDivisionError


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    runs.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), runs.atomic_file(path) as stream:
        write_half(stream)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_killed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    runs.write_text(path, "old")
    code = f"""
import time
from pathlib import Path
from medisyn import runs
with runs.atomic_file(Path({str(path)!r})) as stream:
    stream.write(b"half")
    stream.flush()
    print("half", flush=True)
    time.sleep(60)
"""
    kill(run_until_it_says(code, "half"))
    assert path.read_text() == "old"
    runs.recover_folder(path)  # clears the unfinished file of this name
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


# ---- folders


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(name)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    target = tmp_path / "model"
    for content in (("a", "b"), ("c",)):
        with runs.atomic_folder(target) as temporary:
            fill(temporary, *content)
    assert names(target) == ["c"]
    assert names(tmp_path) == ["model"]


def test_an_error_inside_keeps_the_old_folder(tmp_path):
    target = tmp_path / "model"
    with runs.atomic_folder(target) as temporary:
        fill(temporary, "old")
    with pytest.raises(FileNotFoundError), runs.atomic_folder(target) as temporary:
        fill(temporary, "half", "no/such/folder")
    assert names(target) == ["old"]
    assert names(tmp_path) == ["model"]


def test_an_error_between_the_two_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "model"
    with runs.atomic_folder(target) as temporary:
        fill(temporary, "old")
    replace = os.replace

    def fail_on_the_second(source, destination):
        if Path(source).name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail_on_the_second)
    with pytest.raises(OSError, match="No space left"), runs.atomic_folder(target) as temporary:
        fill(temporary, "new")
    assert names(target) == ["old"]
    assert names(tmp_path) == ["model"]


# The process stops at the n-th of: filled, old moved aside, new moved in. Whole is old or new, never a mixture.
@pytest.mark.parametrize(("stop_at", "expected"), [("filled", ["old"]), ("aside", ["old"]), ("in", ["new1", "new2"])])
def test_a_folder_is_old_or_new_after_a_kill(tmp_path, stop_at, expected):
    target = tmp_path / "model"
    with runs.atomic_folder(target) as temporary:
        fill(temporary, "old")
    code = f"""
import os, time
from pathlib import Path
from medisyn import runs
stop_at, replace = {stop_at!r}, os.replace
def stop(where):
    if where == stop_at:
        print("now", flush=True)
        time.sleep(60)
def watched(source, destination):
    replace(source, destination)
    stop("aside" if str(destination).endswith(".old") else "in")
os.replace = watched
with runs.atomic_folder(Path({str(target)!r})) as temporary:
    (temporary / "new1").touch()
    (temporary / "new2").touch()
    stop("filled")
"""
    kill(run_until_it_says(code, "now"))
    runs.recover_folder(target)
    assert names(target) == expected
    assert names(tmp_path) == ["model"]


def test_recovery_touches_no_other_name(tmp_path):
    neighbours = [".model.v2.abcd1234.tmp", ".models.abcd1234.tmp", ".model.notes.tmp", "model.old"]
    fill(tmp_path, *neighbours)
    (tmp_path / ".model.abcd1234.tmp").mkdir()
    runs.recover_folder(tmp_path / "model")
    assert names(tmp_path) == sorted(neighbours)


def test_recovery_of_a_run_that_never_was_does_nothing(tmp_path):
    runs.recover_folder(tmp_path / "no" / "model")
    assert names(tmp_path) == []


# ---- locks


def test_a_second_process_is_told_to_wait(tmp_path):
    folder = tmp_path / "out"
    code = f"""
import time
from pathlib import Path
from medisyn import runs
with runs.lock(Path({str(folder)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = run_until_it_says(code, "held")
    with pytest.raises(
        BusyError, match=r"another process is writing to out/\. Wait for it to end, or choose another --out"
    ):
        runs.lock(folder).__enter__()
    kill(holder)
    with runs.lock(folder):  # the kernel freed it
        pass


def test_a_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), runs.lock(tmp_path):
        raise ZeroDivisionError
    with runs.lock(tmp_path):
        pass


# ---- JSON lines


def test_lines_come_back_in_order(tmp_path):
    path = tmp_path / "log.jsonl"
    assert runs.read_jsonl(path) == []
    runs.append_jsonl(path, {"step": 1, "text": "a\nb — ü"})
    runs.append_jsonl(path, {"step": 2, "where": Path("x")})
    assert runs.read_jsonl(path) == [{"step": 1, "text": "a\nb — ü"}, {"step": 2, "where": "x"}]


@given(st.integers(0, 44))
def test_a_line_cut_anywhere_is_left_out_and_mended_to_what_was_read(tmp_path_factory, cut):
    whole = '{"step": 1}\n{"step": 2, "text": "é—ü"}\n'.encode()
    path = tmp_path_factory.mktemp("cut") / "log.jsonl"
    path.write_bytes(whole[:cut])
    before = runs.read_jsonl(path)
    assert before == [{"step": 1}, {"step": 2, "text": "é—ü"}][: len(before)]
    assert len(before) == (cut >= 11) + (cut >= len(whole) - 1)
    runs.mend_jsonl(path)
    assert runs.read_jsonl(path) == before
    runs.append_jsonl(path, {"step": 9})
    assert runs.read_jsonl(path) == [*before, {"step": 9}]


def test_mending_a_whole_or_missing_file_changes_nothing(tmp_path):
    path = tmp_path / "log.jsonl"
    runs.mend_jsonl(path)
    assert not path.exists()
    runs.append_jsonl(path, {"step": 1})
    before = path.stat().st_mtime_ns
    runs.mend_jsonl(path)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", [b"{oops}\n", b"[1, 2]\n", b"\xff\xfe\n"])
def test_damage_in_the_middle_is_an_error_with_the_line(tmp_path, damage):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'{"step": 3}\n')
    with pytest.raises(InputError, match=r"log\.jsonl line 2 is not a JSON object; the file was edited or damaged"):
        runs.read_jsonl(path)


# ---- addresses and run.json


def test_a_files_digest_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")  # the test vector of FIPS 180-4
    assert runs.file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_content_address_ignores_key_order_only():
    assert runs.digest({"a": 1, "b": 2}) == runs.digest({"b": 2, "a": 1})
    assert runs.digest({"a": 1, "b": 2}) != runs.digest({"a": 2, "b": 1})
    assert runs.digest([]) == hashlib.sha256(b"[]").hexdigest()[:16]


def test_a_run_says_what_made_it_and_nothing_about_who(tmp_path):
    runs.write_run(tmp_path, command="medisyn train", seed=3)
    record = runs.read_run(tmp_path)
    assert record is not None
    assert (record["command"], record["seed"]) == ("medisyn train", 3)
    assert record["environment"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"medisyn", "torch", "numpy"} <= set(record["environment"]["packages"])
    text = (tmp_path / "run.json").read_text()
    assert str(Path.home()) not in text
    assert os.uname().nodename not in text


def test_a_folder_without_a_run_has_none(tmp_path):
    assert runs.read_run(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "text"), [(b"{", "not readable JSON"), (b"\xff", "not readable"), (b"[]", "object")]
)
def test_a_damaged_run_is_an_error(tmp_path, content, text):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=f"{text}.*choose another --out"):
        runs.read_run(tmp_path)


def test_json_is_written_for_people(tmp_path):
    runs.write_json(tmp_path / "a.json", {"name": "Röntgen", "size": [1, 2]})
    text = (tmp_path / "a.json").read_text()
    assert "Röntgen" in text
    assert text.endswith("}\n")
    assert json.loads(text) == {"name": "Röntgen", "size": [1, 2]}
