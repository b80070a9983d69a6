"""What readers answered: accuracy by reader and group of items, their agreement and their confidence.

Shapes here: R readers, N items of one group, K classes, B resamples.
Arrays over readers and items hold NaN (classes: -1) where a reader did not see an item.
Every reader saw other items of each group (such as real and synthetic images), so groups are compared by intervals of
differences, never by a paired test of items; two readers who saw the same items are compared item by item.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError
from medisyn.evaluation.bootstrap import Interval, percentile, resample, wilson

ALPHA = 0.05  # of every test and, as 1 - ALPHA, of every interval
UNSEEN = -1  # class of an item that a reader did not see


@dataclass(frozen=True)
class Share:
    """One reader's right answers of `n`, with Wilson's interval."""

    correct: int
    n: int
    value: float
    interval: Interval


@dataclass(frozen=True)
class GroupAccuracy:
    """Mean of the readers' accuracies. `sd` divides by R - 1 (MediSyn v2's ±), None for one reader.

    interval: bootstrap over readers and items; over items alone where there is one reader. per_reader holds None for a
    reader who saw nothing of the group.
    """

    mean: float
    sd: float | None
    interval: Interval
    items: int
    per_reader: tuple[Share | None, ...]


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests at ALPHA, read off the 1 - 2 ALPHA interval: inside ±margin, outside, or neither."""

    margin: float
    interval: Interval
    verdict: str


@dataclass(frozen=True)
class Difference:
    """A group's accuracy minus the reference's: mean over the readers who saw both, and of each reader (Newcombe)."""

    value: float
    interval: Interval
    equivalence: Equivalence
    per_reader: tuple[tuple[float, Interval] | None, ...]


@dataclass(frozen=True)
class AccuracyComparison:
    """All groups, and each but the reference taken against the reference on the same resamples."""

    groups: dict[str, GroupAccuracy]
    differences: dict[str, Difference]
    reference: str
    readers: int
    resamples: int


def compare_accuracy(
    correct: Mapping[str, np.ndarray], *, reference: str, margin: float = 0.1, resamples: int = 2000, seed: int = 0
) -> AccuracyComparison:
    """Accuracy of each group and its difference from `reference`; `correct` holds 1, 0 or NaN as (R, N) per group.

    A resample draws readers, the same for all groups, and items of each group, so the intervals speak of other readers
    and other items. With R readers their variance comes out (R - 1) / R of what it is: few readers, narrow intervals.
    margin: the difference that is held to be of no importance, in units of accuracy. Raises InputError for groups of
    different readers, values other than 0 and 1, an unknown reference, a margin outside (0, 1), or no resamples.
    """
    if reference not in correct:
        raise InputError(f"the reference group {reference!r} is not among the groups: {', '.join(correct)}")
    if not 0 < margin < 1 or resamples < 1:
        raise InputError(
            f"the margin must lie between 0 and 1 (0.1 is ten percentage points) and resamples must be at least 1, "
            f"got {margin:g} and {resamples}"
        )
    arrays = {name: _checked(part) for name, part in correct.items()}
    if len({len(part) for part in arrays.values()}) != 1:
        raise InputError("every group needs one row per reader; NaN where a reader saw none of its items")
    num_readers = len(arrays[reference])
    rng = np.random.default_rng(seed)
    drawn_RB = _reader_draws(num_readers, resamples, rng)
    again = {name: _resampled(part, resamples, rng) for name, part in arrays.items()}
    groups = {name: _group(part, again[name], drawn_RB) for name, part in arrays.items()}
    differences = {
        name: _difference(groups[name], groups[reference], again[name] - again[reference], drawn_RB, margin)
        for name in groups
        if name != reference
    }
    return AccuracyComparison(groups, differences, reference, num_readers, resamples)


def _checked(correct_RN: np.ndarray) -> np.ndarray:
    found = np.asarray(correct_RN, dtype=np.float64)
    if found.ndim != 2 or not np.isin(found[np.isfinite(found)], (0, 1)).all() or not np.isfinite(found).any():
        raise InputError(f"accuracy needs right (1) and wrong (0) answers as readers by items, got shape {found.shape}")
    return found


