"""A radiology report for a phantom: Findings and Impression in varied words, with negations and with things left out.

What it says is true of the phantom. What it leaves out may be there or not, as in real reports: normal structures are
mentioned at random, every finding always.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from medisyn.phantoms.findings import KINDS, LOBES, Finding
from medisyn.phantoms.lesions import Lesions

Choose = Callable[..., str]
SAID = 0.75  # chance that a full report mentions a finding that is absent, or another normal statement
TERSE, SAID_TERSE = 0.4, 0.1  # share of reports that say little but what is wrong, and that chance in them
TIDY = {
    "base of the both lungs": "bases of both lungs",
    "the both lungs": "both lungs",
    "the bilateral lower lobe": "both lower lobes",
    "Bilateral lower lobe atelectasis": "Atelectasis of both lower lobes",
}
SIZES = {"mild": "small", "moderate": "moderate", "severe": "large"}

ABSENT = {
    "effusion": (
        "No pleural effusion.",
        "There is no pleural effusion.",
        "The pleural spaces are clear.",
        "No pleural fluid is seen.",
    ),
    "cardiomegaly": (
        "Heart size is normal.",
        "The heart is normal in size.",
        "No cardiomegaly.",
        "The heart is not enlarged.",
    ),
    "bullae": (
        "No bullae or emphysema.",
        "No emphysematous change.",
        "There are no bullae.",
        "No bullous disease is seen.",
    ),
    "consolidation": ("No consolidation.", "No focal airspace consolidation.", "There is no consolidation."),
    "ground_glass": ("No ground-glass opacity.", "No ground-glass opacities are seen."),
    "nodule": (
        "No suspicious pulmonary nodule or mass.",
        "No pulmonary nodule.",
        "There are no lung nodules or masses.",
    ),
    "atelectasis": ("No atelectasis.", "No atelectasis or volume loss."),
}
NORMAL = (
    (
        "The trachea and central airways are patent.",
        "Central airways are clear.",
        "The airways are patent to the segmental level.",
    ),
    ("The thoracic aorta is normal in calibre.", "Normal calibre of the thoracic aorta."),
    ("No enlarged mediastinal or hilar lymph nodes.", "No mediastinal lymphadenopathy."),
    ("No acute osseous abnormality.", "No suspicious bone lesion.", "The visualised bones are unremarkable."),
    ("The visualised upper abdomen is unremarkable.", "Limited views of the upper abdomen are unremarkable."),
)


def write_report(
    findings: Sequence[Finding], truth: Mapping[str, Any], ill: Lesions, rng: np.random.Generator
) -> tuple[str, str]:
    """The texts of Findings and Impression, without headings."""

    def choose(*texts: str) -> str:
        return str(texts[int(rng.integers(len(texts)))])

    present = {finding.kind: finding for finding in findings}
    said = SAID_TERSE if rng.random() < TERSE else SAID
    sentences = [_technique(truth, choose)] if rng.random() < 0.4 else []
    order = [KINDS[i] for i in rng.permutation(len(KINDS))]
    positive = [_describe(present[kind], truth, ill, choose) for kind in order if kind in present]
    absent = [kind for kind in order if kind not in present and not (kind == "atelectasis" and "effusion" in present)]
    negative = [choose(*ABSENT[kind]) for kind in absent if rng.random() < said]
    normal = [choose(*texts) for texts in NORMAL if rng.random() < said]
    if rng.random() < 0.5:
        sentences += positive + negative + normal
    else:
        rest = [*negative, *normal]
        sentences += positive + [rest[i] for i in rng.permutation(len(rest))]
    if not sentences:
        sentences = [choose("The lungs are clear.", "Normal chest.")]
    return _tidy(" ".join(sentences)), _tidy(_impression(present, absent, ill, choose, rng))


def _tidy(text: str) -> str:
    """Grammar where a template met both sides."""
    for wrong, right in TIDY.items():
        text = text.replace(wrong, right)
    return text


def _technique(truth: Mapping[str, Any], choose: Choose) -> str:
    if truth["contrast_medium"]:
        return choose("CT of the chest with intravenous contrast.", "Contrast-enhanced chest CT.")
    return choose("CT of the chest without contrast.", "Non-contrast chest CT.", "Unenhanced CT of the chest.")


def _impression(
    present: Mapping[str, Finding], absent: Sequence[str], ill: Lesions, choose: Choose, rng: np.random.Generator
) -> str:
    if not present:
        normal = choose("No acute cardiopulmonary abnormality.", "Normal chest CT.", "No acute findings in the chest.")
        return normal if rng.random() < 0.7 else f"{normal} {choose(*ABSENT['effusion'])}"
    items = [_name(finding, ill, choose) for finding in present.values()]
    if absent and rng.random() < 0.35:
        items.append(choose(*ABSENT[choose(*absent)]))
    if len(items) > 1 and rng.random() < 0.5:
        return " ".join(f"{number}. {item}" for number, item in enumerate(items, start=1))
    return " ".join(items)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _where(finding: Finding, ill: Lesions) -> str:
    """`left lower lobe`, or the side."""
    lobe = int(ill.placed.get(finding.kind, {}).get("lobe", 0))
    if finding.side != "both" and lobe:
        return f"{LOBES[lobe - 1]} lobe"
    return "both lungs" if finding.side == "both" else f"{finding.side} lung"


def _side(finding: Finding) -> str:
    return "bilateral" if finding.side == "both" else f"{finding.side}"


def _nodule_word(ill: Lesions) -> tuple[str, str]:
    diameter = float(ill.placed["nodule"]["diameter_mm"])
    size = f"{diameter / 10:.1f} cm" if diameter >= 10 else f"{diameter:.0f} mm"
    return ("mass" if diameter > 30 else "nodule"), size


def _name(finding: Finding, ill: Lesions, choose: Choose) -> str:
    """The finding as an item of the Impression."""
    size, side, where = SIZES[finding.word], _side(finding), _where(finding, ill)
    many = "s" if finding.side == "both" else ""
    if finding.kind == "effusion":
        return choose(
            f"{_capital(size)} {side} pleural effusion{many}.", f"{_capital(side)} pleural effusion{many}, {size}."
        )
    if finding.kind == "cardiomegaly":
        return choose("Cardiomegaly.", f"{_capital(finding.word)} cardiomegaly.", "Enlarged heart.")
    if finding.kind == "bullae":
        return choose("Bullous emphysema.", f"{_capital(finding.word)} {side} bullous emphysema.")
    if finding.kind == "consolidation":
        return choose(f"Consolidation in the {where}.", f"{_capital(where)} consolidation, likely pneumonia.")
    if finding.kind == "ground_glass":
        return choose(
            f"Ground-glass opacities in the {where}.",
            f"{_capital(side)} ground-glass opacities.",
        )
    if finding.kind == "nodule":
        word, length = _nodule_word(ill)
        return choose(f"{_capital(where)} {word} of {length}.", f"{length} {word} in the {where}.")
    if finding.word == "mild":
        return choose(f"Linear atelectasis in the {where}.", f"{_capital(side)} basilar subsegmental atelectasis.")
    return choose(f"{_capital(side)} lower lobe atelectasis.", f"Collapse of the {side} lower lobe.")


def _describe(finding: Finding, truth: Mapping[str, Any], ill: Lesions, choose: Choose) -> str:
    """The finding as a sentence or two of Findings."""
    size, side, where = SIZES[finding.word], _side(finding), _where(finding, ill)
    many, verb = ("s", "are") if finding.side == "both" else ("", "is")
    article = "" if many else "a "
    if finding.kind == "effusion":
        return choose(
            f"There {verb} {article}{size} {side} pleural effusion{many}.",
            f"{_capital(size)} {side} pleural effusion{many}.",
            f"{_capital(side)} pleural effusion{many}, {size} in size, with adjacent compressive atelectasis.",
        )
    if finding.kind == "cardiomegaly":
        return choose(
            "The heart is enlarged.",
            "Heart size is enlarged.",
            f"There is {finding.word} cardiomegaly.",
            f"Enlarged heart with a cardiothoracic ratio of {truth['cardiothoracic_ratio']:.2f}.",
        )
    if finding.kind == "bullae":
        text = choose(
            f"Bullae in the {where}.",
            f"{_capital(finding.word)} bullous emphysema in the {where}.",
            f"There are {side} apical bullae with emphysematous change.",
        )
    elif finding.kind == "consolidation":
        text = choose(
            f"There is consolidation in the {where} with air bronchograms.",
            f"{_capital(where)} airspace consolidation.",
            f"Dense opacity in the {where}, consistent with consolidation.",
        )
    elif finding.kind == "ground_glass":
        text = choose(
            f"{_capital(finding.word)} ground-glass opacities in the {where}.",
            f"{_capital(side)} patchy ground-glass opacities.",
            f"There are ground-glass opacities in the {where}, mostly peripheral.",
        )
    elif finding.kind == "nodule":
        word, length = _nodule_word(ill)
        text = choose(f"There is a {length} {word} in the {where}.", f"{_capital(where)} {word} measuring {length}.")
    elif finding.word == "mild":
        text = choose(
            f"Linear bands of atelectasis at the base of the {where}.", f"{_capital(side)} basilar linear atelectasis."
        )
    else:
        text = choose(
            f"There is collapse of the {side} lower lobe with volume loss.", f"{_capital(side)} lower lobe atelectasis."
        )
    return text
