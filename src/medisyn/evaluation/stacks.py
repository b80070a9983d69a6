"""How close a volume or clip comes to the training ones: the measures of `copies`, slice by slice or frame by frame.

Shapes here: T pictures (slices or frames) of one volume or clip, N pictures of all training ones, S training volumes or
clips, D features.
MediSyn v2 did this for single images only. Here each picture is compared with the pictures of one training volume or
clip at a time, and what counts is how close the closest share of its pictures comes: a quarter of copied frames is
found, and a few slices that look alike in everybody are not enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError
from medisyn.evaluation.copies import GRID, Closeness, HeldPictures, Near, Size
from medisyn.evaluation.descriptor import edge_similarity, edges
from medisyn.evaluation.frechet import check_features
from medisyn.evaluation.patches import FLIPS, flipped, patch_distance

CACHED_EDGES = 4096


@dataclass(frozen=True)
class Stack:
    """One volume or clip that is looked at. `patient`: training ones of the same are left out, "" leaves out none."""

    features_TD: np.ndarray
    descriptors: Mapping[str, np.ndarray]  # per flip (T, 512)
    hashes: Mapping[str, np.ndarray]  # per flip (T,) uint64
    pictures: Sequence[np.ndarray]  # (H, W, 3) uint8, sides that divide by the grid
    stratum: str
    patient: str = ""


class TrainingStacks(HeldPictures):
    """The pictures of all training volumes or clips, one after the other; `counts_S` says how many each has."""

    def __init__(
        self,
        features_ND: np.ndarray,
        descriptors_ND: np.ndarray,
        hashes_N: np.ndarray,
        counts_S: Sequence[int],
        strata_S: Sequence[str],
        patients_S: Sequence[str],
        read: Callable[[int, Size], np.ndarray],
    ) -> None:
        if (
            not len(features_ND) == len(descriptors_ND) == len(hashes_N) == sum(counts_S)
            or min(counts_S, default=0) < 1
        ):
            raise InputError(
                f"training volumes or clips need features, a descriptor and a hash of each picture, and a picture "
                f"each, got {len(features_ND)}, {len(descriptors_ND)} and {len(hashes_N)} for {sum(counts_S)} pictures"
            )
        self.features_ND = _unit(check_features(features_ND, "training pictures", at_least=1))
        self.descriptors_ND, self.hashes_N = _unit(descriptors_ND), hashes_N
        self.starts_S = np.concatenate([[0], np.cumsum(counts_S)[:-1]]).astype(np.int64)
        self.counts_S = np.asarray(counts_S)
        self.strata_S, self.patients_S = np.asarray(strata_S), np.asarray(patients_S)
        super().__init__(read, CACHED_EDGES)

    def best(self, alike_TN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each picture and training volume the largest value, (T, S), and the training picture that has it."""
        parts = [slice(start, start + count) for start, count in zip(self.starts_S, self.counts_S, strict=True)]
        where_TS = np.stack([alike_TN[:, part].argmax(axis=1) + part.start for part in parts], axis=1)
        return np.take_along_axis(alike_TN, where_TS, axis=1), where_TS


