"""A KL autoencoder (Rombach et al., 2022) trained from scratch on crops, as a family that the engine can train.

Shapes here: B batch, C channels, H, W pixels.
Two runs make one: the first trains encoder and decoder on reconstruction alone; the second freezes the encoder, so that
the latents stay what they are, and sharpens the decoder against a patch discriminator.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from medisyn.errors import ConfigError, InputError
from medisyn.families.base import ParamGroup
from medisyn.types import UINT8, Item, Picture, Request, Sample

if TYPE_CHECKING:
    from medisyn.families.base import Encoded


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Network and loss. The defaults are starter-image's; only those with a reason beside them were tried out."""

    latent_channels: int = 8  # 4 blur nuclei and lung markings; 16 were behind after one short trial
    widths: tuple[int, ...] = (24, 32, 96, 128)  # the wide layers sit where there are few pixels
    layers_per_block: int = 1
    crop: int = 64  # pixels; four 64² crops cost one 128² image and give the optimiser four times the steps
    gradient_weight: float = 0.5  # L1 of horizontal and vertical differences: keeps edges
    chroma_weight: float = 0.0  # L1 of each channel's difference from the mean channel: a grey image stays grey
    kl_weight: float = 1e-4
    latent_noise: float = 0.0  # in deviations of the latents: the decoder learns to read what a sampler gets wrong
    adversarial_weight: float = 0.0  # above 0: encoder frozen, decoder against the discriminator
    feature_weight: float = 0.0  # L1 between discriminator features of original and reconstruction
    discriminator_width: int = 32

    def __post_init__(self) -> None:
        if self.crop % self.factor:
            raise ConfigError(f"crop must divide by {self.factor} ({len(self.widths) - 1} halvings), got {self.crop}")
        weights = (self.gradient_weight, self.chroma_weight, self.kl_weight, self.adversarial_weight)
        if min(*weights, self.feature_weight, self.latent_noise) < 0:
            raise ConfigError("autoencoder loss weights must be 0 or more, latent_noise too")

    @property
    def factor(self) -> int:
        """Pixels per latent cell along each side."""
        return int(2 ** (len(self.widths) - 1))


def build_autoencoder(config: AutoencoderConfig) -> Any:
    """A diffusers AutoencoderKL with random weights."""
    from diffusers import AutoencoderKL

    num_levels = len(config.widths)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * num_levels,
        up_block_types=("UpDecoderBlock2D",) * num_levels,
        block_out_channels=config.widths,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,  # keeps the network local, so that training on crops is training on images
    )


class PatchDiscriminator(nn.Module):
    """Real or reconstructed, judged per overlapping patch (Isola et al., 2017); returns the map and inner features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 4, stride=2, padding=1), nn.GroupNorm(8, b), nn.LeakyReLU(0.2))
            for a, b in itertools.pairwise(widths)
        )
        self.head = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, image_BCHW: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        features, hidden = [], image_BCHW
        for block in self.down:
            hidden = block(hidden)
            features.append(hidden)
        return self.head(hidden), features


def per_sample_mean(values: torch.Tensor) -> torch.Tensor:
    return values.float().flatten(1).mean(dim=1)


def reconstruction_loss(
    rebuilt_BCHW: torch.Tensor, image_BCHW: torch.Tensor, gradient_weight: float, chroma_weight: float = 0.0
) -> torch.Tensor:
    """L1, plus L1 of the differences between neighbouring pixels, plus L1 of the error's colour, (B,)."""
    error = rebuilt_BCHW - image_BCHW
    colour = per_sample_mean((error - error.mean(dim=1, keepdim=True)).abs())
    across = per_sample_mean((error[..., 1:] - error[..., :-1]).abs())
    down = per_sample_mean((error[..., 1:, :] - error[..., :-1, :]).abs())
    return per_sample_mean(error.abs()) + gradient_weight * (across + down) + chroma_weight * colour


