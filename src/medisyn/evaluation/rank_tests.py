"""Do readers rank some systems above others, and do they agree? Friedman, Kendall's W and what comes after.

Shapes here: N rankings, K systems, R readers, P pairs of systems. Rank 1 is best.
A reader who ranks several sets gives several rankings. Taken as independent they make p values far too small
(pseudo-replication): the same W of 0.528 over 4 systems has p = .0012 for 10 readers and 1e-13 for their 40 rankings.
So `by_reader` first makes one ranking of each reader; the analysis of all rankings is there to be set beside it. The W
of the two is not the same quantity: averages of several rankings agree more than single rankings do.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError
from medisyn.evaluation.agreement import signed_rank
from medisyn.evaluation.bootstrap import Interval, mean_interval
from medisyn.evaluation.readers import holm


@dataclass(frozen=True)
class Friedman:
    """Friedman's test over `n` blocks and `k` systems, corrected for ties, and Kendall's W = chi2 / (n (k - 1)).

    p is of the chi-squared approximation, which is rough below about 10 blocks.
    """

    chi2: float
    p: float
    w: float
    n: int
    k: int


@dataclass(frozen=True)
class PairTest:
    """System `first` against `second`: mean ranks subtracted (negative: the first is better), and three tests of it.

    z, dunn_p: Dunn's, on mean ranks; dunn_adjusted: Bonferroni over the pairs. nemenyi_p: studentised range, for all
    pairs at once. wilcoxon_p, wilcoxon_adjusted: signed ranks of the blocks' values, and Holm over the pairs.
    """

    first: int
    second: int
    difference: float
    z: float
    dunn_p: float
    dunn_adjusted: float
    nemenyi_p: float
    wilcoxon_p: float
    wilcoxon_adjusted: float


@dataclass(frozen=True)
class RankTests:
    """Friedman's test and all pairs on one choice of blocks; `mean_ranks` are those that the tests compare."""

    friedman: Friedman
    mean_ranks: tuple[float, ...]
    pairs: tuple[PairTest, ...]


@dataclass(frozen=True)
class MeanRank:
    """Mean over readers of a system's mean rank; `counts` of ranks 1 to K over all rankings.

    interval: bootstrap over readers; over rankings where there is one reader, None for one ranking.
    """

    value: float
    interval: Interval | None
    counts: tuple[int, ...]


def friedman(ranks_NK: np.ndarray) -> Friedman:
    """chi2 = 12 / (n k (k+1)) sum R_j^2 - 3 n (k+1), divided by 1 - ties / (n (k^3 - k)); R_j are sums of ranks.

    Any values will do: each row is ranked, ties share the middle rank. Without any difference in any row, chi2 is 0.
    """
    from scipy.stats import chi2, rankdata

    ranks_NK = rankdata(_checked(ranks_NK), axis=1)
    n, k = ranks_NK.shape
    statistic = 12 / (n * k * (k + 1)) * float((ranks_NK.sum(axis=0) ** 2).sum()) - 3 * n * (k + 1)
    sizes = [np.unique(row, return_counts=True)[1] for row in ranks_NK]
    kept = 1 - sum(int((size**3 - size).sum()) for size in sizes) / (n * (k**3 - k))
    statistic = max(statistic / kept, 0.0) if kept > 1e-12 else 0.0
    return Friedman(statistic, float(chi2.sf(statistic, k - 1)), statistic / (n * (k - 1)), n, k)


def _checked(ranks_NK: np.ndarray) -> np.ndarray:
    found = np.asarray(ranks_NK, dtype=np.float64)
    if found.ndim != 2 or found.shape[0] < 2 or found.shape[1] < 2 or not np.isfinite(found).all():
        raise InputError(
            f"Friedman's test needs at least 2 blocks and 2 systems without gaps, got an array of {found.shape}"
        )
    return found


