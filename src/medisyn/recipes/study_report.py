"""`medisyn study report`: the statistics of a finished reader study, from its table of answers.

Classification: accuracy by reader and group, the groups' difference with a statement of equivalence, agreement and
confidence (MediSyn v2, sections 2.1 and 4.3.1). Ranking: mean ranks, Friedman, Kendall's W and pairs (MedSyn, V-F).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError, closest
from medisyn.evaluation.agreement import (
    Confidence,
    Kappa,
    confidence,
    confusion,
    reader_kappa,
    repeat_kappa,
    signed_rank,
)
from medisyn.evaluation.rank_tests import MeanRank, RankTests, by_reader, mean_ranks, rank_tests
from medisyn.evaluation.readers import AccuracyComparison, ReaderPair, compare_accuracy, compare_readers
from medisyn.recipes.study_table import Classification, Ranking, Rankings, read_study

FEW_READERS = 5
FEW_BLOCKS = 10
PSEUDO_REPLICATION = (
    "The analysis of all rankings takes the rankings of one reader as independent, which they are not: its p values "
    "are too small (pseudo-replication). Believe the analysis with one ranking per reader."
)


@dataclass(frozen=True)
class ClassificationStudy:
    """What was found in a classification. `confusion` counts answers of all readers, truth in rows.

    confidence_p: Wilcoxon's signed-rank p of the readers' mean confidence, against the reference group. repeats: of
    each reader who was shown items again.
    """

    readers: tuple[str, ...]
    classes: tuple[str, ...]
    answers: int
    accuracy: AccuracyComparison
    pairs: tuple[ReaderPair, ...]
    kappas: Mapping[str, Kappa | None]
    confusion: Mapping[str, np.ndarray]
    confidence: Mapping[str, Confidence | None]
    confidence_p: Mapping[str, float]
    repeats: Mapping[str, Kappa]


@dataclass(frozen=True)
class RankedGroup:
    """What was found in the rankings of one group; a test is None where it would have fewer than two blocks."""

    systems: tuple[str, ...]
    rankings: int
    readers: int
    blocks: int
    means: tuple[MeanRank, ...]
    by_reader: RankTests | None
    all_rankings: RankTests | None


@dataclass(frozen=True)
class RankingStudy:
    readers: tuple[str, ...]
    groups: Mapping[str, RankedGroup]


@dataclass(frozen=True)
class StudyReport:
    """What `study_report` found and wrote; `notes` say what was left out and what to beware of."""

    layout: str
    study: ClassificationStudy | RankingStudy
    asked: Mapping[str, Any]
    notes: tuple[str, ...]
    page: Path

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "kind": "study report",
            "layout": self.layout,
            "asked": dict(self.asked),
            **_plain(asdict(self.study)),
            "notes": list(self.notes),
        }

    def summary(self) -> str:
        """A few lines for a terminal."""
        study = self.study
        lines = _ranking_lines(study) if isinstance(study, RankingStudy) else _classification_lines(study)
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes), f"Report: {self.page}"])


def study_report(
    answers: Path | str,
    *,
    reference: str | None = None,
    margin: float = 0.1,
    resamples: int = 2000,
    seed: int = 0,
    out: Path | str | None = None,
) -> StudyReport:
    """Analyse a table of answers (see `study_table`) and write report.html, result.json and CSV tables.

    reference  the group that the others are compared with; None: "real" where there is one, else the first by name
    margin     the difference in accuracy held to be of no importance, for the statement of equivalence
    out        folder of the report; None: beside the table, its name with -report

    A ranking uses neither reference nor margin. Raises InputError as `read_study` does, and for an unknown reference.
    """
    answers = Path(answers)
    out = answers.with_name(f"{answers.name.partition('.')[0]}-report") if out is None else Path(out)
    table = read_study(answers)
    study: ClassificationStudy | RankingStudy
    if isinstance(table, Classification):
        chosen = _reference(table, reference)
        study = classification_study(table, reference=chosen, margin=margin, resamples=resamples, seed=seed)
        asked = {"reference": chosen, "margin": margin, "resamples": resamples, "seed": seed}
        notes = _classification_notes(table, study)
    else:
        study = ranking_study(table, resamples=resamples, seed=seed)
        asked = {"resamples": resamples, "seed": seed}
        notes = _ranking_notes(study)
    if table.unused:
        notes.append(f"Columns not used: {', '.join(table.unused)}.")
    layout = "classification" if isinstance(study, ClassificationStudy) else "ranking"
    found = StudyReport(layout, study, asked, tuple(notes), out / "report.html")
    from medisyn.recipes.study_page import write_study_page

    write_study_page(out, found)
    file = answers / "answers.csv" if answers.is_dir() else answers
    runs.write_run(out, kind="study report", answers_sha256=runs.file_sha256(file), settings=asked)
    return found


def _reference(table: Classification, asked: str | None) -> str:
    names = {name.casefold(): name for name in table.groups}
    if asked is None:
        return names.get("real", sorted(table.groups)[0])
    if asked.casefold() not in names:
        raise InputError(
            f"--reference {asked} is no group of this study; its groups are {', '.join(table.groups)}."
            f"{closest(asked, table.groups)}"
        )
    return names[asked.casefold()]


# ---- classification


def classification_study(
    table: Classification, *, reference: str, margin: float = 0.1, resamples: int = 2000, seed: int = 0
) -> ClassificationStudy:
    """Every statistic of a classification; the groups stand with the reference first."""
    groups = sorted(table.groups, key=lambda name: name != reference)
    of = {name: table.group_N == name for name in groups}
    correct_RN, count = table.correct_RN, len(table.classes)
    accuracy = compare_accuracy(
        {name: correct_RN[:, part] for name, part in of.items()},
        reference=reference, margin=margin, resamples=resamples, seed=seed,
    )  # fmt: skip
    sure = {name: confidence(table.confidence_RN[:, part]) for name, part in of.items()}
    base = sure[reference]
    return ClassificationStudy(
        readers=table.readers,
        classes=table.classes,
        answers=int((table.answers_RN >= 0).sum()),
        accuracy=accuracy,
        pairs=tuple(compare_readers(correct_RN)),
        kappas={
            name: reader_kappa(table.answers_RN[:, part], count, resamples=resamples, seed=seed)
            for name, part in of.items()
        },
        confusion={name: confusion(table.truth_N[part], table.answers_RN[:, part], count) for name, part in of.items()},
        confidence=sure,
        confidence_p={
            name: signed_rank(np.array(found.per_reader), np.array(base.per_reader))
            for name, found in sure.items()
            if name != reference and found is not None and base is not None and len(table.readers) > 1
        },
        repeats=_repeats(table, resamples, seed),
    )


def _repeats(table: Classification, resamples: int, seed: int) -> dict[str, Kappa]:
    found = {}
    for name, first_N, again_N in zip(table.readers, table.answers_RN, table.repeats_RN, strict=True):
        twice = again_N >= 0
        if twice.any():
            found[name] = repeat_kappa(first_N[twice], again_N[twice], resamples=resamples, seed=seed)
    return found


def _classification_notes(table: Classification, study: ClassificationStudy) -> list[str]:
    notes = []
    readers, groups = len(study.readers), study.accuracy.groups
    if readers == 1:
        notes.append(
            "One reader: intervals are over items and speak of this reader alone. The spread over readers, agreement "
            "between readers and the test of confidence are left out."
        )
    elif readers < FEW_READERS:
        notes.append(
            f"{readers} readers: a bootstrap of so few understates their spread (its variance is {readers - 1}/"
            f"{readers} of what it should be), so the intervals over readers are too narrow."
        )
    if len(groups) == 1:
        notes.append("One group of items: there is nothing to compare. A column 'source' would name the groups.")
    for name, group in groups.items():
        if group.interval.low == group.interval.high:
            notes.append(
                f"{name}: the answers do not vary, so the bootstrap interval has no width. Read the readers' own "
                "intervals (Wilson)."
            )
    unseen = int((table.answers_RN < 0).sum())
    if unseen:
        notes.append(f"{unseen} of {table.answers_RN.size} pairs of reader and item have no answer and are left out.")
    true = set(table.truth_N.tolist())
    others = {
        name: count
        for k, name in enumerate(table.classes)
        if k not in true and (count := int((table.answers_RN == k).sum()))
    }
    if others:
        told = ", ".join(f"{name} ({count})" for name, count in others.items())
        notes.append(f"Answers that are the truth of no item, counted as wrong: {told}.")
    without = int(((table.answers_RN >= 0) & np.isnan(table.confidence_RN)).sum())
    if any(study.confidence.values()) and without:
        notes.append(f"{without} of {study.answers} answers have no confidence.")
    return notes


def _classification_lines(study: ClassificationStudy) -> list[str]:
    lines = [f"{len(study.readers)} readers, {study.answers} answers, classes {', '.join(study.classes)}"]
    for name, group in study.accuracy.groups.items():
        spread = "" if group.sd is None else f" ± {100 * group.sd:.2f}"
        kappa = study.kappas[name]
        agreement = "" if kappa is None or kappa.value is None else f", Fleiss' kappa {kappa.value:.2f}"
        lines.append(
            f"{name}: accuracy {100 * group.mean:.2f}{spread} % (95 % interval {group.interval.low:.1%} to "
            f"{group.interval.high:.1%}, {group.items} items){agreement}"
        )
    for name, gap in study.accuracy.differences.items():
        lines.append(
            f"{name} minus {study.accuracy.reference}: {100 * gap.value:+.2f} points ({100 * gap.interval.low:+.1f} to "
            f"{100 * gap.interval.high:+.1f}); margin {100 * gap.equivalence.margin:g} points: "
            f"{gap.equivalence.verdict}"
        )
    return lines


# ---- ranking


def ranking_study(table: Ranking, *, resamples: int = 2000, seed: int = 0) -> RankingStudy:
    """Every statistic of a ranking, each group by itself."""
    return RankingStudy(table.readers, {name: _ranked(part, resamples, seed) for name, part in table.groups.items()})


def _ranked(part: Rankings, resamples: int, seed: int) -> RankedGroup:
    readers_RK = by_reader(part.ranks_NK, part.reader_N)
    several = len(part.ranks_NK) > len(readers_RK)
    return RankedGroup(
        systems=part.systems,
        rankings=len(part.ranks_NK),
        readers=len(readers_RK),
        blocks=len(np.unique(part.block_N)),
        means=mean_ranks(part.ranks_NK, part.reader_N, resamples=resamples, seed=seed),
        by_reader=rank_tests(readers_RK) if len(readers_RK) > 1 else None,
        all_rankings=rank_tests(part.ranks_NK) if several and len(part.ranks_NK) > 1 else None,
    )


def _ranking_notes(study: RankingStudy) -> list[str]:
    notes = []
    groups = study.groups.values()
    if any(group.all_rankings is not None for group in groups):
        notes.append(PSEUDO_REPLICATION)
    if len(study.readers) == 1:
        notes.append(
            "One reader: nothing is said about other readers. The analysis with one ranking per reader is left out; "
            "that of all rankings speaks of this reader alone."
        )
    if any(group.rankings == 1 for group in groups):
        notes.append("A single ranking has no test and no interval.")
    if any(group.by_reader is not None and group.by_reader.friedman.n < FEW_BLOCKS for group in groups):
        notes.append(
            f"Below about {FEW_BLOCKS} blocks the p values of Friedman, Dunn and Nemenyi are rough approximations."
        )
    return notes


def _ranking_lines(study: RankingStudy) -> list[str]:
    lines = [f"{len(study.readers)} readers"]
    for name, group in study.groups.items():
        order = sorted(zip(group.systems, group.means, strict=True), key=lambda pair: pair[1].value)
        means = ", ".join(f"{system} {mean.value:.2f}" for system, mean in order)
        lines.append(f"{name}: {group.rankings} rankings by {group.readers} readers; mean ranks {means}")
        for what, tests in (("one ranking per reader", group.by_reader), ("all rankings", group.all_rankings)):
            if tests is not None:
                test = tests.friedman
                lines.append(
                    f"  {what} (n = {test.n}): Kendall's W {test.w:.3f}, chi-squared {test.chi2:.2f}, p = {test.p:.2g}"
                )
    return lines


def _plain(value: Any) -> Any:
    """Mappings, sequences and arrays as JSON knows them; NaN is null."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if isinstance(value, float) and not np.isfinite(value) else value
