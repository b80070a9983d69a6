"""starter-ct: a small MedSyn cascade from 32 to 64 voxels a side, trained on phantoms in four stages.

0. corpus          phantoms, made where the corpus is a new folder
1. report-encoder  a small BERT on the phantoms' reports, which also learns to tell what is there
2. base            CT, lobes, airways and vessels at 32 voxels a side, from a report
3. superres        to 64 voxels a side, small enough to be refined without tiles; joined with the base model
4. model           the cascade in float16
Each stage is a run of its own under the output folder, resumed by the same command.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from medisyn.errors import ConfigError, ModelError
from medisyn.families.medsyn.config import (
    BASE_STARTER,
    SUPERRES_STARTER,
    Grid,
    MedSynConfig,
    MedSynDefaults,
    SuperResolutionConfig,
    UNetConfig,
)
from medisyn.phantoms.findings import KINDS
from medisyn.phantoms.folder import label_columns
from medisyn.recipes.medsyn_corpus import CtData
from medisyn.recipes.medsyn_presets import PREVIEW_PROMPTS
from medisyn.recipes.medsyn_reports import BertSize, MedSynReportRun, ReportObjective
from medisyn.recipes.medsyn_train import MedSynBaseRun, MedSynSuperResolutionRun
from medisyn.training.settings import TrainSettings

if TYPE_CHECKING:
    from medisyn.training.loop import TrainReport

Announce = Callable[[str], object]
Stage: TypeAlias = MedSynReportRun | MedSynBaseRun | MedSynSuperResolutionRun
ENCODER, BASE, SUPERRES, MODEL = "report-encoder", "base", "superres", "model"


@dataclass(frozen=True, kw_only=True)
class PhantomSet:
    """The phantoms that are made where the corpus is a new folder."""

    count: int
    size: int  # voxels of each side
    findings: tuple[str, ...] = (*KINDS, "none")  # the kinds that main findings are drawn from
    seed: int = 0
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class StarterCtRun:
    """Everything that decides the starter model. Both models share grid, defaults and the way the corpus is read.

    start_from: a model of the same networks, such as starter-ct itself; each stage goes on from its weights. "" trains
    all of it from random weights.
    labels: as the report encoder's.
    """

    summary: str
    start_from: str = ""
    phantoms: PhantomSet
    bert: BertSize
    positions: int
    labels: tuple[str, ...] = ()
    objective: ReportObjective
    grid: Grid
    base: UNetConfig
    superres: UNetConfig
    model: MedSynConfig
    refine: SuperResolutionConfig
    defaults: MedSynDefaults
    data: CtData = field(default_factory=CtData)
    encoder_train: TrainSettings
    base_train: TrainSettings
    superres_train: TrainSettings
    max_megabytes: float = 30.0  # of the weights in float16
    preview_prompts: tuple[str, ...] = ()

    def plan(self, corpus: Path, out: Path, announce: Announce) -> None:
        """Phantoms, steps and weights of each stage; makes nothing."""
        from medisyn.families.medsyn.networks import count_parameters

        new = _is_new(corpus)
        announce(
            f"{self.phantoms.count} phantoms of {self.phantoms.size} voxels are made" if new else "the corpus is there"
        )
        for stage, settings in self._stages().items():
            announce(f"{stage}: {settings.num_steps} steps of {settings.batch_size}, rate {settings.learning_rate:g}")
        weights = {BASE: count_parameters(self.base), SUPERRES: count_parameters(self.superres)}
        announce(", ".join(f"{stage}: {count / 1e6:.2f} million weights" for stage, count in weights.items()))

    def prepare(self, corpus: Path, out: Path, announce: Announce, *, processes: int) -> None:
        """Make the phantoms."""
        if processes != 1:
            raise ConfigError("starter-ct trains its stages on one process; use --processes 1")
        self._make_phantoms(corpus, announce)

    def run(self, corpus: Path, out: Path, announce: Announce) -> TrainReport:
        """All stages, each resumed or skipped when it is done. Returns the base model's report."""
        reports: dict[str, TrainReport] = {}
        presets = self._presets(out)
        for number, (stage, preset) in enumerate(presets.items(), start=1):
            announce(f"stage {number} of {len(presets) + 1}: {stage}")
            preset.prepare(corpus, out / stage, announce, processes=1)
            reports[stage] = preset.run(corpus, out / stage, announce)
            if reports[stage].interrupted:
                return reports[stage]
        announce(f"stage {len(presets) + 1} of {len(presets) + 1}: {MODEL}")
        self._export(out, announce)
        return dataclasses.replace(reports[BASE], model=out / MODEL)

    # Parts of the above

    def _stages(self) -> dict[str, TrainSettings]:
        return {ENCODER: self.encoder_train, BASE: self.base_train, SUPERRES: self.superres_train}

    def _presets(self, out: Path) -> dict[str, Stage]:
        """Each stage as the run that `medisyn train` knows."""
        encoder = MedSynReportRun(
            summary=self.summary,
            start=self._started_encoder(),
            network=self.bert,
            positions=self.positions,
            labels=self.labels,
            objective=self.objective,
            train=self.encoder_train,
        )
        base = MedSynBaseRun(
            summary=self.summary,
            start_from=self.start_from,
            report_encoder=str(out / ENCODER),
            network=self.base,
            grid=self.grid,
            model=self.model,
            defaults=self.defaults,
            data=self.data,
            train=self.base_train,
            preview_prompts=self.preview_prompts,
        )
        superres = MedSynSuperResolutionRun(
            summary=self.summary,
            start_from=self.start_from,
            base=str(out / BASE),
            network=self.superres,
            grid=self.grid,
            superres=self.refine,
            defaults=self.defaults,
            data=self.data,
            train=self.superres_train,
        )
        return {ENCODER: encoder, BASE: base, SUPERRES: superres}

    def _started_encoder(self) -> str:
        """The folder of the report encoder of `start_from`."""
        from medisyn.recipes.models import find_model

        return str(find_model(self.start_from).folder / "report_encoder") if self.start_from else ""

    def _make_phantoms(self, corpus: Path, announce: Announce) -> None:
        """Make or go on making phantoms; a corpus that holds anything else, or is finished, is read as it is."""
        from medisyn.phantoms.folder import write_phantoms

        if not _is_new(corpus):
            return
        announce(f"making {self.phantoms.count} phantoms of {self.phantoms.size} voxels a side")
        engine = "inline" if self.phantoms.processes == 1 else f"processes:{self.phantoms.processes}"
        made = self.phantoms
        write_phantoms(corpus, made.count, size=made.size, seed=made.seed, findings=made.findings, engine=engine)

    def _export(self, out: Path, announce: Announce) -> None:
        """The joined cascade in float16. Raises ModelError when it is larger than what may ship."""
        from medisyn.families.medsyn.cascade import MedSyn

        MedSyn.from_folder(out / SUPERRES / "model").save(out / MODEL, dtype="float16")
        megabytes = sum(file.stat().st_size for file in (out / MODEL).rglob("*.safetensors")) / 1e6
        if megabytes > self.max_megabytes:
            raise ModelError(
                f"the weights in {out.name}/{MODEL} take {megabytes:.1f} MB, at most {self.max_megabytes:g} MB "
                f"ship. Take smaller networks, or raise max_megabytes."
            )
        announce(f"{megabytes:.1f} MB of weights in {out.name}/{MODEL}")


