"""The report of `medisyn utility`: arms, differences, classes, ROC curves, and a methods text with every choice.

Shapes here: N test images, K classes.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn.recipes.utility_designs import AUGMENTATIONS

if TYPE_CHECKING:
    from medisyn.evaluation.report import Table
    from medisyn.recipes.utility import FoldArm, UtilityResult

# Okabe and Ito's colours that stay apart for all kinds of colour vision; dashes keep them apart in black and white.
STYLES = (
    ("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"), ("#1a1a1a", (0, (5, 1, 1, 1, 1, 1))),
    ("#E69F00", (0, (8, 3))),
)  # fmt: skip
_NEGATIVES = {False: "were left out", True: "are negatives of all"}
GRID = np.linspace(0, 1, 501)  # false positive rates at which ROC curves of several seeds are averaged


def write_page(out: Path, result: UtilityResult) -> None:
    """Write report.html, result.json and the CSV tables."""
    from medisyn.evaluation import report

    tables = _auroc_tables(result) if result.auroc is not None else _fold_tables(result)
    page = report.Page(
        title="What synthetic images are worth to a classifier",
        facts=_facts(result),
        tables=(*tables, _counts_table(result), *_left_out_table(result)),
        methods=tuple(_methods(result)),
        warnings=result.warnings,
    )
    report.write_report(out, page, result.as_dict())


def summary_lines(result: UtilityResult) -> list[str]:
    """Arms and differences as plain lines, for a terminal."""
    from medisyn.evaluation.report import between, number

    trial, level = result.trial, f"{result.trial.settings.level:.0%}"
    lines = [f"Sizes: {trial.plan.scaling}"]
    if result.auroc is not None:
        for name, arm in result.auroc.arms.items():
            lines.append(f"macro-AUROC, {name}: {number(arm.value)} ({level}: {between(arm.interval)})")
        for name, gap in result.auroc.differences.items():
            lines.append(
                f"{trial.plan.reference} minus {name}: {number(gap.value)} ({level}: {between(gap.interval)}); "
                f"negative favours {name}"
            )
    for name, found in (result.folds or {}).items():
        accuracy, f1 = _fold_means(found.overall)
        lines.append(f"{name}: accuracy {accuracy}, F1 {f1}")
    return lines


def _facts(result: UtilityResult) -> tuple[tuple[str, str], ...]:
    trial = result.trial
    patients = len({case.image.patient for case in trial.parts.test})
    return (
        ("Design", trial.settings.design),
        ("Task", f"{trial.settings.task}, {len(trial.task.classes)} classes: {', '.join(trial.task.classes)}"),
        ("Real data", f"{trial.cases.fingerprint}"),
        ("Test images", f"{len(trial.parts.test)} of {patients} patients"),
        ("Synthetic images", f"{len(trial.synthetic)} of these classes"),
        ("Arms", "; ".join(arm.name for arm in trial.plan.arms)),
        ("Sizes", trial.plan.scaling),
        ("Seeds of training", f"{trial.settings.seeds}"),
        ("Leakage", trial.leakage.text),
    )


def _auroc_tables(result: UtilityResult) -> list[Table]:
    from medisyn.evaluation.report import Table, between, number
    from medisyn.evaluation.utility import paired_interval, spread

    found, trial = result.auroc, result.trial
    assert found is not None
    level = f"{trial.settings.level:.0%}"
    rows, gaps = [], []
    for name, arm in found.arms.items():
        cells = [cell for cell in result.cells if cell["arm"] == name]
        rows.append(
            (
                name,
                number(arm.value),
                between(arm.interval),
                _sd(spread(arm.per_run).sd),
                cells[0]["real"],
                cells[0]["synthetic"] + cells[0]["pretrain"],
                " then ".join(map(str, cells[0]["steps"])),
                ", ".join(str(cell["best_step"][-1]) for cell in cells),
            )
        )
    base = found.arms[found.reference].per_run
    for name, gap in found.differences.items():
        over_seeds = paired_interval(base, found.arms[name].per_run, trial.settings.level)
        gaps.append(
            (
                name,
                number(gap.value),
                between(gap.interval),
                between(over_seeds) if over_seeds else "fewer than 3 seeds",
            )
        )
    drawn = (
        f"{found.resamples} resamples of {found.clusters} patients or images; {found.redrawn} more lacked a class and "
        f"were drawn again"
    )
    arms = Table(
        name="arms",
        title="Macro-AUROC on real test images",
        text=f"Mean over seeds; intervals are of the test set ({drawn}), the SD is over seeds. n = {found.n}.",
        columns=("arm", "macro-AUROC", f"{level} interval", "SD", "real", "synthetic", "batches", "best at batch"),
        rows=tuple(rows),
        numeric=frozenset({1, 2, 3, 4, 5, 6, 7}),
        plot=roc_plot(result),
        plot_text="ROC curves of all arms, one panel per class",
    )
    differences = Table(
        name="differences",
        title=f"Differences from {found.reference}",
        text=(
            f"{found.reference} minus the other arm, on the same resamples: negative favours the other arm, and an "
            f"interval across 0 leaves open which is better. It does not show that they are equal."
        ),
        columns=("arm", "difference", f"{level} interval, test set", f"{level} interval, seeds"),
        rows=tuple(gaps),
        numeric=frozenset({1, 2, 3}),
    )
    classes = Table(
        name="classes",
        title="AUROC of each class",
        text="One class against the rest, mean over seeds.",
        columns=("class", "test images", *found.arms),
        rows=tuple(
            (label, int(count), *(number(arm.per_class[k]) for arm in found.arms.values()))
            for k, (label, count) in enumerate(
                zip(trial.task.classes, trial.task.targets(trial.parts.test).sum(axis=0), strict=True)
            )
        ),
        numeric=frozenset(range(1, 2 + len(found.arms))),
    )
    return [arms, differences, classes]


def roc_plot(result: UtilityResult) -> str:
    """ROC curves, one panel per class, as PNG in base64; of several seeds the mean hit rate at each false positive
    rate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trial = result.trial
    targets, classes = trial.task.targets(trial.parts.test), trial.task.classes
    without_type = [label.rpartition("/")[2] for label in classes]
    shown = without_type if len(set(without_type)) == len(classes) else classes
    columns = min(4, len(classes))
    rows = -(-len(classes) // columns)
    figure = Figure(figsize=(2.6 * columns + 0.4, 2.6 * rows + 0.9), dpi=120, layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).ravel()
    for k, axes in enumerate(panels[: len(classes)]):
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
        for arm, (colour, dash) in zip(trial.plan.arms, STYLES * 3, strict=False):
            curve = _mean_curve(result, arm.name, k, targets[:, k])
            axes.plot(GRID, curve, color=colour, linestyle=dash, linewidth=1.6, label=arm.name)
        axes.set_title(shown[k] if len(shown[k]) < 34 else f"...{shown[k][-31:]}", fontsize=8)
        axes.tick_params(labelbottom=k + columns >= len(classes))
        axes.set(xlim=(0, 1), ylim=(0, 1.01))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(classes) :]:
        axes.set_visible(False)
    figure.supxlabel("false positive rate", fontsize=9)
    figure.supylabel("true positive rate", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(labels)), frameon=False, fontsize=8)
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return base64.b64encode(stream.getvalue()).decode()


