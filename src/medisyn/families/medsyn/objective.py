"""The training objectives: what is drawn for each sample and step, and the loss it gives.

Shapes here: B samples, C channels, D, H, W depth, height, width (of the crop, for super-resolution).
The order of the draws is part of the format: changing it changes every seeded run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from medisyn.diffusion.cosine import cosine_alpha_sigma
from medisyn.families.medsyn.config import CHANNELS, NUM_LOBES, SuperResolutionConfig

FIRST_LOBE = 2 / NUM_LOBES  # how far label 1 lies from the background, in [-1, 1]
SEGMENTING = 0.5  # of the rows that are given something, the share that is given the CT alone


@dataclass(frozen=True)
class BaseDraws:
    """All randomness of one step of the base model, on the CPU."""

    times_B: torch.Tensor
    noise_BCDHW: torch.Tensor
    dropped_B: torch.Tensor  # True: this step sees the null text


def draw_base(generators: Sequence[torch.Generator], shape: Sequence[int], report_dropout: float) -> BaseDraws:
    """Row i from generators[i] alone: time (uniform in [0, 1)), noise of `shape`, dropped report."""
    times, noise, dropped = [], [], []
    for generator in generators:
        times.append(torch.rand((), generator=generator))
        noise.append(torch.randn(tuple(shape), generator=generator))
        dropped.append(bool(torch.rand((), generator=generator) < report_dropout))
    return BaseDraws(torch.stack(times), torch.stack(noise), torch.tensor(dropped))


@dataclass(frozen=True)
class SuperResolutionDraws:
    """All randomness of one step of the super-resolution model, on the CPU."""

    times_B: torch.Tensor
    corners: list[tuple[int, int, int]]  # first voxel of each crop, a multiple of the factor
    noise_levels_B: torch.Tensor  # share of the condition that is noise
    condition_noise_BCDHW: torch.Tensor
    noise_BCDHW: torch.Tensor


def draw_superres(
    generators: Sequence[torch.Generator], shape: Sequence[int], config: SuperResolutionConfig
) -> SuperResolutionDraws:
    """Row i from generators[i] alone: time, corner along d, h, w, noise level, condition noise, noise."""
    channels, *sides = shape
    crop = crop_shape(sides, config)
    times, corners, levels, condition_noise, noise = [], [], [], [], []
    for generator in generators:
        times.append(torch.rand((), generator=generator))
        places = [(side - part) // config.factor + 1 for side, part in zip(sides, crop, strict=True)]
        d, h, w = (int(torch.randint(count, (), generator=generator)) * config.factor for count in places)
        corners.append((d, h, w))
        levels.append(torch.rand((), generator=generator) * config.condition_noise)
        condition_noise.append(torch.randn(channels, *crop, generator=generator))
        noise.append(torch.randn(channels, *crop, generator=generator))
    return SuperResolutionDraws(
        torch.stack(times), corners, torch.stack(levels), torch.stack(condition_noise), torch.stack(noise)
    )


def crop_shape(sides: Sequence[int], config: SuperResolutionConfig) -> list[int]:
    """The crop, or the whole side where the volume is smaller."""
    return [min(side, part) for side, part in zip(sides, config.crop, strict=True)]


def cut(volumes_BCDHW: torch.Tensor, corners: Sequence[tuple[int, int, int]], crop: Sequence[int]) -> torch.Tensor:
    """One crop of each row as float32, its first voxel at the corner."""
    return torch.stack(  # float32 before stacking: autocast on a CPU does not stack float16
        [
            volume_CDHW[:, d : d + crop[0], h : h + crop[1], w : w + crop[2]].float()
            for volume_CDHW, (d, h, w) in zip(volumes_BCDHW, corners, strict=True)
        ]
    )


def lower_resolution(volumes_BCDHW: torch.Tensor, factor: int) -> torch.Tensor:
    """Every `factor`-th voxel, as the base model's data are made."""
    return volumes_BCDHW[..., ::factor, ::factor, ::factor]


def repeat_voxels(volumes_BCDHW: torch.Tensor, factor: int) -> torch.Tensor:
    """Each voxel `factor` times along each axis (nearest neighbour)."""
    return F.interpolate(volumes_BCDHW, scale_factor=factor, mode="nearest")


def keep_voxels(fine_BCDHW: torch.Tensor, low_BCdhw: torch.Tensor, factor: int) -> torch.Tensor:
    """The fine volumes, moved so that every `factor`-th voxel is that of the low ones.

    What they differ by there is spread by straight lines to the voxels between, and held beyond the last one.
    """
    missed = low_BCdhw - lower_resolution(fine_BCDHW, factor)
    corners = F.pad(missed, (0, 1) * 3, mode="replicate")
    sides = [factor * side + 1 for side in missed.shape[2:]]
    between = F.interpolate(corners, size=sides, mode="trilinear", align_corners=True)
    return fine_BCDHW + between[..., :-1, :-1, :-1]


