"""`medisyn audit`: is any generated image a copy of a training image, can members be told, and what may be released."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn import runs
from medisyn.errors import ConfigError, InputError
from medisyn.recipes.corpus_images import LabelledImage, corpus_images, generated_images
from medisyn.recipes.release_gate import check_files, write_release

if TYPE_CHECKING:
    from medisyn.evaluation.copies import Closeness
    from medisyn.evaluation.memorisation import CopyStatistics
    from medisyn.evaluation.policy import Calibration, Policy, Verdict
    from medisyn.recipes.copy_search import CopySearch, SearchSettings
    from medisyn.recipes.membership_attack import Attack, AttackSettings
    from medisyn.recipes.stack_search import StackSearch

SET_FAILED = "the set as a whole does not meet the policy"


@dataclass(frozen=True)
class StratumRow:
    """MediSyn v2's test for one specialty and image type, beside held-out real images of the same kind."""

    stratum: str
    generated: CopyStatistics | None  # of the paper's distances; None where there are none
    held_out: CopyStatistics | None
    closer_p: float | None  # Mann-Whitney: generated closer than held-out
    num_generated: int
    withheld: int


@dataclass(frozen=True)
class Audit:
    """What `audit` found; `page` is the report it wrote."""

    images: Sequence[LabelledImage]
    file_names: Sequence[str]  # of the images, "" where they lie in a corpus
    generated: Sequence[Closeness]
    held_out: Sequence[Closeness]
    strata: tuple[StratumRow, ...]  # one per stratum, then "all"
    reasons: tuple[tuple[str, ...], ...]  # per image, empty where it may be released
    calibration: Calibration
    policy: Policy
    verdict: Verdict
    attack: Attack | None
    extractor: str
    search: SearchSettings
    warnings: tuple[str, ...]
    page: Path
    corpus: str  # fingerprint of what was searched
    model: dict[str, str] | None  # id and digest of what made the images; None where it is not recorded
    kind: str = "images"  # or "volumes", "clips"
    released: int | None = None  # None: the gate was not asked for

    @property
    def passed(self) -> bool:
        return self.verdict.passed

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; the figures of single images stand in images.jsonl."""
        return {
            "kind": self.kind,
            "n": len(self.images),
            "corpus": self.corpus,
            "model": self.model,
            "extractor": self.extractor,
            "asked": {name: value for name, value in asdict(self.search).items() if name != "weights"},
            "policy": asdict(self.policy),
            "strata": [asdict(row) for row in self.strata],
            "cuts": {
                stratum: {name: asdict(cut) for name, cut in cuts.items()}
                for stratum, cuts in (*self.calibration.cuts.items(), ("pooled", self.calibration.pooled))
            },
            "verdict": {**asdict(self.verdict), "passed": self.passed},
            "membership": None if self.attack is None else asdict(self.attack),
            "released": self.released,
            "warnings": list(self.warnings),
        }

    def summary(self) -> str:
        """A few lines for a terminal."""
        total = self.strata[-1]
        lines = []
        for name, found in (("generated", total.generated), ("held-out real", total.held_out)):
            if found is not None:
                lines.append(
                    f"at or below patch distance {found.threshold:g} of the nearest training {self.kind[:-1]}, {name}: "
                    f"{found.at_or_below} of {found.n}, minimum {found.minimum:.3f}"
                )
        lines.append(f"withheld by the policy: {self.verdict.withheld} of {self.verdict.n}")
        if self.attack is not None:
            attacked, chance = self.attack.result, "false alarms"
            lines.append(
                f"membership attack: AUC {attacked.auc:.3f} ({attacked.auc_interval.low:.3f} to "
                f"{attacked.auc_interval.high:.3f}), {attacked.tpr:.1%} of members at {attacked.fpr:.0%} {chance}"
            )
        lines += [
            f"rule '{rule.name}': {'met' if rule.passed else 'NOT MET'} ({rule.found}; allowed: {rule.allowed})"
            for rule in self.verdict.rules
        ]
        if self.released is not None:
            lines.append(f"released {self.released}, withheld {len(self.images) - self.released}")
        return "\n".join([*lines, *(f"Note: {warning}" for warning in self.warnings), f"Report: {self.page}"])


def audit(
    synthetic: Path | str,
    against: Path | str,
    settings: SearchSettings | None = None,
    *,
    policy: Policy | Path | str | None = None,
    model: str | None = None,
    attack: AttackSettings | None = None,
    gate: bool = False,
    files: str = "copy",
    cache: Path | str | None = None,
    out: Path | str | None = None,
    held_out: Path | str | None = None,
) -> Audit:
    """Compare a folder of generated images (or a corpus of them) with the training split of `against`.

    Clips and volumes, as `medisyn evaluate` reads them, are compared with a folder of the same kind; `held_out` may
    name a folder of held-out ones (`stack_search` says what stands for them otherwise).

    policy: the release rules, or a YAML file of them; None: the defaults of `Policy`.
    model: attack it too: can members be told from held-out ones by its loss? It must have been trained on `against`.
        For clips and volumes both folders must be laid out as for training, with captions or reports and masks.
    gate: also write released/ and withheld/; files: "copy", "link" (hard links) or "list" (only the lists).
    out: folder of the report; None: `<synthetic>-audit` beside it. Raises InputError for sets that cannot be compared.
    """
    from medisyn.evaluation.policy import judge_set, reasons
    from medisyn.recipes.audit_page import write_page
    from medisyn.recipes.copy_search import SearchSettings
    from medisyn.recipes.results import made_by

    synthetic = Path(synthetic)
    out = Path(out) if out is not None else synthetic.with_name(f"{synthetic.name}-audit")
    settings, rules = settings or SearchSettings(), read_policy(policy)
    if gate:
        check_files(files, synthetic)
    attacked = None if model is None else _attacked(model, synthetic, Path(against), held_out, settings, attack)
    search, images, names = _opened(synthetic, Path(against), settings, cache, held_out)
    with runs.lock(out):
        real = search.held_out_closeness()
        calibration = search.calibration(rules, real)
        close = search.closeness(images, f"generated {search.kind}")
        why = tuple(
            tuple(reasons(found, image.stratum, rules, calibration)) for found, image in zip(close, images, strict=True)
        )
        found_attack = None if attacked is None else attacked()
        upper = None if found_attack is None else found_attack.result.auc_interval.high
        verdict = judge_set(sum(map(bool, why)), len(images), rules, upper)
        found = Audit(
            images=images,
            file_names=names,
            generated=close,
            held_out=real,
            strata=_strata(images, close, search.held_out, real, why),
            reasons=why,
            calibration=calibration,
            policy=rules,
            verdict=verdict,
            attack=found_attack,
            extractor=search.extractor.id,
            search=search.settings,
            warnings=_warnings(images, search, calibration, close, rules),
            page=out / "report.html",
            corpus=search.fingerprint,
            model=made_by(synthetic),
            kind=search.kind,
            released=sum(not reason for reason in why) * verdict.passed if gate else None,
        )
        write_page(out, found, search)
        if gate:
            final = [list(reason) if verdict.passed else [*reason, SET_FAILED] for reason in why]
            write_release(out, synthetic, image_records(found, search), final, files)
    return found


def read_policy(policy: Policy | Path | str | None) -> Policy:
    """ConfigError for a file that is missing, no YAML, or not a policy."""
    from medisyn.evaluation.policy import Policy, policy_from_dict

    if policy is None:
        return Policy()
    if isinstance(policy, Policy):
        return policy
    import yaml

    path = Path(policy)
    try:
        return policy_from_dict(yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"policy {path.name} cannot be read ({type(error).__name__}); it is a YAML file") from None


def image_records(found: Audit, search: CopySearch | StackSearch) -> list[dict[str, Any]]:
    """One record per generated image: its file, and the training images that come closest by each measure."""
    records = []
    for image, name, close in zip(found.images, found.file_names, found.generated, strict=True):
        nearest = {
            measure: {"value": near.value, "training": search.train[near.training].key, "flip": near.flip}
            for measure in ("distance", "similarity", "bits", "paper")
            if (near := getattr(close, measure)) is not None
        }
        records.append(
            {
                "key": image.key,
                "file_name": name,
                "sha256": image.sha256,
                "stratum": image.stratum,
                "cosine": close.cosine,
                **nearest,
            }
        )
    return records


def _opened(
    synthetic: Path,
    against: Path,
    settings: SearchSettings,
    cache: Path | str | None,
    held_out: Path | str | None,
) -> tuple[CopySearch | StackSearch, list[LabelledImage], list[str]]:
    """The search of the kind of `synthetic`, its images, volumes or clips, and their files."""
    from medisyn.recipes.copy_search import open_search
    from medisyn.recipes.stack_search import open_stacks, stack_files, stacks_of, without_stacks

    kind, kept = _kind(synthetic), Path(cache) if cache is not None else None
    if kind == "images":
        if held_out is not None:
            raise ConfigError("a folder of held-out items is for volumes and clips; images have the corpus's splits")
        search = open_search(against, without_stacks(settings), kept)
        images = _images(synthetic, search.train)
        return search, images, _file_names(synthetic, images)
    stacks = open_stacks(kind, against, Path(held_out) if held_out is not None else None, settings, kept)
    return stacks, stacks_of(kind, synthetic), stack_files(kind, synthetic)


def _images(synthetic: Path, train: Sequence[LabelledImage]) -> list[LabelledImage]:
    from medisyn.corpus.loader import Corpus

    if (synthetic / "index.parquet").exists():
        return corpus_images(Corpus(synthetic), None)
    return generated_images(synthetic, train)


def _file_names(synthetic: Path, images: Sequence[LabelledImage]) -> list[str]:
    """In the order of `generated_images`, which is that of metadata.jsonl."""
    records = runs.read_jsonl(synthetic / "metadata.jsonl")
    return [str(record["file_name"]) for record in records] if records else [""] * len(images)


def _kind(synthetic: Path) -> str:
    from medisyn.recipes.evaluate_folder import kind_of

    if not synthetic.is_dir():
        raise InputError(f"there is no folder {synthetic.name}/ of generated images")
    return kind_of(synthetic)


def _attacked(
    model: str,
    synthetic: Path,
    against: Path,
    held_out: Path | str | None,
    search: SearchSettings,
    settings: AttackSettings | None,
) -> Callable[[], Attack]:
    """The attack, ready to run: a wrong model or folder is found before the search, which may take long."""
    from medisyn.corpus.loader import Corpus
    from medisyn.recipes.membership_attack import AttackSettings, attack_model, image_sides, open_attacked
    from medisyn.recipes.membership_stacks import need_held_out, stack_sides

    kind = _kind(synthetic)
    settings = settings or AttackSettings(split=search.split, seed=search.seed)
    others = need_held_out(kind, held_out) if kind != "images" else None
    opened = open_attacked(model, kind, settings)
    if others is None:
        sides = image_sides(Corpus(against), settings)
    else:
        sides = stack_sides(opened, model, against, others, settings)
    return functools.partial(attack_model, opened, sides, settings)


def _strata(
    images: Sequence[LabelledImage],
    close: Sequence[Closeness],
    real_images: Sequence[LabelledImage],
    real: Sequence[Closeness],
    why: Sequence[Sequence[str]],
) -> tuple[StratumRow, ...]:
    names = sorted({image.stratum for image in images})
    rows = []
    for name in (*names, None):
        ours = [number for number, image in enumerate(images) if name is None or image.stratum == name]
        theirs = [number for number, image in enumerate(real_images) if name is None or image.stratum == name]
        distances = paper_distances([close[number] for number in ours])
        null = paper_distances([real[number] for number in theirs])
        title = "all" if name is None else name or "unknown"
        rows.append(_row(title, distances, null, len(ours), sum(bool(why[number]) for number in ours)))
    return tuple(rows)


def _row(title: str, distances: list[float], null: list[float], count: int, withheld: int) -> StratumRow:
    from medisyn.evaluation.memorisation import closer_than_held_out, copy_statistics

    return StratumRow(
        stratum=title,
        generated=copy_statistics(distances, held_out=null) if distances else None,
        held_out=copy_statistics(null) if null else None,
        closer_p=closer_than_held_out(distances, null) if distances and null else None,
        num_generated=count,
        withheld=withheld,
    )


def paper_distances(close: Sequence[Closeness]) -> list[float]:
    return [found.paper.value for found in close if found.paper is not None]


def _warnings(
    images: Sequence[LabelledImage],
    search: CopySearch | StackSearch,
    calibration: Calibration,
    close: Sequence[Closeness],
    policy: Policy,
) -> tuple[str, ...]:
    """What a reader must know before believing the numbers."""
    notes, kind = [], search.kind
    if kind != "images":
        notes.append(
            f"MediSyn v2 tested single images only: how {kind} are compared is ours, and no published figure is."
        )
    elif "biomedclip" not in search.extractor.id.lower():
        notes.append(
            f"The nearest neighbours were searched with {search.extractor.id}, not with BiomedCLIP as in MediSyn v2: "
            f"the figures do not compare with the paper's."
        )
    if not search.held_out:
        notes.append(
            f"There are no held-out {kind} ({search.null}): nothing is calibrated, and the limits of the policy stand "
            f"alone. Flat {kind} and black borders may be withheld for no reason."
        )
    names = sorted({image.stratum for image in images}) if search.held_out else []
    for source, text in (("pooled", "Cuts pooled over kinds"), ("not calibrated", "Not calibrated")):
        those = [name or "unknown" for name in names if calibration.cut(name, "distance").source == source]
        if those:
            notes.append(f"{text}, for too few held-out patients of their own: {'; '.join(those)}.")
    levels = [cut.level for name in names if (cut := calibration.cut(name, "distance")).below is not None]
    if levels and max(levels) > policy.alpha + 1e-9:
        notes.append(
            f"With so few held-out patients a cut may withhold up to {max(levels):.1%} of innocent {kind} by each "
            f"measure, where the policy asks for {policy.alpha:.1%}."
        )
    lonely = sum(found.paper is None for found in close)
    if lonely:
        notes.append(
            f"{lonely} generated {kind} have no training {kind[:-1]} of their specialty and image type (or an unknown "
            f"one): they were compared with the whole training set, and are left out of the paper's test."
        )
    smallest = search.smallest_side(images)
    if smallest < 512:
        what = "Images" if kind == "images" else "Pictures"
        notes.append(
            f"{what} of {smallest} pixels: patches are a quarter of the side, where MediSyn v2 has 128 of 512."
        )
    return tuple(notes)
