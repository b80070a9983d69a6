"""What the requests of one call tell the network, and the velocity that follows from it.

Shapes here: B requests, C latent channels, T frames of the network's clips, h, w latent rows and columns, L text
tokens, E text width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from medisyn.diffusion.guidance import guide, rescale_guided
from medisyn.errors import InputError
from medisyn.families.higen.appearance import appearance_matrix
from medisyn.families.higen.sampler import Velocity
from medisyn.types import Request


def shared_values(resolved: Sequence[Request]) -> tuple[int, int, int, int, float]:
    """Frames, height, width, steps and guidance of requests that `HiGen.resolve` filled; InputError if they differ."""
    asked = {(r.frames, r.height, r.width, r.steps, r.guidance) for r in resolved}
    if len(asked) != 1:
        raise InputError(
            f"requests of one call must share frames, height, width, steps and guidance, got {len(asked)} kinds: "
            f"{sorted(asked, key=str)}. Group them first."
        )
    return next(iter(asked))  # type: ignore[return-value]  # resolve filled all five in


def motion_and_appearance(resolved: Sequence[Request], frames: int) -> dict[str, torch.Tensor]:
    """Motion (B, T - 1) and appearance (B, T, T) of one window, for each request; NaN where it is left open."""
    motion = torch.tensor([[torch.nan if r.motion is None else float(r.motion)] * (frames - 1) for r in resolved])
    matrices = [
        torch.full((frames, frames), torch.nan)
        if r.appearance is None
        else torch.from_numpy(appearance_matrix(r.appearance, frames))
        for r in resolved
    ]
    return {"motion_BT": motion, "appearance_BTT": torch.stack(matrices)}


def guided_velocity(
    unet: Any,
    text_BLE: torch.Tensor,
    away_BLE: torch.Tensor,
    told: Mapping[str, torch.Tensor],
    *,
    guidance: float,
    rescale: float,
) -> Velocity:
    """The velocity, guided as away + scale * (text - away); both are told the same besides the text (published)."""
    dtype = unet.dtype

    def velocity(x_BCThw: torch.Tensor, time: int) -> torch.Tensor:
        if guidance == 1:
            times_B = torch.full((len(x_BCThw),), time, device=x_BCThw.device)
            cast = {name: value.to(dtype) if name == "prior_BCHW" else value for name, value in told.items()}
            return unet(x_BCThw.to(dtype), times_B, text_BNE=text_BLE.to(dtype), **cast).float()
        doubled = {
            name: torch.cat([value, value]).to(dtype if name == "prior_BCHW" else value.dtype)
            for name, value in told.items()
        }
        times_B = torch.full((2 * len(x_BCThw),), time, device=x_BCThw.device)
        both = torch.cat([away_BLE, text_BLE]).to(dtype)
        answer = unet(torch.cat([x_BCThw, x_BCThw]).to(dtype), times_B, text_BNE=both, **doubled).float()
        blank, asked = answer.chunk(2)
        guided = guide(blank, asked, guidance)
        return rescale_guided(guided, asked, rescale) if rescale > 0 else guided

    return velocity
