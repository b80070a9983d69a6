"""What is wrong with a phantom, and how findings are drawn so that every prompt pair has cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError, closest
from medisyn.seeding import seed_for

KINDS = ("effusion", "cardiomegaly", "bullae", "consolidation", "ground_glass", "nodule", "atelectasis")
SIDES = ("left", "right", "both")
LOBES = ("left upper", "left lower", "right upper", "right middle", "right lower")  # labels 1 to 5, as LTRCLobes
SIDELESS = ("cardiomegaly",)
SINGLE = ("consolidation", "nodule")  # one place in one lung
LOBES_OF = {"consolidation": (1, 2, 3, 4, 5), "nodule": (1, 2, 3, 4, 5), "atelectasis": (2, 5)}
WORDS = ("mild", "moderate", "severe")


@dataclass(frozen=True)
class Finding:
    """One finding. `severity` runs from 0 (just visible) to 1 (as large as they come).

    side   "left", "right" or "both"; always "both" for cardiomegaly, never for consolidation and nodule
    lobe   label 1 to 5 for consolidation and nodule, on the finding's side; None: left to the seed. Atelectasis is
           bands when it is mild, and else collapse of the lower lobe, 2 or 5
    """

    kind: str
    side: str = "both"
    severity: float = 0.5
    lobe: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(
                f"finding {self.kind!r} is unknown.{closest(self.kind, KINDS)} Allowed: {', '.join(KINDS)}"
            )
        if self.side not in SIDES:
            raise InputError(f"finding {self.kind}: side {self.side!r} is unknown, allowed: {', '.join(SIDES)}")
        if not 0 <= self.severity <= 1:
            raise InputError(f"finding {self.kind}: severity must lie in 0 to 1, got {self.severity:g}")
        if self.kind in SIDELESS and self.side != "both":
            raise InputError(f"finding {self.kind} has no side; leave it at 'both', got {self.side!r}")
        if self.kind in SINGLE and self.side == "both":
            raise InputError(f"finding {self.kind} lies in one lung: give side left or right")
        if self.lobe is not None:
            _check_lobe(self.kind, self.side, self.lobe)

    @property
    def word(self) -> str:
        """mild, moderate or severe: the thirds of severity."""
        return WORDS[min(int(self.severity * 3), 2)]

    @property
    def sides(self) -> tuple[str, ...]:
        return ("left", "right") if self.side == "both" else (self.side,)


def _check_lobe(kind: str, side: str, lobe: int) -> None:
    """A lobe that the kind can have, on its side."""
    allowed = [n for n in LOBES_OF.get(kind, ()) if LOBES[n - 1].startswith(side)]
    if lobe not in allowed:
        names = ", ".join(f"{n} ({LOBES[n - 1]})" for n in allowed) or "none"
        raise InputError(f"finding {kind} on side {side}: lobe {lobe} is not allowed; allowed: {names}")


def draw_findings(seed: int, kinds: Sequence[str] = (*KINDS, "none")) -> tuple[Finding, ...]:
    """The findings of one patient: a main one drawn evenly from `kinds`, and sometimes a second.

    A kind that stands twice in `kinds` is drawn twice as often.

    Even kinds and sides give each prompt pair (with and without, left and right) the same number of cases; the second
    finding (30 %) keeps the absence of one from standing for the presence of another.
    """
    unknown = [kind for kind in kinds if kind not in (*KINDS, "none")]
    if unknown or not kinds:
        raise InputError(
            f"findings to draw from: {', '.join(map(repr, unknown)) or 'an empty list'} is not allowed."
            f"{closest(unknown[0], (*KINDS, 'none')) if unknown else ''} Allowed: {', '.join(KINDS)}, none"
        )
    rng = np.random.default_rng(seed_for(seed, "findings"))
    main = str(rng.choice(list(kinds)))
    if main == "none":
        return ()
    found = [_draw(main, rng)]
    others = [kind for kind in kinds if kind not in (main, "none")]
    if others and rng.random() < 0.3:
        found.append(_draw(str(rng.choice(others)), rng))
    return tuple(found)


def _draw(kind: str, rng: np.random.Generator) -> Finding:
    one_sided = kind in (*SINGLE, "atelectasis")
    side = str(rng.choice(SIDES[:2] if one_sided else SIDES))
    severity = round(float(rng.uniform(0, 1)), 3)
    return Finding(kind, "both" if kind in SIDELESS else side, severity)
