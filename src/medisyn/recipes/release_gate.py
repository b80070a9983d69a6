"""The release gate: what may leave goes to `released/`, what may not to `withheld/`, each with its list.

    out/released.jsonl   one line per image that may leave, with its figures
    out/withheld.jsonl   one line per image that may not, with the reasons
    out/released/        the files, and metadata.jsonl as they came: again an imagefolder
    out/withheld/        the files, and metadata.jsonl with the reasons

Where the set as a whole does not meet the policy, nothing is released. The originals are never touched; each folder
appears whole or not at all, and the same command again writes the same.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medisyn import runs
from medisyn.errors import ConfigError, InputError

FILES = ("copy", "link", "list")


def check_files(files: str, synthetic: Path) -> None:
    """ConfigError for an unknown way, InputError where there are no files to copy or link."""
    if files not in FILES:
        raise ConfigError(f"files {files!r} is unknown, allowed: {', '.join(FILES)}")
    if files != "list" and (synthetic / "index.parquet").is_file():
        raise InputError(
            f"{synthetic.name}/ is a corpus: its images lie in shards and cannot be "
            f"copied one by one. Give --files list"
        )


def write_release(
    out: Path, synthetic: Path, records: Sequence[Mapping[str, Any]], reasons: Sequence[Sequence[str]], files: str
) -> tuple[int, int]:
    """Write lists and folders; returns the counts of released and withheld images.

    `records` hold key, file_name (where there are files) and figures; `reasons` are empty for what is released. Call
    it under `runs.lock(out)`.
    """
    check_files(files, synthetic)
    parts: dict[str, list[dict[str, Any]]] = {"released": [], "withheld": []}
    for record, why in zip(records, reasons, strict=True):
        parts["withheld" if why else "released"].append({**record, "reasons": list(why)} if why else dict(record))
    described = {} if files == "list" else _described(synthetic)
    for name, part in parts.items():
        runs.recover_folder(out / name)
        if files == "list":
            shutil.rmtree(out / name, ignore_errors=True)  # of an earlier call; its list would be another one
        else:
            _write_folder(out / name, synthetic, part, described, files)
        runs.write_text(out / f"{name}.jsonl", "".join(_line(record) for record in part))
    return len(parts["released"]), len(parts["withheld"])


def _described(synthetic: Path) -> dict[str, dict[str, Any]]:
    records = runs.read_jsonl(synthetic / "metadata.jsonl")
    found = {str(record["file_name"]): record for record in records}
    if len(found) < len(records):
        raise InputError(f"{synthetic.name}/metadata.jsonl names {len(records) - len(found)} files twice")
    return found


def _write_folder(
    target: Path, synthetic: Path, part: Sequence[Mapping[str, Any]], described: Mapping[str, Any], files: str
) -> None:
    with runs.atomic_folder(target) as folder:
        lines = []
        for record in part:
            name = str(record["file_name"])
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _place(synthetic / name, folder / name, files)
            why = {"withheld_because": "; ".join(record["reasons"])} if "reasons" in record else {}
            lines.append(_line({"file_name": name, **described.get(name, {}), **why}))
        runs.write_text(folder / "metadata.jsonl", "".join(lines))


def _place(source: Path, target: Path, files: str) -> None:
    if files == "copy":
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError as error:
        raise InputError(
            f"{target.name} cannot be linked ({error.strerror}); the report must lie on the same disk. "
            f"Choose another --out, or --files copy"
        ) from None


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, default=str) + "\n"
