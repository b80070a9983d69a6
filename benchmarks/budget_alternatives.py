"""Textual inversion, LoRA, DreamBooth and a plain fine-tune on the same pictures of one class, in one table.

Medical diffusion on a budget names the first three by memory and size on disk (section 2.1) and compares none. Here all
four learn from the same pictures of the same corpus, drawn by the same seed, and see as many of them in all, each in a
process of its own that reports its highest resident memory and its time. Then each makes as many images from the same
seeds. They are compared with the same held-out real images of the class, beside the untrained base under plain prompts
(of which the best may be chosen after the fact, in its favour) and beside real training images.

    python benchmarks/budget_alternatives.py --corpus CORPUS --class cardiomegaly \
        --real-class "chest X-ray/cardiomegaly" --prompt "sks chest X-ray image" --class-prompt "chest X-ray image" \
        --plain "Frontal (PA) chest X-ray image" --plain "chest X-ray showing cardiomegaly" --work DIR

The learning rates of `METHODS` are ours, for starter-image: the published ones are for models of 900 million weights.
For LoRA and the whole U-Net they are the better of two that were tried once, on 1,000 pictures seen, by the distance to
held-out images: that favours those three. Textual inversion has the paper's.
`--set lora:learning_rate=1e-3` changes a value of one method. What is done already in DIR is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import runs
from medisyn.seeding import seed_for

RESULTS = Path(__file__).parent / "results"
MEASURES = ("frechet", "kid")
TOKEN = "<subject>"
PLACES = ("corpus", "weights", "work", "result", "worker")
SMALL = ("gradient_checkpointing=false", "preview.pictures=0", "checkpoint_every=1000000", "keep_last=1")


@dataclass(frozen=True)
class Method:
    """A preset with the values that make the four comparable; `batch` pictures of the class in every step."""

    title: str
    preset: str
    batch: int
    assignments: tuple[str, ...]


METHODS = {
    "inversion": Method(
        "textual inversion",
        "textual-inversion",
        1,
        (f"tokens={TOKEN}", "init=", "frozen_dtype=float32", "learning_rate=0.005"),
    ),
    "lora": Method("LoRA", "sd-lora", 4, ("learning_rate=3e-3",)),
    "dreambooth": Method("DreamBooth", "dreambooth", 4, ("learning_rate=3e-4", "prior_dtype=float32")),
    "finetune": Method("plain fine-tune", "dreambooth", 4, ("learning_rate=3e-4", "prior_images=0")),
}


def main(arguments: Sequence[str] | None = None) -> None:
    args = parsed(arguments)
    if args.worker:
        measure(**json.loads(args.worker))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    trained = {name: train(name, args) for name in METHODS}
    prompts = {name: TOKEN if name == "inversion" else args.prompt for name in METHODS}
    shown = argparse.Namespace(**{**vars(args), "base": Path(args.base).name})  # results name no place on a machine
    models = {name: str(args.work / "runs" / name) for name in METHODS}
    for number, prompt in enumerate(args.plain):
        models[f"base-{number}"], prompts[f"base-{number}"] = args.base, prompt
    for name, prompt in prompts.items():
        generate(name, models[name], prompt, args)
    found = compare(list(prompts), args)
    result = {
        "date": datetime.date.today().isoformat(),
        "asked": {name: value for name, value in vars(shown).items() if name not in PLACES},
        "trained": {name: {**one, "assignments": assignments_of(name, shown)} for name, one in trained.items()},
        "prompts": prompts,
        **found,
        "environment": runs.environment(),
    }
    out = args.result or RESULTS / f"budget-alternatives-{result['date']}.json"
    runs.write_json(out, json.loads(json.dumps(result, default=str)))
    print(table(result))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="", help="what is learnt from, and what it is compared with")
    parser.add_argument("--class", dest="name", default="", help="label or image type whose pictures are learnt")
    parser.add_argument("--real-class", default="", help='the same as "image type/label", of the held-out real images')
    parser.add_argument("--prompt", default="", help="what the class is called while learning: a rare word and a noun")
    parser.add_argument("--class-prompt", default="", help="the noun alone, for DreamBooth's prior")
    parser.add_argument("--plain", action="append", default=[], help="a prompt for the untrained base; repeatable")
    parser.add_argument("--base", default="starter-image")
    parser.add_argument("--images", type=int, default=100, help="pictures of the class to learn from")
    parser.add_argument("--seen", type=int, default=2000, help="pictures that each method sees in all its steps")
    parser.add_argument("--vectors", type=int, default=64)
    parser.add_argument("--prior-images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=30, help="sampling steps")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("-n", type=int, default=200, help="images made by each method")
    parser.add_argument("--split", default="test", help="of the held-out real images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--extractor", default="medical-encoder")
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--set", dest="changes", action="append", default=[], help="METHOD:key=value")
    parser.add_argument("--work", type=Path, default=Path("budget-alternatives"))
    parser.add_argument("--result", type=Path, default=None)
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if not args.worker:
        for name in ("corpus", "name", "real_class", "prompt", "class_prompt", "plain"):
            if not getattr(args, name):
                parser.error(f"--{name.replace('_', '-')} is needed".replace("--name", "--class"))
        for change in args.changes:
            if change.partition(":")[0] not in METHODS:
                parser.error(f"--set {change}: write METHOD:key=value, where METHOD is one of {', '.join(METHODS)}")
    return args


def assignments_of(name: str, args: argparse.Namespace) -> list[str]:
    """The key=value changes of one method: what all share, its own, and the caller's."""
    method = METHODS[name]
    shared = [
        f"base={args.base}",
        f"classes={args.name}",
        f"images={args.images}",
        f"train.seed={args.seed}",
        f"train.batch_size={method.batch}",
        f"micro_batch_size={method.batch}",
        f"num_steps={-(-args.seen // method.batch)}",
        *SMALL,
    ]
    own = {
        "inversion": [f"num_vectors={args.vectors}"],
        "lora": [f"prompt={args.prompt}"],
        "dreambooth": [
            f"prompt={args.prompt}",
            f"class_prompt={args.class_prompt}",
            f"prior_images={args.prior_images}",
            f"prior_steps={args.steps}",
            f"prior_guidance={args.guidance}",
        ],
        "finetune": [f"prompt={args.prompt}"],
    }[name]
    theirs = [change.partition(":")[2] for change in args.changes if change.partition(":")[0] == name]
    return [*shared, *method.assignments, *own, *theirs]


