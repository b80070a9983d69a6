"""The training images of a corpus made searchable, and how close other images come; calibrated on held-out images.

Shapes here: H, W pixels. `medisyn audit` and `medisyn generate --reject-copies-of` judge by this same code.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError
from medisyn.evaluation.copies import GRID, Closeness, Looked, Near, TrainingSet, closeness
from medisyn.evaluation.policy import Calibration, Policy, calibrate, reasons
from medisyn.recipes.corpus_images import LabelledImage, corpus_images, stratum_of
from medisyn.recipes.evaluate_images import at_shape, user_cache
from medisyn.seeding import seed_for
from medisyn.types import Request

if TYPE_CHECKING:
    from medisyn.evaluation.features import Extractor

BATCH = 256  # images whose features are held at a time


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How training images are searched. All of it stands in result.json.

    split: the held-out real images that give the null distribution; at most `held_out` of them are drawn with `seed`.
    neighbours: candidates by cosine of the encoder's features; edge_neighbours: by edges, for each flip.
    """

    split: str = "test"
    extractor: str = "medical-encoder"
    weights: str = ""
    neighbours: int = 10
    edge_neighbours: int = 5
    flips: tuple[str, ...] = ("none", "horizontal")
    held_out: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.edge_neighbours < 1 or self.held_out < 0:
            raise InputError(
                f"neighbours and edge neighbours must be at least 1 and held-out images 0 or more, got "
                f"{self.neighbours}, {self.edge_neighbours} and {self.held_out}"
            )
        if self.split == "train":
            raise InputError("held-out images cannot be the training images: give --split test or validation")


class CopySearch:
    """The training images of a corpus, ready to be compared with."""

    kind = "images"

    def __init__(self, corpus: Any, settings: SearchSettings, cache: Path) -> None:
        from medisyn.evaluation.descriptor import CopyDescriptor
        from medisyn.evaluation.features import load_extractor
        from medisyn.evaluation.search import hash_values

        self.settings, self.cache, self.fingerprint = settings, cache, str(corpus.fingerprint)
        self.extractor = load_extractor(settings.extractor, Path(settings.weights) if settings.weights else None)
        self.descriptor = CopyDescriptor()
        self.train = corpus_images(corpus, "train")
        self.held_out, self.null = _draw(corpus, settings), f"split {settings.split!r}"
        self._strata_of_captions = _strata_of_captions(self.train)
        self.training = TrainingSet(
            self._features(self.extractor, self.train, "training images"),
            self._features(self.descriptor, self.train, "edges of training images"),
            hash_values([row.phash for row in corpus.rows("train")]),
            [image.stratum for image in self.train],
            lambda number, size: at_shape(self.train[number].read(), size),
        )

    def closeness(self, images: Sequence[LabelledImage], what: str) -> list[Closeness]:
        """How close each image comes, with a progress bar on a terminal; features are kept in the cache."""
        from tqdm import tqdm

        found: list[Closeness] = []
        with tqdm(total=len(images), desc=what, unit="image", disable=None) as bar:
            for start in range(0, len(images), BATCH):
                for close in self._closeness(images[start : start + BATCH], cached=True):
                    found.append(close)
                    bar.update()
        return found

    def of_picture(self, image_HWC: np.ndarray, stratum: str) -> Closeness:
        """One image alone, so that the answer does not depend on what else is made; nothing is cached."""
        sha256 = hashlib.sha256(image_HWC.tobytes()).hexdigest()
        image = LabelledImage("picture", sha256, "", "", stratum, "picture", lambda: image_HWC)
        return next(iter(self._closeness([image], cached=False)))

    def pair(self, image: LabelledImage, near: Near) -> tuple[np.ndarray, np.ndarray]:
        """Both images of a pair, the training image mirrored as `near` says."""
        from medisyn.evaluation.patches import flipped

        return image.read(), np.ascontiguousarray(flipped(self.train[near.training].read(), near.flip))

    def smallest_side(self, images: Sequence[LabelledImage]) -> int:
        return int(min(images[0].read().shape[:2]))

    def stratum(self, request: Request) -> str:
        """From the columns specialty and image_type of the request, else from training images of the same caption."""
        if request.metadata.get("image_type"):
            return stratum_of(request.metadata)
        return self._strata_of_captions.get(request.prompt, "")

    def calibration(self, policy: Policy, held_out: Sequence[Closeness] | None = None) -> Calibration:
        """From the closeness of `self.held_out`, which is read from the cache where it was computed before."""
        known = self.held_out_closeness() if held_out is None else held_out
        strata, patients = [image.stratum for image in self.held_out], [image.patient for image in self.held_out]
        return calibrate(known, strata, policy, patients)

    def held_out_closeness(self) -> list[Closeness]:
        """Of every held-out image; kept in the cache, under a digest of all that it depends on."""
        meaning = [self.fingerprint, asdict(self.settings), self.extractor.id, self.descriptor.id]
        path = self.cache / "audits" / f"{runs.digest([*meaning, [image.sha256 for image in self.held_out]])}.json"
        if path.exists():
            return self._known(path)
        found = self.closeness(self.held_out, "held-out images")
        lines = [json.dumps(asdict(close)) + "\n" for close in found]
        runs.write_text(path, "".join(lines))
        return found

    def _known(self, path: Path) -> list[Closeness]:
        try:
            known = [closeness_from_dict(record) for record in runs.read_jsonl(path)]
        except (KeyError, TypeError):
            known = []
        if len(known) != len(self.held_out):
            raise InputError(f"the held-out images in the cache are damaged. Delete audits/{path.name} in it")
        return known

    def _closeness(self, images: Sequence[LabelledImage], *, cached: bool) -> Any:
        flips = self.settings.flips
        turned = {flip: [_turned(image, flip) for image in images] for flip in flips}
        looked = Looked(
            features_QD=self._features(self.extractor, images, "", cached=cached),
            descriptors={flip: self._features(self.descriptor, turned[flip], "", cached=False) for flip in flips},
            hashes={flip: hashes_of([image.read for image in turned[flip]]) for flip in flips},
            strata=[image.stratum for image in images],
            read=lambda query: on_grid(images[query].read(), images[query].key),
        )
        settings = self.settings
        return closeness(
            looked, self.training, neighbours=settings.neighbours, edge_neighbours=settings.edge_neighbours
        )

    def _features(
        self, extractor: Extractor, images: Sequence[LabelledImage], what: str, *, cached: bool = True
    ) -> np.ndarray:
        from tqdm import tqdm

        from medisyn.evaluation.features.cache import FeatureCache, extract

        store = FeatureCache(self.cache / "features", extractor) if cached else None
        with tqdm(total=len(images), desc=what, unit="image", disable=None if what else True) as bar:
            return extract(extractor, [(image.sha256, image.read) for image in images], store, on_batch=bar.update)


