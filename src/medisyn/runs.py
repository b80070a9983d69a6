"""Output folders: one writer at a time, atomic files, and a `run.json` that says how everything was made."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from medisyn.errors import BusyError, InputError

PACKAGES = ("medisyn", "torch", "diffusers", "transformers", "accelerate", "peft", "numpy", "pillow", "pydicom")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A stream to fill; a reader of `path` sees the old content or the new, never a part (temporary, fsync, rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as a whole, atomically."""
    with atomic_file(path) as stream:
        stream.write(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A folder to fill; it takes the place of `target` as one rename when the block ends well, else it vanishes.

    An existing `target` is moved aside for the swap and removed afterwards; `recover_folder` undoes a swap that was
    killed between the two renames.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.old")
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    os.chmod(temporary, 0o777 & ~_umask())
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(target, aside)
        os.replace(temporary, target)
        shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if aside.exists() and not target.exists():
            os.replace(aside, target)
        raise


def recover_folder(target: Path) -> None:
    """Put back what `atomic_folder` had moved aside when it was killed, and clear what is unfinished under this name.

    Call it while holding the lock of the run, so that nothing unfinished belongs to a living process.
    """
    aside = target.with_name(f".{target.name}.old")
    if aside.exists() and not target.exists():
        os.replace(aside, target)
    shutil.rmtree(aside, ignore_errors=True)
    pattern = re.compile(re.escape(f".{target.name}.") + r"[a-z0-9_]{8}\.tmp")  # as tempfile makes them
    for unfinished in list(target.parent.iterdir()) if target.parent.is_dir() else []:
        if not pattern.fullmatch(unfinished.name):
            continue
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for one process; the kernel frees it when the process dies. Raises BusyError when it is taken."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"another process is writing to {folder.resolve().name}/. Wait for it to end, or choose another --out."
            ) from None
        yield


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Add one line to a JSON-lines file in a single write."""
    with path.open("ab") as stream:
        stream.write((json.dumps(record, ensure_ascii=False, default=str) + "\n").encode())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a last line cut short by a kill is left out. Missing file: no records."""
    if not path.exists():
        return []
    records = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _record(line)
        if record is not None:
            records.append(record)
        elif number < len(lines):
            raise InputError(f"{path.name} line {number} is not a JSON object; the file was edited or damaged")
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    """The object on one line, or None for anything else, such as a line cut in the middle of a character."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def mend_jsonl(path: Path) -> None:
    """Cut a last line that a kill left unfinished, so that appending goes on at a line's start.

    It keeps exactly what `read_jsonl` reads: a last object that lacks only its line end gets one.
    """
    if not path.exists():
        return
    content = path.read_bytes()
    whole, last = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
    if last:
        write_bytes(path, whole + last + b"\n" if _record(last) is not None else whole)


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(value: Any) -> str:
    """A short content address (16 hex digits) of anything JSON can hold; key order does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def environment() -> dict[str, Any]:
    """Versions and machine, without anything that names a user, a host or a path."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "packages": versions,
    }


def write_run(folder: Path, **content: Any) -> None:
    """`run.json`: what was asked (command, resolved config, data fingerprint, seeds) and on what it ran."""
    write_json(
        folder / "run.json",
        {"written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "environment": environment(), **content},
    )


def read_run(folder: Path) -> dict[str, Any] | None:
    """The content of `run.json`, or None when the folder is new."""
    path = folder / "run.json"
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{folder.name}/run.json is not readable JSON ({error}); choose another --out") from None
    if not isinstance(content, dict):
        raise InputError(f"{folder.name}/run.json does not hold an object; choose another --out")
    return content
