"""Numbers to a report: one self-contained HTML page, the same as JSON, and every table as CSV.

Shapes here: H, W pixels.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import runs
from medisyn.evaluation.bootstrap import Interval
from medisyn.evaluation.classify import ClassAccuracy
from medisyn.evaluation.evaluate import EvaluationResult, Measure
from medisyn.evaluation.memorisation import CopyStatistics

TEMPLATES = Path(__file__).parent / "templates"
NAMES = {
    "frechet": "Fréchet distance (lower is closer)",
    "kid": "Kernel distance, KID (lower is closer)",
    "precision": "Precision (generated inside real)",
    "recall": "Recall (real inside generated)",
    "density": "Density",
    "coverage": "Coverage",
}
GENERATED_COLOUR, REAL_COLOUR = "#0072B2", "#D55E00"  # two that all kinds of colour vision tell apart


@dataclass(frozen=True)
class Table:
    """One table of a report. `numeric` are the columns that stand to the right; `plot` is a PNG in base64, or ""."""

    name: str  # file name of the CSV
    title: str
    text: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    numeric: frozenset[int] = frozenset()
    plot: str = ""
    plot_text: str = ""


@dataclass(frozen=True)
class Grid:
    """Images of one class, as PNG in base64."""

    name: str
    generated: tuple[str, ...]
    real: tuple[str, ...]
    num_generated: int
    num_real: int


@dataclass(frozen=True)
class Pair:
    """A generated image (left) and its closest training image (right), as PNG in base64."""

    left: str
    right: str
    left_name: str
    right_name: str
    text: str


@dataclass(frozen=True)
class Page:
    """All that a report shows."""

    title: str
    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
    methods: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()
    pairs: tuple[Pair, ...] = ()


def write_report(folder: Path, page: Page, result: Mapping[str, Any]) -> Path:
    """Write report.html, result.json and one CSV per table; returns the page's path."""
    runs.write_json(folder / "result.json", result)
    for table in page.tables:
        runs.write_text(folder / f"{table.name}.csv", _csv(table))
    runs.write_text(folder / "report.html", render(page))
    return folder / "report.html"


def render(page: Page) -> str:
    """The HTML page; it loads nothing from anywhere."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html").render(vars(page))


def _csv(table: Table) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return stream.getvalue()


def number(value: float) -> str:
    """Four significant digits, without an exponent where it can be read without."""
    return f"{value:.4g}" if value == 0 or 1e-4 <= abs(value) < 1e6 else f"{value:.2e}"


def between(interval: Interval) -> str:
    return f"{number(interval.low)} to {number(interval.high)}"


def measures_table(result: EvaluationResult) -> Table:
    """Generated against held-out real beside other real against the same."""
    rows = [
        (
            NAMES[ours.name],
            number(ours.value),
            between(ours.interval),
            number(real.value),
            between(real.interval),
            ours.n_first,
            ours.n_real,
            ours.note,
        )
        for ours, real in zip(result.measures, result.baseline, strict=True)
    ]
    level = f"{result.settings.level:.0%}"
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
    )


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
        plot_text="Share of images by patch distance to the nearest training image, generated and held-out real",
    )


def copies_plot(sets: Mapping[str, Sequence[float]], threshold: float) -> str:
    """Cumulative share of images by distance, as PNG in base64; lines differ by colour and by dash."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    styles = ((GENERATED_COLOUR, "-"), (REAL_COLOUR, "--"), ("#1a1a1a", ":"))
    for (name, distances), (colour, dash) in zip(sets.items(), styles, strict=False):
        values = np.sort(np.asarray(distances))
        share = np.arange(1, len(values) + 1) / len(values)
        axes.step(
            values, share, where="post", color=colour, linestyle=dash, linewidth=2, label=f"{name}, n = {len(values)}"
        )
    axes.axvline(threshold, color="#1a1a1a", linewidth=1, linestyle=":", label=f"threshold {threshold:g}")
    axes.set(
        xlabel="patch distance to the nearest training image", ylabel="share of images", xlim=(0, None), ylim=(0, 1)
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return base64.b64encode(stream.getvalue()).decode()


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
    lines = [f"{'':<10} {'generated':>10}   {'interval':<22} {'real':>10}"]
    for ours, real in zip(measures, baseline, strict=True):
        lines.append(
            f"{ours.name:<10} {number(ours.value):>10}   {between(ours.interval):<22} {number(real.value):>10}"
        )
    return "\n".join(lines)
