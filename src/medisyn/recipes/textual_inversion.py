"""Medical diffusion on a budget: new words learnt for a frozen Stable Diffusion model, and a tiny twin.

Sections are those of de Wilde et al. 2023, "Medical diffusion on a budget"; the published embeddings were trained with
AUTOMATIC1111's web UI, whose values stand where the paper is silent.
Heavy packages are imported inside the functions, so that presets are listed without torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn import runs
from medisyn.errors import ConfigError, CorpusError, closest
from medisyn.families.stable_diffusion.config import InversionConfig
from medisyn.recipes.finetune import PreviewConfig, open_corpus, picture_digest, record_of
from medisyn.recipes.selection import JudgeConfig
from medisyn.seeding import seed_for
from medisyn.training.settings import TrainSettings, resolved

if TYPE_CHECKING:
    import torch

    from medisyn.families.stable_diffusion.inversion import TextualInversion
    from medisyn.recipes.selection import CheckpointJudge
    from medisyn.training.loop import TrainReport
    from medisyn.types import Request, Sample

Announce = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class TextualInversionRun:
    """One run: the vectors of one token or several, each learnt from the pictures of its class."""

    summary: str
    base: str  # a model as `--model` names one: shipped, folder or hub id
    model: InversionConfig = field(default_factory=InversionConfig)
    train: TrainSettings
    split: str = "train"
    classes: tuple[str, ...] = ()  # a label or image type per token; (): one token learns from every picture
    images: int = 0  # per token, drawn by the seed; 0: all of them
    encode_batch_size: int = 8
    cache: str = ""  # folder of encoded pictures, to share them between runs; "" keeps them in the run's folder
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    judge: JudgeConfig = field(default_factory=lambda: JudgeConfig(images=0))  # against pictures of the classes

    def __post_init__(self) -> None:
        if self.images < 0 or self.encode_batch_size < 1:
            raise ConfigError(
                f"images must be 0 (all) or more and encode_batch_size at least 1, got {self.images} and "
                f"{self.encode_batch_size}"
            )

    # The words of recipes.Preset

    def plan(self, corpus: Path, out: Path, announce: Announce) -> None:
        """Pictures per token, steps, and the memory of one process, measured on the first picture; writes nothing."""
        from medisyn.training import memory

        opened, chosen = self._choose(corpus, announce)
        family = self._family(opened, chosen, announce)
        settings = self.train.settled(len(chosen))
        first = family.encode([self._sample(opened, family, chosen[0])])
        groups = family.trainable()
        estimate = memory.estimate(family, groups, {name: rows[0] for name, rows in first.items()}, settings)
        weights = sum(parameter.numel() for group in groups for parameter in group.parameters)
        announce(f"{settings.num_steps} steps of {settings.batch_size}, learning rate {settings.learning_rate:g}")
        announce(f"{weights:,} numbers are trained ({weights * 4 / 1e6:.2f} MB), in {settings.precision}")
        for line in estimate.lines():
            announce(line)

    def prepare(self, corpus: Path, out: Path, announce: Announce, *, processes: int) -> None:
        """Check that the run can be resumed, fetch the base, and encode every chosen picture once."""
        from medisyn.training.run import refuse_another_run

        opened, chosen = self._choose(corpus, announce)
        settings = resolved(self.train.settled(len(chosen)))
        with runs.lock(out):
            refuse_another_run(out, {**record_of(self), "train": settings}, opened.fingerprint)
            self._store(self._family(opened, chosen, announce), out, opened, chosen)

    def run(self, corpus: Path, out: Path, announce: Announce) -> TrainReport:
        """One training process's part; the loop does the rest."""
        from medisyn.training.launch import local_device
        from medisyn.training.loop import train
        from medisyn.training.preview import Preview

        opened, chosen = self._choose(corpus, _silent)
        family = self._family(opened, chosen, _silent)
        store = self._store(family, out, opened, chosen)
        family.to(local_device())
        return train(
            family,
            store,
            self.train,
            out,
            save_model=family.save,
            preview=Preview(family, self._preview_requests(family)) if self.preview.pictures else None,
            judge=self._judge(family, opened) if self.judge.images else None,
            config=record_of(self),
            corpus=opened.fingerprint,
            notes={"images": _counts(family.tokens, chosen)},
            announce=announce,
        )

    # Parts of the above

    def _choose(self, corpus: Path, announce: Announce) -> tuple[Any, list[Chosen]]:
        from medisyn.families.stable_diffusion.embedding_files import as_token

        opened, tokens = open_corpus(corpus, self.split), [as_token(name) for name in self.model.tokens]
        chosen, left_out = choose(opened.rows(self.split), tokens, self.classes, self.images, self.train.seed)
        announce(f"pictures per token: {_counts(tokens, chosen)}; corpus {opened.fingerprint}")
        if left_out:
            announce(f"note: {left_out} pictures show more than one of the classes and are left out")
        return opened, chosen

    def _family(self, opened: Any, chosen: Sequence[Chosen], announce: Announce) -> TextualInversion:
        """The base with its new tokens, at the size of the corpus's pictures."""
        from medisyn.families.stable_diffusion.inversion import TextualInversion
        from medisyn.families.stable_diffusion.load import use_size
        from medisyn.families.stable_diffusion.model import StableDiffusion
        from medisyn.recipes.models import find_model

        place = find_model(self.base)
        base = StableDiffusion.from_folder(
            place.folder, adapter=place.adapter, embeddings=place.embeddings, source=place.name
        )
        family = TextualInversion(base, self.model)
        height, width = opened.read(chosen[0].row).item.array_CHW.shape[1:]
        if (height, width) != family.native_size:
            announce(
                f"note: the corpus holds pictures of {height}x{width} pixels, the model makes "
                f"{family.native_size[0]}x{family.native_size[1]} by default; the tokens are learnt at the first size"
            )
            use_size(family.networks, height, width)
        return family

    def _store(self, family: TextualInversion, out: Path, opened: Any, chosen: Sequence[Chosen]) -> ConceptStore:
        """Every chosen picture as the moments of its latents, and the token it shows."""
        from medisyn.training.precompute import precompute

        pictures = precompute(
            Path(self.cache) if self.cache else out / "encoded",
            [one.row.key for one in chosen],
            lambda number: opened.read(chosen[number].row),
            lambda: family.encode_pictures,
            batch_size=self.encode_batch_size,
            encoder=picture_digest(family, [(one.row.original_size, one.row.crop_top_left) for one in chosen]),
            corpus=opened.fingerprint,
        )
        return ConceptStore(pictures, [one.concept for one in chosen])

    def _sample(self, opened: Any, family: TextualInversion, one: Chosen) -> Sample:
        return dataclasses.replace(opened.read(one.row), caption=family.tokens[one.concept])

    def _judge(self, family: TextualInversion, opened: Any) -> CheckpointJudge:
        """Each token alone as the prompt, against the pictures of its class in another split."""
        from medisyn.recipes.selection import CheckpointJudge

        def shown(rows: Sequence[Any]) -> list[Any]:
            if not rows:
                return []  # the judge says what to do
            try:
                chosen, _ = choose(rows, family.tokens, self.classes, 0, self.judge.seed)
            except CorpusError as error:
                raise CorpusError(f"checkpoints are judged against the split {self.judge.against!r}: {error}") from None
            return [dataclasses.replace(one.row, caption=family.tokens[one.concept]) for one in chosen]

        return CheckpointJudge(family, opened, self.judge, shown)

    def _preview_requests(self, family: TextualInversion) -> list[Request]:
        from medisyn.types import Request

        options, tokens = self.preview, family.tokens
        return [
            Request(
                key=f"preview-{number}",
                prompt=tokens[number % len(tokens)],
                seed=options.seed + number,
                steps=options.steps,
                guidance=options.guidance,
            )
            for number in range(options.pictures)
        ]


