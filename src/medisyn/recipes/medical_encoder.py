"""Train the small medical encoder (for distances) and the judge (for class accuracy) on a corpus's training split.

Two networks of two makes from two seeds; about 200 images per second and core each. The judge learns longer, and from
other views: cells are told apart by their size, and lie any way. `run` is what the preset `medical-encoder` calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn.errors import InputError
from medisyn.machine import fast_dtype
from medisyn.recipes.corpus_images import LabelledImage, at_size, corpus_images, of_known_class

if TYPE_CHECKING:
    from medisyn.evaluation.classify import JudgeNetwork
    from medisyn.evaluation.features.encoder import MedicalEncoder
    from medisyn.evaluation.fit import Augmentation, FitSettings

MIN_CLASS_IMAGES = 8  # a class with fewer training images cannot be learnt and would be drawn to death by balancing
SMALL_JUDGE = (24, 48, 96, 192)  # learns in a few hundred steps
SHIPPED_JUDGE = (32, 64, 128, 256)


def run(corpus: Path, out: Path, *, steps: int = 1200, judge_steps: int = 5000, seed: int = 0) -> dict[str, Any]:
    """Train both networks and write `out`/{model.safetensors,config.json} and `out`/judge/ (the same two files).

    Returns the record that config.json holds: corpus fingerprint, classes, images, settings, held-out accuracy.
    """
    from medisyn.corpus.loader import Corpus
    from medisyn.evaluation.features.encoder import MedicalEncoder, save_network
    from medisyn.evaluation.fit import Augmentation

    opened = Corpus(corpus)
    train, rare = of_known_class(corpus_images(opened, "train"), MIN_CLASS_IMAGES)
    classes = sorted({image.name for image in train})
    if len(classes) < 2:
        raise InputError(
            f"the training split has {len(classes)} class(es) of at least {MIN_CLASS_IMAGES} images; a classifier "
            f"needs 2. Classes are image type and labels: label the source, or curate a second one into the corpus."
        )
    held_out = _held_out(opened, classes)
    shared = {
        "trained_on": opened.fingerprint,
        "train_images": dict(Counter(image.name for image in train)),
        "left_out": rare,
    }
    encoder = _seeded(MedicalEncoder, classes, seed)
    encoder_record = shared | _train(encoder, train, held_out, steps, seed)
    save_network(encoder, out, {**encoder.config, **encoder_record})
    judge_record = train_judge(
        train,
        held_out,
        out / "judge",
        steps=judge_steps,
        seed=seed + 1,
        record=shared,
        widths=SHIPPED_JUDGE,
        augmentation=Augmentation(degrees=180.0, zoom=(0.95, 1.05), tint=(0.85, 1.18)),
    )
    return {"encoder": encoder_record, "judge": judge_record}


def train_judge(
    train: list[LabelledImage],
    held_out: list[LabelledImage],
    out: Path,
    *,
    steps: int,
    seed: int,
    record: dict[str, Any],
    widths: Sequence[int] = SMALL_JUDGE,
    augmentation: Augmentation | None = None,
) -> dict[str, Any]:
    """Train the judge classifier on images of known class and write it to `out`; views are `fit`'s own by default."""
    from medisyn.evaluation.classify import JudgeNetwork, save_judge

    network = _seeded(JudgeNetwork, sorted({image.name for image in train}), seed, widths=widths)
    full_record = record | _train(network, train, held_out, steps, seed, augmentation)
    save_judge(network, out, full_record)
    return full_record


def _held_out(corpus: Any, classes: list[str]) -> list[LabelledImage]:
    """Test images of the classes; validation images where the corpus has no test split; none where it has neither."""
    for split in ("test", "validation"):
        if corpus.rows(split):
            return [image for image in corpus_images(corpus, split) if image.name in classes]
    return []


def _seeded(make: Any, classes: list[str], seed: int, **sizes: Any) -> Any:
    """A network whose first weights depend on the seed alone; the global generator is left as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(classes, **sizes)


def _train(
    network: MedicalEncoder | JudgeNetwork,
    train: list[LabelledImage],
    held_out: list[LabelledImage],
    steps: int,
    seed: int,
    augmentation: Augmentation | None = None,
) -> dict[str, Any]:
    from tqdm import tqdm

    from medisyn.evaluation.fit import ENCODER_AUGMENTATION, FitSettings, fit

    settings = FitSettings(
        steps=steps,
        seed=seed,
        augmentation=augmentation or ENCODER_AUGMENTATION,
        precision=fast_dtype("cpu"),
    )
    numbers = {name: k for k, name in enumerate(network.config["classes"])}
    labels = np.array([numbers[image.name] for image in train])
    with tqdm(total=steps, desc=type(network).__name__, unit="step", disable=None) as bar:

        def show(step: int, loss: float) -> None:
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

        losses = fit(network, at_size(train, network.config["size"]), labels, settings, show)
    return _record(network, held_out, settings, losses)


def _record(
    network: MedicalEncoder | JudgeNetwork, held_out: list[LabelledImage], settings: FitSettings, losses: list[float]
) -> dict[str, Any]:
    from medisyn.evaluation.classify import accuracy_by_class, name_classes

    accuracy = []
    if held_out:
        named = name_classes(network, list(at_size(held_out, network.config["size"])))
        accuracy = [asdict(row) for row in accuracy_by_class([image.name for image in held_out], named)]
    return {
        "settings": asdict(settings),
        "loss_last_tenth": float(np.mean(losses[-max(1, len(losses) // 10) :])),
        "held_out_accuracy": accuracy,
    }
