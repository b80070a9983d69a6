"""Does a classifier of real images name the class that a generated image was asked for?

Shapes here: N images, H, W pixels, K classes.
The judge is a network of its own: another make (max-pooling, no strides, no residuals, another input size) and another
seed than the encoder whose features the distances use, so that one network's blind spot is not counted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medisyn.errors import InputError, ModelError
from medisyn.evaluation.bootstrap import Interval, wilson
from medisyn.evaluation.features.encoder import MedicalEncoder, load_weights, norm, read_config, save_network, to_batch


class JudgeNetwork(nn.Module):
    """RGB 0..255 at `size` pixels to class scores: four times convolution, norm, ReLU, pooling; then mean and max."""

    def __init__(self, classes: Sequence[str], widths: Sequence[int] = (24, 48, 96, 192), size: int = 96):
        super().__init__()
        self.config: dict[str, Any] = {"classes": list(classes), "widths": list(widths), "size": size}
        layers: list[nn.Module] = []
        for a, b in zip([3, *widths[:-1]], widths, strict=True):
            layers += [nn.Conv2d(a, b, 3, padding=1), norm(b), nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(2 * widths[-1], len(classes))

    def forward(self, rgb_BCHW: Tensor) -> Tensor:
        maps = self.layers((rgb_BCHW - 110.0) / 70.0)
        return self.head(torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1))


@dataclass(frozen=True)
class Judge:
    """A trained classifier; `id` names its weights, `trained_on` the fingerprint of the corpus it learnt from."""

    network: JudgeNetwork
    id: str
    trained_on: str

    @property
    def classes(self) -> list[str]:
        return list(self.network.config["classes"])

    def name(self, images: Sequence[np.ndarray]) -> list[str]:
        """The class of each (H, W, 3) uint8 image."""
        return name_classes(self.network, images)


@torch.inference_mode()
def name_classes(
    network: JudgeNetwork | MedicalEncoder, images: Sequence[np.ndarray], batch_size: int = 64
) -> list[str]:
    """The class that scores highest for each (H, W, 3) uint8 image."""
    network.eval()
    names: list[str] = []
    for start in range(0, len(images), batch_size):
        batch = to_batch(images[start : start + batch_size], network.config["size"])
        names += [network.config["classes"][k] for k in network(batch).argmax(dim=1).tolist()]
    return names


def class_name(image_type: str, labels: Sequence[str]) -> str:
    """The class of an image: its type, and its labels in alphabetical order: "chest X-ray/posteroanterior"."""
    return f"{image_type}/{'+'.join(sorted(labels))}" if labels else image_type


def save_judge(network: JudgeNetwork, folder: Path, record: Mapping[str, Any]) -> str:
    """Weights and config.json; `record` says how it was trained and must hold "trained_on"."""
    return save_network(network, folder, {**network.config, **record})


def load_judge(folder: Path) -> Judge:
    """A judge that `save_judge` wrote; ModelError when a file is missing or does not fit."""
    config = read_config(folder, "judge")
    try:
        network = JudgeNetwork(config["classes"], config["widths"], config["size"])
        trained_on = str(config["trained_on"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"judge: {folder.name}/config.json lacks or breaks a field ({error!r})") from None
    digest = load_weights(network, folder, "judge")
    return Judge(network.float().eval().requires_grad_(False), f"judge:{digest[:8]}", trained_on)


@dataclass(frozen=True)
class ClassAccuracy:
    """How often the judge names one class right; `mistaken_for` is the most frequent wrong answer, or ""."""

    name: str
    correct: int
    n: int
    accuracy: float
    interval: Interval
    mistaken_for: str


def accuracy_by_class(asked: Sequence[str], named: Sequence[str]) -> list[ClassAccuracy]:
    """One row per class in alphabetical order, then the row "all"; 95 % Wilson intervals."""
    if len(asked) != len(named) or not asked:
        raise InputError(f"accuracy needs one answer per image and at least 1 image, got {len(asked)} and {len(named)}")
    rows = []
    for name in sorted(set(asked)):
        answers = [answer for wanted, answer in zip(asked, named, strict=True) if wanted == name]
        rows.append(_row(name, answers.count(name), answers))
    correct = sum(wanted == answer for wanted, answer in zip(asked, named, strict=True))
    return [*rows, _total(correct, len(asked))]


def accuracy_by_type(asked: Sequence[str], named: Sequence[str]) -> ClassAccuracy:
    """How often at least the image type, the part of the class before "/", is named right; one row over all."""
    types = [[name.split("/")[0] for name in names] for names in (asked, named)]
    return replace(accuracy_by_class(*types)[-1], name="all, image type alone")


def groups_told_apart(asked: Sequence[str], named: Sequence[str], share: float = 0.9) -> dict[str, str]:
    """Class -> the name of its group, for the finest groups that this rule finds the judge to tell apart.

    asked, named: true and answered classes of real images that neither trained the judge nor are reported on, such as
    the validation split. Whatever is judged later has no part in the choice.

    The class that is named right least often is merged with what it is most often taken for, again and again, until
    every group is named right for at least `share` of its images. A group of one class keeps the class's name; one of
    three is called "a and 2 alike" after its first. Classes that are neither asked nor answered are absent.
    """
    if len(asked) != len(named) or not asked:
        raise InputError(f"groups need one answer per image and at least 1 image, got {len(asked)} and {len(named)}")
    if not 0 < share <= 1:
        raise InputError(f"share must lie in (0, 1], got {share}")
    members: dict[str, tuple[str, ...]] = {name: (name,) for name in {*asked, *named}}
    while True:
        answers = Counter((members[a], members[b]) for a, b in zip(asked, named, strict=True))
        right = {
            group: answers[group, group] / sum(n for (wanted, _), n in answers.items() if wanted == group)
            for group, _ in answers
        }
        worst = min(right, key=lambda group: (right[group], group))
        if right[worst] >= share:
            break
        wrong = {named_as: n for (wanted, named_as), n in answers.items() if wanted == worst and named_as != worst}
        taken_for = max(wrong, key=lambda group: (wrong[group], group))
        for name in (merged := tuple(sorted((*worst, *taken_for)))):
            members[name] = merged
    return {name: _group_name(members[name]) for name in sorted(members)}


def _group_name(members: Sequence[str]) -> str:
    return members[0] if len(members) == 1 else f"{members[0]} and {len(members) - 1} alike"


def _row(name: str, correct: int, answers: list[str]) -> ClassAccuracy:
    wrong = [answer for answer in answers if answer != name]
    mistaken = max(sorted(set(wrong)), key=wrong.count) if wrong else ""
    return ClassAccuracy(name, correct, len(answers), correct / len(answers), wilson(correct, len(answers)), mistaken)


def _total(correct: int, n: int) -> ClassAccuracy:
    return ClassAccuracy("all", correct, n, correct / n, wilson(correct, n), "")
