"""Rows of a step, on their way from the store to the model.

Shapes here: B effective batch, R this rank's rows, M rows of one forward pass, K kinds of example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from medisyn.errors import ConfigError, InputError
from medisyn.seeding import seed_for
from medisyn.training.order import Order, Split, draw_keys


class Examples(Protocol):
    """A map-style store of encoded rows. Row r belongs to `keys[r // variants]`; a store without `variants` has one."""

    @property
    def keys(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Mapping[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Kind:
    """One kind of example of a joint run: its rows, its effective batch, and what its mean loss counts.

    Its keys are not those of another kind: they name the example in messages and seed its randomness.
    """

    name: str
    examples: Examples
    batch_size: int
    micro_batch_size: int
    weight: float


class Joint:
    """Examples of several kinds, trained on together; `Split` says by which process.

    The first kind is the main one: its batch is the run's `batch_size`, epochs count its samples, and memory is
    estimated on its rows. Every kind's loss must reach every trained weight, if need be with a gradient of 0:
    processes wait for each other's gradients.
    """

    def __init__(self, kinds: Sequence[Kind]) -> None:
        twice = set(kinds[0].examples.keys).intersection(*(kind.examples.keys for kind in kinds[1:]))
        if len(kinds) > 1 and twice:
            raise ConfigError(f"kinds of example need keys of their own; {len(twice)} stand in more than one")
        self.kinds, self.main = tuple(kinds), kinds[0].examples
        self.keys, self.variants = self.main.keys, variants_of(self.main)

    def __len__(self) -> int:
        return len(self.main)

    def __getitem__(self, row: int) -> Mapping[str, torch.Tensor]:
        return self.main[row]


def kinds_of(examples: Examples, batch_size: int, micro_batch_size: int) -> tuple[Kind, ...]:
    """The kinds of a joint run; ordinary examples are one kind of weight 1.

    Raises ConfigError when the main kind's batch is not the run's.
    """
    if not isinstance(examples, Joint):
        return (Kind("", examples, batch_size, micro_batch_size, 1.0),)
    main = examples.kinds[0]
    if (main.batch_size, main.micro_batch_size) != (batch_size, micro_batch_size):
        raise ConfigError(
            f"the main kind of example has batch {main.batch_size} in passes of {main.micro_batch_size}, the run "
            f"{batch_size} in passes of {micro_batch_size}; they are one and the same"
        )
    return examples.kinds


def orders_of(kinds: Sequence[Kind], main: Order) -> tuple[Order, ...]:
    """The order of each kind: `main` of the first, each other's by its own seed, so that they do not go in step."""
    others = [
        Order(
            len(kind.examples.keys),
            kind.batch_size,
            seed_for(main.seed, f"kind/{kind.name}"),
            variants_of(kind.examples),
        )
        for kind in kinds[1:]
    ]
    return (main, *others)


@dataclass(frozen=True)
class StepRows:
    """What one rank trains on in one step."""

    step: int
    keys_B: list[str]
    draw_keys_R: list[str]
    passes: list[dict[str, torch.Tensor]]  # each holds at most M rows
    kinds: list[int]  # of each pass: the number of its kind of example


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


def read_step(kinds: Sequence[Kind], orders: Sequence[Order], split: Split, step: int, rank: int) -> StepRows:
    keys_B: list[str] = []
    draw_keys_R: list[str] = []
    passes: list[dict[str, torch.Tensor]] = []
    numbers: list[int] = []
    for number, (kind, order, slots) in enumerate(zip(kinds, orders, split.slots(rank), strict=True)):
        rows = order.batch(step)
        keys = [kind.examples.keys[row // order.variants] for row in rows]
        drawn, mine = draw_keys(step, keys), [rows[slot] for slot in slots]
        for start in range(0, len(mine), kind.micro_batch_size):
            passes.append(collate([kind.examples[row] for row in mine[start : start + kind.micro_batch_size]]))
            numbers.append(number)
        keys_B += keys
        draw_keys_R += [drawn[slot] for slot in slots]
    return StepRows(step, keys_B, draw_keys_R, passes, numbers)


def stream(kinds: Sequence[Kind], orders: Sequence[Order], split: Split, steps: range, rank: int) -> Iterator[StepRows]:
    """The rows of each step in turn.

    Read when they are needed, without a thread: mapped rows cost 0.1 ms a step, handing work to a thread 5 ms, since
    the interpreter's lock has to change hands.
    """
    for step in steps:
        yield read_step(kinds, orders, split, step, rank)
