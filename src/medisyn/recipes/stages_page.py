"""The report of the stage check: a table beside MediSyn v1's table 3, and the items that came back worst and best."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn import runs

if TYPE_CHECKING:
    from medisyn.evaluation.report import Table
    from medisyn.evaluation.stages import Rebuild, StageCheck

CLIP_FRAMES = 32  # consecutive frames of a clip, as in MediSyn v1 section 3.2
BY_FRAME = ", by frame"  # the end of a check's name where clips went through the stage
# MediSyn v1, table 3: n, mean, median, SD and range of the SSIM, on its own training images (50 videos for the last)
PUBLISHED: tuple[tuple[str, str, float, float, float, float], ...] = (
    ("Stage A (MediSyn v1)", "1000", 0.9842, 0.9899, 0.0242, 0.4545),
    ("Stage B (MediSyn v1)", "1000", 0.8328, 0.8649, 0.1291, 0.9071),
    ("video VAE (MediSyn v1)", "50 videos", 0.9182, 0.9502, 0.0979, 0.3547),
)


def kind_of(check: StageCheck) -> str:
    """What a check counts: images or clips."""
    return "clips" if check.name.endswith(BY_FRAME) else "images"


def write_page(
    out: Path,
    result: Any,
    found: Sequence[tuple[StageCheck, Sequence[Any], Rebuild]],
    fingerprint: str,
    asked: dict[str, Any],
) -> None:
    """Write report.html, result.json and the tables; `result` is a StageEvaluation, `found` what each check was of."""
    from medisyn.evaluation import report

    limit = result.checks[0].keep_from
    verdicts = [
        (check.name, f"{check.verdict}: mean SSIM {check.ssim.mean:.4f}, limit {limit:g}") for check in result.checks
    ]
    counts = dict.fromkeys(f"{check.n} {kind_of(check)}" for check in result.checks)
    page = report.Page(
        title="What the stages keep of the images",
        facts=(("Items", f"{' and '.join(counts)} of split {result.split!r} of corpus {fingerprint}"), *verdicts),
        tables=(
            _table(result.checks),
            *(_examples(number, *one) for number, one in enumerate(found, start=1)),
        ),
        methods=(
            "Each item went through the stage and was compared with itself. An autoencoder: encoder (posterior mean) "
            "and decoder. Stage A of Würstchen: encoder and decoder, not quantised, since Stage B's latents are not "
            "either. Stages B and A: image encoder, Stage B from noise with the item's caption, decoder of Stage A. "
            f"Clips: up to {CLIP_FRAMES} consecutive frames, each by itself, without padding; the mean over the frames "
            "is the clip's value. "
            "SSIM (Wang et al., 2004) with an 11 x 11 Gaussian window of SD 1.5, K 0.01 and 0.03, data range 255, per "
            "channel and averaged, over the positions where the window fits; float64. The SD divides by n - 1; the "
            "range is the highest less the lowest value. PSNR is capped at 58.9 dB, the error of rounding to 8 bits. "
            "Intervals are 95 % bootstrap intervals of the mean, by patient where one has several items.",
            f"Verdict. MediSyn v1 left a stage as it was at a mean SSIM of 0.8328 and above, and states no limit. Here "
            f"the verdict is keep when the whole interval of the mean lies at or above {limit:g}, fine-tune when it "
            f"lies below, undecided otherwise. Stage C has no reconstruction to compare: it is judged by the images it "
            f"makes. SSIM says little of small findings: look at the worst images.",
        ),
    )
    report.write_report(out, page, result.as_dict())
    runs.write_run(out, kind="evaluate stages", corpus=fingerprint, settings=asked)


def _table(checks: Sequence[StageCheck]) -> Table:
    """Our stages above those of MediSyn v1."""
    from medisyn.evaluation.report import Table, Value

    rows, values = [], []
    for check in checks:
        ours = check.ssim
        rows.append(
            (
                check.name,
                f"{check.n} {kind_of(check)}",
                f"{ours.mean:.4f}",
                f"{ours.interval.low:.4f} to {ours.interval.high:.4f}",
                f"{ours.median:.4f}",
                f"{ours.sd:.4f}",
                f"{ours.range:.4f}",
                f"{check.psnr_db.mean:.1f}",
                check.verdict,
            )
        )
        values += [
            Value("ssim", ours.mean, check.name, low=ours.interval.low, high=ours.interval.high, level=0.95, n=check.n),
            Value("ssim_median", ours.median, check.name, n=check.n),
            Value("ssim_sd", ours.sd, check.name, n=check.n),
            Value("ssim_range", ours.range, check.name, n=check.n),
            Value("psnr_db", check.psnr_db.mean, check.name, n=check.n),
        ]
    for name, n, *figures in PUBLISHED:
        mean, median, sd, wide = (f"{figure:.4f}" for figure in figures)
        rows.append((name, n, mean, "", median, sd, wide, "", "kept as it was"))
    return Table(
        name="stages",
        title="SSIM of reconstructions",
        text=(
            "1 is a perfect reconstruction. The lower rows are table 3 of MediSyn v1: other stages on other images, "
            "for the scale only."
        ),
        columns=("stage", "n", "mean", "interval", "median", "SD", "range", "PSNR (dB)", "verdict"),
        rows=tuple(rows),
        numeric=frozenset({1, 2, 3, 4, 5, 6, 7}),
        values=tuple(values),
    )


def _examples(number: int, check: StageCheck, items: Sequence[Any], rebuild: Rebuild) -> Table:
    """The worst, the lower quartile, the median and the best item with their reconstructions, in one plot."""
    from medisyn.evaluation.report import Table

    order = np.argsort(check.ssim_N)
    shown = [int(order[0]), int(order[len(order) // 4]), int(order[len(order) // 2]), int(order[-1])]
    titles = ("lowest", "lower quartile", "median", "highest")
    pairs = [(original := items[i].read(), rebuild([original])[0]) for i in shown]
    return Table(
        name="examples" if number == 1 else f"examples-{number}",
        title=f"{check.name}: from the lowest to the highest",
        text="Top row the originals, bottom row what came back; of a clip the middle frame.",
        columns=("item", "key", "SSIM"),
        rows=tuple((title, items[i].key, f"{check.ssim_N[i]:.4f}") for title, i in zip(titles, shown, strict=True)),
        numeric=frozenset({2}),
        plot=_pictures([(_shown(original), _shown(rebuilt)) for original, rebuilt in pairs], titles),
        plot_text="Originals above their reconstructions: lowest SSIM, lower quartile, median, highest",
    )


def _shown(item: np.ndarray) -> np.ndarray:
    """An image, or the middle frame of a clip."""
    return item[len(item) // 2] if item.ndim == 4 else item


def _pictures(pairs: Sequence[tuple[np.ndarray, np.ndarray]], titles: Sequence[str]) -> str:
    """Pairs as two rows of pictures, PNG in base64."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.3), dpi=120, layout="constrained")
    axes = figure.subplots(2, len(pairs), squeeze=False)
    for column, (pair, title) in enumerate(zip(pairs, titles, strict=True)):
        for row, image in enumerate(pair):
            axes[row, column].imshow(image, interpolation="nearest")
            axes[row, column].set_axis_off()
        axes[0, column].set_title(title, fontsize=10)
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return base64.b64encode(stream.getvalue()).decode()
