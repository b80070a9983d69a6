"""Generated images against a corpus: distances, class accuracy and closeness to the training images, in one report.

Shapes here: N images, D features, H, W pixels.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError
from medisyn.recipes.corpus_images import LabelledImage, corpus_images, generated_images, of_known_class
from medisyn.recipes.medical_encoder import MIN_CLASS_IMAGES, train_judge
from medisyn.seeding import seed_for

if TYPE_CHECKING:
    from medisyn.evaluation.classify import ClassAccuracy, Judge
    from medisyn.evaluation.diversity import DiversityResult
    from medisyn.evaluation.evaluate import EvaluationResult, FeatureSet
    from medisyn.evaluation.features import Extractor
    from medisyn.evaluation.memorisation import ClosestPair, CopyStatistics
    from medisyn.recipes.alignment import Alignment

VALIDATION = "validation"  # the split that decides which classes a judge tells apart
JUDGE_SEED = 1  # the encoder of `medical_encoder.run` has seed 0
FLIPS = ("none", "horizontal")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What the numbers depend on besides the two sets of images; all of it stands in result.json.

    split: the held-out images to compare with; "train" is what MediSyn v2 did, and flatters a model that copies.
    judge: "train" (on the corpus's training split), "none", or the folder of a trained judge.
    neighbours: training images of the same specialty and image type that each image is compared with; 0 for none.
    diversity_pairs: pairs of images of each class whose likeness is measured, on both sides; 0 for none.
    mmd_alpha: of the Gaussian kernel exp(-alpha d²); None takes it from the real images (`evaluation.evaluate`).
    """

    split: str = "test"
    extractor: str = "medical-encoder"
    judge: str = "train"
    judge_steps: int = 600
    neighbours: int = 10
    diversity_pairs: int = 10
    mmd_alpha: float | None = None
    resamples: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.neighbours, self.diversity_pairs) < 0 or self.judge_steps < 1 or self.resamples < 1:
            raise InputError(
                f"neighbours and diversity pairs must be 0 or more, judge steps and resamples at least 1, got "
                f"{self.neighbours}, {self.diversity_pairs}, {self.judge_steps} and {self.resamples}"
            )


@dataclass(frozen=True)
class Images:
    """The three sets of one evaluation."""

    generated: Sequence[LabelledImage]
    real: Sequence[LabelledImage]
    train: Sequence[LabelledImage]


@dataclass(frozen=True)
class Copies:
    """Closest training image of every image of one set; `unmatched` images had no stratum in common with training."""

    pairs: tuple[ClosestPair, ...]
    statistics: CopyStatistics | None
    unmatched: int


@dataclass(frozen=True)
class Groups:
    """Accuracy over the groups of classes that the judge tells apart on the validation split's real images.

    `of_class` names the group of each class; `n` counts the validation images that decided.
    """

    of_class: dict[str, str]
    n: int
    generated: tuple[ClassAccuracy, ...]
    real: tuple[ClassAccuracy, ...]


