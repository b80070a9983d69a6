"""The data card (README.md, with the hub's YAML header) and Croissant metadata of a corpus.

Counts stand per specialty, image type and split, as in Extended Data Tables 1 and 2 of MediSyn v2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from medisyn import runs
from medisyn.corpus.shards import Row
from medisyn.corpus.source import Source
from medisyn.corpus.splits import SPLITS, Shares
from medisyn.corpus.takes import Arrays, Clips, Modalities, Take

CARD = "README.md"
CROISSANT = "croissant.json"
HUB_LICENCES = {
    "CC BY 3.0": "cc-by-3.0",
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-NC 4.0": "cc-by-nc-4.0",
    "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0",
    "MIT": "mit",
    "Apache-2.0": "apache-2.0",
    "BSD-3-Clause": "bsd-3-clause",
}
UNIT_TEXT = {
    "patient": "patient-disjoint: every patient is in one split",
    "group": "not known to be patient-disjoint: split by `{column}`; patients are unknown",
    "file": "not known to be patient-disjoint: split by file; patients are unknown",
    "region": "not patient-disjoint: regions of the same volume or slide are in different splits",
    "none": "not known to be patient-disjoint: split by sample; patients are unknown",
}


def write(
    out: Path,
    rows: Sequence[Row],
    sources: Sequence[Source],
    shares: Shares,
    test_per_specialty: int | None,
    report: dict[str, Any],
) -> None:
    """Write README.md and croissant.json. Nothing in them comes from a file name or a patient's record."""
    runs.write_text(out / CARD, card_text(rows, sources, shares, test_per_specialty, report))
    runs.write_json(out / CROISSANT, croissant(out.name, rows, sources))


def count_table(rows: Sequence[Row], column: str, title: str) -> list[str]:
    """A Markdown table of samples per value of a column and split, with totals in both directions."""
    counts = Counter((getattr(row, column), row.split) for row in rows)
    names = sorted({name for name, _ in counts}, key=lambda name: (-sum(counts[name, s] for s in SPLITS), name))
    lines = [f"| {title} | train | validation | test | total |", "|---|---:|---:|---:|---:|"]
    for name in names:
        cells = [counts[name, split] for split in SPLITS]
        lines.append(_cells(name, [*cells, sum(cells)]))
    totals = [sum(row.split == split for row in rows) for split in SPLITS]
    return [*lines, _cells("**total**", [*totals, len(rows)])]


def _cells(name: str, numbers: Sequence[int]) -> str:
    return f"| {name} | " + " | ".join(f"{number:,}" for number in numbers) + " |"


def card_text(
    rows: Sequence[Row],
    sources: Sequence[Source],
    shares: Shares,
    test_per_specialty: int | None,
    report: dict[str, Any],
) -> str:
    """The whole README.md."""
    what = _what(rows)
    parts = [
        _header(rows, sources),
        f"# {what.capitalize()}-text corpus\n\n"
        f"Text-captioned medical {what}s for training and testing generators; not for diagnosis.\n"
        f"{report['kept']:,} samples from {report['read']:,} files; {report['quarantined']:,} files or {what}s were "
        f"set aside (`quarantine.jsonl` says why), {report['left_out']:,} left out above the limit of their class.\n"
        f"Fingerprint `{report['fingerprint']}`.",
        "## Counts\n\n"
        + "\n\n".join(
            "\n".join(count_table(rows, column, title))
            for column, title in (("specialty", "specialty"), ("image_type", "image type"), ("source", "source"))
        ),
        *_clips_section(rows),
        _splits_section(rows, sources, shares, test_per_specialty),
        "## Sources\n\n" + "\n\n".join(_source_section(source, rows) for source in sources),
        _use_section(rows),
    ]
    return "\n\n".join(parts) + "\n"


