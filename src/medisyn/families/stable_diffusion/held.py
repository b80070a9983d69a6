"""What an inpainting holds of a picture while the rest is painted.

Shapes here: B requests, C latent channels, h, w latent rows and columns.
An ordinary checkpoint is led by clean-estimate replacement: at every step the network's estimate of the clean latents
is replaced by the picture's own where it is held, and the solver goes on from there. An inpainting checkpoint reads the
mask and the picture without its masked part beside the noisy latents, and needs no replacement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from medisyn.diffusion.targets import clean_from_noise, clean_from_velocity, target_for
from medisyn.errors import ConfigError, InputError
from medisyn.families.stable_diffusion.latents import scale_latents
from medisyn.families.stable_diffusion.networks import Networks

FROM_THE_START = ("PNDMScheduler", "LMSDiscreteScheduler")  # what diffusers has them remember is then not there


@dataclass(frozen=True)
class Held:
    """One batch. `fill_B1hw` is the share of each latent cell to be painted, from 0 (held) to 1.

    `strength` in (0, 1] is the share of the steps that are made: below 1 the masked part starts from the picture's own
    latents with noise on them. `beside_BXhw` holds what an inpainting checkpoint reads: mask and masked latents.
    """

    clean_BChw: torch.Tensor
    fill_B1hw: torch.Tensor
    strength: float
    prediction_type: str
    beside_BXhw: torch.Tensor | None = None

    def begin(self, scheduler: Any, noise_BChw: torch.Tensor, steps: int) -> tuple[torch.Tensor, int]:
        """The latents to start from, and the index of the first timestep; at least one step is made.

        At full strength the part to be painted starts from noise alone. Raises ConfigError for a solver that cannot
        start later when strength asks for it.
        """
        made = max(1, int(steps * self.strength))
        first = (steps - made) * int(getattr(scheduler, "order", 1))
        if first and type(scheduler).__name__ in FROM_THE_START:
            raise ConfigError(
                f"the checkpoint's own solver ({type(scheduler).__name__}) needs all of its steps, so strength must be "
                f"1 with it. Use solver dpmpp-2m or euler"
            )
        if first and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        timesteps_B = scheduler.timesteps[first : first + 1].repeat(len(noise_BChw))
        noised = scheduler.add_noise(self.clean_BChw, noise_BChw, timesteps_B)
        if self.strength < 1:
            return noised, first
        pure = noise_BChw * scheduler.init_noise_sigma
        return (pure if self.beside_BXhw is not None else torch.lerp(noised, pure, self.fill_B1hw)), first

    def beside(self, noisy_BChw: torch.Tensor) -> torch.Tensor:
        """What the U-Net reads."""
        return noisy_BChw if self.beside_BXhw is None else torch.cat([noisy_BChw, self.beside_BXhw], dim=1)

    def keep(self, scheduler: Any, number: int, noisy_BChw: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """The prediction whose clean estimate is the picture where it is held, at step `number` of the scheduler.

        `noisy_BChw` is what the network saw: alpha * clean + sigma * noise.
        """
        if self.beside_BXhw is not None:
            return prediction
        alpha, sigma = level_of(scheduler, number)
        estimate = _clean(self.prediction_type, noisy_BChw, prediction, alpha, sigma)
        clean = torch.lerp(self.clean_BChw, estimate, self.fill_B1hw)
        return target_for(self.prediction_type, clean, (noisy_BChw - alpha * clean) / sigma, alpha, sigma)


def level_of(scheduler: Any, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma (alpha**2 + sigma**2 == 1) of what the network sees at step `number`.

    Solvers that interpolate between the training timesteps keep sigma / alpha in `sigmas`.
    """
    if hasattr(scheduler, "sigmas"):
        ratio = scheduler.sigmas[number].double()
        alpha = 1 / (1 + ratio**2).sqrt()
        return alpha.float(), (ratio * alpha).float()
    bar = scheduler.alphas_cumprod[int(scheduler.timesteps[number])]
    return bar.sqrt(), (1 - bar).sqrt()


def _clean(
    prediction_type: str, noisy: torch.Tensor, prediction: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    if prediction_type == "epsilon":
        return clean_from_noise(noisy, prediction, alpha, sigma)
    if prediction_type == "v_prediction":
        return clean_from_velocity(noisy, prediction, alpha, sigma)
    return prediction


def hold(networks: Networks, pixels_BCHW: torch.Tensor, masks_BHW: torch.Tensor, strength: float) -> Held:
    """What is held of pictures, (B, 3, H, W) in [-1, 1], outside masks, (B, H, W) from 0 (held) to 1.

    A latent cell is painted by the share of its pixels that lie in the mask. An inpainting checkpoint gets the mask at
    the nearest pixel of each cell and the picture with its masked part grey, as diffusers does it; of the
    autoencoder's posterior the mean is taken. Raises InputError for a strength outside (0, 1].
    """
    if not 0 < strength <= 1:
        raise InputError(f"strength must lie above 0 and at most at 1, got {strength:g}")
    mask_B1HW = masks_BHW[:, None].float()
    beside = None
    if networks.reads_mask:
        chosen_B1HW = (mask_B1HW >= 0.5).float()
        masked = encode(networks.vae, pixels_BCHW * (1 - chosen_B1HW))
        beside = torch.cat([F.interpolate(chosen_B1HW, size=masked.shape[2:]), masked], dim=1)
    prediction_type = str(networks.scheduler_config.get("prediction_type", "epsilon"))
    fill = F.avg_pool2d(mask_B1HW, networks.factor)
    return Held(encode(networks.vae, pixels_BCHW), fill, strength, prediction_type, beside)


def encode(vae: Any, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """Scaled latents, float32: the mean of the autoencoder's posterior."""
    return scale_latents(vae, vae.encode(pixels_BCHW.to(vae.dtype)).latent_dist.mean.float())
