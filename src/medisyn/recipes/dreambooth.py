"""DreamBooth and LoRA on a few pictures of one class: what Medical diffusion on a budget names beside new words.

DreamBooth (Ruiz et al. 2023) trains the whole U-Net on a few pictures under one prompt, and beside them on pictures
that the base itself made of the class, so that the class is not forgotten. A LoRA is the same run with an adapter.
Both choose their pictures by the keys of textual inversion. Heavy packages are imported inside the functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn import runs
from medisyn.errors import ConfigError
from medisyn.families.stable_diffusion.config import StableDiffusionConfig
from medisyn.recipes.finetune import (
    Caption,
    PreviewConfig,
    caption_digest,
    caption_key,
    open_corpus,
    picture_digest,
    record_of,
)
from medisyn.recipes.textual_inversion import choose
from medisyn.training.settings import TrainSettings, resolved

if TYPE_CHECKING:
    from medisyn.families.stable_diffusion.model import StableDiffusion
    from medisyn.training.batches import Examples
    from medisyn.training.loop import TrainReport
    from medisyn.training.precompute import EncodedStore
    from medisyn.types import Request, Sample

Announce = Callable[[str], object]
PRIOR = "prior"  # the run's folder of pictures that the base made, and their kind among the examples


@dataclass(frozen=True, kw_only=True)
class DreamBoothRun:
    """One run on the pictures of one class, with or without prior preservation.

    The loss of a step is the mean over its pictures plus `prior_weight` times the mean over as many prior pictures.
    """

    summary: str
    base: str  # a model as `--model` names one: shipped, folder or hub id
    prompt: str = ""  # of every picture: a rare word and the class, as "sks chest X-ray image"; "" takes own captions
    class_prompt: str = ""  # the class alone, as "chest X-ray image"
    model: StableDiffusionConfig = field(default_factory=StableDiffusionConfig)
    train: TrainSettings
    split: str = "train"
    classes: tuple[str, ...] = ()  # one label or image type; (): every picture
    images: int = 0  # drawn by the seed; 0: all of them
    prior_images: int = 0  # pictures of class_prompt, made by the base before training; 0: no prior preservation
    prior_weight: float = 1.0
    prior_steps: int | None = None  # None: the model's default
    prior_guidance: float | None = None
    prior_dtype: str = "float32"  # the base makes them in this; a resumed run needs the same
    encode_batch_size: int = 8
    preview: PreviewConfig = field(default_factory=PreviewConfig)

    def __post_init__(self) -> None:
        if min(self.images, self.prior_images) < 0 or self.encode_batch_size < 1:
            raise ConfigError(
                f"images and prior_images must be 0 or more and encode_batch_size at least 1, got {self.images}, "
                f"{self.prior_images} and {self.encode_batch_size}"
            )
        if len(self.classes) > 1:
            raise ConfigError(f"one prompt stands for one class, got {', '.join(self.classes)}: train a run for each")
        if not self.prior_weight > 0:
            raise ConfigError(f"prior_weight must be above 0, got {self.prior_weight}; prior_images=0 goes without")

    # The words of recipes.Preset

    def plan(self, corpus: Path, out: Path, announce: Announce) -> None:
        """Pictures, steps, and the memory of one process, measured on the first picture; writes nothing."""
        from medisyn.training import memory

        opened, rows = self._choose(corpus, announce)
        family = self._family(opened, rows, announce)
        settings, groups = self.train.settled(len(rows)), family.trainable()
        first = family.encode([dataclasses.replace(opened.read(rows[0]), caption=self._captions(rows)[0])])
        estimate = memory.estimate(family, groups, {name: part[0] for name, part in first.items()}, settings)
        weights = sum(parameter.numel() for group in groups for parameter in group.parameters)
        if self.prior_images:
            announce(f"the base makes {self.prior_images} pictures of {self.class_prompt!r} before training")
        announce(f"{settings.num_steps} steps of {settings.batch_size}, learning rate {settings.learning_rate:g}")
        announce(f"{weights / 1e6:.3g} million weights are trained, in {settings.precision}")
        for line in estimate.lines():
            announce(line)

    def prepare(self, corpus: Path, out: Path, announce: Announce, *, processes: int) -> None:
        """Check that the run can be resumed, let the base make the prior pictures, and encode everything once."""
        from medisyn.training.run import refuse_another_run

        opened, rows = self._choose(corpus, announce)
        settings = resolved(self.train.settled(len(rows)))
        with runs.lock(out):
            refuse_another_run(out, {**record_of(self), "train": settings}, opened.fingerprint)
            if self.prior_images:
                self._make_prior(opened, rows, out, announce)
            self._examples(self._family(opened, rows, announce), opened, rows, out)

    def run(self, corpus: Path, out: Path, announce: Announce) -> TrainReport:
        """One training process's part; the loop does the rest."""
        from medisyn.training.launch import local_device
        from medisyn.training.loop import train
        from medisyn.training.preview import Preview

        opened, rows = self._choose(corpus, _silent)
        family = self._family(opened, rows, _silent)
        examples = self._examples(family, opened, rows, out)
        family.to(local_device())
        return train(
            family,
            examples,
            self.train,
            out,
            save_model=family.save,
            preview=Preview(family, self._preview_requests(rows)) if self.preview.pictures else None,
            config=record_of(self),
            corpus=opened.fingerprint,
            notes={"images": len(rows)},
            announce=announce,
        )

    # Parts of the above

    def _choose(self, corpus: Path, announce: Announce) -> tuple[Any, list[Any]]:
        """The corpus, and the rows that are learnt from. Raises ConfigError for prompts that make no prior."""
        self._check_prompts()
        opened = open_corpus(corpus, self.split)
        named = (self.prompt or "this run",)
        chosen, _ = choose(opened.rows(self.split), named, self.classes, self.images, self.train.seed)
        announce(f"{len(chosen)} pictures; corpus {opened.fingerprint}")
        return opened, [one.row for one in chosen]

    def _check_prompts(self) -> None:
        """Not in `__post_init__`: on the command line the two prompts and prior_images come one after the other."""
        same = self.prompt.strip() == self.class_prompt.strip()
        if self.prior_images and (same or not self.prompt.strip() or not self.class_prompt.strip()):
            raise ConfigError(
                "prior preservation needs two different prompts, for example prompt='sks chest X-ray image' and "
                f"class_prompt='chest X-ray image'; got {self.prompt!r} and {self.class_prompt!r}. prior_images=0 "
                "goes without"
            )

    def _captions(self, rows: Sequence[Any]) -> list[str]:
        return [self.prompt or row.caption for row in rows]

    def _family(self, opened: Any, rows: Sequence[Any], announce: Announce) -> StableDiffusion:
        """The base, at the size of the corpus's pictures."""
        from medisyn.families.stable_diffusion.load import use_size
        from medisyn.families.stable_diffusion.model import StableDiffusion
        from medisyn.recipes.models import find_model

        place = find_model(self.base)
        family = StableDiffusion.from_folder(
            place.folder, self.model, adapter=place.adapter, embeddings=place.embeddings, source=place.name
        )
        height, width = _size(opened, rows)
        if (height, width) != family.native_size:
            announce(
                f"note: the corpus holds pictures of {height}x{width} pixels, the model makes "
                f"{family.native_size[0]}x{family.native_size[1]} by default; this run trains at the first size"
            )
            use_size(family.networks, height, width)
        return family

    def _make_prior(self, opened: Any, rows: Sequence[Any], out: Path, announce: Announce) -> None:
        """The base's own pictures of the class; those of an interrupted call are kept."""
        from medisyn.recipes.generate_images import generate_images

        height, width = _size(opened, rows)
        report = generate_images(
            self.class_prompt,
            model=self.base,
            out=out / PRIOR,
            n=self.prior_images,
            seed=self.train.seed,
            height=height,
            width=width,
            steps=self.prior_steps,
            guidance=self.prior_guidance,
            dtype=self.prior_dtype,
        )
        announce(f"prior pictures of {self.class_prompt!r}: {report.made} made, {report.skipped} there before")

    def _examples(self, family: StableDiffusion, opened: Any, rows: Sequence[Any], out: Path) -> Examples:
        """The class's pictures under their prompt, and beside them the base's own under the class prompt."""
        from medisyn.training.batches import Joint, Kind
        from medisyn.training.precompute import JoinedStore

        captions = self._captions(rows)
        texts = self._texts(family, out, [*captions, *([self.class_prompt] if self.prior_images else [])])
        pictures = self._pictures(
            out,
            family,
            [row.key for row in rows],
            lambda number: opened.read(rows[number]),
            opened.fingerprint,
            [(row.original_size, row.crop_top_left) for row in rows],
        )
        own = JoinedStore(pictures, texts, [caption_key(caption) for caption in captions])
        if not self.prior_images:
            return own
        made = self._prior_pictures(family, out)
        prior = JoinedStore(made, texts, [caption_key(self.class_prompt)] * len(made))
        sizes = self.train.batch_size, self.train.micro_batch_size
        return Joint([Kind("instance", own, *sizes, 1.0), Kind(PRIOR, prior, *sizes, self.prior_weight)])

    def _prior_pictures(self, family: StableDiffusion, out: Path) -> EncodedStore:
        from medisyn.recipes.corpus_images import generated_images
        from medisyn.types import Picture, Sample

        images = generated_images(out / PRIOR, [])
        keys = [f"{PRIOR}/{image.key}" for image in images]

        def read(number: int) -> Sample:
            return Sample(keys[number], Picture(images[number].read().transpose(2, 0, 1)), self.class_prompt)

        return self._pictures(out, family, keys, read, runs.digest([image.sha256 for image in images]), [])

    def _pictures(
        self,
        out: Path,
        family: StableDiffusion,
        keys: Sequence[str],
        read: Callable[[int], Sample],
        corpus: str,
        sizes: Sequence[object],
    ) -> EncodedStore:
        from medisyn.training.precompute import precompute

        return precompute(
            out / "encoded",
            keys,
            read,
            lambda: family.encode_pictures,
            batch_size=self.encode_batch_size,
            encoder=picture_digest(family, sizes),
            corpus=corpus,
        )

    def _texts(self, family: StableDiffusion, out: Path, captions: Sequence[str]) -> EncodedStore:
        """Every distinct caption, encoded once."""
        from medisyn.training.precompute import precompute

        texts = {caption_key(caption): caption for caption in captions}
        distinct = [Caption(key, texts[key]) for key in sorted(texts)]
        return precompute(
            out / "encoded",
            [caption.key for caption in distinct],
            distinct.__getitem__,
            lambda: family.encode_captions,
            batch_size=self.encode_batch_size,
            encoder=caption_digest(family),
            corpus="captions",
        )

    def _preview_requests(self, rows: Sequence[Any]) -> list[Request]:
        """The prompts that were learnt and, to see whether the class is kept, the class alone, in turn."""
        from medisyn.types import Request

        prompts = [*dict.fromkeys(self._captions(rows)), *([self.class_prompt] if self.prior_images else [])]
        options = self.preview
        return [
            Request(
                key=f"preview-{number}",
                prompt=prompts[number % len(prompts)],
                seed=options.seed + number,
                steps=options.steps,
                guidance=options.guidance,
            )
            for number in range(options.pictures)
        ]


