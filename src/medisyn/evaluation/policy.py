"""What may be released: cuts calibrated on held-out real images, and the rules for one image and for the set.

Held-out real images are no copies. With K held-out patients, the conformal p value of an image is (1 + the sum over the
patients of the share of their images that are as close) / (K + 1). An image of a new patient has p <= alpha with
probability alpha at most, whatever the distribution, as long as that patient is exchangeable with the K (hierarchical
conformal prediction: Lee, Barber and Willett, 2023; with one image per patient it is the usual p value). So each rule
withholds at most alpha of innocent images, and three rules at most three times that. K patients cannot show less than
1 / (K + 1).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from medisyn.errors import ConfigError, InputError, closest
from medisyn.evaluation.bootstrap import Interval, clopper_pearson
from medisyn.evaluation.copies import Closeness

MEASURES = ("distance", "similarity", "bits")
POOLED = "pooled"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The stated rules. An image is withheld for a measure when it is within the limit and, where held-out images
    allow it, closer than all but a share `alpha` of them.

    coarsest: where held-out patients are too few for alpha, the finest level they allow, 1 / (K + 1), is taken as
        long as it is not above this (19 patients at 5 %).
    max_share: the set fails when the upper bound (Clopper-Pearson, one-sided 95 %) of the share withheld is above it;
        a set too small to show it fails too (29 images at 10 %).
    max_membership_auc: the set fails when the attack's AUC has an upper end above it; only where the attack was run,
        unless `require_membership`.
    """

    alpha: float = 0.01
    coarsest: float = 0.05
    distance: float = 0.15  # patch distance; MediSyn v2 section 4.3.4
    similarity: float = 0.9  # edge similarity; noised and recompressed copies of our open data lie above
    bits: int = 4  # of 64 in the perceptual hash
    max_share: float = 0.1
    max_membership_auc: float = 0.6
    require_membership: bool = False

    def __post_init__(self) -> None:
        for name in ("alpha", "coarsest", "distance", "similarity", "max_share", "max_membership_auc"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ConfigError(f"policy: {name} must lie between 0 and 1, got {value!r}")
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 0 <= self.bits <= 64:
            raise ConfigError(f"policy: bits must be a whole number from 0 to 64, got {self.bits!r}")
        if not isinstance(self.require_membership, bool):
            raise ConfigError(f"policy: require_membership must be true or false, got {self.require_membership!r}")


def policy_from_dict(content: Any) -> Policy:
    """ConfigError for anything but a mapping of the fields of Policy."""
    if not isinstance(content, Mapping):
        raise ConfigError(f"a policy is a mapping such as 'alpha: 0.01', got {type(content).__name__}")
    allowed = [field.name for field in fields(Policy)]
    for name in content:
        if name not in allowed:
            raise ConfigError(
                f"policy: {name!r} is unknown, allowed: {', '.join(allowed)}.{closest(str(name), allowed)}"
            )
    return Policy(**content)


def score(close: Closeness, measure: str) -> float:
    """The measure as a number that is smaller the closer the images are."""
    value = getattr(close, measure).value
    return 1.0 - value if measure == "similarity" else float(value)


def limit(policy: Policy, measure: str) -> float:
    return 1.0 - policy.similarity if measure == "similarity" else float(getattr(policy, measure))


@dataclass(frozen=True)
class Cut:
    """Below which score the conformal p value is at most `level`. None: too few held-out patients to say."""

    below: float | None
    level: float
    held_out: int  # images
    patients: int
    source: str  # the stratum's own images, "pooled", or "not calibrated"


def conformal_cut(scores: Sequence[float], level: float, patients: Sequence[str] | None = None) -> float | None:
    """The smallest held-out score at which p is above `level`, so that every smaller score has p <= level.

    `patients` of the held-out images; None: each image is a patient of its own. None is returned where K patients
    cannot show the level (level (K + 1) < 1).
    """
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError("calibration: a held-out score is NaN or infinite")
    names = np.arange(len(values)) if patients is None else np.asarray(patients)
    _, member_of, sizes = np.unique(names, return_inverse=True, return_counts=True)
    allowed = level * (len(sizes) + 1) - 1  # patients that may be as close
    if len(values) == 0 or allowed < -1e-9:
        return None
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(1 / sizes[member_of[order]])
    above = np.flatnonzero(reached > allowed + 1e-9)
    return float(values[order[above[0]]]) if len(above) else float("inf")


@dataclass(frozen=True)
class Calibration:
    """The cuts of every stratum and measure; strata with too few held-out images share the pooled ones."""

    cuts: Mapping[str, Mapping[str, Cut]]
    pooled: Mapping[str, Cut]

    def cut(self, stratum: str, measure: str) -> Cut:
        return self.cuts[stratum][measure] if stratum in self.cuts else self.pooled[measure]


def calibrate(
    held_out: Sequence[Closeness], strata: Sequence[str], policy: Policy, patients: Sequence[str] | None = None
) -> Calibration:
    """Cuts from the held-out images of each stratum where its patients suffice for the policy's coarsest level.

    The images of all other strata are pooled, for those strata and for strata without any; where the pool is too small
    as well, nothing is calibrated and the policy's limits stand alone.
    """
    names = [str(number) for number in range(len(held_out))] if patients is None else list(patients)
    if not len(held_out) == len(strata) == len(names):
        raise InputError(
            f"calibration: {len(held_out)} held-out images but {len(strata)} strata and {len(names)} patients"
        )
    members: dict[str, list[int]] = {}
    for number, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(number)

    def cuts(part: Sequence[int], source: str) -> dict[str, Cut]:
        return _cuts([held_out[n] for n in part], [names[n] for n in part], policy, source)

    enough = {s: part for s, part in members.items() if _level({names[n] for n in part}, policy) is not None}
    rest = [number for stratum, part in members.items() if stratum not in enough for number in part]
    return Calibration({s: cuts(part, "own stratum") for s, part in enough.items()}, cuts(rest, POOLED))


def _level(patients: Collection[str], policy: Policy) -> float | None:
    finest = 1 / (len(patients) + 1)
    return None if finest > policy.coarsest + 1e-9 and finest > policy.alpha + 1e-9 else max(policy.alpha, finest)


def _cuts(part: Sequence[Closeness], patients: Sequence[str], policy: Policy, source: str) -> dict[str, Cut]:
    level, num_patients = _level(set(patients), policy), len(set(patients))
    if level is None:
        return dict.fromkeys(MEASURES, Cut(None, policy.alpha, len(part), num_patients, "not calibrated"))
    below = {name: conformal_cut([score(close, name) for close in part], level, patients) for name in MEASURES}
    return {name: Cut(cut, level, len(part), num_patients, source) for name, cut in below.items()}


def is_within(close: Closeness, measure: str, policy: Policy, cut: Cut) -> bool:
    """Within the policy's limit, and closer than the cut where there is one."""
    value = score(close, measure)
    return value <= limit(policy, measure) and (cut.below is None or value < cut.below)


def reasons(close: Closeness, stratum: str, policy: Policy, calibration: Calibration) -> list[str]:
    """Why this image is withheld, one reason per measure; empty when it may be released."""
    found = []
    for measure in MEASURES:
        cut = calibration.cut(stratum, measure)
        if is_within(close, measure, policy, cut):
            found.append(_reason(measure, close, cut, policy))
    return found


def _reason(measure: str, close: Closeness, cut: Cut, policy: Policy) -> str:
    value = getattr(close, measure).value
    words = {
        "distance": f"patch distance {value:.3f} to a training image, limit {policy.distance:g}",
        "similarity": f"edge similarity {value:.3f} with a training image, limit {policy.similarity:g}",
        "bits": f"perceptual hash {value:.0f} bits from a training image's, limit {policy.bits}",
    }[measure]
    if cut.below is None:
        return f"{words} (not calibrated: {cut.patients} held-out patients)"
    return f"{words}; closer than {1 - cut.level:.1%} of {cut.patients} held-out patients' images ({cut.source})"


@dataclass(frozen=True)
class Rule:
    """One rule for the whole set, with what was found."""

    name: str
    passed: bool
    found: str
    allowed: str


@dataclass(frozen=True)
class Verdict:
    """Whether the set as a whole meets the policy."""

    withheld: int
    n: int
    share_upper: Interval
    rules: tuple[Rule, ...]

    @property
    def passed(self) -> bool:
        return all(rule.passed for rule in self.rules)


def judge_set(withheld: int, n: int, policy: Policy, membership_auc_upper: float | None = None) -> Verdict:
    """The rules for the set. `membership_auc_upper` is the upper end of the attack's AUC, None where it was not run."""
    bound = clopper_pearson(withheld, n, side="upper")
    rules = [
        Rule(
            "share withheld",
            bound.high <= policy.max_share,
            f"{withheld} of {n}, upper bound {bound.high:.2%}",
            f"upper bound at most {policy.max_share:.2%}",
        )
    ]
    if membership_auc_upper is not None:
        rules.append(
            Rule(
                "membership attack",
                membership_auc_upper <= policy.max_membership_auc,
                f"AUC up to {membership_auc_upper:.3f}",
                f"at most {policy.max_membership_auc:g}",
            )
        )
    elif policy.require_membership:
        rules.append(Rule("membership attack", False, "not run", f"at most {policy.max_membership_auc:g}"))
    return Verdict(withheld, n, bound, tuple(rules))
