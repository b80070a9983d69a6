"""MediSyn v1's image model: Würstchen's Stage C fine-tuned on captioned medical images, and its tiny twin.

Sections are those of the MediSyn v1 paper; "original" is dome272/Wuerstchen's train_stage_C.py, on which it says it is
built. Where both are silent, the reason stands beside the value. Heavy packages are imported inside the functions, so
that presets are listed without torch.
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
from medisyn.errors import ConfigError
from medisyn.families.wuerstchen.config import DECODER_TINY, IMAGE_ENCODER_TINY, PRIOR_TINY, VQGAN_TINY
from medisyn.families.wuerstchen.settings import GenerationDefaults, Sizes, WuerstchenConfig
from medisyn.recipes.finetune import (
    BALANCE,
    CaptionReader,
    PreviewConfig,
    SplitReader,
    caption_key,
    distinct_captions,
    open_corpus,
)
from medisyn.recipes.selection import JudgeConfig
from medisyn.training.settings import TrainSettings, resolved

if TYPE_CHECKING:
    import torch

    from medisyn.families.wuerstchen.model import Wuerstchen
    from medisyn.training.loop import TrainReport
    from medisyn.training.precompute import Encode, EncodedStore, JoinedStore, Keyed
    from medisyn.types import Request

Announce = Callable[[str], object]
SETTLED_ON = 64  # pictures of the corpus that give a random image encoder its statistics


@dataclass(frozen=True, kw_only=True)
class WuerstchenRun:
    """One fine-tune of Stage C. Stages A and B, the image encoder and the text encoders stay as they are."""

    summary: str
    base: str  # a Würstchen folder or hub id; "" builds `sizes` from nothing, with a tokenizer learnt from the captions
    decoder: str = ""  # folder or hub id of Stages B and A, where the base is the published Stage C alone
    image_encoder: str = ""  # folder of the image encoder, where the base has none (see docs/families/wuerstchen.md)
    sizes: Sizes | None = None  # the model's size when base is ""
    model: WuerstchenConfig = field(default_factory=WuerstchenConfig)
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)  # height and width are the corpus's
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
        if (self.base == "") != (self.sizes is not None):
            raise ConfigError("give either base, a model to start from, or sizes, those of one with random weights")
        if self.base == "" and (self.decoder or self.image_encoder):
            raise ConfigError(
                "a model built from sizes has its own decoder and image_encoder; name those of a base only"
            )
        if self.encode_batch_size < 1:
            raise ConfigError(f"encode_batch_size must be at least 1, got {self.encode_batch_size}")

    # The words of recipes.Preset

    def plan(self, corpus: Path, out: Path, announce: Announce) -> None:
        """Corpus, steps, and the memory of one process, measured on the first sample; `out` is left alone."""
        import tempfile

        from medisyn.training import memory

        opened = open_corpus(corpus, self.split)
        rows = opened.rows(self.split)
        settings = self.train.for_samples(len(rows))
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
        from medisyn.recipes.selection import CheckpointJudge
        from medisyn.training.run import refuse_another_run

        opened = open_corpus(corpus, self.split)
        settings = resolved(self.train.for_samples(len(opened.rows(self.split))))
        with runs.lock(out):
            refuse_another_run(out, {**self._record(), "train": settings}, opened.fingerprint)
            family = self.family(out, opened)
            if self.judge.images:
                CheckpointJudge(family, opened, self.judge)
            height, width = family.native_size
            announce(f"trains, judges and generates at the corpus's size, {height}x{width} pixels")
            self.store(family, corpus, out, opened, processes)

    def run(self, corpus: Path, out: Path, announce: Announce) -> TrainReport:
        """One training process's part; the loop does the rest."""
        from medisyn.recipes.selection import CheckpointJudge
        from medisyn.training.launch import local_device
        from medisyn.training.loop import train
        from medisyn.training.preview import Preview

        opened = open_corpus(corpus, self.split)
        family = self.family(out, opened)
        store = self.store(family, corpus, out, opened, processes=1)
        family.to(local_device())
        return train(
            family,
            store,
            self.train,
            out,
            save_model=family.save,
            preview=Preview(family, self._preview_requests(opened)) if self.preview.pictures else None,
            judge=CheckpointJudge(family, opened, self.judge) if self.judge.images else None,
            weights=self._weights(opened),
            config=self._record(),
            corpus=opened.fingerprint,
            announce=announce,
        )

    # Parts of the above

    def family(self, out: Path, corpus: Any) -> Wuerstchen:
        """The model before training, for the corpus's size. InputError when the model cannot make that size."""
        from medisyn.families.wuerstchen.latents import pixels_from_samples
        from medisyn.families.wuerstchen.model import Wuerstchen
        from medisyn.recipes.models import find_model

        family = Wuerstchen.from_folder(
            find_model(self.base).folder if self.base else self._built_base(out, corpus),
            self.model,
            decoder=find_model(self.decoder).folder if self.decoder else None,
            image_encoder=Path(self.image_encoder) if self.image_encoder else None,
        )
        family.networks.encoder()  # before hours of training, not after them
        height, width = pixels_from_samples([corpus.read(corpus.rows(self.split)[0])]).shape[2:]
        return family.with_defaults(dataclasses.replace(self.defaults, height=height, width=width))

    def _built_base(self, out: Path, corpus: Any) -> Path:
        """Random weights and a tokenizer for these captions, made once: every process and resume has the same."""
        from medisyn.families.stable_diffusion.text import train_tokenizer
        from medisyn.families.wuerstchen.latents import encoder_view, pixels_from_samples
        from medisyn.families.wuerstchen.layouts import SETTINGS_FILE
        from medisyn.families.wuerstchen.model import Wuerstchen
        from medisyn.families.wuerstchen.networks import settle

        assert self.sizes is not None  # __post_init__
        folder = out / "base"
        if not (folder / SETTINGS_FILE).exists():
            rows = corpus.rows(self.split)
            tokenizer = train_tokenizer([row.caption for row in rows], window=self.sizes.text_window)
            family = Wuerstchen.from_sizes(self.sizes, tokenizer, seed=self.train.seed, defaults=self.defaults)
            pixels = pixels_from_samples([corpus.read(row) for row in rows[:: -(-len(rows) // SETTLED_ON)]])
            settle(family.networks.encoder(), encoder_view(pixels, family.grid))
            family.save(folder)
        return folder

    def store(self, family: Wuerstchen, corpus: Path, out: Path, opened: Any, processes: int) -> JoinedStore:
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

        networks = family.networks
        cells = dataclasses.asdict(family.grid)
        pictures = digest_of("Würstchen pictures", cells, networks.encoder())
        words = digest_of("Würstchen captions", networks.tokenizer.get_vocab(), networks.text_encoder)
        reader, caption_reader = SplitReader(corpus, self.split), CaptionReader(corpus, self.split)
        return JoinedStore(
            encoded([row.key for row in rows], reader, "pictures", pictures, opened.fingerprint),
            encoded([caption.key for caption in captions], caption_reader, "captions", words, "captions"),
            [caption_key(row.caption) for row in rows],
        )

    def _record(self) -> dict[str, Any]:
        """What a resumed run must share with the one before, besides the settings."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in ("summary", "train")}

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


def digest_of(kind: str, settings: object, network: torch.nn.Module) -> str:
    """What decides the rows that a frozen network makes: its weights, and what it is told."""
    import torch

    digest = hashlib.sha256(f"{kind} {runs.digest(settings)}".encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _open_encoder(run: WuerstchenRun, out: Path, corpus: Path, part: str) -> Encode:
    """In a worker process: the family's encoder of "pictures" or "captions", on this worker's GPU if there is one."""
    import multiprocessing

    import torch

    family = run.family(out, open_corpus(corpus, run.split))
    if torch.cuda.is_available():
        worker = (multiprocessing.current_process()._identity or (1,))[0] - 1
        family.to(f"cuda:{worker % torch.cuda.device_count()}")
    encode: Encode = getattr(family, f"encode_{part}")
    return encode


MEDISYN_V1_IMAGE = WuerstchenRun(
    summary="Würstchen v2, Stage C fine-tuned with the numbers of the MediSyn v1 paper",
    base="warp-ai/wuerstchen-prior",  # section 3.3: Würstchen v2, Stage C
    decoder="warp-ai/wuerstchen",  # Stages B and A
    model=WuerstchenConfig(
        caption_dropout=0.05,  # section 3.3
        drop_unit="sample",  # ours; the original drops whole batches: model.drop_unit=batch
        loss_weight="p2",  # section 3.3 keeps the original's loss: p2
        time_sampling="original",  # the same
        gradient_checkpointing=True,  # ours: memory; changes no result
    ),
    defaults=GenerationDefaults(
        steps=60,  # not stated: the published pipeline's
        guidance=6.0,  # section 3.5
        decoder_steps=12,  # not stated: the published pipeline's
        decoder_guidance=0.0,  # the same: off
    ),
    train=TrainSettings(
        epochs=3,  # section 3.3
        batch_size=256,  # section 3.3: effective, over 4 GPUs
        micro_batch_size=16,  # ours: what fits beside AdamW's moments on 80 GB
        learning_rate=1e-4,  # section 3.3
        schedule="constant",  # the original's
        warmup_steps=500,  # not stated: the diffusers script's; the original's 10,000 are for weights from nothing
        weight_decay=1e-2,  # the original's: AdamW's default
        max_grad_norm=1.0,  # the original's
        precision="bf16",  # the original's
        ema_decay=0.9,  # per update of 100 steps: the original's, train_stage_C.py lines 31-33
        ema_start=1500,  # section 3.3
        ema_interval=100,  # section 3.3
        checkpoint_every=0,  # section 3.5 compares the checkpoints of three epochs
        keep_last=2,  # ours: the best one is kept besides
        preview_every=1000,  # ours
    ),
    judge=JudgeConfig(
        images=1000,  # section 3.1: held-out pairs
        against="validation",  # section 3.5: prompts that were not trained on
        extractor="medical-encoder",  # ours, ships with the package; section 3.5's is "inception", a file to be given
    ),
    preview=PreviewConfig(pictures=8),  # ours
)

# Learns nothing of use: it takes every turn that the real run takes, in seconds on two cores. Random Stages A and B
# cannot decode, so its pictures are noise.
MEDISYN_V1_IMAGE_TINY = dataclasses.replace(
    MEDISYN_V1_IMAGE,
    summary="the same on random networks of 0.1 million weights, in seconds on two cores: for tests and first tries",
    base="",
    decoder="",
    sizes=Sizes(
        prior=PRIOR_TINY,
        decoder=DECODER_TINY,
        vqgan=VQGAN_TINY,
        image_encoder=IMAGE_ENCODER_TINY,
        cell_pixels=16.0,  # 4 x 4 cells for 64 pixels; 42.67 would give 2 x 2
    ),
    model=WuerstchenConfig(),
    defaults=GenerationDefaults(steps=2, guidance=2.0, decoder_steps=2),
    train=TrainSettings(
        num_steps=20,
        batch_size=8,
        micro_batch_size=4,
        learning_rate=1e-3,
        precision="bf16",
        ema_decay=0.9,
        ema_start=5,
        ema_interval=2,
        checkpoint_every=10,
        preview_every=10,
    ),
    preview=PreviewConfig(pictures=4),
    judge=JudgeConfig(images=16),
)
