"""Fine-tune Stable Diffusion on a corpus: the configuration of such a run, and its wiring.

Heavy packages are imported inside the functions, so that presets are listed without torch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn import runs
from medisyn.errors import ConfigError, CorpusError
from medisyn.families.stable_diffusion.config import NetworkConfig, StableDiffusionConfig
from medisyn.recipes.selection import JudgeConfig
from medisyn.training.settings import TrainSettings, resolved

if TYPE_CHECKING:
    from medisyn.families.base import Family
    from medisyn.families.stable_diffusion.model import StableDiffusion
    from medisyn.training.loop import TrainReport
    from medisyn.training.precompute import Encode, EncodedStore
    from medisyn.types import Request, Sample

Announce = Callable[[str], object]
BALANCE = ("none", "specialty", "image_type", "class")


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Pictures made while training: the captions of the first held-out images, always with the same seeds."""

    pictures: int = 8
    steps: int | None = None  # None: the model's default
    guidance: float | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class StableDiffusionRun:
    """One fine-tune of a Stable Diffusion 1, 2 or XL checkpoint."""

    summary: str
    base: str  # diffusers folder or hub id; "" builds `network` from nothing, with a tokenizer learnt from the captions
    vae: str = ""  # an autoencoder's folder or hub id that replaces the base's own; "" keeps that
    network: NetworkConfig | None = None  # the model's size when base is ""
    model: StableDiffusionConfig = field(default_factory=StableDiffusionConfig)
    train: TrainSettings
    split: str = "train"
    balance: str = "none"  # "specialty", "image_type" or "class": draw each of them equally often
    encode_batch_size: int = 8
    cache: str = ""  # folder of encoded rows, to share them between runs; "" keeps them in the run's folder
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        if self.balance not in BALANCE:
            raise ConfigError(f"balance must be one of {', '.join(BALANCE)}, got {self.balance!r}")
        if (self.base == "") != (self.network is not None):
            raise ConfigError(
                "give either base, a model to start from, or network, the size of one with random weights"
            )
        if self.encode_batch_size < 1:
            raise ConfigError(f"encode_batch_size must be at least 1, got {self.encode_batch_size}")

    # The words of recipes.Preset

    def plan(self, corpus: Path, out: Path, announce: Announce) -> None:
        """Corpus, steps, and the memory of one process, measured on the first sample; `out` is left alone."""
        import tempfile

        from medisyn.training import memory

        opened = open_corpus(corpus, self.split)
        settings = self.train.for_samples(len(opened.rows(self.split)))
        with tempfile.TemporaryDirectory() as scratch:
            family = self._family(Path(scratch), opened)
            row = opened.rows(self.split)[0]
            example = {name: tensor[0] for name, tensor in family.encode([opened.read(row)]).items()}
            groups = family.trainable()
            estimate = memory.estimate(family, groups, example, settings)
        weights = sum(parameter.numel() for group in groups for parameter in group.parameters)
        announce(f"{len(opened.rows(self.split))} samples in split {self.split!r}, corpus {opened.fingerprint}")
        every = f"every {settings.checkpoint_every} steps" if settings.checkpoint_every else "at the end of every epoch"
        announce(f"{settings.num_steps} steps of {settings.batch_size}, a checkpoint {every}")
        announce(f"{weights / 1e6:.1f} million weights are trained, in {settings.precision}")
        for line in estimate.lines():
            announce(line)

    def prepare(self, corpus: Path, out: Path, announce: Announce, *, processes: int) -> None:
        """Check that the run can be resumed, make or fetch the base, and encode every sample once."""
        from medisyn.training.run import refuse_another_run

        opened = open_corpus(corpus, self.split)
        settings = resolved(self.train.for_samples(len(opened.rows(self.split))))
        with runs.lock(out):
            refuse_another_run(out, {**self._record(), "train": settings}, opened.fingerprint)
            family = self._family(out, opened)
            self._check_size(family, opened, announce)
            self._judge(family, opened)
            self._store(family, corpus, out, opened, processes)

    def run(self, corpus: Path, out: Path, announce: Announce) -> TrainReport:
        """One training process's part; the loop does the rest."""
        from medisyn.training.launch import local_device
        from medisyn.training.loop import train
        from medisyn.training.preview import Preview

        opened = open_corpus(corpus, self.split)
        family = self._family(out, opened)
        self._check_size(family, opened, lambda line: None)
        store = self._store(family, corpus, out, opened, processes=1)
        family.to(local_device())
        return train(
            family,
            store,
            self.train,
            out,
            save_model=family.save,
            preview=Preview(family, self._preview_requests(opened)) if self.preview.pictures else None,
            judge=self._judge(family, opened),
            weights=self._weights(opened),
            config=self._record(),
            corpus=opened.fingerprint,
            announce=announce,
        )

    # Parts of the above

    def _record(self) -> dict[str, Any]:
        """What a resumed run must share with the one before, besides the settings."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in ("summary", "train")}

    def _family(self, out: Path, corpus: Any) -> StableDiffusion:
        from medisyn.families.stable_diffusion.model import StableDiffusion
        from medisyn.recipes.models import find_autoencoder, find_model

        place = find_model(self.base if self.base else str(self._built_base(out, corpus).resolve()))
        return StableDiffusion.from_folder(
            place.folder,
            self.model,
            adapter=place.adapter,
            vae=find_autoencoder(self.vae) if self.vae else None,
            source=place.name,
        )

    def _built_base(self, out: Path, corpus: Any) -> Path:
        """Random weights and a tokenizer for these captions, made once: every process and resume has the same."""
        from medisyn.families.stable_diffusion.model import StableDiffusion
        from medisyn.families.stable_diffusion.text import train_tokenizer

        assert self.network is not None  # __post_init__
        folder = out / "base"
        if not (folder / "model_index.json").exists():
            captions = [row.caption for row in corpus.rows(self.split)]
            tokenizer = train_tokenizer(captions, window=self.network.text_window)
            StableDiffusion.from_config(self.network, tokenizer, seed=self.train.seed).save(folder)
        return folder

    def _check_size(self, family: StableDiffusion, corpus: Any, announce: Announce) -> None:
        native = family.resolve(_request("size", "", 0, None, None))
        row = corpus.rows(self.split)[0]
        height, width = corpus.read(row).item.array_CHW.shape[1:]
        if (height, width) == (native.height, native.width):
            return
        text = f"the corpus holds pictures of {height}x{width} pixels, the model makes {native.height}x{native.width}"
        if not self.base:
            raise ConfigError(f"{text}. Curate at that size, or set network.image_size={height}.")
        announce(f"note: {text} by default; this run trains, judges and exports it at the corpus's size")
        rows, columns = height // family.networks.factor, width // family.networks.factor
        family.networks.unet.register_to_config(sample_size=rows if rows == columns else (rows, columns))

    def _judge(self, family: Family, corpus: Any) -> Any:
        from medisyn.recipes.selection import CheckpointJudge

        return CheckpointJudge(family, corpus, self.judge) if self.judge.images else None

    def _store(self, family: StableDiffusion, corpus: Path, out: Path, opened: Any, processes: int) -> EncodedStore:
        from medisyn.training.precompute import SHARD_ROWS, precompute

        keys = [row.key for row in opened.rows(self.split)]
        shared = processes > 1 and len(keys) > SHARD_ROWS
        elsewhere = functools.partial(_open_encoder, self, out, corpus)
        return precompute(
            Path(self.cache) if self.cache else out / "encoded",
            keys,
            SplitReader(corpus, self.split),
            elsewhere if shared else lambda: family.encode,
            encoder=encoder_digest(family),
            corpus=opened.fingerprint,
            batch_size=self.encode_batch_size,
            engine=f"processes:{processes}" if shared else "inline",
        )

    def _weights(self, corpus: Any) -> Any:
        from medisyn.training.order import balanced_weights

        rows = corpus.rows(self.split)
        if self.balance == "none":
            return None
        if self.balance == "class":
            return balanced_weights([f"{row.image_type}: {', '.join(row.labels)}" for row in rows])
        return balanced_weights([getattr(row, self.balance) for row in rows])

    def _preview_requests(self, corpus: Any) -> list[Request]:
        rows = corpus.rows("validation") or corpus.rows(self.split)
        captions = list(dict.fromkeys(row.caption for row in rows))[: self.preview.pictures]
        options = self.preview
        return [
            _request(f"preview-{number}", caption, options.seed + number, options.steps, options.guidance)
            for number, caption in enumerate(captions)
        ]


@dataclass(frozen=True)
class SplitReader:
    """Sample number n of a split; picklable without the index, which each process reads once."""

    corpus: Path
    split: str

    def __call__(self, number: int) -> Sample:
        corpus, rows = _read_index(self.corpus, self.split)
        return corpus.read(rows[number])


@functools.lru_cache(maxsize=2)
def _read_index(corpus: Path, split: str) -> tuple[Any, list[Any]]:
    from medisyn.corpus.loader import Corpus

    opened = Corpus(corpus)
    return opened, opened.rows(split)


def open_corpus(path: Path, split: str) -> Any:
    from medisyn.corpus.loader import Corpus

    corpus = Corpus(path)
    if not corpus.rows(split):
        raise CorpusError(f"the corpus has no samples in split {split!r}; there is nothing to train on")
    return corpus


def _open_encoder(run: StableDiffusionRun, out: Path, corpus: Path) -> Encode:
    """In a worker process: the family on this worker's GPU where there is one."""
    import multiprocessing

    import torch

    family = run._family(out, open_corpus(corpus, run.split))
    if torch.cuda.is_available():
        worker = (multiprocessing.current_process()._identity or (1,))[0] - 1
        family.to(f"cuda:{worker % torch.cuda.device_count()}")
    return family.encode


def _request(key: str, prompt: str, seed: int, steps: int | None, guidance: float | None) -> Request:
    from medisyn.types import Request

    return Request(key=key, prompt=prompt, seed=seed, steps=steps, guidance=guidance)


def encoder_digest(family: StableDiffusion) -> str:
    """What decides the rows of `encode`: weights of autoencoder and text encoders, vocabularies, and the kind."""
    import hashlib

    import torch

    digest = hashlib.sha256()
    networks = family.networks
    for module in (networks.vae, *networks.text_encoders):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for tokenizer in networks.tokenizers:
        digest.update(runs.digest([tokenizer.get_vocab(), tokenizer.model_max_length]).encode())
    digest.update(f"token ids: {family.config.train_text_encoder}".encode())
    return digest.hexdigest()[:16]