@dataclass(frozen=True)
class ImageEvaluation:
    """What `evaluate_images` found; `page` is the report it wrote."""

    result: EvaluationResult
    generated_classes: tuple[ClassAccuracy, ...]
    real_classes: tuple[ClassAccuracy, ...]
    groups: Groups | None  # None where the judge tells all classes apart, or no validation images say which
    copies: dict[str, Copies]  # "generated" and "held-out real", or empty
    diversity: DiversityResult | None
    judge: str
    settings: EvaluateSettings
    warnings: tuple[str, ...]
    page: Path
    corpus: str  # fingerprint
    model: dict[str, str] | None  # id and digest of what made the images; None where it is not recorded
    alignment: Alignment | None  # with CLIP's texts, where it was asked for

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; `evaluation.evaluate.result_from_dict` reads what it needs from it."""
        return {
            **self.result.as_dict(),
            "corpus": self.corpus,
            "model": self.model,
            "asked": asdict(self.settings),
            "judge": self.judge,
            "classes": {
                "generated": [asdict(row) for row in self.generated_classes],
                "held-out real": [asdict(row) for row in self.real_classes],
            },
            **({} if self.groups is None else {"groups": asdict(self.groups)}),
            "copies": {
                name: {"unmatched": found.unmatched, **asdict(found.statistics)}
                for name, found in self.copies.items()
                if found.statistics is not None
            },
            **({} if self.diversity is None else {"diversity": asdict(self.diversity)}),
            **({} if self.alignment is None else {"alignment": asdict(self.alignment)}),
            "warnings": list(self.warnings),
        }

    def summary(self) -> str:
        """A few lines for a terminal."""
        from medisyn.evaluation import report

        lines = [report.summary(self.result.measures, self.result.baseline)]
        if self.diversity is not None:
            ours, real = self.diversity.generated[-1], self.diversity.real[-1]
            lines.append(f"likeness within a class (MS-SSIM), generated: {ours.value:.3f}, real: {real.value:.3f}")
        for name, rows in (("generated", self.generated_classes), ("held-out real", self.real_classes)):
            lines += [
                f"{row.name.replace('all', 'class')} named right, {name}: {row.correct} of {row.n} = {row.accuracy:.1%}"
                for row in rows[-2:]
            ]
        if self.groups is not None:
            lines += [
                f"group of classes that real validation images tell apart named right, {name}: "
                f"{row.correct} of {row.n} = {row.accuracy:.1%}"
                for name, row in (("generated", self.groups.generated[-1]), ("held-out real", self.groups.real[-1]))
            ]
        for name, found in self.copies.items():
            if found.statistics is not None:
                lines.append(
                    f"at or below patch distance {found.statistics.threshold:g} of a training image, {name}: "
                    f"{found.statistics.at_or_below} of {found.statistics.n}, minimum {found.statistics.minimum:.3f}"
                )
        if self.alignment is not None:
            lines.append(
                f"own class prompt closest (R@1, {self.alignment.encoder}), generated: "
                f"{self.alignment.generated.r_at_1:.1%}, real: {self.alignment.real.r_at_1:.1%}, "
                f"chance {self.alignment.real.chance:.1%}"
            )
        return "\n".join([*lines, *(f"Note: {warning}" for warning in self.warnings), f"Report: {self.page}"])


def evaluate_images(
    synthetic: Path | str,
    against: Path | str,
    settings: EvaluateSettings | None = None,
    *,
    weights: Path | None = None,
    cache: Path | None = None,
    out: Path | None = None,
    clip: Path | None = None,
) -> ImageEvaluation:
    """Compare the images of `synthetic` (a generated folder, or a corpus, of which all is taken) with a corpus.

    weights: of the extractor, where it is not the shipped one (`evaluation.features.load_extractor`).
    cache: where features and judges are kept; None: `medisyn` in the user's cache folder.
    out: folder of the report; None: `<synthetic>-evaluation` beside it.
    clip: folder of a CLIP model; with it, each image is looked for among the prompts of its classes (`alignment`).
    """
    from medisyn.corpus.loader import Corpus
    from medisyn.evaluation.evaluate import Settings, evaluate
    from medisyn.evaluation.features import load_extractor
    from medisyn.recipes.alignment import align, open_clip_folder
    from medisyn.recipes.evaluation_page import write_page
    from medisyn.recipes.results import made_by

    settings = settings or EvaluateSettings()
    synthetic, against = Path(synthetic), Path(against)
    cache = user_cache() if cache is None else cache
    out = synthetic.with_name(f"{synthetic.name}-evaluation") if out is None else out
    corpus, clip_pair = Corpus(against), None if clip is None else open_clip_folder(clip)
    images = _three_sets(synthetic, corpus, settings.split)
    features = _features(images, load_extractor(settings.extractor, weights), cache, settings)
    result = evaluate(
        features["generated"],
        features["real"],
        features["train"],
        Settings(seed=settings.seed, resamples=settings.resamples, mmd_alpha=settings.mmd_alpha),
    )
    judge = open_judge(images, corpus.fingerprint, cache, settings)
    decides = settings.split != VALIDATION and len(corpus.rows(VALIDATION)) > 0
    validation = corpus_images(corpus, VALIDATION) if decides else []
    answers = {
        name: _answers(judge, part)
        for name, part in (("generated", images.generated), ("real", images.real), (VALIDATION, validation))
    }
    copies = _copies(images, features, settings) if settings.neighbours else {}
    found = ImageEvaluation(
        result=result,
        generated_classes=_accuracy(answers["generated"]),
        real_classes=_accuracy(answers["real"]),
        groups=_groups(answers),
        copies=copies,
        diversity=_diversity(images, settings),
        judge=judge.id if judge is not None else "none",
        settings=settings,
        warnings=_warnings(images, judge, corpus.fingerprint, copies, settings),
        page=out / "report.html",
        corpus=corpus.fingerprint,
        model=made_by(synthetic),
        alignment=None if clip_pair is None else align(images.generated, images.real, clip_pair),
    )
    write_page(out, found, images)
    return found


def user_cache() -> Path:
    """`medisyn` in the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "medisyn"


