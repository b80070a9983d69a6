"""How often prompts in a user's own words give the image type that was asked for, model beside model on the same seeds.

    python benchmarks/free_wording.py starter-image runs/starter-image/model --out runs/free-wording.json

FIRST was written before the captions were varied in training, but was known when the wordings of
`medisyn.recipes.reword` were; FRESH was written after a model had been trained on them and before it was tried. The
judge that comes with MediSyn names the image type. With two models the result counts the pictures in which one alone is
right, with the exact p of as uneven a split by chance.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from scipy.stats import binomtest

from medisyn.evaluation.bootstrap import wilson
from medisyn.evaluation.classify import load_judge
from medisyn.evaluation.features.encoder import SHIPPED
from medisyn.recipes.corpus_images import rgb
from medisyn.recipes.models import open_model
from medisyn.runs import environment, write_json
from medisyn.types import Request

FIRST = {
    "chest X-ray": (
        *("chest X-ray", "Chest X-ray showing pneumonia", "Frontal chest X-ray", "chest radiograph", "AP chest X-ray"),
        *(
            "PA chest X-ray image",
            "X-ray of the chest",
            "chest X-ray of a patient with COVID-19",
            "Chest X-ray, normal",
        ),
    ),
    "computed tomography": (
        *("chest CT", "CT of the chest", "Axial chest CT, lung window", "CT image of the lungs", "abdominal CT"),
        *("Axial CT of the abdomen showing liver", "chest CT with lung tumour", "CT angiography of the chest"),
        "pelvic CT image",
    ),
    "magnetic resonance imaging": ("brain MRI", "MRI of the brain", "Axial MRI of the breast", "abdominal MRI"),
    "ultrasound": (
        *("ultrasound", "nerve ultrasound", "ultrasound image of a nerve", "Ultrasound showing blood vessel"),
    ),
    "blood smear microscopy": (
        *("blood smear", "white blood cell", "Blood smear with red blood cells", "target cell"),
        *("microscopy of a platelet", "ovalocyte", "blood cells under the microscope"),
        "Peripheral blood smear image of a white blood cell",
    ),
    "histopathology": (
        *("H&E histology", "histopathology image", "Ki67 stain", "H&E stained tissue", "histopathology, Ki67, 40x"),
    ),
}
FRESH = {
    "chest X-ray": (
        *("thorax radiograph, posteroanterior", "a plain film of the chest", "portable chest X-ray in intensive care"),
        *("radiography of the thorax", "chest x ray with opacities in both lungs", "CXR AP supine"),
    ),
    "computed tomography": (
        *("transaxial computed tomogram through the thorax", "CT slice at the level of the liver", "lungs on CT"),
        *("thoracic CT showing a tumour", "a CT scan of the kidneys", "CT of the hips and bladder"),
    ),
    "magnetic resonance imaging": (
        *(
            "cranial MRI",
            "head MRI scan",
            "MR image of a breast with a tumour",
            "magnetic resonance image of the brain",
        ),
    ),
    "ultrasound": (
        *("sonography of a peripheral nerve", "US scan of the arm", "ultrasound with a vessel beside the nerve"),
        "B-mode picture of a nerve",
    ),
    "blood smear microscopy": (
        *("photomicrograph of a leucocyte", "stained blood with many red cells", "a single burr cell"),
        *("platelets in peripheral blood", "sickle-shaped red blood cell", "haematology slide with white cells"),
    ),
    "histopathology": (
        *("haematoxylin and eosin section", "tissue section with Ki-67 positive nuclei", "biopsy, H&E, high power"),
        "whole slide image tile at 20x",
    ),
}


def named(model: str, prompts: dict[str, tuple[str, ...]], seeds: int) -> dict[str, list[bool]]:
    """For each prompt and seed, whether the judge names the image type that was asked for."""
    judge, opened = load_judge(SHIPPED / "judge"), open_model(model, dtype="bfloat16")
    found = {}
    for image_type, texts in prompts.items():
        for text in texts:
            requests = [opened.resolve(Request(key=str(n), prompt=text, seed=900 + n)) for n in range(seeds)]
            pictures = opened.family.decode(opened.family.sample(requests))
            names = judge.name([rgb(picture) for picture in pictures])
            found[text] = [name.split("/")[0] == image_type for name in names]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, object] = {"environment": environment(), "seeds": options.seeds}
    for name, prompts in {"first": FIRST, "fresh": FRESH}.items():
        by_model = {model: named(model, prompts, options.seeds) for model in options.models}
        table = {}
        for number, (model, found) in enumerate(by_model.items(), start=1):
            hits = [hit for row in found.values() for hit in row]
            inside = wilson(sum(hits), len(hits))
            table[f"{number}: {Path(model).name}"] = {
                "right": sum(hits), "n": len(hits), "low": round(inside.low, 3), "high": round(inside.high, 3),
                "by prompt": {text: sum(row) for text, row in found.items()},
            }  # fmt: skip
        if len(options.models) == 2:
            first, second = ([hit for row in found.values() for hit in row] for found in by_model.values())
            lost = sum(a and not b for a, b in zip(first, second, strict=True))
            won = sum(b and not a for a, b in zip(first, second, strict=True))
            p = binomtest(won, won + lost).pvalue if won + lost else 1.0
            table["second alone, first alone, p"] = [won, lost, p]  # type: ignore[assignment]
        result[name] = table
        print(name, json.dumps(table, indent=1), flush=True)
    write_json(options.out, result)


if __name__ == "__main__":
    main()
