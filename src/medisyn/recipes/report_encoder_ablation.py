"""Does it matter that the report encoder has read reports? One base model per encoder, else alike (MedSyn, Table VII).

    from medisyn.recipes.report_encoder_ablation import report_encoder_ablation

    found = report_encoder_ablation("corpus/", "ablation/", base="medsyn-base", encoder="medsyn-report-encoder")
    print(found.summary())

Two arms: "reports" is pre-trained on the corpus's reports, "generic" is the encoder that this started from: any BERT
checkpoint, or random weights. Seeds, steps, corpus and noise are the same; what differs is the encoder alone.

    out/reports, out/generic          each arm's base model, a run of `medisyn train`
    out/encoder                       the run of the report encoder; its start is the generic arm's encoder
    out/volumes/<arm>/<name>          volumes whose prompt names the finding, denies it, or is a report of the corpus
    out/report.html, result.json      the table; out/run.json says what was asked for

Every part is resumed by the same call.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn import runs
from medisyn.errors import ConfigError, InputError, closest
from medisyn.recipes import with_overrides
from medisyn.recipes.medsyn_reports import MedSynReportRun
from medisyn.recipes.medsyn_train import MedSynBaseRun, model_folder
from medisyn.recipes.train_preset import preset_for

if TYPE_CHECKING:
    from medisyn.evaluation.alignment import PromptPair
    from medisyn.evaluation.page import Table

Announce = Callable[[str], object]
DISTANCES = ("frechet", "frechet, real", "mmd", "mmd, real")
ARMS = {"generic": "generic encoder", "reports": "encoder pre-trained on reports"}


@dataclass(frozen=True)
class Asked:
    """What is generated with each model, and what is measured in it."""

    finding: str = "pleural effusion"
    measure: str = "effusion_ml"
    present: str = "Large pleural effusion."
    absent: str = "No pleural effusion."
    volumes: int = 32  # per prompt; as many again from reports of the corpus, for the distance

    def __post_init__(self) -> None:
        from medisyn.evaluation.anatomy_table import MEASURES

        if self.measure not in MEASURES:
            raise ConfigError(
                f"measure {self.measure!r} is unknown.{closest(self.measure, MEASURES)} Allowed: {', '.join(MEASURES)}"
            )
        if self.volumes < 2:
            raise ConfigError(f"volumes must be at least 2 per prompt, got {self.volumes}")


@dataclass(frozen=True)
class Ablation:
    """Per arm the test of the two prompts, and the distances to the corpus, where there were volumes enough."""

    pairs: Mapping[str, PromptPair]
    distances: Mapping[str, Mapping[str, float]]
    asked: Asked
    page: Path

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "kind": "report-encoder-ablation",
            "asked": dataclasses.asdict(self.asked),
            "pairs": {arm: dataclasses.asdict(pair) for arm, pair in self.pairs.items()},
            "distances": {arm: dict(found) for arm, found in self.distances.items()},
        }

    def summary(self) -> str:
        """A few lines for a terminal."""
        lines = []
        for arm, pair in self.pairs.items():
            apart = ", ".join(f"{name} {value:.4g}" for name, value in self.distances.get(arm, {}).items())
            lines.append(
                f"{ARMS[arm]}: {self.asked.measure} present {pair.mean_present:.4g} ± {pair.sd_present:.3g} "
                f"(n = {pair.n_present}), absent {pair.mean_absent:.4g} ± {pair.sd_absent:.3g} (n = {pair.n_absent}), "
                f"p = {pair.p:.2g}{', ' + apart if apart else ''}"
            )
        return "\n".join([*lines, f"Report: {self.page}"])


def report_encoder_ablation(
    corpus: Path | str,
    out: Path | str,
    *,
    base: str = "medsyn-base",
    encoder: str = "medsyn-report-encoder",
    assignments: Mapping[str, Sequence[str]] | None = None,
    asked: Asked | None = None,
    dtype: str = "auto",
    announce: Announce = lambda line: None,
) -> Ablation:
    """Train the base preset once per encoder, generate with both, and compare what prompts do.

    corpus       CTs with masks and reports, as `medisyn train medsyn-base` takes them
    base         a preset of a base model; its report_encoder must be left open
    encoder      a preset of a report encoder; its `start` may be a BERT checkpoint, which is then the generic arm
    assignments  "base" and "encoder" -> `key=value` changes of the presets, as of `medisyn train --set`

    Quantities are measured by the classical segmenter. Distances need 6 volumes and 12 CTs in the corpus. Raises
    ConfigError for presets of another kind, and whatever training, generating and measuring raise.
    """
    corpus, out, asked = Path(corpus), Path(out), asked or Asked()
    changes = assignments or {}
    reader, model = preset_for(encoder, changes.get("encoder", ())), preset_for(base, changes.get("base", ()))
    if not isinstance(reader, MedSynReportRun) or not isinstance(model, MedSynBaseRun):
        raise ConfigError(
            f"encoder must be a preset of a report encoder and base one of a base model, got {encoder!r} and {base!r}"
        )
    if model.report_encoder:
        raise ConfigError("report_encoder is what the two arms differ in; leave it out of the base preset")
    _train(reader, corpus, out / "encoder", announce)
    folders = {"generic": Path(reader.start) if reader.start else out / "encoder" / "start", "reports": out / "encoder"}
    measured: dict[str, dict[str, list[float]]] = {}
    distances: dict[str, dict[str, float]] = {}
    for arm, folder in folders.items():
        announce(f"{ARMS[arm]}: base model")
        _train(with_overrides(model, [f"report_encoder={folder}"]), corpus, out / arm, announce)
        measured[arm] = {
            name: _quantity(out, arm, name, prompt, asked, dtype)
            for name, prompt in (("present", asked.present), ("absent", asked.absent))
        }
        distances[arm] = _distances(corpus, out, arm, asked, dtype)
    return _compared(measured, distances, asked, out, {"base": base, "encoder": encoder, "corpus": corpus.name})


# Parts of the above


def _train(preset: MedSynReportRun | MedSynBaseRun, corpus: Path, out: Path, announce: Announce) -> None:
    preset.prepare(corpus, out, announce, processes=1)
    if preset.run(corpus, out, announce).interrupted:
        raise KeyboardInterrupt  # a checkpoint was written; the same call goes on


def _quantity(out: Path, arm: str, name: str, prompt: str, asked: Asked, dtype: str) -> list[float]:
    """The quantity in each volume of one prompt."""
    from medisyn.recipes.evaluate_anatomy import evaluate_anatomy
    from medisyn.recipes.generate_images import generate_images

    folder = out / "volumes" / arm / name
    generate_images(prompt, model=str(model_folder(out / arm)), out=folder, n=asked.volumes, dtype=dtype)
    found = evaluate_anatomy(folder, masks="classical", out=out / "anatomy" / arm / name)
    return [one.values[asked.measure] for one in found.volumes]


def _distances(corpus: Path, out: Path, arm: str, asked: Asked, dtype: str) -> dict[str, float]:
    """Fréchet and MMD of volumes from the corpus's reports to its CTs, and the same of real CTs; {} for too few."""
    from medisyn.evaluation.evaluate import Settings
    from medisyn.recipes.evaluate_anatomy import find_volumes
    from medisyn.recipes.evaluate_sets import SetSettings
    from medisyn.recipes.evaluate_volumes import evaluate_volumes
    from medisyn.recipes.generate_images import generate_images
    from medisyn.recipes.medsyn_corpus import find_cts, read_text

    found = [files for files in find_cts(corpus) if files.report is not None and files.ct.endswith(".nii.gz")]
    least = Settings().nearest_k + 1
    if not corpus.is_dir() or asked.volumes < least or len(found) < 2 * least:
        return {}
    folder = out / "volumes" / arm / "from-reports"
    prompts = [read_text(corpus, str(files.report)).strip() for files in found[: asked.volumes]]
    generate_images(prompts, model=str(model_folder(out / arm)), out=folder, dtype=dtype)
    cts = {
        "generated": [file.ct for file in find_volumes(folder)],
        "real": [corpus / files.ct for files in found[: 2 * asked.volumes]],
    }
    places = {kind: out / "features" / arm / kind for kind in cts}
    for kind, paths in cts.items():  # CTs alone: masks beside them would be read as volumes
        places[kind].mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(paths):
            shutil.copyfile(path, places[kind] / f"{number:05d}.nii.gz")
    result = evaluate_volumes(
        places["generated"],
        places["real"],
        SetSettings(extractor="medical-encoder-slices"),
        cache=out / "cache",
        out=out / "distances" / arm,
    ).result
    names = ("frechet", "mmd")
    ours = {one.name: one.value for one in result.measures if one.name in names}
    return {**ours, **{f"{one.name}, real": one.value for one in result.baseline if one.name in names}}


