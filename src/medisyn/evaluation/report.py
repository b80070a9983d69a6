"""Numbers to a report: one self-contained HTML page, the same as JSON, and every table and plot as CSV and PNG.

Shapes here: H, W pixels.
What another program may rely on: `result.json` holds the command's own result and, under "page", all that the page
shows but the images; the numbers of a table stand there with full precision as "values" (`page.Value`). So
`medisyn report` and `medisyn paper` read every command's result alike.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import runs
from medisyn.evaluation.bootstrap import Interval
from medisyn.evaluation.classify import ClassAccuracy
from medisyn.evaluation.evaluate import EvaluationResult, Measure
from medisyn.evaluation.memorisation import CopyStatistics
from medisyn.evaluation.page import Grid, Page, Pair, Table, Value, page_as_dict
from medisyn.evaluation.plots import copies_plot, cumulative, interval_plot

__all__ = ["Grid", "Page", "Pair", "Table", "Value", "between", "copies_plot", "number", "png_base64", "write_report"]

TEMPLATES = Path(__file__).parent / "templates"
NAMES = {
    "frechet": "Fréchet distance (lower is closer)",
    "frechet_extrapolated": "Fréchet distance, extrapolated to infinite n",
    "kid": "Kernel distance, KID (lower is closer)",
    "mmd": "MMD², Gaussian kernel (lower is closer)",
    "cmmd": "CMMD (lower is closer)",
    "precision": "Precision (generated inside real)",
    "recall": "Recall (real inside generated)",
    "density": "Density",
    "coverage": "Coverage",
}
SHARES = ("precision", "recall", "density", "coverage")  # of one scale, so one plot
MAX_PLOT_ROWS = 40  # a plot of more does not fit a printed page


def write_report(folder: Path, page: Page, result: Mapping[str, Any]) -> Path:
    """Write report.html, result.json, one CSV per table and plots/ (PNG and CSV of each); returns the page's path.

    result.json is `result` with one key more, "page".
    """
    assert "page" not in result, "result.json keeps the key 'page' for what the page shows"
    for table in page.tables:
        runs.write_text(folder / f"{table.name}.csv", _csv(table.columns, table.rows))
        if table.plot:
            runs.write_bytes(folder / "plots" / f"{table.name}.png", base64.b64decode(table.plot))
        if table.plot_columns:
            runs.write_text(folder / "plots" / f"{table.name}.csv", _csv(table.plot_columns, table.plot_rows))
    runs.write_json(folder / "result.json", {**result, "page": page_as_dict(page)})
    runs.write_text(folder / "report.html", render(page))
    return folder / "report.html"


def render(page: Page, template: str = "report.html", **more: Any) -> str:
    """The HTML page; it loads nothing from anywhere. `more` are further names for the template."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(page=page, **more)


