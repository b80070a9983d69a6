"""Exact nearest neighbours by cosine: our search over a memory map against FAISS IndexFlatIP, side by side.

    python benchmarks/neighbours.py --training 1000000

Both answer the same queries in turns, in one process; the indices must be the same but where two images are equally
near within float32 rounding. Then our search runs alone in a process of its own, which reports its peak memory.
Needs faiss-cpu. Features are random, so nothing is easier than in real data.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import runs
from medisyn.evaluation.search import nearest_neighbours

RESULTS = Path(__file__).parent / "results"
WRITTEN_AT_ONCE = 50_000  # rows


def write_features(path: Path, rows: int, dim: int, seed: int = 0) -> None:
    """Random float32 unit vectors as a .npy file, block by block."""
    rng = np.random.default_rng(seed)
    target = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, dim))
    for start in range(0, rows, WRITTEN_AT_ONCE):
        block = rng.standard_normal((min(WRITTEN_AT_ONCE, rows - start), dim), dtype=np.float32)
        target[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    target.flush()


def ours(path: Path, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    found = nearest_neighbours(queries_QD, np.load(path, mmap_mode="r"), k)
    return found.index_QK, found.similarity_QK


def search_alone(path: Path, queries: Path, k: int) -> None:
    """Run in a process of its own: prints seconds and peak resident memory in bytes."""
    started = time.perf_counter()
    ours(path, np.load(queries), k)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()  # getrusage would count what the parent held when it started us
    print(seconds, 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]))


def compare(training: int, num_queries: int, dim: int, k: int, rounds: int, folder: Path) -> dict[str, Any]:
    import faiss
    import torch

    threads = torch.get_num_threads()
    faiss.omp_set_num_threads(threads)
    write_features(folder / "training.npy", training, dim)
    write_features(folder / "queries.npy", num_queries, dim, seed=1)
    queries = np.load(folder / "queries.npy")
    index = faiss.IndexFlatIP(dim)
    mapped = np.load(folder / "training.npy", mmap_mode="r")
    for start in range(0, training, WRITTEN_AT_ONCE):
        index.add(np.ascontiguousarray(mapped[start : start + WRITTEN_AT_ONCE]))
    seconds: dict[str, list[float]] = {"ours": [], "faiss": []}
    for _ in range(rounds):
        started = time.perf_counter()
        our_index, our_similarity = ours(folder / "training.npy", queries, k)
        seconds["ours"].append(time.perf_counter() - started)
        started = time.perf_counter()
        their_similarity, their_index = index.search(queries, k)
        seconds["faiss"].append(time.perf_counter() - started)
    del index
    different = our_index != their_index
    gap = float(np.abs(our_similarity - their_similarity).max())
    command = [sys.executable, __file__, "--alone", str(folder), "--k", str(k)]
    alone = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return {
        "training": training,
        "queries": num_queries,
        "dim": dim,
        "k": k,
        "threads": threads,
        "seconds": seconds,
        "ratio_faiss_to_ours": min(seconds["faiss"]) / min(seconds["ours"]),
        "indices_that_differ": int(different.sum()),
        "largest_similarity_difference": gap,
        "alone_seconds": float(alone[0]),
        "alone_peak_bytes": int(float(alone[1])),
        "faiss": faiss.__version__,
        "environment": runs.environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--training", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / f"neighbours-{time.strftime('%Y-%m-%d')}.json")
    options = parser.parse_args()
    if options.alone is not None:
        search_alone(options.alone / "training.npy", options.alone / "queries.npy", options.k)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = compare(options.training, options.queries, options.dim, options.k, options.rounds, Path(folder))
    runs.write_json(options.out, found)
    print(
        f"faiss / ours: {found['ratio_faiss_to_ours']:.2f} of the time, {found['indices_that_differ']} indices differ"
    )
    print(f"alone: {found['alone_seconds']:.1f} s, peak {found['alone_peak_bytes'] / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
