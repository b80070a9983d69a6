"""Every choice of the MedSyn family as frozen values. No torch here: presets can be listed without loading it.

D, H, W are depth, height and width of a grid, in the axes that `Grid.axes` names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from medisyn.diffusion.clean_solvers import check_clean_solver
from medisyn.errors import ConfigError

CHANNELS = ("ct", "lobe", "airway", "vessel")  # their order is part of the published weights
UP_ORDERS = ("late", "mid")
LONG_REPORTS = ("pool", "cut")
SHORT_REPORTS = ("pad", "stretch")
NUM_LOBES = 5
HU_WINDOW = (-1024.0, 600.0)  # MedSyn section V-A


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Size of a MedSyn U-Net; `text_width` 0 is a network without text, which reads a second volume instead."""

    width: int
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    heads: int = 8
    head_width: int = 32
    norm_groups: int = 8
    text_width: int = 0
    text_tokens: int = 0
    pooled_text: bool = False  # the mean of the text joins the time; not in MedSyn, lets a small network read soon
    middle_blocks: int = 1
    up_order: str = "late"  # the order that the published inference scripts run; "mid" is the training scripts'
    patch: int = 1  # side of the cube of voxels that becomes one place of the network; 1 is MedSyn's

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise ConfigError(f"patch must be 1 or more, got {self.patch}")
        if self.up_order not in UP_ORDERS:
            raise ConfigError(f"up_order must be one of {', '.join(UP_ORDERS)}, got {self.up_order!r}")
        if self.width % self.norm_groups:
            raise ConfigError(f"width must divide by norm_groups {self.norm_groups}, got {self.width}")
        if self.pooled_text and not self.text_width:
            raise ConfigError("pooled_text needs a text: a text_width and text_tokens above 0")
        if (self.text_width == 0) != (self.text_tokens == 0):
            raise ConfigError(
                f"text_width and text_tokens are both 0 or both above 0, got {self.text_width} and {self.text_tokens}"
            )

    @property
    def factor(self) -> int:
        """What height and width must divide by; depth, which is never halved, by `patch`."""
        return int(self.patch * 2 ** (len(self.multipliers) - 1))


