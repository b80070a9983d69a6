"""The images of a utility experiment: real ones with splits and patients, synthetic ones, classes, and leakage.

Shapes here: N images, K classes, H, W pixels, D slices.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError, RangeError, ReadError
from medisyn.recipes.corpus_images import LabelledImage, corpus_images, generated_images, labels_of, stratum_of
from medisyn.recipes.results import made_by
from medisyn.recipes.utility_designs import UtilitySettings

HU_LOW, HU_HIGH = -1024.0, 600.0  # MedSyn's window
VOLUME_FILES = (".npy", ".nii", ".nii.gz")
UNKNOWN_PHASH = ("", "0" * 16)


@dataclass(frozen=True)
class Case:
    """One image with what the experiment asks of it beside its pixels. `phash` is "" where it is not known."""

    image: LabelledImage
    labels: tuple[str, ...]
    split: str
    phash: str = ""


@dataclass(frozen=True)
class Cases:
    """The real cases of all splits, the synthetic ones, and whether they are volumes."""

    real: tuple[Case, ...]
    synthetic: tuple[Case, ...]
    volumes: bool
    fingerprint: str  # of the real data
    model: dict[str, str] | None = None  # id and digest of what made the synthetic ones; None where not recorded

    def split(self, name: str) -> list[Case]:
        return [case for case in self.real if case.split == name]


def load_cases(real: Path, synthetic: Path) -> Cases:
    """A corpus (or a folder of volumes with metadata.jsonl) and a folder that was generated for it."""
    if not (real / "index.parquet").exists():
        volumes = volume_cases(real, "")
        fingerprint = runs.digest(sorted((case.image.key, case.image.sha256, case.split) for case in volumes))
        made = [replace(case, split="synthetic") for case in volume_cases(synthetic, "synthetic")]
        return Cases(tuple(volumes), tuple(made), True, fingerprint, made_by(synthetic))
    from medisyn.corpus.loader import Corpus

    corpus = Corpus(real)
    cases = _corpus_cases(corpus)
    if (synthetic / "index.parquet").exists():
        images = corpus_images(Corpus(synthetic), None)
    else:
        images = generated_images(synthetic, [case.image for case in cases])
    labels = {case.image.name: case.labels for case in cases}
    generated = [Case(image, labels.get(image.name, ()), "synthetic") for image in images]
    return Cases(tuple(cases), tuple(generated), False, corpus.fingerprint, made_by(synthetic))


def _corpus_cases(corpus: Any) -> list[Case]:
    images = corpus_images(corpus, None)
    return [
        Case(image, tuple(row.labels), row.split, row.phash) for image, row in zip(images, corpus.rows(), strict=True)
    ]


def volume_cases(folder: Path, split: str) -> list[Case]:
    """Volumes of a folder with metadata.jsonl: file_name (.npy or NIfTI), labels, patient, and perhaps split and unit.

    Arrays are (D, H, W), HU unless the column unit says "symmetric" (-1 to 1). NIfTI files are turned to one
    orientation. `split` is for rows without one.
    """
    records = runs.read_jsonl(folder / "metadata.jsonl")
    if not records:
        raise InputError(
            f"{folder.name}/ is neither a corpus (index.parquet) nor a folder of volumes: no metadata.jsonl, or an "
            f"empty one, with file_name, labels and patient"
        )
    cases = []
    for number, record in enumerate(records, start=1):
        path = folder / str(record.get("file_name", ""))
        if not path.name.endswith(VOLUME_FILES) or not path.is_file() or folder.resolve() not in path.resolve().parents:
            raise InputError(
                f"{folder.name}/metadata.jsonl line {number}: file_name names no volume in there; volumes are "
                f"{', '.join(VOLUME_FILES)} files. Pictures come as a corpus."
            )
        labels, key = tuple(sorted(labels_of(record.get("labels")))), str(record.get("key") or f"v{number:06d}")
        image = LabelledImage(
            key=key,
            sha256=runs.file_sha256(path),
            caption=str(record.get("text") or record.get("prompt") or ""),
            name="+".join(labels) or "no finding",
            stratum=stratum_of(record),
            patient=str(record.get("patient") or key),
            read=functools.partial(read_volume, path, str(record.get("unit") or "hu")),
        )
        cases.append(Case(image, labels, str(record.get("split") or split)))
    return cases


def read_volume(path: Path, unit: str) -> np.ndarray:
    """(D, H, W) float32 in [-1, 1]; HU are clipped to MedSyn's -1024 to 600 first."""
    try:
        array = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _read_nifti(path)
    except (OSError, ValueError, EOFError) as error:
        raise ReadError(f"{path.name}: not a readable volume ({type(error).__name__})") from None
    array = np.asarray(array, dtype=np.float32)
    if array.ndim != 3 or not array.size or not np.isfinite(array).all():
        raise ReadError(f"{path.name}: a volume has the axes D, H, W and finite values, got shape {array.shape}")
    if unit == "symmetric":
        if array.min() < -1.001 or array.max() > 1.001:
            raise RangeError(
                f"{path.name}: unit symmetric is -1 to 1, values run from {array.min():g} to {array.max():g}"
            )
        return array
    if unit != "hu":
        raise RangeError(f"{path.name}: unit {unit!r} is unknown, allowed: hu, symmetric")
    if array.min() >= -1.001 and array.max() <= 1.001:
        raise RangeError(f"{path.name}: values lie in [-1, 1], so they are not HU; set unit to symmetric in its row")
    return (np.clip(array, HU_LOW, HU_HIGH) - HU_LOW) / (HU_HIGH - HU_LOW) * 2 - 1


