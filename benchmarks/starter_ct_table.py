"""The figures of `starter_ct.py` as Markdown: every stage that there is, then what was asked for and reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def markdown(figures: Mapping[str, Any]) -> str:
    """Every stage as rows: what, figure, n, reached or not."""
    lines = ["| stage | figure | value | 95 % interval | n |", "|---|---|---|---|---|"]
    for name, found in figures["stages"].items():
        if "superiority" in found:
            lines += _pair_lines(name, found)
    if found := figures["stages"].get("side"):
        for what, one in (("fluid", found), ("small lung", found["lungs"])):
            inside = f"{one['interval']['low']:.1%} to {one['interval']['high']:.1%}"
            lines.append(f"| side | side of the {what} right | {one['share']:.1%} | {inside} | {one['n']} |")
    for stage in ("lobes", "segmentation"):
        for kind in ("dice", "differences"):
            for what, row in figures["stages"].get(stage, {}).get(kind, {}).items():
                lines.append(_mean_line(stage, f"{'Dice' if kind == 'dice' else 'Dice, difference'}: {what}", row))
    for row in figures["stages"].get("features", {}).get("rows", ()):
        lines.append(_distance_line("features", row))
    for label, row in figures["stages"].get("solver", {}).get("solvers", {}).items():
        what = f"{label}, {row['calls_of_the_base_model']} calls, {row['seconds_per_volume']:.1f} s"
        lines += [_distance_line(what, one) for one in row["distances"] if one["name"] in ("mmd", "frechet")]
        lines.append(_mean_line(what, "effusion, absolute error in mL", row["effusion_ml_absolute_error"]))
    if found := figures["stages"].get("speed"):
        lines.append(f"| speed | s a volume, {found['threads']} threads | {found['median_s']:.1f} | | {found['n']} |")
    lines += ["", "| stage | asked for | reached |", "|---|---|---|"]
    for stage, found in figures["stages"].items():
        lines += [f"| {stage} | {what} | {'yes' if ok else 'no'} |" for what, ok in found["reached"].items()]
    return "\n".join(lines) + "\n"


def _pair_lines(name: str, found: Mapping[str, Any]) -> list[str]:
    low, high = found["normal_range"]
    chance, inside = found["superiority_interval"], found["absent_interval"]
    n = f"{found['n_present']} and {found['n_absent']}"
    lines = [
        f"| {name} | {found['measure']}, median present and absent | {found['medians']['present']:.4g} and "
        f"{found['medians']['absent']:.4g} | | {n} |",
        f"| {name} | superiority, p = {found['p']:.2g} | {found['superiority']:.1%} | {chance['low']:.1%} to "
        f"{chance['high']:.1%} | {n} |",
        f"| {name} | absent inside {low:.4g} to {high:.4g} ({found['n_normal']} normal phantoms) | "
        f"{found['absent_in_range']:.1%} | {inside['low']:.1%} to {inside['high']:.1%} | {found['n_absent']} |",
    ]
    if own := found["phantoms_denying"]:
        ends = f"{own['interval']['low']:.1%} to {own['interval']['high']:.1%}"
        what = "the same of held-out phantoms whose report denies it"
        lines.append(f"| {name} | {what} | {own['inside'] / own['n']:.1%} | {ends} | {own['n']} |")
    return lines


def _mean_line(stage: str, what: str, row: Mapping[str, Any]) -> str:
    ends = f"{row['low']:.3f} to {row['high']:.3f}"
    return f"| {stage} | {what} | {row['mean']:.3f} ± {row['sd']:.3f} | {ends} | {row['n']} |"


def _distance_line(stage: str, row: Mapping[str, Any]) -> str:
    ends = " to ".join(f"{row['interval'][end]:.4g}" for end in ("low", "high"))
    what = f"{row['name']} (real against real {row['real_value']:.4g})"
    return f"| {stage} | {what} | {row['value']:.4g} | {ends} | {row['n'][0]} |"
