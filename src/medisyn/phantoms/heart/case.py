"""What a heart phantom shows: view, ejection fraction, heart rate and pericardial effusion, and how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError, closest
from medisyn.seeding import seed_for

VIEWS = ("apical four-chamber", "apical two-chamber")
GRADES = ("normal", "mildly reduced", "moderately reduced", "severely reduced")
GRADE_PERCENT = {  # ejection fraction of each grade: from, up to but not including
    "normal": (55, 76),
    "mildly reduced": (45, 55),
    "moderately reduced": (30, 45),
    "severely reduced": (10, 30),
}
EJECTION_PERCENT = (10.0, 75.0)
HEART_RATE = (45.0, 140.0)  # beats in a minute
EFFUSION_ML = (60.0, 700.0)  # less than 60 mL is thinner than a pixel of a small clip
WITH_EFFUSION = 0.4  # share of drawn cases
VIGOROUS_RATE = (80, 140)  # beats in a minute of vigorous hearts


@dataclass(frozen=True)
class Case:
    """What is controlled in one phantom.

    ejection_fraction  percent, 10 to 75
    heart_rate         beats in a minute, 45 to 140
    effusion_ml        pericardial fluid at end diastole: 0, or 60 to 700
    """

    view: str = VIEWS[0]
    ejection_fraction: float = 62.0
    heart_rate: float = 72.0
    effusion_ml: float = 0.0

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise InputError(
                f"heart phantom: view {self.view!r} is unknown.{closest(self.view, VIEWS)} Allowed: {', '.join(VIEWS)}"
            )
        _check("ejection fraction", self.ejection_fraction, EJECTION_PERCENT, "percent")
        _check("heart rate", self.heart_rate, HEART_RATE, "beats in a minute")
        if self.effusion_ml != 0:
            _check("effusion", self.effusion_ml, EFFUSION_ML, "mL (or 0)")

    @property
    def grade(self) -> str:
        """normal from 55 percent on, mildly reduced from 45, moderately from 30, else severely reduced."""
        return next((name for name in GRADES if self.ejection_fraction >= GRADE_PERCENT[name][0]), GRADES[-1])

    @property
    def effusion_word(self) -> str:
        """no; small below 100 mL, moderate up to 500 mL, large above."""
        if self.effusion_ml == 0:
            return "no"
        return "small" if self.effusion_ml < 100 else "moderate" if self.effusion_ml <= 500 else "large"


def _check(name: str, value: float, allowed: tuple[float, float], unit: str) -> None:
    low, high = allowed
    if not low <= value <= high:
        raise InputError(f"heart phantom: {name} must lie in {low:g} to {high:g} {unit}, got {value:g}")


def draw_case(
    seed: int, grades: Sequence[str] = GRADES, views: Sequence[str] = VIEWS, *, vigorous: float = 0.0
) -> Case:
    """The case of one phantom: grade and view drawn evenly from those given, all figures whole numbers.

    Four in ten have an effusion; small, moderate and large ones are equally common.

    vigorous  share of hearts of normal function at 80 to 140 beats a minute, drawn evenly: clips with much motion are
              rare among the others
    """
    _check("vigorous", vigorous, (0.0, 1.0), "(a share)")
    if vigorous > 0 and GRADES[0] not in grades:
        raise InputError(f"heart phantom: vigorous hearts have {GRADES[0]} function, which the given grades leave out")
    for name, given, allowed in (("grades", grades, GRADES), ("views", views, VIEWS)):
        unknown = [word for word in given if word not in allowed]
        if unknown or not given:
            raise InputError(
                f"heart phantom, {name} to draw from: {', '.join(map(repr, unknown)) or 'an empty list'} is not "
                f"allowed.{closest(unknown[0], allowed) if unknown else ''} Allowed: {', '.join(allowed)}"
            )
    rng = np.random.default_rng(seed_for(seed, "case"))
    view, grade = str(rng.choice(list(views))), str(rng.choice(list(grades)))
    another = np.random.default_rng(seed_for(seed, "vigorous"))  # so that the other hearts stay what they are
    is_vigorous = another.random() < vigorous
    ejection = int(rng.integers(*GRADE_PERCENT[GRADES[0] if is_vigorous else grade]))
    rate = int(np.clip(round(rng.normal(78, 20)), *HEART_RATE))
    if is_vigorous:
        rate = int(another.integers(*VIGOROUS_RATE, endpoint=True))
    low, high = ((60, 100), (100, 501), (501, 701))[int(rng.integers(3))]
    effusion = int(rng.integers(low, high)) if rng.random() < WITH_EFFUSION else 0
    return Case(view, float(ejection), float(rate), float(effusion))
