"""The report of `medisyn audit`: verdict, tables, closest pairs and a methods text that states every choice."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medisyn import runs
from medisyn.evaluation.policy import MEASURES, is_within, limit

if TYPE_CHECKING:
    from medisyn.evaluation.memorisation import CopyStatistics
    from medisyn.evaluation.report import Pair, Table
    from medisyn.recipes.audit import Audit
    from medisyn.recipes.copy_search import CopySearch
    from medisyn.recipes.stack_search import StackSearch

SHOWN_PAIRS = 24
SHOWN_WITHHELD = 200
NAMES = {"distance": "patch distance", "similarity": "edge similarity", "bits": "differing hash bits"}


def write_page(out: Path, found: Audit, search: CopySearch | StackSearch) -> None:
    """Write report.html, result.json, images.jsonl, the CSV tables and run.json."""
    from medisyn.evaluation import report
    from medisyn.recipes.audit import image_records
    from medisyn.recipes.audit_methods import methods

    tables = [_rules_table(found), _strata_table(found)]
    if found.strata[-1].generated is not None:
        tables.append(_copies_table(found))
    tables += [_cuts_table(found, search), _tail_table(found)]
    if found.attack is not None:
        tables.append(_membership_table(found))
    if any(found.reasons):
        tables.append(_withheld_table(found, search))
    page = report.Page(
        title=f"Are generated {found.kind} copies of training {found.kind}?",
        facts=_facts(found, search),
        tables=tuple(tables),
        methods=tuple(methods(found, search)),
        warnings=found.warnings,
        pairs=_pairs(found, search),
    )
    report.write_report(out, page, found.as_dict())
    records = zip(image_records(found, search), found.reasons, strict=True)
    lines = [json.dumps({**record, "withheld_because": why}, ensure_ascii=False) + "\n" for record, why in records]
    runs.write_text(out / f"{found.kind}.jsonl", "".join(lines))
    asked = {name: value for name, value in asdict(found.search).items() if name != "weights"}
    runs.write_run(
        out, kind="audit", corpus=found.corpus, model=found.model, settings=asked, policy=asdict(found.policy)
    )


def _facts(found: Audit, search: CopySearch | StackSearch) -> tuple[tuple[str, str], ...]:
    facts = [
        ("Verdict", "the set meets the policy" if found.passed else "the set does NOT meet the policy"),
        (f"Generated {found.kind}", f"{len(found.images)}, of which {found.verdict.withheld} withheld"),
        (f"Training {found.kind}", f"{len(search.train)} of corpus {search.fingerprint}"),
        (f"Held-out real {found.kind}", f"{len(found.held_out)}, {search.null}"),
        ("Encoder", f"{search.extractor.id}, {search.extractor.preprocessing}, {search.extractor.dim} features"),
        ("Second descriptor", f"{search.descriptor.id}: {search.descriptor.preprocessing}"),
    ]
    if found.model is not None:
        facts.append(("Made by", f"{found.model['id']} ({found.model['digest'][:16]})"))
    if found.attack is not None:
        facts.append(("Model attacked", f"{found.attack.model} ({found.attack.model_digest[:16]})"))
    return tuple(facts)


def _rules_table(found: Audit) -> Table:
    from medisyn.evaluation.report import Table

    rows = [(rule.name, rule.found, rule.allowed, "met" if rule.passed else "not met") for rule in found.verdict.rules]
    return Table(
        name="policy",
        title="Does the set meet the release policy?",
        text=(
            "Rules for the set as a whole. Single ones are withheld by the rules in the table of cuts. Meeting this "
            "policy is no proof of privacy."
        ),
        columns=("rule", "found", "allowed", "verdict"),
        rows=tuple(rows),
    )


def _strata_table(found: Audit) -> Table:
    from medisyn.evaluation.report import Table

    rows = []
    for row in found.strata:
        ours, real = row.generated, row.held_out
        rows.append(
            (
                row.stratum,
                row.num_generated,
                *(_count(part) for part in (ours, real)),
                "" if ours is None else f"{ours.share_interval.high:.1%}",
                _beside("minimum", ours, real),
                _beside("quantile_01", ours, real),
                _p(ours.wilcoxon_p if ours is not None else None),
                _p(row.closer_p),
                row.withheld,
            )
        )
    return Table(
        name="strata",
        title="The test of MediSyn v2, per specialty and image type",
        text=(
            f"Patch distance to the nearest training {found.kind[:-1]} of the same specialty and image type, and the "
            f"count at or below 0.15. Where held-out real {found.kind}, which are no copies, come as close, closeness "
            f"is no evidence. "
            "Upper bound: Clopper-Pearson, one-sided 95 %. Min and 1 %: the smallest distance and the 1 % quantile. "
            "Wilcoxon p: distances above 0.15; it says nothing about the "
            "few closest. Closer p: Mann-Whitney, generated closer than held-out; small means suspicious. "
            "P values are not corrected for the number of rows."
        ),
        columns=(
            "kind",
            found.kind,
            "≤ 0.15",
            "held-out ≤ 0.15",
            "upper bound",
            "min (held-out)",
            "1 % (held-out)",
            "Wilcoxon p",
            "closer p",
            "withheld",
        ),
        rows=tuple(rows),
        numeric=frozenset(range(1, 10)),
    )


def _count(part: CopyStatistics | None) -> str:
    return "none to compare" if part is None else f"{part.at_or_below} of {part.n} ({part.share:.1%})"


def _beside(name: str, ours: CopyStatistics | None, real: CopyStatistics | None) -> str:
    from medisyn.evaluation.report import number

    shown = ["none" if part is None else number(getattr(part, name)) for part in (ours, real)]
    return f"{shown[0]} ({shown[1]})"


def _p(value: float | None) -> str:
    return "too few" if value is None else f"{value:.2g}"


def _copies_table(found: Audit) -> Table:
    """The paper's distances of both sets with their curve, by the table that `medisyn evaluate` shows too."""
    from medisyn.evaluation import report
    from medisyn.recipes.audit import paper_distances

    total = found.strata[-1]
    sets = {}
    if total.generated is not None:
        sets["generated"] = (total.generated, paper_distances(found.generated))
    if total.held_out is not None:
        sets["held-out real"] = (total.held_out, paper_distances(found.held_out))
    table, one = report.copies_table(sets), found.kind[:-1]
    if found.kind == "images":
        return table
    text = table.text.replace("images", found.kind)
    return replace(table, title=f"Is any {one} a copy of a training {one}?", text=text.replace("image", one))


