"""Checkpoint selection: the Fréchet distance between generated and real images (MediSyn v2 section 4.2).

The paper compares 10,000 images, generated from the captions of 10,000 training images, with those training images.
Here the real images are held out (split "validation") unless `against = "train"` asks for the paper's way: distances
to training images also fall when a model copies them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn.errors import ConfigError, InputError
from medisyn.seeding import seed_for

if TYPE_CHECKING:
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
    """Called by the training loop with the weights to be judged in place. Raises early what would fail late."""

    def __init__(self, family: Family, corpus: Any, config: JudgeConfig) -> None:
        from medisyn.evaluation.features import load_extractor

        self.family, self.config = family, config
        path = Path(config.extractor_path) if config.extractor_path else None
        self.extractor: Extractor = load_extractor(config.extractor, path)
        rows = corpus.rows(config.against)
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
        from medisyn.evaluation.frechet import frechet_distance
        from medisyn.evaluation.kernel import kid

        if self._real_ND is None:
            self._real_ND = self._real()
        generated_ND = self._generated()
        frechet = frechet_distance(generated_ND, self._real_ND)
        kernel = kid(generated_ND, self._real_ND, seed=self.config.seed)
        return {
            "score": frechet,
            "step": step,
            "frechet_distance": frechet,
            "kernel_distance": kernel.value,
            "kernel_subset_size": kernel.subset_size,
            "n_generated": len(generated_ND),
            "n_real": len(self._real_ND),
            "against": self.config.against,
            "extractor": self.extractor.id,
            "preprocessing": self.extractor.preprocessing,
        }

    def _real(self) -> np.ndarray:
        """Read in batches: 10,000 pictures of 512 pixels are 8 GB."""
        size = self.config.batch_size
        batches = (self.rows[start : start + size] for start in range(0, len(self.rows), size))
        return np.concatenate([self._features([self.corpus.read(row).item for row in rows]) for rows in batches])

    def _generated(self) -> np.ndarray:
        from medisyn.types import Request

        requests = [
            Request(
                key=row.key,
                prompt=row.caption,
                seed=seed_for(self.config.seed, f"judge/{row.key}"),
                steps=self.config.steps,
                guidance=self.config.guidance,
            )
            for row in self.rows
        ]
        parts = []
        for start in range(0, len(requests), self.config.batch_size):
            batch = requests[start : start + self.config.batch_size]
            parts.append(self._features(self.family.decode(self.family.sample(batch))))
        return np.concatenate(parts)

    def _features(self, items: Sequence[Any]) -> np.ndarray:
        from medisyn.recipes.corpus_images import rgb

        size = self.config.batch_size
        return np.concatenate(
            [
                self.extractor([rgb(item) for item in items[start : start + size]])
                for start in range(0, len(items), size)
            ]
        )
