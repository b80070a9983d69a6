"""How a Würstchen model is trained and how it samples, as frozen values; its size stands in config.py.

No torch here: presets can be listed without loading it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from medisyn.errors import ConfigError, closest
from medisyn.families.wuerstchen.config import DecoderConfig, ImageEncoderConfig, PriorConfig, VQGANConfig

LOSS_WEIGHTS = ("p2", "none")
TIME_SAMPLINGS = ("original", "uniform")
DROP_UNITS = ("sample", "batch")
SOLVERS = ("ancestral", "ancestral-short")
SHORT_STEPS = 29  # network calls of the published short list of times


def _check_name(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{what} {value!r} is unknown, allowed: {', '.join(allowed)}.{closest(value, allowed)}")


@dataclass(frozen=True, kw_only=True)
class WuerstchenConfig:
    """How Stage C is trained. Defaults follow MediSyn v1 section 3.3 and, where it says "original", that script."""

    caption_dropout: float = 0.05  # section 3.3: share of captions replaced by the empty string
    drop_unit: str = "sample"  # "batch": one coin for all rows of a forward pass, as in the original script
    loss_weight: str = "p2"  # "p2": 1 - alpha_bar, the original script's; "none": the diffusers script's plain MSE
    time_sampling: str = "original"  # "original": 7.5 % of the times are exactly 1; "uniform": the diffusers script's
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout <= 1:
            raise ConfigError(f"caption_dropout must lie in [0, 1], got {self.caption_dropout}")
        _check_name("drop_unit", self.drop_unit, DROP_UNITS)
        _check_name("loss_weight", self.loss_weight, LOSS_WEIGHTS)
        _check_name("time_sampling", self.time_sampling, TIME_SAMPLINGS)


@dataclass(frozen=True, kw_only=True)
class LatentGrid:
    """How many cells Stage C's latents have. The published models: 12, 18 and 24 for 512, 768 and 1024 pixels."""

    cell_pixels: float = 42.67  # of the picture, along each side of a cell (published `resolution_multiple`)

    def __post_init__(self) -> None:
        if not self.cell_pixels >= 1:
            raise ConfigError(f"cell_pixels must be at least 1, got {self.cell_pixels}")

    def cells(self, pixels: int) -> int:
        """Cells along a side of so many pixels, rounded up."""
        return math.ceil(pixels / self.cell_pixels)


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """What a request gets when it leaves size, steps or guidance open; kept in the model's folder."""

    solver: str = "ancestral"  # "ancestral-short": the published list of 20 times to 2/3 and 10 to 0, 29 calls
    steps: int = 60  # of Stage C; the published pipeline's. MediSyn v1 states none
    guidance: float = 6.0  # MediSyn v1 section 3.5
    decoder_steps: int = 12  # of Stage B; the published pipeline's
    decoder_guidance: float = 0.0  # of Stage B; off up to 1, as in the published pipeline, whose default is 0
    height: int = 1024  # pixels; MediSyn v1 section 3.5
    width: int = 1024

    def __post_init__(self) -> None:
        _check_name("solver", self.solver, SOLVERS)
        for name in ("steps", "decoder_steps", "height", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("guidance", "decoder_guidance"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The size of a model built from nothing. Each stage's text encoder has the width that the stage reads."""

    prior: PriorConfig
    decoder: DecoderConfig
    vqgan: VQGANConfig
    image_encoder: ImageEncoderConfig
    text_layers: int = 2
    text_heads: int = 4
    text_window: int = 77  # tokens, with start and end
    cell_pixels: float = 42.67  # of the picture, along each side of a cell of Stage C's grid

    def __post_init__(self) -> None:
        LatentGrid(cell_pixels=self.cell_pixels)
        channels = {self.prior.c_in, self.decoder.effnet_embd, self.image_encoder.c_latent}
        if len(channels) != 1:
            raise ConfigError(
                f"prior.c_in, decoder.effnet_embd and image_encoder.c_latent are the channels of one latent, got "
                f"{self.prior.c_in}, {self.decoder.effnet_embd} and {self.image_encoder.c_latent}"
            )
        if self.decoder.c_in != self.vqgan.latent_channels:
            raise ConfigError(
                f"decoder.c_in must be vqgan.latent_channels, got {self.decoder.c_in} and {self.vqgan.latent_channels}"
            )
        if self.prior.c_cond % self.text_heads or self.decoder.clip_embd % self.text_heads:
            raise ConfigError(
                f"text_heads must divide prior.c_cond and decoder.clip_embd, got {self.text_heads} for "
                f"{self.prior.c_cond} and {self.decoder.clip_embd}"
            )