def _header(rows: Sequence[Row], sources: Sequence[Source]) -> str:
    """YAML that `load_dataset` and the hub read."""
    licences = sorted({HUB_LICENCES.get(source.licence, "other") for source in sources})
    present = [split for split in SPLITS if any(row.split == split for row in rows)]
    files = [{"split": split, "path": f"data/{split}-*.tar"} for split in present]
    header = {
        "pretty_name": f"Medical {_what(rows)}-text corpus",
        "license": licences[0] if len(licences) == 1 else licences,
        "task_categories": ["text-to-image" if _what(rows) == "image" else "text-to-video"],
        "tags": ["medical", "webdataset"],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---"


def _splits_section(
    rows: Sequence[Row], sources: Sequence[Source], shares: Shares, test_per_specialty: int | None
) -> str:
    lines = [
        "## Splits\n",
        f"Train : validation : test = {shares.train:g} : {shares.validation:g} : {shares.test:g}, by a hash of the "
        "pseudonym: adding patients moves nobody.",
        "Samples with equal pixels, or an equal perceptual hash and near-equal small copies, stay in one split; where "
        "their splits differ, train wins.",
    ]
    if test_per_specialty is not None:
        lines.append(
            f"At least {test_per_specialty} samples of each specialty were reserved for test, by whole patients."
        )
    repeated = len(rows) - len({row.sha256 for row in rows})
    lines.append(f"{repeated:,} samples are exact repeats of another one.\n")
    for source in sources:
        text = UNIT_TEXT[source.split.unit].format(column=source.split.column)
        given = "; the publisher's splits are kept" if has_given_splits(source) else ""
        units = len({row.patient for row in rows if row.source == source.name})
        lines.append(f"- `{source.name}`: {text}{given} ({units:,} units)")
    return "\n".join(lines)


def has_given_splits(source: Source) -> bool:
    return source.split.given is not None or any(getattr(take, "splits", None) for take in source.samples)


def _source_section(source: Source, rows: Sequence[Row]) -> str:
    captions = [caption for take in source.samples for caption in take.captions]
    lines = [
        f"### {source.title}\n",
        f"- name `{source.name}`, {sum(row.source == source.name for row in rows):,} samples",
        f"- licence: {source.licence}; attribution: {source.attribution}; {source.url}",
        f"- preprocessing: {_preprocessing(source)}, {_form(source)}",
        "- captions: " + "; ".join(f"`{caption}`" for caption in captions),
        *_drawn(source),
    ]
    if source.known_defects:
        lines += ["- known defects:", *(f"  - {' '.join(defect.split())}" for defect in source.known_defects)]
    return "\n".join(lines)


def _preprocessing(source: Source) -> str:
    steps = []
    for take in source.samples:
        windows = ", ".join(f"{name} window {value}" for name, value in take.windows.items())
        intensity = windows or take.intensity
        steps.append(f"{take.kind} ({_grid(take)}{take.geometry or source.geometry}; intensity {intensity})")
    return "; ".join(dict.fromkeys(steps))


def _grid(take: Take) -> str:
    """The resampling of scans of several modalities, and how their slice is chosen."""
    if not isinstance(take, Modalities):
        return ""
    spacing, crop = (" x ".join(f"{number:g}" for number in numbers) for numbers in (take.spacing_mm, take.crop))
    return f"{spacing} mm, centre {crop} voxels, slice by {take.slice.rule} mask; "


def _drawn(source: Source) -> list[str]:
    """What was left out on purpose, one line each; none where every row and picture is used."""
    lines = [
        f"- drawn: at most {take.per_class:,} pictures of each label and array"
        for take in source.samples
        if isinstance(take, Arrays) and take.per_class is not None
    ]
    if source.table is not None and (draw := source.table.draw) is not None:
        lines.append(f"- drawn: at most {draw.most:,} rows of each value of `{draw.column}`")
    return lines


def _form(source: Source) -> str:
    aspects = {take.aspect for take in source.samples if isinstance(take, Clips)}
    if not aspects:
        return f"{source.size} x {source.size} pixels, PNG"
    return f"frames of {source.size} x {round(source.size * min(aspects))} pixels (height x width), FFV1 in Matroska"


def _what(rows: Sequence[Row]) -> str:
    return "clip" if any(row.is_clip for row in rows) else "image"


def _clips_section(rows: Sequence[Row]) -> list[str]:
    """How long the clips are and how much of them is padding; nothing for pictures."""
    lengths = sorted(row.frames for row in rows if row.frames is not None)
    if not lengths:
        return []
    rates = sorted({round(row.fps, 2) for row in rows if row.fps is not None})
    unknown = sum(row.fps is None for row in rows)
    shown = f"{rates[0]:g} to {rates[-1]:g}" if len(rates) > 1 else "".join(f"{rate:g}" for rate in rates)
    missing = f", not known of {unknown:,}" if unknown and rates else ""
    return [
        "## Clips\n\n"
        f"{sum(lengths):,} frames in {len(lengths):,} clips of {lengths[0]:,} to {lengths[-1]:,} frames (median "
        f"{lengths[len(lengths) // 2]:,}); frames per second: {shown or 'unknown'}{missing}.\n"
        "A clip is stored whole; training draws a window of consecutive frames each time. `valid` holds the top,\n"
        "left, bottom and right of the real pixels; what lies outside is black padding and belongs in no loss or\n"
        "measure."
    ]


def _use_section(rows: Sequence[Row]) -> str:
    text = (
        "## Use\n\n"
        "Each shard in `data/` holds `key.png`, `key.txt` (caption) and `key.json` (labels joined by `|`, spacing as\n"
        "row and column millimetres, the size before resizing and where the crop begins in the resized picture, both\n"
        "in pixels); `index.parquet` has a row per sample. Patients are pseudonyms by keyed hash.\n"
        "The key is not in this folder; for sources whose ids are public it is a fixed one, so that their pseudonyms\n"
        "can be recomputed by anybody.\n\n"
        "```python\nfrom datasets import load_dataset\n"
        'load_dataset("webdataset", data_files={"train": "data/train-*.tar"})\n```'
    )
    if _what(rows) == "clip":  # `datasets` would decode each clip as it is read, with a package of its own
        text = text.replace("key.png", "key.mkv").replace("import load", "import Video, load")
        text = text.replace('.tar"})', '.tar"}).cast_column("mkv", Video(decode=False))')
    return text


def croissant(name: str, rows: Sequence[Row], sources: Sequence[Source]) -> dict[str, Any]:
    """Croissant 1.0 JSON-LD: the shards as a file set, the index as a record set."""
    columns = ("key", "split", "specialty", "image_type", "caption", "source", "licence", "sha256")
    return {
        "@context": {
            "@vocab": "https://schema.org/",
            "sc": "https://schema.org/",
            "cr": "http://mlcommons.org/croissant/",
            "dct": "http://purl.org/dc/terms/",
            "conformsTo": "dct:conformsTo",
            "recordSet": "cr:recordSet",
            "field": "cr:field",
            "source": "cr:source",
            "fileObject": {"@id": "cr:fileObject", "@type": "@id"},
            "fileSet": {"@id": "cr:fileSet", "@type": "@id"},
            "extract": "cr:extract",
            "column": "cr:column",
            "includes": "cr:includes",
            "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
        },
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": f"{len(rows)} captioned medical {_what(rows)}s in WebDataset shards.",
        "license": sorted({source.licence for source in sources}),
        "creditText": "; ".join(sorted({source.attribution for source in sources})),
        "url": sorted({source.url for source in sources}),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "index",
                "contentUrl": "index.parquet",
                "encodingFormat": "application/x-parquet",
            },
            {"@type": "cr:FileSet", "@id": "shards", "includes": "data/*.tar", "encodingFormat": "application/x-tar"},
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "samples",
                "field": [
                    {
                        "@type": "cr:Field",
                        "@id": f"samples/{column}",
                        "name": column,
                        "dataType": "sc:Text",
                        "source": {"fileObject": {"@id": "index"}, "extract": {"column": column}},
                    }
                    for column in columns
                ],
            }
        ],
    }
