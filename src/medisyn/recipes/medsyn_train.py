"""MedSyn's two diffusion models as runs of `medisyn train`: the base model, and super-resolution, which joins them.

Shapes here: B samples; D, H, W of a model's grid.
Every CT is encoded once, in float16, before training starts: `out/encoded` takes 2 bytes for each voxel of each of the
four channels. Beside the rows stands what was read: spacing, share of the grid that the scan reached, mask files.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn import runs
from medisyn.errors import ConfigError, ModelError
from medisyn.families.medsyn.config import Grid, MedSynConfig, MedSynDefaults, SuperResolutionConfig, UNetConfig
from medisyn.recipes.medsyn_corpus import MASKS, CtData, CtReader, find_cts, fingerprint
from medisyn.training.settings import TrainSettings, resolved

if TYPE_CHECKING:
    from medisyn.families.base import Encoded, Family
    from medisyn.families.medsyn.base_model import MedSynBase
    from medisyn.families.medsyn.networks import MedSynUNet
    from medisyn.families.medsyn.superres import MedSynSuperResolution
    from medisyn.training.loop import TrainReport
    from medisyn.training.precompute import EncodedStore
    from medisyn.types import Sample

Announce = Callable[[str], object]
SUPERRES = "superres"  # folder of the network inside a cascade
SUPERRES_FILE = "superres.json"  # grid and settings beside the weights of a super-resolution network
SHARD_BYTES = 2**28
HALF = 0.5  # a scan that reaches less of the grid than this is told


@dataclass(frozen=True, kw_only=True)
class MedSynBaseRun:
    """The base model: CT, lobes, airways and vessels at the small grid, from a report.

    start_from: a MedSyn model, by name or folder, whose base model of the same network the run goes on from; ""
    begins with random weights.
    """

    summary: str
    start_from: str = ""
    report_encoder: str = ""  # folder of a trained report encoder, of its run, or of a MedSyn model
    network: UNetConfig
    grid: Grid = field(default_factory=Grid)
    model: MedSynConfig = field(default_factory=MedSynConfig)
    defaults: MedSynDefaults = field(default_factory=MedSynDefaults)
    data: CtData = field(default_factory=CtData)
    train: TrainSettings
    preview_prompts: tuple[str, ...] = ()

    def plan(self, corpus: Path, out: Path, announce: Announce) -> None:
        """Volumes, disk, steps and the memory of one process, measured on the first CT; `out` is left alone."""
        family, reader = self.family(), self.reader(corpus)
        _tell_plan(family, reader, self.train, announce)

    def prepare(self, corpus: Path, out: Path, announce: Announce, *, processes: int) -> None:
        """Check that the run can be resumed, and encode every CT and report once."""
        _prepare(self, self.family(), corpus, out, announce)

    def run(self, corpus: Path, out: Path, announce: Announce) -> TrainReport:
        """One training process's part. The model is a MedSyn folder without super-resolution."""
        from medisyn.families.medsyn.cascade import MedSyn
        from medisyn.recipes.medsyn_preview import VolumePreview

        family = self.family()
        preview = VolumePreview(family, self.preview_prompts) if self.preview_prompts else None
        return _train(self, family, corpus, out, announce, save=MedSyn(family).save, preview=preview)

    def family(self) -> MedSynBase:
        """The untrained model; the same settings give the same weights."""
        from medisyn.families.medsyn.base_model import MedSynBase
        from medisyn.families.medsyn.networks import build_unet
        from medisyn.families.medsyn.report_encoder import open_encoder

        encoder, tokenizer = open_encoder(self._encoder_folder())
        unet = started_unet(self.start_from, "base", self.network) or build_unet(self.network, seed=self.train.seed)
        return MedSynBase(unet, encoder, tokenizer, self.grid, self.model, self.defaults)

    def reader(self, corpus: Path) -> CtReader:
        return CtReader(corpus, find_cts(corpus), self.data, self.grid)

    def record(self) -> dict[str, Any]:
        """What a resumed run must share, besides the settings: the encoder by its weights, not by its folder."""
        started = weights_digest(_part(self.start_from, "base")) if self.start_from else ""
        return {**_record(self), "report_encoder": weights_digest(self._encoder_folder()), "start_from": started}

    def reads_anew(self) -> bool:
        """Whether the network has not been trained on this report encoder's vectors yet."""
        if not self.start_from:
            return True
        theirs = _part(self.start_from, "base").parent / "report_encoder"
        return weights_digest(theirs) != weights_digest(self._encoder_folder())

    def rows_depend_on(self) -> dict[str, Any]:
        record = self.record()
        told = {name: record[name] for name in ("report_encoder", "grid", "data")}
        return {"model": "base", **told, "tokens": self.network.text_tokens, **self._lengths()}

    def _lengths(self) -> dict[str, str]:
        return {"long": self.model.long_reports, "short": self.model.short_reports}

    def _encoder_folder(self) -> Path:
        if not self.report_encoder:
            raise ConfigError(
                "a base model reads reports through a trained encoder: give --set report_encoder=FOLDER, the run of "
                "`medisyn train medsyn-report-encoder`"
            )
        folder = Path(self.report_encoder)
        return next((part for name in ("model", "report_encoder") if (part := folder / name).is_dir()), folder)


