"""Every preset that `medisyn train` knows, typed out, and how one is looked up and changed.

Nothing heavy is imported here: presets are listed without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from medisyn.errors import ConfigError, closest
from medisyn.recipes.dreambooth import DREAMBOOTH, DREAMBOOTH_TINY, SD_LORA, SD_LORA_TINY
from medisyn.recipes.higen_presets import MEDISYN_V1_VIDEO, MEDISYN_V1_VIDEO_TINY
from medisyn.recipes.higen_starter import STARTER_VIDEO
from medisyn.recipes.medical_encoder_run import MedicalEncoderRun
from medisyn.recipes.medisyn_v2 import MEDISYN_V2, MEDISYN_V2_LORA, MEDISYN_V2_TINY, SD_FINETUNE, SD_FINETUNE_TINY
from medisyn.recipes.medsyn_presets import (
    MEDSYN_BASE,
    MEDSYN_BASE_TINY,
    MEDSYN_REPORT_ENCODER,
    MEDSYN_REPORT_ENCODER_TINY,
    MEDSYN_SUPERRES,
    MEDSYN_SUPERRES_TINY,
)
from medisyn.recipes.medsyn_starter import STARTER_CT
from medisyn.recipes.overrides import with_overrides
from medisyn.recipes.starter_image import STARTER_IMAGE
from medisyn.recipes.textual_inversion import TEXTUAL_INVERSION, TEXTUAL_INVERSION_TINY
from medisyn.recipes.wuerstchen import MEDISYN_V1_IMAGE, MEDISYN_V1_IMAGE_TINY

__all__ = ["PRESETS", "Preset", "Report", "get_preset", "with_overrides"]

Announce = Callable[[str], object]


class Report(Protocol):
    """What a training call did: for a person, and for JSON."""

    def summary(self) -> str: ...

    def as_dict(self) -> Mapping[str, Any]: ...


class Preset(Protocol):
    """A frozen dataclass with every value of one run, and the wiring that runs it."""

    @property
    def summary(self) -> str:
        """One line for a list."""
        ...

    def plan(self, corpus: Path, out: Path, announce: Announce) -> None:
        """Say what would be done and the memory it takes; writes nothing into `out`."""
        ...

    def prepare(self, corpus: Path, out: Path, announce: Announce, *, processes: int) -> None:
        """What is done once, before the training processes start."""
        ...

    def run(self, corpus: Path, out: Path, announce: Announce) -> Report:
        """Train, or go on with the run in `out`; called in every training process after `prepare`."""
        ...


PRESETS: Mapping[str, Preset] = {
    "medisyn-v1-image": MEDISYN_V1_IMAGE,
    "medisyn-v1-image-tiny": MEDISYN_V1_IMAGE_TINY,
    "medisyn-v1-video": MEDISYN_V1_VIDEO,
    "medisyn-v1-video-tiny": MEDISYN_V1_VIDEO_TINY,
    "medisyn-v2": MEDISYN_V2,
    "medisyn-v2-lora": MEDISYN_V2_LORA,
    "medisyn-v2-tiny": MEDISYN_V2_TINY,
    "sd-finetune": SD_FINETUNE,
    "sd-finetune-tiny": SD_FINETUNE_TINY,
    "medsyn-report-encoder": MEDSYN_REPORT_ENCODER,
    "medsyn-report-encoder-tiny": MEDSYN_REPORT_ENCODER_TINY,
    "medsyn-base": MEDSYN_BASE,
    "medsyn-base-tiny": MEDSYN_BASE_TINY,
    "medsyn-superres": MEDSYN_SUPERRES,
    "medsyn-superres-tiny": MEDSYN_SUPERRES_TINY,
    "textual-inversion": TEXTUAL_INVERSION,
    "textual-inversion-tiny": TEXTUAL_INVERSION_TINY,
    "dreambooth": DREAMBOOTH,
    "dreambooth-tiny": DREAMBOOTH_TINY,
    "sd-lora": SD_LORA,
    "sd-lora-tiny": SD_LORA_TINY,
    "starter-image": STARTER_IMAGE,
    "starter-ct": STARTER_CT,
    "starter-video": STARTER_VIDEO,
    "medical-encoder": MedicalEncoderRun(),
}


def get_preset(name: str) -> Preset:
    """The preset of that name. Raises ConfigError with the nearest name."""
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is unknown, allowed: {', '.join(PRESETS)}.{closest(name, PRESETS)}")
    return PRESETS[name]
