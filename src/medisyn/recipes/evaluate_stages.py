"""How much of a corpus's images survives a model's autoencoder: MediSyn v1's check of its stages, on your own data.

Shapes here: B batch, H, W pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError, ModelError
from medisyn.recipes.corpus_images import LabelledImage, corpus_images
from medisyn.seeding import seed_for

if TYPE_CHECKING:
    from medisyn.evaluation.report import Table
    from medisyn.evaluation.stages import Rebuild, Spread, StageCheck

COUNT = 1000  # images, as in MediSyn v1 appendix A.1
# MediSyn v1, table 3: n, mean, median, SD and range of the SSIM, on its own training images (50 videos for the last)
PUBLISHED: tuple[tuple[str, str, float, float, float, float], ...] = (
    ("Stage A (MediSyn v1)", "1000", 0.9842, 0.9899, 0.0242, 0.4545),
    ("Stage B (MediSyn v1)", "1000", 0.8328, 0.8649, 0.1291, 0.9071),
    ("video VAE (MediSyn v1)", "50 videos", 0.9182, 0.9502, 0.0979, 0.3547),
)


@dataclass(frozen=True)
class StageEvaluation:
    """What `evaluate_stages` found; `page` is the report it wrote."""

    check: StageCheck
    split: str
    page: Path

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        content = asdict(self.check)
        for name in ("ssim", "psnr_db"):
            content[name]["range"] = content[name]["high"] - content[name]["low"]
        return {"stage": content, "split": self.split}

    def summary(self) -> str:
        """A few lines for a terminal."""
        check = self.check
        lines = [
            f"{check.name}, {check.n} images: {check.verdict} (mean SSIM {check.ssim.mean:.4f}, limit "
            f"{check.keep_from:g})",
            f"SSIM  mean {_spread_text(check.ssim, 4)}",
            f"PSNR  mean {_spread_text(check.psnr_db, 1)}, dB",
        ]
        return "\n".join([*lines, f"Report: {self.page}"])


def _spread_text(spread: Spread, digits: int) -> str:
    return (
        f"{spread.mean:.{digits}f} ({spread.interval.low:.{digits}f} to {spread.interval.high:.{digits}f}), median "
        f"{spread.median:.{digits}f}, SD {spread.sd:.{digits}f}, range {spread.range:.{digits}f} "
        f"({spread.low:.{digits}f} to {spread.high:.{digits}f})"
    )


def evaluate_stages(
    model: str,
    against: Path | str,
    *,
    split: str = "test",
    count: int = COUNT,
    resamples: int = 200,
    seed: int = 0,
    out: Path | None = None,
) -> StageEvaluation:
    """Rebuild images of one split of a corpus through the autoencoder of `model` and compare them with the originals.

    model: a shipped model, a model folder, a hub id, or the folder of an autoencoder alone (diffusers AutoencoderKL).
    count: images, drawn at random; all when there are fewer. out: None is `<model>-stages` in the current folder.
    """
    from tqdm import tqdm

    from medisyn.corpus.loader import Corpus
    from medisyn.evaluation.stages import check_stage

    if count < 2:
        raise InputError(f"a stage check needs at least 2 images, got a count of {count}")
    images = corpus_images(Corpus(against), split)
    order = np.random.default_rng(seed_for(seed, "stages")).permutation(len(images))[:count]
    images = [images[number] for number in sorted(order)]
    name, rebuild = open_autoencoder(model)
    patients = [image.patient for image in images]
    with tqdm(total=len(images), desc="rebuilding", unit="image", disable=None) as bar:
        check = check_stage(
            name,
            rebuild,
            [image.read for image in images],
            patients=patients if len(set(patients)) < len(patients) else None,
            resamples=resamples,
            seed=seed,
            on_batch=bar.update,
        )
    out = Path(f"{Path(model).name}-stages") if out is None else out
    found = StageEvaluation(check, split, out / "report.html")
    _write(out, found, images, rebuild, Corpus(against).fingerprint, {"count": count, "seed": seed, "split": split})
    return found


def open_autoencoder(model: str) -> tuple[str, Rebuild]:
    """The name of a model's autoencoder, and what sends images through it (posterior mean, float32, no sampling)."""
    from diffusers import AutoencoderKL

    from medisyn.families.autoencoder.model import Autoencoder, AutoencoderConfig
    from medisyn.recipes.models import find_model
    from medisyn.types import Picture

    folder = Path(model)
    if (folder / "config.json").is_file():
        name = folder.resolve().name
    else:
        place = find_model(model)
        name, folder = f"autoencoder of {place.id}", place.folder / "vae"
    if not (folder / "config.json").is_file():
        raise ModelError(f"{Path(model).name} holds no autoencoder: neither its own config.json nor vae/config.json")
    try:
        vae = AutoencoderKL.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the autoencoder cannot be opened ({str(error).splitlines()[0][:200]})") from None
    family = Autoencoder(AutoencoderConfig(), vae.float().eval())

    def rebuild(batch: list[np.ndarray]) -> list[np.ndarray]:
        return [_rebuilt(family, image) for image in batch]

    def _rebuilt(family: Any, image_HWC: np.ndarray) -> np.ndarray:
        """Sides that the autoencoder cannot halve are continued by their edge, and cut again."""
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        height, width = image_HWC.shape[:2]
        padded = np.pad(image_HWC, ((0, -height % factor), (0, -width % factor), (0, 0)), mode="edge")
        picture = family.rebuild([Picture(padded.transpose(2, 0, 1))])[0]
        return np.ascontiguousarray(picture.array_CHW.transpose(1, 2, 0)[:height, :width])

    return name, rebuild