@dataclass(frozen=True, kw_only=True)
class MedSynSuperResolutionRun:
    """Super-resolution of all four channels, trained on crops; with `base`, the two are joined to one model.

    start_from: a MedSyn model with super-resolution of the same network, or a run of it; "" begins with random weights
    """

    summary: str
    start_from: str = ""
    base: str = ""  # a trained base model; "" leaves joining to a later call of the same command, or to `join_medsyn`
    network: UNetConfig
    grid: Grid = field(default_factory=Grid)  # of the base model
    superres: SuperResolutionConfig = field(default_factory=SuperResolutionConfig)
    defaults: MedSynDefaults = field(default_factory=MedSynDefaults)
    data: CtData = field(default_factory=CtData)
    train: TrainSettings

    def plan(self, corpus: Path, out: Path, announce: Announce) -> None:
        """As the base model's."""
        _tell_plan(self.family(), self.reader(corpus), self.train, announce)

    def prepare(self, corpus: Path, out: Path, announce: Announce, *, processes: int) -> None:
        """Check that base and refiner fit and that the run can be resumed, and encode every CT once."""
        self._check_base()
        _prepare(self, self.family(), corpus, out, announce)

    def run(self, corpus: Path, out: Path, announce: Announce) -> TrainReport:
        """One training process's part; at the end of a whole run `out/model` is the cascade, where a base is given."""
        from accelerate import PartialState

        family = self.family()
        report = _train(self, family, corpus, out, announce, save=self._saver(family), preview=None)
        if report.interrupted or not PartialState().is_main_process:
            return report
        if self.base:
            with runs.lock(out), runs.atomic_folder(out / "model") as joined:
                join_medsyn(Path(self.base), out / "model", joined, defaults=self.defaults)
            announce(f"joined with its base model in {out.name}/model")
        else:
            announce("not joined: repeat the command with --set base=FOLDER to get a model that generates")
        return report

    def family(self) -> MedSynSuperResolution:
        """The untrained model; the same settings give the same weights."""
        from medisyn.families.medsyn.networks import build_unet
        from medisyn.families.medsyn.superres import MedSynSuperResolution

        unet = started_unet(self.start_from, SUPERRES, self.network) or build_unet(self.network, seed=self.train.seed)
        return MedSynSuperResolution(unet, self.grid, self.superres, self.defaults)

    def reader(self, corpus: Path) -> CtReader:
        return CtReader(corpus, find_cts(corpus), self.data, self.grid, needs_report=False)

    def record(self) -> dict[str, Any]:
        """What a resumed run must share, besides the settings; the base is joined afterwards and may come later."""
        started = weights_digest(_part(self.start_from, SUPERRES)) if self.start_from else ""
        kept = {name: value for name, value in _record(self).items() if name not in ("base", "defaults")}
        return {**kept, "start_from": started}

    def rows_depend_on(self) -> dict[str, Any]:
        record = self.record()
        return {"model": "superres", "grid": record["grid"], "data": record["data"], "factor": self.superres.factor}

    def _saver(self, family: MedSynSuperResolution) -> Callable[[Path], None]:
        from medisyn.families.medsyn.folders import save_part

        settings = {"grid": dataclasses.asdict(self.grid), "superres": dataclasses.asdict(self.superres)}

        def save(folder: Path) -> None:
            save_part(family.unet, folder)
            runs.write_json(folder / SUPERRES_FILE, settings)

        return save

    def _check_base(self) -> None:
        """Before hours of training, not after them."""
        from medisyn.families.medsyn.folders import FOLDER

        if self.base:
            theirs = _tupled(Grid, FOLDER.read_settings(model_folder(Path(self.base)))["grid"])
            for name in ("shape", "spacing_mm", "axes", "hu_knots"):
                have, wanted = getattr(theirs, name), getattr(self.grid, name)
                if have != wanted:
                    raise ConfigError(
                        f"base: its grid has {name} {have}, this run refines {wanted}: they do not belong "
                        f"together. Train both on one grid."
                    )


