"""Patients that we make: a chest CT with exact anatomy, findings with a known size, and a report that tells them."""

from medisyn.phantoms.findings import KINDS, Finding, draw_findings
from medisyn.phantoms.thorax import Phantom, make_thorax

__all__ = ["KINDS", "Finding", "Phantom", "draw_findings", "make_thorax"]
