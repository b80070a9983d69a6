"""The report of `medisyn evaluate`: tables, pictures and a methods text from what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medisyn import runs
from medisyn.seeding import seed_for

if TYPE_CHECKING:
    from medisyn.evaluation.diversity import DiversityResult
    from medisyn.evaluation.evaluate import EvaluationResult
    from medisyn.evaluation.report import Grid, Pair, Table
    from medisyn.recipes.alignment import Alignment
    from medisyn.recipes.corpus_images import LabelledImage
    from medisyn.recipes.evaluate_images import ImageEvaluation, Images

GRID_IMAGES = 6  # of each side and class
GRID_CLASSES = 30
SHOWN_PAIRS = 24


def write_page(out: Path, found: ImageEvaluation, images: Images) -> None:
    """Write report.html, result.json, the CSV tables and run.json."""
    from medisyn.evaluation import report

    tables = [report.measures_table(found.result)]
    if found.diversity is not None:
        tables.append(diversity_table(found.diversity, "images"))
    if found.generated_classes:
        tables.append(report.classes_table(found.generated_classes, found.real_classes, found.judge))
    if found.groups is not None:
        groups = found.groups
        tables.append(report.groups_table(groups.generated, groups.real, found.judge, groups.of_class, groups.n))
    if found.alignment is not None:
        tables.append(alignment_table(found.alignment))
    with_numbers = {name: part for name, part in found.copies.items() if part.statistics is not None}
    if with_numbers:
        tables.append(
            report.copies_table(
                {
                    name: (part.statistics, [pair.distance for pair in part.pairs])
                    for name, part in with_numbers.items()
                    if part.statistics is not None
                }
            )
        )
    tables.append(_mix_table(images))
    page = report.Page(
        title="Generated images against real images",
        facts=_facts(found, images),
        tables=tuple(tables),
        methods=tuple(_methods(found, images)),
        warnings=found.warnings,
        grids=_grids(images, found.settings.seed),
        pairs=_pairs(found, images),
    )
    report.write_report(out, page, found.as_dict())
    runs.write_run(out, kind="evaluate", corpus=found.corpus, model=found.model, settings=vars(found.settings))


def diversity_table(found: DiversityResult, what: str) -> Table:
    """How alike the pairs of one class are, generated beside real; the last row is all classes together."""
    from medisyn.evaluation.diversity import LEAST_PAIRS
    from medisyn.evaluation.report import Table, Value, between, number

    both = list(zip(found.generated, found.real, strict=True))
    names = [ours.name or "unknown class" for ours in found.generated[:-1]] + ["all"]
    left_out = f" Left out for want of such a pair on a side: {', '.join(found.left_out)}." if found.left_out else ""
    return Table(
        name="diversity",
        title=f"How alike are the {what} of one class?",
        text=(
            f"Mean MS-SSIM ({found.generated[-1].scales} scales) of random pairs of {what} of one class and two "
            f"patients; higher is more alike. Classes with fewer than {LEAST_PAIRS} pairs count among all only. "
            f"Above the real figure, the generator repeats itself; below it, it varies what real {what} have in "
            f"common.{left_out}"
        ),
        columns=("class", "generated", "interval", "real", "interval", "pairs on each side"),
        rows=tuple(
            (
                name,
                number(ours.value),
                between(ours.interval),
                number(real.value),
                between(real.interval),
                ours.num_pairs,
            )
            for name, (ours, real) in zip(names, both, strict=True)
        ),
        numeric=frozenset({1, 2, 3, 4, 5}),
        values=tuple(
            Value(
                "ms_ssim_within_class",
                row.value,
                of,
                "" if name == "all" else name,
                low=row.interval.low,
                high=row.interval.high,
                level=row.interval.level,
                n=row.num_images,
                extractor=f"ms-ssim, {row.scales} scales",
            )
            for name, pair in zip(names, both, strict=True)
            for row, of in zip(pair, ("generated", "real"), strict=True)
        ),
        totals=1,
    )


def alignment_table(found: Alignment) -> Table:
    """R@1 of each class prompt, generated beside real; the last row is all prompts together."""
    from medisyn.evaluation.report import Table, Value, between

    sides = (("generated", found.generated), ("real", found.real))
    rows = [
        (prompt, *(part for _, side in sides for part in _hits(*side.per_prompt[prompt]))) for prompt in found.prompts
    ]
    rows.append(("all", *(part for _, side in sides for part in _hits(side.correct, side.n))))
    left_out = f" {found.left_out} generated images of other classes are left out." if found.left_out else ""
    return Table(
        name="alignment",
        title="Is an image closest to the prompt of its own class?",
        text=(
            f"Retrieval by {found.encoder} among {len(found.prompts)} class prompts (each the most frequent real "
            f"caption of its class): an image counts where its own prompt has the largest cosine, ties do not. Chance "
            f"is {found.real.chance:.1%}. Intervals of all: generated {between(found.generated.interval)}, real "
            f"{between(found.real.interval)} (Wilson; images count as independent). Where real images are not found "
            f"either, the encoder does not know these classes, and the figure says nothing.{left_out}"
        ),
        columns=("prompt", "generated, right", "R@1", "real, right", "R@1"),
        rows=tuple(rows),
        numeric=frozenset({1, 2, 3, 4}),
        values=tuple(
            Value(
                "retrieval_r_at_1",
                side.r_at_1,
                of,
                low=side.interval.low,
                high=side.interval.high,
                level=side.interval.level,
                n=side.n,
                extractor=found.encoder,
            )
            for of, side in sides
        ),
        totals=1,
    )


def _hits(correct: int, n: int) -> tuple[str, str]:
    return f"{correct} of {n}", f"{correct / n:.1%}" if n else "none"


def distances_text(result: EvaluationResult, what: str) -> str:
    """How the distances were computed, in words that a paper can take over."""
    settings, first = result.settings, result.measures[0]
    alpha = next(measure.kernel_alpha for measure in result.measures if measure.name == "mmd")
    text = (
        f"{first.n_first} generated and {first.n_real} real {what} were drawn with seed {settings.seed} and turned "
        f"into {first.dim} features by {first.extractor} after {first.preprocessing}. The Fréchet distance was "
        f"computed in float64 from the singular values of the covariance factors (covariances with n - 1), so it is "
        f"exact where n is below the number of features; it is biased upwards at small n. KID is the "
        f"unbiased MMD² with the kernel (x·y/d + 1)³; MMD is the unbiased MMD² with exp(-alpha d²), alpha = {alpha:.6g}"
        f"{' as given' if settings.mmd_alpha is not None else ', 1 over the median d² of pairs of real ' + what}. "
        f"Precision, recall, density and coverage use {settings.nearest_k} nearest neighbours. Intervals are "
        f"{settings.level:.0%} bootstrap intervals of {settings.resamples} resamples, of patients where a patient has "
        f"several {what}."
    )
    if any(measure.name == "frechet_extrapolated" for measure in result.measures):
        text += (
            " The extrapolated Fréchet distance is the intercept of a line a + b/n through 15 subset sizes (Chong and "
            "Forsyth, 2020): an estimate beyond the data, not a measurement."
        )
    return text


def _facts(found: ImageEvaluation, images: Images) -> tuple[tuple[str, str], ...]:
    first = found.result.measures[0]
    made = f" made by {found.model['id']} ({found.model['digest'][:16]})" if found.model is not None else ""
    return (
        ("Generated images", f"{len(images.generated)}{made}"),
        ("Real images", f"{len(images.real)}, split {found.settings.split!r} of corpus {found.corpus}"),
        ("Training images", f"{len(images.train)}"),
        ("Extractor", f"{first.extractor}, preprocessing {first.preprocessing}, {first.dim} features"),
        ("Judge", found.judge),
        ("n of the distances", f"{first.n_first} on each side"),
        ("Seed", f"{found.settings.seed}"),
    )


def _mix_table(images: Images) -> Table:
    from medisyn.evaluation.report import Table

    counts = [
        Counter(image.name or "unknown" for image in part) for part in (images.generated, images.real, images.train)
    ]
    names = sorted(set().union(*counts))
    return Table(
        name="counts",
        title="What was compared",
        text="Images per class. A class is the image type and the labels.",
        columns=("class", "generated", "held-out real", "training"),
        rows=tuple((name, *(count[name] for count in counts)) for name in names),
        numeric=frozenset({1, 2, 3}),
    )


def _grids(images: Images, seed: int) -> tuple[Grid, ...]:
    """Random images of each class that was generated, beside as many real ones."""
    from medisyn.evaluation.report import Grid

    grids = []
    most = [name for name, _ in Counter(image.name for image in images.generated).most_common(GRID_CLASSES)]
    for name in sorted(most):
        ours = [image for image in images.generated if image.name == name]
        theirs = [image for image in images.real if image.name == name]
        shown = [_thumbnails(part, seed_for(seed, f"grid/{name}")) for part in (ours, theirs)]
        grids.append(Grid(name or "unknown class", shown[0], shown[1], len(ours), len(theirs)))
    return tuple(grids)


def _thumbnails(part: Sequence[LabelledImage], seed: int) -> tuple[str, ...]:
    from medisyn.evaluation.report import png_base64

    order = np.random.default_rng(seed).permutation(len(part))[:GRID_IMAGES]
    return tuple(png_base64(part[number].read()) for number in order)


def _pairs(found: ImageEvaluation, images: Images) -> tuple[Pair, ...]:
    """The closest pairs of the generated images, closest first; a flipped training image is shown flipped."""
    from medisyn.evaluation.memorisation import flipped
    from medisyn.evaluation.report import Pair, png_base64

    if not found.copies:
        return ()
    shown = []
    for pair in sorted(found.copies["generated"].pairs, key=lambda pair: pair.distance)[:SHOWN_PAIRS]:
        ours, theirs = images.generated[pair.query], images.train[pair.training]
        turned = "" if pair.flip == "none" else f", mirrored ({pair.flip})"
        shown.append(
            Pair(
                left=png_base64(ours.read()),
                right=png_base64(np.ascontiguousarray(flipped(theirs.read(), pair.flip))),
                left_name=ours.key,
                right_name=theirs.key,
                text=f"{pair.distance:.3f} (cosine {pair.similarity:.3f}): {ours.key} and {theirs.key}{turned}",
            )
        )
    return tuple(shown)


def _methods(found: ImageEvaluation, images: Images) -> list[str]:
    """Every choice that the numbers depend on, in words that a paper can take over."""
    settings = found.settings
    text = [
        f"Distances. {distances_text(found.result, 'images')} The sets held {len(images.generated)} generated and "
        f"{len(images.real)} real images (split {settings.split!r}). The column real holds the same measures of as "
        f"many training images against the same held-out images."
    ]
    if found.diversity is not None:
        text.append(
            f"Likeness within a class. MS-SSIM (Wang et al., 2003; {found.diversity.generated[-1].scales} scales, "
            f"window 11, SD 1.5, data range 255, per channel) of random pairs of images of two patients, at most "
            f"{settings.diversity_pairs} per class and equally many on both sides; five scales need sides above 160 "
            f"pixels, fewer are used for smaller images with their weights divided by their sum."
        )
    if found.generated_classes:
        steps = f", trained for {settings.judge_steps} steps on the training split" if settings.judge == "train" else ""
        text.append(
            f"Class accuracy. The judge {found.judge} is a convolutional network of another make and another seed than "
            f"the feature encoder{steps}; classes with fewer than 8 training images are left out. Intervals are "
            f"Wilson's."
        )
    if found.copies:
        text.append(
            f"Copies. For each image the {settings.neighbours} nearest training images of the same specialty and image "
            f"type were found by cosine similarity of the same features. Each pair was brought to the size of the "
            f"generated images and divided into 4 x 4 patches; the distance of a pair is the largest root mean square "
            f"difference of a patch, divided by 255 (MediSyn v2 section 4.3.4, there with one neighbour and 128 x 128 "
            f"patches at 512 x 512). The training image was compared as it is and mirrored left-right; the smallest "
            f"distance counts. The same was done with held-out real images. Upper bounds are one-sided Clopper-Pearson."
        )
    return text
