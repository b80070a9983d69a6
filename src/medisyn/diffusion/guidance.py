"""Classifier-free guidance on the network's output, whatever that output predicts."""

from __future__ import annotations

import torch


def guide(unconditional: torch.Tensor, conditional: torch.Tensor, scale: float) -> torch.Tensor:
    """unconditional + scale * (conditional - unconditional) (Ho and Salimans 2022, in the scale >= 1 convention)."""
    return unconditional + scale * (conditional - unconditional)


def rescale_guided(guided: torch.Tensor, conditional: torch.Tensor, share: float) -> torch.Tensor:
    """Pull the spread of each row back to that of its conditional prediction (Lin et al. 2023, section 3.4).

    `share` is the paper's phi: 0 leaves `guided` as it is, 1 gives it the conditional standard deviation.
    """
    axes = list(range(1, guided.ndim))
    rescaled = guided * (conditional.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return share * rescaled + (1 - share) * guided