def _cuts_table(found: Audit, search: CopySearch | StackSearch) -> Table:
    from medisyn.evaluation.report import Table

    rows = []
    for stratum in sorted({image.stratum for image in found.images}):
        ours = [close for close, image in zip(found.generated, found.images, strict=True) if image.stratum == stratum]
        real = [close for close, image in zip(found.held_out, search.held_out, strict=True) if image.stratum == stratum]
        for measure in MEASURES:
            cut, most = found.calibration.cut(stratum, measure), limit(found.policy, measure)
            counts = [sum(is_within(close, measure, found.policy, cut) for close in part) for part in (ours, real)]
            rows.append(
                (
                    stratum or "unknown",
                    NAMES[measure],
                    _as_measured(measure, most),
                    "none" if cut.below is None else _as_measured(measure, cut.below),
                    cut.source,
                    f"{cut.patients} ({cut.held_out})",
                    "" if cut.below is None else f"{cut.level:.1%}",
                    f"{counts[0]} of {len(ours)}",
                    f"{counts[1]} of {len(real)}",
                )
            )
    return Table(
        name="cuts",
        title="What withholds an image",
        text=(
            f"One of the {found.kind} is withheld where a measure is within its limit and closer than the cut, which "
            f"is passed by at most the level of new real {found.kind} of that kind (conformal, by patient, from "
            "held-out ones). Edge similarity counts upwards, the others downwards. A cut of the pool rests on several "
            "kinds; where it is 0 bits, equal hashes are common there and the hash withholds nothing. The last column "
            "counts the held-out ones themselves that pass both."
        ),
        columns=(
            "kind",
            "measure",
            "limit",
            "cut",
            "cut from",
            f"held-out patients ({found.kind})",
            "level",
            "generated withheld",
            "held-out real",
        ),
        rows=tuple(rows),
        numeric=frozenset({2, 3, 5, 6, 7, 8}),
    )


def _as_measured(measure: str, value: float) -> str:
    """A score as the measure itself: edge similarity counts upwards."""
    from medisyn.evaluation.report import number

    return number(1 - value if measure == "similarity" else value)


