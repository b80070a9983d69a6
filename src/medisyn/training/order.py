"""Which example is trained on when: a pure function of (seed, step), so the order's whole state is two integers.

The effective batch of a step is the same whatever the number of processes; each rank takes its share of it.
Shapes here: N samples, V stored variants of each, B effective batch. Row r of a store: variant r % V of sample r // V.
A joint run has K kinds of example; its effective batch is that of each kind, one after the other.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from medisyn.errors import ConfigError, InputError
from medisyn.seeding import seed_for


@dataclass(frozen=True)
class Order:
    """Without weights: every sample once per epoch, in an order shuffled by (seed, epoch); a batch may span two epochs.

    With `weights_N`: each slot is drawn with replacement, with probability proportional to the weight.
    Variants: an epoch takes one variant of each sample, and V epochs take each of them once; with weights it is drawn.
    """

    num_samples: int
    batch_size: int
    seed: int
    variants: int = 1
    weights_N: np.ndarray | None = None
    _cumulative_N: np.ndarray | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise InputError("there is nothing to train on: 0 examples. Check the corpus and its split.")
        if self.weights_N is None:
            return
        weights = np.asarray(self.weights_N, dtype=np.float64)
        if weights.shape != (self.num_samples,) or not np.isfinite(weights).all() or (weights < 0).any():
            raise InputError(
                f"sampling weights: one finite number of 0 or more for each of the {self.num_samples} samples, "
                f"got shape {weights.shape}"
            )
        if weights.sum() <= 0:
            raise InputError("sampling weights: all are 0, so nothing could be drawn")
        object.__setattr__(self, "_cumulative_N", np.cumsum(weights) / weights.sum())

    def batch(self, step: int) -> list[int]:
        """The B rows of the effective batch of `step` (0-based)."""
        if self._cumulative_N is not None:
            return self._drawn(step, self._cumulative_N)
        return [self._row(step * self.batch_size + slot) for slot in range(self.batch_size)]

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, self.num_samples)
        sample = int(_permutation(self.num_samples, self.seed, epoch)[place])
        return sample * self.variants + (epoch + sample) % self.variants

    def _drawn(self, step: int, cumulative_N: np.ndarray) -> list[int]:
        rng = np.random.default_rng(seed_for(self.seed, f"draw/{step}"))
        samples_B = np.searchsorted(cumulative_N, rng.random(self.batch_size), side="right")
        variants_B = rng.integers(self.variants, size=self.batch_size)
        return [int(row) for row in samples_B.clip(max=self.num_samples - 1) * self.variants + variants_B]

    def ends_epoch(self, done: int) -> bool:
        """Whether the last of `done` steps finished a pass over the samples."""
        return done * self.batch_size // self.num_samples > (done - 1) * self.batch_size // self.num_samples

    def epoch(self, step: int) -> float:
        """Passes over the samples that are done after `step` steps."""
        return step * self.batch_size / self.num_samples


@functools.lru_cache(maxsize=2)  # a batch touches at most two epochs, unless the corpus is smaller than the batch
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    draws = np.random.default_rng(seed_for(seed, f"order/{epoch}")).random(num_samples)
    return np.argsort(draws, kind="stable")


@dataclass(frozen=True)
class Split:
    """Which rank works on which slots of the effective batch, and what each slot's loss counts.

    sizes_K     slots of each kind of example
    weights_K   what the mean loss over a kind's slots counts in the loss of the step

    One rank works on all kinds in turn. Several ranks are divided among the kinds, in proportion to the weights and at
    least one each; a kind's ranks share its slots. Both give the same gradient, up to rounding.
    """

    sizes_K: tuple[int, ...]
    weights_K: tuple[float, ...]
    world_size: int

    def __post_init__(self) -> None:
        if min(self.weights_K) <= 0:
            raise ConfigError(f"the weight of each kind of example must be above 0, got {self.weights_K}")
        if 1 < self.world_size < len(self.sizes_K):
            raise ConfigError(
                f"{len(self.sizes_K)} kinds of example need one process, or at least one each; got {self.world_size}"
            )
        for size, ranks in zip(self.sizes_K, self._ranks_K(), strict=True):
            if size < len(ranks):
                raise ConfigError(
                    f"batch_size {size} is smaller than the number of processes ({len(ranks)}): some would have "
                    "nothing to do"
                )

    def slots(self, rank: int) -> list[range]:
        """This rank's slots within each kind's part of the batch."""
        return [
            range(ranks.index(rank), size, len(ranks)) if rank in ranks else range(0)
            for size, ranks in zip(self.sizes_K, self._ranks_K(), strict=True)
        ]

    def places(self, rank: int) -> list[int]:
        """The same as places in the effective batch, in the order in which this rank works on them."""
        starts_K = np.cumsum((0, *self.sizes_K[:-1]))
        return [int(start) + slot for start, slots in zip(starts_K, self.slots(rank), strict=True) for slot in slots]

    def loss_weight(self, kind: int) -> float:
        """What one slot's loss is multiplied by, so that the ranks' average of sums is the weighted sum of means."""
        return self.weights_K[kind] * (self.world_size / self.sizes_K[kind])

    def _ranks_K(self) -> list[list[int]]:
        ranks = list(range(self.world_size))
        if self.world_size == 1:
            return [ranks for _ in self.sizes_K]
        counts, owed = [1] * len(self.sizes_K), np.array(self.weights_K) / sum(self.weights_K) * self.world_size
        for _ in range(self.world_size - len(counts)):
            counts[int(np.argmax(owed - counts))] += 1  # whoever lacks most; of equals the first
        ends = np.cumsum(counts)
        return [ranks[end - count : end] for count, end in zip(counts, ends, strict=True)]


def balanced_weights(classes: Sequence[str]) -> np.ndarray:
    """Weights that make every class equally likely and the samples within a class too. Sums to 1."""
    counts = Counter(classes)
    return np.array([1.0 / (len(counts) * counts[name]) for name in classes])


def draw_keys(step: int, keys: Sequence[str]) -> list[str]:
    """What seeds each slot's randomness: `step/key`, and `step/key/n` where a key comes again in the batch."""
    seen: Counter[str] = Counter()
    named = []
    for key in keys:
        named.append(f"{step}/{key}/{seen[key]}" if seen[key] else f"{step}/{key}")
        seen[key] += 1
    return named
