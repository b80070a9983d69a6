"""The figures of the starter model's card: it generates from held-out captions and evaluates what came out.

    python benchmarks/starter_image.py --corpus corpus/open --model runs/starter-image/model --out runs/starter-figures

One image per caption of the test split (or a seeded draw of --count of them), so that generated and held-out images are
mixed alike; then `medisyn evaluate`. Writes figures.json, a sheet of 64 random samples, and the report.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from medisyn.corpus.loader import Corpus
from medisyn.evaluation.features.encoder import SHIPPED
from medisyn.recipes.evaluate_images import EvaluateSettings, evaluate_images
from medisyn.recipes.generate_images import generate_images
from medisyn.recipes.models import open_model
from medisyn.runs import environment, write_json
from medisyn.types import Request


def write_prompts(corpus: Corpus, path: Path, count: int, seed: int) -> int:
    """A prompt table with a key and the class columns for `count` captions of the test split."""
    rows = corpus.rows("test")
    order = np.random.default_rng(seed).permutation(len(rows))[:count]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["key", "prompt", "specialty", "image_type", "labels"])
        for number in sorted(order.tolist()):
            row = rows[number]
            writer.writerow([f"p{number:05d}", row.caption, row.specialty, row.image_type, ";".join(row.labels)])
    return len(order)


def write_sheet(folder: Path, path: Path, seed: int, side: int = 8) -> None:
    """side * side random images of the folder as one picture."""
    files = sorted(folder.glob("*.png"))
    chosen = np.random.default_rng(seed).permutation(len(files))[: side * side]
    tiles = [np.asarray(Image.open(files[number]).convert("RGB")) for number in chosen]
    rows = [np.concatenate(tiles[start : start + side], axis=1) for start in range(0, len(tiles), side)]
    Image.fromarray(np.concatenate([row for row in rows if row.shape == rows[0].shape])).save(path)


def seconds_per_image(model: str, steps: int, repeats: int = 5) -> dict[str, float]:
    """One image at a time, after loading and a first image."""
    opened = open_model(model, dtype="bfloat16")
    seconds = []
    for seed in range(repeats + 1):
        request = opened.resolve(
            Request(key="speed", prompt="Axial chest CT image, lung window", seed=seed, steps=steps)
        )
        start = time.perf_counter()
        opened.family.decode(opened.family.sample([request]))
        seconds.append(time.perf_counter() - start)
    return {"steps": steps, "median_s": float(np.median(seconds[1:])), "worst_s": max(seconds[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--judge", type=Path, default=SHIPPED / "judge", help="folder of the class judge")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    corpus = Corpus(options.corpus)
    count = write_prompts(corpus, options.out / "prompts.csv", options.count, options.seed)
    made = generate_images(
        prompts=options.out / "prompts.csv",
        model=options.model,
        out=options.out / "images",
        seed=options.seed,
        guidance=options.guidance,
    )
    write_sheet(options.out / "images", options.out / "samples.png", options.seed)
    found = evaluate_images(
        options.out / "images",
        options.corpus,
        EvaluateSettings(seed=options.seed, judge=str(options.judge)),
        cache=options.out / "cache",
        out=options.out / "report",
    )
    figures: dict[str, Any] = {
        "command": f"python benchmarks/starter_image.py --corpus {corpus.fingerprint} --model "
        f"{Path(options.model).name} --count {options.count} --seed {options.seed} --guidance {options.guidance}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "environment": environment(),
        "threads": torch.get_num_threads(),
        "prompts": count,
        "model_digest": open_model(options.model).digest,
        "generation": {name: value for name, value in made.as_dict().items() if name != "out"},
        "speed": seconds_per_image(options.model, 30),
        "evaluation": found.as_dict(),
    }
    if options.judge == SHIPPED / "judge":
        figures["evaluation"]["asked"]["judge"] = "the shipped judge"  # not where it lies on this machine
    write_json(options.out / "figures.json", figures)
    print(found.summary())
    print(json.dumps(figures["speed"]))


if __name__ == "__main__":
    main()