def join_medsyn(
    base: Path, superres: Path, out: Path, *, dtype: str | None = None, defaults: MedSynDefaults | None = None
) -> None:
    """Write the cascade of a trained base model and a trained super-resolution model to `out`.

    base, superres  folders of the models or of their runs; `dtype` of the stored weights, None keeps theirs
    defaults        solver, steps, guidance and tiles of the cascade; None: the base model's

    Raises ModelError when one of them is not what it should be, or they do not fit together.
    """
    from medisyn.families.medsyn.cascade import MedSyn
    from medisyn.families.medsyn.folders import open_unet
    from medisyn.families.medsyn.superres import MedSynSuperResolution

    opened = MedSyn.from_folder(model_folder(base))
    if defaults is not None:
        opened = opened.with_defaults(**vars(defaults))
    folder = model_folder(superres)
    if not (folder / SUPERRES_FILE).is_file():
        raise ModelError(
            f"{superres.name}/ is no super-resolution model: {SUPERRES_FILE} is missing. Give the folder of a run of "
            f"medsyn-superres."
        )
    settings = json.loads((folder / SUPERRES_FILE).read_text())
    grid, config = _tupled(Grid, settings["grid"]), _tupled(SuperResolutionConfig, settings["superres"])
    refiner = MedSynSuperResolution(open_unet(folder), grid, config, opened.base.defaults)
    MedSyn(opened.base, refiner).save(out, dtype=dtype)


def started_unet(place: str, part: str, wanted: UNetConfig) -> MedSynUNet | None:
    """The network `part` ("base" or "superres") of a model, to train on from; None for no place.

    A network of patches may go on from the one of the same size without. Raises ConfigError when its size is not
    `wanted`.
    """
    from medisyn.families.medsyn.folders import open_unet
    from medisyn.families.medsyn.networks import build_unet

    if not place:
        return None
    network = open_unet(_part(place, part))
    have = {name: network.config[name] for name in dataclasses.asdict(wanted)}
    differing = [name for name, value in dataclasses.asdict(wanted).items() if _plain(have[name]) != _plain(value)]
    if differing == ["patch"] and have["patch"] == 1:
        finer = build_unet(wanted)
        finer.begin_with_coarser(network)
        return finer
    if differing:
        raise ConfigError(
            f"start_from={place}: its {part} network has another {', '.join(differing)} "
            f"({', '.join(str(have[name]) for name in differing)}) than this run's. Start from a model of the same "
            f"network, or from random weights with start_from=."
        )
    return network


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _part(place: str, part: str) -> Path:
    """The folder of a network inside a model, or that of a super-resolution run, which holds nothing else."""
    from medisyn.recipes.models import find_model
    from medisyn.recipes.shipped_models import MAKES

    folder = find_model(place).folder if place in MAKES else model_folder(Path(place))
    return folder / part if (folder / part).is_dir() else folder


def model_folder(folder: Path) -> Path:
    """The folder of a model: its own, or `model/` inside that of its run."""
    return folder / "model" if (folder / "model").is_dir() else folder


