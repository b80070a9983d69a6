"""Lay the phantom's own ventricle over grey frames: the outline with the best contrast, its volume frame by frame.

One pose and one size hold for the clip; in each frame a single number moves, the share of the largest volume, and the
long axis shortens with it as in section.py. Nothing but the frames is used.

Shapes here: T frames, H, W pixels, X points of the look-up grid, V volumes that are tried, P points on the outline.
Lengths are in shares of the picture's height, from the middle of its upper edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medisyn.phantoms.heart.section import LONG_AXIS_SHARE, outline

ROWS = 64  # frames are averaged down to about this height
FINER = 3  # and looked up on a grid this much finer
BLUR = 0.8 / 64
# A pose: x and z of the apex, tilt in radians, length of the axis, radius / length, bulge of the left and right side
LOW = np.array([-0.09, 0.13, -0.26, 0.44, 0.25, -0.12, -0.1])
HIGH = np.array([0.16, 0.25, 0.26, 0.64, 0.40, 0.12, 0.15])
CANDIDATES, STARTS, STEPS = 512, 3, 200  # tried coarsely (a power of two), refined, steps of each refinement
SHARES_V = np.linspace(0.2, 1.0, 13)
FINE_V = np.linspace(0.1, 1.15, 106)
SMOOTH = 7.0  # steps of FINE_V over which the contrast is averaged before its maximum is taken
REACH = 0.03  # inside and outside are looked at this far from the outline
SIDE_U = np.linspace(0.03, 0.97, 14)  # places on each side
WALLS_U = 0.8  # in front of this, no leaflet stands beside the wall
INNER_U = np.concatenate([np.repeat([0.2, 0.32, 0.44, 0.55, 0.65], 3), [0.75, 0.8, 0.85]])  # places in the cavity;
INNER_N = np.concatenate(
    [np.tile([-0.55, 0.0, 0.55], 5), np.zeros(3)]
)  # far back only its axis: open leaflets leave it
VALVE_N = np.linspace(-0.7, 0.7, 7)  # places on the closed valve, in shares of the radius there
TENT = 0.25  # height of the closed valve, in shares of that radius
VALVE_WEIGHT, INNER_WEIGHT = 1.5, 2.0  # against the side walls


@dataclass(frozen=True, eq=False)
class Fit:
    """The best outline: its pose, the contrast on it (0 none, 1 black on white), and each frame's share of volume."""

    pose: np.ndarray
    contrast: float
    share_T: np.ndarray


class Ground:
    """The frames, prepared for looking up: 0 where they are as dark as blood, 1 as bright as muscle."""

    def __init__(self, frames_THW: np.ndarray) -> None:
        from scipy.ndimage import gaussian_filter, zoom

        factor = max(1, round(frames_THW.shape[1] / ROWS))
        frames, height, width = len(frames_THW), frames_THW.shape[1] // factor, frames_THW.shape[2] // factor
        blocks = frames_THW[:, : height * factor, : width * factor].astype(np.float32)
        small = blocks.reshape(frames, height, factor, width, factor).mean(axis=(2, 4))
        smooth = gaussian_filter(small, (0, BLUR * height, BLUR * height))
        left = max(int(width / 2 - 0.25 * height), 0)
        dark, bright = two_levels(smooth[:, int(0.15 * height) : int(0.75 * height), left : left + int(0.55 * height)])
        level = np.clip((smooth - dark) / max(bright - dark, 1e-6), 0, 1)
        grid_THW = zoom(level, (1, FINER, FINER), order=1, grid_mode=True, mode="nearest")
        self.size, self.scale = grid_THW.shape[1:], height * FINER
        self.flat_TX = grid_THW.reshape(frames, -1)

    def look(self, x: np.ndarray, z: np.ndarray, *, between: bool = False) -> np.ndarray:
        """Levels (T, ...) at positions in shares of the height: of the nearest point, or interpolated."""
        height, width = self.size
        row = np.clip(z * self.scale - 0.5 * between, 0, height - 1.001)
        column = np.clip(x * self.scale + width / 2 - 0.5 * between, 0, width - 1.001)
        top, left = row.astype(np.int64), column.astype(np.int64)
        first = top * width + left
        if not between:
            return self.flat_TX[:, first]
        down, right = row - top, column - left
        upper = (1 - right) * self.flat_TX[:, first] + right * self.flat_TX[:, first + 1]
        lower = (1 - right) * self.flat_TX[:, first + width] + right * self.flat_TX[:, first + width + 1]
        return np.asarray((1 - down) * upper + down * lower)


def two_levels(values: np.ndarray) -> tuple[float, float]:
    """Mean grey of the dark and of the bright pixels, parted where their means differ most (Otsu, 1979)."""
    counts, edges = np.histogram(values, bins=128)
    middle = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), counts.sum()
    mass, whole = np.cumsum(counts * middle), (counts * middle).sum()
    low = mass / np.maximum(below, 1)
    high = (whole - mass) / np.maximum(total - below, 1)
    best = int(np.argmax(below * (total - below) * (high - low) ** 2.0))
    return float(low[best]), float(high[best])


