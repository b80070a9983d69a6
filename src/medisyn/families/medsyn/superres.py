"""MedSyn's super-resolution model as a family: trained on crops, run in overlapping tiles.

Shapes here: B samples, C channels (CT, lobe, airway, vessel), D, H, W of the fine grid, d, h, w of the base grid.
What `encode` returns: "channels" (B, C, D, H, W) float16 in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from medisyn.diffusion.clean_solvers import solve
from medisyn.diffusion.cosine import cosine_alpha_sigma
from medisyn.diffusion.schedules import add_noise
from medisyn.errors import InputError, ModelError
from medisyn.families.base import ParamGroup
from medisyn.families.medsyn.base_model import Known, eval_mode
from medisyn.families.medsyn.channels import channels_from_sample, stack_known, volume_from_channels
from medisyn.families.medsyn.config import CHANNELS, Grid, MedSynDefaults, SuperResolutionConfig
from medisyn.families.medsyn.networks import MedSynUNet
from medisyn.families.medsyn.objective import (
    crop_shape,
    cut,
    draw_given,
    draw_superres,
    error_per_sample,
    keep_voxels,
    lower_resolution,
    noisy_condition,
    repeat_voxels,
    weight_of,
    with_what_is_seen,
)
from medisyn.families.medsyn.tiles import in_tiles
from medisyn.seeding import generator_for
from medisyn.types import Item, Request, Sample

if TYPE_CHECKING:
    from medisyn.families.base import Encoded


class MedSynSuperResolution:
    """Implements `families.base.Family`; `sample` refuses, since there is nothing to refine: use `upscale`."""

    def __init__(
        self,
        unet: MedSynUNet,
        base_grid: Grid | None = None,
        config: SuperResolutionConfig | None = None,
        defaults: MedSynDefaults | None = None,
    ) -> None:
        self.unet: Any = unet
        self.config = config or SuperResolutionConfig()
        self.base_grid, self.defaults = base_grid or Grid(), defaults or MedSynDefaults()
        self.grid = self.base_grid.finer(self.config.factor)
        if unet.reads_text:
            raise ModelError("the super-resolution network reads a volume, not text; this is a base network")
        self.multiples = (unet.config["patch"], unet.factor, unet.factor)
        for what, sides in (("grid", self.grid.shape), ("crop", self.config.crop), ("tile", self.defaults.tile)):
            if any(side % multiple for side, multiple in zip(sides, self.multiples, strict=True)):
                depth, slice_side = self.multiples[:2]
                raise ModelError(
                    f"height and width of the {what} must divide by {slice_side}, its depth by {depth}, got {sides}"
                )
        unet.eval()

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def to(self, device: str | torch.device) -> MedSynSuperResolution:
        """Move the network; returns self."""
        self.unet.to(device)
        return self

    def encode(self, samples: Sequence[Sample]) -> Encoded:
        """CT volumes in HU with their masks at the fine grid, as the rows described above; reports are not read."""
        channels = torch.stack([channels_from_sample(sample, self.grid) for sample in samples])
        return {"channels": channels.half()}

    def loss(self, encoded: Encoded, draws: Sequence[torch.Generator]) -> torch.Tensor:
        """Loss per sample (B,) on one crop of each: weighted squared error of the predicted clean channels."""
        fine, factor = encoded["channels"], self.config.factor
        drawn = draw_superres(draws, fine.shape[1:], self.config)
        clean = cut(fine, drawn.corners, crop_shape(fine.shape[2:], self.config)).to(self.device)
        low = repeat_voxels(lower_resolution(clean, factor), factor)
        levels, noise = drawn.noise_levels_B.to(self.device), drawn.noise_BCDHW.to(self.device)
        condition = noisy_condition(low, drawn.condition_noise_BCDHW.to(self.device), levels)
        times = drawn.times_B.to(self.device)
        alpha, sigma = cosine_alpha_sigma(times, clean.ndim)
        given = draw_given(draws, self.config.given_share).to(self.device)
        noisy = torch.where(given, clean, add_noise(clean, noise, alpha, sigma))
        guess = self.unet(noisy, times, condition_BCDHW=condition)
        predicted = with_what_is_seen(guess, noisy, times, self.config.ct_residual)
        error = error_per_sample(predicted, clean, given, self.config.lung_weight, self.config.lung_reach)
        return weight_of(times, self.config.weight_limit) * error

    def upscale(
        self,
        low_BCdhw: torch.Tensor,
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        known: Sequence[Known | None] | None = None,
    ) -> torch.Tensor:
        """Channels of the base grid as channels of the fine grid, (B, C, D, H, W) float32 in [-1, 1], on the CPU.

        `known[i]` holds the channels of row i that are given at the fine grid; as in the base model each clean
        prediction gets them, and the result has them exactly. The published code keeps them in the base model alone.

        Each network call runs tile by tile and its clean prediction is blended, so all tiles share one trajectory and
        one noise. Beside one tile's activations, memory holds about six volumes of the fine grid in float32.
        """
        if tuple(low_BCdhw.shape[1:]) != (len(CHANNELS), *self.base_grid.shape):
            raise InputError(
                f"the super-resolution model refines {(len(CHANNELS), *self.base_grid.shape)} channels and voxels, got "
                f"{tuple(low_BCdhw.shape[1:])}: base and super-resolution model do not belong together"
            )
        rows = [
            self._upscale_one(low[None], seed, steps or self.defaults.superres_steps, stack_known(given, self.grid))
            for low, seed, given in zip(low_BCdhw, seeds, known or [None] * len(seeds), strict=True)
        ]
        return torch.cat(rows)

    def _upscale_one(
        self, low_1Cdhw: torch.Tensor, seed: int, steps: int, known: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        values, is_given = known
        low = low_1Cdhw.float().cpu()
        condition = repeat_voxels(low, self.config.factor)
        generator = generator_for(seed, "superres")

        def draw() -> torch.Tensor:
            return torch.randn(condition.shape[1:], generator=generator)[None]

        def predict(x_BCDHW: torch.Tensor, time: float) -> torch.Tensor:
            def tile_call(noisy: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
                times, dtype = torch.full((len(noisy),), time, device=self.device), self.unet.dtype
                noisy, given = noisy.to(self.device), given.to(self.device)
                guess = self.unet(noisy.to(dtype), times, condition_BCDHW=given.to(dtype))
                return with_what_is_seen(guess, noisy, times, self.config.ct_residual).cpu()

            seen = torch.where(is_given, values, x_BCDHW) if self.config.given_share else x_BCDHW
            clean = in_tiles(
                tile_call,
                (seen, condition),
                tile=self.defaults.tile,
                overlap=self.defaults.overlap,
                multiples=self.multiples,
            )
            if self.defaults.keep_base:
                kept_ct = keep_voxels(clean[:, :1], low[:, :1], self.config.factor)
                clean = torch.cat([kept_ct, clean[:, 1:]], dim=1)
            return torch.where(is_given, values, clean).clamp(-1, 1)

        with eval_mode(self.unet):
            return solve(predict, draw, self.defaults.solver, steps)

    def sample(self, requests: Sequence[Request]) -> torch.Tensor:
        """Refuses: the model refines a volume of the base model."""
        raise InputError("the super-resolution model needs a volume of the base model to refine: use `upscale`")

    def decode(self, latents: torch.Tensor) -> list[Item]:
        """Fine channels as CT volumes in HU, along S, P, L with the fine grid's spacing."""
        return [volume_from_channels(row, self.grid) for row in latents]

    def trainable(self) -> list[ParamGroup]:
        """The U-Net; puts it in training mode."""
        self.unet.train()
        return [ParamGroup("unet", list(self.unet.parameters()))]
