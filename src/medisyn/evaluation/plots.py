"""Plots of a report, as PNG in base64: readable in print, in grey and by every kind of colour vision.

Lines and dots differ by colour and by dash or shape, so that no plot needs its colours to be read.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medisyn.evaluation.bootstrap import Interval

GENERATED_COLOUR, REAL_COLOUR, INK = "#0072B2", "#D55E00", "#1a1a1a"  # Okabe and Ito: told apart by all
STYLES = ((GENERATED_COLOUR, "-", "o"), (REAL_COLOUR, "--", "s"), (INK, ":", "^"))  # colour, dash, marker
WIDTH = 7.0  # inches
DOTS_PER_INCH = 160
LABEL_WIDTH = 36  # characters, before a row's name goes on in a second line

Point = tuple[float, "Interval"]  # a value and where it lies


def copies_plot(sets: Mapping[str, Sequence[float]], threshold: float) -> str:
    """Cumulative share of images by distance to the training set, one line per set (at most three)."""
    figure, axes = _axes(3.4)
    for (name, distances), (colour, dash, _) in zip(sets.items(), STYLES[: len(sets)], strict=True):
        values, share = cumulative(distances)
        axes.step(
            [0, *values], [0, *share], where="post", color=colour, linestyle=dash, linewidth=2,
            label=f"{name}, n = {len(values):,}",
        )  # fmt: skip
    axes.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (1, 1)), label=f"threshold {threshold:g}")
    axes.set(xlabel="patch distance to the nearest training image", ylabel="share of images at or below", ylim=(0, 1))
    axes.set_xlim(0, None)
    axes.grid(color="#dddddd", linewidth=0.6)
    _legend(axes)
    return _png(figure)


def cumulative(distances: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The distances in order, and the share of images at or below each."""
    values = np.sort(np.asarray(distances, dtype=np.float64))
    return values, np.arange(1, len(values) + 1) / len(values)


def interval_plot(
    names: Sequence[str], series: Mapping[str, Sequence[Point | None]], label: str, *, high: float | None = None
) -> str:
    """Dots with their intervals, one row per name and one dot per series (at most three); None leaves a gap.

    label: of the axis of values, which starts at 0 and ends at `high` where that is given.
    """
    figure, axes = _axes(1.1 + 0.36 * len(names))
    offsets = np.linspace(-0.16, 0.16, len(series)) if len(series) > 1 else [0.0]
    for (name, points), (colour, _, marker), offset in zip(series.items(), STYLES[: len(series)], offsets, strict=True):
        at = [row for row, point in enumerate(points) if point is not None]
        there = [point for point in points if point is not None]
        values = [value for value, _ in there]
        whiskers = [
            [max(value - interval.low, 0.0) for value, interval in there],
            [max(interval.high - value, 0.0) for value, interval in there],
        ]
        axes.errorbar(
            values, np.add(at, offset), xerr=whiskers, fmt=marker, color=colour, markersize=5, elinewidth=1.6,
            capsize=2, label=name, clip_on=False,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [textwrap.fill(name, LABEL_WIDTH) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, high)
    axes.set_xlabel(label)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.tick_params(axis="y", length=0)
    _legend(axes)
    return _png(figure)


def _legend(axes: Axes) -> None:
    """Above the plot, in one row: beside it, it would take the width from the data."""
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, borderaxespad=0.2)


def _axes(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")
    axes: Any = figure.subplots()
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return base64.b64encode(stream.getvalue()).decode()
