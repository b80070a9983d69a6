"""The networks of one Würstchen model together, and such a model from nothing.

Shapes here: B pictures, C channels, H, W rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from medisyn.errors import ModelError
from medisyn.families.wuerstchen.blocks import EvalBatchNorm2d
from medisyn.families.wuerstchen.decoder import build_decoder
from medisyn.families.wuerstchen.effnet import LATENT_SCALE, LATENT_SHIFT, build_image_encoder
from medisyn.families.wuerstchen.prior import build_prior
from medisyn.families.wuerstchen.settings import Sizes
from medisyn.families.wuerstchen.vqgan import build_vqgan


@dataclass(frozen=True)
class Networks:
    """Stage C with its text encoder, Stage B with its own, Stage A, and the image encoder where it is there.

    Sampling needs no image encoder; training and the check of Stage B do.
    """

    prior: Any  # WuerstchenPrior
    decoder: Any  # WuerstchenDecoder
    vqgan: Any  # PaellaVQ
    text_encoder: Any  # CLIPTextModel
    tokenizer: Any
    decoder_text_encoder: Any
    decoder_tokenizer: Any
    image_encoder: Any | None = None  # EfficientNetEncoder

    @property
    def factor(self) -> int:
        """Height and width of a picture are multiples of this many pixels: 64 for the published networks."""
        return int(self.vqgan.factor * self.decoder.factor)

    def modules(self) -> Iterator[torch.nn.Module]:
        """Every network once."""
        yield self.prior
        yield self.decoder
        yield self.vqgan
        yield self.text_encoder
        yield self.decoder_text_encoder
        if self.image_encoder is not None:
            yield self.image_encoder

    def encoder(self) -> Any:
        """The image encoder. Raises ModelError when the model was opened without one."""
        if self.image_encoder is None:
            raise ModelError(
                "this Würstchen model has no image encoder (EfficientNet): it can make pictures, but not be trained, "
                "nor its Stage B checked. The weights are published with Stage B's: run `medisyn convert wuerstchen "
                "--stage-b model_v2_stage_b.pt --out image_encoder` once, and give that folder (in a training run "
                "--set image_encoder=image_encoder)"
            )
        return self.image_encoder


def build_networks(sizes: Sizes, tokenizer: Any, *, seed: int = 0) -> Networks:
    """Networks with random weights; the same seed gives the same weights. Both text encoders share the tokenizer."""
    return Networks(
        prior=build_prior(sizes.prior, seed),
        decoder=build_decoder(sizes.decoder, seed + 1),
        vqgan=build_vqgan(sizes.vqgan, seed + 2),
        text_encoder=_text_encoder(sizes, sizes.prior.c_cond, tokenizer, seed + 3),
        tokenizer=tokenizer,
        decoder_text_encoder=_text_encoder(sizes, sizes.decoder.clip_embd, tokenizer, seed + 4),
        decoder_tokenizer=tokenizer,
        image_encoder=build_image_encoder(sizes.image_encoder, seed + 5),
    )


def _text_encoder(sizes: Sizes, width: int, tokenizer: Any, seed: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text_heads,
        max_position_embeddings=sizes.text_window,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPTextModel(config)


def settle(encoder: Any, views_BCHW: torch.Tensor) -> None:
    """Give an encoder with random weights the statistics of pictures (B, 3, H, W) in [0, 1], in one pass.

    Every batch normalisation gets the mean and variance of what reaches it, and the last one is scaled so that
    Stage C's latents of these pictures have mean 0 and variance 1 in each channel, as those of the published encoder
    nearly have. Without it the signal of a random network fades.
    """

    def take(norm: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3))
        norm.running_mean.copy_(mean)  # type: ignore[operator]
        norm.running_var.copy_(variance)  # type: ignore[operator]

    norms = [module for module in encoder.modules() if isinstance(module, EvalBatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(take) for norm in norms]
    try:
        with torch.no_grad():
            norms[-1].weight.fill_(LATENT_SCALE)
            norms[-1].bias.fill_(-LATENT_SHIFT)
            encoder(views_BCHW)
    finally:
        for hook in hooks:
            hook.remove()
