"""Fréchet distance against MONAI's at n = 100, and against the fastest known route at n = 10,000, in one process.

    python benchmarks/distances.py [--many 10000] [--dim 2048] [--repeats 3] [--out results.json]

Both are compared at d = 2048 features, in float64, on the same arrays; contenders take turns. MONAI's `FIDMetric` takes
the square root of a matrix; the fastest known route for full covariances is Cholesky factors and the singular values
of their product. Ratios are seconds of the other divided by ours: above 1 ours is faster. The relative difference of
the values stands beside each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medisyn.evaluation.frechet import frechet_distance
from medisyn.runs import environment


def by_cholesky(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """The fastest route in use for n far above d: tr (S1 S2)^(1/2) = sum of singular values of L1' L2."""
    difference = a_ND.mean(axis=0) - b_ND.mean(axis=0)
    cov_a, cov_b = np.cov(a_ND, rowvar=False), np.cov(b_ND, rowvar=False)
    roots = np.linalg.cholesky(cov_a), np.linalg.cholesky(cov_b)
    cross = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    return float(difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def by_monai(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    import torch
    from monai.metrics.fid import FIDMetric

    return float(FIDMetric()(torch.from_numpy(a_ND), torch.from_numpy(b_ND)))


def two_sets(count: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Features with correlations, as networks give: the second set shifted and wider."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((dim, dim)) / np.sqrt(dim)
    return rng.standard_normal((count, dim)) @ mix, 0.1 + 1.2 * rng.standard_normal((count, dim)) @ mix


def side_by_side(
    ours: Callable[[], float], other: Callable[[], float], repeats: int, repeats_of_other: int
) -> dict[str, Any]:
    """Medians of the seconds of each, taken in turns, and how far the two values are apart."""
    seconds: dict[str, list[float]] = {"ours": [], "other": []}
    values: dict[str, float] = {}
    for turn in range(max(repeats, repeats_of_other)):
        for name, run, most in (("ours", ours, repeats), ("other", other, repeats_of_other)):
            if turn < most:
                start = time.perf_counter()
                values[name] = run()
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    return {
        "seconds": medians,
        "ratio": medians["other"] / medians["ours"],
        "values": values,
        "relative_difference": abs(values["ours"] / values["other"] - 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=100)
    parser.add_argument("--many", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()

    few, many = two_sets(asked.few, asked.dim), two_sets(asked.many, asked.dim)
    by_monai(*(part[:10, :8] for part in few))  # import and first call are not measured
    found = {
        "settings": {"few": asked.few, "many": asked.many, "dim": asked.dim, "repeats": asked.repeats},
        f"monai_at_{asked.few}": side_by_side(
            lambda: frechet_distance(*few), lambda: by_monai(*few), 5 * asked.repeats, 1
        ),
        f"cholesky_at_{asked.many}": side_by_side(
            lambda: frechet_distance(*many), lambda: by_cholesky(*many), asked.repeats, asked.repeats
        ),
        "environment": environment(),
    }
    text = json.dumps(found, indent=2)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