def _size(opened: Any, rows: Sequence[Any]) -> tuple[int, int]:
    height, width = opened.read(rows[0]).item.array_CHW.shape[1:]
    return int(height), int(width)


def _silent(line: str) -> None:
    """`prepare` has said it."""


# "DreamBooth" is Ruiz et al. 2023, "DreamBooth: fine tuning text-to-image diffusion models for subject-driven
# generation", the section on the class-specific prior preservation loss; "the example" is diffusers' DreamBooth example
# with prior preservation, for Stable Diffusion.
DREAMBOOTH = DreamBoothRun(
    summary="the whole U-Net of Stable Diffusion 2 on a few pictures of one class, with prior preservation",
    base="stabilityai/stable-diffusion-2-base",  # ours: the base of Medical diffusion on a budget, section 3.1
    prompt="a sks medical image",  # DreamBooth's form, "a [identifier] [class noun]"; the word is the example's
    class_prompt="a medical image",  # DreamBooth's form, "a [class noun]"
    model=StableDiffusionConfig(
        caption_dropout=0.0,  # not stated: the example drops none
        gradient_checkpointing=True,  # ours: memory, for 24 GB; changes no result
    ),
    images=5,  # DreamBooth: 3 to 5
    prior_images=200,  # the example; DreamBooth makes about 1,000 and says that fewer will do
    prior_weight=1.0,  # DreamBooth: lambda = 1
    prior_dtype="auto",  # ours: bfloat16 where it takes half the time; the example has half precision on a GPU too
    train=TrainSettings(
        num_steps=1000,  # DreamBooth: about 1,000 iterations
        batch_size=1,  # not stated: the example's, beside one prior picture
        micro_batch_size=1,  # the whole batch
        learning_rate=5e-6,  # DreamBooth: of Stable Diffusion
        schedule="constant",  # not stated: the example's
        weight_decay=1e-2,  # not stated: AdamW's default, as in the example
        max_grad_norm=1.0,  # not stated: the example's
        checkpoint_every=250,  # ours
        keep_last=1,  # ours: a full checkpoint of Stable Diffusion 2 is 15 GB
        preview_every=250,  # ours
        log_every=10,  # ours
    ),
    preview=PreviewConfig(
        pictures=4,  # ours: the prompt and the class alone, in turn
        steps=25,  # ours: the fast solver's
    ),
)

