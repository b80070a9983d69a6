"""`medisyn report`: every result below a folder on one page; what may not stand side by side is kept apart, and why."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from medisyn import runs
from medisyn.errors import InputError
from medisyn.recipes.results import Collection, Found, Result, collect

if TYPE_CHECKING:
    from medisyn.evaluation.page import Table, Value

UNKNOWN = "not recorded"
COUNTED = ("specialty", "image_type", "source")


@dataclass(frozen=True)
class Section:
    """One part of the page; `folded` tables open on demand, `link` leads to the result's own report, `files` is the
    folder of its CSV files, None where there are none."""

    title: str
    text: str = ""
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Table] = ()
    warnings: Sequence[str] = ()
    methods: Sequence[str] = ()
    link: str = ""
    files: str | None = None


@dataclass(frozen=True)
class Basis:
    """What two numbers must share to stand side by side; settings: those of the command, but its seed, as JSON."""

    command: str
    settings: str
    corpus: str
    model: str
    extractor: str
    preprocessing: str
    n: int | None
    n_real: int | None

    def differences(self, other: Basis) -> list[str]:
        """In words; something that only one of the two records is no difference, nor what another command measured."""
        names = {"n_real": "number of real images", "n": "number of images"}
        keys = [key for key in vars(self) if key not in ("command", "settings")]
        pairs = [(names.get(key, key), getattr(self, key), getattr(other, key)) for key in keys]
        if self.command == other.command:
            ours, theirs = json.loads(self.settings), json.loads(other.settings)
            pairs += [(f"setting {key}", ours[key], theirs[key]) for key in ours if key in theirs]
        return [f"{name} {a} and {b}" for name, a, b in pairs if a != b and a not in ("", None) and b not in ("", None)]


@dataclass(frozen=True)
class CombinedReport:
    """What `combined_report` found and wrote."""

    page: Path
    found: Collection
    contradictions: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "report": str(self.page),
            "results": [
                {"name": r.name, "command": r.kind, "corpus": r.corpus, "model": r.model} for r in self.found.results
            ],
            "training": [entry.name for entry in self.found.training],
            "generated": [entry.name for entry in self.found.generated],
            "corpora": [entry.name for entry in self.found.corpora],
            "contradictions": list(self.contradictions),
            "left_out": list(self.found.left_out),
        }

    def summary(self) -> str:
        found = self.found
        lines = [
            f"{len(found.results)} results, {len(found.training)} training runs, {len(found.generated)} generated "
            f"sets, {len(found.corpora)} corpora"
        ]
        lines += [f"Note: {text}" for text in (*self.contradictions, *found.left_out)]
        return "\n".join([*lines, f"Report: {self.page}"])


def combined_report(folder: Path | str, out: Path | str | None = None) -> CombinedReport:
    """Combine what lies below `folder` into one HTML page; out: the file, None: report.html in the folder.

    Raises InputError when there is nothing to combine, or `out` is no .html file or the report of one result.
    """
    from medisyn.evaluation.page import Page
    from medisyn.evaluation.report import render

    folder = Path(folder)
    out = Path(out) if out is not None else folder / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"the combined report is one page, and a browser opens it by its name: --out {out.name}.html")
    if (out.parent / "result.json").exists() and out.name == "report.html":
        raise InputError(
            f"{out.parent.resolve().name}/report.html is the report of one result; name another file with --out"
        )
    found = collect([folder])
    against = tuple(contradictions(found))
    sections = [
        *_corpus_sections(found),
        *_training_sections(found),
        *_generated_sections(found),
        *_measure_sections(found),
        *(_result_section(result, out) for result in found.results),
    ]
    page = Page(
        title=f"Combined report: {folder.resolve().name}",
        facts=(
            ("Results", ", ".join(result.name for result in found.results) or "none"),
            ("Corpora", ", ".join(sorted({entry.corpus for entry in _all(found) if entry.corpus})) or UNKNOWN),
            ("Models", ", ".join(sorted({result.model for result in found.results if result.model})) or UNKNOWN),
        ),
        tables=(),
        methods=(),
        warnings=(*against, *(f"Left out: {text}." for text in found.left_out)),
    )
    runs.write_text(out, render(page, "combined.html", sections=sections))
    return CombinedReport(out, found, against)


def _all(found: Collection) -> list[Found]:
    return [*found.results, *found.training, *found.generated, *found.corpora]


# ---- what may stand side by side


def basis_of(result: Result, value: Value) -> Basis:
    return replace(
        _whole(result), extractor=value.extractor, preprocessing=value.preprocessing, n=value.n, n_real=value.n_real
    )


def _whole(result: Result) -> Basis:
    """What all numbers of a result share."""
    asked = result.content.get("asked")
    settings = {key: asked[key] for key in sorted(asked) if key != "seed"} if isinstance(asked, Mapping) else {}
    return Basis(result.kind, json.dumps(settings, sort_keys=True), result.corpus, result.model, "", "", None, None)


def contradictions(found: Collection) -> list[str]:
    """What keeps results apart, one sentence per pair of results; and runs that used another corpus than a result."""
    notes = []
    for first, second in itertools.combinations(found.results, 2):
        why = _differences(first, second)
        if why:
            notes.append(f"{first.name} and {second.name} are not put side by side: {'; '.join(why)}.")
    evaluated = {result.corpus for result in found.results if result.corpus}
    for run in found.training:
        others = sorted(evaluated - {run.corpus})
        if run.corpus and others:
            notes.append(
                f"{run.name} was trained on corpus {run.corpus}, and there are results against {', '.join(others)}: "
                "held-out images of one corpus may be training images of another."
            )
    return notes


def _differences(first: Result, second: Result) -> list[str]:
    whole = _whole(first).differences(_whole(second))
    measured: dict[str, list[str]] = {}
    theirs = {(value.name, value.of, value.group): value for value in second.values}
    for ours in first.values:
        other = theirs.get((ours.name, ours.of, ours.group))
        if other is not None and not ours.group and ours.of != "real":
            for text in basis_of(first, ours).differences(basis_of(second, other)):
                if text not in whole:
                    measured.setdefault(text, []).append(ours.name)
    return [*whole, *(f"{text} ({_some(names)})" for text, names in measured.items())]


def _some(names: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _measure_sections(found: Collection) -> list[Section]:
    """One table per basis: all overall numbers that may stand side by side, each beside its real baseline."""
    groups: dict[Basis, list[tuple[Result, Value]]] = {}
    for result in found.results:
        for value in result.values:
            if not value.group and value.of != "real":
                groups.setdefault(basis_of(result, value), []).append((result, value))
    if not groups:
        return []
    tables = [_measures(number, basis, values) for number, (basis, values) in enumerate(groups.items(), start=1)]
    return [
        Section(
            "All measures",
            "Numbers over all classes. One table holds only what was measured by the same command with the same "
            "settings (but the seed), corpus, model, extractor, preprocessing and number of images; numbers of "
            "different tables do not compare.",
            tables=tables,
        )
    ]


def _measures(number: int, basis: Basis, values: Sequence[tuple[Result, Value]]) -> Table:
    from medisyn.evaluation.page import Table
    from medisyn.evaluation.report import number as written

    rows = []
    for result, value in values:
        real = next((v for v in result.values if (v.name, v.group, v.of) == (value.name, value.group, "real")), None)
        rows.append(
            (value.name.replace("_", " "), result.name, value.of, written(value.value), _interval(value),
             "" if real is None else written(real.value), "" if real is None else _interval(real))
        )  # fmt: skip
    n = UNKNOWN if basis.n is None else f"{basis.n:,}"
    with_real = "" if basis.n_real is None else f", each against {basis.n_real:,} real images"
    return Table(
        name=f"measures-{number}",
        title=f"medisyn {basis.command}: {basis.extractor or 'no extractor'}, n = {n}",
        text=(
            f"Corpus {basis.corpus or UNKNOWN}; model {basis.model or UNKNOWN}; "
            f"preprocessing {basis.preprocessing or UNKNOWN}{with_real}. Real is the same measure of real images, the "
            "level to read the value by."
        ),
        columns=("measure", "result", "of", "value", "interval", "real", "interval of real"),
        rows=tuple(sorted(rows)),
        numeric=frozenset({3, 4, 5, 6}),
    )


def _interval(value: Value) -> str:
    from medisyn.evaluation.report import number

    return "" if value.low is None or value.high is None else f"{number(value.low)} to {number(value.high)}"


# ---- where the numbers come from


def _corpus_sections(found: Collection) -> list[Section]:
    return [
        Section(
            f"Corpus: {entry.name}",
            facts=_facts(entry.run.get("report"), skip=("splits",)),
            tables=[*_sources(entry), *corpus_tables(entry)],
        )
        for entry in found.corpora
    ]


def _facts(content: Any, skip: Sequence[str] = ()) -> list[tuple[str, str]]:
    """The plain values of a record as name and text; what nests is left out."""
    items = content.items() if isinstance(content, Mapping) else ()
    plain = [(name, value) for name, value in items if name not in skip and not isinstance(value, (Mapping, list))]
    return [(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value}") for name, value in plain]


def _sources(entry: Found) -> list[Table]:
    from medisyn.evaluation.page import Table

    config = entry.run.get("config")
    sources = config.get("sources", []) if isinstance(config, Mapping) else []
    rows = tuple((s.get("title", ""), s.get("licence", ""), s.get("attribution", "")) for s in sources)
    text = "What the corpus was made of."
    return [Table("sources", "Sources", text, ("source", "licence", "attribution"), rows)] if rows else []


def corpus_tables(entry: Found) -> list[Table]:
    """Samples per specialty, image type and source, and split, from the corpus's index; none where it has none."""
    if not (entry.folder / "index.parquet").exists():
        return []
    from medisyn.corpus.checks import summary
    from medisyn.evaluation.page import Table, Value

    counted, tables = summary(entry.folder), []
    for column in COUNTED:
        counts: dict[str, dict[str, int]] = counted[column]
        splits = list(next(iter(counts.values()), {}))
        rows = [(name, *by.values(), sum(by.values())) for name, by in sorted(counts.items())]
        total = tuple(sum(part) for part in zip(*(row[1:] for row in rows), strict=True))
        values = [
            Value(f"samples_by_{column}", count, of, name)
            for name, *numbers in (*rows, ("total", *total))
            for of, count in zip((*splits, "total"), numbers, strict=True)
        ]
        title = f"Samples by {column.replace('_', ' ')}"
        columns = (column.replace("_", " "), *splits, "total")
        shown = tuple((name, *(f"{n:,}" for n in numbers)) for name, *numbers in (*rows, ("total", *total)))
        numeric = frozenset(range(1, len(columns)))
        tables.append(Table(column, title, "From the index.", columns, shown, numeric, values=tuple(values), totals=1))
    return tables