def _read_nifti(path: Path) -> np.ndarray:
    """The voxels with the axes turned to (feet to head, back to front, right to left), whatever the file's order."""
    import nibabel

    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        return np.asarray(image.dataobj, dtype=np.float32).transpose(2, 1, 0)
    except nibabel.filebasedimages.ImageFileError as error:
        raise ValueError("not NIfTI") from error


@dataclass(frozen=True)
class Task:
    """What is to be told apart: the classes, which columns the targets have, and what was left out, with the reason."""

    classes: tuple[str, ...]
    multi_label: bool
    negatives: bool
    left_out: tuple[tuple[str, str], ...]

    def targets(self, cases: Sequence[Case]) -> np.ndarray:
        """(N, K) float32 of 0 and 1."""
        rows = [[float(name in self.of(case)) for name in self.classes] for case in cases]
        return np.array(rows, dtype=np.float32).reshape(len(cases), len(self.classes))

    def of(self, case: Case) -> tuple[str, ...]:
        """The names that a case could have as classes: its labels, or its one class."""
        return case.labels if self.multi_label else (case.image.name,)

    def usable(self, cases: Sequence[Case]) -> list[Case]:
        """Cases of at least one class, and with `negatives` those of none whose class is known."""
        if self.multi_label and self.negatives:
            return [case for case in cases if case.image.name]
        return [case for case in cases if set(self.of(case)) & set(self.classes)]


def choose_task(
    settings: UtilitySettings, train: Sequence[Case], test: Sequence[Case], synthetic: Sequence[Case]
) -> Task:
    """The classes that have enough training, test and synthetic images. InputError when there is nothing to tell apart.

    One class alone is a task only where it is a label that some images lack.
    """
    probe = Task((), settings.task == "multi-label", settings.negatives, ())
    names = sorted({name for case in train for name in probe.of(case) if name})
    unknown = sorted(set(settings.classes) - set(names))
    if unknown:
        raise InputError(f"class {unknown[0]!r} has no real training image; there are: {', '.join(names)}")
    kept, left_out = [], []
    counts = [Counter(name for case in part for name in probe.of(case)) for part in (train, test, synthetic)]
    for name in settings.classes or names:
        with_class = [case.image.patient for case in test if name in probe.of(case)]
        reason = _too_few(settings, counts, name, len(set(with_class)))
        if reason:
            left_out.append((name, reason))
        else:
            kept.append(name)
    task = replace(probe, classes=tuple(kept), left_out=tuple(left_out))
    _check_testable(task, test)
    return task


def _too_few(settings: UtilitySettings, counts: Sequence[Counter[str]], name: str, test_patients: int) -> str:
    """Why a class cannot take part, or ""."""
    train, test, synthetic = (count[name] for count in counts)
    if train < settings.min_train:
        return f"{train} training images, {settings.min_train} are needed"
    if test < settings.min_test or test_patients < 2:
        return f"{test} test images of {test_patients} patients, {settings.min_test} of 2 are needed"
    return "" if synthetic else "no synthetic image"


