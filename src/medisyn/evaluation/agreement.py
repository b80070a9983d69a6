"""How far readers agree with each other, with themselves and with the truth, and how sure they were.

Shapes here: R readers, N items, K classes. Classes are numbers from 0; -1 where a reader did not see an item.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError
from medisyn.evaluation.bootstrap import Interval, bootstrap, percentile

LEVEL = 0.95


@dataclass(frozen=True)
class Kappa:
    """Agreement beyond chance: 1 is perfect, 0 chance. None where every answer is one class: chance agrees too then.

    observed: the share of pairs of answers that agree. interval: bootstrap over items, None where kappa is None.
    """

    value: float | None
    interval: Interval | None
    observed: float
    items: int


def fleiss_kappa(counts_NK: np.ndarray) -> tuple[float | None, float]:
    """Kappa and observed agreement of answers per item and class (Fleiss, 1971), each item with two answers or more.

    Items may have different numbers of answers: each item counts the same, in the agreement and in the shares of the
    classes. With equal numbers this is Fleiss' formula.
    """
    counts_NK = np.asarray(counts_NK, dtype=np.float64)
    answers_N = counts_NK.sum(axis=1)
    if not len(counts_NK) or (answers_N < 2).any():
        raise InputError("Fleiss' kappa needs items with at least 2 answers each")
    agreeing_N = (counts_NK * (counts_NK - 1)).sum(axis=1) / (answers_N * (answers_N - 1))
    shares_K = (counts_NK / answers_N[:, None]).mean(axis=0)
    observed, chance = float(agreeing_N.mean()), float((shares_K**2).sum())
    return (None if chance >= 1 - 1e-12 else (observed - chance) / (1 - chance)), observed


def reader_kappa(classes_RN: np.ndarray, num_classes: int, *, resamples: int = 2000, seed: int = 0) -> Kappa | None:
    """Fleiss' kappa of the readers over the items that two or more saw; None where there is no such item.

    Resamples in which every answer is one class have no kappa and are left out.
    """
    counts_NK = np.stack([(classes_RN == k).sum(axis=0) for k in range(num_classes)], axis=1)
    counts_NK = counts_NK[counts_NK.sum(axis=1) >= 2]
    return None if not len(counts_NK) else _with_interval(counts_NK, resamples, seed)


def _with_interval(counts_NK: np.ndarray, resamples: int, seed: int) -> Kappa:
    value, observed = fleiss_kappa(counts_NK)
    if value is None:
        return Kappa(None, None, observed, len(counts_NK))

    def again(index: np.ndarray) -> float:
        found, _ = fleiss_kappa(counts_NK[index])
        return np.nan if found is None else found

    drawn_B = bootstrap(again, len(counts_NK), resamples=resamples, seed=seed)
    inside = percentile(drawn_B[np.isfinite(drawn_B)], LEVEL, "bootstrap over items")
    return Kappa(value, inside, observed, len(counts_NK))


def cohen_kappa(first_N: np.ndarray, second_N: np.ndarray) -> tuple[float | None, float]:
    """Kappa and observed agreement of two answers to each item (Cohen, 1960); each side has its own class shares."""
    first_N, second_N = np.asarray(first_N), np.asarray(second_N)
    if first_N.shape != second_N.shape or not first_N.size:
        raise InputError(
            f"Cohen's kappa needs two answers per item, got {first_N.size} first and {second_N.size} second ones"
        )
    names = np.union1d(first_N, second_N)
    chance = float(sum((first_N == name).mean() * (second_N == name).mean() for name in names))
    observed = float((first_N == second_N).mean())
    return (None if chance >= 1 - 1e-12 else (observed - chance) / (1 - chance)), observed


def repeat_kappa(first_N: np.ndarray, second_N: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> Kappa:
    """Cohen's kappa of a reader's first and second answers, over the items shown twice."""
    value, observed = cohen_kappa(first_N, second_N)
    if value is None:
        return Kappa(None, None, observed, len(first_N))

    def again(index: np.ndarray) -> float:
        found, _ = cohen_kappa(first_N[index], second_N[index])
        return np.nan if found is None else found

    drawn_B = bootstrap(again, len(first_N), resamples=resamples, seed=seed)
    return Kappa(
        value, percentile(drawn_B[np.isfinite(drawn_B)], LEVEL, "bootstrap over items"), observed, len(first_N)
    )


def confusion(truth_N: np.ndarray, classes_RN: np.ndarray, num_classes: int) -> np.ndarray:
    """Answers of all readers per true class (rows) and answer (columns), (K, K)."""
    found_KK = np.zeros((num_classes, num_classes), dtype=np.int64)
    for row_N in classes_RN:
        seen = row_N >= 0
        np.add.at(found_KK, (truth_N[seen], row_N[seen]), 1)
    return found_KK


@dataclass(frozen=True)
class Confidence:
    """Of all `n` answers the median and quartiles; `mean` and `sd` (R - 1, None for one reader) of the readers' means.

    The scale of 1 to 5 has an order but no distances, so the median comes first; the means are for comparison with
    published ones. per_reader holds NaN for a reader without any.
    """

    n: int
    median: float
    low_quartile: float
    high_quartile: float
    mean: float
    sd: float | None
    per_reader: tuple[float, ...]


def confidence(confidence_RN: np.ndarray) -> Confidence | None:
    """Of one group of items; None where no answer has a confidence."""
    given = confidence_RN[np.isfinite(confidence_RN)]
    if not len(given):
        return None
    low, median, high = np.quantile(given, [0.25, 0.5, 0.75])
    per_reader = [float(row[np.isfinite(row)].mean()) if np.isfinite(row).any() else np.nan for row in confidence_RN]
    means = [mean for mean in per_reader if np.isfinite(mean)]
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return Confidence(
        len(given), float(median), float(low), float(high), float(np.mean(means)), spread, tuple(per_reader)
    )


def signed_rank(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on pairs; pairs without a difference are dropped, 1 for none left.

    With n pairs it cannot be below 2 / 2^n: 0.25 for three readers.
    """
    from scipy.stats import wilcoxon

    gap = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    gap = np.round(gap[np.isfinite(gap)], 12)  # equal means of different sums are ties
    gap = gap[gap != 0]
    return float(wilcoxon(gap).pvalue) if len(gap) else 1.0