def _training_sections(found: Collection) -> list[Section]:
    """What was trained on what; the settings of each run fold out."""
    if not found.training:
        return []
    from medisyn.evaluation.page import Table

    rows = []
    settings: list[Table] = []
    for entry in found.training:
        run = entry.run
        energy, memory = run.get("energy") or {}, run.get("memory") or {}
        rows.append(
            (entry.name, entry.corpus or UNKNOWN, run.get("steps_done", UNKNOWN), run.get("seed", UNKNOWN),
             run.get("device", UNKNOWN), run.get("processes", UNKNOWN), memory.get("peak_mib", UNKNOWN),
             f"{energy['kwh']:.4g}" if "kwh" in energy else UNKNOWN)
        )  # fmt: skip
        number = len(settings) + 1
        values = tuple(flat(run.get("config") or {}))
        text = "Every value of the run's configuration, as `medisyn train --set` takes it."
        settings.append(Table(f"settings-{number}", f"Settings of {entry.name}", text, ("setting", "value"), values))
    columns = ("run", "corpus", "steps", "seed", "device", "processes", "peak MiB", "kWh")
    text = "Each run with the fingerprint of its corpus. Steps are optimiser steps done."
    table = Table("training", "Training runs", text, columns, tuple(rows), frozenset({2, 3, 5, 6, 7}))
    return [Section("Training", tables=[table], folded=settings)]


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted keys."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        rows += flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, f"{value}")]
    return rows