def _tail_table(found: Audit) -> Table:
    from medisyn.evaluation.report import Table, number

    rows = []
    for measure in MEASURES:
        for name, part in (("generated", found.generated), ("held-out real", found.held_out)):
            if not part:
                continue
            values = np.array([getattr(close, measure).value for close in part])
            if measure == "similarity":
                values = -np.sort(-values)
            extreme = values.max() if measure == "similarity" else values.min()
            tail = np.quantile(values, 0.99 if measure == "similarity" else 0.01)
            rows.append(
                (NAMES[measure], name, len(part), *(number(float(v)) for v in (extreme, tail, np.median(values))))
            )
    return Table(
        name="tail",
        title=f"The closest {found.kind} by each measure",
        text=(
            f"Over {found.search.neighbours} neighbours by the encoder and {found.search.edge_neighbours} by edges, in "
            f"{len(found.search.flips)} mirrorings ({', '.join(found.search.flips)}), and the nearest perceptual "
            f"hash of the whole training set. Patch distance and hash bits: 0 is equal. Edge similarity: 1 is equal."
        ),
        columns=("measure", "set", "n", "closest", "closest 1 %", "median"),
        rows=tuple(rows),
        numeric=frozenset({2, 3, 4, 5}),
    )


def _membership_table(found: Audit) -> Table:
    from medisyn.evaluation.report import Table, between, number

    assert found.attack is not None
    attack, result = found.attack, found.attack.result
    rows = (
        ("AUC", number(result.auc), between(result.auc_interval), result.auc_interval.method, "0.5 is chance"),
        (
            f"members found at {result.fpr:.0%} false alarms",
            f"{result.tpr:.1%}",
            f"{result.tpr_interval.low:.1%} to {result.tpr_interval.high:.1%}",
            result.tpr_interval.method,
            f"{result.fpr_reached:.1%} is chance",
        ),
        ("mean loss, members", number(attack.member_loss), "", "", f"n = {result.members}"),
        ("mean loss, held-out", number(attack.non_member_loss), "", "", f"n = {result.non_members}"),
    )
    return Table(
        name="membership",
        title=f"Can training {found.kind} be told by the model's loss?",
        text=(
            f"Membership inference on the denoising loss: a training {found.kind[:-1]} is guessed where the loss is "
            f"low. It is a simple attack: a stronger one may succeed where this fails."
        ),
        columns=("quantity", "value", "95 % interval", "method", "for scale"),
        rows=rows,
        numeric=frozenset({1, 2}),
    )


def _withheld_table(found: Audit, search: CopySearch | StackSearch) -> Table:
    from medisyn.evaluation.report import Table

    rows = [
        (image.key, search.train[close.distance.training].key, "; ".join(why))
        for image, close, why in zip(found.images, found.generated, found.reasons, strict=True)
        if why
    ]
    more = f" The first {SHOWN_WITHHELD} of {len(rows)}." if len(rows) > SHOWN_WITHHELD else ""
    return Table(
        name="withheld",
        title=f"{found.kind.capitalize()} withheld",
        text=f"All figures of all {found.kind} stand in {found.kind}.jsonl.{more}",
        columns=(found.kind[:-1], f"closest training {found.kind[:-1]}", "why"),
        rows=tuple(rows[:SHOWN_WITHHELD]),
    )


def _pairs(found: Audit, search: CopySearch | StackSearch) -> tuple[Pair, ...]:
    """Withheld images first, then the smallest patch distance; a mirrored training image is shown mirrored."""
    from medisyn.evaluation.report import Pair, png_base64

    order = sorted(
        range(len(found.images)),
        key=lambda number: (not found.reasons[number], found.generated[number].distance.value),
    )
    shown = []
    for number in order[:SHOWN_PAIRS]:
        image, close = found.images[number], found.generated[number]
        by_edges_alone = found.reasons[number] and not any("patch distance" in why for why in found.reasons[number])
        near = close.similarity if by_edges_alone else close.distance
        theirs = search.train[near.training]
        turned = "" if near.flip == "none" else f", mirrored ({near.flip})"
        withheld = "WITHHELD. " if found.reasons[number] else ""
        left, right = search.pair(image, near)
        shown.append(
            Pair(
                left=png_base64(left),
                right=png_base64(right),
                left_name=image.key,
                right_name=theirs.key,
                text=(
                    f"{withheld}Patch distance {close.distance.value:.3f}, edge similarity "
                    f"{close.similarity.value:.3f}, hash {close.bits.value:.0f} bits: {image.key} and "
                    f"{theirs.key}{turned}"
                ),
            )
        )
    return tuple(shown)