SD_LORA = dataclasses.replace(
    DREAMBOOTH,
    summary="a LoRA of rank 4 on Stable Diffusion 2, for a few pictures or a corpus: a file of about 3 MB",
    prompt="",  # ours: the captions of the corpus; set prompt for one class without captions
    class_prompt="",  # without prior preservation
    model=StableDiffusionConfig(
        caption_dropout=0.0,  # not stated: diffusers' LoRA example drops none
        gradient_checkpointing=True,  # ours: memory, for 11 GB; changes no result
        lora_rank=4,  # diffusers' LoRA example, which the budget paper cites [1] for files under 5 MB
    ),
    images=0,  # ours: all of them
    prior_images=0,  # the adapter leaves the base as it is
    train=dataclasses.replace(
        DREAMBOOTH.train,
        learning_rate=1e-4,  # diffusers' LoRA example
        num_steps=15_000,  # diffusers' LoRA example, for 833 captioned pictures
        checkpoint_every=500,  # ours
        keep_last=5,  # ours: an adapter takes little space
        preview_every=500,  # ours
    ),
)

# The tiny twins take every turn of the real runs on starter-image, in seconds on two cores.
_TINY_TRAIN = TrainSettings(
    num_steps=20,
    batch_size=2,
    micro_batch_size=2,
    learning_rate=1e-5,
    checkpoint_every=10,
    keep_last=1,
    preview_every=20,
)

DREAMBOOTH_TINY = dataclasses.replace(
    DREAMBOOTH,
    summary="the same with 4 prior pictures and 20 steps on starter-image, in seconds on two cores: for first tries",
    base="starter-image",
    prompt="sks chest X-ray image",
    class_prompt="chest X-ray image",
    model=StableDiffusionConfig(caption_dropout=0.0),
    images=0,
    prior_images=4,
    prior_steps=2,
    prior_dtype="float32",
    train=_TINY_TRAIN,
    preview=PreviewConfig(pictures=2, steps=2),
)

SD_LORA_TINY = dataclasses.replace(
    SD_LORA,
    summary="a LoRA with 20 steps on starter-image, in seconds on two cores: for first tries",
    base="starter-image",
    model=StableDiffusionConfig(caption_dropout=0.0, lora_rank=4),
    train=dataclasses.replace(_TINY_TRAIN, learning_rate=1e-4),
    preview=PreviewConfig(pictures=2, steps=2),
)