def weights_digest(folder: Path) -> str:
    """sha256 over the weights and vocabulary in a folder. Raises ModelError when there are no weights."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"{folder.name}/ holds no .safetensors weights. Give the folder of a trained report encoder.")
    files = [*weights, *(file for name in ("vocab.txt", "tokenizer.json") if (file := folder / name).is_file())]
    return runs.digest([runs.file_sha256(file) for file in files])


# ---- what both runs do


def _record(run: Any) -> dict[str, Any]:
    values = dataclasses.asdict(run)
    return {name: value for name, value in values.items() if name not in ("summary", "train", "preview_prompts")}


def _prepare(run: Any, family: Any, corpus: Path, out: Path, announce: Announce) -> None:
    from medisyn.training.run import refuse_another_run

    reader, corpus_digest = run.reader(corpus), fingerprint(corpus)
    settings = resolved(run.train.settled(len(reader.found)))
    with runs.lock(out):
        refuse_another_run(out, {**run.record(), "train": settings}, corpus_digest)
        store = _store(run, family, reader, out, corpus_digest)
    for line in told_of(store):
        announce(line)


def _train(
    run: Any,
    family: Any,
    corpus: Path,
    out: Path,
    announce: Announce,
    *,
    save: Callable[[Path], object],
    preview: Callable[[Path], object] | None,
) -> TrainReport:
    from medisyn.training.launch import local_device
    from medisyn.training.loop import train

    corpus_digest = fingerprint(corpus)
    store = _store(run, family, run.reader(corpus), out, corpus_digest)
    if family.unet.reads_text and run.reads_anew():
        family.unet.begin_with_reports(store.column("text"))  # a resumed run reads its null text from the checkpoint
    family.to(local_device())
    return train(
        family,
        store,
        run.train,
        out,
        save_model=save,
        preview=preview,
        config=run.record(),
        corpus=corpus_digest,
        notes={"volumes": told_of(store)},
        announce=announce,
    )


def _store(run: Any, family: Any, reader: CtReader, out: Path, corpus_digest: str) -> EncodedStore:
    from medisyn.training.precompute import precompute

    row_bytes = 2 * (len(MASKS) + 1)
    for side in family.grid.shape:
        row_bytes *= side
    return precompute(
        out / "encoded",
        [files.key for files in reader.found],
        reader,
        lambda: lambda samples: encode_with_facts(family, samples),
        encoder=runs.digest(run.rows_depend_on()),
        corpus=corpus_digest,
        shard_rows=max(1, SHARD_BYTES // row_bytes),
        batch_size=1,
    )


def encode_with_facts(family: Family, samples: Sequence[Sample]) -> Encoded:
    """The family's rows, and what is known of each scan: spacing (B, 3) in mm, covered share, mask files."""
    import torch

    facts = [sample.metadata for sample in samples]
    return {
        **family.encode(samples),
        "spacing_mm": torch.tensor([one["spacing_mm"] for one in facts], dtype=torch.float32),
        "covered": torch.tensor([one["covered"] for one in facts], dtype=torch.float32),
        "num_masks": torch.tensor([one["num_masks"] for one in facts]),
    }


def told_of(store: EncodedStore) -> list[str]:
    """What was read, for a person and for run.json."""
    spacing_N3, covered_N, masks_N = (store.column(name) for name in ("spacing_mm", "covered", "num_masks"))
    low, high = spacing_N3.min(dim=0).values.tolist(), spacing_N3.max(dim=0).values.tolist()
    ranges = ", ".join(f"{a:.2f} to {b:.2f}" if b - a > 1e-3 else f"{a:.2f}" for a, b in zip(low, high, strict=True))
    lines = [f"{len(store)} CT volumes with voxels of {ranges} mm"]
    if (without := int((masks_N < len(MASKS)).sum())) > 0:
        lines.append(f"{without} of them lack masks: their channels are empty, and no anatomy is learnt from them")
    if (small := int((covered_N < HALF).sum())) > 0:
        lines.append(f"{small} of them reach less than half of the model's field of view; the rest is air")
    return lines


def _tell_plan(family: Any, reader: CtReader, settings: TrainSettings, announce: Announce) -> None:
    from medisyn.training import memory

    count = len(reader.found)
    rows = encode_with_facts(family, [reader(0)])
    full, groups = settings.settled(count), family.trainable()
    estimate = memory.estimate(family, groups, {name: tensor[0] for name, tensor in rows.items()}, full)
    weights = sum(parameter.numel() for group in groups for parameter in group.parameters)
    disk = count * sum(tensor.numel() * tensor.element_size() for tensor in rows.values())
    announce(f"{count} CT volumes; encoded rows take {disk / 1e9:.2f} GB")
    announce(f"{full.num_steps} steps of {full.batch_size}; {weights / 1e6:.1f} million weights, {full.precision}")
    for line in estimate.lines():
        announce(line)


def _tupled(kind: Any, values: dict[str, Any]) -> Any:
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
