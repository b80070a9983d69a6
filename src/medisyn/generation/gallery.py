"""A folder of generated pictures as one HTML page that stands alone: pictures inside, nothing asked of a network."""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medisyn import runs
from medisyn.errors import InputError
from medisyn.generation.folder import KIND
from medisyn.generation.provenance import software

MOST_PICTURES = 400  # a page of more is slow to open; it says how many it leaves out
TITLE = "Medical images from text"


def write_gallery(folder: Path, page: Path, *, also: Sequence[Path] = (), card: str = "", title: str = TITLE) -> None:
    """Write the page of `folder`, which `generate` filled; `card` is the text of the model's card.

    Pictures stand under their `specialty` where the prompts said one; those of the folders `also` (made by generate,
    interpolate or inpaint) follow, each under the folder's name. Raises InputError when a folder holds no generated
    pictures.
    """
    run, records = _read(folder)
    shown = records[:MOST_PICTURES]
    sections = [(heading, [_picture(folder, record) for record in part]) for heading, part in _sections(shown)]
    for other in also:
        pictures = [_picture(other, record) for record in _read(other)[1][:MOST_PICTURES]]
        sections.append((other.name[:1].upper() + other.name[1:], pictures))
    html = _template().render(
        title=title,
        facts=_facts(run, shown, len(records)),
        sections=sections,
        card=card.strip(),
        software=software(),
    )
    runs.write_text(page, html)


def _read(folder: Path) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    run = runs.read_run(folder)
    records = runs.read_jsonl(folder / "metadata.jsonl")
    if run is None or run.get("kind") != KIND or not records:
        raise InputError(f"{folder.name}/ holds no generated pictures to show; run `medisyn generate --out` first")
    return run, records


@functools.cache
def _template() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("gallery.html")


def _facts(run: Mapping[str, Any], shown: Sequence[Mapping[str, Any]], num_pictures: int) -> list[tuple[str, str]]:
    """What is said once, above the pictures."""
    model, timing = run["model"], run["timing"]
    pictures = (
        f"{num_pictures}" if len(shown) == num_pictures else f"{num_pictures}, of which the first {len(shown)} here"
    )
    facts = [
        ("Model", f"{model['id']} (weights {model['digest'][:16]})"),
        ("Pictures", f"{pictures}, from {len({record['prompt'] for record in shown})} prompts"),
        ("Solver", f"{model['solver']}, {model['dtype']}"),
    ]
    if timing["pictures"]:
        pace = timing["seconds"] / timing["pictures"]
        device = run["settings"].get("device", f"a machine with {run['environment']['cpus']} CPU cores")
        facts.append(("Time", f"{pace:.2f} s per picture after loading, on {device}"))
    return facts


def _sections(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    sections: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        heading = str(record.get("specialty") or "")
        sections.setdefault(heading[:1].upper() + heading[1:], []).append(record)
    return list(sections.items())


def _picture(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    content = (folder / record["file_name"]).read_bytes()
    size = f"{record['width']} × {record['height']} pixels"
    guidance = "the model's own" if record["guidance"] is None else f"{record['guidance']:g}"
    return {
        **{name: record[name] for name in ("prompt", "seed", "width", "height", "lost_words")},
        "base64": base64.b64encode(content).decode("ascii"),
        "settings": f"{record['solver']}, {record['steps']} steps, guidance {guidance}, {size}",
    }
