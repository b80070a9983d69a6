"""Does a generated image show what its prompt says? Retrieval among class prompts, and pairs of prompts.

Shapes here: N images, P prompts, D features.
The third test, a classifier of real images on generated ones, is in `classify`. All three are read beside the same
number for real images: a judge that fails on real images says nothing about generated ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError
from medisyn.evaluation.bootstrap import Interval, percentile, wilson

# Any pair that puts images and texts into one space: CLIP, BiomedCLIP, or another.
ImageEncoder = Callable[[Sequence[np.ndarray]], np.ndarray]  # (H, W, 3) uint8 images to (N, D)
TextEncoder = Callable[[Sequence[str]], np.ndarray]  # prompts to (P, D)


@dataclass(frozen=True)
class Retrieval:
    """How often an image is closest to its own class prompt. `chance` is that of guessing among the prompts."""

    correct: int
    n: int
    r_at_1: float
    interval: Interval
    chance: float
    mean_cosine: float  # of each image with its own prompt
    per_prompt: dict[str, tuple[int, int]]  # prompt -> (correct, n)


def retrieval(images_ND: np.ndarray, prompts_PD: np.ndarray, own_N: Sequence[str], prompts: Sequence[str]) -> Retrieval:
    """R@1 among the class prompts, by cosine: `own_N` is the prompt of each image, one of `prompts`.

    A tie at the top counts as wrong: an encoder that cannot tell two prompts apart has not found the image's own.
    Only the order of cosines counts, so encoders of different scales can be compared; the cosines themselves cannot.
    Wilson interval. Raises InputError for fewer than 2 prompts, no image, an unknown prompt or features of length 0.
    """
    if len(set(prompts)) != len(prompts) or len(prompts) < 2:
        raise InputError(f"retrieval needs at least 2 prompts, all different, got {len(prompts)}")
    if not len(own_N) or len(images_ND) != len(own_N) or len(prompts_PD) != len(prompts):
        raise InputError(
            f"retrieval needs one feature vector per image and prompt, and an image: got {len(images_ND)} for "
            f"{len(own_N)} images and {len(prompts_PD)} for {len(prompts)} prompts"
        )
    numbers = {prompt: number for number, prompt in enumerate(prompts)}
    unknown = sorted(set(own_N) - set(numbers))
    if unknown:
        raise InputError(f"retrieval: the prompt {unknown[0]!r} of an image is not among the {len(prompts)} prompts")
    cosines_NP = _unit(images_ND, "an image") @ _unit(prompts_PD, "a prompt").T
    own = np.array([numbers[prompt] for prompt in own_N])
    mine = cosines_NP[np.arange(len(own)), own]
    cosines_NP[np.arange(len(own)), own] = -np.inf
    right = mine > cosines_NP.max(axis=1)
    correct = int(right.sum())
    return Retrieval(
        correct=correct,
        n=len(own),
        r_at_1=correct / len(own),
        interval=wilson(correct, len(own)),
        chance=1 / len(prompts),
        mean_cosine=float(mine.mean()),
        per_prompt={p: (int(right[own == k].sum()), int((own == k).sum())) for p, k in numbers.items()},
    )


def _unit(features: np.ndarray, what: str) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not np.isfinite(features).all() or not lengths.all():
        raise InputError(f"retrieval: the features of {what} are NaN, infinite or all 0; a cosine is not defined")
    return features / lengths


@dataclass(frozen=True)
class PromptPair:
    """A measured quantity in images asked to show a finding ("present") and not to ("absent").

    superiority: the chance that an image with the finding measures more than one without, ties one half; 0.5 is none.
    p: one-sided Mann-Whitney. difference: of the medians. absent_in_range: share of the absent arm inside the normal
    range, None where none was given.
    """

    direction: str
    n_present: int
    n_absent: int
    mean_present: float
    mean_absent: float
    sd_present: float
    sd_absent: float
    difference: float
    superiority: float
    superiority_interval: Interval
    p: float
    absent_in_range: float | None
    absent_interval: Interval | None


def prompt_pair(
    present_N: Sequence[float] | np.ndarray,
    absent_N: Sequence[float] | np.ndarray,
    *,
    direction: str = "higher",
    normal_range: tuple[float, float] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> PromptPair:
    """Compare two arms of a prompt pair, such as 32 volumes with and 32 without "pleural effusion" (MedSyn, Table III).

    direction: "higher" where the finding raises the quantity, "lower" where it lowers it; the test is one-sided that
    way, so a model that does the opposite gets a large p. The effect size is the chance of superiority in that
    direction, with a percentile bootstrap of both arms. Raises InputError for fewer than 2 finite values in an arm.
    """
    from scipy.stats import mannwhitneyu

    present, absent = _finite(present_N, "present"), _finite(absent_N, "absent")
    if direction not in ("higher", "lower"):
        raise InputError(f"direction must be higher or lower, got {direction!r}")
    sign = 1.0 if direction == "higher" else -1.0
    p = float(mannwhitneyu(sign * present, sign * absent, alternative="greater").pvalue)
    drawn = _resampled_superiority(sign * present, sign * absent, resamples, seed)
    inside = None
    if normal_range is not None:
        inside = int(((absent >= normal_range[0]) & (absent <= normal_range[1])).sum())
    return PromptPair(
        direction=direction,
        n_present=len(present),
        n_absent=len(absent),
        mean_present=float(present.mean()),
        mean_absent=float(absent.mean()),
        sd_present=float(present.std(ddof=1)),
        sd_absent=float(absent.std(ddof=1)),
        difference=float(np.median(present) - np.median(absent)),
        superiority=_superiority(sign * present, sign * absent),
        superiority_interval=percentile(drawn, level),
        p=p,
        absent_in_range=None if inside is None else inside / len(absent),
        absent_interval=None if inside is None else wilson(inside, len(absent), level),
    )


def _resampled_superiority(above: np.ndarray, below: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(B,) with both arms drawn anew, each on its own."""
    if resamples < 1:
        raise InputError(f"prompt pair: resamples must be at least 1, got {resamples}")
    rng = np.random.default_rng(seed)
    return np.array(
        [_superiority(rng.choice(above, len(above)), rng.choice(below, len(below))) for _ in range(resamples)]
    )


def _superiority(above: np.ndarray, below: np.ndarray) -> float:
    ordered = np.sort(below)
    wins = np.searchsorted(ordered, above, side="left") + np.searchsorted(ordered, above, side="right")
    return float(wins.sum() / (2 * len(above) * len(below)))


def _finite(values: Sequence[float] | np.ndarray, arm: str) -> np.ndarray:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or len(found) < 2 or not np.isfinite(found).all():
        raise InputError(
            f"prompt pair: the {arm} arm needs at least 2 finite values, got {found.size} of which "
            f"{int(np.isfinite(found).sum())} are finite"
        )
    return found
