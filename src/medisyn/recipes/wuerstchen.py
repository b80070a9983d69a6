"""MediSyn v1's image model: Würstchen's Stage C fine-tuned on captioned medical images, and its tiny twin.

Sections are those of the MediSyn v1 paper; "original" is dome272/Wuerstchen's train_stage_C.py, on which it says it is
built. Where both are silent, the reason stands beside the value. Heavy packages are imported inside the functions, so
that presets are listed without torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn import runs
from medisyn.errors import ConfigError
from medisyn.families.wuerstchen.config import DECODER_TINY, IMAGE_ENCODER_TINY, PRIOR_TINY, VQGAN_TINY
from medisyn.families.wuerstchen.settings import GenerationDefaults, Sizes, WuerstchenConfig
from medisyn.recipes.finetune import (
    BALANCE,
    TINY_TRAIN,
    Announce,
    PictureRun,
    PreviewConfig,
    add_weights,
)
from medisyn.recipes.selection import JudgeConfig
from medisyn.training.settings import TrainSettings

if TYPE_CHECKING:
    import torch

    from medisyn.families.wuerstchen.model import Wuerstchen
    from medisyn.training.precompute import JoinedStore

SETTLED_ON = 64  # pictures of the corpus that give a random image encoder its statistics


@dataclass(frozen=True, kw_only=True)
class WuerstchenRun(PictureRun):
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

    def check_size(self, family: Wuerstchen, corpus: Any, announce: Announce) -> None:
        height, width = family.native_size
        announce(f"trains, judges and generates at the corpus's size, {height}x{width} pixels")

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
        """Every sample's encoded rows, made where they are not there yet."""
        networks = family.networks
        pictures = digest_of("Würstchen pictures", dataclasses.asdict(family.grid), networks.encoder())
        captions = digest_of("Würstchen captions", networks.tokenizer.get_vocab(), networks.text_encoder)
        return self._encoded(family, corpus, out, opened, processes, pictures=pictures, captions=captions)


def digest_of(kind: str, settings: object, network: torch.nn.Module) -> str:
    """What decides the rows that a frozen network makes: its weights, and what it is told."""
    digest = hashlib.sha256(f"{kind} {runs.digest(settings)}".encode())
    add_weights(digest, network)
    return digest.hexdigest()[:16]


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
    train=TINY_TRAIN,
    preview=PreviewConfig(pictures=4),
    judge=JudgeConfig(images=16),
)
