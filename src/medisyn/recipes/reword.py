"""A caption in other words, so that a model does not only follow the one wording of a caption template.

A rewording may leave something out; it never says more about the picture than the caption did.
"""

from __future__ import annotations

import re

import numpy as np

# Pattern -> what its first match may become instead; in this order, each on what the row above has left.
WORDINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    # What matters less is left out or said in short.
    (r" of a (male|female) patient", ("", r" of a \1", r" of a \1 patient")),
    (r", slices of \S+ mm", ("",)),
    (r"^Axial ", ("", "", "Axial slice, ", "Transverse ")),
    (r"contrast-enhanced ", ("", "contrast ")),
    (r",? at (\d+)x magnification", ("", r", \1x", r" at \1x")),
    (r" image\b", ("", "", "", " picture")),
    # X-ray
    (
        r"Frontal \((PA|AP)\) chest X-ray",
        ("Frontal chest X-ray", r"\1 chest X-ray", r"Chest X-ray, \1 view", "Chest X-ray"),
    ),
    (r"chest X-ray(?! image| picture|, )", ("chest radiograph", "X-ray of the chest", "chest film", "CXR")),
    # Computed tomography and magnetic resonance
    (r"CT angiography", ("CTA", "CT angiogram")),
    (
        r"(chest|brain|breast) (CTA|CT angiogra\w+|CT|MRI)(?! image| picture)",
        (r"\2 of the \1", r"\2 scan of the \1", r"\1 \2 scan"),
    ),
    (
        r"(upper )?abdominal (CT|MRI)(?! image| picture)",
        (r"\2 of the \1abdomen", r"\2 scan of the \1abdomen", r"\2 \1abdomen"),
    ),
    (r"pelvic (CT|MRI)(?! image| picture)", (r"\1 of the pelvis", r"\1 scan of the pelvis")),
    (r"\bCT\b", ("CT", "CT", "computed tomography")),
    (r"\bMRI\b", ("MRI", "MRI", "MR", "magnetic resonance imaging")),
    (r", (lung|mediastinal|soft tissue) window", ("", r" in the \1 window", r", \1 window setting")),
    # Blood
    (r"Blood smear microscopy", ("Blood smear", "Peripheral blood smear", "Blood film", "Blood under the microscope")),
    (r"(\w+cyte) red blood cell", (r"\1",)),
    (r"(target|teardrop|burr) red blood cell", (r"\1 cell", r"\1 red cell")),
    (r"red blood cell", ("red cell", "erythrocyte", "RBC")),
    (r"white blood cell", ("leukocyte", "white cell", "WBC")),
    (r"platelet", ("thrombocyte",)),
    (r", whole field", ("", ", field of view")),
    # Tissue
    (
        r"Histopathology(?: image)?, H&E stain",
        ("H&E stained tissue", "H&E histology", "Histology, H&E", "Histopathology, H&E"),
    ),
    (
        r"Histopathology(?: image)?, Ki67 immunohistochemistry stain",
        ("Ki67 stained tissue", "Ki67 immunohistochemistry", "Histology, Ki67", "Histopathology, Ki67 stain"),
    ),
    # Ultrasound
    (r"Nerve ultrasound(?! image| picture)", ("Ultrasound", "Ultrasound of a nerve", "Nerve sonogram")),
    # What is shown
    (r"^(.+?),? showing (.+)$", (r"\1 with \2", r"\1, \2", r"\2, \1", r"\2 on \1", r"\1")),
    (r"^(Blood.*) of an? (.+)$", (r"\2", r"\2, \1", r"\1, \2")),
)


def reword(caption: str, rng: np.random.Generator) -> str:
    """The caption with its own words or others, by a fair draw at each of `WORDINGS` that it holds."""
    for pattern, alternatives in WORDINGS:
        match = re.search(pattern, caption, re.IGNORECASE)
        if match:
            drawn = int(rng.integers(len(alternatives) + 1))
            new = match.expand(alternatives[drawn - 1]) if drawn else match[0]
            caption = caption[: match.start()] + new + caption[match.end() :]
    return caption
