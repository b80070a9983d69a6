"""The classical CT segmenter against phantoms, whose truth is exact: Dice and errors with n and intervals.

    OMP_NUM_THREADS=1 python benchmarks/segment_ct.py [--sizes 64,128] [--count 32] [--seed 5000] [--out results.json]

Patients take the kinds of findings in turn, so that each has the same number. The thresholds of the segmenter were
chosen on seeds 1000 to 1015; the default seeds here are others. Intervals: 95 % bootstrap of the mean over patients.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from medisyn.evaluation import anatomy
from medisyn.evaluation.bootstrap import mean_interval
from medisyn.evaluation.segment_ct import segment_ct
from medisyn.phantoms import KINDS, make_thorax
from medisyn.phantoms.findings import draw_findings
from medisyn.runs import environment


def score(seed: int, size: int, kind: str) -> dict[str, float]:
    """All figures of one patient; NaN where there is nothing to compare."""
    phantom = make_thorax(seed, size, draw_findings(seed, (kind,)))
    truth, spacing = phantom.masks, phantom.volume.spacing_mm
    start = time.process_time()
    found = segment_ct(phantom.volume).masks
    seconds = time.process_time() - start
    in_lung = (truth["vessel"] > 0) & (truth["lobe"] > 0)
    lobes = anatomy.lobe_dice(found["lobe"], truth["lobe"])
    chest = (found["lung"] > 0) | (found["effusion"] > 0)
    ratio = anatomy.cardiothoracic_ratio(found["heart"], chest) if found["heart"].any() else float("nan")
    fluid = anatomy.volume_ml(found["effusion"], spacing)
    low = anatomy.low_attenuation_percent(phantom.volume.array_CDHW[0], found["lobe"] > 0, airway_DHW=found["airway"])
    return {
        "lung dice": anatomy.dice(found["lung"], truth["lobe"]),
        "airway dice": anatomy.dice(found["airway"], truth["airway"]),
        "vessel dice (in the lungs)": anatomy.dice(found["vessel"], in_lung),
        **{f"lobe dice {name}": value for name, value in lobes.items()},
        "heart dice": anatomy.dice(found["heart"], truth["heart"]),
        "heart found": float(found["heart"].any()),
        "cardiothoracic ratio, absolute error": abs(ratio - phantom.truth["cardiothoracic_ratio"]),
        "effusion mL, absolute error": abs(fluid - phantom.truth["effusion_ml"]),
        "effusion mL found where there is none": fluid if phantom.truth["effusion_ml"] == 0 else float("nan"),
        "%LAA-950, absolute error": abs(low - phantom.truth["laa950_percent"]),
        "%LAA-950 found where there are no bullae": low if phantom.truth["finding_ml"]["bullae"] == 0 else float("nan"),
        "cpu seconds": seconds,
    }


def summary(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, interval, worst ends and n of each figure."""
    result = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        values = values[np.isfinite(values)]
        if len(values) > 1:
            inside = mean_interval(values, resamples=2000, seed=0)
            result[name] = {
                "mean": round(float(values.mean()), 4), "low": round(inside.low, 4), "high": round(inside.high, 4),
                "min": round(float(values.min()), 4), "max": round(float(values.max()), 4), "n": len(values),
            }  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="64,128")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--seed", type=int, default=5000)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()

    kinds = (*KINDS, "none")
    result: dict[str, object] = {}
    for size in (int(size) for size in arguments.sizes.split(",")):
        by_kind = defaultdict(list)
        for number in range(arguments.count):
            kind = kinds[number % len(kinds)]
            by_kind[kind].append(score(arguments.seed + number, size, kind))
        everything = [row for rows in by_kind.values() for row in rows]
        result[str(size)] = {"all": summary(everything), **{kind: summary(rows) for kind, rows in by_kind.items()}}
        print(size, json.dumps(result[str(size)]["all"], indent=2), flush=True)  # type: ignore[index]
    if arguments.out is not None:
        content = {"environment": environment(), "seed": arguments.seed, "count": arguments.count, "sizes": result}
        arguments.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