def _reader_draws(num_readers: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each reader was drawn, (R, B)."""
    return np.stack([np.bincount(resample(num_readers, rng), minlength=num_readers) for _ in range(resamples)], axis=1)


def _resampled(correct_RN: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Each reader's accuracy on each resample of the items, (R, B); NaN where the reader saw none of those drawn."""
    num_items = correct_RN.shape[1]
    drawn_NB = np.stack([np.bincount(resample(num_items, rng), minlength=num_items) for _ in range(resamples)], axis=1)
    seen_RB = np.isfinite(correct_RN).astype(np.float64) @ drawn_NB
    right_RB = np.nan_to_num(correct_RN) @ drawn_NB
    return np.divide(right_RB, seen_RB, out=np.full_like(right_RB, np.nan), where=seen_RB > 0)


def _mean_over_readers(values_RB: np.ndarray, drawn_RB: np.ndarray) -> np.ndarray:
    """Mean over the readers drawn, per resample; a resample without any value is left out."""
    weights_RB = drawn_RB * np.isfinite(values_RB)
    total_B = weights_RB.sum(axis=0)
    there = total_B > 0
    return (np.nan_to_num(values_RB) * weights_RB).sum(axis=0)[there] / total_B[there]


def _method(num_readers: int) -> str:
    return "bootstrap over readers and items" if num_readers > 1 else "bootstrap over items"


def _group(correct_RN: np.ndarray, again_RB: np.ndarray, drawn_RB: np.ndarray) -> GroupAccuracy:
    shares = tuple(_share(row_N[np.isfinite(row_N)]) for row_N in correct_RN)
    values = [share.value for share in shares if share is not None]
    inside = percentile(_mean_over_readers(again_RB, drawn_RB), 1 - ALPHA, _method(len(values)))
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return GroupAccuracy(float(np.mean(values)), spread, inside, correct_RN.shape[1], shares)


def _share(answers_N: np.ndarray) -> Share | None:
    if not len(answers_N):
        return None
    correct, n = int(answers_N.sum()), len(answers_N)
    return Share(correct, n, correct / n, wilson(correct, n, 1 - ALPHA))


def _difference(
    ours: GroupAccuracy, reference: GroupAccuracy, again_RB: np.ndarray, drawn_RB: np.ndarray, margin: float
) -> Difference:
    per_reader = tuple(
        None if a is None or b is None else (a.value - b.value, difference_interval(a.correct, a.n, b.correct, b.n))
        for a, b in zip(ours.per_reader, reference.per_reader, strict=True)
    )
    values = [pair[0] for pair in per_reader if pair is not None]
    if not values:
        raise InputError("no reader saw items of both groups, so the groups cannot be compared")
    again_B = _mean_over_readers(again_RB, drawn_RB)
    method = _method(len(values))
    return Difference(
        value=float(np.mean(values)),
        interval=percentile(again_B, 1 - ALPHA, method),
        equivalence=equivalence(again_B, margin, method),
        per_reader=per_reader,
    )


def equivalence(again_B: np.ndarray, margin: float, method: str = "bootstrap") -> Equivalence:
    """Is a difference shown to be smaller than `margin`? By its resamples (two one-sided tests; Schuirmann, 1987).

    "equivalence not shown" says no more than a large p value does: the difference may lie on either side of the margin.
    """
    inside = percentile(again_B, 1 - 2 * ALPHA, method)
    if inside.low == inside.high:
        verdict = "equivalence not shown: the answers do not vary"
    elif -margin < inside.low and inside.high < margin:
        verdict = "equivalent within the margin"
    elif inside.high < -margin or inside.low > margin:
        verdict = "not equivalent: differs by more than the margin"
    else:
        verdict = "equivalence not shown"
    return Equivalence(margin, inside, verdict)


def difference_interval(a: int, a_trials: int, b: int, b_trials: int, level: float = 1 - ALPHA) -> Interval:
    """Interval of a / a_trials - b / b_trials, independent counts, from Wilson's of each (Newcombe 1998, method 10)."""
    first, second = wilson(a, a_trials, level), wilson(b, b_trials, level)
    p, q = a / a_trials, b / b_trials
    low = p - q - float(np.hypot(p - first.low, second.high - q))
    high = p - q + float(np.hypot(first.high - p, q - second.low))
    return Interval(low, high, level, "newcombe")


# ---- the same items, two readers


@dataclass(frozen=True)
class ReaderPair:
    """Two readers on the `n` items that both saw: right in one only, and the exact McNemar p, raw and after Holm."""

    first: int
    second: int
    first_only: int
    second_only: int
    n: int
    p: float
    p_adjusted: float


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p of McNemar's test: discordant items fall on either side with chance one half. 1 for none."""
    from scipy.stats import binomtest

    discordant = first_only + second_only
    return float(binomtest(first_only, discordant, 0.5).pvalue) if discordant else 1.0


def compare_readers(correct_RN: np.ndarray) -> list[ReaderPair]:
    """Every pair of readers with items in common, over all groups together."""
    correct_RN = _checked(correct_RN)
    found = []
    for i, j in itertools.combinations(range(len(correct_RN)), 2):
        both = np.isfinite(correct_RN[i]) & np.isfinite(correct_RN[j])
        if both.any():
            first, second = correct_RN[i, both] == 1, correct_RN[j, both] == 1
            found.append((i, j, int((first & ~second).sum()), int((second & ~first).sum()), int(both.sum())))
    p = [mcnemar(only, other) for _, _, only, other, _ in found]
    return [ReaderPair(*pair, raw, adjusted) for pair, raw, adjusted in zip(found, p, holm(p), strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979), in the order given."""
    p_P = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_P, kind="stable")
    stepped = np.maximum.accumulate(p_P[order] * np.arange(len(p_P), 0, -1)) if len(p_P) else p_P
    adjusted = np.empty_like(p_P)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(p) for p in adjusted]