def kl_to_normal(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, averaged over latent dimensions, (B,)."""
    return per_sample_mean(0.5 * (mean.float() ** 2 + logvar.float().exp() - 1 - logvar.float()))


class Autoencoder:
    """Implements `families.base.Family`; `sample` gives latents of pure noise, which only the tests look at."""

    def __init__(self, config: AutoencoderConfig, vae: Any = None) -> None:
        self.config = config
        self.vae: Any = vae if vae is not None else build_autoencoder(config)  # diffusers.AutoencoderKL
        self.adversarial = config.adversarial_weight > 0 or config.feature_weight > 0
        self.discriminator = PatchDiscriminator(config.discriminator_width) if self.adversarial else None
        if self.adversarial:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return torch.device(self.vae.device)

    def to(self, device: torch.device | str) -> Autoencoder:
        """Move the networks; returns self."""
        self.vae.to(device)
        if self.discriminator is not None:
            self.discriminator.to(device)
        return self

    def encode(self, samples: Sequence[Sample]) -> Encoded:
        """Pixels (B, 3, H, W), uint8; the autoencoder is trained on pixels, so there is nothing to precompute."""
        rows = []
        for sample in samples:
            if not isinstance(sample.item, Picture) or sample.item.value_range != UINT8:
                raise InputError(f"sample {sample.key}: the image autoencoder takes uint8 pictures")
            array_CHW = sample.item.array_CHW
            rows.append(torch.from_numpy(np.broadcast_to(array_CHW, (3, *array_CHW.shape[1:])).copy()))
        return {"pixels": torch.stack(rows)}

    def loss(self, encoded: Encoded, draws: Sequence[torch.Generator]) -> torch.Tensor:
        """Per sample: a random crop, mirrored half of the time, encoded, sampled, decoded and compared. (B,)"""
        image_BCHW, noise_BCHW = self._crops_and_noise(encoded["pixels"], draws)
        posterior = self.vae.encode(image_BCHW).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        spread = (logvar.exp() + self._extra_variance(mean, draws)).sqrt()
        rebuilt_BCHW = self.vae.decode(mean + spread * noise_BCHW).sample.float()
        loss_B = reconstruction_loss(rebuilt_BCHW, image_BCHW, self.config.gradient_weight, self.config.chroma_weight)
        if not self.adversarial:
            return loss_B + self.config.kl_weight * kl_to_normal(mean, logvar)
        return loss_B + self._adversarial_loss(rebuilt_BCHW, image_BCHW)

    def _extra_variance(self, mean_BCHW: torch.Tensor, draws: Sequence[torch.Generator]) -> torch.Tensor:
        """(B, 1, 1, 1): the square of a normal draw times `latent_noise` deviations of these latents."""
        scale = self.config.latent_noise * mean_BCHW.detach().std()
        drawn = torch.stack([torch.randn((1, 1, 1), generator=draw) for draw in draws])
        return (scale * drawn.to(mean_BCHW.device)).square()

    def _crops_and_noise(
        self, pixels_BCHW: torch.Tensor, draws: Sequence[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        side, crops, noises = self.config.crop, [], []
        height, width = pixels_BCHW.shape[-2:]
        cells = side // self.config.factor
        for pixels_CHW, draw in zip(pixels_BCHW, draws, strict=True):
            top = int(torch.randint(height - side + 1, (), generator=draw))
            left = int(torch.randint(width - side + 1, (), generator=draw))
            crop = pixels_CHW[:, top : top + side, left : left + side]
            crops.append(crop.flip(-1) if torch.rand((), generator=draw) < 0.5 else crop)
            noises.append(torch.randn(self.config.latent_channels, cells, cells, generator=draw))
        images_BCHW = torch.stack(crops).to(self.device).float() / 127.5 - 1
        return images_BCHW, torch.stack(noises).to(self.device)

    def _adversarial_loss(self, rebuilt_BCHW: torch.Tensor, image_BCHW: torch.Tensor) -> torch.Tensor:
        """The decoder's and the discriminator's hinge losses in one sum, each reaching only its own parameters."""
        assert self.discriminator is not None
        frozen = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        verdict, features = functional_call(self.discriminator, frozen, (rebuilt_BCHW,))
        with torch.no_grad():
            _, wanted = self.discriminator(image_BCHW)
        matching = torch.stack(
            [per_sample_mean((a.float() - b.float()).abs()) for a, b in zip(features, wanted, strict=True)]
        ).mean(dim=0)
        decoder_loss = self.config.feature_weight * matching - self.config.adversarial_weight * per_sample_mean(verdict)
        on_real, _ = self.discriminator(image_BCHW)
        on_rebuilt, _ = self.discriminator(rebuilt_BCHW.detach())
        return decoder_loss + per_sample_mean(F.relu(1 - on_real)) + per_sample_mean(F.relu(1 + on_rebuilt))

    def sample(self, requests: Sequence[Request]) -> torch.Tensor:
        """Latents of pure noise, one row per request, for a square image of the crop's size."""
        cells = self.config.crop // self.config.factor
        generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        return torch.stack([torch.randn(self.config.latent_channels, cells, cells, generator=g) for g in generators])

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> list[Item]:
        """Unscaled latents as uint8 RGB pictures."""
        images = self.vae.decode(latents.to(self.device)).sample.float().clamp(-1, 1)
        return [Picture(image.add(1).mul(127.5).round().byte().cpu().numpy()) for image in images]

    @torch.no_grad()
    def rebuild(self, pictures: Sequence[Picture]) -> list[Item]:
        """Pictures through encoder (posterior mean) and decoder: what the latent keeps of them."""
        pixels = self.encode([Sample(str(number), picture, "") for number, picture in enumerate(pictures)])["pixels"]
        return self.decode(self.vae.encode(pixels.to(self.device).float() / 127.5 - 1).latent_dist.mean)

    @torch.no_grad()
    def latent_scale(self, pixels_BCHW: torch.Tensor) -> float:
        """1 / standard deviation of the latents of these uint8 pixels: what a diffusion model multiplies them by."""
        means = [
            self.vae.encode(part.to(self.device).float() / 127.5 - 1).latent_dist.mean for part in pixels_BCHW.split(16)
        ]
        return 1 / float(torch.cat(means).std())

    def trainable(self) -> list[ParamGroup]:
        if self.discriminator is None:
            return [ParamGroup("autoencoder", list(self.vae.parameters()))]
        decoder = [*self.vae.decoder.parameters(), *self.vae.post_quant_conv.parameters()]
        judge = list(self.discriminator.parameters())
        return [
            ParamGroup("decoder", decoder),
            ParamGroup("discriminator", judge, lr_scale=2.0),
        ]  # it starts from nothing

    def save(self, folder: Path) -> None:
        """An ordinary diffusers `vae` folder."""
        self.vae.save_pretrained(folder, safe_serialization=True)
