"""What lies below a folder: results of commands that write a report, training runs, generated sets and corpora."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn import runs
from medisyn.errors import InputError
from medisyn.recipes.result_values import values_of

if TYPE_CHECKING:
    from medisyn.evaluation.page import Page, Value


@dataclass(frozen=True)
class Found:
    """A folder with a run.json: `kind` is the command that wrote it, `name` its place below the folder searched."""

    name: str
    folder: Path
    kind: str
    run: Mapping[str, Any]

    @property
    def corpus(self) -> str:
        """Fingerprint of the corpus that was used, or made; "" where none is recorded."""
        made = self.run.get("report")
        return str(self.run.get("corpus") or (made.get("fingerprint", "") if isinstance(made, dict) else ""))


@dataclass(frozen=True)
class Result(Found):
    """A folder with a result.json: also its page, its own content, and the model that made the images.

    model: the model's id and digest, or "" where it is not recorded.
    """

    page: Page
    content: Mapping[str, Any]
    model: str
    values: Sequence[Value]

    @property
    def corpus(self) -> str:
        return super().corpus or str(self.content.get("corpus") or "")


@dataclass
class Collection:
    """All that was found; `left_out` says which result was not read, and why."""

    results: list[Result] = field(default_factory=list)
    training: list[Found] = field(default_factory=list)
    generated: list[Found] = field(default_factory=list)
    corpora: list[Found] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def made_by(folder: Path) -> dict[str, str] | None:
    """Id and digest of the model that made a set, from its run.json, else from metadata.jsonl where all lines agree.

    None where neither says it, as for a set made elsewhere.
    """
    run = runs.read_run(folder) or {}
    model = run.get("model") if run.get("kind") == "generate" else None
    if isinstance(model, dict) and model.get("digest"):
        return {"id": str(model.get("id") or ""), "digest": str(model["digest"])}
    records = runs.read_jsonl(folder / "metadata.jsonl")
    named = {(str(record.get("model") or ""), str(record.get("model_digest") or "")) for record in records}
    if len(named) != 1 or not next(iter(named))[1]:
        return None
    name, digest = named.pop()
    return {"id": name, "digest": digest}


def collect(folders: Sequence[Path]) -> Collection:
    """Everything below the folders. Raises InputError for a folder that is not there or holds nothing of ours."""
    found = Collection()
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder.name}/. Name the folder that holds the results.")
        prefix = f"{folder.resolve().name}/" if len(folders) > 1 else ""
        _collect(folder.resolve(), prefix, found)
    if not (found.results or found.training or found.generated or found.corpora):
        told = "".join(f" {text}." for text in found.left_out)
        names = ", ".join(f"{folder.name}/" for folder in folders)
        raise InputError(
            f"no result.json and no run.json of a training run, generated set or corpus below {names}.{told} "
            "Run `medisyn evaluate`, or another command that writes a report, first."
        )
    return found


def _collect(root: Path, prefix: str, found: Collection) -> None:
    entries = {path.parent: content for path, content in _objects(root, "run.json", found)}
    for folder, run in entries.items():
        entry = Found(_name(folder, root, prefix), folder, str(run.get("command") or run.get("kind") or ""), run)
        lists = {"train": found.training, "generate": found.generated, "curate": found.corpora}
        if entry.kind in lists:
            lists[entry.kind].append(entry)
    for path, content in _objects(root, "result.json", found):
        name, run = _name(path.parent, root, prefix), entries.get(path.parent, {})
        page = _page(content, path.parent)
        if page is None:
            found.left_out.append(f"{name}/result.json holds no page; run its command again to have it here")
            continue
        kind = str(run.get("command") or run.get("kind") or "")
        try:
            values = values_of(kind, page, content)
        except (KeyError, TypeError, AttributeError):
            found.left_out.append(f"{name}/result.json is not as `medisyn {kind}` writes it; run the command again")
            continue
        model = _model(path.parent, run, entries)
        found.results.append(Result(name, path.parent, kind, run, page, content, model, values))


def _objects(root: Path, file: str, found: Collection) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every JSON object of that file name below the root, hidden folders left out."""
    for path in sorted(root.rglob(file)):
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):
            content = None
        if isinstance(content, dict):
            yield path, content
        else:
            found.left_out.append(f"{path.parent.name}/{file} is not a readable JSON object")


def _name(folder: Path, root: Path, prefix: str) -> str:
    below = folder.relative_to(root).as_posix()
    return f"{prefix}{below}" if below != "." else root.name


def _page(content: Mapping[str, Any], folder: Path) -> Page | None:
    from medisyn.evaluation.page import page_from_dict

    try:
        return page_from_dict(content["page"], folder)
    except (KeyError, TypeError, ValueError):
        return None


def _model(folder: Path, run: Mapping[str, Any], entries: Mapping[Path, Mapping[str, Any]]) -> str:
    """From the result's own run.json; one without that entry takes it from the set beside it, NAME of NAME-audit."""
    model = run.get("model")
    if "model" not in run:  # a result of an earlier version
        beside = [
            (len(other.name), content.get("model"))
            for other, content in entries.items()
            if content.get("kind") == "generate"
            and other.parent == folder.parent
            and folder.name.startswith(f"{other.name}-")
        ]
        model = max(beside, key=lambda entry: entry[0])[1] if beside else None
    if not isinstance(model, dict) or not model.get("digest"):
        return ""
    return f"{model.get('id') or 'model'} {str(model['digest'])[:12]}"