def _three_sets(synthetic: Path, corpus: Any, split: str) -> Images:
    from medisyn.corpus.loader import Corpus

    train, real = corpus_images(corpus, "train"), corpus_images(corpus, split)
    if (synthetic / "index.parquet").exists():
        return Images(corpus_images(Corpus(synthetic), None), real, train)
    return Images(generated_images(synthetic, [*train, *real]), real, train)


def _features(images: Images, extractor: Extractor, cache: Path, settings: EvaluateSettings) -> dict[str, FeatureSet]:
    """Features of the three sets; of the training images only a draw as large as is needed when no neighbours are."""
    from medisyn.evaluation.features.cache import FeatureCache
    from medisyn.recipes.evaluate_sets import features_of

    train = images.train
    if not settings.neighbours:
        n = min(len(images.generated), len(images.real), len(train))
        order = np.random.default_rng(seed_for(settings.seed, "train")).permutation(len(train))[:n]
        train = [train[number] for number in sorted(order)]
    store = FeatureCache(cache / "features", extractor)
    parts = {"generated": images.generated, "real": images.real, "train": train}
    return {name: features_of(part, extractor, store, name) for name, part in parts.items()}


def open_judge(images: Images, fingerprint: str, cache: Path, settings: EvaluateSettings) -> Judge | None:
    """The judge that `settings.judge` asks for; one that was trained before on the same corpus comes from the cache."""
    from medisyn.evaluation.classify import load_judge

    if settings.judge == "none":
        return None
    if settings.judge != "train":
        return load_judge(Path(settings.judge))
    known, rare = of_known_class(images.train, MIN_CLASS_IMAGES)
    if len({image.name for image in known}) < 2:
        return None
    folder = cache / "judges" / runs.digest([fingerprint, settings.judge_steps, JUDGE_SEED])
    if not (folder / "config.json").exists():
        record = {
            "trained_on": fingerprint,
            "train_images": dict(Counter(image.name for image in known)),
            "left_out": rare,
        }
        held_out = [image for image in images.real if image.name in record["train_images"]]
        train_judge(known, held_out, folder, steps=settings.judge_steps, seed=JUDGE_SEED, record=record)
    return load_judge(folder)


def _answers(judge: Judge | None, images: Sequence[LabelledImage]) -> list[tuple[str, str]]:
    """(asked, named) of every image of a class that the judge knows."""
    asked = [image for image in images if judge is not None and image.name in judge.classes]
    named: list[str] = []
    for start in range(0, len(asked), 64):
        named += judge.name([image.read() for image in asked[start : start + 64]])  # type: ignore[union-attr]
    return [(image.name, answer) for image, answer in zip(asked, named, strict=True)]


def _accuracy(answers: Sequence[tuple[str, str]]) -> tuple[ClassAccuracy, ...]:
    from medisyn.evaluation.classify import accuracy_by_class, accuracy_by_type

    if not answers:
        return ()
    asked, named = zip(*answers, strict=True)
    return (*accuracy_by_class(asked, named), accuracy_by_type(asked, named))


def _groups(answers: dict[str, list[tuple[str, str]]]) -> Groups | None:
    """Classes of which the validation split has no image stay by themselves."""
    from medisyn.evaluation.classify import accuracy_by_class, groups_told_apart

    if not all(answers.values()):
        return None
    asked, named = zip(*answers[VALIDATION], strict=True)
    of_class = groups_told_apart(asked, named)
    if all(name == group for name, group in of_class.items()):
        return None

    def accuracy(part: str) -> tuple[ClassAccuracy, ...]:
        grouped = [[of_class.get(name, name) for name in names] for names in zip(*answers[part], strict=True)]
        return tuple(accuracy_by_class(*grouped))

    return Groups(of_class, len(answers[VALIDATION]), accuracy("generated"), accuracy("real"))


