"""Bootstrap of the macro-AUROC beside a loop over scikit-learn's `roc_auc_score`, same resamples, one process.

The contenders take turns, so that whatever else the machine does hits both alike. The sizes are those of MediSyn v2's
chest X-ray test set: 2,872 images, 4 labels, 2,000 resamples by patient; scikit-learn is timed on the first
`--loop` of the resamples and its time scaled up, and the values of those are compared.

    python benchmarks/auroc.py --rounds 3
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from medisyn import runs
from medisyn.evaluation.auroc import draw_resamples, resampled_macro_auroc
from medisyn.evaluation.bootstrap import resample

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2872)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--loop", type=int, default=100, help="resamples that scikit-learn is timed on, per round")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    scores, targets, patients = make_task(asked.images, asked.classes)
    ours, theirs, error = [], [], 0.0
    for _ in range(asked.rounds):
        started = time.perf_counter()
        drawn = draw_resamples(targets, resamples=asked.resamples, seed=0, patients=patients)
        values = resampled_macro_auroc(scores, targets, drawn)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        expected = loop(scores, targets, patients, asked.loop)
        theirs.append((time.perf_counter() - started) * asked.resamples / asked.loop)
        error = max(error, float(np.abs(values[: asked.loop] - expected).max()))
    found = {
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/auroc.py --rounds {asked.rounds}",
        "sizes": vars(asked),
        "environment": runs.environment(),
        "seconds": {"medisyn": ours, "scikit-learn loop, scaled": theirs},
        "times faster (median)": float(np.median(theirs) / np.median(ours)),
        "largest difference": error,
    }
    print(json.dumps(found, indent=2))
    runs.write_json(RESULTS / f"auroc-{found['date']}.json", found)


def make_task(images: int, classes: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores with ties in every class, targets of which a third is positive, two images per patient."""
    rng = np.random.default_rng(0)
    targets = (rng.random((images, classes)) < 1 / 3).astype(float)
    scores = np.round(rng.normal(size=(images, classes)) + targets, 2)
    return scores, targets, [f"p{number // 2}" for number in range(images)]


def loop(scores: np.ndarray, targets: np.ndarray, patients: list[str], count: int) -> np.ndarray:
    """What one would write: draw patients, gather their images, call scikit-learn."""
    rng = np.random.default_rng(0)
    values = []
    for _ in range(count):
        index = resample(len(scores), rng, patients)
        values.append(roc_auc_score(targets[index], scores[index], average="macro"))
    return np.array(values)


if __name__ == "__main__":
    main()