def _compared(
    measured: Mapping[str, Mapping[str, Sequence[float]]],
    distances: Mapping[str, Mapping[str, float]],
    asked: Asked,
    out: Path,
    told: Mapping[str, str],
) -> Ablation:
    """The tests, the page and run.json."""
    from medisyn.evaluation.alignment import prompt_pair
    from medisyn.evaluation.report import Page, write_report

    kept = {
        arm: {name: np.array(values)[np.isfinite(values)] for name, values in found.items()}
        for arm, found in measured.items()
    }
    for arm, found in kept.items():
        if min(map(len, found.values())) < 2:
            raise InputError(
                f"{ARMS[arm]}: {asked.measure} could be measured in {len(found['present'])} and "
                f"{len(found['absent'])} volumes; each prompt needs 2. Train longer, or choose another measure"
            )
    pairs = {arm: prompt_pair(found["present"], found["absent"]) for arm, found in kept.items()}
    result = Ablation(pairs, distances, asked, out / "report.html")
    page = Page(
        title="Generic against medical report encoder",
        facts=tuple((name, value) for name, value in told.items()),
        tables=(_table(pairs, distances, asked),),
        methods=(
            "Two base models of one preset, one seed and one corpus; only the weights of the frozen report encoder "
            f"differ. {asked.measure} by the classical, approximate segmenter in {asked.volumes} volumes per prompt.",
        ),
    )
    write_report(out, page, result.as_dict())
    runs.write_run(out, kind="train ablation", asked=dataclasses.asdict(asked), **told)
    return result


