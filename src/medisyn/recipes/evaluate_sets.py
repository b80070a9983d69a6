"""Generated clips or volumes against a folder of real ones: features of both, and real against real from two halves.

Shapes here: N items.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError
from medisyn.recipes.corpus_images import LabelledImage, labels_of
from medisyn.recipes.medsyn_corpus import MASKS, VOLUME_SUFFIX
from medisyn.seeding import seed_for

if TYPE_CHECKING:
    from medisyn.evaluation.diversity import DiversityResult
    from medisyn.evaluation.evaluate import EvaluationResult, FeatureSet
    from medisyn.evaluation.features import Extractor
    from medisyn.evaluation.report import Table

IN_HALVES = "one half of the real ones, and for scale the other half against the same"
IN_SPLITS = "the corpus's test split, and for scale as many of its training ones against the same"
MASK_NAME = re.compile(rf"(.+)[_-](?:{'|'.join(MASKS)})")


@dataclass(frozen=True, kw_only=True)
class SetSettings:
    """What the numbers depend on besides the two folders."""

    extractor: str
    mmd_alpha: float | None = None
    resamples: int = 200
    seed: int = 0


@dataclass(frozen=True)
class SetEvaluation:
    """What was found of clips or volumes; `extra` are the numbers of one kind alone, ready for JSON."""

    kind: str
    result: EvaluationResult
    extra: Mapping[str, Any]
    settings: SetSettings
    warnings: tuple[str, ...]
    page: Path
    corpus: str  # a digest of the real files
    model: dict[str, str] | None  # id and digest of what made the set; None where it is not recorded

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; `evaluation.evaluate.result_from_dict` reads what it needs from it."""
        asked = {"kind": self.kind, **asdict(self.settings)}
        origin = {"corpus": self.corpus, "model": self.model}
        return {**self.result.as_dict(), **self.extra, **origin, "asked": asked, "warnings": list(self.warnings)}

    def summary(self) -> str:
        """A few lines for a terminal."""
        from medisyn.evaluation import report

        notes = [f"Note: {warning}" for warning in self.warnings]
        return "\n".join([report.summary(self.result.measures, self.result.baseline), *notes, f"Report: {self.page}"])


def listed(folder: Path, endings: tuple[str, ...], read: Callable[[Path], np.ndarray]) -> list[LabelledImage]:
    """The files of a folder and its subfolders with these endings, sorted; a metadata.jsonl beside them is used.

    Its columns: file_name, patient, image_type, labels, text. Without it every file is a patient of its own.
    """
    from medisyn.evaluation.classify import class_name

    records = {str(record.get("file_name")): record for record in runs.read_jsonl(folder / "metadata.jsonl")}
    items = []
    for place in listed_files(folder, endings):
        path = folder / place
        record = records.get(place, {})
        key = str(record.get("key") or place)
        kind = str(record.get("image_type") or "")
        items.append(
            LabelledImage(
                key=key,
                sha256=runs.file_sha256(path),
                caption=str(record.get("text") or ""),
                name=class_name(kind, labels_of(record.get("labels"))) if kind else "",
                stratum="",
                patient=str(record.get("patient") or key),
                read=functools.partial(read, path),
            )
        )
    return items


def listed_files(folder: Path, endings: tuple[str, ...]) -> list[str]:
    """The places of the files of `listed`, in its order. InputError where there are none.

    Masks that `medisyn generate` writes beside a volume (NAME-lobe.nii.gz where metadata.jsonl names NAME.nii.gz) are
    left out, and those of a CT corpus: what lies beside ct.nii.gz, and NAME_lobe.nii.gz beside NAME.nii.gz.
    """
    paths = sorted(path for path in folder.rglob("*") if path.name.lower().endswith(endings) and path.is_file())
    named = {str(record.get("file_name")) for record in runs.read_jsonl(folder / "metadata.jsonl")}
    stems = tuple(f"{name.split('.')[0]}-" for name in named)
    places = [path.relative_to(folder).as_posix() for path in paths]
    volumes = {VOLUME_SUFFIX.sub("", place) for place in places if VOLUME_SUFFIX.search(place)}
    kept = [place for place in places if place in named or not (place.startswith(stems) or _is_mask(place, volumes))]
    if not kept:
        raise InputError(f"{folder.name}/ holds no file that ends in {', '.join(endings)}")
    return kept


def _is_mask(place: str, volumes: Collection[str]) -> bool:
    """Whether a file is a mask by its name, as `medsyn_corpus.find_cts` takes it; `volumes` have no endings."""
    stem = VOLUME_SUFFIX.sub("", place)
    if stem not in volumes:
        return False
    ct = PurePosixPath(stem).with_name("ct").as_posix()
    if ct in volumes:
        return stem != ct
    found = MASK_NAME.fullmatch(stem)
    return found is not None and found[1] in volumes


def files_fingerprint(items: Sequence[LabelledImage]) -> str:
    """Stands for a folder of files as its fingerprint does for a corpus: a digest of their contents."""
    return f"files-{runs.digest(sorted(item.sha256 for item in items))}"