def open_search(corpus: Path | str, settings: SearchSettings, cache: Path | None = None) -> CopySearch:
    from medisyn.corpus.loader import Corpus

    return CopySearch(Corpus(corpus), settings, cache or user_cache())


def on_grid(image_HWC: np.ndarray, key: str) -> np.ndarray:
    """The image at the next smaller size whose sides divide by the grid; InputError where there is none."""
    height, width = (side // GRID * GRID for side in image_HWC.shape[:2])
    if not height or not width:
        raise InputError(f"{key}: {image_HWC.shape[0]} x {image_HWC.shape[1]} pixels are fewer than {GRID} on a side")
    return at_shape(image_HWC, (height, width))


def closeness_from_dict(record: Any) -> Closeness:
    """Inverse of dataclasses.asdict."""
    near = {name: Near(**record[name]) for name in ("distance", "similarity", "bits")}
    return Closeness(**near, paper=Near(**record["paper"]) if record["paper"] else None, cosine=record["cosine"])


def _draw(corpus: Any, settings: SearchSettings) -> list[LabelledImage]:
    """The held-out images, in the corpus's order; none where the corpus has none."""
    if not corpus.rows(settings.split):
        return []
    images = corpus_images(corpus, settings.split)
    order = np.random.default_rng(seed_for(settings.seed, "held-out")).permutation(len(images))[: settings.held_out]
    return [images[number] for number in sorted(order.tolist())]


def _strata_of_captions(images: Sequence[LabelledImage]) -> dict[str, str]:
    strata: dict[str, set[str]] = {}
    for image in images:
        strata.setdefault(image.caption, set()).add(image.stratum)
    return {caption: next(iter(found)) for caption, found in strata.items() if len(found) == 1}


def _turned(image: LabelledImage, flip: str) -> LabelledImage:
    from medisyn.evaluation.patches import flipped

    return replace(image, read=lambda: np.ascontiguousarray(flipped(image.read(), flip)))


def hashes_of(views: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
    """Perceptual hashes of (H, W, 3) uint8 images, (N,) uint64; each is read once."""
    from PIL import Image

    from medisyn.corpus.duplicates import phash
    from medisyn.evaluation.search import hash_values

    return hash_values([phash(Image.fromarray(view())) for view in views])


@dataclass(frozen=True)
class RejectCopies:
    """What `generate` calls for each batch: why each picture is thrown away, or None. Picklable; opens when first used.

    Each picture is judged alone, so the answer is the same in any batch and any process.
    """

    corpus: str
    settings: SearchSettings
    policy: Policy
    cache: str

    def __call__(self, requests: Sequence[Request], pictures: Sequence[np.ndarray]) -> list[str | None]:
        search, calibration = _opened(self)
        verdicts: list[str | None] = []
        for request, picture in zip(requests, pictures, strict=True):
            stratum, image = (
                search.stratum(request),
                np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture,
            )
            found = reasons(search.of_picture(image, stratum), stratum, self.policy, calibration)
            verdicts.append("; ".join(found) or None)
        return verdicts

    def describe(self) -> dict[str, Any]:
        """What was rejected against, for run.json."""
        search, _ = _opened(self)
        return {
            "corpus": search.fingerprint,
            "extractor": search.extractor.id,
            "settings": {name: value for name, value in asdict(self.settings).items() if name != "weights"},
            "policy": asdict(self.policy),
        }


@functools.lru_cache(maxsize=1)
def _opened(reject: RejectCopies) -> tuple[CopySearch, Calibration]:
    search = open_search(reject.corpus, reject.settings, Path(reject.cache))
    return search, search.calibration(reject.policy)
