"""How much of an image survives a stage: reconstructions against originals, as MediSyn v1 chose its stages (Table 3).

Shapes here: N items, T frames, H, W pixels.
A stage is any function that takes images and gives them back: an autoencoder, or a decoder behind an encoder. It is
judged by SSIM per image; PSNR stands beside it. A clip counts as one item, with the mean over its frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError
from medisyn.evaluation.bootstrap import Interval, mean_interval
from medisyn.evaluation.ssim import HALF_GREY_LEVEL_DB, psnr, ssim

# Images (H, W, 3) or clips (T, H, W, 3), uint8, to as many of the same shapes
Rebuild = Callable[[list[np.ndarray]], list[np.ndarray]]

# MediSyn v1 left a stage as it was at a mean SSIM of 0.8328 (Stage B), 0.9182 (video VAE) and 0.9842 (Stage A), and
# trained the one that failed. It states no limit; ours is the lowest value at which it went on.
KEEP_FROM = 0.8328


@dataclass(frozen=True)
class Spread:
    """Mean with its bootstrap interval, median, sample SD (n - 1), and range (highest minus lowest)."""

    mean: float
    interval: Interval
    median: float
    sd: float
    low: float
    high: float

    @property
    def range(self) -> float:
        return self.high - self.low


@dataclass(frozen=True)
class StageCheck:
    """One stage on n items. `verdict` is "keep", "fine-tune" or "undecided" (the interval holds the limit)."""

    name: str
    n: int
    ssim: Spread
    psnr_db: Spread  # capped at 58.9 dB, the error of rounding to 8 bits alone
    verdict: str
    keep_from: float
    ssim_N: tuple[float, ...]  # per image, in the order of the images


def verdict_of(interval: Interval, keep_from: float = KEEP_FROM) -> str:
    """ "keep" when the interval of the mean SSIM lies at or above the limit, "fine-tune" when below it."""
    if interval.low >= keep_from:
        return "keep"
    return "fine-tune" if interval.high < keep_from else "undecided"


def check_stage(
    name: str,
    rebuild: Rebuild,
    images: Sequence[Callable[[], np.ndarray]],
    *,
    batch_size: int = 16,
    patients: Sequence[str] | None = None,
    resamples: int = 200,
    seed: int = 0,
    keep_from: float = KEEP_FROM,
    on_batch: Callable[[int], None] | None = None,
) -> StageCheck:
    """Rebuild every image and compare it with the original; pixels are held for one batch only.

    Raises InputError for fewer than 2 images and for a stage that changes the number, shape or type of its images.
    """
    if len(images) < 2:
        raise InputError(f"stage {name}: a spread needs at least 2 images, got {len(images)}")
    similarity, noise = [], []
    for start in range(0, len(images), batch_size):
        originals = [read() for read in images[start : start + batch_size]]
        for original, rebuilt in zip(originals, _rebuilt(name, rebuild, originals), strict=True):
            pair = [_frames(item) for item in (original, rebuilt)]
            similarity.append(float(ssim(pair[0], pair[1], data_range=255).mean()))
            noise.append(float(psnr(pair[0], pair[1], data_range=255).clip(max=HALF_GREY_LEVEL_DB).mean()))
        if on_batch is not None:
            on_batch(len(originals))
    spreads = [_spread(np.array(values), patients, resamples, seed) for values in (similarity, noise)]
    verdict = verdict_of(spreads[0].interval, keep_from)
    return StageCheck(name, len(images), spreads[0], spreads[1], verdict, keep_from, tuple(similarity))


def _frames(item: np.ndarray) -> np.ndarray:
    """An image or a clip as frames (T, 3, H, W)."""
    return (item[None] if item.ndim == 3 else item).transpose(0, 3, 1, 2)


def _rebuilt(name: str, rebuild: Rebuild, originals: list[np.ndarray]) -> list[np.ndarray]:
    rebuilt = rebuild(originals)
    ours = [(image.shape, image.dtype) for image in originals]
    theirs = [(image.shape, image.dtype) for image in rebuilt]
    if ours != theirs:
        raise InputError(
            f"stage {name}: it must give back as many uint8 images of the same sizes; for {ours[0][0]} {ours[0][1]} it "
            f"gave {f'{theirs[0][0]} {theirs[0][1]}' if theirs else 'nothing'}"
        )
    return rebuilt


def _spread(values_N: np.ndarray, patients: Sequence[str] | None, resamples: int, seed: int) -> Spread:
    interval = mean_interval(values_N, resamples=resamples, seed=seed, groups=patients)
    return Spread(
        mean=float(values_N.mean()),
        interval=interval,
        median=float(np.median(values_N)),
        sd=float(values_N.std(ddof=1)),
        low=float(values_N.min()),
        high=float(values_N.max()),
    )
