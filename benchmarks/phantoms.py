"""Time and peak memory of one thorax phantom at each size, on one core.

    OMP_NUM_THREADS=1 python benchmarks/phantoms.py [--sizes 32,64,128,256] [--repeats 3] [--out results.json]

Each size runs in a process of its own, so that its peak memory is its own; the first phantom of a process is not
counted. Seconds are CPU time, the best of the repeats, beside the wall time of the same run.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import resource
import time
from pathlib import Path

from medisyn.phantoms import Finding, make_thorax
from medisyn.runs import environment

FINDINGS = (Finding("effusion", "left", 0.5), Finding("bullae", "right", 0.5))


def measure(size: int, repeats: int) -> dict[str, float]:
    """The best of some phantoms of one size."""
    make_thorax(0, 32, FINDINGS)
    best = (float("inf"), float("inf"))
    for seed in range(1, repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        make_thorax(seed, size, FINDINGS)
        best = min(best, (time.process_time() - cpu, time.perf_counter() - wall))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu_seconds": round(best[0], 3), "wall_seconds": round(best[1], 3), "peak_mb": round(peak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="32,64,128,256")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()

    sizes = [int(size) for size in arguments.sizes.split(",")]
    result: dict[str, object] = {}
    for size in sizes:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
            row = pool.submit(measure, size, arguments.repeats).result()
        row["microseconds_per_voxel"] = round(row["cpu_seconds"] * 1e6 / size**3, 3)
        result[str(size)] = row
    result = {"sizes": result, "repeats": arguments.repeats, "environment": environment()}
    print(json.dumps(result, indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