def _write(
    out: Path,
    found: StageEvaluation,
    images: Sequence[LabelledImage],
    rebuild: Rebuild,
    fingerprint: str,
    asked: dict[str, Any],
) -> None:
    from medisyn.evaluation import report

    check = found.check
    order = np.argsort(check.ssim_N)
    shown = [int(order[0]), int(order[len(order) // 4]), int(order[len(order) // 2]), int(order[-1])]
    page = report.Page(
        title="What the autoencoder keeps of the images",
        facts=(
            ("Stage", check.name),
            ("Images", f"{check.n} of split {found.split!r} of corpus {fingerprint}"),
            ("Verdict", f"{check.verdict}: mean SSIM {check.ssim.mean:.4f}, limit {check.keep_from:g}"),
        ),
        tables=(_table(check), _examples(check, images, rebuild, shown)),
        methods=(
            "Each image went through the encoder (posterior mean) and the decoder and was compared with itself. SSIM "
            "(Wang et al., 2004) with an 11 x 11 Gaussian window of SD 1.5, K 0.01 and 0.03, data range 255, per "
            "channel and averaged, over the positions where the window fits; float64. The SD divides by n - 1; the "
            "range is the highest less the lowest value. PSNR is capped at 58.9 dB, the error of rounding to 8 bits. "
            "Intervals are 95 % bootstrap intervals of the mean, by patient where one has several images.",
            f"Verdict. MediSyn v1 left a stage as it was at a mean SSIM of 0.8328 and above, and states no limit. Here "
            f"the verdict is keep when the whole interval of the mean lies at or above {check.keep_from:g}, fine-tune "
            f"when it lies below, undecided otherwise. SSIM says little of small findings: look at the worst images.",
        ),
    )
    report.write_report(out, page, found.as_dict())
    runs.write_run(out, kind="evaluate stages", corpus=fingerprint, settings=asked)


def _table(check: StageCheck) -> Table:
    """Our stage above those of MediSyn v1."""
    from medisyn.evaluation.report import Table, Value

    ours = check.ssim
    rows = [
        (
            check.name,
            str(check.n),
            f"{ours.mean:.4f}",
            f"{ours.interval.low:.4f} to {ours.interval.high:.4f}",
            f"{ours.median:.4f}",
            f"{ours.sd:.4f}",
            f"{ours.range:.4f}",
            f"{check.psnr_db.mean:.1f}",
            check.verdict,
        )
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
        values=(
            Value("ssim", ours.mean, check.name, low=ours.interval.low, high=ours.interval.high, level=0.95, n=check.n),
            Value("ssim_median", ours.median, check.name, n=check.n),
            Value("ssim_sd", ours.sd, check.name, n=check.n),
            Value("ssim_range", ours.range, check.name, n=check.n),
            Value("psnr_db", check.psnr_db.mean, check.name, n=check.n),
        ),
    )


def _examples(check: StageCheck, images: Sequence[LabelledImage], rebuild: Rebuild, shown: Sequence[int]) -> Table:
    """The worst, the lower quartile, the median and the best image with their reconstructions, in one plot."""
    from medisyn.evaluation.report import Table

    titles = ("lowest", "lower quartile", "median", "highest")
    return Table(
        name="examples",
        title="From the lowest to the highest",
        text="Top row the originals, bottom row what came back.",
        columns=("image", "key", "SSIM"),
        rows=tuple((title, images[i].key, f"{check.ssim_N[i]:.4f}") for title, i in zip(titles, shown, strict=True)),
        numeric=frozenset({2}),
        plot=_pictures([(images[i].read(), rebuild([images[i].read()])[0]) for i in shown], titles),
        plot_text="Original images above their reconstructions: lowest SSIM, lower quartile, median, highest",
    )


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
