"""MedSyn's report encoder as a run of `medisyn train`: BERT on masked words and on sections that belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn import runs
from medisyn.errors import ConfigError
from medisyn.recipes.medsyn_corpus import ReportText, find_reports, fingerprint
from medisyn.training.settings import TrainSettings, resolved

if TYPE_CHECKING:
    from medisyn.families.medsyn.report_training import ReportPretraining
    from medisyn.training.loop import TrainReport
    from medisyn.training.precompute import EncodedStore

Announce = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class BertSize:
    """A BERT that is built from nothing; its vocabulary is learnt from the reports."""

    vocabulary: int = 4000
    width: int = 128
    layers: int = 4
    heads: int = 4


@dataclass(frozen=True, kw_only=True)
class ReportObjective:
    """As `families.medsyn.report_training.ReportTrainingConfig`, which needs torch and a preset does not."""

    masked_share: float = 0.15
    swapped_share: float = 0.5
    pair_weight: float = 1.0
    label_weight: float = 1.0
    window: int = 512
    findings_tokens: int = 1536
    impression_tokens: int = 512


@dataclass(frozen=True, kw_only=True)
class MedSynReportRun:
    """Pre-training of the report encoder on any table or folder of reports.

    start      folder of any BERT checkpoint (config.json, .safetensors, vocabulary); "" begins with random weights
    positions  tokens that the encoder reads at once; a start with fewer gets longer positions
    labels     columns of the table of reports, or of table.csv in a folder of them, with numbers from 0 (absent) to 1,
               empty where not known; the encoder learns to tell them. Not MedSyn's; () is the paper's way
    """

    summary: str
    start: str = ""
    network: BertSize = field(default_factory=BertSize)
    positions: int = 512
    labels: tuple[str, ...] = ()
    objective: ReportObjective = field(default_factory=ReportObjective)
    train: TrainSettings

    def __post_init__(self) -> None:
        if self.objective.window > self.positions:
            raise ConfigError(
                f"objective.window is {self.objective.window} tokens, the encoder reads {self.positions} at once; "
                f"raise positions"
            )

    def plan(self, corpus: Path, out: Path, announce: Announce) -> None:
        """Reports, steps and the memory of one process; `out` is left alone."""
        import tempfile

        from medisyn.training import memory

        reports = find_reports(corpus, self.labels)
        full = self.train.settled(len(reports))
        with tempfile.TemporaryDirectory() as scratch:
            family = self.family(reports, Path(scratch))
        groups = family.trainable()
        row = {name: tensor[0] for name, tensor in family.encode(reports[:1]).items()}  # type: ignore[arg-type]
        weights = sum(parameter.numel() for parameter in groups[0].parameters)
        announce(
            f"{len(reports)} reports; {full.num_steps} steps of {full.batch_size}; {weights / 1e6:.1f} million weights"
        )
        for line in memory.estimate(family, groups, row, full).lines():
            announce(line)

    def prepare(self, corpus: Path, out: Path, announce: Announce, *, processes: int) -> None:
        """Check that the run can be resumed, learn the vocabulary where there is none, and encode every report once."""
        from medisyn.training.run import refuse_another_run

        reports, corpus_digest = find_reports(corpus, self.labels), fingerprint(corpus)
        settings = resolved(self.train.settled(len(reports)))
        with runs.lock(out):
            refuse_another_run(out, {**self.record(), "train": settings}, corpus_digest)
            if not self.start:
                announce("the encoder starts from random weights, with a vocabulary learnt from these reports")
            self._store(self.family(reports, out), reports, out, corpus_digest)

    def run(self, corpus: Path, out: Path, announce: Announce) -> TrainReport:
        """One training process's part. The model is a folder that transformers opens, too."""
        from medisyn.training.launch import local_device
        from medisyn.training.loop import train

        reports, corpus_digest = find_reports(corpus, self.labels), fingerprint(corpus)
        family = self.family(reports, out)
        store = self._store(family, reports, out, corpus_digest)
        family.to(local_device())
        return train(
            family,
            store,
            self.train,
            out,
            save_model=family.save,
            config=self.record(),
            corpus=corpus_digest,
            announce=announce,
        )

    def family(self, reports: tuple[ReportText, ...], out: Path) -> ReportPretraining:
        """The encoder at its start; one made from nothing is kept in `out/start`, the same for every process."""
        from medisyn.families.medsyn.report_encoder import extend_positions, open_encoder
        from medisyn.families.medsyn.report_training import ReportPretraining, ReportTrainingConfig
        from medisyn.families.medsyn.sections import parse_report

        folder = Path(self.start) if self.start else self._built(reports, out)
        encoder, tokenizer = open_encoder(folder, from_any_bert=True)
        encoder.float()  # a start may be stored in half precision
        if encoder.config.max_position_embeddings < self.positions:
            extend_positions(encoder, self.positions)
        encoder.begin_labels(len(self.labels), seed=self.train.seed)  # a start may have learnt others
        config = ReportTrainingConfig(**dataclasses.asdict(self.objective))
        impressions = [parse_report(report.caption).impression for report in reports]
        return ReportPretraining(encoder, tokenizer, impressions, config)

    def record(self) -> dict[str, Any]:
        """What a resumed run must share, besides the settings: the start by its weights, not by its folder."""
        from medisyn.recipes.medsyn_train import weights_digest

        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("summary", "train")}
        return {**values, "start": weights_digest(Path(self.start)) if self.start else ""}

    def _built(self, reports: tuple[ReportText, ...], out: Path) -> Path:
        from medisyn.families.medsyn.report_encoder import new_encoder, save_encoder, train_wordpiece

        folder = out / "start"
        if not (folder / "config.json").is_file():
            tokenizer = train_wordpiece([report.caption for report in reports], vocab_size=self.network.vocabulary)
            size = {"width": self.network.width, "layers": self.network.layers, "heads": self.network.heads}
            encoder = new_encoder(len(tokenizer), **size, window=self.positions, seed=self.train.seed)
            with runs.atomic_folder(folder) as target:
                save_encoder(encoder, tokenizer, target)
        return folder

    def _store(
        self, family: ReportPretraining, reports: tuple[ReportText, ...], out: Path, corpus_digest: str
    ) -> EncodedStore:
        from medisyn.training.precompute import precompute

        places = {name: getattr(self.objective, name) for name in ("findings_tokens", "impression_tokens")}
        return precompute(
            out / "encoded",
            [report.key for report in reports],
            reports.__getitem__,
            lambda: family.encode,
            encoder=runs.digest(["reports", family.tokenizer.get_vocab(), places, self.labels]),
            corpus=corpus_digest,
        )
