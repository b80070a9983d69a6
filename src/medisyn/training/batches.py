"""Rows of a step, on their way from the store to the model.

Shapes here: B effective batch, R this rank's rows, M rows of one forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from medisyn.errors import InputError
from medisyn.seeding import share
from medisyn.training.order import Order, draw_keys


class Examples(Protocol):
    """A map-style store of encoded rows. Row r belongs to `keys[r // variants]`; a store without `variants` has one."""

    @property
    def keys(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Mapping[str, torch.Tensor]: ...


@dataclass(frozen=True)
class StepRows:
    """What one rank trains on in one step."""

    step: int
    keys_B: list[str]
    draw_keys_R: list[str]
    passes: list[dict[str, torch.Tensor]]  # each holds at most M rows


def variants_of(examples: Examples) -> int:
    variants = getattr(examples, "variants", 1)
    if len(examples) != len(examples.keys) * variants:
        raise InputError(
            f"examples: {len(examples)} rows do not fit {len(examples.keys)} keys with {variants} variants each"
        )
    return variants


def collate(rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows of equal shapes as one batch."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def read_step(
    examples: Examples, order: Order, step: int, rank: int, world_size: int, micro_batch_size: int
) -> StepRows:
    rows_B = order.batch(step)
    keys_B = [examples.keys[row // order.variants] for row in rows_B]
    rows_R = share(rows_B, rank, world_size)
    starts = range(0, len(rows_R), micro_batch_size)
    passes = [collate([examples[row] for row in rows_R[start : start + micro_batch_size]]) for start in starts]
    return StepRows(step, keys_B, list(share(draw_keys(step, keys_B), rank, world_size)), passes)


def stream(
    examples: Examples, order: Order, steps: range, rank: int, world_size: int, micro_batch_size: int
) -> Iterator[StepRows]:
    """The rows of each step in turn.

    Read when they are needed, without a thread: mapped rows cost 0.1 ms a step, handing work to a thread 5 ms, since
    the interpreter's lock has to change hands.
    """
    for step in steps:
        yield read_step(examples, order, step, rank, world_size, micro_batch_size)