def halves(items: Sequence[LabelledImage], seed: int) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Two parts of about one size with no patient in both, by a seeded order of the patients.

    InputError when there are fewer than two patients.
    """
    patients = sorted({item.patient for item in items})
    if len(patients) < 2:
        raise InputError(f"real against real needs two patients or files, got {len(patients)}")
    order = np.random.default_rng(seed_for(seed, "halves")).permutation(len(patients))
    first: set[str] = set()
    for number in order[:-1]:
        if sum(item.patient in first for item in items) >= len(items) / 2:
            break
        first.add(patients[number])
    return [item for item in items if item.patient in first], [item for item in items if item.patient not in first]


def evaluate_sets(
    generated: Sequence[LabelledImage],
    real: tuple[Sequence[LabelledImage], Sequence[LabelledImage]],
    extractor: Extractor,
    cache: Path,
    settings: SetSettings,
) -> EvaluationResult:
    """Every distance of `generated` to the first part of the real items, beside the second part to the first."""
    from medisyn.evaluation.evaluate import Settings, evaluate
    from medisyn.evaluation.features.cache import FeatureCache

    store = FeatureCache(cache / "features", extractor)
    sets = [
        features_of(part, extractor, store, what, batch_size=4)
        for part, what in ((generated, "generated"), (real[0], "real"), (real[1], "real, for the baseline"))
    ]
    options = Settings(seed=settings.seed, resamples=settings.resamples, mmd_alpha=settings.mmd_alpha)
    return evaluate(sets[0], sets[1], sets[2], options)


def features_of(
    part: Sequence[LabelledImage], extractor: Extractor, store: Any, what: str, batch_size: int = 32
) -> FeatureSet:
    """Features of the items, from the cache where they are; patients group the bootstrap where one has several."""
    from tqdm import tqdm

    from medisyn.evaluation.evaluate import FeatureSet
    from medisyn.evaluation.features.cache import extract

    readable = [(item.sha256, item.read) for item in part]
    with tqdm(total=len(part), desc=f"features, {what}", unit="item", disable=None) as bar:
        vectors = extract(extractor, readable, store, batch_size=batch_size, on_batch=bar.update)
    patients = [item.patient for item in part]
    grouped = tuple(patients) if len(set(patients)) < len(part) else None
    return FeatureSet(vectors, extractor.id, extractor.preprocessing, grouped)


def set_warnings(
    generated: Sequence[LabelledImage], real: Sequence[LabelledImage], result: EvaluationResult
) -> tuple[str, ...]:
    """What a reader must know before believing the numbers."""
    first = result.measures[0]
    notes = []
    if first.n_real < 100:
        notes.append("Fewer than 100 items on a side: the distances are dominated by chance and by their bias.")
    if first.n_real <= first.dim:
        notes.append(
            f"{first.n_real} items and {first.dim} features: the covariances have no full rank, and the Fréchet "
            f"distance is strongly biased upwards. Read the kernel distances first."
        )
    shared = len({item.sha256 for item in generated} & {item.sha256 for item in real})
    if shared:
        notes.append(f"{shared} generated files are byte for byte among the real ones.")
    if len({item.patient for item in real}) == len(real):
        notes.append(
            "Each real file counts as a patient of its own. Where a patient has several, name them in a metadata.jsonl "
            "(file_name, patient): the two real halves must not share patients."
        )
    return tuple(notes)


def write_set_page(
    out: Path,
    found: SetEvaluation,
    *,
    counts: Mapping[str, int],
    tables: Sequence[Table],
    methods: Sequence[str],
    parted: str = IN_HALVES,
) -> None:
    """Write report.html, result.json, the CSV tables and run.json."""
    from medisyn.evaluation import report
    from medisyn.recipes.evaluation_page import distances_text

    first = found.result.measures[0]
    facts = [(what, str(count)) for what, count in counts.items()]
    if found.model is not None:
        facts.append(("Made by", f"{found.model['id']} ({found.model['digest'][:16]})"))
    facts += [
        ("Extractor", f"{first.extractor}, preprocessing {first.preprocessing}, {first.dim} features"),
        ("n of the distances", f"{first.n_first} on each side"),
        ("Seed", f"{found.settings.seed}"),
    ]
    measures = replace(
        report.measures_table(found.result),
        title=f"Distances to real {found.kind}",
        text=(
            f"Generated {found.kind} against {parted}, at the same n; no patient is in both. Extractor "
            f"{first.extractor}, preprocessing {first.preprocessing}, {first.dim} features."
        ),
    )
    page = report.Page(
        title=f"Generated {found.kind} against real {found.kind}",
        facts=tuple(facts),
        tables=(measures, *tables),
        methods=(distances_text(found.result, found.kind), *methods),
        warnings=found.warnings,
    )
    report.write_report(out, page, found.as_dict())
    runs.write_run(
        out, kind=f"evaluate {found.kind}", corpus=found.corpus, model=found.model, settings=vars(found.settings)
    )


def diversity_dict(found: DiversityResult | None) -> dict[str, Any]:
    """The diversity for result.json; empty when there was none."""
    return {} if found is None else {"diversity": asdict(found)}
