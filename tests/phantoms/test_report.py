"""Reports: every finding is told, nothing false is, wording varies, and normal statements are sometimes left out."""

from __future__ import annotations

import numpy as np
import pytest

from medisyn.phantoms.findings import KINDS, Finding
from medisyn.phantoms.lesions import Lesions
from medisyn.phantoms.report import ABSENT, write_report

TRUTH = {"contrast_medium": True, "cardiothoracic_ratio": 0.61}
PLACED = {"nodule": {"lobe": 3, "diameter_mm": 14.2}, "consolidation": {"lobe": 5, "diameter_mm": 80.0}}
WORDS = {
    "effusion": ("effusion",),
    "cardiomegaly": ("cardiomegaly", "enlarged"),
    "bullae": ("bullae", "bullous"),
    "consolidation": ("consolidation",),
    "ground_glass": ("ground-glass",),
    "nodule": ("nodule", "mass"),
    "atelectasis": ("atelectasis", "collapse"),
}


def report(*findings: Finding, seed: int = 0) -> tuple[str, str]:
    return write_report(findings, TRUTH, Lesions(placed=PLACED), np.random.default_rng(seed))


def side_of(kind: str) -> str:
    return "both" if kind == "cardiomegaly" else "right"


@pytest.mark.parametrize("severity", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_a_finding_is_told_in_both_sections_and_never_denied(kind, severity):
    for seed in range(25):
        findings, impression = report(Finding(kind, side_of(kind), severity), seed=seed)
        for text in (findings, impression):
            assert any(word in text.lower() for word in WORDS[kind]), text
            assert not any(denial in text for denial in ABSENT[kind]), text
            assert "left" not in text.replace("left lower lobes", ""), text


def test_sides_sizes_and_lobes_are_the_right_ones():
    for seed in range(20):
        assert "right" in report(Finding("effusion", "right", 0.9), seed=seed)[1].lower()
        assert "large" in report(Finding("effusion", "right", 0.9), seed=seed)[0].lower()
        assert "small" in report(Finding("effusion", "right", 0.1), seed=seed)[0].lower()
        assert "right upper lobe" in report(Finding("nodule", "right", 0.2), seed=seed)[0].lower()
        assert "1.4 cm" in report(Finding("nodule", "right", 0.2), seed=seed)[0]


def test_compressed_lung_beside_fluid_is_not_denied():
    texts = [" ".join(report(Finding("effusion", "left", 0.9), seed=seed)) for seed in range(40)]
    assert not any(denial in text for text in texts for denial in ABSENT["atelectasis"])


def test_a_healthy_patient_is_told_to_be_healthy():
    texts = [report(seed=seed) for seed in range(60)]
    for findings, impression in texts:
        assert findings
        assert impression
        assert not any(word in findings for word in ("Bilateral", "There is a ", "is enlarged"))
    assert len({findings for findings, _ in texts}) > 50  # the wording varies
    assert len({impression for _, impression in texts}) >= 3
    denied = np.mean([any(denial in findings for denial in ABSENT["effusion"]) for findings, _ in texts])
    assert 0.3 < denied < 0.7  # 0.6 * 0.75 of the full reports and 0.4 * 0.1 of the terse ones
    short = np.mean([findings.count(".") <= 3 for findings, _ in texts])
    assert 0.2 < short < 0.6  # terse reports are 0.4


def test_both_lungs_read_well():
    for kind in ("ground_glass", "bullae", "effusion", "atelectasis"):
        for seed in range(15):
            for severity in (0.1, 0.9):
                text = " ".join(report(Finding(kind, "both", severity), seed=seed))
                assert "the both" not in text
                assert "the bilateral" not in text