def fit(frames_THW: np.ndarray) -> Fit:
    """Find the ventricle: poses spread evenly are tried on some frames, the best are refined on all of them."""
    from scipy.ndimage import gaussian_filter1d
    from scipy.optimize import minimize
    from scipy.stats import qmc

    ground, few = Ground(frames_THW), Ground(frames_THW[:: max(1, len(frames_THW) // 5)])
    poses = LOW + (HIGH - LOW) * qmc.Sobol(len(LOW), scramble=False).random(CANDIDATES)
    poses[:, 5:] *= 0.3
    found = np.array([_score(few, pose, SHARES_V[::3]) for pose in poses])

    def loss(pose: np.ndarray) -> float:
        beyond = np.sum(np.maximum(pose - HIGH, 0) + np.maximum(LOW - pose, 0))
        return 10 * float(beyond) - _score(ground, pose, SHARES_V)

    results = []
    for start in poses[np.argsort(-found)[:STARTS]]:
        simplex = start + np.vstack([np.zeros(len(LOW)), np.diag(0.08 * (HIGH - LOW))])
        options = {"initial_simplex": simplex, "maxfev": STEPS}
        results.append(minimize(loss, start, method="Nelder-Mead", options=options))
    best = min(results, key=lambda result: float(result.fun))
    walls_TV = wall_scores(ground, best.x, FINE_V, between=True, until=WALLS_U)
    share_T = FINE_V[np.argmax(gaussian_filter1d(walls_TV, SMOOTH, axis=1, mode="nearest"), axis=1)]
    return Fit(best.x, float(-best.fun / (2 * best.x[3])), share_T)


def section_of(found: Fit, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Area (square pixels) and volume by the method of discs (cubic pixels) of a fit in each frame, (T,) each."""
    length_T, radius_T = _shape(found.pose, found.share_T)
    u = np.linspace(0, 1, 1001)
    width = outline(u, (found.pose[5], 0.0)) + outline(u, (found.pose[6], 0.0))
    mean, square = float(np.trapezoid(width, u)), float(np.trapezoid(width**2, u))
    return height**2 * length_T * radius_T * mean, height**3 * np.pi / 4 * length_T * radius_T**2 * square


def _score(ground: Ground, pose: np.ndarray, shares_V: np.ndarray) -> float:
    """How well a pose lies on the clip when each frame takes its best volume: contrast times length of outline."""
    total_TV = wall_scores(ground, pose, shares_V)
    length_V, radius_V = (lengths[:, None] for lengths in _shape(pose, shares_V))
    inner = _look(ground, pose, length_V * INNER_U, radius_V * INNER_N * outline(INNER_U, (0.0, 0.0)))
    total_TV -= INNER_WEIGHT * 2 * pose[3] * inner.mean(axis=2)
    ring_V = radius_V * outline(np.ones(1), (0.0, 0.0))
    l_VP, n_VP = length_V - TENT * ring_V * (1 - VALVE_N**2), ring_V * VALVE_N
    ridge = _look(ground, pose, l_VP, n_VP)
    for step in (-REACH, REACH):
        ridge = ridge - 0.5 * _look(ground, pose, l_VP + step, n_VP)
    total_TV += VALVE_WEIGHT * (ridge * ring_V * (VALVE_N[1] - VALVE_N[0])).sum(axis=2)
    return float(total_TV.max(axis=1).mean())


def wall_scores(
    ground: Ground, pose: np.ndarray, shares_V: np.ndarray, *, between: bool = False, until: float = 1.0
) -> np.ndarray:
    """Level outside less level inside, summed along both sides up to u = `until`, for each frame and volume (T, V)."""
    length_V, radius_V = (lengths[:, None] for lengths in _shape(pose, shares_V))
    u_P = SIDE_U[until >= SIDE_U]
    total_TV = np.zeros((len(ground.flat_TX), len(shares_V)))
    for sign, bulge in ((-1, pose[5]), (1, pose[6])):
        half_P = outline(u_P, (bulge, 0.0))
        l_VP, n_VP = length_V * u_P, radius_V * half_P
        slope_VP = radius_V * np.gradient(half_P, u_P)
        arc_VP = np.hypot(slope_VP, length_V)  # length of outline for a step in u
        along_VP, beside_VP = -REACH * slope_VP / arc_VP, REACH * length_V / arc_VP
        outside = _look(ground, pose, l_VP + along_VP, sign * (n_VP + beside_VP), between)
        inside = _look(ground, pose, l_VP - along_VP, sign * (n_VP - beside_VP), between)
        total_TV += ((outside - inside) * arc_VP * (u_P[1] - u_P[0])).sum(axis=2)
    return total_TV


def _shape(pose: np.ndarray, shares_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Length and radius (V,) of the ventricle at shares of its largest volume."""
    length_V = pose[3] * (1 - LONG_AXIS_SHARE * (1 - shares_V))
    return length_V, pose[4] * pose[3] * np.sqrt(shares_V * pose[3] / length_V)


def _look(ground: Ground, pose: np.ndarray, l: np.ndarray, n: np.ndarray, between: bool = False) -> np.ndarray:  # noqa: E741
    """Levels at places along and beside the axis of a pose."""
    sin, cos = np.sin(pose[2]), np.cos(pose[2])
    return ground.look(pose[0] + l * sin + n * cos, pose[1] + l * cos - n * sin, between=between)