def _silent(line: str) -> None:
    """`prepare` has said it."""


@dataclass(frozen=True)
class Chosen:
    """A picture of the corpus (its Row) and the number of the token that learns from it."""

    row: Any
    concept: int


def choose(
    rows: Sequence[Any], tokens: Sequence[str], classes: Sequence[str], images: int, seed: int
) -> tuple[list[Chosen], int]:
    """The pictures of each token in the corpus's order, and how many show more than one class and are left out.

    A picture shows a class that is one of its labels or its image type; as in section 3.3.2, only pictures of a single
    one of the classes are used. `images` (0: all) are drawn for each token by the seed and their keys. Raises
    ConfigError when the classes do not match the tokens, CorpusError when a token has no pictures, or too few.
    """
    if len(classes) != len(tokens) and (classes or len(tokens) > 1):
        raise ConfigError(
            f"{len(tokens)} tokens and {len(classes)} classes: give a label or image type for each token, for example "
            f"--set classes=No Finding,Cardiomegaly"
        )
    shown = [[number for number, name in enumerate(classes) if _shows(row, name)] for row in rows]
    pairs = [
        Chosen(row, found[0] if found else 0)
        for row, found in zip(rows, shown, strict=True)
        if len(found) == 1 or not classes
    ]
    kept: list[Chosen] = []
    for number, token in enumerate(tokens):
        own = [pair for pair in pairs if pair.concept == number]
        if not own:
            names = sorted({name for row in rows for name in (*row.labels, row.image_type)})
            raise CorpusError(
                f"{token} has no pictures: none shows {classes[number]!r} alone.{closest(classes[number], names)} "
                f"The corpus has: {', '.join(names[:20])}"
            )
        if images > len(own):
            raise CorpusError(f"{token}: {images} images are asked for, the corpus has {len(own)}; set images lower")
        own.sort(key=lambda pair: seed_for(seed, f"choose/{pair.row.key}"))
        kept += own[: images or None]
    order = {row.key: place for place, row in enumerate(rows)}
    return sorted(kept, key=lambda pair: order[pair.row.key]), sum(len(found) > 1 for found in shown)