def _mean_curve(result: UtilityResult, arm: str, k: int, positive_N: np.ndarray) -> np.ndarray:
    from medisyn.evaluation.auroc import roc_curve

    curves = []
    for cell in result.cells:
        if cell["arm"] == arm:
            found = roc_curve(np.array(cell["chances"])[:, k], positive_N)
            # the highest hit rate at each false positive rate: the curve goes straight up there
            last = np.searchsorted(found.false_positive, GRID, side="right") - 1
            between = np.interp(GRID, found.false_positive, found.true_positive)
            exact = found.false_positive[last] == GRID
            curves.append(np.where(exact, found.true_positive[last], between))
    return np.mean(curves, axis=0)


def _fold_tables(result: UtilityResult) -> list[Table]:
    from medisyn.evaluation.report import Table, between, number

    assert result.folds is not None
    trial = result.trial
    rows: list[tuple[Any, ...]] = []
    for name, arm in result.folds.items():
        for label, scores in (("all", arm.overall), *arm.per_label.items()):
            undefined = sum(score.f1 is None for score in scores)
            rows.append((name, label, *_fold_means(scores), len(scores), undefined))
    gaps = tuple(
        (name, number(_accuracy_gap(result, name)), between(interval))
        for name, interval in result.fold_difference.items()
    )
    level = f"{trial.settings.level:.0%}"
    return [
        Table(
            name="folds",
            title="Accuracy and F1 in cross-validation",
            text=(
                f"Mean and SD over {trial.settings.folds} folds by patient and {trial.settings.seeds} seeds. Synthetic "
                f"images were added to training folds only. F1 is that of the finding, in the rows 'all' the mean over "
                f"classes; folds without the class, where none was named, have no F1 and are counted."
            ),
            columns=("arm", "class", "accuracy", "F1", "folds x seeds", "without F1"),
            rows=tuple(rows),
            numeric=frozenset({2, 3, 4, 5}),
        ),
        Table(
            name="differences",
            title=f"Differences from {trial.plan.reference}",
            text=(
                f"Accuracy of {trial.plan.reference} minus that of the other arm over all held-out folds, with the "
                f"bootstrap interval by patient: negative favours the other arm. The networks are kept as they are, so "
                f"the interval does not hold the luck of training."
            ),
            columns=("arm", "difference", f"{level} interval"),
            rows=gaps,
            numeric=frozenset({1, 2}),
        ),
    ]