def _csv(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()


def number(value: float) -> str:
    """Four significant digits, without an exponent where it can be read without."""
    return f"{value:.4g}" if value == 0 or 1e-4 <= abs(value) < 1e6 else f"{value:.2e}"


def between(interval: Interval) -> str:
    return f"{number(interval.low)} to {number(interval.high)}"


def measure_value(measure: Measure, of: str) -> Value:
    """A measure for other programs."""
    return Value(
        measure.name,
        measure.value,
        of,
        low=measure.interval.low,
        high=measure.interval.high,
        level=measure.interval.level,
        n=measure.n_first,
        n_real=measure.n_real,
        extractor=measure.extractor,
        preprocessing=measure.preprocessing,
    )


def measures_table(result: EvaluationResult) -> Table:
    """Generated against held-out real beside other real against the same."""
    both = list(zip(result.measures, result.baseline, strict=True))
    rows = [
        (
            NAMES.get(ours.name, ours.name),
            number(ours.value),
            between(ours.interval),
            number(real.value),
            between(real.interval),
            ours.n_first,
            ours.n_real,
            ours.note,
        )
        for ours, real in both
    ]
    level = f"{result.settings.level:.0%}"
    plotted = [(ours, real) for ours, real in both if ours.name in SHARES]
    return Table(
        name="measures",
        title="Distances to held-out real images",
        text=(
            "Generated images against held-out real images, and for scale real training images against the same, at "
            f"the same n. Extractor {result.measures[0].extractor}, preprocessing {result.measures[0].preprocessing}, "
            f"{result.measures[0].dim} features."
        ),
        columns=("measure", "generated", f"{level} interval", "real", f"{level} interval", "n", "n real", "note"),
        rows=tuple(rows),
        numeric=frozenset({1, 2, 3, 4, 5, 6}),
        plot=interval_plot(
            [ours.name for ours, _ in plotted],
            {
                "generated": [(ours.value, ours.interval) for ours, _ in plotted],
                "real": [(real.value, real.interval) for _, real in plotted],
            },
            f"value and {level} interval",
        ),
        plot_text="; ".join(
            f"{ours.name}: generated {number(ours.value)} ({between(ours.interval)}), "
            f"real {number(real.value)} ({between(real.interval)})"
            for ours, real in plotted
        ),
        plot_columns=("measure", "set", "value", "low", "high"),
        plot_rows=tuple(
            (measure.name, of, measure.value, measure.interval.low, measure.interval.high)
            for pair in plotted
            for measure, of in zip(pair, ("generated", "real"), strict=True)
        ),
        values=tuple(
            measure_value(measure, of) for pair in both for measure, of in zip(pair, ("generated", "real"), strict=True)
        ),
        notes=7,
    )


def groups_table(
    generated: Sequence[ClassAccuracy],
    real: Sequence[ClassAccuracy],
    judge: str,
    of_class: Mapping[str, str],
    n: int,
) -> Table:
    """As `classes_table`, over the groups (`of_class`) that `n` real validation images show the judge to tell apart."""
    table = classes_table(generated, real, judge)
    members: dict[str, list[str]] = {}
    for name, group in of_class.items():
        members.setdefault(group, []).append(name)
    merged = "; ".join(", ".join(names) for names in members.values() if len(names) > 1)
    return replace(
        table,
        name="class_groups",
        title="Does it, where the classes can be told apart?",
        text=(
            f"The same answers of {judge} over the finest groups of classes that it tells apart on {n} real validation "
            "images: the class that is named right least often is merged with what it is most often taken for, until "
            "every group is named right in 90 %. Generated and held-out images have no part in the choice. Inside a "
            f"group nothing here says whether the image shows what was asked for. Merged: {merged}."
        ),
        columns=("group", *table.columns[1:]),
        values=tuple(replace(value, name="class_group_accuracy") for value in table.values),
    )


def classes_table(generated: Sequence[ClassAccuracy], real: Sequence[ClassAccuracy], judge: str) -> Table:
    """The judge's accuracy per prompted class, beside its accuracy on held-out real images."""
    of_real = {row.name: row for row in real}
    rows = []
    for row in generated:
        other = of_real.get(row.name)
        rows.append(
            (
                row.name,
                f"{row.accuracy:.1%}",
                _percent(row.interval),
                row.n,
                f"{other.accuracy:.1%}" if other else "none held out",
                _percent(other.interval) if other else "",
                other.n if other else 0,
                row.mistaken_for,
            )
        )
    return Table(
        name="classes",
        title="Does the image show what was asked for?",
        text=(
            f"How often {judge}, a classifier trained on real training images, names the class of the prompt; beside "
            "it the same for held-out real images, the level to compare with. Wilson intervals, 95 %."
        ),
        columns=("class", "generated", "interval", "n", "held-out real", "interval", "n real", "most mistaken for"),
        rows=tuple(rows),
        numeric=frozenset({1, 2, 3, 4, 5, 6}),
        totals=sum(row.name.startswith("all") for row in generated),
        values=tuple(
            Value(
                "class_accuracy",
                row.accuracy,
                of,
                "" if row.name == "all" else row.name,
                row.interval.low,
                row.interval.high,
                row.interval.level,
                row.n,
                extractor=judge,
            )
            for of, part in (("generated", generated), ("real", real))
            for row in part
        ),
        **_classes_plot(generated, of_real),
    )


def _classes_plot(generated: Sequence[ClassAccuracy], of_real: Mapping[str, ClassAccuracy]) -> dict[str, Any]:
    """The fields of a table that hold its plot; none where there are more classes than a page can show."""
    if len(generated) > MAX_PLOT_ROWS:
        return {}
    pairs = [(row, of_real.get(row.name)) for row in generated]
    worse = [row.name for row, other in pairs if other and row.interval.high < other.interval.low]
    return {
        "plot": interval_plot(
            [f"{row.name} (n\u00a0=\u00a0{row.n})" for row in generated],
            {
                "generated": [(row.accuracy, row.interval) for row, _ in pairs],
                "held-out real": [(other.accuracy, other.interval) if other else None for _, other in pairs],
            },
            "share named right, 95 % interval",
            high=1,
        ),
        "plot_text": (
            "Share of images named right per class, generated and held-out real, with intervals. Classes whose "
            f"generated images lie below the real ones with intervals apart: {', '.join(worse) or 'none'}."
        ),
        "plot_columns": ("class", "set", "share", "low", "high", "n"),
        "plot_rows": tuple(
            (row.name, of, row.accuracy, row.interval.low, row.interval.high, row.n)
            for pair in pairs
            for row, of in zip(pair, ("generated", "held-out real"), strict=True)
            if row is not None
        ),
    }


def _percent(interval: Interval) -> str:
    return f"{interval.low:.1%} to {interval.high:.1%}"


def copies_table(sets: Mapping[str, tuple[CopyStatistics, Sequence[float]]]) -> Table:
    """Distances to the training set, of the generated and of the held-out real images (the null distribution)."""
    rows = [
        (
            name,
            found.n,
            found.at_or_below,
            f"{found.share:.2%}",
            f"{found.share_interval.high:.2%}",
            number(found.minimum),
            number(found.quantile_01),
            number(found.median),
            "too few images" if found.wilcoxon_p is None else f"{found.wilcoxon_p:.2g}",
            "" if found.closer_than_real is None else found.closer_than_real,
        )
        for name, (found, _) in sets.items()
    ]
    threshold = next(iter(sets.values()))[0].threshold
    return Table(
        name="copies",
        title="Is any image a copy of a training image?",
        text=(
            f"Patch distance to the nearest training images; MediSyn v2 calls a pair at or below {threshold:g} a "
            "possible reproduction. Held-out real images are no copies: where they come as close, closeness is no "
            "evidence, so the last column counts the images that are closer than 99 % of them (1 % is chance). Upper "
            "bounds of the share are one-sided, 95 %. The p value (Wilcoxon, median above the threshold) says nothing "
            "about single images; the count and the minimum do. This is no statement about privacy."
        ),
        columns=(
            "set",
            "n",
            "at or below",
            "share",
            "upper bound",
            "minimum",
            "1 % quantile",
            "median",
            "p",
            "closer than 99 % of real",
        ),
        rows=tuple(rows),
        numeric=frozenset(range(1, 10)),
        plot=copies_plot({name: distances for name, (_, distances) in sets.items()}, threshold),
        plot_text=(
            "Share of images by patch distance to the nearest training image. "
            + "; ".join(
                f"{name}: {found.share:.1%} of {found.n} at or below {threshold:g}, median {number(found.median)}"
                for name, (found, _) in sets.items()
            )
        ),
        plot_columns=("set", "distance", "share at or below"),
        plot_rows=tuple(
            (name, *point)
            for name, (_, distances) in sets.items()
            for point in zip(*(part.tolist() for part in cumulative(distances)), strict=True)
        ),
        values=tuple(
            value for name, (found, distances) in sets.items() for value in _copy_values(name, found, distances)
        ),
    )


def _copy_values(name: str, found: CopyStatistics, distances: Sequence[float]) -> list[Value]:
    of = "real" if name == "held-out real" else name
    share = found.share_interval
    return [
        Value("patch_distance_mean", float(np.mean(distances)), of, n=found.n),
        Value("patch_distance_minimum", found.minimum, of, n=found.n),
        Value("patch_distance_at_or_below", found.at_or_below, of, n=found.n),
        Value("patch_distance_share", found.share, of, "", share.low, share.high, share.level, found.n),
    ]


def png_base64(image_HWC: np.ndarray, longest: int = 256) -> str:
    """A thumbnail as PNG in base64; never enlarged."""
    from PIL import Image

    picture = Image.fromarray(image_HWC)
    picture.thumbnail((longest, longest), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


def summary(measures: Sequence[Measure], baseline: Sequence[Measure]) -> str:
    """The measures as plain text lines, for a terminal."""
    width = max(10, *(len(measure.name) for measure in measures))
    lines = [f"{'':<{width}} {'generated':>10}   {'interval':<22} {'real':>10}"]
    for ours, real in zip(measures, baseline, strict=True):
        lines.append(
            f"{ours.name:<{width}} {number(ours.value):>10}   {between(ours.interval):<22} {number(real.value):>10}"
        )
    return "\n".join(lines)
