"""The small medical encoder and the class judge as a preset of `medisyn train`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medisyn.errors import ConfigError

Announce = Callable[[str], object]


@dataclass(frozen=True)
class EncoderReport:
    """What was trained, as config.json holds it."""

    out: Path
    record: dict[str, Any]

    def summary(self) -> str:
        return f"{self.out}: encoder and judge written, held-out accuracy in config.json"

    def as_dict(self) -> dict[str, Any]:
        return {"out": str(self.out), **self.record}


@dataclass(frozen=True, kw_only=True)
class MedicalEncoderRun:
    """Both networks are small enough to be trained in one go: there is nothing to resume."""

    summary: str = "the small CNN behind offline distances, and the judge that names the class of an image"
    num_steps: int = 1200  # of the encoder: three to four minutes on one core
    judge_steps: int = 5000  # of the judge: about twenty minutes
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_steps", "judge_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    def plan(self, corpus: Path, out: Path, announce: Announce) -> None:
        announce(
            f"{self.num_steps} steps of 32 images for the encoder, {self.judge_steps} for the judge, on one process"
        )

    def prepare(self, corpus: Path, out: Path, announce: Announce, *, processes: int) -> None:
        if processes != 1:
            raise ConfigError(f"this preset trains on one process, got processes={processes}")

    def run(self, corpus: Path, out: Path, announce: Announce) -> EncoderReport:
        from medisyn.recipes import medical_encoder

        record = medical_encoder.run(corpus, out, steps=self.num_steps, judge_steps=self.judge_steps, seed=self.seed)
        return EncoderReport(out, record)