def _is_new(corpus: Path) -> bool:
    from medisyn.phantoms.folder import THORAXES
    from medisyn.phantoms.many import is_to_be_made

    return is_to_be_made(THORAXES, corpus)


_TRAIN = TrainSettings(
    num_steps=1,
    batch_size=16,
    micro_batch_size=16,  # volumes of four channels
    learning_rate=5e-4,  # small networks take more than the paper's 1e-4, with warm-up and the cosine
    schedule="cosine",
    warmup_steps=100,
    final_lr_share=0.02,
    beta2=0.99,  # short run: the second moment must follow
    weight_decay=1e-2,
    ema_decay=0.998,
    ema_start=500,
    checkpoint_every=200,
    preview_every=1000,
    log_every=20,
)

STARTER_CT = StarterCtRun(
    summary="the CT model that ships with MediSyn: 64 x 64 x 64 chest CT with anatomy from a report, from phantoms",
    phantoms=PhantomSet(
        count=3600,  # 0.3 s each on one core; sides, severities and omissions multiply the kinds of findings
        size=64,
        findings=(*KINDS, "none", "bullae", "bullae"),  # holes are few voxels: so a third of the main findings
        processes=1,
    ),
    bert=BertSize(
        vocabulary=800,  # the phantoms' reports use a few hundred words
        width=128,
        layers=2,
        heads=4,
    ),
    positions=256,  # a phantom's report has fewer tokens
    labels=label_columns(),
    objective=ReportObjective(window=256, findings_tokens=384, impression_tokens=128, label_weight=8.0),
    grid=Grid(
        shape=(32, 32, 32),
        spacing_mm=(10.0, 11.0, 11.0),  # the phantoms' field of view, 320 x 352 x 352 mm
        # four times as wide as the paper's scale where fluid (8 HU), muscle (50) and blood lie, for a small network
        hu_knots=(-1024.0, -920.0, -780.0, -130.0, -40.0, 0.0, 40.0, 100.0, 600.0),
    ),
    base=BASE_STARTER,
    superres=SUPERRES_STARTER,
    model=MedSynConfig(
        report_dropout=0.1,
        long_reports="pool",
        short_reports="stretch",
        given_share=0.4,
        weight_limit=10.0,  # at 1 it wiped out holes that were plainly to be seen
        ct_residual=0.1,
        lung_weight=10.0,  # lungs are a tenth of the voxels, and most of what reports tell
        lung_reach=2,  # without it still less of an effusion lies at the air
    ),
    refine=SuperResolutionConfig(
        factor=2,  # the paper's is 4; from 16 voxels a side hearts had no border and organs were uneven
        crop=(64, 32, 32),  # a quarter of the volume, full depth as in the paper
        condition_noise=0.1,  # the paper's code has 0.4, which hides what tells fluid from muscle
        given_share=0.4,
        weight_limit=10.0,
        ct_residual=0.1,
        lung_weight=10.0,
    ),
    defaults=MedSynDefaults(
        solver="renoise",  # on one path a small network takes its own errors for data
        steps=25,
        guidance=1.5,  # at 2 hearts that are denied to be large are larger
        superres_steps=3,
        segment_steps=4,  # the CT says most; 25 gave no better masks
        segment_draws=4,
        ct_draws=8,  # its grain is what one draw leaves of the noise it was shown
        keep_base=True,  # without it holes of the base model are closed
        tile=(64, 64, 64),  # the whole volume: untiled
        overlap=16,
    ),
    data=CtData(finer=2),
    encoder_train=dataclasses.replace(
        _TRAIN, num_steps=2000, batch_size=16, learning_rate=1e-3, ema_start=300, preview_every=0
    ),
    base_train=dataclasses.replace(
        _TRAIN,
        num_steps=6000,  # 0.09 s a volume on one CPU core in bfloat16: two and a half hours
        batch_size=16,
    ),
    superres_train=dataclasses.replace(
        _TRAIN,
        num_steps=4800,
        batch_size=4,
        micro_batch_size=1,  # 1.7 times as fast as four crops at once on one CPU core
        preview_every=0,
    ),
    preview_prompts=PREVIEW_PROMPTS,
)
