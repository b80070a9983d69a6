"""The training volumes or clips of a folder made searchable, and how close others come; `copy_search` for images.

Shapes here: T pictures (slices or frames), H, W pixels, C channels.
Of every volume or clip some pictures are taken at even distances, small and in grey levels, and kept in the cache:
volumes are read once.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn import runs
from medisyn.errors import ConfigError, InputError
from medisyn.evaluation.copies import Closeness, Near
from medisyn.evaluation.policy import Calibration, Policy, calibrate
from medisyn.evaluation.stacks import Stack, TrainingStacks, closest_pictures, evenly, stack_closeness
from medisyn.recipes.copy_search import SearchSettings, hashes_of, on_grid
from medisyn.recipes.corpus_images import LabelledImage, stratum_of
from medisyn.recipes.evaluate_images import at_shape, user_cache
from medisyn.recipes.evaluate_sets import files_fingerprint, listed, listed_files
from medisyn.seeding import seed_for

if TYPE_CHECKING:
    from medisyn.evaluation.features import Extractor

DENSER = 3  # pictures of a training volume for each picture of one that is looked at
SIDE = 256  # pixels: larger pictures are brought to this longest side
FLAT = 2.0  # grey levels: pictures with a smaller standard deviation are not looked at
LEAVE_ONE_OUT, OF_FOLDER, OF_SPLIT = "training, each against other patients", "a folder of their own", "split"


@dataclass(frozen=True, kw_only=True)
class StackSettings(SearchSettings):
    """`SearchSettings`, and how volumes and clips become pictures.

    pictures: slices or frames looked at; share: of them that must be as close as a measure says.
    window: HU that become black and white; clips have none.
    """

    pictures: int = 12
    share: float = 0.25
    window: tuple[float, float] = (-1024.0, 600.0)  # what MedSyn keeps of a CT

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pictures < 1 or not 0 < self.share <= 1 or self.window[0] >= self.window[1]:
            raise ConfigError(
                f"pictures must be at least 1, share above 0 and at most 1, and the window from low to high, got "
                f"{self.pictures}, {self.share} and {self.window[0]:g} to {self.window[1]:g}"
            )


class StackSearch:
    """The training volumes or clips, ready to be compared with. It has what `CopySearch` has."""

    def __init__(self, kind: str, against: Path, held_out: Path | None, settings: StackSettings, cache: Path) -> None:
        from medisyn.evaluation.descriptor import CopyDescriptor
        from medisyn.evaluation.features import load_extractor
        from medisyn.evaluation.features.cache import FeatureCache

        self.kind, self.settings, self.cache = kind, settings, cache
        self.extractor = load_extractor(settings.extractor, Path(settings.weights) if settings.weights else None)
        self.descriptor = CopyDescriptor()
        self._stores = {part.id: FeatureCache(cache / "features", part) for part in (self.extractor, self.descriptor)}
        self.train, self.held_out, self.null = _parts(kind, against, held_out, settings)
        self.fingerprint = files_fingerprint(self.train)
        self._pictures = [self.pictures(item, DENSER * settings.pictures) for item in self.train]
        flat = [(number, t) for number, part in enumerate(self._pictures) for t in range(len(part))]
        views = [functools.partial(self._picture, number, t) for number, t in flat]
        self.training = TrainingStacks(
            self._features(self.extractor, views, f"training {kind}"),
            self._features(self.descriptor, views, f"edges of training {kind}"),
            hashes_of(views),
            [len(part) for part in self._pictures],
            [item.stratum for item in self.train],
            [item.patient for item in self.train],
            lambda number, size: at_shape(self._picture(*flat[number]), size),
        )

    def closeness(self, items: Sequence[LabelledImage], what: str) -> list[Closeness]:
        """How close each volume or clip comes, with a progress bar on a terminal."""
        from tqdm import tqdm

        shown = tqdm(items, desc=what, unit=self.kind[:-1], disable=None)
        return [self._closeness(self.stack(item)) for item in shown]

    def held_out_closeness(self) -> list[Closeness]:
        """Of every held-out one; training ones that stand for them are compared with other patients'."""
        alone = self.null == LEAVE_ONE_OUT
        return [
            self._closeness(replace(self.stack(item), patient=item.patient if alone else "")) for item in self.held_out
        ]

    def calibration(self, policy: Policy, held_out: Sequence[Closeness] | None = None) -> Calibration:
        known = self.held_out_closeness() if held_out is None else held_out
        return calibrate(known, [i.stratum for i in self.held_out], policy, [i.patient for i in self.held_out])

    def pair(self, item: LabelledImage, near: Near) -> tuple[np.ndarray, np.ndarray]:
        """The closest picture of `item` and of the training volume or clip of `near`, mirrored as that is."""
        from medisyn.evaluation.patches import flipped

        looked = self.stack(item)
        ours, theirs = closest_pictures(looked, self.training, near)
        size = looked.pictures[ours].shape[:2]
        return looked.pictures[ours], np.ascontiguousarray(flipped(self.training.pixels(theirs, size), near.flip))

    def smallest_side(self, items: Sequence[LabelledImage]) -> int:
        return int(min(self.stack(items[0]).pictures[0].shape[:2]))

    def stack(self, item: LabelledImage) -> Stack:
        """What is looked at of one volume or clip: pictures that are not flat. InputError where all are."""
        pictures = [_rgb(picture) for picture in self.pictures(item, self.settings.pictures)]
        kept = [on_grid(picture, item.key) for picture in pictures if picture.std() >= FLAT]
        if not kept:
            raise InputError(
                f"{item.key}: every picture of it is flat (all of one grey). Leave this file out of the set"
            )
        turned = {flip: [_turned(picture, flip) for picture in kept] for flip in self.settings.flips}
        return Stack(
            features_TD=self._features(self.extractor, turned["none"], ""),
            descriptors={flip: self._features(self.descriptor, views, "") for flip, views in turned.items()},
            hashes={flip: hashes_of(views) for flip, views in turned.items()},
            pictures=kept,
            stratum=item.stratum,
        )

    def pictures(self, item: LabelledImage, count: int) -> np.ndarray:
        """(T, H, W, C) uint8, at most `count` pictures; a memory map of the cache, which is filled where it must."""
        window = self.settings.window if self.kind == "volumes" else None
        path = self.cache / "pictures" / f"{runs.digest([item.sha256, self.kind, window, count, SIDE])}.npy"
        if not path.exists():
            whole = item.read()
            chosen = whole[evenly(len(whole), count)]
            shown = windowed(chosen, *window)[..., None] if window is not None else chosen
            path.parent.mkdir(parents=True, exist_ok=True)
            with runs.atomic_file(path) as stream:
                np.save(stream, np.stack([_small(picture) for picture in shown]))
        try:
            return np.load(path, mmap_mode="r")
        except (ValueError, EOFError):
            raise InputError(
                f"{item.key}: its pictures in the cache are damaged. Delete pictures/{path.name} in it"
            ) from None

    def _picture(self, number: int, t: int) -> np.ndarray:
        return _rgb(self._pictures[number][t])

    def _closeness(self, looked: Stack) -> Closeness:
        settings = self.settings
        return stack_closeness(
            looked,
            self.training,
            neighbours=settings.neighbours,
            edge_neighbours=settings.edge_neighbours,
            share=settings.share,
        )

    def _features(self, extractor: Extractor, views: Sequence[Callable[[], np.ndarray]], what: str) -> np.ndarray:
        from tqdm import tqdm

        from medisyn.evaluation.features.cache import extract

        store = self._stores[extractor.id]
        readable = [(hashlib.sha256(view().tobytes()).hexdigest(), view) for view in views]
        with tqdm(total=len(views), desc=what, unit="picture", disable=None if what else True) as bar:
            return extract(extractor, readable, store, on_batch=bar.update)


