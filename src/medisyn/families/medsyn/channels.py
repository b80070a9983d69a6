"""CT and masks as the four channels the networks work on, and back to HU, labels and millimetres.

Shapes here: C channels (CT, lobe, airway, vessel), D, H, W of the model's grid.
Every channel lies in [-1, 1]: CT is HU scaled by the grid's knots, lobe is label / 5 (0 outside, 1 left upper, 2 left
lower, 3 right upper, 4 right middle, 5 right lower) scaled, airway and vessel are -1 outside and 1 inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from medisyn.errors import InputError, RangeError
from medisyn.families.medsyn.config import CHANNELS, NUM_LOBES, Grid
from medisyn.intensity import guard_hu
from medisyn.types import HU, Sample, Volume

MASKS = CHANNELS[1:]
LPS_DIRECTION = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}  # axis, sign
OBLIQUE_COSINE = 0.99  # 8 degrees
GIVEN = 1e-3  # how far from whole numbers lobe labels may lie that were given, not drawn


@dataclass(frozen=True)
class Turn:
    """How a volume's axes become d, h, w of a grid: first permuted, then flipped."""

    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    def apply(self, array_DHW: np.ndarray) -> np.ndarray:
        flips = tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)
        return array_DHW.transpose(self.order)[flips]


def turn_to(affine: np.ndarray, axes: str, key: str) -> Turn:
    """The turn from a volume's axes to `axes` (such as "SPL"). Raises InputError for an oblique volume."""
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    order, flipped = [], []
    for letter in axes:
        world, sign = LPS_DIRECTION[letter]
        index = int(np.abs(cosines[world]).argmax())
        if abs(cosines[world, index]) < OBLIQUE_COSINE:
            raise InputError(
                f"sample {key}: the volume is oblique, its nearest axis is "
                f"{np.degrees(np.arccos(abs(cosines[world, index]))):.0f} degrees away from the patient's. Resample it "
                f"to the patient's axes first."
            )
        order.append(index)
        flipped.append(bool(np.sign(cosines[world, index]) != sign))
    return Turn((order[0], order[1], order[2]), (flipped[0], flipped[1], flipped[2]))


def channels_from_sample(sample: Sample, grid: Grid, names: tuple[str, ...] = CHANNELS) -> torch.Tensor:
    """The named channels of a sample on the grid, (C, D, H, W) float32 in [-1, 1].

    The volume may be the grid's shape, or the same whole number of times finer along each axis; then every k-th voxel
    is taken, as MedSyn does. Raises InputError or RangeError that says which sample and why it does not fit.
    """
    volume = _ct_volume(sample)
    turn = turn_to(volume.affine, grid.axes, sample.key)
    step = _step(volume, turn, grid, sample.key)
    channels = []
    for name in names:
        array_DHW = volume.array_CDHW[0] if name == "ct" else _mask(sample, name)
        picked = turn.apply(array_DHW)[::step, ::step, ::step]
        channels.append(scale_hu(picked, grid) if name == "ct" else scale_mask(name, picked, sample.key))
    return torch.from_numpy(np.stack(channels))


def scale_hu(hu_DHW: np.ndarray, grid: Grid) -> np.ndarray:
    """HU as [-1, 1], float32. Raises RangeError for numbers that cannot be HU."""
    guard_hu(hu_DHW)
    return np.interp(hu_DHW, grid.hu_knots, _levels(grid)).astype(np.float32)


def scale_mask(name: str, array_DHW: np.ndarray, key: str) -> np.ndarray:
    """Labels as [-1, 1], float32. Raises RangeError for numbers that the mask cannot hold."""
    highest = NUM_LOBES if name == "lobe" else 1
    labels = np.unique(array_DHW)
    if not np.isin(labels, np.arange(highest + 1)).all():
        raise RangeError(
            f"sample {key}: mask {name!r} holds {', '.join(f'{label:g}' for label in labels[:8])}; allowed are whole "
            f"numbers from 0 to {highest}"
            + (" (1 left upper, 2 left lower, 3 right upper, 4 right middle, 5 right lower)" if name == "lobe" else "")
        )
    return array_DHW.astype(np.float32) / highest * 2 - 1


def _ct_volume(sample: Sample) -> Volume:
    volume = sample.item
    if not isinstance(volume, Volume) or volume.array_CDHW.shape[0] != 1:
        raise InputError(f"sample {sample.key}: MedSyn learns from CT volumes of one channel, got {_describe(volume)}")
    if volume.value_range.unit != "hu":
        raise RangeError(
            f"sample {sample.key}: the volume is in {volume.value_range.unit!r}, MedSyn takes HU. Hand over the CT "
            f"before any normalisation."
        )
    return volume


def _describe(item: object) -> str:
    array = getattr(item, "array_CDHW", None)
    return type(item).__name__ if array is None else f"a volume of {array.shape[0]} channels"


def _mask(sample: Sample, name: str) -> np.ndarray:
    shape = sample.item.array_CDHW.shape[1:]  # type: ignore[union-attr]
    if name not in sample.masks:
        there = ", ".join(sorted(sample.masks)) or "none"
        raise InputError(
            f"sample {sample.key}: mask {name!r} is missing, there are: {there}. MedSyn needs {', '.join(MASKS)}; "
            f"segment the CT first."
        )
    mask = np.asarray(sample.masks[name])
    if mask.shape != shape:
        raise InputError(f"sample {sample.key}: mask {name!r} has shape {mask.shape}, its CT {shape}")
    return mask


