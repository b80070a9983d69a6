"""How close each image of a set comes to the training set, by three measures that fail in different places.

Shapes here: Q images that are looked at, N training images, D features, F flips.
Candidates of an image: its k nearest by cosine of the encoder's features, its nearest by the edges of each flip (both
within its stratum), and the nearest perceptual hash of each flip in the whole training set. Every candidate is compared
in pixels by patch distance and by edge similarity, in every flip.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medisyn.errors import InputError
from medisyn.evaluation.descriptor import Edges, edge_similarity, edges
from medisyn.evaluation.patches import FLIPS, flipped, patch_distance
from medisyn.evaluation.search import nearest_hashes, nearest_neighbours

GRID = 4
CACHED_EDGES = 2048
READ_BYTES = 256 * 2**20  # of training images held as pixels

Size = tuple[int, int]


@dataclass(frozen=True)
class Near:
    """The training image that one measure finds closest, and in which flip. `value`: distance, similarity or bits."""

    training: int
    value: float
    flip: str


@dataclass(frozen=True)
class Closeness:
    """How close one image comes to the training set.

    `paper` is MediSyn v2's own figure: the patch distance to the single nearest neighbour by cosine in the same
    stratum, not flipped, with that cosine; None where no training image shares its stratum.
    """

    distance: Near  # smallest patch distance over all candidates and flips
    similarity: Near  # largest edge similarity over the same
    bits: Near  # fewest differing bits of the perceptual hash, over the whole training set
    paper: Near | None
    cosine: float | None


@dataclass(frozen=True)
class Looked:
    """The images that are looked at: features (Q, D), and for each flip descriptors (Q, 512) and hashes (Q,)."""

    features_QD: np.ndarray
    descriptors: Mapping[str, np.ndarray]
    hashes: Mapping[str, np.ndarray]
    strata: Sequence[str]
    read: Callable[[int], np.ndarray]  # (H, W, 3) uint8, sides that divide by the grid


class HeldPictures:
    """Training pictures read at the size they are asked for; the latest ones and their edges are kept."""

    def __init__(self, read: Callable[[int, Size], np.ndarray], cached_edges: int = CACHED_EDGES) -> None:
        self._read = read
        self._hold((0, 0))
        self._edges = functools.lru_cache(maxsize=cached_edges)(lambda number, size: edges(self.pixels(number, size)))

    def _hold(self, size: Size) -> None:
        count = max(16, READ_BYTES // max(1, size[0] * size[1] * 3))
        self._size, self._pixels = size, functools.lru_cache(maxsize=count)(self._read)

    def pixels(self, number: int, size: Size) -> np.ndarray:
        if size != self._size:
            self._hold(size)
        return self._pixels(number, size)

    def edges(self, number: int, size: Size) -> Edges:
        return self._edges(number, size)


class TrainingSet(HeldPictures):
    """The training images, as features, descriptors, hashes and a reader of pixels at a given size."""

    def __init__(
        self,
        features_ND: np.ndarray,
        descriptors_ND: np.ndarray,
        hashes_N: np.ndarray,
        strata: Sequence[str],
        read: Callable[[int, Size], np.ndarray],
    ) -> None:
        if len({len(features_ND), len(descriptors_ND), len(hashes_N), len(strata)}) != 1 or len(strata) == 0:
            raise InputError(
                f"a training set needs as many features, descriptors, hashes and strata, at least 1 of each, got "
                f"{len(features_ND)}, {len(descriptors_ND)}, {len(hashes_N)} and {len(strata)}"
            )
        self.features_ND, self.descriptors_ND, self.hashes_N = features_ND, descriptors_ND, hashes_N
        super().__init__(read)
        self.strata = list(strata)
        self._known = frozenset(self.strata)

    def __len__(self) -> int:
        return len(self.strata)

    def has(self, stratum: str) -> bool:
        return stratum in self._known


def closeness(
    looked: Looked, training: TrainingSet, *, neighbours: int = 10, edge_neighbours: int = 5
) -> Iterable[Closeness]:
    """The closeness of every image, in order. An image of a stratum that the training set lacks is compared with all.

    The flips are those of `looked.hashes`; "none" must be among them. Raises InputError for unknown flips.
    """
    flips = list(looked.hashes)
    if "none" not in flips or set(flips) - set(FLIPS) or set(looked.descriptors) != set(flips):
        raise InputError(f"flips must hold 'none' and be among {', '.join(FLIPS)}, got {', '.join(flips)}")
    strata = [stratum if training.has(stratum) else "" for stratum in looked.strata]
    near = _within(looked.features_QD, training.features_ND, neighbours, strata, training)
    by_edges = {
        flip: _within(looked.descriptors[flip], training.descriptors_ND, edge_neighbours, strata, training)[0]
        for flip in flips
    }
    by_hash = {flip: nearest_hashes(looked.hashes[flip], training.hashes_N) for flip in flips}
    for query in range(len(strata)):
        candidates = {(int(n), flip) for n in near[0][query] for flip in flips}
        candidates |= {(int(n), flip) for flip in flips for n in by_edges[flip][query]}
        candidates |= {(int(by_hash[flip].index_Q[query]), flip) for flip in flips}
        bits = [Near(int(by_hash[flip].index_Q[query]), float(by_hash[flip].bits_Q[query]), flip) for flip in flips]
        first = int(near[0][query, 0]) if strata[query] else None
        cosine = float(near[1][query, 0]) if strata[query] else None
        ordered = sorted((number, flip) for number, flip in candidates if number >= 0)
        yield _compare(looked.read(query), ordered, min(bits, key=lambda b: b.value), first, cosine, training)


def _within(
    queries_QD: np.ndarray, training_ND: np.ndarray, k: int, strata: Sequence[str], training: TrainingSet
) -> tuple[np.ndarray, np.ndarray]:
    """Index and cosine (Q, k) within the stratum, or among all where it is ""."""
    found = nearest_neighbours(queries_QD, training_ND, k, query_strata=strata, training_strata=training.strata)
    index, similarity = found.index_QK, found.similarity_QK
    unknown = np.flatnonzero(np.asarray(strata) == "")
    if len(unknown):
        everywhere = nearest_neighbours(queries_QD[unknown], training_ND, k)
        index[unknown], similarity[unknown] = everywhere.index_QK, everywhere.similarity_QK
    return index, similarity


def _compare(
    image_HWC: np.ndarray,
    candidates: Sequence[tuple[int, str]],
    bits: Near,
    first: int | None,
    cosine: float | None,
    training: TrainingSet,
) -> Closeness:
    size = image_HWC.shape[:2]
    turned = {flip: np.ascontiguousarray(flipped(image_HWC, flip)) for flip in {flip for _, flip in candidates}}
    lines = {flip: edges(image) for flip, image in turned.items()}
    distances, similarities = [], []
    for number, flip in candidates:
        distances.append(Near(number, patch_distance(turned[flip], training.pixels(number, size), GRID), flip))
        similarities.append(Near(number, edge_similarity(lines[flip], training.edges(number, size)), flip))
    paper = next((near for near in distances if (near.training, near.flip) == (first, "none")), None)
    return Closeness(
        distance=min(distances, key=lambda near: near.value),
        similarity=max(similarities, key=lambda near: near.value),
        bits=bits,
        paper=paper,
        cosine=cosine,
    )
