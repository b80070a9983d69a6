"""Generated pictures, clips or CT volumes as one HTML page that stands alone; nothing is asked of a network."""

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
CLIP_ENDINGS = (".mkv", ".mp4", ".gif")  # of a clip's file in metadata.jsonl
SHOWN_CLIPS = {".mp4": "video/mp4", ".gif": "image/gif"}  # what browsers play; the first one that is there
VOLUME_ENDING = ".nii.gz"  # of a volume's file; its three planes are shown
TITLE = "Medical images from text"


def write_gallery(folder: Path, page: Path, *, also: Sequence[Path] = (), card: str = "", title: str = TITLE) -> None:
    """Write the page of `folder`, which `generate` filled; `card` is the text of the model's card.

    Pictures stand under their `specialty` where the prompts said one; those of the folders `also` (made by generate,
    interpolate or inpaint) follow, each under the folder's name. Clips play in a loop, from their .mp4 or .gif; volumes
    show their three planes. Raises InputError when a folder holds nothing generated, or a clip has neither file.
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
    one = "clip" if _is_clip(shown[0]) else "volume" if _is_volume(shown[0]) else "picture"
    pictures = (
        f"{num_pictures}" if len(shown) == num_pictures else f"{num_pictures}, of which the first {len(shown)} here"
    )
    facts = [
        ("Model", f"{model['id']} (weights {model['digest'][:16]})"),
        (f"{one.capitalize()}s", f"{pictures}, from {len({record['prompt'] for record in shown})} prompts"),
        ("Solver", f"{model['solver']}, {model['dtype']}"),
    ]
    if timing["pictures"]:
        pace = timing["seconds"] / timing["pictures"]
        device = run["settings"].get("device", f"a machine with {run['environment']['cpus']} CPU cores")
        facts.append(("Time", f"{pace:.2f} s per {one} after loading, on {device}"))
    return facts


def _sections(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    sections: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        heading = str(record.get("specialty") or "")
        sections.setdefault(heading[:1].upper() + heading[1:], []).append(record)
    return list(sections.items())


def _picture(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    path = _shown_file(folder, record)
    size = f"{record['width']} × {record['height']} pixels"
    if _is_clip(record):
        factors = [f"{name} {record[name]:g}" for name in ("motion", "appearance") if record.get(name) is not None]
        size = ", ".join([f"{record['frames']} frames of {size}, {record['frames_per_second']:g} a second", *factors])
    if _is_volume(record):
        spacing = " × ".join(f"{mm:.3g}" for mm in record["spacing_mm"])
        size = f"{record['depth']} × {record['height']} × {record['width']} voxels of {spacing} mm"
    guidance = "the model's own" if record["guidance"] is None else f"{record['guidance']:g}"
    return {
        **{name: record[name] for name in ("prompt", "seed", "lost_words")},
        **_pixels(path, record),
        "wide": _is_volume(record),
        "kind": SHOWN_CLIPS.get(path.suffix, "image/png"),
        "base64": base64.b64encode(path.read_bytes()).decode("ascii"),
        "settings": f"{record['solver']}, {record['steps']} steps, guidance {guidance}, {size}",
    }


def _pixels(path: Path, record: Mapping[str, Any]) -> dict[str, int]:
    """Width and height of what is shown."""
    if not _is_volume(record):
        return {"width": record["width"], "height": record["height"]}
    from PIL import Image

    with Image.open(path) as planes:
        return {"width": planes.width, "height": planes.height}


def _is_volume(record: Mapping[str, Any]) -> bool:
    return str(record["file_name"]).endswith(VOLUME_ENDING)


def _is_clip(record: Mapping[str, Any]) -> bool:
    return str(record["file_name"]).endswith(CLIP_ENDINGS)


def _shown_file(folder: Path, record: Mapping[str, Any]) -> Path:
    """The picture, the planes of a volume, or the file of a clip that browsers play."""
    path = folder / record["file_name"]
    if _is_volume(record):
        return folder / "planes" / f"{record['key']}.png"
    if not _is_clip(record):
        return path
    for ending in SHOWN_CLIPS:
        if path.with_suffix(ending).is_file():
            return path.with_suffix(ending)
    raise InputError(
        f"{folder.name}/ holds {record['key']!r} without an .mp4 or .gif, and browsers play no other; make the clips "
        f"with --format mkv --format mp4"
    )
