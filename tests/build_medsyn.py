"""Tiny MedSyn models and chests: random weights, a vocabulary trained on the spot, four reports."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from medisyn.families.medsyn.config import (
    BASE_TINY,
    SUPERRES_TINY,
    Grid,
    MedSynConfig,
    MedSynDefaults,
    SuperResolutionConfig,
)
from medisyn.types import HU, Sample, Volume

GRID = Grid(shape=(8, 8, 8), spacing_mm=(40.0, 44.0, 44.0))
SUPERRES = SuperResolutionConfig(factor=2, crop=(16, 8, 8))
DEFAULTS = MedSynDefaults(steps=2, superres_steps=2, tile=(16, 8, 8), overlap=4)
REPORTS = (
    "Findings: Large right pleural effusion. Heart size is normal. Impression: Large right effusion.",
    "Findings: The heart is enlarged. No effusion. Impression: Cardiomegaly.",
    "Findings: Bullae in both upper lobes. Impression: Bullous emphysema.",
    "Findings: Lungs are clear. Heart size is normal. Impression: Normal chest.",
)


def chest(number: int = 0, size: int = 16, grid: Grid = GRID) -> Sample:
    """A box of soft tissue with two lungs, lobes 1 to 5, a tube of airway and one of vessel; SPL axes, true spacing."""
    spacing = [spacing * side / size for spacing, side in zip(grid.spacing_mm, grid.shape, strict=True)]
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing
    affine[3, 3] = 1
    hu = np.full((1, size, size, size), -1000, np.float32)
    quarter = size // 4
    hu[:, :, quarter:-quarter, 1:-1] = 40 + 5 * number
    lobe = np.zeros((size,) * 3, np.uint8)
    lobe[size // 2 :, quarter:-quarter, size // 2 + 1 : -2] = 1  # the patient's left is where w grows
    lobe[: size // 2, quarter:-quarter, size // 2 + 1 : -2] = 2
    lobe[size // 2 :, quarter:-quarter, 2 : size // 2 - 1] = 3
    lobe[quarter : size // 2, quarter:-quarter, 2 : size // 2 - 1] = 4
    lobe[:quarter, quarter:-quarter, 2 : size // 2 - 1] = 5
    hu[0][lobe > 0] = -850
    airway, vessel = np.zeros_like(lobe), np.zeros_like(lobe)
    airway[size // 2 :, size // 2, size // 2] = 1
    vessel[:, size // 2, 3] = 1
    hu[0][airway > 0], hu[0][vessel > 0] = -1000, 60
    masks = {"lobe": lobe, "airway": airway, "vessel": vessel}
    return Sample(f"chest-{number}", Volume(hu, affine, HU), REPORTS[number % len(REPORTS)], masks=masks)


def chests(count: int, size: int = 16) -> list[Sample]:
    return [chest(number, size) for number in range(count)]


@cache
def tokenizer() -> Any:
    """A BertTokenizer trained on the four reports."""
    from medisyn.families.medsyn.report_encoder import train_wordpiece

    return train_wordpiece(REPORTS, vocab_size=300)


def encoder(window: int = 48, seed: int = 0) -> Any:
    from medisyn.families.medsyn.report_encoder import new_encoder

    return new_encoder(len(tokenizer()), width=16, layers=1, heads=2, window=window, seed=seed)


def base(*, config: MedSynConfig | None = None, defaults: MedSynDefaults = DEFAULTS, seed: int = 0) -> Any:
    """A MedSynBase with random weights on an 8³ grid."""
    from medisyn.families.medsyn.base_model import MedSynBase
    from medisyn.families.medsyn.networks import build_unet

    return MedSynBase(build_unet(BASE_TINY, seed=seed), encoder(), tokenizer(), GRID, config, defaults)


def superres(*, config: SuperResolutionConfig = SUPERRES, defaults: MedSynDefaults = DEFAULTS, seed: int = 1) -> Any:
    """A MedSynSuperResolution from 8³ to 16³."""
    from medisyn.families.medsyn.networks import build_unet
    from medisyn.families.medsyn.superres import MedSynSuperResolution

    return MedSynSuperResolution(build_unet(SUPERRES_TINY, seed=seed), GRID, config, defaults)
