"""Curation against a plain Pillow loop on the same pictures, side by side in one process.

    python benchmarks/curate.py [--images FOLDER] [--count 96] [--size 512] [--out results.json]

The plain loop opens, resizes (Lanczos, short side), crops the centre and writes a PNG with Pillow's defaults. Curation
does that and also reads the table, checks values, hashes, finds duplicates, writes captions, shards and the index.
Without --images it draws pictures: smooth noise with grain, 1024 x 768 JPEG. Ratios are images per second; above 1
curation is faster. The second baseline writes PNGs with curation's own compression settings. One and two processes are
compared on four links to each picture, so that starting the processes does not weigh more than it does in practice.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from medisyn.corpus.curate import curate
from medisyn.corpus.parts import PNG_OPTIONS
from medisyn.corpus.source import Source, parse_source
from medisyn.runs import environment

COPIES = 4


def draw_pictures(folder: Path, count: int) -> None:
    """Pictures with the statistics of a smear or slide: large shapes and fine grain."""
    folder.mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        shapes = Image.fromarray(rng.integers(60, 230, (24, 32, 3), dtype=np.uint8)).resize((1024, 768))
        grain = np.asarray(shapes, dtype=np.float32) + rng.normal(0, 4, (768, 1024, 3))
        Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=90)


def pillow_loop(files: list[Path], out: Path, size: int, **png: int) -> None:
    out.mkdir()
    for number, file in enumerate(files):
        with Image.open(file) as image:
            factor = size / min(image.size)
            width, height = (max(1, round(side * factor)) for side in image.size)
            scaled = image.resize((width, height), Image.Resampling.LANCZOS)
        left, top = (width - size) // 2, (height - size) // 2
        scaled.crop((left, top, left + size, top + size)).save(out / f"{number:05d}.png", "PNG", **png)


def describe(folder: Path, pattern: str) -> Source:
    return parse_source(
        {
            "name": "bench",
            "title": "benchmark",
            "licence": "none",
            "attribution": "none",
            "url": "none",
            "public_ids": True,
            "specialty": "hematology",
            "image_type": "blood smear microscopy",
            "root": str(folder),
            "files": {"glob": pattern},
            "split": {"unit": "file"},
            "samples": [{"kind": "whole", "captions": ["Blood smear microscopy image"]}],
        }
    )


def link_copies(files: list[Path], folder: Path) -> Path:
    folder.mkdir()
    for copy in range(COPIES):
        for file in files:
            (folder / f"{copy}-{file.name}").symlink_to(file.resolve())
    return folder


def rate(count: int, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of pictures of one suffix; default: drawn ones")
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()

    work = Path(tempfile.mkdtemp())
    folder = arguments.images or work / "pictures"
    if arguments.images is None:
        draw_pictures(folder, arguments.count)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    source = describe(folder, f"*{files[0].suffix}")
    larger = describe(link_copies(files, work / "links"), f"*{files[0].suffix}")
    runs: dict[str, tuple[int, Callable[[Path], object]]] = {
        "pillow": (1, lambda out: pillow_loop(files, out, arguments.size)),
        "pillow, our PNG settings": (1, lambda out: pillow_loop(files, out, arguments.size, **PNG_OPTIONS)),
        "curate": (1, lambda out: curate(source, out, size=arguments.size)),
        "curate, 1 process, 4 links": (COPIES, lambda out: curate(larger, out, size=arguments.size)),
        "curate, 2 processes, 4 links": (
            COPIES,
            lambda out: curate(larger, out, size=arguments.size, engine="processes:2"),
        ),
    }
    best = dict.fromkeys(runs, 0.0)
    for repeat in range(arguments.repeats):
        for name, (copies, run) in runs.items():
            best[name] = max(best[name], rate(copies * len(files), lambda: run(work / f"{name}-{repeat}")))  # noqa: B023
    shutil.rmtree(work)
    result = {
        "images": len(files),
        "size": arguments.size,
        "images_per_second": {name: round(value, 2) for name, value in best.items()},
        "curate_to_pillow": round(best["curate"] / best["pillow"], 3),
        "curate_to_pillow_same_png": round(best["curate"] / best["pillow, our PNG settings"], 3),
        "two_processes_to_one": round(best["curate, 2 processes, 4 links"] / best["curate, 1 process, 4 links"], 3),
        "environment": environment(),
    }
    print(json.dumps(result, indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