def _check_testable(task: Task, test: Sequence[Case]) -> None:
    usable = task.usable(test)
    counts = task.targets(usable).sum(axis=0) if task.classes else np.zeros(0)
    if not len(counts) or (len(task.classes) < 2 and (not task.multi_label or counts[0] == len(usable))):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in task.left_out[:5])
        raise InputError(
            f"the test set leaves {len(task.classes)} class(es) to tell apart, 2 are needed"
            f"{f' ({reasons})' if reasons else ''}. Lower --set min_train and min_test, or give more images."
        )
    everywhere = [name for name, count in zip(task.classes, counts, strict=True) if count == len(usable)]
    if everywhere:
        raise InputError(
            f"every test image has {everywhere[0]!r}: it cannot be tested. Leave it out with --set classes="
        )


@dataclass(frozen=True)
class Leakage:
    """What was compared, the keys of held-out cases to leave out, and what a reader must know."""

    left_out: frozenset[str]
    text: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Parts:
    """The real cases by their use. In cross-validation all are `test`, and each fold learns from the others."""

    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]


def check_leakage(cases: Cases, parts: Parts, trained_on: Path | None) -> Leakage:
    """Refuse to test on what the classifiers or the generator have seen.

    An InputError where a patient or a file (sha256) is on both sides. Where only the perceptual hash is the same, two
    different patients may look alike or be one: the held-out image is left out and counted.
    trained_on: the corpus (or volume folder) that the generator was trained on, or its run folder; None takes the real
    training split for it, with a warning.
    """
    if trained_on is None:
        seen, source, warnings = cases.split("train"), "the training split of the real data", [UNCHECKED]
    else:
        seen, source, warnings = _generator_cases(cases, trained_on)
    held_out = [*parts.validation, *parts.test]
    for what, learnt, tested in (
        ("the classifiers' training data", parts.train, held_out),
        (f"the generator's training data, {source},", seen, held_out),
        ("the validation images", parts.validation, parts.test),
    ):
        _refuse_shared(what, learnt, tested, "patient", lambda case: case.image.patient)
        _refuse_shared(what, learnt, tested, "file (sha256)", lambda case: case.image.sha256)
    _refuse_shared("the synthetic folder", cases.synthetic, held_out, "file (sha256)", lambda case: case.image.sha256)
    known = {case.phash for case in [*parts.train, *seen]} - set(UNKNOWN_PHASH)
    left_out = frozenset(case.image.key for case in held_out if case.phash in known)
    text = (
        f"Held-out images share no patient and no file with the classifiers' training images, nor with {source}, "
        f"nor test images with validation images; "
        f"{len(left_out)} held-out images with the perceptual hash of a training image were left out."
    )
    return Leakage(left_out, text, tuple(warnings))


UNCHECKED = (
    "That the generator was trained on nothing but the training split of the real data was assumed, not checked: give "
    "its run folder or its corpus with --trained-on."
)


def _generator_cases(cases: Cases, trained_on: Path) -> tuple[list[Case], str, list[str]]:
    """What the generator was trained on, in words too."""
    if (trained_on / "index.parquet").exists():
        from medisyn.corpus.loader import Corpus

        corpus = Corpus(trained_on)
        seen = [case for case in _corpus_cases(corpus) if case.split == "train"]
        same = corpus.fingerprint == cases.fingerprint
        return seen, f"the training split of corpus {corpus.fingerprint}", [] if same else _comparable(cases, seen)
    if (trained_on / "metadata.jsonl").exists():
        seen = [case for case in volume_cases(trained_on, "train") if case.split == "train"]
        return seen, f"{len(seen)} volumes of the folder that --trained-on names", _comparable(cases, seen)
    run = runs.read_run(trained_on) if trained_on.is_dir() else None
    if run is None or not run.get("corpus"):
        raise InputError(
            f"--trained-on {trained_on.name}: neither a corpus, a folder of volumes, nor a run whose run.json names "
            f"its corpus. Give the corpus that the generator was trained on."
        )
    if run["corpus"] != cases.fingerprint:
        raise InputError(
            f"the generator was trained on corpus {run['corpus']}, --real is corpus {cases.fingerprint}: whether they "
            f"share patients cannot be told from the run. Give the generator's corpus with --trained-on."
        )
    split = str((run.get("config") or {}).get("split") or "train")
    return cases.split(split), f"split {split!r} of the real data, which its run names,", []


