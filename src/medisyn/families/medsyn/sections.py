"""Free-text radiology reports as their sections.

A heading stands at the start of the text, of a line or of a sentence, and ends with a colon; a line that is a heading
and nothing else needs no colon.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FINDINGS = ("findings", "finding", "observations")
IMPRESSION = ("impression", "impressions", "conclusion", "conclusions", "opinion", "summary")
OTHER = (
    "indication",
    "clinical indication",
    "clinical history",
    "history",
    "reason for exam",
    "technique",
    "comparison",
    "examination",
    "exam",
    "procedure",
    "contrast",
    "recommendation",
    "recommendations",
)
_NAMES = "|".join(sorted((re.escape(name) for name in FINDINGS + IMPRESSION + OTHER), key=len, reverse=True))
_HEADING = re.compile(rf"(?:^|(?<=[.!?\n])[ \t]*|\n[ \t]*)({_NAMES})[ \t]*(?::|(?=\n))", re.IGNORECASE)


@dataclass(frozen=True)
class Report:
    """What a report says; a section that is not there is empty."""

    findings: str
    impression: str

    @property
    def text(self) -> str:
        """Findings, then impression, joined by a comma: the layout of the published text features."""
        return ",".join(part for part in (self.findings, self.impression) if part)


def parse_report(text: str) -> Report:
    """The findings and the impression of a report, in whatever order they stand.

    A text without headings is all findings. Text before the first heading counts as findings only when the report has
    no findings of its own; sections such as history and technique are left out. A heading that comes twice adds up.
    """
    parts = _HEADING.split(text)
    found: dict[str, list[str]] = {"findings": [], "impression": []}
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        kind = _kind(heading.lower())
        if kind is not None and body.strip():
            found[kind].append(_tidy(body))
    before = _tidy(parts[0])
    if not found["findings"] and before:
        found["findings"].append(before)
    return Report(" ".join(found["findings"]), " ".join(found["impression"]))


def _kind(heading: str) -> str | None:
    if heading in FINDINGS:
        return "findings"
    return "impression" if heading in IMPRESSION else None


def _tidy(text: str) -> str:
    return " ".join(text.split())