def dunn_z(mean_first: float, mean_second: float, blocks: int, systems: int) -> float:
    """z = (R_i - R_j) / sqrt(k (k+1) / (6 n)): mean ranks of two systems, in their standard error without effects."""
    return (mean_first - mean_second) / float(np.sqrt(systems * (systems + 1) / (6 * blocks)))


def dunn_bonferroni(mean_first: float, mean_second: float, blocks: int, systems: int) -> float:
    """Two-sided p of `dunn_z`, times the number of pairs of systems, at most 1."""
    from scipy.stats import norm

    p = 2 * float(norm.sf(abs(dunn_z(mean_first, mean_second, blocks, systems))))
    return min(1.0, p * systems * (systems - 1) / 2)


def nemenyi(mean_first: float, mean_second: float, blocks: int, systems: int) -> float:
    """p of the largest of all differences (Nemenyi, 1963): studentised range of sqrt(2) |z|, infinite freedom."""
    from scipy.stats import studentized_range

    z = abs(dunn_z(mean_first, mean_second, blocks, systems))
    return float(np.clip(studentized_range.sf(np.sqrt(2) * z, systems, np.inf), 0, 1))


def rank_tests(ranks_NK: np.ndarray) -> RankTests:
    """Friedman and every pair of systems, with rows as the blocks. InputError for fewer than 2 rows or systems.

    Rows may hold mean ranks: Friedman, Dunn and Nemenyi rank them again within the row, Wilcoxon takes them as given.
    """
    from scipy.stats import norm, rankdata

    found = friedman(ranks_NK)
    values_NK = np.asarray(ranks_NK, dtype=np.float64)
    means = [float(mean) for mean in rankdata(values_NK, axis=1).mean(axis=0)]
    numbers = list(itertools.combinations(range(found.k), 2))
    wilcoxon = [signed_rank(values_NK[:, i], values_NK[:, j]) for i, j in numbers]
    pairs = []
    for (i, j), raw, adjusted in zip(numbers, wilcoxon, holm(wilcoxon), strict=True):
        z = dunn_z(means[i], means[j], found.n, found.k)
        pairs.append(
            PairTest(
                i, j, means[i] - means[j], z,
                dunn_p=2 * float(norm.sf(abs(z))),
                dunn_adjusted=dunn_bonferroni(means[i], means[j], found.n, found.k),
                nemenyi_p=nemenyi(means[i], means[j], found.n, found.k),
                wilcoxon_p=raw,
                wilcoxon_adjusted=adjusted,
            )
        )  # fmt: skip
    return RankTests(found, tuple(means), tuple(pairs))


def by_reader(ranks_NK: np.ndarray, reader_N: np.ndarray) -> np.ndarray:
    """Each reader's mean rank of each system over all that reader's rankings, (R, K), readers in sorted order.

    `rank_tests` of this ranks the means again within the reader; systems with one mean share the middle rank.
    """
    return np.stack([np.asarray(ranks_NK, dtype=np.float64)[reader_N == r].mean(axis=0) for r in np.unique(reader_N)])


def mean_ranks(
    ranks_NK: np.ndarray, reader_N: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> tuple[MeanRank, ...]:
    """Of each system, with readers as the units of the bootstrap: each counts the same, with few or many sets."""
    ranks_NK = np.asarray(ranks_NK, dtype=np.float64)
    readers_RK = by_reader(ranks_NK, reader_N)
    units_UK = readers_RK if len(readers_RK) > 1 else ranks_NK
    found = []
    for system in range(ranks_NK.shape[1]):
        counts = [int((ranks_NK[:, system] == rank).sum()) for rank in range(1, ranks_NK.shape[1] + 1)]
        inside = mean_interval(units_UK[:, system], resamples=resamples, seed=seed) if len(units_UK) > 1 else None
        found.append(MeanRank(float(readers_RK[:, system].mean()), inside, tuple(counts)))
    return tuple(found)
