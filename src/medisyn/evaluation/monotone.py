"""Does a score rise along a series of images? Arrays in, numbers with n and intervals out.

Shapes here: S series, N frames in their order.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medisyn.errors import InputError
from medisyn.evaluation.bootstrap import Interval, mean_interval, wilson

RESAMPLES = 2000


@dataclass(frozen=True)
class Monotonicity:
    """`share` of the `n` series rise at every step; rank correlation of score and frame; rise from first to last frame.

    `share_interval` is Wilson's, the others are percentile bootstraps over series (None for one series). A series whose
    scores are all equal has rank correlation 0.
    """

    n: int
    frames: int
    monotone: int
    share: float
    share_interval: Interval
    spearman: float
    spearman_interval: Interval | None
    rise: float
    rise_interval: Interval | None
    spearman_per_series: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def summary(self) -> str:
        """One line for a person."""
        low, high = self.share_interval.low, self.share_interval.high
        return (
            f"{self.monotone} of {self.n} series rise at every step ({self.share:.0%}, 95 % interval {low:.0%} to "
            f"{high:.0%}); mean rank correlation {self.spearman:.2f}{_bounds(self.spearman_interval)}; "
            f"mean rise {self.rise:+.2f}{_bounds(self.rise_interval)}"
        )


def monotonicity(scores_SN: np.ndarray, *, seed: int = 0) -> Monotonicity:
    """How far scores rise along each row. Raises InputError for under 2 frames, no series, or scores not finite."""
    from scipy.stats import rankdata

    scores_SN = np.asarray(scores_SN, dtype=np.float64)
    if scores_SN.ndim != 2 or scores_SN.shape[0] < 1 or scores_SN.shape[1] < 2:
        raise InputError(f"monotonicity needs scores of at least 1 series and 2 frames, got shape {scores_SN.shape}")
    if not np.isfinite(scores_SN).all():
        raise InputError("monotonicity: a score is NaN or infinite")
    num_series, num_frames = scores_SN.shape
    monotone = int((np.diff(scores_SN, axis=1) > 0).all(axis=1).sum())
    ranks_SN = rankdata(scores_SN, axis=1)
    rhos_S = np.array([_correlation(ranks_N, np.arange(num_frames)) for ranks_N in ranks_SN])
    rises_S = scores_SN[:, -1] - scores_SN[:, 0]
    intervals = [
        mean_interval(values, resamples=RESAMPLES, seed=seed) if num_series > 1 else None
        for values in (rhos_S, rises_S)
    ]
    return Monotonicity(
        n=num_series,
        frames=num_frames,
        monotone=monotone,
        share=monotone / num_series,
        share_interval=wilson(monotone, num_series),
        spearman=float(rhos_S.mean()),
        spearman_interval=intervals[0],
        rise=float(rises_S.mean()),
        rise_interval=intervals[1],
        spearman_per_series=tuple(float(rho) for rho in rhos_S),
    )


def _correlation(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Pearson's correlation; 0 where one side does not change."""
    a_N, b_N = a_N - a_N.mean(), b_N - b_N.mean()
    size = float(np.sqrt((a_N**2).sum() * (b_N**2).sum()))
    return 0.0 if size == 0 else float((a_N * b_N).sum()) / size


def _bounds(interval: Interval | None) -> str:
    return "" if interval is None else f" ({interval.low:.2f} to {interval.high:.2f})"
