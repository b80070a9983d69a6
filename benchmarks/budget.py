"""Medical diffusion on a budget at reduced size: a class that starter-image has never seen, taught with 64 vectors.

    medisyn curate cxr_pneumoniamnist_28 --root DATA --size 128 --out CORPUS
    python benchmarks/budget.py --corpus CORPUS --out DIR
    python benchmarks/budget.py --corpus CORPUS --out DIR2 --steps 300 --rate 0.005 --init "" --only cases,vectors

`--subject lung` teaches lung ultrasound instead, from the corpus of lung_frames.py; judge, interpolate, inpaint and
utility need a class without the finding and are pneumonia's alone.

cases, vectors  the paper's Tables 3 and 2: embeddings of few pictures, and of few vectors (medisyn sweep)
distance        the word against plain prompts, both distances to held-out pictures of the class
grid            the paper's Table 1: steps and guidance (medisyn sweep)
judge           classifiers of real pictures: of whole ones, and of one lung's field
interpolate     from one word to the other by weight: does the classifier's score rise?
inpaint         the word painted into one lung of held-out pictures without pneumonia: what is seen there, and opposite?
utility, utility-few  the paper's Table 4: a classifier's AUC from real and synthetic pictures (medisyn utility)

Each stage writes DIR/<stage>.json and is not repeated while that is there; what it made goes on where it stopped.
figures.json puts together what there is. Held-out pictures (split test) chose no setting; they name the best plain
prompt, in its favour.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medisyn.corpus.loader import Corpus
from medisyn.evaluation.bootstrap import mean_interval, wilson
from medisyn.evaluation.features import load_extractor
from medisyn.evaluation.features.cache import FeatureCache
from medisyn.evaluation.ranking import MEASURES, rank_sets
from medisyn.recipes.corpus_images import LabelledImage, corpus_images, generated_images
from medisyn.recipes.embedding_convert import convert_embeddings
from medisyn.recipes.evaluate_sets import features_of
from medisyn.recipes.generate_images import generate_images
from medisyn.recipes.inpaint_images import inpaint_images
from medisyn.recipes.interpolate_images import interpolate_images, log_odds_of
from medisyn.recipes.medical_encoder import train_judge
from medisyn.recipes.sweep import SweepResult, SweepSettings, sweep
from medisyn.recipes.train_preset import train_preset
from medisyn.recipes.utility import utility
from medisyn.runs import environment, write_json
from medisyn.seeding import seed_for

BASE = "starter-image"


@dataclass(frozen=True)
class Subject:
    """A class that the base has never seen.

    label, other  labels of the corpus: the class, and the one without its finding where there is such a one
    plain         prompts that may come near it; the first is the corpus's own caption
    init          words that the new word starts from
    """

    image_type: str
    label: str
    other: str | None
    plain: tuple[str, ...]
    init: str

    @property
    def token(self) -> str:
        return f"<{self.label}>"

    @property
    def tokens(self) -> dict[str, str]:
        """The new word of each label."""
        return {self.label: self.token} | ({} if self.other is None else {self.other: "<well>"})


SUBJECTS = {
    "pneumonia": Subject(
        "chest X-ray",
        "pneumonia",
        "no pneumonia",
        (
            "Low-resolution frontal paediatric chest X-ray image showing pneumonia",
            "Frontal (PA) chest X-ray image",
            "Frontal (AP) chest X-ray image",
            "chest X-ray showing pneumonia",
            "Lateral chest X-ray image",
        ),
        "chest X-ray",
    ),
    "lung": Subject(
        "ultrasound",
        "lung",
        None,
        (
            "Lung ultrasound image",
            "ultrasound image",
            "Nerve ultrasound image",
            "Nerve ultrasound image showing nerve and blood vessel",
            "Nerve ultrasound image showing blood vessel",
        ),
        "ultrasound image",
    ),
}
VECTORS, CASES = ("8", "16", "32", "64"), ("5", "10", "50", "100")
FRAMES = 5
FIELD = (12, 22, 46, 84)  # x, y, width, height of one lung's field in 128 pixels; the other is its mirror image
REGION = {"left of image": FIELD, "right of image": (128 - FIELD[0] - FIELD[2], *FIELD[1:])}
CLASSIFIER = ("network=10", "width=16", "size=32", "learning_rate=0.001", "evaluations=5", "seeds=10")


@dataclass(frozen=True)
class Bench:
    """What is taught, for how long, and where everything goes."""

    corpus: Path
    out: Path
    subject: Subject
    steps: int
    rate: float
    init: str
    n: int
    series: int
    paintings: int
    synthetic: int
    batches: int
    sampling: int
    guidance: float
    judged: int
    seed: int = 0

    @property
    def trained(self) -> list[str]:
        """Changes of the preset that all words share: batches of 4 where the paper has 1, and no memory saved."""
        return [
            f"base={BASE}", f"init={self.init}", f"num_steps={self.steps}", f"learning_rate={self.rate}",
            "train.batch_size=4", "micro_batch_size=4", "frozen_dtype=float32", "gradient_checkpointing=false",
            "preview.pictures=0", f"train.seed={self.seed}", *self._judge,
        ]  # fmt: skip

    @property
    def _judge(self) -> list[str]:
        """The last checkpoint is the word, or the one whose pictures are nearest to validation pictures."""
        if not self.judged:
            return ["checkpoint_every=1000000"]
        return [
            "checkpoint_every=50", f"judge.images={self.judged}", f"judge.steps={self.sampling}",
            f"judge.guidance={self.guidance}",
        ]  # fmt: skip

    @property
    def made(self) -> dict[str, Any]:
        return {"steps": self.sampling, "guidance": self.guidance, "seed": self.seed}

    @property
    def target(self) -> str:
        """The class as `medisyn evaluate` names it."""
        return f"{self.subject.image_type}/{self.subject.label}"

    @property
    def labels(self) -> tuple[str, str]:
        """The class and the other one. SystemExit where the subject has no other."""
        if self.subject.other is None:
            raise SystemExit(f"{self.subject.label}: there is no class beside it, so this stage cannot be run")
        return self.subject.label, self.subject.other

    def real(self, split: str, label: str) -> list[LabelledImage]:
        return [
            one for one in corpus_images(Corpus(self.corpus), split) if one.name == f"{self.subject.image_type}/{label}"
        ]

    def swept(self, name: str, vary: Mapping[str, Sequence[str]], **changes: Any) -> SweepResult:
        settings = SweepSettings(
            **{"prompt": self.subject.token, "n": self.n, "seed": self.seed, "real_class": self.target, **changes}
        )
        return sweep(self.corpus, vary, self.out / name, settings, announce=print)


def table(found: SweepResult) -> dict[str, Any]:
    """The cells of a sweep with both distances and ranks."""
    return {
        "cells": [{**one.cell, **{name: asdict(one.ranked[name]) for name in MEASURES}} for one in found.cells],
        "training": [{**one.cell, **one.training} for one in found.cells if one.training],
        "real_to_real": {name: asdict(one) for name, one in found.real.items()},
        "n": found.n,
        "n_real": found.n_real,
        "extractor": found.extractor,
        "summary": found.summary(),
    }


def taught(bench: Bench, name: str, vary: Mapping[str, Sequence[str]], other: str) -> dict[str, Any]:
    """A sweep that trains the word of the class; `other` is the setting that the other sweep varies."""
    assignments = (*bench.trained, f"tokens={bench.subject.token}", f"classes={bench.subject.label}", other)
    found = bench.swept(
        name, vary, preset="textual-inversion", corpus=str(bench.corpus), assignments=assignments, **_sampled(bench)
    )
    return {**table(found), "assignments": list(assignments)}


def _sampled(bench: Bench) -> dict[str, Any]:
    """A table of one prompt: a sweep reads steps and guidance from it where they are not varied."""
    path = bench.out / "prompt.csv"
    row = {"prompt": bench.subject.token, "n": bench.n, "steps": bench.sampling, "guidance": bench.guidance}
    _write_table(path, [row])
    return {"prompt": "", "prompts": str(path)}


def cases(bench: Bench) -> dict[str, Any]:
    return taught(bench, "sweep-cases", {"images": CASES}, "num_vectors=64")


def vectors(bench: Bench) -> dict[str, Any]:
    for part in ("runs", "cells"):  # trained and made by `cases`
        shared = bench.out / "sweep-cases" / part / "images-100"
        shutil.copytree(shared, bench.out / "sweep-vectors" / part / "num_vectors-64", dirs_exist_ok=True)
    return taught(bench, "sweep-vectors", {"num_vectors": VECTORS}, "images=100")


def word(bench: Bench, label: str, images: int) -> Path:
    """The run of a word with 64 vectors; trained where it is not there."""
    run = bench.out / "words" / f"{label.replace(' ', '-')}-{images}"
    changes = [f"tokens={bench.subject.tokens[label]}", f"classes={label}", f"images={images}", "num_vectors=64"]
    train_preset("textual-inversion", bench.corpus, run, assignments=[*bench.trained, *changes], announce=print)
    return run


def pair(bench: Bench, images: int) -> str:
    """A model folder with both words, each learnt from so many pictures."""
    folder = bench.out / "words" / f"both-{images}"
    files = [word(bench, label, images) / "model" / "learned_embeds.safetensors" for label in bench.labels]
    if not folder.is_dir():
        convert_embeddings(files, folder, base=BASE)
    return str(folder)


def distance(bench: Bench) -> dict[str, Any]:
    """The word beside the untrained base under plain prompts; the best of these is named by the held-out pictures."""
    subject = bench.subject
    folders = {subject.token: bench.out / "plain" / "word"}
    learnt = str(word(bench, subject.label, 100))
    generate_images(subject.token, model=learnt, out=folders[subject.token], n=bench.n, **bench.made)
    for number, prompt in enumerate(subject.plain):
        folders[prompt] = bench.out / "plain" / str(number)
        generate_images(prompt, model=BASE, out=folders[prompt], n=bench.n, **bench.made)
    extractor = load_extractor("medical-encoder", None)
    store = FeatureCache(bench.out / "features", extractor)
    training = bench.real("train", subject.label)
    drawn = np.random.default_rng(seed_for(bench.seed, "baseline")).permutation(len(training))[: bench.n]
    sets = [features_of(generated_images(folder, []), extractor, store, name) for name, folder in folders.items()]
    held_out = features_of(bench.real("test", subject.label), extractor, store, "held-out")
    baseline = features_of([training[number] for number in sorted(drawn)], extractor, store, "training")
    found: dict[str, Any] = {"n": bench.n, "n_real": len(held_out), "extractor": held_out.extractor}
    for measure in MEASURES:
        ranked = rank_sets(sets, held_out, measure, resamples=200, seed=bench.seed)
        (real,) = rank_sets([baseline], held_out, measure, resamples=200, seed=bench.seed)
        rows = dict(zip(folders, ranked, strict=True))
        best = min((one.value, prompt) for prompt, one in rows.items() if prompt in subject.plain)[1]
        found[measure] = {name: asdict(one) for name, one in rows.items()} | {"real to real": asdict(real)}
        found[measure]["best plain prompt"] = best
        found[measure]["share of the best plain prompt"] = rows[subject.token].value / rows[best].value
    return found


def grid(bench: Bench) -> dict[str, Any]:
    vary = {"steps": ("5", "10", "25"), "guidance": ("1", "2", "4")}
    return table(bench.swept("sweep-grid", vary, model=str(word(bench, bench.subject.label, 100))))


def judge(bench: Bench) -> dict[str, Any]:
    """Accuracy on held-out pictures of the two classifiers."""
    found = {}
    for name, turn in (("whole", lambda image: [image]), ("field", _fields)):
        train, held_out = (
            [part for label in bench.labels for one in bench.real(split, label) for part in turn(one)]
            for split in ("train", "test")
        )
        folder, record = bench.out / "judges" / name, {"trained_on": Corpus(bench.corpus).fingerprint}
        found[name] = train_judge(train, held_out, folder, steps=200, seed=bench.seed + 1, record=record)
    return found


def _fields(image: LabelledImage) -> list[LabelledImage]:
    """Both fields, each with the label of the whole picture: pneumonia of one side mislabels the other."""

    def field(side: str, place: tuple[int, int, int, int]) -> LabelledImage:
        return replace(image, read=lambda: crop(image.read(), place), key=f"{image.key}/{side}")

    return [field(side, place) for side, place in REGION.items()]


def crop(pixels_HWC: np.ndarray, place: tuple[int, int, int, int]) -> np.ndarray:
    x, y, width, height = place
    return np.ascontiguousarray(pixels_HWC[y : y + height, x : x + width])


def interpolate(bench: Bench) -> dict[str, Any]:
    label, other = bench.labels
    words = bench.subject.tokens
    report = interpolate_images(
        words[other], words[label], frames=FRAMES, n=bench.series, model=pair(bench, 100),
        out=bench.out / "interpolate", target=bench.target, judge=bench.out / "judges" / "whole", **bench.made,
    )  # fmt: skip
    assert report.monotone is not None
    return {**report.monotone.as_dict(), "scored_by": report.scored_by}


def inpaint(bench: Bench) -> dict[str, Any]:
    """Log-odds of pneumonia in the painted field and in the opposite one, before and after, for either word."""
    from scipy.stats import wilcoxon

    originals = bench.real("test", bench.labels[1])[: bench.paintings]
    sides = [list(REGION)[number % 2] for number in range(len(originals))]
    folder, rows = bench.out / "inpaint", []
    (folder / "originals").mkdir(parents=True, exist_ok=True)
    for number, (image, side) in enumerate(zip(originals, sides, strict=True)):
        path = folder / "originals" / f"{number:03d}.png"
        Image.fromarray(image.read()).save(path)
        box = ",".join(map(str, REGION[side]))
        rows += [
            {"image": f"originals/{path.name}", "mask": f"box:{box}", "prompt": prompt, "key": f"{number:03d}-{name}",
             "seed": seed_for(bench.seed, f"painting/{number}") % 2**31}
            for name, prompt in zip(("ill", "well"), bench.subject.tokens.values(), strict=True)
        ]  # fmt: skip
    _write_table(folder / "table.csv", rows)
    inpaint_images(
        table=folder / "table.csv", model=pair(bench, 100), out=folder / "painted", feather=6,
        steps=bench.sampling, guidance=bench.guidance,
    )  # fmt: skip
    score, scored_by = log_odds_of(bench.target, bench.out / "judges" / "field")

    def scores(name: str, opposite: bool) -> np.ndarray:
        fields = []
        for number, side in enumerate(sides):
            place = REGION[side] if not opposite else next(REGION[other] for other in REGION if other != side)
            fields.append(crop(np.asarray(Image.open(folder / name.format(number)).convert("RGB")), place))
        return np.asarray(score(fields))

    before, other_before = (scores("originals/{:03d}.png", opposite) for opposite in (False, True))
    inside, outside = (scores("painted/{:03d}-ill.png", opposite) for opposite in (False, True))
    well = scores("painted/{:03d}-well.png", False)
    changes = {
        "inside, painted <pneumonia> - original": inside - before,
        "opposite field, painted <pneumonia> - original": outside - other_before,
        "painted <pneumonia>: inside - opposite": inside - outside,
        "original: same two fields": before - other_before,
        "inside, painted <pneumonia> - painted <well>": inside - well,
        "inside, painted <well> - original": well - before,
    }
    fields = {"original": before, "<pneumonia>": inside, "<well>": well, "opposite of <pneumonia>": outside}
    return {
        "n": len(sides),
        "scored_by": scored_by,
        "field": FIELD,
        "log_odds": {
            name: {
                "mean": float(values.mean()),
                **asdict(mean_interval(values, resamples=2000, seed=bench.seed)),
                "p_wilcoxon": float(wilcoxon(values).pvalue) if values.any() else 1.0,
                "above_zero": int((values > 0).sum()),
            }
            for name, values in changes.items()
        },
        "field_called_pneumonia": {name: _share(values > 0) for name, values in fields.items()},
    }


def _share(hits_N: np.ndarray) -> dict[str, Any]:
    return {"hits": int(hits_N.sum()), "n": len(hits_N), **asdict(wilson(int(hits_N.sum()), len(hits_N)))}


def worth(bench: Bench) -> dict[str, Any]:
    few, many = 200, bench.synthetic
    return _worth(bench, 100, [f"{few}+0", f"0+{few}", f"0+{many}", f"{few}+{few}", f"{few}+{many}"])


def worth_of_few(bench: Bench) -> dict[str, Any]:
    """The rows that the paper marks with a star: words that were learnt from 10 pictures."""
    return _worth(bench, 10, ["200+0", f"0+{bench.synthetic}", f"200+{bench.synthetic}"])


def _worth(bench: Bench, images: int, arms: Sequence[str]) -> dict[str, Any]:
    folder = bench.out / "utility" / str(images)
    folder.parent.mkdir(exist_ok=True)
    prompts = folder.with_suffix(".csv")
    rows = [
        {"key": label.replace(" ", "-"), "prompt": token, "specialty": "radiology",
         "image_type": bench.subject.image_type, "labels": label, "n": bench.synthetic // 2}
        for label, token in bench.subject.tokens.items()
    ]  # fmt: skip
    _write_table(prompts, rows)
    generate_images(prompts=prompts, model=pair(bench, images), out=folder, **bench.made)
    settings = [*CLASSIFIER, f"table={','.join(arms)}", f"steps={bench.batches}"]
    report = folder.with_name(f"{images}-report")
    result = utility(bench.corpus, folder, "budget", settings, trained_on=bench.corpus, out=report, announce=print)
    content = result.as_dict()
    for arm in content["auroc"]["arms"].values():
        arm |= {"mean": float(np.mean(arm["per_run"])), "sd": float(np.std(arm["per_run"], ddof=1))}
    kept = ("auroc", "reference", "n_test", "leakage", "warnings", "scaling")
    return {**{key: content[key] for key in kept}, "assignments": settings}


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


STAGES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "cases": cases,
    "distance": distance,
    "judge": judge,
    "interpolate": interpolate,
    "vectors": vectors,
    "grid": grid,
    "utility": worth,
    "utility-few": worth_of_few,
    "inpaint": inpaint,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600, help="training steps of a word, of 4 pictures each")
    parser.add_argument("--rate", type=float, default=0.002, help="learning rate; the paper's is 0.005")
    parser.add_argument("--subject", choices=SUBJECTS, default="pneumonia", help="the class that is taught")
    parser.add_argument(
        "--init", help="words to start from, by default the subject's; empty: drawn as the vocabulary is"
    )
    parser.add_argument("-n", "--n", type=int, default=100, help="pictures per cell and prompt")
    parser.add_argument("--series", type=int, default=24, help="seeds of the interpolation")
    parser.add_argument("--paintings", type=int, default=40)
    parser.add_argument("--synthetic", type=int, default=300, help="of the largest arm; the paper's is 2,000")
    parser.add_argument("--batches", type=int, default=200, help="of each classifier; the paper's is 6,250")
    parser.add_argument("--sampling", type=int, default=10, help="solver steps")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--judged", type=int, default=0, help="pictures by which the best of all checkpoints is kept")
    parser.add_argument("--seed", type=int, default=0, help="of training and of generation")
    parser.add_argument("--only", default=",".join(STAGES), help=f"of {', '.join(STAGES)}, with commas")
    options = vars(parser.parse_args(arguments))
    asked = [name.strip() for name in options.pop("only").split(",")]
    for name in asked:
        if name not in STAGES:
            parser.error(f"--only {name!r} is unknown, allowed: {', '.join(STAGES)}")
    given_options = {name: value for name, value in options.items() if name not in ("corpus", "out")}
    subject = SUBJECTS[options.pop("subject")]
    options["init"] = subject.init if options["init"] is None else options["init"]
    bench = Bench(**options, subject=subject)
    bench.out.mkdir(parents=True, exist_ok=True)
    given = [part for name, value in given_options.items() if value is not None for part in (f"--{name}", str(value))]
    for name in asked:
        place, started = bench.out / f"{name}.json", time.perf_counter()
        if not place.is_file():
            print(name, flush=True)
            found = STAGES[name](bench)
            seconds = round(time.perf_counter() - started)
            command = ["python", "benchmarks/budget.py", "--corpus", "CORPUS", "--out", "DIR", *given, "--only", name]
            write_json(place, {"stage": name, "command": shlex.join(command), "seconds": seconds, **found})
    there = {name: bench.out / f"{name}.json" for name in STAGES}
    figures = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "corpus": Corpus(bench.corpus).fingerprint,
        "environment": environment(),
        "stages": {name: json.loads(place.read_text()) for name, place in there.items() if place.is_file()},
    }
    write_json(bench.out / "figures.json", figures)


if __name__ == "__main__":
    main()