def noisy_condition(
    condition_BCDHW: torch.Tensor, noise_BCDHW: torch.Tensor, noise_levels_B: torch.Tensor
) -> torch.Tensor:
    """(1 - a) * condition + a * noise, a one number per row; the network is not told a."""
    share = noise_levels_B.view(-1, 1, 1, 1, 1)
    return (1 - share) * condition_BCDHW + share * noise_BCDHW


def draw_given(generators: Sequence[torch.Generator], share: float) -> torch.Tensor:
    """Which channels row i is given, bool (B, C, 1, 1, 1): some in `share` of the rows, all in none.

    Half of those rows are given the CT alone (segmentation), the others any channels. A share of 0 draws nothing.
    """
    given_BC = torch.zeros(len(generators), len(CHANNELS), dtype=torch.bool)
    for row, generator in enumerate(generators if share else ()):
        if torch.rand((), generator=generator) >= share:
            continue
        some = 1 + int(torch.randint(2 ** len(CHANNELS) - 2, (), generator=generator))  # its bits are the channels
        chosen = 1 if torch.rand((), generator=generator) < SEGMENTING else some
        given_BC[row] = torch.tensor([bool(chosen >> number & 1) for number in range(len(CHANNELS))])
    return given_BC[:, :, None, None, None]


def error_per_sample(
    prediction_BCDHW: torch.Tensor,
    clean_BCDHW: torch.Tensor,
    given_BC111: torch.Tensor,
    lung_weight: float = 1.0,
    lung_reach: int = 0,
) -> torch.Tensor:
    """Mean squared error over voxels and the channels not given, float32 (B,) (MedSyn equations 9 and 10).

    lung_weight, lung_reach: how often the CT's error counts where lung is, by the lobes that are given or drawn, and
    how many voxels around it
    """
    asked_BC = ~given_BC111.flatten(1)
    error_BCDHW = (prediction_BCDHW.float() - clean_BCDHW.float()).square()
    if lung_weight != 1:
        lobe = CHANNELS.index("lobe")
        lobe_BDHW = torch.where(given_BC111, clean_BCDHW, prediction_BCDHW)[:, lobe].detach().float()
        ct_BDHW = error_BCDHW[:, 0] * weight_of_lungs(lobe_BDHW, lung_weight, lung_reach)
        error_BCDHW = torch.cat([ct_BDHW[:, None], error_BCDHW[:, 1:]], dim=1)
    error_BC = error_BCDHW.flatten(2).mean(dim=2)
    return (error_BC * asked_BC).sum(dim=1) / asked_BC.sum(dim=1)


def weight_of_lungs(lobe_BDHW: torch.Tensor, lung_weight: float, lung_reach: int = 0) -> torch.Tensor:
    """How often each voxel counts, (B, D, H, W) with a mean of 1 over each volume.

    Where the lobe channel, -1 to 1, shows a lobe, and in the cube of `lung_reach` voxels around, `lung_weight` times as
    often as elsewhere; in between where the channel lies in between. The channel must be one that the network sees or
    draws. A weight that depends on nothing else leaves the best prediction of each voxel what it is, the mean of what
    it can be, and only decides where a small network errs least; one by the true lobes would draw lung where lung is
    likely.
    """
    lung_BDHW = ((lobe_BDHW + 1) / FIRST_LOBE).clamp(0, 1)
    if lung_reach:
        lung_BDHW = F.max_pool3d(lung_BDHW[:, None], 2 * lung_reach + 1, stride=1, padding=lung_reach)[:, 0]
    weight_BDHW = 1 + (lung_weight - 1) * lung_BDHW
    return weight_BDHW / weight_BDHW.mean(dim=(1, 2, 3), keepdim=True)


def with_what_is_seen(
    guess_BCDHW: torch.Tensor, noisy_BCDHW: torch.Tensor, times_B: torch.Tensor, ct_residual: float
) -> torch.Tensor:
    """The clean prediction, float32: of the CT, the network's guess and what the noisy one shows, by their precision.

    clean = c * noisy / alpha + (1 - c) * guess, c = s^2 / (s^2 + sigma^2 / alpha^2), where s is `ct_residual`: with s
    as the data's spread, the skip of Karras et al. 2022 (table 1). Masks, whose values are few, and s = 0 keep the
    guess.
    """
    guess_BCDHW = guess_BCDHW.float()
    if not ct_residual:
        return guess_BCDHW
    alpha, sigma = cosine_alpha_sigma(times_B, noisy_BCDHW.ndim)
    share = ct_residual**2 / (ct_residual**2 + (sigma / alpha).square())
    ct_B1DHW = share * noisy_BCDHW[:, :1].float() / alpha + (1 - share) * guess_BCDHW[:, :1]
    return torch.cat([ct_B1DHW, guess_BCDHW[:, 1:]], dim=1)


def weight_of(times_B: torch.Tensor, weight_limit: float) -> torch.Tensor:
    """min(1 / sigma^2, weight_limit), (B,): how often the loss of a time counts.

    1 / sigma^2 weighs the clean volume's error as the velocity's; the limit is Hang et al. 2023 (Min-SNR).
    """
    _, sigma_B = cosine_alpha_sigma(times_B, 1)
    return sigma_B.square().reciprocal().clamp(max=weight_limit)