def evenly(length: int, count: int) -> list[int]:
    """`count` places in the middle of equal parts of 0..length-1, all of them where there are fewer.

    Three times as many hold the same places among others: an exact copy meets its own pictures.
    """
    return sorted({(2 * number + 1) * length // (2 * count) for number in range(count)})


def needed(share: float, num_pictures: int) -> int:
    """How many of the closest pictures count."""
    return max(1, math.ceil(share * num_pictures))


def stack_closeness(
    looked: Stack, training: TrainingStacks, *, neighbours: int = 10, edge_neighbours: int = 5, share: float = 0.25
) -> Closeness:
    """How close one volume or clip comes. Distance, similarity and bits are those of the last of its closest pictures.

    With k = ceil(share T): the training volumes nearest in features (mean cosine of the k closest pictures), nearest by
    edges (the same, each flip) and by perceptual hash are compared in pixels. `paper` is the nearest by features alone,
    not flipped. Each picture meets the picture of that volume that is nearest in features, or by edges.

    An unknown stratum is compared with all, and has no `paper`. Raises InputError for unknown flips, a share outside
    0..1 and where no training volume of another patient is left.
    """
    flips = list(looked.hashes)
    if "none" not in flips or set(flips) - set(FLIPS) or set(looked.descriptors) != set(flips):
        raise InputError(f"flips must hold 'none' and be among {', '.join(FLIPS)}, got {', '.join(flips)}")
    if not 0 < share <= 1:
        raise InputError(f"share must lie above 0 and at most at 1, got {share}")
    known = looked.stratum in training.strata_S
    allowed_S = (training.strata_S == looked.stratum) | (not known)
    if looked.patient:
        allowed_S &= training.patients_S != looked.patient
    if not allowed_S.any():
        raise InputError("no training volume or clip of another patient is left to compare with")
    k = needed(share, len(looked.pictures))
    features = _unit(check_features(looked.features_TD, "pictures", at_least=1))
    cosine_TS, by_feature_TS = training.best(features @ training.features_ND.T)
    cosine_S = np.where(allowed_S, _mean_of_largest(cosine_TS, k), -np.inf)
    near = _first(cosine_S, neighbours)
    candidates = {(int(number), flip) for number in near for flip in flips}
    partners, bits = {}, []
    for flip in flips:
        alike_TS, partners[flip] = training.best(_unit(looked.descriptors[flip]) @ training.descriptors_ND.T)
        alike_S = np.where(allowed_S, _mean_of_largest(alike_TS, k), -np.inf)
        candidates |= {(int(number), flip) for number in _first(alike_S, edge_neighbours)}
        different_TN = np.bitwise_count(looked.hashes[flip][:, None] ^ training.hashes_N[None]).astype(np.int64)
        bits_S = np.where(allowed_S, np.sort(-training.best(-different_TN)[0], axis=0)[k - 1], 65)
        bits.append(Near(int(bits_S.argmin()), float(bits_S.min()), flip))
        candidates.add((bits[-1].training, flip))
    first = (int(near[0]), "none")
    distances, similarities = {}, {}
    for number, flip in sorted(candidates):
        pairs = [{int(by_feature_TS[t, number]), int(partners[flip][t, number])} for t in range(len(looked.pictures))]
        distances[number, flip], similarities[number, flip] = _compare(looked.pictures, flip, pairs, training, k)
    closest, alike = min(distances, key=distances.__getitem__), max(similarities, key=similarities.__getitem__)
    return Closeness(
        distance=Near(closest[0], distances[closest], closest[1]),
        similarity=Near(alike[0], similarities[alike], alike[1]),
        bits=min(bits, key=lambda found: found.value),
        paper=Near(first[0], distances[first], "none") if known else None,
        cosine=float(cosine_S[first[0]]) if known else None,
    )


def closest_pictures(looked: Stack, training: TrainingStacks, near: Near) -> tuple[int, int]:
    """The picture of `looked` and the training picture that come closest in the volume and flip of `near`."""
    part = slice(training.starts_S[near.training], training.starts_S[near.training] + training.counts_S[near.training])
    alike = _unit(looked.descriptors[near.flip]) @ training.descriptors_ND[part].T
    found = []
    for t, picture in enumerate(looked.pictures):
        number = int(part.start + alike[t].argmax())
        turned = flipped(picture, near.flip)
        found.append((patch_distance(turned, training.pixels(number, turned.shape[:2]), GRID), t, number))
    return min(found)[1:]


def _compare(
    pictures: Sequence[np.ndarray], flip: str, partners: Sequence[set[int]], training: TrainingStacks, k: int
) -> tuple[float, float]:
    """The k-th smallest patch distance and the k-th largest edge similarity of the pictures with their partners."""
    distances, similarities = [], []
    for picture, numbers in zip(pictures, partners, strict=True):
        turned = np.ascontiguousarray(flipped(picture, flip))
        size, lines = turned.shape[:2], edges(turned)
        distances.append(min(patch_distance(turned, training.pixels(n, size), GRID) for n in numbers))
        similarities.append(max(edge_similarity(lines, training.edges(n, size)) for n in numbers))
    return float(np.sort(distances)[k - 1]), float(np.sort(similarities)[-k])


def _mean_of_largest(alike_TS: np.ndarray, k: int) -> np.ndarray:
    return np.sort(alike_TS, axis=0)[-k:].mean(axis=0)


def _first(values_S: np.ndarray, count: int) -> np.ndarray:
    """The numbers of the largest finite values, best first; of equal ones the first."""
    order = np.argsort(-values_S, kind="stable")[:count]
    return order[np.isfinite(values_S[order])]


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