BASE_PAPER = UNetConfig(width=160, heads=8, text_width=768, text_tokens=192, middle_blocks=4)
SUPERRES_PAPER = UNetConfig(width=56, heads=4)
BASE_STARTER = UNetConfig(
    width=32, multipliers=(1, 2, 4), heads=4, text_width=128, text_tokens=96, pooled_text=True, middle_blocks=2, patch=2
)  # 32³ on one CPU core, as 16³ places
SUPERRES_STARTER = UNetConfig(width=16, multipliers=(1, 2, 4), heads=2)
BASE_TINY = UNetConfig(
    width=8, multipliers=(1, 2), heads=2, head_width=4, norm_groups=4, text_width=16, text_tokens=12, middle_blocks=2
)
SUPERRES_TINY = UNetConfig(width=8, multipliers=(1, 2), heads=2, head_width=4, norm_groups=4)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The voxels of the base model: how many, how large, which way they run, and how their HU become [-1, 1].

    axes      the direction in which d, h and w grow: S or I, A or P, L or R, each once in that order
    hu_knots  HU at evenly spaced values from -1 to 1, straight lines between them; HU beyond the ends are clipped. Two
              knots are MedSyn's scale. A small network sees what differs by few HU, such as fluid beside muscle, where
              the knots lie close.
    """

    shape: tuple[int, int, int] = (64, 64, 64)
    spacing_mm: tuple[float, float, float] = (4.5625, 4.9375, 4.9375)  # MedSyn's atlas, 292 x 316 x 316 mm, over 64
    axes: str = "SPL"
    spacing_tolerance: float = 0.1  # how far a volume's spacing may lie from the model's, as a share
    hu_knots: tuple[float, ...] = HU_WINDOW

    def __post_init__(self) -> None:
        if len(self.axes) != 3 or any(a not in pair for a, pair in zip(self.axes, ("SI", "AP", "LR"), strict=True)):
            raise ConfigError(f"axes must be S or I, then A or P, then L or R, for example SPL; got {self.axes!r}")
        if min(self.shape) < 1 or min(self.spacing_mm) <= 0 or self.spacing_tolerance < 0:
            raise ConfigError(
                f"a grid needs a shape and spacing above 0 and a tolerance of 0 or more, got {self.shape}, "
                f"{self.spacing_mm} mm and {self.spacing_tolerance}"
            )
        if len(self.hu_knots) < 2 or any(low >= high for low, high in pairwise(self.hu_knots)):
            raise ConfigError(f"hu_knots must be two or more HU that grow, got {self.hu_knots}")

    def finer(self, factor: int) -> Grid:
        """The same field of view with `factor` times as many voxels along each axis."""
        d, h, w = self.shape
        sd, sh, sw = self.spacing_mm
        return replace(
            self,
            shape=(d * factor, h * factor, w * factor),
            spacing_mm=(sd / factor, sh / factor, sw / factor),
        )


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ConfigError(f"{name} must lie in [0, 1], got {share}")


def _check_weights(weight_limit: float, ct_residual: float, lung_weight: float, lung_reach: int) -> None:
    for name, weight in (("weight_limit", weight_limit), ("lung_weight", lung_weight)):
        if not 1 <= weight < float("inf"):
            raise ConfigError(f"{name} must be 1 or more, and finite, got {weight}")
    if not 0 <= ct_residual < float("inf"):
        raise ConfigError(f"ct_residual must be 0 or more, and finite, got {ct_residual}")
    if lung_reach < 0 or lung_reach != int(lung_reach):
        raise ConfigError(f"lung_reach must be a whole number of voxels, 0 or more, got {lung_reach}")


@dataclass(frozen=True, kw_only=True)
class MedSynConfig:
    """How the base model is trained and reads reports. Defaults are the published code's.

    Above 0, `given_share` is not MedSyn's: the network learns to complete channels that are given, and generation hands
    them to it clean. With 0 they reach it with the noise of the step, as in the published code. The two after it are
    not MedSyn's either: at low noise the error of a clean volume is small, and a short training leaves it as it is,
    worse than that of the noisy volume itself; `objective.py` says what they do.
    """

    report_dropout: float = 0.1  # share of reports replaced by the learned null text, drawn per sample and step
    long_reports: str = "pool"  # more tokens than text_tokens: "pool" averages neighbours, "cut" drops the end
    short_reports: str = "pad"  # fewer tokens: "pad" reads padding, as published; "stretch" repeats each token
    given_share: float = 0.0  # share of samples in which channels are handed over clean, as generation hands over masks
    weight_limit: float = 1.0  # the loss of a time counts min(1 / sigma^2, weight_limit) times; 1 is MedSyn's
    ct_residual: float = 0.0  # SD of what the network's guess of the CT misses, in [-1, 1] units; 0 is MedSyn's
    lung_weight: float = 1.0  # the CT's error counts so many times where the network draws lung; 1 is MedSyn's
    lung_reach: int = 0  # voxels around a lung that count as it does: its fluid and its wall

    def __post_init__(self) -> None:
        _check_share("given_share", self.given_share)
        _check_weights(self.weight_limit, self.ct_residual, self.lung_weight, self.lung_reach)
        _check_share("report_dropout", self.report_dropout)
        if self.long_reports not in LONG_REPORTS:
            raise ConfigError(f"long_reports must be one of {', '.join(LONG_REPORTS)}, got {self.long_reports!r}")
        if self.short_reports not in SHORT_REPORTS:
            raise ConfigError(f"short_reports must be one of {', '.join(SHORT_REPORTS)}, got {self.short_reports!r}")


@dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig:
    """How the super-resolution model is trained: on crops, with noise on what it is conditioned on."""

    factor: int = 4
    crop: tuple[int, int, int] = (256, 72, 72)  # the published code: full depth, 72 x 72 in the slice
    condition_noise: float = 0.4  # the condition is (1 - a) * low + a * noise, a uniform in [0, condition_noise]
    given_share: float = 0.0  # this and the next four as in MedSynConfig
    weight_limit: float = 1.0
    ct_residual: float = 0.0
    lung_weight: float = 1.0
    lung_reach: int = 0

    def __post_init__(self) -> None:
        _check_share("given_share", self.given_share)
        _check_weights(self.weight_limit, self.ct_residual, self.lung_weight, self.lung_reach)
        if self.factor < 2:
            raise ConfigError(f"factor must be at least 2, got {self.factor}")
        if any(side % self.factor for side in self.crop):
            raise ConfigError(f"crop must divide by the factor {self.factor}, got {self.crop}")
        if not 0 <= self.condition_noise < 1:
            raise ConfigError(f"condition_noise must lie in [0, 1), got {self.condition_noise}")


@dataclass(frozen=True, kw_only=True)
class MedSynDefaults:
    """What a request gets when it leaves steps or guidance open, and how the large volume is cut into tiles."""

    solver: str = "ddim"  # MedSyn section IV-F: DDIM; "dpmpp-2m" needs fewer calls
    steps: int = 50
    guidance: float = 1.0  # the published evaluation script; its script for conditional volumes has 3
    superres_steps: int = 20
    segment_steps: int | None = None  # of the base model where the CT is given; None: `steps`. Not in MedSyn
    segment_draws: int = 1  # masks that are drawn for a given CT and put together; MedSyn has one
    ct_draws: int = 0  # at the end the base model's CT is the mean of so many predictions; 0, MedSyn's: the last one
    ct_draws_time: float = 0.3  # each from the CT under fresh noise of this time
    keep_base: bool = False  # the refined CT has the base model's voxels among its own; not in MedSyn
    tile: tuple[int, int, int] = (256, 72, 72)  # the shape the network was trained on
    overlap: int = 16  # voxels that neighbouring tiles share

    def __post_init__(self) -> None:
        check_clean_solver(self.solver)
        for name in ("steps", "superres_steps", "segment_steps", "segment_draws"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.ct_draws < 0:
            raise ConfigError(f"ct_draws must be 0 or more, got {self.ct_draws}")
        if not 0 < self.ct_draws_time < 1:
            raise ConfigError(f"ct_draws_time must lie between 0 and 1, got {self.ct_draws_time}")
        if not self.guidance >= 0:
            raise ConfigError(f"guidance must be 0 or more, got {self.guidance}")
        if self.overlap < 0 or min(self.tile) <= self.overlap:
            raise ConfigError(f"tile {self.tile} must be larger than the overlap {self.overlap}, which is 0 or more")
