"""Seeds that depend on the item, not on batch, rank or world size; and each rank's share of a list."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def seed_for(run_seed: int, item_key: str) -> int:
    """A 63-bit seed for one item of one run: the same on 1 and on 8 processes."""
    digest = hashlib.blake2b(f"{run_seed}/{item_key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(run_seed: int, item_key: str) -> torch.Generator:
    """A CPU generator seeded with `seed_for`; noise is always drawn on the CPU and then moved."""
    import torch

    return torch.Generator("cpu").manual_seed(seed_for(run_seed, item_key))


def share(items: Sequence[T], rank: int, world_size: int) -> Sequence[T]:
    """This rank's items. Over all ranks they cover `items` exactly once."""
    return items[rank::world_size]
