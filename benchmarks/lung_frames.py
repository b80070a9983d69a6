"""Frames of COVID-BLUES as a corpus of pictures: lung ultrasound, which starter-image has never seen.

    python benchmarks/lung_frames.py DATA/us_video_covidblues OUT
    medisyn curate OUT/source.yaml --out CORPUS
    python benchmarks/budget.py --subject lung --corpus CORPUS --out DIR --only distance

Seven frames of every clip, evenly spaced. Every other patient, by number, is held out. The frames may not be published
(no derivatives), nor anything that was trained on them: measure and delete.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from medisyn.corpus.readers.video import read_clip

FRAMES = 7  # of a clip; neighbours are nearly the same picture
SOURCE = """\
name: lung_ultrasound_frames
title: Single frames of COVID-BLUES
licence: CC BY-NC-ND 4.0
attribution: COVID-BLUES (N. Wiedemann et al. 2025), Maastricht University Medical Center
url: https://doi.org/10.1109/JBHI.2025.3543686
public_ids: true
specialty: pulmonology
image_type: ultrasound
table: {path: table.csv}
file: "{file}"
split: {unit: patient, column: patient, given: {column: part, values: {train: train, test: test}}}
size: 128
geometry: short-side-crop
samples:
  - kind: whole
    captions: ["Lung ultrasound image"]
    labels: ["lung"]
known_defects:
  - Frames of one clip are nearly alike; there are 30 clips of 12 patients.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with manifest.csv and videos/")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    with (args.data / "manifest.csv").open(newline="") as stream:
        clips = list(csv.DictReader(stream))
    held_out = set(sorted({int(clip["patient_id"]) for clip in clips})[1::2])
    (args.out / "frames").mkdir(parents=True, exist_ok=True)
    rows = []
    for clip in clips:
        array_CTHW = read_clip(args.data / clip["file"]).array_CTHW
        for number, frame in enumerate(np.linspace(0, array_CTHW.shape[1] - 1, FRAMES).round().astype(int)):
            name = f"frames/{Path(clip['file']).stem}-{number}.png"
            Image.fromarray(np.ascontiguousarray(array_CTHW[:, frame].transpose(1, 2, 0))).save(args.out / name)
            part = "test" if int(clip["patient_id"]) in held_out else "train"
            rows.append({"file": name, "patient": clip["patient_id"], "part": part})
    with (args.out / "table.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (args.out / "source.yaml").write_text(SOURCE)
    print(f"{len(rows)} frames of {len(clips)} clips in {args.out}")


if __name__ == "__main__":
    main()
