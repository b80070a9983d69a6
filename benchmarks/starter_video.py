"""The figures of a heart clip model's card: ejection fraction by prompt, motion by factor, flicker, distance, time.

    medisyn phantom ultrasound -n 128 --seed 1000 --out held-out/
    python benchmarks/starter_video.py starter-video --phantoms held-out/ --out runs/starter-video-figures

The prompts stand in <out>/*.csv. Three sets are made: 32 clips for each of two prompts, series that differ in the
motion factor alone, and one clip for each held-out phantom with that phantom's caption. Ejection fraction is measured
by the phantoms' own rule on the frames alone. Clips that are there are kept; repeat the command to go on. figures.json
puts together what there is.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medisyn import runs
from medisyn.recipes.evaluate_clips import evaluate_clips
from medisyn.recipes.evaluate_motion import evaluate_motion
from medisyn.recipes.generate_images import generate_images

FUNCTION = "Apical four-chamber view. Left ventricular systolic function is {}. No pericardial effusion."
GRADES = ("normal", "severely reduced")
FACTORS = (200.0, 250.0, 300.0, 350.0, 400.0, 450.0, 500.0)  # 273 to 476 hold 90 % of held-out phantoms


def function_rows(count: int) -> list[dict[str, Any]]:
    """`count` clips of each prompt, with the same seeds."""
    return [{"prompt": FUNCTION.format(grade), "seed": seed} for grade in GRADES for seed in range(count)]


def factor_rows(series: int) -> list[dict[str, Any]]:
    """One prompt and seed at every factor."""
    prompt = FUNCTION.format(GRADES[0])
    return [{"prompt": prompt, "seed": 500 + one, "motion": factor} for one in range(series) for factor in FACTORS]


def caption_rows(phantoms: Path) -> list[dict[str, Any]]:
    """The caption of every held-out phantom."""
    captions = sorted(phantoms.glob("heart-*/caption.txt"))
    return [{"prompt": file.read_text().strip(), "seed": 900 + number} for number, file in enumerate(captions)]


def make(model: str, rows: Sequence[Mapping[str, Any]], out: Path, options: Mapping[str, Any]) -> Path:
    """The clips of a table of prompts."""
    table = out.with_suffix(".csv")
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    generate_images(prompts=table, model=model, out=out, **options)
    return out


def changed(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """The options that differ from the defaults, without folders."""
    given = {name: value for name, value in vars(args).items() if name not in ("model", "phantoms", "out")}
    return " ".join(f"--{name} {value}" for name, value in given.items() if value != parser.get_default(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--phantoms", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=32, help="clips of each of the two prompts")
    parser.add_argument("--series", type=int, default=8, help="series of clips that differ in the motion factor")
    parser.add_argument("--motion", type=float, default=None, help="of the first and third set; default: the model's")
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--batch-size", type=int, default=4)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    options = {"guidance": args.guidance, "batch_size": args.batch_size, "formats": ("mkv", "gif")}

    start = time.perf_counter()
    told = {**options, "motion": args.motion}
    function = make(args.model, function_rows(args.count), args.out / "function", told)
    seconds = (time.perf_counter() - start) / (2 * args.count)
    factor = make(args.model, factor_rows(args.series), args.out / "factor", options)
    captions = make(args.model, caption_rows(args.phantoms), args.out / "captions", told)

    pairs = evaluate_motion(function, args.phantoms, out=args.out / "function-motion")
    factors = evaluate_motion(factor, args.phantoms, out=args.out / "factor-motion")
    alike = evaluate_motion(captions, args.phantoms, out=args.out / "captions-motion")
    distances = evaluate_clips(captions, args.phantoms, out=args.out / "captions-distances")
    for found in (pairs, factors, alike, distances):
        print(found.summary(), flush=True)
    figures = {
        "model": args.model,
        "command": f"python benchmarks/starter_video.py {args.model} --phantoms HELD_OUT {changed(parser, args)}",
        "seconds_per_clip": seconds,  # of the first set; nothing where its clips were there before
        "function": pairs.as_dict(),
        "factor": factors.as_dict()["factor"],
        "ratios": alike.as_dict()["ratios"],
        "distances": distances.as_dict(),
        "environment": runs.environment(),
    }
    for one in ("clips", "held_out"):
        figures["function"].pop(one)
    runs.write_json(args.out / "figures.json", figures)


if __name__ == "__main__":
    main()
