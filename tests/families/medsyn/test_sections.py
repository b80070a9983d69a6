"""Sections of free-text reports."""

import pytest

from medisyn.families.medsyn.sections import Report, parse_report

BOTH = Report("Large effusion. Heart normal.", "Effusion.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Findings: Large effusion. Heart normal. Impression: Effusion.", BOTH),
        ("IMPRESSION: Effusion.\n\nFINDINGS: Large effusion. Heart normal.", BOTH),
        ("FINDINGS\nLarge effusion.\nHeart normal.\nCONCLUSION:\nEffusion.", BOTH),
        ("Indication: cough. Findings: Large effusion. Heart normal. Opinion: Effusion.", BOTH),
        ("Large effusion. Heart normal.\nImpression: Effusion.", BOTH),
        ("Findings: Large effusion. Comparison: none. Findings: Heart normal. Impression: Effusion.", BOTH),
        ("Large effusion. Heart normal.", Report("Large effusion. Heart normal.", "")),
        ("Findings: Large effusion.", Report("Large effusion.", "")),
        ("Impression: Effusion.", Report("", "Effusion.")),
        ("The impression is that findings: none matter.", Report("The impression is that findings: none matter.", "")),
        ("Findings:\nImpression:\n", Report("", "")),
        ("", Report("", "")),
        ("Technique: helical CT.", Report("", "")),
    ],
)
def test_sections_in_any_order(text, expected):
    assert parse_report(text) == expected


def test_the_text_that_is_read_is_findings_then_impression():
    assert BOTH.text == "Large effusion. Heart normal.,Effusion."
    assert Report("", "Effusion.").text == "Effusion."
