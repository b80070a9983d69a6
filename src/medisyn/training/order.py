"""Which example is trained on when: a pure function of (seed, step), so the order's whole state is two integers.

The effective batch of a step is the same whatever the number of processes; each rank takes its share of it.
Shapes here: N samples, V stored variants of each, B effective batch. Row r of a store: variant r % V of sample r // V.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from medisyn.errors import InputError
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
