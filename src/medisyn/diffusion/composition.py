"""Several conditions at once, and the way from one to another.

Shapes here: B requests, M terms of all requests together; `owners_M` says to which request each term belongs.
"""

from __future__ import annotations

import torch


def compose(
    unconditional_B: torch.Tensor,
    conditional_M: torch.Tensor,
    weights_M: torch.Tensor,
    owners_M: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """u + scale * sum_i w_i (c_i - u) for each request (Liu et al. 2022, with weights that are not normalised).

    With one term of weight 1 per request this is `guide`, bit for bit.
    """
    return unconditional_B + scale * _weighted_sum(
        conditional_M - unconditional_B[owners_M], weights_M, owners_M, like=unconditional_B
    )


def mean_condition(
    conditional_M: torch.Tensor, weights_M: torch.Tensor, owners_M: torch.Tensor, num_requests: int
) -> torch.Tensor:
    """sum_i |w_i| c_i / sum_i |w_i| for each request: what the terms say together, without guidance."""
    sizes_M = weights_M.abs()
    totals_B = torch.zeros(num_requests, dtype=sizes_M.dtype, device=sizes_M.device).index_add(0, owners_M, sizes_M)
    like = conditional_M.new_zeros(num_requests, *conditional_M.shape[1:])
    return _weighted_sum(conditional_M, sizes_M / totals_B[owners_M], owners_M, like=like)


def _weighted_sum(
    rows_M: torch.Tensor, weights_M: torch.Tensor, owners_M: torch.Tensor, *, like: torch.Tensor
) -> torch.Tensor:
    weighted = rows_M * weights_M.to(rows_M.dtype).view(-1, *[1] * (rows_M.ndim - 1))
    return torch.zeros_like(like).index_add(0, owners_M, weighted)


def slerp(start: torch.Tensor, end: torch.Tensor, share: float) -> torch.Tensor:
    """From one noise (share 0) to another (share 1) along the sphere (Shoemake 1985), both seen as one long vector.

    Unlike a straight line it passes no point of lower norm, where the denoiser was never trained. Vectors that point
    the same way are mixed in a straight line.
    """
    cosine = torch.dot(start.flatten(), end.flatten()) / (start.norm() * end.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if float(angle.sin()) < 1e-4:
        return torch.lerp(start, end, share)
    return (torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end) / angle.sin()