def _table(pairs: Mapping[str, PromptPair], distances: Mapping[str, Mapping[str, float]], asked: Asked) -> Table:
    """One row per arm."""
    from medisyn.evaluation.page import Table, Value
    from medisyn.evaluation.report import between, number

    rows, values = [], []
    for arm, pair in pairs.items():
        apart = distances.get(arm, {})
        rows.append(
            (
                ARMS[arm],
                f"{number(pair.mean_present)} ± {number(pair.sd_present)}",
                f"{number(pair.mean_absent)} ± {number(pair.sd_absent)}",
                f"{pair.n_present} and {pair.n_absent}",
                f"{pair.superiority:.1%} ({between(pair.superiority_interval)})",
                f"{pair.p:.2g}",
                *(number(apart[name]) if name in apart else "" for name in DISTANCES),
            )
        )
        for name, mean, n in (
            ("present", pair.mean_present, pair.n_present),
            ("absent", pair.mean_absent, pair.n_absent),
        ):
            values.append(Value(f"ablation_{asked.measure}", mean, f"{arm}, {name}", asked.finding, n=n))
    return Table(
        name="ablation",
        title=f"{asked.finding}: {asked.present!r} against {asked.absent!r}",
        text="MedSyn, Table VII. p: Mann-Whitney, one-sided. Superiority: the chance that a volume whose prompt names "
        "the finding measures more than one whose prompt denies it; 50 % is none.",
        columns=("encoder", "present", "absent", "n", "superiority", "p", *DISTANCES),
        rows=tuple(rows),
        numeric=frozenset(range(1, 6 + len(DISTANCES))),
        values=tuple(values),
    )
