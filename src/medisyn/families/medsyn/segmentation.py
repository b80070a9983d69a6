"""Masks of a given CT from several draws of a model that keeps it: lobes by vote, trees by the best expected Dice.

Shapes here: S draws, C channels (CT, lobe, airway, vessel), D, H, W voxels of the grid.
"""

from __future__ import annotations

import numpy as np
import torch

from medisyn.families.medsyn.channels import MASKS, masks_from_channels, standing
from medisyn.families.medsyn.config import CHANNELS, NUM_LOBES, Grid


def masks_of_draws(draws_SCDHW: torch.Tensor, means_SCDHW: torch.Tensor, grid: Grid) -> dict[str, np.ndarray]:
    """The masks "lobe" (0 to 5), "airway" and "vessel", uint8 (D, H, W), in the axes of `masks_from_channels`.

    Each draw votes for the lobe of a voxel; of labels with equal votes the one that was drawn first is taken, since the
    lowest would be the background and shrink the lungs. The average of the means, one for each draw, is the chance that
    a voxel is airway or vessel, and becomes a mask by `best_dice_mask`. A mean says nothing of lobes: between labels 1
    and 5 it lies at 3.
    """
    lobes = np.stack([masks_from_channels(draw, grid)["lobe"] for draw in draws_SCDHW])
    weights_S = 1 + 0.5 ** np.arange(1, len(lobes) + 1)  # together less than one vote more, the first draw most
    votes = np.stack([np.tensordot(weights_S, lobes == label, axes=1) for label in range(NUM_LOBES + 1)])
    chances = ((means_SCDHW.float().clamp(-1, 1).mean(dim=0) + 1) / 2).cpu().numpy()
    trees = {
        name: standing(best_dice_mask(chances[CHANNELS.index(name)]).astype(np.uint8), grid)
        for name in MASKS
        if name != "lobe"
    }
    return {"lobe": votes.argmax(axis=0).astype(np.uint8), **trees}


def best_dice_mask(chance_DHW: np.ndarray) -> np.ndarray:
    """The mask, bool (D, H, W), of the greatest Dice to be expected, where each voxel is in the truth by its chance.

    Of voxels in falling order of chance the first k are taken, with the k that maximises 2 sum_k p / (k + sum p): the
    ratio of expectations, whose cut is half of the Dice that is reached (Lipton et al. 2014, "Optimal thresholding of
    classifiers to maximize F1 measure"). Thin trees, of whose voxels hardly one is certain, are lost at a cut of 0.5.
    Where less than a voxel is expected the mask is empty.
    """
    chances = np.sort(chance_DHW.ravel().astype(np.float64))[::-1]
    expected = chances.sum()
    if expected < 1:
        return np.zeros(chance_DHW.shape, dtype=bool)
    scores = 2 * np.cumsum(chances) / (np.arange(1, len(chances) + 1) + expected)
    return np.asarray(chance_DHW >= chances[int(np.argmax(scores))])