def _accuracy_gap(result: UtilityResult, name: str) -> float:
    assert result.folds is not None
    reference: FoldArm = result.folds[result.trial.plan.reference]
    return float((reference.correct_N - result.folds[name].correct_N).mean())


def _fold_means(scores: Any) -> tuple[str, str]:
    """Accuracy and F1 as mean and SD, over the folds that have them."""
    from medisyn.evaluation.report import number
    from medisyn.evaluation.utility import spread

    accuracy = spread([score.accuracy for score in scores])
    defined = [score.f1 for score in scores if score.f1 is not None]
    if not defined:
        return f"{accuracy.mean:.1%} ± {accuracy.sd:.1%}", "not defined"
    f1 = spread(defined)
    return f"{accuracy.mean:.1%} ± {accuracy.sd:.1%}", f"{number(f1.mean)} ± {_sd(f1.sd)}"


def _sd(value: float) -> str:
    return "one run" if np.isnan(value) else f"{value:.3f}"


def _counts_table(result: UtilityResult) -> Table:
    """Training images of each class in each arm."""
    from medisyn.evaluation.report import Table

    first = {cell["arm"]: cell["counts"] for cell in reversed(result.cells)}
    classes = result.trial.task.classes
    arms = [arm.name for arm in result.trial.plan.arms]
    folds = ", of the first fold" if result.folds is not None else ""
    return Table(
        name="counts",
        title="What the arms were trained on",
        text=f"Training images of each class{folds}; pre-training images are not counted.",
        columns=("class", *arms),
        rows=tuple((label, *(first[arm][label] for arm in arms)) for label in classes),
        numeric=frozenset(range(1, 1 + len(arms))),
    )


def _left_out_table(result: UtilityResult) -> list[Table]:
    from medisyn.evaluation.report import Table

    rows = result.trial.task.left_out
    text = "Classes of the real data that took no part, and why."
    return [Table("left_out", "Classes left out", text, ("class", "reason"), rows)] if rows else []


def _methods(result: UtilityResult) -> list[str]:
    """Every choice that the numbers depend on, in words that a paper can take over."""
    trial, settings = result.trial, result.trial.settings
    dims = "3D, dilated as MedicalNet's" if trial.cases.volumes else "2D"
    first = "random weights" if any("random weights" in note for note in result.warnings) else "published weights"
    length = f"{settings.steps} batches" if settings.steps else f"{settings.epochs:g} epochs of each arm's own images"
    chosen = (
        "and the last state was kept"
        if settings.folds or not trial.parts.validation
        else f"and of {settings.evaluations} states, evenly spread, the one with the highest macro-AUROC of the "
        f"{len(trial.parts.validation)} validation images was kept"
    )
    augmentation = (
        "no augmentation"
        if AUGMENTATIONS[settings.augment] is None
        else f"augmentation {AUGMENTATIONS[settings.augment]}"
    )
    text = [
        f"Training images. Every arm drew its images in the {settings.class_mix} class mix (seed {settings.seed}); "
        f"each smaller draw of real or of synthetic images is part of the larger. {trial.plan.scaling[0].upper()}"
        f"{trial.plan.scaling[1:]}. {trial.leakage.text}",
        f"Classifiers. ResNet-{settings.network} ({dims}, width {settings.width}, {first}, the same for all arms of a "
        f"seed) on images brought to {settings.size} per side, {settings.optimizer} at a constant learning rate of "
        f"{settings.learning_rate:g}, batches of {settings.batch_size}, {length}, {augmentation}, computed in "
        f"{settings.precision}, {chosen}. "
        + ("One sigmoid per class." if trial.task.multi_label else "One softmax over the classes.")
        + (f" Images with none of the labels {_NEGATIVES[settings.negatives]}." if trial.task.multi_label else ""),
    ]
    if result.auroc is not None:
        text.append(
            f"Statistics. AUROC of each class against the rest, ties counting one half, and their plain mean. "
            f"{result.auroc.resamples} bootstrap resamples of the test set, of whole patients where a patient has "
            f"several images, the same for all arms; percentile intervals. Resamples that lacked a class were drawn "
            f"again ({result.auroc.redrawn}), so the intervals are given that all classes are present. The interval "
            f"over seeds is Student's, of the paired differences."
        )
    else:
        text.append(
            f"Statistics. {settings.folds}-fold cross-validation by patient on real images that no generator was "
            f"trained on as far as is known; synthetic images in training folds only; SD over folds and seeds with "
            f"n - 1. Folds share training images, so the SD understates how far another data set would differ."
        )
    return text
