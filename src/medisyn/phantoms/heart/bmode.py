"""What the machine makes of the echoes: point spread, envelope, attenuation, noise, clutter, log compression.

Shapes here: N scatterers, A depths along a beam, B beams, H, W pixels.
"""

from __future__ import annotations

import numpy as np

from medisyn.phantoms.heart.fan import Converter, Fan
from medisyn.phantoms.heart.patient import Patient
from medisyn.phantoms.heart.tissue import PER_CELL

BLOOD_DB = -49.0
HAZE_MM = 7.0  # the clutter before the apex falls to a third within this
KEPT = 0.6  # correlation of the blood's echo from one frame to the next


class Machine:
    """An ultrasound machine with its settings; `picture` makes one frame after the other."""

    def __init__(self, patient: Patient, fan: Fan, rng: np.random.Generator) -> None:
        self.patient, self.fan, self.rng = patient, fan, rng
        self.converter = Converter(fan)
        depths, beams = fan.shape
        pixel = fan.mm_per_pixel
        self.step = fan.depth / (depths - 1)
        self.sigma = (
            max(patient.axial_mm, 0.3 * pixel) / self.step,
            np.deg2rad(max(patient.lateral_degrees, np.rad2deg(0.25 * pixel / (0.6 * fan.depth))))
            / (2 * fan.half / (beams - 1)),
        )
        self.grain = np.float32(np.sqrt(4 * np.pi * self.sigma[0] * self.sigma[1]))  # undoes the loss of power
        depth_A = np.arange(depths) * self.step
        edge_B = np.linspace(-1, 1, beams)
        loss_B = np.where(edge_B < 0, patient.edges[0], patient.edges[1]) * np.abs(edge_B) ** 3
        self.gain_AB = (patient.gain - patient.attenuation * depth_A[:, None] / 100 - loss_B[None]).astype(np.float32)
        self.noise_A = 10 ** ((patient.noise + 7 * depth_A / fan.depth) / 20)
        haze_A = 10 ** ((patient.clutter - 8.7 * depth_A / HAZE_MM) / 20) + 10 ** ((patient.clutter + 16) / 20) * (
            depth_A < 2.5
        )
        self.clutter_AB = self._spread(self._noise() * haze_A[:, None].astype(np.float32))
        self.blood_AB = self._spread(self._noise())

    def picture(self, x_N: np.ndarray, z_N: np.ndarray, echo_N: np.ndarray) -> np.ndarray:
        """One frame, uint8 (H, W), of scatterers at x, z."""
        field_AB = self._spread(_splat(self.fan, x_N, z_N, echo_N)) / np.float32(np.sqrt(PER_CELL))
        self.blood_AB = KEPT * self.blood_AB + np.float32(np.sqrt(1 - KEPT**2)) * self._spread(self._noise())
        field_AB += np.float32(10 ** (BLOOD_DB / 20)) * self.blood_AB + self.clutter_AB
        level_AB = 20 * np.log10(np.abs(field_AB) + 1e-6) + self.gain_AB
        power_AB = 10 ** (level_AB / 10)
        electronic_AB = np.abs(self._noise()) * self.noise_A[:, None]
        level_AB = 10 * np.log10(power_AB + electronic_AB**2)
        p = self.patient
        grey_AB = np.clip((level_AB + p.dynamic_range) / p.dynamic_range, 0, 1).astype(np.float32)
        return np.rint(255 * self.converter(grey_AB)).astype(np.uint8)

    def _noise(self) -> np.ndarray:
        """Complex noise of unit power on the polar grid."""
        parts = self.rng.standard_normal((2, *self.fan.shape), dtype=np.float32)
        return (parts[0] + 1j * parts[1]) * np.float32(np.sqrt(0.5))

    def _spread(self, field_AB: np.ndarray) -> np.ndarray:
        """The point-spread function; white noise keeps its power."""
        from scipy.ndimage import gaussian_filter

        return self.grain * gaussian_filter(field_AB, self.sigma, mode="constant", truncate=3)


def _splat(fan: Fan, x_N: np.ndarray, z_N: np.ndarray, echo_N: np.ndarray) -> np.ndarray:
    """The scatterers on the polar grid, each shared among its four neighbours: motion below a cell stays smooth."""
    depths, beams = fan.shape
    row_N, column_N = fan.to_grid(x_N, z_N)
    inside = (row_N >= 0) & (row_N < depths - 1) & (column_N >= 0) & (column_N < beams - 1)
    row_N, column_N, echo_N = row_N[inside], column_N[inside], echo_N[inside]
    top, left = row_N.astype(np.int64), column_N.astype(np.int64)
    down, right = row_N - top, column_N - left
    index = top * beams + left
    real, imaginary = np.zeros(depths * beams), np.zeros(depths * beams)
    for step, weight in (
        (0, (1 - down) * (1 - right)),
        (1, (1 - down) * right),
        (beams, down * (1 - right)),
        (beams + 1, down * right),
    ):
        real += np.bincount(index + step, weight * echo_N.real, depths * beams)
        imaginary += np.bincount(index + step, weight * echo_N.imag, depths * beams)
    return (real + 1j * imaginary).astype(np.complex64).reshape(depths, beams)
