"""From requests to a folder of clips, or to one clip's file, for models of the HiGen family; resumable.

out/<key>.mkv          lossless (FFV1): what `medisyn evaluate` reads; written last
out/<key>.mp4, .gif    for viewing
out/<key>.json         the record
out/<key>.dcm          on request
out/frames/<key>.png   up to 8 frames side by side
out/metadata.jsonl, requests.jsonl, run.json   as for pictures

A clip has the formats that were asked for; the first of `clip_files.FORMATS` among them is the one that metadata.jsonl
names. An item is whole when all of its files are there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn import runs
from medisyn.errors import InputError, closest
from medisyn.generation import folder, provenance
from medisyn.generation.clip_files import FORMATS
from medisyn.generation.generate import GenerateReport, batches_of
from medisyn.generation.prompts import OF_CLIPS, request_record
from medisyn.types import Clip, Request

if TYPE_CHECKING:
    from medisyn.families.base import Family

DEFAULT_FORMATS = ("mkv", "mp4")
NOTICE = "Synthetic. Not for diagnostic use."


@dataclass(frozen=True)
class ClipsReport(GenerateReport):
    """What one call of `generate_clips` did; `out` is the folder, or the one clip's file."""

    def summary(self) -> str:
        """One line for a person."""
        made = f"{self.made} made ({self.seconds / self.made:.1f} s each)" if self.made else "none left to make"
        there = f", {self.skipped} there before" if self.skipped else ""
        return f"{self.out}: {self.made + self.skipped} clips, {made}{there}"


@dataclass(frozen=True)
class ClipWriter:
    """Where the clips of a run go, and what every record of theirs says."""

    out: Path
    model: Mapping[str, str]
    formats: tuple[str, ...]  # in the order of FORMATS
    lost_words: Mapping[str, str]  # prompt -> words
    dicom: bool = False

    def paths(self, key: str) -> list[Path]:
        """Every file of one item; the one that metadata.jsonl names is the last."""
        names = [f"{key}.{name}" for name in reversed(self.formats)]
        dicom = [f"{key}.dcm"] if self.dicom else []
        return [self.out / name for name in (f"frames/{key}.png", *dicom, f"{key}.json", *names)]

    def write(self, request: Request, clip: Clip) -> dict[str, Any]:
        """All files of one item; returns its record."""
        from medisyn.generation.clip_files import WRITERS, write_dicom_clip, write_frame_sheet

        record = self.record_of(request, clip)
        write_frame_sheet(self.out / "frames" / f"{request.key}.png", clip, record)
        if self.dicom:
            write_dicom_clip(self.out / f"{request.key}.dcm", clip, record)
        runs.write_json(self.out / f"{request.key}.json", {"medisyn": record})
        for name in reversed(self.formats):
            WRITERS[name](self.out / f"{request.key}.{name}", clip, record)
        return record

    def record_of(self, request: Request, clip: Clip) -> dict[str, Any]:
        """As the record of a picture, with the number of frames, their rate, and the two factors."""
        from medisyn.generation.clip_files.video import rate_of

        _, num_frames, height, width = clip.array_CTHW.shape
        lost = self.lost_words.get(request.prompt, "")
        record = provenance.record_of(request, self.model, size=(height, width), lost_words=lost)
        return {
            **record,
            "file_name": f"{request.key}.{self.formats[0]}",
            "notice": NOTICE,
            "frames": num_frames,
            "frames_per_second": rate_of(clip),
            "motion": request.motion,
            "appearance": request.appearance,
        }


