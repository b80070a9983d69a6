"""The figures of a chest CT model's card: what prompts do, masks that are kept, segmentation, features, solvers, time.

    python benchmarks/starter_ct.py starter-ct --phantoms held-out/ --normals normals/ --count 32 --out figures/
    python benchmarks/starter_ct.py runs/ct/model --phantoms held-out/ --out figures/ --only segmentation,speed

`--phantoms` is a folder of `medisyn phantom ct` with another seed than the model's corpus; it should hold at least
twice --count. `--normals` is one of `medisyn phantom ct --findings none`, at least 20: a quantity's normal range is
theirs, measured as that of generated volumes is. Pairs and side need it. Each stage writes <out>/<stage>.json and is
not repeated while that is there (--again repeats it); volumes that are there are kept. figures.json and figures.md put
together what there is.
Quantities are measured in the CT alone, with the classical segmenter, in generated volumes and phantoms alike.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from starter_ct_table import markdown

from medisyn.corpus.readers import read_item
from medisyn.errors import InputError
from medisyn.evaluation.alignment import prompt_pair
from medisyn.evaluation.anatomy import dice, normal_range
from medisyn.evaluation.anatomy_table import FINDINGS, LOBE_MEASURES, says
from medisyn.evaluation.bootstrap import mean_interval, wilson
from medisyn.evaluation.segment_ct import segment_ct
from medisyn.machine import choose_device, fast_dtype
from medisyn.recipes.evaluate_anatomy import evaluate_anatomy, find_volumes
from medisyn.recipes.evaluate_sets import SetSettings
from medisyn.recipes.evaluate_volumes import evaluate_volumes
from medisyn.recipes.fixed_channels import generate_anatomy
from medisyn.recipes.generate_images import generate_images
from medisyn.recipes.medsyn_grid import mask_like
from medisyn.recipes.models import open_model
from medisyn.recipes.segment_volumes import dice_of, segment_volumes
from medisyn.runs import environment, read_jsonl, write_json, write_text
from medisyn.types import Request, Volume


@dataclass(frozen=True)
class Asked:
    """A pair of prompts and the quantity that the finding raises or lowers."""

    finding: str
    measure: str
    present: str
    absent: str
    direction: str = "higher"


# A small model may fill a side of the chest with what is too dense to be called fluid; the lungs tell, too.
PAIRS = {
    "effusion": Asked("effusion", "effusion_ml", "Large pleural effusion.", "No pleural effusion."),
    "effusion-lungs": Asked("effusion", "lung_ml", "Large pleural effusion.", "No pleural effusion.", "lower"),
    "cardiomegaly": Asked("cardiomegaly", "cardiothoracic_ratio", "Cardiomegaly.", "No cardiomegaly."),
    "bullae": Asked("bullae", "laa950_percent", "Bullous emphysema.", "No bullae or emphysema."),
    "bullae-910": Asked("bullae", "laa910_percent", "Bullous emphysema.", "No bullae or emphysema."),
}
SIDES = {side: f"Large {side} pleural effusion." for side in ("left", "right")}
SOLVERS = (("ddim", 50), ("dpmpp-2m", 25), ("dpmpp-2m", 15), ("dpmpp-2m", 8))  # the first is the one to be equalled
MASKS = ("lobe", "airway", "vessel")
RESAMPLES = 2000
READABLE = 0.9  # Dice of the lobes that the segmenter finds in a phantom's own CT: collapsed lobes are not to be found
READABLE_ROW = f"lobes, classical segmenter, where it reads the phantom with {READABLE} or more"
LEFT_LUNG = tuple(name for label, name in LOBE_MEASURES.items() if label in (1, 2))
RIGHT_LUNG = tuple(name for label, name in LOBE_MEASURES.items() if label in (3, 4, 5))


@dataclass(frozen=True)
class Bench:
    """What is measured, and where it goes."""

    model: str
    phantoms: Path
    count: int
    out: Path
    seed: int = 0
    dtype: str = "auto"
    normals: Path | None = None  # phantoms without findings

    def made(self, name: str, prompt: str) -> list[Mapping[str, float]]:
        """The quantities of `count` volumes of one prompt."""
        folder = self.out / "volumes" / name
        generate_images(prompt, model=self.model, out=folder, n=self.count, seed=self.seed, dtype=self.dtype)
        found = evaluate_anatomy(folder, masks="classical", out=self.out / "anatomy" / name)
        return [one.values for one in found.volumes]

    def truths(self) -> list[dict[str, Any]]:
        """truth.json of every held-out phantom."""
        return read_jsonl(self.phantoms / "phantoms.jsonl")

    def normal(self, measure: str) -> np.ndarray:
        """The measure in each phantom without findings; NaN where it could not be taken."""
        if self.normals is None:
            raise InputError("this stage needs --normals, a folder of `medisyn phantom ct --findings none`")
        return np.array([values[measure] for values in self._measured(self.normals, "normals").values()], dtype=float)

    def denying(self, finding: str, measure: str) -> np.ndarray:
        """The measure in each held-out phantom whose own report denies the finding."""
        found = self._measured(self.phantoms, "held-out")
        name = next(name for name in FINDINGS if finding in name)  # pleural effusion
        texts = {one["key"]: f"{one['findings_text']} {one['impression_text']}" for one in self.truths()}
        return np.array([found[key][measure] for key, text in texts.items() if says(text, name) is False], float)

    def _measured(self, folder: Path, name: str) -> dict[str, Mapping[str, float]]:
        """The quantities of each CT of a folder by its key, measured once."""
        place = self.out / f"{name}.json"
        if not place.is_file():
            found = evaluate_anatomy(folder, masks="classical", out=self.out / "anatomy" / name)
            write_json(place, [{"key": one.key, "values": _plain(one.values)} for one in found.volumes])
        return {one["key"]: one["values"] for one in json.loads(place.read_text())}

    def chosen(self) -> Path:
        """A folder with the first `count` phantoms."""
        folder = self.out / "chosen"
        for truth in self.truths()[: self.count]:
            if not (folder / truth["key"]).is_dir():
                shutil.copytree(self.phantoms / truth["key"], folder / truth["key"])
        return folder

    def reports(self) -> list[tuple[str, str]]:
        """Key and report of each chosen phantom."""
        folder = self.chosen()
        keys = [truth["key"] for truth in self.truths()[: self.count]]
        return [(key, (folder / key / "report.txt").read_text().strip()) for key in keys]


def pair(bench: Bench, name: str) -> dict[str, Any]:
    """One pair of prompts: the test, the medians, and where the denying arm lies among phantoms without findings.

    A denying volume that could not be measured counts as outside. Beside it stand held-out phantoms whose own report
    denies the finding: they have other findings, which the segmenter may take for this one.
    """
    asked = PAIRS[name]
    prompts = {"present": asked.present, "absent": asked.absent}
    arms = {
        arm: [values[asked.measure] for values in bench.made(f"{asked.finding}-{arm}", prompt)]
        for arm, prompt in prompts.items()
    }
    normals = bench.normal(asked.measure)
    usual = normal_range(normals)
    kept = {arm: np.array(values)[np.isfinite(values)] for arm, values in arms.items()}
    found = prompt_pair(
        kept["present"], kept["absent"], direction=asked.direction, normal_range=usual, resamples=RESAMPLES
    )
    assert found.absent_in_range is not None
    denied = len(arms["absent"])
    inside = round(found.absent_in_range * found.n_absent)
    interval = wilson(inside, denied)
    own = bench.denying(asked.finding, asked.measure)
    own_inside = int(((own >= usual[0]) & (own <= usual[1])).sum())
    denying = (
        {"inside": own_inside, "n": len(own), "interval": asdict(wilson(own_inside, len(own)))} if len(own) else None
    )
    return {
        "measure": asked.measure,
        "prompts": prompts,
        "medians": {arm: float(np.median(values)) for arm, values in kept.items()},
        "not_measured": {arm: len(arms[arm]) - len(values) for arm, values in kept.items()},
        "normal_range": usual,
        "n_normal": int(np.isfinite(normals).sum()),
        **_plain(asdict(found)),
        "absent_in_range": inside / denied,
        "absent_interval": asdict(interval),
        "phantoms_denying": denying,
        "reached": {"p < 0.001": found.p < 0.001, "absent inside the normal range": interval.high >= 0.95},
        "values": {arm: _plain(dict(enumerate(values))) for arm, values in arms.items()},
    }


def side(bench: Bench) -> dict[str, Any]:
    """How often the side that was asked for is the one with the larger part of the measured fluid; no fluid is wrong.

    `lungs`: how often its lung has a smaller share of the air than in 97.5 % of phantoms without findings.
    """
    left, right = (sum(bench.normal(name) for name in names) for names in (LEFT_LUNG, RIGHT_LUNG))
    low, high = normal_range(np.asarray(left / (left + right)))
    fluid: dict[str, list[bool]] = {}
    lungs: dict[str, list[bool]] = {}
    for asked, prompt in SIDES.items():
        other = "right" if asked == "left" else "left"
        rows = bench.made(f"side-{asked}", prompt)
        fluid[asked] = [row[f"effusion_{asked}_ml"] > row[f"effusion_{other}_ml"] for row in rows]
        shares = [_left_share(row) for row in rows]
        lungs[asked] = [share < low if asked == "left" else share > high for share in shares]
    return {"prompts": SIDES, **_right(fluid), "lungs": {**_right(lungs), "usual_left_share": (low, high)}}


def _left_share(row: Mapping[str, float]) -> float:
    """Of the air in the lungs, what the left one holds; NaN, which is no side, where no lung was found."""
    left, right = (sum(row[name] for name in names) for names in (LEFT_LUNG, RIGHT_LUNG))
    return left / (left + right) if left + right > 0 else float("nan")


def _right(by_side: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    both = [one for values in by_side.values() for one in values]
    share = sum(both) / len(both)
    return {
        "right": {asked: {"n": len(values), "right": sum(values)} for asked, values in by_side.items()},
        "share": share,
        "interval": asdict(wilson(sum(both), len(both))),
        "n": len(both),
        "reached": {"right in at least 90 %": share >= 0.9},
    }


def lobes(bench: Bench) -> dict[str, Any]:
    """Lobes of held-out phantoms are kept, with each phantom's report, and measured in the CT that came out.

    By the classical segmenter, and by the model, which is given the CT alone or with the report that it was made from.
    """
    table = bench.out / "lobes.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["key", "lobe", "prompt"])
        writer.writerows([key, Path("chosen") / key / "lobe.nii.gz", report] for key, report in bench.reports())
    folder = bench.out / "volumes" / "lobes"
    generate_anatomy(masks=table, fix=("lobe",), model=bench.model, out=folder, seed=bench.seed, dtype=bench.dtype)
    # The model's own reading of the CT that it made: the CT is kept, the masks are drawn again.
    made = find_volumes(folder)
    told = bench.out / "lobes-made.csv"
    with told.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["ct", "report"])
        writer.writerows([file.ct.name, report] for file, (_, report) in zip(made, bench.reports(), strict=True))
    out = bench.out / "volumes" / "lobes-read"
    segment_volumes(folder, report=told, model=bench.model, out=out, dtype=bench.dtype)
    blind, reading = (sorted(out.glob(f"*-{arm}-lobe.nii.gz")) for arm in ("alone", "report"))
    scores: dict[str, list[float]] = {}
    for file, phantom, *read in zip(made, find_volumes(bench.chosen()), blind, reading, strict=True):
        ct, own = _ct(file.ct), _ct(phantom.ct)
        assert file.key.startswith(f"{phantom.key}-"), "both folders are in the order of their keys"
        given, truth = _mask(file.masks["lobe"], ct), _mask(phantom.masks["lobe"], own)
        found, found_own = segment_ct(ct).masks["lobe"], segment_ct(own).masks["lobe"]
        lobes_found = dice_of({"lobe": found}, {"lobe": given})["lobe"]
        lobes_own = dice_of({"lobe": found_own}, {"lobe": truth})["lobe"]
        _add(scores, "lungs, classical segmenter", dice(found, given))
        _add(scores, "lobes, classical segmenter", lobes_found)
        for name, mask in zip(("lobes, the model reading its CT", "the same with the report"), read, strict=True):
            _add(scores, name, dice_of({"lobe": _mask(mask, ct)}, {"lobe": given})["lobe"])
        _add(scores, "phantoms: lungs, classical segmenter", dice(found_own, truth))
        _add(scores, "phantoms: lobes, classical segmenter", lobes_own)
        if lobes_own >= READABLE:
            _add(scores, READABLE_ROW, lobes_found)
            _add(scores, f"phantoms: {READABLE_ROW}", lobes_own)
    dices = {name: _mean(values) for name, values in scores.items()}
    reached = dices["lobes, classical segmenter"]["mean"] >= 0.9
    return {"dice": dices, "reached": {"measured lobes, Dice at least 0.9": reached}}


def segmentation(bench: Bench) -> dict[str, Any]:
    """The model with the CT kept, with report and without, against the classical segmenter on the same phantoms."""
    folder, out = bench.chosen(), bench.out / "volumes" / "segmentation"
    segment_volumes(folder, model=bench.model, out=out, seed=bench.seed, dtype=bench.dtype)
    scores: dict[str, dict[str, list[float]]] = {}
    for file in find_volumes(folder):
        ct = _ct(file.ct)
        truth = {name: _mask(file.masks[name], ct) for name in MASKS}
        found = {"classical": dict(segment_ct(ct).masks)}
        for arm in ("report", "alone"):
            found[arm] = {name: _mask(out / f"{file.key}-{arm}-{name}.nii.gz", ct) for name in MASKS}
        for method, masks in found.items():
            for name, value in dice_of(_in_lungs(masks, truth["lobe"]), _in_lungs(truth, truth["lobe"])).items():
                scores.setdefault(method, {}).setdefault(name, []).append(value)
    differences = {
        f"{one} against {other}, {name}": _mean(list(np.subtract(scores[one][name], scores[other][name])))
        for one, other in (("report", "classical"), ("alone", "classical"), ("report", "alone"))
        for name in MASKS
    }
    better = {
        f"{name}: beats the classical segmenter": differences[f"report against classical, {name}"]["low"] > 0
        for name in MASKS
    }
    helps = {f"{name}: the report helps": differences[f"report against alone, {name}"]["low"] > 0 for name in MASKS}
    return {
        "note": "vessels are compared inside the true lungs, where the classical segmenter looks for them",
        "dice": {f"{method}, {name}": _mean(values) for method, by in scores.items() for name, values in by.items()},
        "differences": differences,
        "reached": {**better, **helps},
    }


def features(bench: Bench) -> dict[str, Any]:
    """Distances in the shipped features: generated to one half of real phantoms, beside the other half to it."""
    found = _distances(bench, "reports", {})
    close = {
        row["name"]: row["value"] <= row["real_interval"]["high"]
        for row in found["rows"]
        if row["name"] in ("mmd", "frechet")
    }
    return {**found, "reached": {f"{name} within the interval of real against real": ok for name, ok in close.items()}}


def solver(bench: Bench) -> dict[str, Any]:
    """Fewer calls against the first of SOLVERS: distances in features, and the fluid against what the report says."""
    wanted = {truth["key"]: truth["truth"]["effusion_ml"] for truth in bench.truths()}
    rows: dict[str, Any] = {}
    errors: dict[str, np.ndarray] = {}
    for name, steps in SOLVERS:
        label = f"{name}-{steps}"
        found = _distances(bench, f"solver-{label}", {"solver": name, "steps": steps})
        measured = evaluate_anatomy(
            bench.out / "volumes" / f"solver-{label}", masks="classical", out=bench.out / "anatomy" / f"solver-{label}"
        )
        errors[label] = np.array([abs(one.values["effusion_ml"] - wanted[one.key]) for one in measured.volumes])
        rows[label] = {
            "calls_of_the_base_model": steps + (name == "ddim"),
            "seconds_per_volume": found["seconds_per_volume"],
            "distances": found["rows"],
            "effusion_ml_absolute_error": _mean(list(errors[label])),
        }
    first = next(iter(rows))
    for label, row in rows.items():
        change = _mean(list(errors[label] - errors[first]))
        row["error_against_first"] = change
        near = [
            one["interval"]["low"] <= other["interval"]["high"]
            for one, other in zip(row["distances"], rows[first]["distances"], strict=True)
            if one["name"] in ("mmd", "frechet")
        ]
        row["not_measurably_worse"] = bool(change["low"] <= 0 and all(near))
    quick = [label for label, row in rows.items() if row["not_measurably_worse"] and label != first]
    return {
        "solvers": rows,
        "reached": {f"fewer calls than {first}, not measurably worse": bool(quick)},
        "as_good": quick,
    }


def speed(bench: Bench) -> dict[str, Any]:
    """One volume at a time, after loading and a first volume."""
    device = choose_device("auto")
    opened = open_model(bench.model, device=device, dtype=fast_dtype(device) if bench.dtype == "auto" else bench.dtype)
    seconds = []
    for seed in range(4):
        request = opened.resolve(Request(key="speed", prompt=PAIRS["effusion"].absent, seed=seed))
        start = time.perf_counter()
        opened.family.decode(opened.family.sample([request]))
        seconds.append(time.perf_counter() - start)
    median = float(np.median(seconds[1:]))
    told = {"device": device, "threads": torch.get_num_threads(), "solver": opened.solver, "n": len(seconds) - 1}
    reached = {"at most 60 s a volume": median <= 60}
    return {**told, "median_s": median, "worst_s": max(seconds[1:]), "reached": reached}


STAGES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    **{name: (lambda bench, name=name: pair(bench, name)) for name in PAIRS},  # type: ignore[misc]
    "side": side,
    "lobes": lobes,
    "segmentation": segmentation,
    "features": features,
    "solver": solver,
    "speed": speed,
}


def _distances(bench: Bench, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Volumes of the chosen phantoms' reports, and their distances to held-out phantoms at equal n."""
    table, folder = bench.out / "reports.csv", bench.out / "volumes" / name
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["key", "prompt"])
        writer.writerows(bench.reports())
    made = generate_images(prompts=table, model=bench.model, out=folder, seed=bench.seed, dtype=bench.dtype, **options)
    timing = json.loads((folder / "run.json").read_text())["timing"]
    cts = {
        "generated": {file.key: file.ct for file in find_volumes(folder)},
        "real": {truth["key"]: bench.phantoms / truth["key"] / "ct.nii.gz" for truth in bench.truths()},
    }
    for kind, files in cts.items():
        place = bench.out / "features" / (name if kind == "generated" else kind)
        place.mkdir(parents=True, exist_ok=True)
        for key, path in list(files.items())[: bench.count * (1 if kind == "generated" else 2)]:
            shutil.copyfile(path, place / f"{key}.nii.gz")
    found = evaluate_volumes(
        bench.out / "features" / name,
        bench.out / "features" / "real",
        SetSettings(extractor="medical-encoder-slices", seed=bench.seed),
        cache=bench.out / "cache",
        out=bench.out / "distances" / name,
    )
    rows = [
        {
            **{key: value for key, value in _plain(asdict(one)).items() if key in ("name", "value", "interval")},
            "n": [one.n_first, one.n_real],
            "real_value": other.value,
            "real_interval": _plain(asdict(other.interval)),
            "n_real_against_real": [other.n_first, other.n_real],
        }
        for one, other in zip(found.result.measures, found.result.baseline, strict=True)
    ]
    assert made.made + made.skipped == len(cts["generated"])
    return {
        "extractor": found.result.measures[0].extractor,
        "rows": rows,
        "seconds_per_volume": timing["seconds"] / max(timing["pictures"], 1),
    }


