"""Captions of heart phantoms in varied clinical words, with negations and with things left out.

What a caption says is true of the phantom. The view and the function are mostly told, the rest at random; an effusion
that is there is always told.
"""

from __future__ import annotations

import numpy as np

from medisyn.phantoms.heart.case import VIEWS, Case

VIEW_WORDS = {
    VIEWS[0]: ("Apical four-chamber view.", "Apical 4-chamber view.", "A4C view.", "Echo, apical four-chamber."),
    VIEWS[1]: ("Apical two-chamber view.", "Apical 2-chamber view.", "A2C view.", "Echo, apical two-chamber."),
}  # fmt: skip
FUNCTION = {
    "normal": (
        "Normal left ventricular ejection fraction.",
        "Left ventricular systolic function is normal.",
        "Preserved LV systolic function.",
        "Normal LVEF.",
    ),
    "mildly reduced": (
        "Mildly reduced left ventricular ejection fraction.",
        "Left ventricular systolic function is mildly reduced.",
        "Mildly impaired LV systolic function.",
        "Mildly reduced LVEF.",
    ),
    "moderately reduced": (
        "Moderately reduced left ventricular ejection fraction.",
        "Left ventricular systolic function is moderately reduced.",
        "Moderately impaired LV systolic function.",
        "Moderately reduced LVEF.",
    ),
    "severely reduced": (
        "Severely reduced left ventricular ejection fraction.",
        "Left ventricular systolic function is severely reduced.",
        "Severely impaired LV systolic function.",
        "Severely reduced LVEF.",
    ),
}
NO_EFFUSION = (
    "No pericardial effusion.",
    "There is no pericardial effusion.",
    "No pericardial fluid.",
    "Pericardial effusion is absent.",
)
TELL_VIEW, TELL_FUNCTION, TELL_NUMBER, DENY_EFFUSION, TELL_RATE = 0.9, 0.9, 0.3, 0.7, 0.55


def write_caption(case: Case, rng: np.random.Generator) -> str:
    """The caption of one phantom: view first, then function, fluid and rate in varied order."""

    def choose(*texts: str) -> str:
        return str(texts[int(rng.integers(len(texts)))])

    first = [choose(*VIEW_WORDS[case.view])] if rng.random() < TELL_VIEW else []
    rest = []
    if rng.random() < TELL_FUNCTION:
        rest.append(choose(*FUNCTION[case.grade]))
        if rng.random() < TELL_NUMBER:
            percent = f"{case.ejection_fraction:.0f}"
            rest[-1] += " " + choose(f"Ejection fraction {percent} %.", f"LVEF {percent} %.", f"EF is {percent} %.")
    if case.effusion_ml > 0:
        rest.append(_effusion(case.effusion_word, choose(*"abc")))
    elif rng.random() < DENY_EFFUSION:
        rest.append(choose(*NO_EFFUSION))
    if rng.random() < TELL_RATE:
        rate = f"{case.heart_rate:.0f}"
        rest.append(choose(f"Heart rate {rate} bpm.", f"Heart rate {rate}/min.", f"HR {rate} bpm.", _rhythm(case)))
    if rng.random() < 0.4:
        rest = [rest[i] for i in rng.permutation(len(rest))]
    return " ".join([*first, *rest]) or "Echocardiogram."


def _effusion(word: str, form: str) -> str:
    if form == "a":
        return f"{word.capitalize()} pericardial effusion."
    return f"There is a {word} pericardial effusion." if form == "b" else f"Pericardial effusion, {word}."


def _rhythm(case: Case) -> str:
    """Words instead of a number: below 60 and above 100 beats in a minute have a name."""
    if case.heart_rate < 60:
        return "Bradycardia."
    return "Tachycardia." if case.heart_rate > 100 else "Normal heart rate."
