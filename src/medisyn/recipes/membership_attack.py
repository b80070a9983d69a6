"""Membership inference on a model's denoising loss: members of a corpus's training split against held-out images.

The same timesteps and noises are drawn for every image, so the losses differ by the image alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn.errors import ConfigError, InputError
from medisyn.seeding import generator_for, seed_for
from medisyn.types import Sample

if TYPE_CHECKING:
    from medisyn.evaluation.membership import MembershipResult
    from medisyn.families.base import Family


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """`images` of each side at most; `draws` pairs of timestep and noise, the same for all images."""

    images: int = 200
    draws: int = 16
    split: str = "test"
    batch_size: int = 32
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.images < 2 or self.draws < 1 or self.batch_size < 1:
            raise ConfigError(
                f"membership attack: images must be at least 2, draws and batch size at least 1, got {self.images}, "
                f"{self.draws} and {self.batch_size}"
            )


@dataclass(frozen=True)
class Attack:
    """What the attack found, on which model, with how many images of each class on both sides."""

    result: MembershipResult
    model: str
    model_digest: str
    classes: dict[str, int]
    dtype: str
    member_loss: float  # means over images and draws
    non_member_loss: float


def attack_model(model: str, corpus: Any, settings: AttackSettings) -> Attack:
    """Open a model by any name `medisyn generate` takes and attack it with the images of `corpus` (a Corpus).

    Raises InputError when the two splits share no class, ModelError when the model cannot be opened.
    """
    from medisyn.evaluation.membership import membership
    from medisyn.recipes.generate_images import choose_device, fast_dtype
    from medisyn.recipes.models import open_model

    members, others, classes = matched_rows(corpus, settings)
    device = choose_device(settings.device)
    dtype = fast_dtype(device) if settings.dtype == "auto" else settings.dtype
    opened = open_model(model, device=device)  # float32 weights; autocast computes in `dtype`, as in training

    def losses(rows: Sequence[Any]) -> np.ndarray:
        return denoising_losses(opened.family, lambda n: corpus.read(rows[n]), len(rows), settings, device, dtype)

    ours, theirs = losses(members), losses(others)
    patients = ([row.patient or row.key for row in members], [row.patient or row.key for row in others])
    several = any(len(set(names)) < len(names) for names in patients)
    result = membership(-ours, -theirs, patients=patients if several else None, seed=settings.seed)
    return Attack(result, opened.id, opened.digest, classes, dtype, float(ours.mean()), float(theirs.mean()))


def matched_rows(corpus: Any, settings: AttackSettings) -> tuple[list[Any], list[Any], dict[str, int]]:
    """As many members as non-members of every class, drawn with the seed, and the count of each class.

    Without it the attack would tell classes apart, not members.
    """
    from medisyn.evaluation.classify import class_name

    pools: list[dict[str, list[Any]]] = []
    for split in ("train", settings.split):
        rows = corpus.rows(split)
        order = np.random.default_rng(seed_for(settings.seed, f"membership/{split}")).permutation(len(rows))
        pool: dict[str, list[Any]] = {}
        for number in order.tolist():
            pool.setdefault(class_name(rows[number].image_type, rows[number].labels), []).append(rows[number])
        pools.append(pool)
    pairs = [
        (name, ours, theirs)
        for name in sorted(pools[0].keys() & pools[1].keys())
        for ours, theirs in zip(pools[0][name], pools[1][name], strict=False)
    ]
    if len(pairs) < 2:
        raise InputError(
            f"membership attack: the splits 'train' and {settings.split!r} share {len(pairs)} images of one class; "
            f"at least 2 are needed on each side"
        )
    order = np.random.default_rng(seed_for(settings.seed, "membership/pairs")).permutation(len(pairs))
    chosen = [pairs[number] for number in sorted(order[: settings.images].tolist())]
    classes: dict[str, int] = {}
    for name, _, _ in chosen:
        classes[name] = classes.get(name, 0) + 1
    return [ours for _, ours, _ in chosen], [theirs for _, _, theirs in chosen], classes


def denoising_losses(
    family: Family,
    read: Callable[[int], Sample],
    count: int,
    settings: AttackSettings,
    device: str = "cpu",
    dtype: str = "float32",
) -> np.ndarray:
    """The family's loss of each image, averaged over the fixed draws, (count,) float64."""
    import torch
    from tqdm import tqdm

    kind = torch.device(device).type
    totals = np.zeros(count, dtype=np.float64)
    with tqdm(total=count, desc="denoising losses", unit="image", disable=None) as bar:
        for start in range(0, count, settings.batch_size):
            samples = [read(number) for number in range(start, min(start + settings.batch_size, count))]
            encoded = family.encode(samples)
            with torch.no_grad(), torch.autocast(kind, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
                for draw in range(settings.draws):
                    same = [generator_for(settings.seed, f"membership/draw-{draw}") for _ in samples]
                    totals[start : start + len(samples)] += family.loss(encoded, same).double().cpu().numpy()
            bar.update(len(samples))
    return totals / settings.draws