def open_stacks(
    kind: str, against: Path, held_out: Path | None, settings: SearchSettings, cache: Path | None
) -> StackSearch:
    """`kind`: "volumes" or "clips". Settings without the fields of StackSettings take its defaults."""
    whole = settings if isinstance(settings, StackSettings) else StackSettings(**asdict(settings))
    if kind == "clips" and whole.window != StackSettings().window:
        raise ConfigError("window: only volumes in HU have one, these are clips")
    return StackSearch(kind, against, held_out, whole, cache or user_cache())


def without_stacks(settings: SearchSettings) -> SearchSettings:
    """The settings that images have; ConfigError where one that they lack was changed."""
    own = {field.name for field in fields(SearchSettings)}
    if isinstance(settings, StackSettings):
        changed = [f.name for f in fields(settings) if f.name not in own and getattr(settings, f.name) != f.default]
        if changed:
            raise ConfigError(f"{', '.join(changed)}: only clips and volumes have this, these are images")
    return SearchSettings(**{name: getattr(settings, name) for name in own})


def stacks_of(kind: str, folder: Path) -> list[LabelledImage]:
    """The volumes or clips of a folder as `medisyn evaluate` reads them, with the stratum of metadata.jsonl."""
    from medisyn.recipes import evaluate_clips, evaluate_volumes

    if not folder.is_dir():
        raise InputError(f"there is no folder {folder.name}/ of {kind}")
    if kind == "volumes":
        items = listed(folder, evaluate_volumes.ENDINGS, evaluate_volumes.read_hu)
    else:
        items = evaluate_clips.clips_of(folder)
    records = _records(folder)
    return [replace(item, stratum=stratum_of(records.get(item.key, {}))) for item in items]


