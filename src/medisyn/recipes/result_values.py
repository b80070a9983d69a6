"""The numbers of a result: those that its tables carry, and those that its own content is known to hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medisyn.evaluation.page import Page, Value


def values_of(kind: str, page: Page, content: Mapping[str, Any]) -> list[Value]:
    """Of a result of the command `kind`; where content and tables hold the same number, the content's is taken."""
    reader = READERS.get(kind)
    known = {(value.name, value.of, value.group): value for value in (reader(content) if reader is not None else ())}
    carried = [value for table in page.tables for value in table.values]
    return [*known.values(), *(value for value in carried if (value.name, value.of, value.group) not in known)]


def _audit(content: Mapping[str, Any]) -> Iterator[Value]:
    """Closeness to the training images: over all, and per `specialty / image type`."""
    from medisyn.evaluation.page import Value

    extractor, kind = content.get("extractor", ""), content.get("kind", "images")
    prefix = "" if kind == "images" else f"{kind[:-1]}_"  # of other things; they stand beside no image's distance
    for row in content.get("strata", ()):
        group = "" if row["stratum"] == "all" else row["stratum"]
        for of, found in (("generated", row["generated"]), ("real", row["held_out"])):
            if found is None:
                continue
            share = found["share_interval"]
            common = {"of": of, "group": group, "n": found["n"], "extractor": extractor}
            if "mean" in found:  # absent from results of earlier versions
                yield Value(f"{prefix}patch_distance_mean", found["mean"], **common)
            yield Value(f"{prefix}patch_distance_median", found["median"], **common)
            yield Value(f"{prefix}patch_distance_minimum", found["minimum"], **common)
            yield Value(f"{prefix}patch_distance_at_or_below", found["at_or_below"], **common)
            ends = {"low": share["low"], "high": share["high"], "level": share["level"]}
            yield Value(f"{prefix}patch_distance_share", found["share"], **common, **ends)
    membership = content.get("membership")
    if membership is not None:
        found = membership["result"]
        ends = found["auc_interval"]
        n = found["members"] + found["non_members"]
        yield Value("membership_auc", found["auc"], low=ends["low"], high=ends["high"], level=ends["level"], n=n)


def _utility(content: Mapping[str, Any]) -> Iterator[Value]:
    """Each arm, and its difference from the reference; or the means over the folds."""
    from medisyn.evaluation.page import Value

    n, auroc = content.get("n_test"), content.get("auroc") or {}
    classes = content.get("classes", ())
    kinds = sorted({name.partition("/")[0] for name in classes if "/" in name})
    task = f"{len(classes)} classes of {' and '.join(kinds)}" if kinds else ", ".join(classes)
    for name, key in (("macro_auroc", "arms"), ("macro_auroc_difference", "differences")):
        for arm, found in auroc.get(key, {}).items():
            ends = found["interval"]
            yield Value(name, found["value"], arm, "", ends["low"], ends["high"], ends["level"], n, task=task)
    for arm, folds in (content.get("folds") or {}).items():
        for group, scores in (("", folds["overall"]), *folds["per_label"].items()):
            yield Value("accuracy", fmean(score["accuracy"] for score in scores), arm, group, n=n)
            f1 = [score["f1"] for score in scores if score["f1"] is not None]
            if f1:
                yield Value("f1", fmean(f1), arm, group, n=n)


READERS: Mapping[str, Callable[[Mapping[str, Any]], Iterator[Value]]] = {"audit": _audit, "utility": _utility}
