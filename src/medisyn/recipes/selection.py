"""Checkpoint selection: the Fréchet distance between generated and real images (MediSyn v2 section 4.2).

The paper compares 10,000 images, generated from the captions of 10,000 training images, with those training images.
Here the real images are held out (split "validation") unless `against = "train"` asks for the paper's way: distances
to training images also fall when a model copies them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn.errors import ConfigError, InputError
from medisyn.seeding import seed_for, share

if TYPE_CHECKING:
    from medisyn.corpus.shards import Row
    from medisyn.evaluation.features import Extractor
    from medisyn.families.base import Family

SPLITS = ("validation", "train")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """How checkpoints are compared. All checkpoints of a run are judged on the same captions, seeds and real images."""

    images: int = 10_000  # at most; 0: checkpoints are not judged. MediSyn v2 section 4.2
    against: str = "validation"  # "train" is the paper's way
    extractor: str = "medical-encoder"  # the paper's: "inception", whose weights must be given with extractor_path
    extractor_path: str = ""
    steps: int | None = None  # None: the model's default
    guidance: float | None = None
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.against not in SPLITS:
            raise ConfigError(f"judge.against must be one of {', '.join(SPLITS)}, got {self.against!r}")
        if self.images < 0 or self.images == 1 or self.batch_size < 1:
            raise ConfigError(
                f"judge.images must be 0 (no judging) or at least 2 and judge.batch_size at least 1, "
                f"got {self.images} and {self.batch_size}"
            )


class CheckpointJudge:
    """Called by the training loop, in every process, with the weights to be judged in place.

    The processes share the batches among them; a batch and its seeds are the same whatever their number, so the score
    is too, up to the rounding of their devices. The main process computes it and tells the others.
    `rows_of` says which rows of the corpus are judged against, with what captions, from those of the split.
    Raises early what would fail late.
    """

    def __init__(
        self,
        family: Family,
        corpus: Any,
        config: JudgeConfig,
        rows_of: Callable[[Sequence[Row]], Sequence[Row]] = list,
    ) -> None:
        from medisyn.evaluation.features import load_extractor

        self.family, self.config = family, config
        path = Path(config.extractor_path) if config.extractor_path else None
        self.extractor: Extractor = load_extractor(config.extractor, path)
        rows = rows_of(corpus.rows(config.against))
        if len(rows) < 2:
            raise InputError(
                f"checkpoints are judged against the split {config.against!r}, which has {len(rows)} image(s). "
                "Set judge.against=train, or judge.images=0 to keep the last checkpoint instead."
            )
        order = np.random.default_rng(seed_for(config.seed, "judge")).permutation(len(rows))
        self.rows = [rows[number] for number in sorted(order[: config.images].tolist())]
        self.corpus = corpus
        self._real_ND: np.ndarray | None = None

    def __call__(self, step: int) -> dict[str, Any]:
        """`score` is the Fréchet distance; the kernel distance, n and extractor stand beside it."""
        from accelerate import PartialState
        from accelerate.utils import broadcast_object_list

        if self._real_ND is None:
            self._real_ND = self._features(self._real)
        generated_ND = self._features(self._generated)
        record = [self._compared(step, generated_ND, self._real_ND) if PartialState().is_main_process else {}]
        return broadcast_object_list(record)[0]

    def _compared(self, step: int, generated_ND: np.ndarray, real_ND: np.ndarray) -> dict[str, Any]:
        from medisyn.evaluation.frechet import frechet_distance
        from medisyn.evaluation.kernel import kid

        frechet = frechet_distance(generated_ND, real_ND)
        kernel = kid(generated_ND, real_ND, seed=self.config.seed)
        return {
            "score": frechet,
            "step": step,
            "frechet_distance": frechet,
            "kernel_distance": kernel.value,
            "kernel_subset_size": kernel.subset_size,
            "n_generated": len(generated_ND),
            "n_real": len(real_ND),
            "against": self.config.against,
            "extractor": self.extractor.id,
            "preprocessing": self.extractor.preprocessing,
        }

    def _features(self, items_of: Callable[[Sequence[Any]], Sequence[Any]]) -> np.ndarray:
        """Features (N, D) of the items that `items_of` makes of each batch of rows, in the order of `rows`.

        Held in batches: 10,000 pictures of 512 pixels are 8 GB.
        """
        import torch
        from accelerate import PartialState
        from accelerate.utils import gather_object

        from medisyn.recipes.corpus_images import rgb

        size, place = self.config.batch_size, PartialState()
        starts = range(0, len(self.rows), size)
        mine = {}
        for start in share(starts, place.process_index, place.num_processes):
            images = [rgb(item) for item in items_of(self.rows[start : start + size])]
            with torch.autocast(place.device.type, enabled=False):  # the extractor keeps its own precision
                mine[start] = self.extractor(images)
        parts = {start: part for parts in gather_object([mine]) for start, part in parts.items()}
        return np.concatenate([parts[start] for start in starts])

    def _real(self, rows: Sequence[Any]) -> Sequence[Any]:
        return [self.corpus.read(row).item for row in rows]

    def _generated(self, rows: Sequence[Any]) -> Sequence[Any]:
        from medisyn.types import Request

        requests = [
            Request(
                key=row.key,
                prompt=row.caption,
                seed=seed_for(self.config.seed, f"judge/{row.key}"),
                steps=self.config.steps,
                guidance=self.config.guidance,
            )
            for row in rows
        ]
        return self.family.decode(self.family.sample(requests))
