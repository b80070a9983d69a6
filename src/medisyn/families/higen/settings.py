"""How a HiGen model is trained and how it samples by default, as frozen values. No torch here.

The size of the network and of its clips is `config.py`'s affair. "paper" is MediSyn v1; "published" HiGen's own code.
"""

from __future__ import annotations

from dataclasses import dataclass

from medisyn.errors import ConfigError, closest

TEXT_LAYERS = ("penultimate", "last")
SPACINGS = ("leading", "trailing")
MOTION_LIMIT = 1000.0  # the largest motion value that a network is told


@dataclass(frozen=True, kw_only=True)
class HiGenSettings:
    """How a model is trained and reads captions.

    appearance_scale  the network is told 1 - scale * (1 - similarity): 1 for DINOv2, more for an encoder to which all
                frames of a clip look alike, so that the factor means the same
    untold      share of clips that are trained without their motion, and, drawn apart, without their likeness; requests
                may then leave them open. Not HiGen's, where the two say so much of a clip that words about it are lost
    text_layer  which hidden states of the text encoder are read, after its final norm. "penultimate" is the published
                choice; the folders of Stable Diffusion 2 lack the last layer, so that their "last" is the same.
    """

    caption_dropout: float = 0.1  # paper 3.4; drawn per sample and step
    offset_noise: float = 0.1  # published: times one draw per row, channel and frame
    appearance_scale: float = 1.0
    untold: float = 0.0
    text_layer: str = "penultimate"
    train_text_encoder: bool = False
    text_encoder_lr_scale: float = 1.0  # times the run's learning rate
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout <= 1:
            raise ConfigError(f"caption_dropout must lie in [0, 1], got {self.caption_dropout}")
        if not 0 <= self.untold < 1:
            raise ConfigError(f"untold must lie in [0, 1), got {self.untold}")
        if not self.offset_noise >= 0:
            raise ConfigError(f"offset_noise must be 0 or more, got {self.offset_noise}")
        if not self.appearance_scale > 0:
            raise ConfigError(f"appearance_scale must be above 0, got {self.appearance_scale}")
        _check_name("text_layer", self.text_layer, TEXT_LAYERS)


@dataclass(frozen=True, kw_only=True)
class HiGenDefaults:
    """What a clip is made with where the request leaves it open. Motion and appearance of None are not told.

    spacing  times of DDIM's steps: "leading" as published (50 steps: 981, 961, ..., 1), or "trailing" (999, 979, ...,
             19), which starts at pure noise also with few steps (Lin et al. 2023, section 3.3)
    overlap  frames that neighbouring windows share where a clip is longer than the network's
    """

    steps: int = 50  # published
    spacing: str = "leading"
    guidance: float = 12.0  # paper 3.5
    guidance_rescale: float = 0.0  # phi of Lin et al. 2023, section 3.4
    motion: float | None = 300.0  # paper 3.5; published: 500
    appearance: float | None = 0.7  # paper 3.5; published: 1.0
    overlap: int = 8  # a quarter of 32: ours

    def __post_init__(self) -> None:
        _check_name("spacing", self.spacing, SPACINGS)
        if self.steps < 1:
            raise ConfigError(f"steps must be at least 1, got {self.steps}")
        if not (self.guidance >= 0 and 0 <= self.guidance_rescale <= 1):
            raise ConfigError(
                f"guidance must be 0 or more and guidance_rescale lie in [0, 1], got {self.guidance} and "
                f"{self.guidance_rescale}"
            )
        if self.motion is not None:
            check_motion("motion", self.motion)
        if self.appearance is not None and not 0 <= self.appearance <= 1:
            raise ConfigError(f"appearance must lie in [0, 1], got {self.appearance}")
        if self.overlap < 0:
            raise ConfigError(f"overlap must be 0 frames or more, got {self.overlap}")


def check_motion(what: str, value: float) -> None:
    """Raise ConfigError for a motion factor that no network was told in training."""
    if not 0 <= value <= MOTION_LIMIT:
        raise ConfigError(f"{what} must lie in [0, {MOTION_LIMIT:g}], got {value:g}")


def _check_name(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{what} {value!r} is unknown, allowed: {', '.join(allowed)}.{closest(value, allowed)}")