def _ct(path: Path) -> Volume:
    item = read_item(path, modality="CT")
    assert isinstance(item, Volume), "NIfTI files are read as volumes"
    return item


def _mask(path: Path, ct: Volume) -> np.ndarray:
    item = read_item(path)
    assert isinstance(item, Volume), "NIfTI files are read as volumes"
    return mask_like(item, ct, path.name, path.name).astype(np.uint8)


def _in_lungs(masks: Mapping[str, np.ndarray], lobes_DHW: np.ndarray) -> dict[str, np.ndarray]:
    return {name: mask * (lobes_DHW > 0) if name == "vessel" else mask for name, mask in masks.items()}


def _add(scores: dict[str, list[float]], name: str, value: float) -> None:
    scores.setdefault(name, []).append(value)


def _mean(values: Sequence[float]) -> dict[str, Any]:
    """Mean, SD, bootstrap interval of the mean and n; NaN left out."""
    kept = np.array(values, dtype=float)
    kept = kept[np.isfinite(kept)]
    if len(kept) < 2:
        return {"mean": float("nan"), "sd": float("nan"), "low": float("nan"), "high": float("nan"), "n": len(kept)}
    inside = mean_interval(kept, resamples=RESAMPLES, seed=0)
    spread = float(kept.std(ddof=1))
    return {"mean": float(kept.mean()), "sd": spread, "low": inside.low, "high": inside.high, "n": len(kept)}