def train(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """What `measure` found, in a process of its own; a run that was cut short is made anew, so that times are whole.

    Exits when the folder holds a run of other values or another corpus.
    """
    from medisyn.corpus.loader import Corpus

    run, assignments = args.work / "runs" / name, assignments_of(name, args)
    known = run / "measured.json"
    if not known.exists():
        if run.exists():
            shutil.rmtree(run)
        preset = METHODS[name].preset
        in_own_process({"preset": preset, "assignments": assignments, "corpus": args.corpus, "out": str(run)})
    found = dict(json.loads(known.read_text()))
    if (found["assignments"], found["corpus"]) != (assignments, Corpus(Path(args.corpus)).fingerprint):
        raise SystemExit(f"{args.work.name}/runs/{name} was trained with other values: choose another --work")
    return found


def in_own_process(task: dict[str, Any]) -> None:
    subprocess.run([sys.executable, __file__, "--worker", json.dumps(task)], check=True)


def measure(preset: str, assignments: Sequence[str], corpus: str, out: str) -> None:
    """Train here and now; write memory (MB), seconds and the megabytes learnt to OUT/measured.json."""
    import diffusers  # noqa: F401  so that what the libraries take is known before
    import transformers  # noqa: F401

    from medisyn.corpus.loader import Corpus
    from medisyn.recipes.train_preset import preset_for
    from medisyn.training import loop  # noqa: F401

    run, libraries = preset_for(preset, assignments), peak_mb()
    times = [(time.perf_counter(), time.process_time())]
    run.prepare(Path(corpus), Path(out), say, processes=1)
    prepared = peak_mb()
    times.append((time.perf_counter(), time.process_time()))
    report = run.run(Path(corpus), Path(out), say)
    times.append((time.perf_counter(), time.process_time()))
    if report.as_dict()["interrupted"]:
        raise KeyboardInterrupt
    (prepare_s, prepare_cpu), (train_s, train_cpu) = np.diff(times, axis=0).tolist()
    learnt = sum(file.stat().st_size for file in (Path(out) / "model").rglob("*.safetensors"))
    record = {
        "preset": preset,
        "assignments": list(assignments),
        "corpus": Corpus(Path(corpus)).fingerprint,
        "steps": report.as_dict()["steps_done"],
        "megabytes": learnt / 1e6,
        "peak_mb": peak_mb(),
        "peak_mb_before_training": prepared,
        "libraries_mb": libraries,
        "prepare_seconds": prepare_s,
        "train_seconds": train_s,
        "processor_seconds": prepare_cpu + train_cpu,
    }
    runs.write_json(Path(out) / "measured.json", record)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def peak_mb() -> float:
    """Highest resident memory of this process so far, in megabytes of 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def generate(name: str, model: str, prompt: str, args: argparse.Namespace) -> None:
    from medisyn.recipes.generate_images import generate_images

    say(f"images of {name}: {prompt}")
    generate_images(
        prompt,
        model=model,
        out=args.work / "images" / name,
        n=args.n,
        seed=args.seed,
        steps=args.steps,
        guidance=args.guidance,
    )


def compare(names: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """Distances of every set to the held-out real images with intervals and ranks, and of real training images."""
    from medisyn.corpus.loader import Corpus
    from medisyn.evaluation.features import load_extractor
    from medisyn.evaluation.features.cache import FeatureCache
    from medisyn.evaluation.ranking import rank_sets
    from medisyn.recipes.corpus_images import corpus_images, generated_images
    from medisyn.recipes.evaluate_sets import features_of

    corpus = Corpus(Path(args.corpus))
    real, training = (
        [image for image in corpus_images(corpus, split) if image.name == args.real_class]
        for split in (args.split, "train")
    )
    if not real or not training:
        raise SystemExit(f"the splits {args.split} and train need real images of the class {args.real_class!r}")
    drawn = np.random.default_rng(seed_for(args.seed, "baseline")).permutation(len(training))[: args.n]
    extractor = load_extractor(args.extractor, args.weights)
    store = FeatureCache(args.work / "features", extractor)
    sets = [features_of(generated_images(args.work / "images" / name, []), extractor, store, name) for name in names]
    held_out = features_of(real, extractor, store, "real")
    baseline = features_of([training[number] for number in sorted(drawn)], extractor, store, "real training")
    distances: dict[str, Any] = {}
    for measure_name in MEASURES:
        options: dict[str, Any] = {"resamples": args.resamples, "seed": args.seed}
        ranked = rank_sets(sets, held_out, measure_name, **options)
        (real_to_real,) = rank_sets([baseline], held_out, measure_name, **options)
        distances[measure_name] = {name: dataclasses.asdict(one) for name, one in zip(names, ranked, strict=True)}
        distances[measure_name]["real"] = dataclasses.asdict(real_to_real)
    return {
        "distances": distances,
        "n": len(sets[0]),
        "n_real": len(real),
        "n_real_training": len(baseline),
        "extractor": held_out.extractor,
        "preprocessing": held_out.preprocessing,
        "corpus": corpus.fingerprint,
    }


def table(result: dict[str, Any]) -> str:
    """The Markdown table: methods, then the base under each plain prompt (the best one marked), then real to real."""
    distances = result["distances"]
    bases = [name for name in result["prompts"] if name.startswith("base-")]
    best = min(bases, key=lambda name: distances["frechet"][name]["value"])
    lines = [
        "| method | MB learnt | peak MB | before s | training s | Fréchet distance | rank | kernel distance | rank |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, found in result["trained"].items():
        costs = (
            f"{found['megabytes']:.3g}",
            f"{found['peak_mb']:.0f}",
            f"{found['prepare_seconds']:.0f}",
            f"{found['train_seconds']:.0f}",
        )
        title = f"{METHODS[name].title}, {found['steps']} steps"
        lines.append(f"| {title} | {' | '.join(costs)} | {_distances(distances, name)} |")
    for name in bases:
        mark = " (best plain prompt)" if name == best else ""
        lines.append(f"| base, {result['prompts'][name]!r}{mark} | 0 | | | | {_distances(distances, name)} |")
    lines.append(f"| real training images | | | | | {_distances(distances, 'real', ranked=False)} |")
    libraries = max(found["libraries_mb"] for found in result["trained"].values())
    lines.append("")
    lines.append(
        f"n = {result['n']} generated and {result['n_real']} held-out real images ({result['n_real_training']} real "
        f"training images); intervals are 95 % bootstraps. Sets of one rank are not told apart. Of the peak memory, "
        f"{libraries:.0f} MB are the libraries. Before training, pictures are encoded, and DreamBooth's prior is made."
    )
    return "\n".join(lines)


def _distances(distances: dict[str, Any], name: str, *, ranked: bool = True) -> str:
    cells = []
    for measure_name in MEASURES:
        found = distances[measure_name][name]
        interval = found["interval"]
        cells.append(f"{found['value']:.3g} ({interval['low']:.3g} to {interval['high']:.3g})")
        cells.append(str(found["rank"]) if ranked else "")
    return " | ".join(cells)


if __name__ == "__main__":
    main()
