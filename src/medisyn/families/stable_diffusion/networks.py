"""The parts of a Stable Diffusion model, and how to build them from nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from medisyn.errors import ModelError
from medisyn.families.stable_diffusion.config import NetworkConfig

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


@dataclass(frozen=True)
class Networks:
    """What a diffusers folder holds. One text encoder and tokenizer for Stable Diffusion 1 and 2, two for SDXL.

    `zero_empty_prompt` is diffusers' `force_zeros_for_empty_prompt`: "no text" is an embedding of zeros, not of "".
    """

    vae: Any  # diffusers.AutoencoderKL
    unet: Any  # diffusers.UNet2DConditionModel
    text_encoders: tuple[Any, ...]  # transformers.CLIPTextModel; SDXL's second is CLIPTextModelWithProjection
    tokenizers: tuple[Any, ...]  # transformers.CLIPTokenizer
    scheduler_config: Mapping[str, Any]
    zero_empty_prompt: bool = False

    def __post_init__(self) -> None:
        latents, channels = self.vae.config.latent_channels, self.unet.config.in_channels
        if channels not in (latents, 2 * latents + 1):
            raise ModelError(
                f"the U-Net reads {channels} channels and the autoencoder makes {latents}: this is neither a "
                f"text-to-image model ({latents} channels) nor an inpainting one ({2 * latents + 1}: latents, mask, "
                f"masked latents). Depth and upscaling models are not offered; choose their text-to-image sibling."
            )

    @property
    def reads_mask(self) -> bool:
        """Whether this is an inpainting checkpoint: its U-Net reads noisy latents, mask and masked latents."""
        return bool(self.unet.config.in_channels != self.vae.config.latent_channels)

    @property
    def is_xl(self) -> bool:
        return len(self.text_encoders) == 2

    @property
    def factor(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def modules(self) -> Iterator[torch.nn.Module]:
        yield self.vae
        yield self.unet
        yield from self.text_encoders


def build_networks(config: NetworkConfig, tokenizer: CLIPTokenizer, *, seed: int = 0) -> Networks:
    """Networks with random weights; the same seed gives the same weights. SDXL reads with the one tokenizer twice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoders = _text_encoders(config, tokenizer)
        unet = _unet(config)
        vae = _vae(config)
    return Networks(
        vae=vae,
        unet=unet,
        text_encoders=text_encoders,
        tokenizers=(tokenizer,) * len(text_encoders),
        scheduler_config=scheduler_config(config),
        zero_empty_prompt=config.xl,  # as SDXL base 1.0
    )


def scheduler_config(config: NetworkConfig) -> dict[str, Any]:
    """The scheduler of a model built from nothing, in diffusers' keys; plain diffusers then samples it with Euler."""
    return {
        "_class_name": "EulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": config.beta_schedule,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "prediction_type": config.prediction_type,
        "rescale_betas_zero_snr": config.zero_terminal_snr,
        "timestep_spacing": "trailing" if config.zero_terminal_snr else "leading",
        "steps_offset": 1,
    }


def _text_encoders(config: NetworkConfig, tokenizer: CLIPTokenizer) -> tuple[Any, ...]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.text_width,
        intermediate_size=4 * config.text_width,
        projection_dim=config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        max_position_embeddings=config.text_window,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    first = CLIPTextModel(text)
    return (first, CLIPTextModelWithProjection(text)) if config.xl else (first,)


def _unet(config: NetworkConfig) -> Any:
    from diffusers import UNet2DConditionModel

    down = tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in config.unet_attention)
    up = tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(config.unet_attention))
    size_conditioning: dict[str, Any] = {}
    if config.xl:
        size_conditioning = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": config.time_id_width,
            "projection_class_embeddings_input_dim": 6 * config.time_id_width + config.text_width,
        }
    return UNet2DConditionModel(
        sample_size=config.image_size // config.factor,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.unet_widths,
        layers_per_block=config.unet_layers,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=config.text_width * (2 if config.xl else 1),
        attention_head_dim=config.unet_heads,  # diffusers reads this as the number of heads
        transformer_layers_per_block=config.transformer_layers,
        norm_num_groups=config.norm_groups,
        use_linear_projection=True,
        **size_conditioning,
    )


def _vae(config: NetworkConfig) -> Any:
    from diffusers import AutoencoderKL

    levels = len(config.vae_widths)
    return AutoencoderKL(
        block_out_channels=config.vae_widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=config.vae_layers,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        sample_size=config.image_size,
        scaling_factor=config.latent_scale,
    )
