"""What fine-tunes on captioned pictures share: the steps of a run, the rows of its corpus, the digests of its encoders.

Heavy packages are imported inside the functions, so that presets are listed without torch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn import runs
from medisyn.errors import CorpusError
from medisyn.recipes.selection import JudgeConfig
from medisyn.training.settings import TrainSettings, resolved

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

    import torch

    from medisyn.families.base import Family
    from medisyn.families.stable_diffusion.model import StableDiffusion
    from medisyn.training.loop import TrainReport
    from medisyn.training.precompute import Encode, EncodedStore, JoinedStore, Keyed
    from medisyn.types import Request, Sample

Announce = Callable[[str], object]
BALANCE = ("none", "specialty", "image_type", "class")
TINY_TRAIN = TrainSettings(  # of presets for tests and first tries: every turn that the real ones take, in seconds
    num_steps=20,
    batch_size=8,
    micro_batch_size=4,
    learning_rate=1e-3,
    ema_decay=0.9,
    ema_start=5,
    ema_interval=2,
    checkpoint_every=10,
    preview_every=10,
)


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Pictures made while training: the captions of the first held-out images, always with the same seeds."""

    pictures: int = 8
    steps: int | None = None  # None: the model's default
    guidance: float | None = None
    seed: int = 0


class PictureRun(ABC):
    """What every fine-tune on captioned pictures does alike; its dataclass holds these values."""

    train: TrainSettings
    split: str
    balance: str
    encode_batch_size: int
    cache: str
    preview: PreviewConfig
    judge: JudgeConfig

    @abstractmethod
    def family(self, out: Path, corpus: Any) -> Any:
        """The model before training; each kind of run has its own."""

    @abstractmethod
    def check_size(self, family: Any, corpus: Any, announce: Announce) -> None:
        """Set the model to the corpus's size and say so. ConfigError where it cannot be."""

    @abstractmethod
    def store(self, family: Any, corpus: Path, out: Path, opened: Any, processes: int) -> JoinedStore:
        """Every sample's encoded rows, made where they are not there yet."""

    def notes(self, family: Any, store: JoinedStore) -> dict[str, str]:
        """What else `run.json` is to say."""
        return {}

    def plan(self, corpus: Path, out: Path, announce: Announce) -> None:
        """Corpus, steps, and the memory of one process, measured on the first sample; `out` is left alone."""
        import tempfile

        from medisyn.training import memory

        opened = open_corpus(corpus, self.split)
        rows = opened.rows(self.split)
        settings = self.train.settled(len(rows))
        with tempfile.TemporaryDirectory() as scratch:
            family = self.family(Path(scratch), opened)
            example = {name: tensor[0] for name, tensor in family.encode([opened.read(rows[0])]).items()}
            groups = family.trainable()
            estimate = memory.estimate(family, groups, example, settings)
        weights = sum(parameter.numel() for group in groups for parameter in group.parameters)
        announce(f"{len(rows)} samples in split {self.split!r}, corpus {opened.fingerprint}")
        every = f"every {settings.checkpoint_every} steps" if settings.checkpoint_every else "at the end of every epoch"
        announce(f"{settings.num_steps} steps of {settings.batch_size}, a checkpoint {every}")
        announce(f"{weights / 1e6:.1f} million weights are trained, in {settings.precision}")
        for line in estimate.lines():
            announce(line)

    def prepare(self, corpus: Path, out: Path, announce: Announce, *, processes: int) -> None:
        """Check that the run can be resumed, make or fetch the base, and encode every sample once."""
        from medisyn.training.run import refuse_another_run

        opened = open_corpus(corpus, self.split)
        settings = resolved(self.train.settled(len(opened.rows(self.split))))
        with runs.lock(out):
            refuse_another_run(out, {**record_of(self), "train": settings}, opened.fingerprint)
            family = self.family(out, opened)
            self.check_size(family, opened, announce)
            self._judge(family, opened)
            self.store(family, corpus, out, opened, processes)

    def run(self, corpus: Path, out: Path, announce: Announce) -> TrainReport:
        """One training process's part; the loop does the rest."""
        opened = open_corpus(corpus, self.split)
        family = self.family(out, opened)
        self.check_size(family, opened, lambda line: None)
        store = self.store(family, corpus, out, opened, processes=1)
        return self._train(family, store, opened, out, announce, self.notes(family, store))

    # Parts of the above

    def _train(
        self, family: Any, store: JoinedStore, opened: Any, out: Path, announce: Announce, notes: Mapping[str, str]
    ) -> TrainReport:
        """This process's part of training on the rows of `store`."""
        from medisyn.training.launch import local_device
        from medisyn.training.loop import train
        from medisyn.training.preview import Preview

        family.to(local_device())
        for note in notes.values():
            announce(note)
        return train(
            family,
            store,
            self.train,
            out,
            save_model=family.save,
            preview=Preview(family, self._preview_requests(opened)) if self.preview.pictures else None,
            judge=self._judge(family, opened),
            weights=self._weights(opened),
            config=record_of(self),
            corpus=opened.fingerprint,
            notes=notes,
            announce=announce,
        )

    def _judge(self, family: Family, corpus: Any) -> Any:
        from medisyn.recipes.selection import CheckpointJudge

        return CheckpointJudge(family, corpus, self.judge) if self.judge.images else None

    def _encoded(
        self, family: Family, corpus: Path, out: Path, opened: Any, processes: int, *, pictures: str, captions: str
    ) -> JoinedStore:
        """Every picture and every distinct caption, encoded once; both may be shared by many runs.

        `pictures` and `captions` are digests of what decides their rows.
        """
        from medisyn.training.precompute import SHARD_ROWS, JoinedStore, precompute

        rows = opened.rows(self.split)
        distinct = distinct_captions(corpus, self.split)

        def encoded(
            keys: Sequence[str], read: Callable[[int], Keyed], part: str, encoder: str, of: str
        ) -> EncodedStore:
            encode = getattr(family, f"encode_{part}")
            several = processes > 1 and len(keys) > SHARD_ROWS
            elsewhere = functools.partial(_open_encoder, self, out, corpus, part)
            return precompute(
                Path(self.cache) if self.cache else out / "encoded",
                keys,
                read,
                elsewhere if several else lambda: encode,
                batch_size=self.encode_batch_size,
                engine=f"processes:{processes}" if several else "inline",
                encoder=encoder,
                corpus=of,
            )

        reader, caption_reader = SplitReader(corpus, self.split), CaptionReader(corpus, self.split)
        return JoinedStore(
            encoded([row.key for row in rows], reader, "pictures", pictures, opened.fingerprint),
            encoded([caption.key for caption in distinct], caption_reader, "captions", captions, "captions"),
            [caption_key(row.caption) for row in rows],
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
        from medisyn.types import Request

        rows = corpus.rows("validation") or corpus.rows(self.split)
        captions = list(dict.fromkeys(row.caption for row in rows))[: self.preview.pictures]
        options = self.preview
        return [
            Request(f"preview-{number}", caption, options.seed + number, steps=options.steps, guidance=options.guidance)
            for number, caption in enumerate(captions)
        ]


def record_of(run: Any) -> dict[str, Any]:
    """What a resumed run must share with the one before, besides the settings of training; `run` is a dataclass."""
    values = dataclasses.asdict(run)
    return {name: value for name, value in values.items() if name not in ("summary", "train")}


@dataclass(frozen=True)
class SplitReader:
    """Sample number n of a split; picklable without the index, which each process reads once."""

    corpus: Path
    split: str

    def __call__(self, number: int) -> Sample:
        corpus, rows = _read_index(self.corpus, self.split)
        return corpus.read(rows[number])


@dataclass(frozen=True)
class Caption:
    """A caption under its content's address."""

    key: str
    caption: str


def caption_key(caption: str) -> str:
    return hashlib.sha256(caption.encode()).hexdigest()[:32]


@functools.lru_cache(maxsize=2)
def distinct_captions(corpus: Path, split: str) -> list[Caption]:
    """Every caption of a split once, in the order of their keys."""
    texts = {caption_key(row.caption): row.caption for row in _read_index(corpus, split)[1]}
    return [Caption(key, texts[key]) for key in sorted(texts)]


@dataclass(frozen=True)
class CaptionReader:
    """Distinct caption number n of a split; picklable without the index, as SplitReader."""

    corpus: Path
    split: str

    def __call__(self, number: int) -> Caption:
        return distinct_captions(self.corpus, self.split)[number]


@functools.lru_cache(maxsize=2)
def _read_index(corpus: Path, split: str) -> tuple[Any, list[Any]]:
    from medisyn.corpus.loader import Corpus

    opened = Corpus(corpus)
    return opened, opened.rows(split)


def open_corpus(path: Path, split: str) -> Any:
    """A corpus of pictures with samples in `split`. Raises CorpusError for one without, and for one of clips."""
    from medisyn.corpus.loader import Corpus

    corpus = Corpus(path)
    rows = corpus.rows(split)
    if not rows:
        raise CorpusError(f"the corpus has no samples in split {split!r}; there is nothing to train on")
    if rows[0].is_clip:
        raise CorpusError("the corpus holds clips, this preset learns pictures; train medisyn-v1-video on it")
    return corpus


def _open_encoder(run: PictureRun, out: Path, corpus: Path, part: str) -> Encode:
    """In a worker process: the family's encoder of "pictures" or "captions", on this worker's GPU if there is one."""
    import multiprocessing

    import torch

    family = run.family(out, open_corpus(corpus, run.split))
    if torch.cuda.is_available():
        worker = (multiprocessing.current_process()._identity or (1,))[0] - 1
        family.to(f"cuda:{worker % torch.cuda.device_count()}")
    encode: Encode = getattr(family, f"encode_{part}")
    return encode


def encoder_digest(family: StableDiffusion) -> str:
    """What decides the rows of `encode`: weights of autoencoder and text encoders, vocabularies, and the kind.

    Text encoders that are trained do not count: the rows hold token ids then.
    """
    networks = family.networks
    digest = hashlib.sha256()
    for module in (networks.vae, *(() if family.config.train_text_encoder else networks.text_encoders)):
        add_weights(digest, module)
    _add_vocabularies(digest, family)
    return digest.hexdigest()[:16]


def picture_digest(family: StableDiffusion, sizes: Sequence[object]) -> str:
    """What decides the rows of `encode_pictures`: the weights of the autoencoder and, for SDXL, the sizes on record.

    `sizes` are the original size and crop of every picture; the corpus's fingerprint does not cover them.
    """
    digest = hashlib.sha256(f"pictures, sizes: {family.networks.is_xl}".encode())
    if family.networks.is_xl:
        digest.update(runs.digest(list(sizes)).encode())
    add_weights(digest, family.networks.vae)
    return digest.hexdigest()[:16]


def caption_digest(family: StableDiffusion) -> str:
    """What decides the rows of `encode_captions`: weights of the text encoders, vocabularies, and the kind."""
    digest = hashlib.sha256(b"captions")
    for module in family.networks.text_encoders:
        add_weights(digest, module)
    _add_vocabularies(digest, family)
    return digest.hexdigest()[:16]


def add_weights(digest: Hash, module: torch.nn.Module) -> None:
    import torch

    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _add_vocabularies(digest: Hash, family: StableDiffusion) -> None:
    for tokenizer in family.networks.tokenizers:
        digest.update(runs.digest([tokenizer.get_vocab(), tokenizer.model_max_length]).encode())
    digest.update(f"token ids: {family.config.train_text_encoder}".encode())