def _generated_sections(found: Collection) -> list[Section]:
    if not found.generated:
        return []
    from medisyn.evaluation.page import Table

    rows = []
    for entry in found.generated:
        model, settings = entry.run.get("model") or {}, entry.run.get("settings") or {}
        timing = entry.run.get("timing") or {}
        rows.append(
            (entry.name, model.get("id", UNKNOWN), str(model.get("digest", UNKNOWN))[:12], model.get("solver", ""),
             entry.run.get("requests", UNKNOWN), settings.get("seed", UNKNOWN), timing.get("seconds", ""))
        )  # fmt: skip
    columns = ("set", "model", "digest", "solver", "requests", "seed", "seconds")
    text = "The sets of images, and the weights that made them."
    table = Table("generated", "Sets", text, columns, tuple(rows), frozenset({4, 5, 6}))
    return [Section("Generated sets", tables=[table])]


def _result_section(result: Result, out: Path) -> Section:
    report = result.folder / "report.html"
    near = report.exists() and report.is_relative_to(out.parent.resolve())
    return Section(
        f"{result.page.title} ({result.name})",
        facts=(("Made by", f"medisyn {result.kind}" if result.kind else UNKNOWN), *result.page.facts),
        tables=result.page.tables,
        warnings=result.page.warnings,
        methods=result.page.methods,
        link=quote(os.path.relpath(report, out.parent.resolve())) if near else "",
        files=f"{result.name}/",
    )
