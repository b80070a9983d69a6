"""The designs of `medisyn utility`: which arms, trained how, and how their sizes shrink to what a user has.

A design is a `UtilitySettings`; a tiny run is the same design with `--set network=10 --set width=8 --set size=32 ...`.
"""

from __future__ import annotations

from dataclasses import dataclass

from medisyn.errors import ConfigError, InputError, closest
from medisyn.evaluation.fit import Augmentation
from medisyn.evaluation.utility import Arm


def _allowed(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be {' or '.join(allowed)}, got {value!r}.{closest(value, allowed)}")


@dataclass(frozen=True, kw_only=True)
class UtilitySettings:
    """Everything the numbers depend on besides the images; all of it stands in result.json.

    real, synthetic: images of the largest arm; `table` names arms as real+synthetic ("200+2000") for "budget" alone.
    task: "multi-class" (image type and labels together are one class) or "multi-label" (each label is one).
    negatives: whether images with none of the labels take part, as negatives of every label (multi-label alone).
    image_type, classes: only images of this type, only these classes; empty is all that have enough images.
    steps: batches per training; 0 is `epochs` passes over the arm's images, so a larger arm is trained for longer.
    """

    design: str
    real: int = 2000
    synthetic: int = 1000
    table: tuple[str, ...] = ()
    class_mix: str = "natural"  # of the training images: as in the real ones, or "equal"
    task: str = "multi-class"
    negatives: bool = False  # MediSyn v2's radiographs all had one of the four diseases
    image_type: str = ""
    classes: tuple[str, ...] = ()
    min_train: int = 8  # a class with fewer training images cannot be learnt
    min_test: int = 5  # and with fewer test images, or test images of one patient alone, it cannot be measured
    network: int = 50  # the ResNet's depth: 10, 18 or 50
    width: int = 64
    size: int = 224
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    batch_size: int = 32
    epochs: float = 15.0
    steps: int = 0
    evaluations: int = 15
    augment: str = "none"  # or "budget"
    precision: str = "auto"  # bfloat16 where the machine computes in it, float32 elsewhere
    device: str = "auto"
    seeds: int = 1
    folds: int = 0  # cross-validation by patient; 0: the corpus's own splits
    resamples: int = 2000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        _allowed("task", self.task, ("multi-class", "multi-label"))
        _allowed("precision", self.precision, ("auto", "bfloat16", "float32"))
        _allowed("class_mix", self.class_mix, ("natural", "equal"))
        _allowed("augment", self.augment, tuple(AUGMENTATIONS))
        for name in ("min_train", "min_test", "seeds", "resamples", "evaluations", "size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.steps < 0 or self.epochs <= 0 or self.batch_size < 2 or self.folds == 1 or self.folds < 0:
            raise ConfigError(
                f"steps must be 0 or more, epochs above 0, batch_size at least 2 and folds 0 or at least 2; got "
                f"{self.steps}, {self.epochs:g}, {self.batch_size} and {self.folds}"
            )

    def num_steps(self, num_images: int) -> int:
        """Batches for an arm of so many images."""
        return self.steps or max(1, round(self.epochs * num_images / self.batch_for(num_images)))

    def batch_for(self, num_images: int) -> int:
        """Images per batch: never more than the arm has."""
        return max(2, min(self.batch_size, num_images))


AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    # The kinds are those of the paper (section 3.2) and the 0.8 is its published configuration's; the paper gives no
    # ranges, so they are ours: mild ones that keep a lesion in the frame.
    "budget": Augmentation(
        degrees=15, zoom=(0.9, 1.1), shift=0.05, mirror_y=0.0, tint=(1.0, 1.0), brightness=12, channel_dropout=0.8
    ),
}

DESIGNS = {
    # MediSyn v2, section 4.3.3 and 4.4. It names no augmentation, batch size or image size: none, 32, and 224 as
    # ImageNet's ResNets were trained.
    "medisyn-v2": UtilitySettings(design="medisyn-v2"),
    # Medical diffusion on a budget, section 3.2 and Table 4; 196 pixels from its published configuration. It does not
    # say how often validation was measured: 100 times.
    "budget": UtilitySettings(
        design="budget", real=200, synthetic=2000, table=("200+0", "0+200", "0+2000", "200+200", "200+2000"),
        class_mix="equal", network=18, size=196, optimizer="adam", steps=6250, evaluations=100, augment="budget",
        seeds=10,
    ),
    # MedSyn, section IV-E: 5 folds, 200 generated volumes. It names neither network nor training: ResNet-18 in 3D,
    # 15 epochs, no augmentation, 96 voxels.
    "medsyn": UtilitySettings(
        design="medsyn", real=0, synthetic=200, network=18, size=96, batch_size=4, folds=5, task="multi-label",
        negatives=True,
    ),
    # Ours: pre-training on synthetic images alone, then fine-tuning on real ones, beside the plain mixture.
    "pretrain": UtilitySettings(design="pretrain", real=1000, synthetic=1000, network=18, seeds=3),
    # Ours: train on synthetic, test on real, beside train on as many real, test on real.
    "tstr": UtilitySettings(design="tstr", real=1000, synthetic=1000, network=18, seeds=3),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The arms of one run, the arm that the others are compared with, and how sizes were scaled, in words."""

    arms: tuple[Arm, ...]
    reference: str
    scaling: str


def design(name: str) -> UtilitySettings:
    """The settings of a design; ConfigError for an unknown name, with the nearest."""
    if name not in DESIGNS:
        raise ConfigError(f"design {name!r} is unknown, allowed: {', '.join(DESIGNS)}.{closest(name, DESIGNS)}")
    return DESIGNS[name]


def plan_arms(settings: UtilitySettings, num_real: int, num_synthetic: int) -> Plan:
    """The arms for so many usable real training and synthetic images. InputError when an arm would be empty."""
    if not num_synthetic or num_real < 2:
        raise InputError(
            f"there are {num_real} real training images and {num_synthetic} synthetic images of the classes: an arm "
            f"would be empty. Generate images for the prompts of the corpus's classes, or choose others with --set "
            f"classes=..."
        )
    return _PLANS[settings.design](settings, num_real, num_synthetic)


def _plan_v2(settings: UtilitySettings, num_real: int, num_synthetic: int) -> Plan:
    """All real, half of them, and that half with as many synthetic images as the other half had."""
    half = min(settings.real // 2, settings.synthetic, num_real // 2, num_synthetic)
    arms = (
        Arm(f"{2 * half} real", 2 * half),
        Arm(f"{half} real", half),
        Arm(f"{half} real + {half} synthetic", half, half),
    )
    asked = (
        f"{settings.real} real, {settings.real // 2} real, {settings.real // 2} real + {settings.synthetic} synthetic"
    )
    return Plan(
        arms, arms[0].name, _scaling(asked, arms, num_real, num_synthetic, "one half for both, as in the paper")
    )


def _plan_budget(settings: UtilitySettings, num_real: int, num_synthetic: int) -> Plan:
    """Every row of the table, all real counts shrunk by one factor and all synthetic counts by another."""
    rows = [_row(text) for text in settings.table]
    if not rows:
        raise ConfigError("the budget design needs a table such as --set table=200+0,0+200,200+2000")
    most_real, most_synthetic = (max(row[column] for row in rows) for column in (0, 1))
    shrink = [
        min(1.0, there / max(1, most)) for there, most in ((num_real, most_real), (num_synthetic, most_synthetic))
    ]
    scaled = dict.fromkeys((int(real * shrink[0]), int(synthetic * shrink[1])) for real, synthetic in rows)
    arms = tuple(Arm(_name(*counts), *counts) for counts in scaled)
    only_real = [arm for arm in arms if not arm.synthetic]
    reference = max(only_real or list(arms), key=lambda arm: arm.real).name
    rule = f"real counts x {shrink[0]:.3g}, synthetic counts x {shrink[1]:.3g}"
    return Plan(arms, reference, _scaling(", ".join(settings.table), arms, num_real, num_synthetic, rule))


def _plan_medsyn(settings: UtilitySettings, num_real: int, num_synthetic: int) -> Plan:
    """All real training folds, and these with the synthetic images."""
    real = min(settings.real, num_real) if settings.real else num_real
    synthetic = min(settings.synthetic, num_synthetic)
    arms = (Arm("real", real), Arm(f"real + {synthetic} synthetic", real, synthetic))
    asked = f"{settings.real or 'all'} real, the same + {settings.synthetic} synthetic"
    return Plan(arms, arms[0].name, _scaling(asked, arms, num_real, num_synthetic, "real counts are before folding"))


def _plan_pretrain(settings: UtilitySettings, num_real: int, num_synthetic: int) -> Plan:
    real, synthetic = min(settings.real, num_real), min(settings.synthetic, num_synthetic)
    arms = (
        Arm(f"{real} real", real),
        Arm(f"{real} real + {synthetic} synthetic", real, synthetic),
        Arm(f"{synthetic} synthetic, then {real} real", real, pretrain=synthetic),
    )
    asked = f"{settings.real} real, {settings.synthetic} synthetic"
    return Plan(arms, arms[0].name, _scaling(asked, arms, num_real, num_synthetic, "each on its own"))


def _plan_tstr(settings: UtilitySettings, num_real: int, num_synthetic: int) -> Plan:
    count = min(settings.real, settings.synthetic, num_real, num_synthetic)
    arms = (Arm(f"{count} real", count), Arm(f"{count} synthetic", 0, count))
    asked = f"{settings.real} real, {settings.synthetic} synthetic"
    return Plan(arms, arms[0].name, _scaling(asked, arms, num_real, num_synthetic, "the smaller for both"))


_PLANS = {
    "medisyn-v2": _plan_v2,
    "budget": _plan_budget,
    "medsyn": _plan_medsyn,
    "pretrain": _plan_pretrain,
    "tstr": _plan_tstr,
}


def _name(real: int, synthetic: int) -> str:
    parts = [f"{real} real"] * (real > 0) + [f"{synthetic} synthetic"] * (synthetic > 0)
    return " + ".join(parts)


def _row(text: str) -> tuple[int, int]:
    real, plus, synthetic = text.partition("+")
    if not plus or not real.strip().isdecimal() or not synthetic.strip().isdecimal():
        raise ConfigError(f"table row {text!r}: write real+synthetic, for example 200+2000")
    return int(real), int(synthetic)


def _scaling(asked: str, arms: tuple[Arm, ...], num_real: int, num_synthetic: int, rule: str) -> str:
    return (
        f"asked: {asked}; usable: {num_real} real and {num_synthetic} synthetic images; run ({rule}): "
        f"{'; '.join(arm.name for arm in arms)}"
    )