def _plain(values: Mapping[Any, Any]) -> dict[str, Any]:
    """NaN as null, for JSON."""
    return {
        str(key): (
            _plain(value) if isinstance(value, Mapping)
            else None if isinstance(value, float) and not np.isfinite(value)
            else value
        )
        for key, value in values.items()
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--phantoms", type=Path, required=True)
    parser.add_argument("--normals", type=Path, help="phantoms without findings")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=32, help="volumes per prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--only", default=",".join(STAGES), help=f"of {', '.join(STAGES)}, with commas")
    parser.add_argument("--again", action="store_true", help="repeat stages that are there")
    options = parser.parse_args(arguments)
    asked = [name.strip() for name in options.only.split(",")]
    for name in asked:
        if name not in STAGES:
            parser.error(f"--only {name!r} is unknown, allowed: {', '.join(STAGES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    named = ("model", "phantoms", "count", "out", "seed", "dtype", "normals")
    bench = Bench(**{name: getattr(options, name) for name in named})
    for name in asked:
        place = options.out / f"{name}.json"
        if options.again or not place.is_file():
            print(name, flush=True)
            write_json(place, {"stage": name, "count": bench.count, **STAGES[name](bench)})
    there = {name: options.out / f"{name}.json" for name in STAGES}
    figures = {
        "command": f"python benchmarks/starter_ct.py MODEL --phantoms PHANTOMS --normals NORMALS --count {bench.count} "
        f"--seed {bench.seed}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "environment": environment(),
        "model_digest": open_model(bench.model).digest,
        "phantoms": len(bench.truths()),
        "masks": "classical, approximate",
        "stages": {name: json.loads(place.read_text()) for name, place in there.items() if place.is_file()},
    }
    write_json(options.out / "figures.json", figures)
    write_text(options.out / "figures.md", markdown(figures))
    print(markdown(figures))


if __name__ == "__main__":
    main()
