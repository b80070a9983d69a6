"""Size of the HiGen network and of its clips as frozen values. No torch here: presets can be listed without it.

T, H, W are the frames of a clip, their height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

from medisyn.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Size of a HiGen U-Net. The defaults are the published network's: Stable Diffusion 2 with blocks through time."""

    width: int = 320
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2  # residual blocks per level on the way down; one more on the way up
    attention_levels: tuple[int, ...] = (0, 1, 2)  # 0 is the full size; the middle always has attention
    head_width: int = 64
    stem_heads: int = 8  # of the temporal attention right after the first convolution
    latent_channels: int = 4
    text_width: int = 1024  # of the text encoder
    context_width: int = 1024  # of what the spatial attention reads
    text_tokens: int = 16  # that stand for a whole caption
    text_blocks: int = 2
    text_heads: int = 8
    pooled_text: bool = False  # the mean of the text joins the time; not in HiGen, lets a small network read soon
    appearance_points: int = 32  # numbers that each row of the appearance matrix is resampled to
    norm_groups: int = 32
    dropout: float = 0.1
    frames: int | None = None  # the only clip length that the weights were trained on; None: any

    def __post_init__(self) -> None:
        if not self.multipliers or min(self.multipliers) < 1 or self.blocks < 1:
            raise ConfigError(
                f"a network needs multipliers and blocks of at least 1, got {self.multipliers} and {self.blocks}"
            )
        if any(level not in range(len(self.multipliers)) for level in self.attention_levels):
            raise ConfigError(
                f"attention_levels must name levels from 0 to {len(self.multipliers) - 1}, got {self.attention_levels}"
            )
        attended = {self.multipliers[level] for level in self.attention_levels} | {self.multipliers[-1]}
        if any(self.width * m % self.head_width for m in attended):
            raise ConfigError(f"width {self.width} times each multiplier must divide by head_width {self.head_width}")
        if self.width % self.norm_groups:
            raise ConfigError(f"width must divide by norm_groups {self.norm_groups}, got {self.width}")
        if self.width % 2 or 4 * self.width % self.text_heads:
            raise ConfigError(
                f"width must be even, and four times it must divide by text_heads {self.text_heads}, got {self.width}"
            )
        if self.appearance_points < 2 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"appearance_points must be at least 2 and dropout lie in [0, 1), got {self.appearance_points} and "
                f"{self.dropout}"
            )
        if self.frames is not None and self.frames < 2:
            raise ConfigError(f"frames must be None (any) or at least 2, got {self.frames}")

    @property
    def factor(self) -> int:
        """What the height and width of a latent must divide by."""
        return int(2 ** (len(self.multipliers) - 1))


UNET_PAPER = UNetConfig()  # for training on any number of frames; the published weights say frames=32
UNET_TINY = UNetConfig(
    width=16,
    multipliers=(1, 2),
    blocks=1,
    attention_levels=(0,),
    head_width=8,
    stem_heads=2,
    text_width=16,
    context_width=16,
    text_tokens=4,
    text_blocks=1,
    norm_groups=8,
)


@dataclass(frozen=True, kw_only=True)
class ClipGrid:
    """The clips of a model: how many frames, how large, and how fast. MediSyn v1 section 3.2; 8 per second as HiGen."""

    frames: int = 32
    height: int = 256
    width: int = 448
    frames_per_second: float = 8.0

    def __post_init__(self) -> None:
        if self.frames < 2 or min(self.height, self.width) < 1:
            raise ConfigError(
                f"a clip needs at least 2 frames and 1 pixel, got {self.frames} frames of {self.height} x {self.width}"
            )
        if not self.frames_per_second > 0:
            raise ConfigError(f"frames_per_second must be above 0, got {self.frames_per_second}")