def _shows(row: Any, name: str) -> bool:
    return name in row.labels or name == row.image_type


def _counts(tokens: Sequence[str], chosen: Sequence[Chosen]) -> str:
    return ", ".join(f"{token} {sum(one.concept == number for one in chosen)}" for number, token in enumerate(tokens))


class ConceptStore:
    """Rows of encoded pictures with "concept", the number of the token that each shows."""

    def __init__(self, pictures: Any, concept_N: Sequence[int]) -> None:
        self.pictures, self.concept_N = pictures, list(concept_N)
        self.keys = pictures.keys

    def __len__(self) -> int:
        return len(self.concept_N)

    def __getitem__(self, row: int, /) -> Mapping[str, torch.Tensor]:
        import torch

        return {**self.pictures[row], "concept": torch.tensor(self.concept_N[row])}


TEXTUAL_INVERSION = TextualInversionRun(
    summary="one new word for a frozen Stable Diffusion 2, with the numbers of Medical diffusion on a budget",
    base="stabilityai/stable-diffusion-2-base",  # section 3.1: v2.0, 512 pixels
    model=InversionConfig(
        num_vectors=64,  # section 4.1
        init=("*",),  # not stated: AUTOMATIC1111's default, every vector starts as that of "*"
        templates=("{}",),  # section 3.1: prompted with the embedding name only
        frozen_dtype="bfloat16",  # ours: half the memory of what is not trained, for 8 GB; the paper's UI has fp16
        gradient_checkpointing=True,  # ours: memory, for 8 GB; changes no result
    ),
    images=100,  # section 4.1
    train=TrainSettings(
        num_steps=50_000,  # section 3.1
        batch_size=1,  # section 3.1
        micro_batch_size=1,  # the whole batch
        learning_rate=0.005,  # section 3.1
        schedule="constant",  # section 3.1
        weight_decay=1e-2,  # not stated: AdamW's default, as AUTOMATIC1111 leaves it
        max_grad_norm=0.0,  # not stated: AUTOMATIC1111 clips no gradients unless asked to
        precision="bf16",  # ours: autocast, where the paper's UI has fp16
        checkpoint_every=500,  # ours: a checkpoint has about 1 MB
        keep_last=5,  # ours
        preview_every=1000,  # ours
        log_every=10,  # ours
    ),
    preview=PreviewConfig(
        pictures=4,  # ours
        steps=25,  # ours: the fast solver's; section 4.1 samples with 100 steps of Euler ancestral
        guidance=2.0,  # section 4.1
    ),
)

TEXTUAL_INVERSION_TINY = dataclasses.replace(
    TEXTUAL_INVERSION,
    summary="the same with 4 vectors and 20 steps on starter-image, in seconds on two cores: for first tries",
    base="starter-image",
    images=0,
    model=InversionConfig(num_vectors=4),
    train=TrainSettings(
        num_steps=20,
        batch_size=1,
        micro_batch_size=1,
        learning_rate=0.005,
        max_grad_norm=0.0,
        checkpoint_every=10,
        preview_every=20,
    ),
    preview=PreviewConfig(pictures=2, steps=2, guidance=2.0),
)