def stack_files(kind: str, folder: Path) -> list[str]:
    """The files of `stacks_of`, in its order, as their places in the folder."""
    from medisyn.recipes import evaluate_clips, evaluate_volumes

    if kind == "volumes":
        return listed_files(folder, evaluate_volumes.ENDINGS)
    chosen = set(evaluate_clips.clip_places(folder))
    return [place for place in listed_files(folder, evaluate_clips.ENDINGS) if place in chosen]


def read_window(text: str) -> tuple[float, float]:
    """ "-1024,600" as two numbers; ConfigError for anything else."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"window {text!r} is not two numbers of HU, such as -1024,600") from None
    return low, high


def windowed(hu: np.ndarray, low: float, high: float) -> np.ndarray:
    """HU as uint8: `low` and below is 0, `high` and above is 255."""
    return np.rint((np.clip(hu, low, high) - low) * (255.0 / (high - low))).astype(np.uint8)


def _records(folder: Path) -> dict[str, dict[str, Any]]:
    """The lines of metadata.jsonl by the key that `listed` gives the file."""
    records = runs.read_jsonl(folder / "metadata.jsonl")
    return {str(record.get("key") or record.get("file_name")): record for record in records}


def _parts(
    kind: str, against: Path, held_out: Path | None, settings: StackSettings
) -> tuple[list[LabelledImage], list[LabelledImage], str]:
    """Training, held-out and where the latter come from.

    A folder of held-out ones comes first; else the column `split` of metadata.jsonl; else every training one stands for
    a held-out one, compared with those of other patients.
    """
    items, records = stacks_of(kind, against), _records(against)
    splits = {item.key: str(records.get(item.key, {}).get("split") or "train") for item in items}
    train = [item for item in items if splits[item.key] == "train"]
    if not train:
        raise InputError(f"{against.name}/ has no training {kind}: no line of metadata.jsonl has the split 'train'")
    if held_out is not None:
        return train, _draw(_unseen(stacks_of(kind, held_out), train, kind), settings), OF_FOLDER
    others = [item for item in items if splits[item.key] == settings.split]
    if others:
        return train, _draw(_unseen(others, train, kind), settings), f"{OF_SPLIT} {settings.split!r}"
    patients: dict[str, set[str]] = {}
    for item in train:
        patients.setdefault(item.stratum, set()).add(item.patient)
    return train, _draw([item for item in train if len(patients[item.stratum]) > 1], settings), LEAVE_ONE_OUT


def _unseen(held_out: list[LabelledImage], train: list[LabelledImage], kind: str) -> list[LabelledImage]:
    """InputError where a file, or a patient that metadata.jsonl names, is on both sides."""
    patients = {item.patient for item in train if item.patient != item.key}
    files = {item.sha256 for item in train}
    both = sum(item.sha256 in files or item.patient in patients for item in held_out)
    if both:
        raise InputError(
            f"{both} of {len(held_out)} held-out {kind} are training {kind}, or of patients with training {kind}: they "
            f"cannot say how close new patients come. Take others"
        )
    return held_out


def _draw(items: list[LabelledImage], settings: StackSettings) -> list[LabelledImage]:
    order = np.random.default_rng(seed_for(settings.seed, "held-out")).permutation(len(items))[: settings.held_out]
    return [items[number] for number in sorted(order.tolist())]


def _small(picture_HWC: np.ndarray) -> np.ndarray:
    """The picture at SIDE pixels on its longest side, by area averaging, where it is larger."""
    from PIL import Image

    scale = SIDE / max(picture_HWC.shape[:2])
    if scale >= 1:
        return picture_HWC
    height, width = (max(1, round(side * scale)) for side in picture_HWC.shape[:2])
    image = Image.fromarray(picture_HWC[..., 0] if picture_HWC.shape[2] == 1 else picture_HWC)
    return np.asarray(image.resize((width, height), Image.Resampling.BOX)).reshape(height, width, -1)


def _rgb(picture_HWC: np.ndarray) -> np.ndarray:
    return np.repeat(picture_HWC, 3, axis=2) if picture_HWC.shape[2] == 1 else np.array(picture_HWC)


def _turned(picture_HWC: np.ndarray, flip: str) -> Callable[[], np.ndarray]:
    from medisyn.evaluation.patches import flipped

    return lambda: np.ascontiguousarray(flipped(picture_HWC, flip))
