"""Beating hearts that we make: apical ultrasound clips with exact volumes, labels and captions; and how to measure."""

from medisyn.phantoms.heart.beating import LABELS, HeartPhantom, make_heart
from medisyn.phantoms.heart.case import GRADES, VIEWS, Case, draw_case
from medisyn.phantoms.heart.folder import write_heart_phantoms
from medisyn.phantoms.heart.measure import Ejection, measure_ejection
from medisyn.phantoms.heart.motion import flicker

__all__ = [
    "GRADES",
    "LABELS",
    "VIEWS",
    "Case",
    "Ejection",
    "HeartPhantom",
    "draw_case",
    "flicker",
    "make_heart",
    "measure_ejection",
    "write_heart_phantoms",
]