def generate_clips(
    requests: Sequence[Request],
    family: Family,
    out: Path,
    *,
    model: Mapping[str, str],
    formats: Sequence[str] | None = None,
    batch_size: int | None = None,
    lost_words: Mapping[str, str] | None = None,
    dicom: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> ClipsReport:
    """Write a clip for every request that has none yet; `requests` are resolved by the model.

    out: a folder; or a file that ends in .mp4, .mkv or .gif, for exactly one clip (see `generate_clip_file`).
    model: id, digest, solver and dtype, for every record. formats: of "mkv", "mp4" and "gif"; None: mkv and mp4.
    batch_size: clips made at once; None: one. dicom: also a multi-frame DICOM of each.

    The same call finishes what was interrupted. Raises InputError when `out` belongs to other requests or another
    model, and for an unknown format; BusyError when another process writes there.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch size must be at least 1, got {batch_size}")
    if is_clip_file(out):
        return generate_clip_file(
            requests, family, out, model=model, formats=formats, lost_words=lost_words, dicom=dicom
        )
    writer = ClipWriter(out, model, checked_formats(formats), lost_words or {}, dicom)
    settings = {**(settings or {}), "formats": list(writer.formats), "dicom": dicom}
    made, skipped, seconds = folder.complete(
        out,
        requests,
        model,
        settings,
        holds="clips",
        patterns=[f"*.{name}" for name in FORMATS],
        there=lambda: finished(writer, requests),
        make=lambda waiting, records: _make(waiting, family, batch_size or 1, writer, records),
    )
    return ClipsReport(out, made, skipped, 0, 0, seconds, writer.lost_words)


def generate_clip_file(
    requests: Sequence[Request],
    family: Family,
    path: Path,
    *,
    model: Mapping[str, str],
    formats: Sequence[str] | None = None,
    lost_words: Mapping[str, str] | None = None,
    dicom: bool = False,
) -> ClipsReport:
    """Write one clip to exactly this file, and its record beside it (clip.mp4 and clip.json).

    A file that the same request and weights made is left as it is. Raises InputError when there are several
    requests, when a format or DICOM was asked for besides, or when the file is anything else: nothing is overwritten.
    """
    if len(requests) != 1:
        raise InputError(f"{path.name} is one file and {len(requests)} clips are asked for; give --out a folder")
    if formats or dicom:
        raise InputError(f"{path.name} says which format is wanted; --format and --dicom need a folder as --out")
    request, sidecar = requests[0], path.with_suffix(".json")
    writer = ClipWriter(path.parent, model, (path.suffix[1:].lower(),), lost_words or {})
    weights = {name: value for name, value in model.items() if name != "id"}
    asked = json.loads(json.dumps({"request": request_record(request), "made_with": weights}, default=str))
    if (path.exists() or sidecar.exists()) and not _says(sidecar, asked):
        raise InputError(
            f"{path.name} or {sidecar.name} is there already and holds something else than this clip; move it away, or "
            f"choose another --out"
        )
    if path.exists():
        return ClipsReport(path, 0, 1, 0, 0, 0.0, writer.lost_words)
    from medisyn.generation.clip_files import WRITERS

    started = time.perf_counter()
    (clip,) = sampled([request], family)
    record = {**writer.record_of(request, clip), "file_name": path.name}
    runs.write_json(sidecar, {"medisyn": record, **asked})  # first: after a kill the same call goes on
    WRITERS[writer.formats[0]](path, clip, record)
    return ClipsReport(path, 1, 0, 0, 0, time.perf_counter() - started, writer.lost_words)


def is_clip_file(out: Path) -> bool:
    """Whether --out names one clip's file: by its ending, unless a folder of that name is there."""
    return out.suffix.lower() in {f".{name}" for name in FORMATS} and not out.is_dir()


def checked_formats(formats: Sequence[str] | None) -> tuple[str, ...]:
    """The formats in the order of FORMATS. Raises InputError for one that is unknown."""
    wanted = tuple(formats or DEFAULT_FORMATS)
    for name in wanted:
        if name not in FORMATS:
            raise InputError(f"format {name!r} is unknown, allowed: {', '.join(FORMATS)}.{closest(name, FORMATS)}")
    return tuple(name for name in FORMATS if name in wanted)


def refuse_factors(requests: Sequence[Request], model: str) -> None:
    """Raise InputError where a model that makes no clips is asked for what only clips have."""
    for request in requests:
        for name in OF_CLIPS:
            if getattr(request, name) is not None:
                raise InputError(
                    f"request {request.key}: {name} does not apply: {model} makes no clips. Leave it out, or choose a "
                    f"model that does, such as --model starter-video"
                )


def finished(writer: ClipWriter, requests: Sequence[Request]) -> dict[str, dict[str, Any]]:
    """Key -> record of every request whose files are all there."""
    return {
        request.key: dict(json.loads((writer.out / f"{request.key}.json").read_text())["medisyn"])
        for request in requests
        if all(path.exists() for path in writer.paths(request.key))
    }


def sampled(batch: Sequence[Request], family: Family) -> list[Clip]:
    """The clips of a batch. Raises InputError when the family makes something else."""
    clips = []
    for item in family.decode(family.sample(batch)):
        if not isinstance(item, Clip):
            raise InputError(f"video files hold clips; this model made a {type(item).__name__}")
        clips.append(item)
    return clips


def _make(
    waiting: Sequence[Request],
    family: Family,
    batch_size: int,
    writer: ClipWriter,
    records: dict[str, dict[str, Any]],
) -> None:
    """Sample and write batch by batch, with a progress bar on a terminal; `records` grows as items are whole."""
    from tqdm import tqdm

    lengths: dict[int | None, list[Request]] = {}
    for request in waiting:
        lengths.setdefault(request.frames, []).append(request)  # clips of one batch have one length
    with tqdm(total=len(waiting), unit="clip", disable=None, dynamic_ncols=True) as bar:
        for batch in (batch for group in lengths.values() for batch in batches_of(group, batch_size)):
            for request, clip in zip(batch, sampled(batch, family), strict=True):
                records[request.key] = writer.write(request, clip)
                bar.update()


def _says(sidecar: Path, asked: Mapping[str, Any]) -> bool:
    """Whether a sidecar is there and says that its clip was made by this request and these weights."""
    try:
        content = json.loads(sidecar.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and all(content.get(name) == value for name, value in asked.items())
