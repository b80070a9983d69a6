"""Can one tell a training image from a new one by the model's loss? Yeom et al. (2018); for diffusion models Matsumoto
et al. (2023) and Carlini et al. (2023).

Shapes here: M members (training images), N non-members (held-out images). A score is larger for a likelier member; for
the denoising loss it is minus the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError, RangeError
from medisyn.evaluation.bootstrap import Interval, clopper_pearson, percentile, resample


@dataclass(frozen=True)
class MembershipResult:
    """How well the scores tell members from non-members: 0.5 is chance, 1 is certainty.

    `tpr` is the share of members above the lowest threshold that at most `fpr` of the non-members pass; `fpr_reached`
    is the share of non-members that do. Its interval takes the threshold as given.
    """

    auc: float
    auc_interval: Interval
    tpr: float
    tpr_interval: Interval
    fpr: float
    fpr_reached: float
    members: int
    non_members: int


def membership(
    members_M: np.ndarray,
    non_members_N: np.ndarray,
    *,
    fpr: float = 0.01,
    level: float = 0.95,
    patients: tuple[Sequence[str], Sequence[str]] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> MembershipResult:
    """AUC and true positive rate at a low false positive rate.

    `patients` (of members, of non-members): the AUC's interval is a bootstrap of whole patients; without them it is
    DeLong's. Raises InputError below 2 of either, RangeError for NaN.
    """
    ours, theirs = _scores(members_M, "members"), _scores(non_members_N, "non-members")
    if not 0 < fpr < 1:
        raise InputError(f"the false positive rate must lie between 0 and 1, got {fpr:g}")
    value = auc(ours, theirs)
    if patients is None:
        interval = delong(ours, theirs, level)
    else:
        interval = _by_patient(ours, theirs, patients, level, resamples, seed)
    threshold = np.sort(theirs)[::-1][int(np.floor(fpr * len(theirs) + 1e-9))]
    hits = int((ours > threshold).sum())
    return MembershipResult(
        auc=value,
        auc_interval=interval,
        tpr=hits / len(ours),
        tpr_interval=clopper_pearson(hits, len(ours), level),
        fpr=fpr,
        fpr_reached=float((theirs > threshold).mean()),
        members=len(ours),
        non_members=len(theirs),
    )


def _scores(scores: np.ndarray, what: str) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise InputError(f"membership: {what} need at least 2 scores in one row, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise RangeError(f"membership: {int((~np.isfinite(values)).sum())} scores of {what} are NaN or infinite")
    return values


def auc(members_M: np.ndarray, non_members_N: np.ndarray) -> float:
    """The probability that a member scores above a non-member, ties counted half (Mann-Whitney)."""
    return float(_placements(members_M, non_members_N).mean())


def _placements(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """For each of `ours` the share of `theirs` below it, ties counted half."""
    ordered = np.sort(theirs)
    below, up_to = np.searchsorted(ordered, ours, "left"), np.searchsorted(ordered, ours, "right")
    return (below + up_to) / (2 * len(theirs))


def delong(members_M: np.ndarray, non_members_N: np.ndarray, level: float = 0.95) -> Interval:
    """DeLong's interval of the AUC (1988), cut to [0, 1].

    Where every member lies above every non-member (or below), the variance is 0; the end away from the bound is then
    that of the smaller set's Clopper-Pearson interval.
    """
    from scipy.stats import norm

    value = auc(members_M, non_members_N)
    of_members = _placements(members_M, non_members_N)
    of_others = 1 - _placements(non_members_N, members_M)
    variance = of_members.var(ddof=1) / len(of_members) + of_others.var(ddof=1) / len(of_others)
    if value in (0.0, 1.0):
        smaller = min(len(of_members), len(of_others))
        exact = clopper_pearson(round(value * smaller), smaller, level)
        return Interval(exact.low, exact.high, level, "clopper-pearson of the smaller set")
    half = float(norm.ppf(0.5 + level / 2) * np.sqrt(variance))
    return Interval(max(0.0, value - half), min(1.0, value + half), level, "delong")


def _by_patient(
    ours: np.ndarray,
    theirs: np.ndarray,
    patients: tuple[Sequence[str], Sequence[str]],
    level: float,
    resamples: int,
    seed: int,
) -> Interval:
    if len(patients[0]) != len(ours) or len(patients[1]) != len(theirs):
        raise InputError(
            f"membership: {len(ours)} and {len(theirs)} scores but {len(patients[0])} and {len(patients[1])} patients"
        )
    rng = np.random.default_rng(seed)
    values = [
        auc(ours[resample(len(ours), rng, patients[0])], theirs[resample(len(theirs), rng, patients[1])])
        for _ in range(resamples)
    ]
    return percentile(np.array(values), level, "percentile bootstrap by patient")
