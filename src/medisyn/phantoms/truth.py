"""What is true of a phantom, summed from the shares of its voxels before the scanner adds noise.

Volumes are sums of shares, so they hardly depend on the voxel size; masks count whole voxels and differ by the rounding
at their edges. Shapes here: D, H, W voxels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medisyn.phantoms.findings import KINDS, LOBES
from medisyn.phantoms.paint import Slab


class Tally:
    """Sums over the slabs of one phantom."""

    def __init__(self, spacing_mm: tuple[float, float, float]) -> None:
        self.spacing_mm = spacing_mm
        self.voxel_ml = float(np.prod(spacing_mm)) / 1000
        self.sums: dict[str, float] = {}
        self.heart_DW: list[np.ndarray] = []
        self.cavity_DW: list[np.ndarray] = []

    def add(self, slab: Slab) -> None:
        """Count one slab."""
        lung, lobe = slab.shares["lung"], slab.masks["lobe"]
        for label, name in enumerate(LOBES, start=1):
            self._add(f"lobe_ml {name}", float(lung[lobe == label].sum()) * self.voxel_ml)
        for name in ("effusion", "airway", "vessel", "heart"):
            share = slab.shares[name] * slab.shares["cavity"] if name == "effusion" else slab.shares[name]
            self._add(f"{name}_ml", float(share.sum()) * self.voxel_ml)
        for number, kind in enumerate(KINDS, start=1):
            self._add(f"finding_ml {kind}", float((slab.masks["finding"] == number).sum()) * self.voxel_ml)
        inside = (lobe > 0) & (slab.shares["wall"] < 0.1)
        values = slab.hu[inside]
        self._add("voxels", float(len(values)))
        self._add("hu", float(values.sum(dtype=np.float64)))
        self._add("below 950", float((values < -950).sum()))
        self._add("below 910", float((values < -910).sum()))
        self.heart_DW.append(slab.shares["heart"].max(axis=1))
        self.cavity_DW.append(slab.shares["cavity"].max(axis=1))

    def _add(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value

    def truth(self) -> dict[str, Any]:
        """All figures: volumes in mL, shares of low attenuation in percent, the cardiothoracic ratio."""
        voxels = max(self.sums["voxels"], 1.0)
        lobes = {name: round(self.sums[f"lobe_ml {name}"], 2) for name in LOBES}
        return {
            "lobe_ml": lobes,
            "lung_ml": round(sum(lobes.values()), 2),
            **{f"{name}_ml": round(self.sums[f"{name}_ml"], 3) for name in ("effusion", "airway", "vessel", "heart")},
            "finding_ml": {kind: round(self.sums[f"finding_ml {kind}"], 2) for kind in KINDS},
            "laa950_percent": round(100 * self.sums["below 950"] / voxels, 4),
            "laa910_percent": round(100 * self.sums["below 910"] / voxels, 4),
            "mean_lung_hu": round(self.sums["hu"] / voxels, 2),
            "cardiothoracic_ratio": round(self._cardiothoracic_ratio(), 4),
        }

    def _cardiothoracic_ratio(self) -> float:
        """Widest axial heart over the pleural spaces' outer width in the same slice, both to a part of a voxel."""
        heart_DW, cavity_DW = np.concatenate(self.heart_DW), np.concatenate(self.cavity_DW)
        widths = [_width(row) for row in heart_DW]
        slice_ = int(np.argmax(widths))
        return widths[slice_] / max(_width(cavity_DW[slice_]), 1e-6)


def _width(share_W: np.ndarray) -> float:
    """Voxels from the first to the last place where the share crosses one half, interpolated."""
    inside = np.flatnonzero(share_W >= 0.5)
    if len(inside) == 0:
        return 0.0
    first, last = int(inside[0]), int(inside[-1])
    width = float(last - first)
    for edge, beyond in ((first, first - 1), (last, last + 1)):
        if 0 <= beyond < len(share_W):
            high, low = float(share_W[edge]), float(share_W[beyond])
            width += (high - 0.5) / (high - low) if high > low else 0.0
    return width
