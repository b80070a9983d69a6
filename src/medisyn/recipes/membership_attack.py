"""Membership inference on a model's denoising loss: items it was trained on against held-out ones.

The same timesteps and noises are drawn for every item, so the losses differ by the item alone. Members and held-out
ones of images come from a corpus; those of volumes and clips from two folders, see `membership_stacks`.
"""

from __future__ import annotations

import functools
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
    from medisyn.recipes.models import OpenedModel

BATCH = {"images": 32, "volumes": 4, "clips": 4}  # where the settings leave it open


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """`images` (or volumes, or clips) of each side at most; `draws` pairs of timestep and noise, the same for all.

    split: the held-out one of a corpus of images; batch_size None: 32 images, 4 volumes or clips.
    """

    images: int = 200
    draws: int = 16
    split: str = "test"
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.images < 2 or self.draws < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise ConfigError(
                f"membership attack: images must be at least 2, draws and batch size at least 1, got {self.images}, "
                f"{self.draws} and {self.batch_size}"
            )


@dataclass(frozen=True)
class Candidate:
    """One item of either side, read when its turn comes; `name` is its class, within which sides are matched."""

    name: str
    patient: str
    read: Callable[[], Sample]


@dataclass(frozen=True)
class Sides:
    """As many members as non-members of every class. `reading` says how they are read, in words for a paper."""

    kind: str  # "images", "volumes", "clips"
    members: Sequence[Candidate]
    others: Sequence[Candidate]
    classes: dict[str, int]
    reading: str = ""


@dataclass(frozen=True)
class Attack:
    """What the attack found, on which model, with how many items of each class on both sides."""

    result: MembershipResult
    model: str
    model_digest: str
    classes: dict[str, int]
    dtype: str
    member_loss: float  # means over items and draws
    non_member_loss: float
    reading: str = ""


def open_attacked(model: str, kind: str, settings: AttackSettings) -> OpenedModel:
    """Open a model by any name `medisyn generate` takes. Raises ConfigError when it does not make what `kind` says."""
    from medisyn.machine import choose_device
    from medisyn.recipes.models import open_model

    opened = open_model(model, device=choose_device(settings.device))  # float32; autocast computes in another type
    made = "volumes" if opened.volumes is not None else "clips" if opened.clips is not None else "images"
    if made != kind:
        called = {"volumes": "CT volumes"}
        raise ConfigError(
            f"the membership attack on {called.get(kind, kind)} needs the model that made them; {opened.id} makes "
            f"{called.get(made, made)}. Name that model, or leave it out"
        )
    return opened


def attack_model(opened: OpenedModel, sides: Sides, settings: AttackSettings) -> Attack:
    """Score every item by minus its denoising loss: how well does that tell members from held-out ones?"""
    from medisyn.evaluation.membership import membership
    from medisyn.machine import choose_device, fast_dtype

    device = choose_device(settings.device)
    dtype = fast_dtype(device) if settings.dtype == "auto" else settings.dtype

    def losses(side: Sequence[Candidate]) -> np.ndarray:
        return denoising_losses(
            opened.family, lambda n: side[n].read(), len(side), settings, device, dtype, kind=sides.kind
        )

    ours, theirs = losses(sides.members), losses(sides.others)
    patients = ([one.patient for one in sides.members], [one.patient for one in sides.others])
    several = any(len(set(names)) < len(names) for names in patients)
    result = membership(-ours, -theirs, patients=patients if several else None, seed=settings.seed)
    return Attack(
        result=result,
        model=opened.id,
        model_digest=opened.digest,
        classes=sides.classes,
        dtype=dtype,
        member_loss=float(ours.mean()),
        non_member_loss=float(theirs.mean()),
        reading=sides.reading,
    )


def image_sides(corpus: Any, settings: AttackSettings) -> Sides:
    """The training split of a corpus (a Corpus) against `settings.split`; InputError when they share no class."""
    from medisyn.evaluation.classify import class_name

    def candidate(row: Any) -> Candidate:
        name = class_name(row.image_type, row.labels)
        return Candidate(name, row.patient or row.key, functools.partial(corpus.read, row))

    train, held_out = ([candidate(row) for row in corpus.rows(split)] for split in ("train", settings.split))
    members, others, classes = matched(
        ("train", train),
        (settings.split, held_out),
        settings,
        f"the splits 'train' and {settings.split!r}",
        "images",
    )
    return Sides("images", members, others, classes)


def matched(
    members: tuple[str, Sequence[Candidate]],
    others: tuple[str, Sequence[Candidate]],
    settings: AttackSettings,
    where: str,
    kind: str,
) -> tuple[list[Candidate], list[Candidate], dict[str, int]]:
    """As many members as non-members of every class, drawn with the seed, and the count of each class.

    Without it the attack would tell classes apart, not members. Each side comes with the name that its draw is seeded
    by. Raises InputError below 2 of each; `where` says in the message what the sides are.
    """
    by_class: list[dict[str, list[Candidate]]] = []
    for pool, candidates in (members, others):
        order = np.random.default_rng(seed_for(settings.seed, f"membership/{pool}")).permutation(len(candidates))
        found: dict[str, list[Candidate]] = {}
        for number in order.tolist():
            found.setdefault(candidates[number].name, []).append(candidates[number])
        by_class.append(found)
    pairs = [
        (name, ours, theirs)
        for name in sorted(by_class[0].keys() & by_class[1].keys())
        for ours, theirs in zip(by_class[0][name], by_class[1][name], strict=False)
    ]
    if len(pairs) < 2:
        raise InputError(
            f"membership attack: {where} share {len(pairs)} {kind} of one class; at least 2 are needed on each side"
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
    *,
    kind: str = "images",
) -> np.ndarray:
    """The family's loss of each item, averaged over the fixed draws, (count,) float64."""
    import torch
    from tqdm import tqdm

    batch = settings.batch_size or BATCH[kind]
    totals = np.zeros(count, dtype=np.float64)
    with tqdm(total=count, desc="denoising losses", unit=kind[:-1], disable=None) as bar:
        for start in range(0, count, batch):
            samples = [read(number) for number in range(start, min(start + batch, count))]
            encoded = family.encode(samples)
            with (
                torch.no_grad(),
                torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"),
            ):
                for draw in range(settings.draws):
                    same = [generator_for(settings.seed, f"membership/draw-{draw}") for _ in samples]
                    totals[start : start + len(samples)] += family.loss(encoded, same).double().cpu().numpy()
            bar.update(len(samples))
    return totals / settings.draws
