"""Fine-tune Stable Diffusion on a corpus: the configuration of such a run, and its wiring.

Heavy packages are imported inside the functions, so that presets are listed without torch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn import runs
from medisyn.errors import ConfigError, CorpusError
from medisyn.families.stable_diffusion.config import NetworkConfig, StableDiffusionConfig
from medisyn.recipes.selection import JudgeConfig
from medisyn.training.settings import TrainSettings, resolved

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

    from medisyn.families.base import Family
    from medisyn.families.stable_diffusion.model import StableDiffusion
    from medisyn.training.loop import TrainReport
    from medisyn.training.precompute import Encode, EncodedStore, JoinedStore, Keyed
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
        notes = {"size_conditioning": size_note(store.own)} if family.networks.is_xl else {}
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
            config=self._record(),
            corpus=opened.fingerprint,
            notes=notes,
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
            embeddings=place.embeddings,
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
        from medisyn.families.stable_diffusion.load import use_size

        native = family.native_size
        height, width = corpus.read(corpus.rows(self.split)[0]).item.array_CHW.shape[1:]
        if (height, width) == native:
            return
        text = f"the corpus holds pictures of {height}x{width} pixels, the model makes {native[0]}x{native[1]}"
        if not self.base:
            raise ConfigError(f"{text}. Curate at that size, or set network.image_size={height}.")
        announce(f"note: {text} by default; this run trains, judges and exports it at the corpus's size")
        use_size(family.networks, height, width)

    def _judge(self, family: Family, corpus: Any) -> Any:
        from medisyn.recipes.selection import CheckpointJudge

        return CheckpointJudge(family, corpus, self.judge) if self.judge.images else None

    def _store(self, family: StableDiffusion, corpus: Path, out: Path, opened: Any, processes: int) -> JoinedStore:
        """Every picture and every distinct caption, encoded once; both may be shared by many runs."""
        from medisyn.training.precompute import SHARD_ROWS, JoinedStore, precompute

        rows = opened.rows(self.split)
        captions = distinct_captions(corpus, self.split)

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

        sizes = [(row.original_size, row.crop_top_left) for row in rows]
        pictures = encoded(
            [row.key for row in rows],
            SplitReader(corpus, self.split),
            "pictures",
            picture_digest(family, sizes),
            opened.fingerprint,
        )
        shared = encoded(
            [caption.key for caption in captions],
            CaptionReader(corpus, self.split),
            "captions",
            caption_digest(family),
            "captions",
        )
        return JoinedStore(pictures, shared, [caption_key(row.caption) for row in rows])

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


def _open_encoder(run: StableDiffusionRun, out: Path, corpus: Path, part: str) -> Encode:
    """In a worker process: the family's encoder of "pictures" or "captions", on this worker's GPU if there is one."""
    import multiprocessing

    import torch

    family = run._family(out, open_corpus(corpus, run.split))
    if torch.cuda.is_available():
        worker = (multiprocessing.current_process()._identity or (1,))[0] - 1
        family.to(f"cuda:{worker % torch.cuda.device_count()}")
    encode: Encode = getattr(family, f"encode_{part}")
    return encode


def size_note(pictures: EncodedStore) -> str:
    """What SDXL's size and crop conditioning was learnt from."""
    sizes_N6 = pictures.column("time_ids")
    told = ((sizes_N6[:, :2] != sizes_N6[:, 4:]).any(dim=1) | (sizes_N6[:, 2:4] != 0).any(dim=1)).sum()
    return (
        f"size conditioning: {int(told)} of {len(sizes_N6)} samples tell another original size or a crop; "
        "the others are taken as not cropped"
    )


def _request(key: str, prompt: str, seed: int, steps: int | None, guidance: float | None) -> Request:
    from medisyn.types import Request

    return Request(key=key, prompt=prompt, seed=seed, steps=steps, guidance=guidance)


def encoder_digest(family: StableDiffusion) -> str:
    """What decides the rows of `encode`: weights of autoencoder and text encoders, vocabularies, and the kind."""
    networks = family.networks
    digest = hashlib.sha256()
    for module in (networks.vae, *networks.text_encoders):
        _add_weights(digest, module)
    _add_vocabularies(digest, family)
    return digest.hexdigest()[:16]


def picture_digest(family: StableDiffusion, sizes: Sequence[object]) -> str:
    """What decides the rows of `encode_pictures`: the weights of the autoencoder and, for SDXL, the sizes on record.

    `sizes` are the original size and crop of every picture; the corpus's fingerprint does not cover them.
    """
    digest = hashlib.sha256(f"pictures, sizes: {family.networks.is_xl}".encode())
    if family.networks.is_xl:
        digest.update(runs.digest(list(sizes)).encode())
    _add_weights(digest, family.networks.vae)
    return digest.hexdigest()[:16]


def caption_digest(family: StableDiffusion) -> str:
    """What decides the rows of `encode_captions`: weights of the text encoders, vocabularies, and the kind."""
    digest = hashlib.sha256(b"captions")
    for module in family.networks.text_encoders:
        _add_weights(digest, module)
    _add_vocabularies(digest, family)
    return digest.hexdigest()[:16]


def _add_weights(digest: Hash, module: Any) -> None:
    import torch

    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _add_vocabularies(digest: Hash, family: StableDiffusion) -> None:
    for tokenizer in family.networks.tokenizers:
        digest.update(runs.digest([tokenizer.get_vocab(), tokenizer.model_max_length]).encode())
    digest.update(f"token ids: {family.config.train_text_encoder}".encode())