def _copies(images: Images, features: dict[str, FeatureSet], settings: EvaluateSettings) -> dict[str, Copies]:
    """Distances of generated and of held-out real images to the training images, all at the generated images' size."""
    from medisyn.evaluation.memorisation import closest_pairs, copy_statistics, nearest_neighbours

    size = images.generated[0].read().shape[:2]
    read_train = functools.lru_cache(maxsize=4096)(lambda number: at_shape(images.train[number].read(), size))

    def closest(part: Sequence[LabelledImage], vectors: FeatureSet) -> list[ClosestPair]:
        nearest = nearest_neighbours(
            vectors.features_ND,
            features["train"].features_ND,
            settings.neighbours,
            query_strata=[image.stratum for image in part],
            training_strata=[image.stratum for image in images.train],
        )
        return closest_pairs(nearest, lambda query: at_shape(part[query].read(), size), read_train, flips=FLIPS)

    real_pairs = closest(images.real, features["real"])
    null = [pair.distance for pair in real_pairs]
    found = {}
    for name, part, pairs in (
        ("generated", images.generated, closest(images.generated, features["generated"])),
        ("held-out real", images.real, real_pairs),
    ):
        statistics = copy_statistics([pair.distance for pair in pairs], held_out=null) if pairs else None
        found[name] = Copies(tuple(pairs), statistics, len(part) - len(pairs))
    return found


def _diversity(images: Images, settings: EvaluateSettings) -> DiversityResult | None:
    """Likeness within each class, generated beside held-out real, all at the size of the first generated image.

    None when not asked for, when no class has a pair on each side, and for images below one window of 11 pixels.
    """
    from medisyn.evaluation.diversity import diversity
    from medisyn.evaluation.ssim import WINDOW, scales_for

    size = images.generated[0].read().shape[:2]
    if not settings.diversity_pairs or min(size) < WINDOW:
        return None
    readers = [
        [functools.partial(_channels_first, image, size) for image in part] for part in (images.generated, images.real)
    ]
    return diversity(
        readers[0],
        readers[1],
        ([image.name for image in images.generated], [image.name for image in images.real]),
        ([image.patient for image in images.generated], [image.patient for image in images.real]),
        data_range=255,
        scales=scales_for(min(size)),
        seed=settings.seed,
        most=settings.diversity_pairs,
        resamples=settings.resamples,
    )


def _channels_first(image: LabelledImage, size: tuple[int, int]) -> np.ndarray:
    return at_shape(image.read(), size).transpose(2, 0, 1)


def at_shape(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image at (height, width), by Pillow's bicubic where it is not there already."""
    from PIL import Image

    if image_HWC.shape[:2] == tuple(size):
        return image_HWC
    return np.asarray(Image.fromarray(image_HWC).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _warnings(
    images: Images, judge: Judge | None, fingerprint: str, copies: dict[str, Copies], settings: EvaluateSettings
) -> tuple[str, ...]:
    """What a reader must know before believing the numbers."""
    notes = []
    mix = class_mix_difference(images.generated, images.real)
    if mix > 0.1:
        notes.append(
            f"The classes of the generated images are not mixed as those of the real ones ({mix:.0%} of the images "
            f"would have to change class): part of every distance is that. Generate from the held-out captions."
        )
    if settings.split == "train":
        notes.append("Compared with training images: a model that copies them looks good here.")
    unknown = sum(not image.name for image in images.generated)
    if unknown:
        notes.append(
            f"{unknown} generated images have no known class (neither image_type and labels in metadata.jsonl nor a "
            f"caption of the corpus): they count in the distances, not in the class accuracy."
        )
    if judge is None and settings.judge != "none":
        notes.append("No class accuracy: the training split has fewer than 2 classes to tell apart.")
    if judge is not None and judge.trained_on != fingerprint:
        notes.append(
            "The judge was trained on another corpus: its accuracy on the held-out images says how it carries over."
        )
    if judge is not None:
        left_out = sum(bool(image.name) and image.name not in judge.classes for image in images.generated)
        if left_out:
            notes.append(
                f"{left_out} generated images are of classes unknown to the judge; they are left out of its table."
            )
    unmatched = copies["generated"].unmatched if copies else 0
    if unmatched:
        notes.append(
            f"{unmatched} generated images have no training image of their specialty and image type beside them."
        )
    if min(len(images.generated), len(images.real)) < 100:
        notes.append("Fewer than 100 images on a side: the distances are dominated by chance and by their bias.")
    return tuple(notes)


def class_mix_difference(a: Sequence[LabelledImage], b: Sequence[LabelledImage]) -> float:
    """Half the summed difference of class shares: 0 the same mix, 1 no class in common."""
    ours, theirs = Counter(image.name for image in a), Counter(image.name for image in b)
    return sum(abs(ours[name] / len(a) - theirs[name] / len(b)) for name in {*ours, *theirs}) / 2
