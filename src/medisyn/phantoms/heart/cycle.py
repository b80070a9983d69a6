"""The heart's cycle: how far the left ventricle has emptied, and how wide the valves stand, at each phase of a beat.

Phase 0 is end diastole; phases are shares of one beat and repeat. Shapes here: T frames.
"""

from __future__ import annotations

import numpy as np

EARLY_SHARE = 0.7  # of the stroke volume, filled by the early (E) wave; the atrium's kick brings the rest


def end_systole(heart_rate: float) -> float:
    """Phase of the smallest volume: 50 ms of pressure rise and an ejection time of 413 - 1.7 * rate ms (Weissler)."""
    return (0.05 + 0.413 - 0.0017 * heart_rate) * heart_rate / 60


def phases(heart_rate: float, frames: int, frames_per_second: float, start: float) -> np.ndarray:
    """The phase of each frame (T,), in [0, 1), when the clip starts at phase `start`."""
    return (start + np.arange(frames) / frames_per_second * heart_rate / 60) % 1.0


def emptied(phase_T: np.ndarray, heart_rate: float) -> np.ndarray:
    """Share of the stroke volume that has left the ventricle: 0 at end diastole, 1 at end systole."""
    systole = end_systole(heart_rate)
    filled = (phase_T - systole) / (1 - systole)
    early, late = _step((filled - 0.06) / 0.44), _step((filled - 0.68) / 0.32)
    return np.where(
        phase_T < systole,
        _step((phase_T / systole - 0.1) / 0.9),
        1 - EARLY_SHARE * early - (1 - EARLY_SHARE) * late,
    )


def valve_opening(phase_T: np.ndarray, heart_rate: float) -> np.ndarray:
    """How wide mitral and tricuspid valve stand: 0 closed (all systole), 1 open; half closed between the two waves."""
    systole = end_systole(heart_rate)
    filled = (phase_T - systole) / (1 - systole)
    early = _step(filled / 0.1) * (1 - 0.55 * _step((filled - 0.3) / 0.25))
    late = 0.5 * _step((filled - 0.66) / 0.1)
    shut = 1 - _step((filled - 0.9) / 0.1)
    return np.where(phase_T < systole, 0.0, (early + late * _step((filled - 0.3) / 0.25)) * shut)


def _step(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)