def _step(volume: Volume, turn: Turn, grid: Grid, key: str) -> int:
    """How many of the volume's voxels stand for one of the grid along each axis; checks shape and spacing."""
    shape = [volume.array_CDHW.shape[1:][axis] for axis in turn.order]
    step = shape[0] // grid.shape[0]
    if step < 1 or [side * step for side in grid.shape] != shape:
        raise InputError(
            f"sample {key}: {shape[0]}x{shape[1]}x{shape[2]} voxels (along {grid.axes}) are not a whole multiple of "
            f"the model's {'x'.join(map(str, grid.shape))}. Resample the volume to one."
        )
    spacing = [volume.spacing_mm[axis] * step for axis in turn.order]
    for letter, got, wanted in zip(grid.axes, spacing, grid.spacing_mm, strict=True):
        if abs(got - wanted) > grid.spacing_tolerance * wanted:
            raise InputError(
                f"sample {key}: on the model's grid its voxels measure {got:.2f} mm along {letter}, the model's "
                f"{wanted:.2f} mm; at most {100 * grid.spacing_tolerance:g} % may differ. Resample the volume to the "
                f"model's field of view, or give the model another spacing."
            )
    return step


def volume_from_channels(channels_CDHW: torch.Tensor, grid: Grid) -> Volume:
    """The CT channel as HU, float32 (1, D, H, W), along SPL, with its centre at the origin of the patient's axes."""
    ct_DHW = np.interp(channels_CDHW[0].float().cpu().numpy(), _levels(grid), grid.hu_knots).astype(np.float32)
    return Volume(standing(ct_DHW, grid)[None], standing_affine(grid), HU)


def _levels(grid: Grid) -> np.ndarray:
    """The channel's values at the grid's knots."""
    return np.linspace(-1, 1, len(grid.hu_knots))


def masks_from_channels(channels_CDHW: torch.Tensor, grid: Grid) -> dict[str, np.ndarray]:
    """The three masks, uint8 (D, H, W), in the same axes as `volume_from_channels`: threshold 0, and `lobe_labels`."""
    unit = ((channels_CDHW.float().clamp(-1, 1) + 1) / 2).cpu().numpy()
    labels = {name: (unit[number] > 0.5).astype(np.uint8) for number, name in enumerate(CHANNELS) if name in MASKS}
    labels["lobe"] = lobe_labels(unit[CHANNELS.index("lobe")] * NUM_LOBES)
    return {name: standing(label_DHW, grid) for name, label_DHW in labels.items()}


def lobe_labels(values_DHW: np.ndarray) -> np.ndarray:
    """The nearest label, uint8, without the bands that in-between values leave; given labels stay as they are.

    One channel holds all lobes, so a soft edge from 0 to 5 passes 1 to 4. What is too thin to hold a voxel with all its
    six neighbours takes the label of the nearest place that is not.
    """
    from scipy import ndimage

    labels_DHW = values_DHW.round().astype(np.uint8)
    if np.abs(values_DHW - labels_DHW).max() < GIVEN:
        return labels_DHW
    firm_DHW = np.zeros(labels_DHW.shape, dtype=bool)
    for label in range(NUM_LOBES + 1):
        there_DHW = np.pad(labels_DHW == label, 1, mode="edge")  # what reaches the rim goes on beyond it
        firm_DHW |= ndimage.binary_opening(there_DHW)[1:-1, 1:-1, 1:-1]
    if not firm_DHW.any():
        return labels_DHW
    nearest = ndimage.distance_transform_edt(~firm_DHW, return_distances=False, return_indices=True)
    return np.asarray(labels_DHW[tuple(nearest)])


def standing(array_DHW: np.ndarray, grid: Grid) -> np.ndarray:
    """An array along grid.axes as one along SPL."""
    flips = tuple(slice(None, None, 1 if have == want else -1) for have, want in zip(grid.axes, "SPL", strict=True))
    return np.ascontiguousarray(array_DHW[flips])


def standing_affine(grid: Grid) -> np.ndarray:
    """(d, h, w) along S, P, L to LPS millimetres, the middle of the volume at the origin."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, (world, side, spacing) in enumerate(zip((2, 1, 0), grid.shape, grid.spacing_mm, strict=True)):
        affine[world, column] = spacing
        affine[world, 3] = -spacing * (side - 1) / 2
    return affine


def stack_known(known: Mapping[str, torch.Tensor] | None, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Given channels as values (C, D, H, W) and which are given (C, 1, 1, 1). Raises InputError for a wrong one."""
    values = torch.zeros(len(CHANNELS), *grid.shape)
    given = torch.zeros(len(CHANNELS), 1, 1, 1, dtype=torch.bool)
    for name, channel_DHW in (known or {}).items():
        if name not in CHANNELS:
            raise InputError(f"channel {name!r} is unknown, allowed: {', '.join(CHANNELS)}")
        if tuple(channel_DHW.shape) != grid.shape:
            raise InputError(f"channel {name!r} has shape {tuple(channel_DHW.shape)}, the model's grid {grid.shape}")
        if not torch.isfinite(channel_DHW).all() or channel_DHW.abs().max() > 1:
            raise RangeError(f"channel {name!r} must lie in [-1, 1]; use `known_from` to scale HU and labels")
        values[CHANNELS.index(name)], given[CHANNELS.index(name)] = channel_DHW, True
    return values, given
