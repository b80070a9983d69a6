"""Who is in which split, by arithmetic: keyed hash per patient, duplicates together, a balanced test set on request.

A unit is what may never be divided: a patient, else a lesion, file or region (the data card says which).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from medisyn.errors import ConfigError, CorpusError

SPLITS = ("train", "validation", "test")
UNIT_PREFIXES = {"patient": "p", "group": "g", "file": "f", "region": "r", "none": "n"}


@dataclass(frozen=True)
class Shares:
    """Parts of train, validation and test; they need not add up to one (80:10:10)."""

    train: float = 80.0
    validation: float = 10.0
    test: float = 10.0

    def __post_init__(self) -> None:
        values = (self.train, self.validation, self.test)
        if not all(0 <= value < math.inf for value in values) or self.train == 0:
            raise ConfigError(f"shares {values} must be 0 or more, with train above 0, for instance 80:10:10")

    @classmethod
    def parse(cls, text: str) -> Shares:
        """`80:10:10` as shares."""
        try:
            train, validation, test = (float(part) for part in text.split(":"))
        except ValueError:
            raise ConfigError(f"shares {text!r}: write three numbers train:validation:test, like 80:10:10") from None
        return cls(train, validation, test)


@dataclass(frozen=True)
class Member:
    """One sample as splitting sees it. `given` is the split its source fixes; `content` groups equal pictures."""

    unit: str
    specialty: str
    content: str
    given: str | None = None


def pseudonym(key: bytes, *parts: str, prefix: str = "") -> str:
    """A name that is the same for the same parts and key, and cannot be turned back without the key (64 bits)."""
    digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8, key=key, person=b"pseudonym").hexdigest()
    return f"{prefix}-{digest}" if prefix else digest


def position(unit: str) -> float:
    """Where a unit stands in [0, 1): the same in every corpus, whoever else is in it."""
    digest = hashlib.blake2b(unit.encode(), digest_size=8, person=b"split").digest()
    return int.from_bytes(digest, "big") / 2**64


def split_at(place: float, shares: Shares) -> str:
    """The split of a place in [0, 1). Train comes first, so raising its share moves nobody out of it."""
    total = shares.train + shares.validation + shares.test
    if place * total < shares.train:
        return "train"
    return "validation" if place * total < shares.train + shares.validation else "test"


def region_splits(regions: Sequence[int], group: str, shares: Shares) -> dict[int, str]:
    """Splits of the regions of one file or slide, in quotas: with three or more each wanted split gets at least one.

    A single CT has too few slabs for a hash per slab to fill every split.
    """
    order = sorted(set(regions), key=lambda region: position(f"{group}/{region}"))
    total = shares.train + shares.validation + shares.test
    held_out = []
    for name, share in (("validation", shares.validation), ("test", shares.test)):
        count = round(len(order) * share / total)
        held_out += [name] * (max(count, 1) if share > 0 and len(order) >= 3 else count)
    train = len(order) - min(len(held_out), max(len(order) - 1, 0))
    return dict(zip(order, [*["train"] * train, *held_out], strict=False))


class Clusters:
    """Union-find over names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        root = name
        while (above := self._parent.setdefault(root, root)) != root:
            root = above
        while self._parent[name] != root:
            self._parent[name], name = root, self._parent[name]
        return root

    def join(self, a: str, b: str) -> None:
        """The smaller name becomes the root, so the result does not depend on the order."""
        first, second = sorted((self.find(a), self.find(b)))
        self._parent[second] = first


def cluster_units(members: Iterable[Member]) -> Clusters:
    """Units that share a picture (equal `content`) stay together."""
    clusters = Clusters()
    first_with: dict[str, str] = {}
    for member in members:
        clusters.join(member.unit, first_with.setdefault(member.content, member.unit))
    return clusters


def assign(members: Sequence[Member], shares: Shares, test_per_specialty: int | None = None) -> dict[str, str]:
    """Unit -> split. Adding patients moves nobody, except that a newcomer who duplicates somebody joins them.

    Units that share a picture get one split. Where their own splits differ train wins, then validation: nobody ever
    moves from train to test, so a model trained on an older version has not seen the newer test set.
    `test_per_specialty` reserves at least that many samples of each specialty for test, by whole units in the order of
    their hash (MediSyn v1 section 3.1: 125 pairs per specialty); the others share train and validation.
    """
    clusters = cluster_units(members)
    wanted: dict[str, set[str]] = {}
    for member in members:
        own = member.given or split_at(position(member.unit), shares)
        wanted.setdefault(clusters.find(member.unit), set()).add(own)
    chosen = {root: min(names, key=SPLITS.index) for root, names in wanted.items()}
    if test_per_specialty is not None:
        chosen = _reserve_test(members, clusters, shares, test_per_specialty)
    return {member.unit: chosen[clusters.find(member.unit)] for member in members}


def _reserve_test(members: Sequence[Member], clusters: Clusters, shares: Shares, least: int) -> dict[str, str]:
    if least < 1:
        raise ConfigError(f"test_per_specialty must be at least 1, got {least}")
    sizes: dict[str, Counter[str]] = {}
    for member in members:
        sizes.setdefault(clusters.find(member.unit), Counter())[member.specialty] += 1
    rest = Shares(shares.train, shares.validation, 0)
    chosen = {root: split_at(position(root), rest) for root in sizes}
    for specialty in sorted({member.specialty for member in members}):
        reserved = 0
        for root in sorted(sizes, key=position):
            if reserved >= least:
                break
            if chosen[root] == "test" or sizes[root][specialty]:
                chosen[root] = "test"
                reserved += sizes[root][specialty]
        left = sum(counts[specialty] for root, counts in sizes.items() if chosen[root] != "test")
        if reserved < least or left == 0:
            raise CorpusError(
                f"test_per_specialty={least}: specialty {specialty!r} has {reserved + left} samples, and {left} would "
                f"be left to train on. Lower the number, or leave this specialty out."
            )
    return chosen


def leaks(units: Mapping[str, Iterable[str]]) -> list[str]:
    """Units that stand in more than one split; `units` maps each to the splits it was seen in."""
    return sorted(unit for unit, names in units.items() if len(set(names)) > 1)