def _comparable(cases: Cases, seen: Sequence[Case]) -> list[str]:
    """Pseudonyms of two corpora can be compared only when both were made with one key."""
    patients = {case.image.patient for case in cases.real}
    if patients & {case.image.patient for case in seen}:
        return []
    return [
        "The generator's corpus is another one and shares no patient pseudonym with the real data: that the patients "
        "differ is certain only if both were curated with the same pseudonym key. Files and perceptual hashes were "
        "compared as well."
    ]


def _refuse_shared(
    what: str, part: Sequence[Case], held_out: Sequence[Case], kind: str, of: Callable[[Case], str]
) -> None:
    known = {of(case) for case in part}
    shared = [case.image.key for case in held_out if of(case) in known]
    if shared:
        raise InputError(
            f"leakage: {len(shared)} of {len(held_out)} held-out images share a {kind} with {what}, for instance "
            f"{shared[0]}. A test on them says nothing: test on data that was kept apart, by patient."
        )


def write_stack(
    cases: Sequence[Case], path: Path, size: int, volumes: bool
) -> tuple[np.ndarray, dict[str, set[tuple[int, ...]]]]:
    """All images at the network's size in one file, mapped into memory; and the sizes that real and synthetic had.

    Pictures (N, size, size, 3) uint8 by Pillow's antialiased bicubic, volumes (N, size, size, size) float16 by
    averaging where they shrink and by trilinear interpolation where they grow.
    """
    from tqdm import tqdm

    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (len(cases), size, size, size) if volumes else (len(cases), size, size, 3)
    partial = path.with_suffix(".partial.npy")
    stack = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16 if volumes else np.uint8, shape=shape)
    found: dict[str, set[tuple[int, ...]]] = {"real": set(), "synthetic": set()}
    for number, case in enumerate(tqdm(cases, desc="reading images", unit="image", disable=None)):
        pixels = case.image.read()
        kind = "synthetic" if case.split == "synthetic" else "real"
        found[kind].add(pixels.shape[:3] if volumes else pixels.shape[:2])
        stack[number] = volume_at(pixels, size) if volumes else picture_at(pixels, size)
    stack.flush()
    del stack
    partial.replace(path)
    return np.load(path, mmap_mode="r"), found


def picture_at(pixels_HWC: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 3) uint8; the sides are squashed to one, nothing is cut off."""
    from medisyn.evaluation.features.encoder import to_batch

    return to_batch([pixels_HWC], size)[0].permute(1, 2, 0).numpy().astype(np.uint8)


def volume_at(voxels_DHW: np.ndarray, size: int) -> np.ndarray:
    """(size, size, size) float32."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(voxels_DHW, dtype=np.float32))[None, None]
    depth, height, width = (min(size, side) for side in tensor.shape[2:])
    tensor = torch.nn.functional.adaptive_avg_pool3d(tensor, (depth, height, width))
    if min(depth, height, width) < size:
        tensor = torch.nn.functional.interpolate(tensor, (size, size, size), mode="trilinear", align_corners=False)
    return tensor[0, 0].numpy()


def class_mix(task: Task, cases: Sequence[Case], equal: bool) -> dict[str, float]:
    """Shares of the classes (of label sets, where an image has several) for drawing training images."""
    counts = Counter(group_of(task, case) for case in cases)
    return {name: 1.0 if equal else float(count) for name, count in sorted(counts.items())}


def group_of(task: Task, case: Case) -> str:
    """The group by which images are drawn: the class, or the set of the task's labels."""
    return "+".join(sorted(set(task.of(case)) & set(task.classes)))


def counts_of(task: Task, cases: Sequence[Case]) -> Mapping[str, int]:
    """Images of each class."""
    return Counter(name for case in cases for name in task.of(case) if name in task.classes)
