"""Stable Diffusion as a family: encode, loss, sample, decode, trainable.

Shapes here: B samples or requests, C latent channels, h, w latent rows and columns, L text tokens, E text width,
P pooled width. What `encode` returns, one row per sample:
"mean", "logvar" (B, C, h, w): moments of the autoencoder's posterior, before scaling;
"text" (B, L, E) and for SDXL "pooled" (B, P); or, when the text encoders are trained, "token_ids" and for SDXL
"token_ids_2" (B, L); for SDXL also "time_ids" (B, 6): original height and width, crop top and left, height and width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from medisyn.diffusion.schedules import add_noise, alpha_bars_from_config, alpha_sigma
from medisyn.diffusion.targets import target_for
from medisyn.errors import ConfigError, InputError, ModelError
from medisyn.families.base import ParamGroup
from medisyn.families.stable_diffusion import latents as latent_space
from medisyn.families.stable_diffusion import load, lora
from medisyn.families.stable_diffusion.conditions import conditions_for, noise_of
from medisyn.families.stable_diffusion.config import (
    DEFAULT_STEPS,
    GenerationDefaults,
    NetworkConfig,
    StableDiffusionConfig,
)
from medisyn.families.stable_diffusion.embedding_files import read_embeddings
from medisyn.families.stable_diffusion.embeddings import place as place_embeddings
from medisyn.families.stable_diffusion.held import Held, hold
from medisyn.families.stable_diffusion.networks import Networks, build_networks
from medisyn.families.stable_diffusion.objective import draw, loss_per_sample
from medisyn.families.stable_diffusion.sampler import (
    build_solver,
    check_inpaints,
    choose_solver,
    condition_call,
    denoise,
    with_objective,
)
from medisyn.families.stable_diffusion.text import Captioned, TextReader, lost_words, size_conditioning
from medisyn.seeding import generator_for
from medisyn.types import Item, Picture, Request, Sample

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from medisyn.families.base import Encoded


class StableDiffusion:
    """Stable Diffusion 1, 2 and XL. Built by `from_folder` or `from_config`; implements families.base.Family."""

    def __init__(
        self,
        networks: Networks,
        config: StableDiffusionConfig | None = None,
        *,
        solver: str | None = None,
        defaults: GenerationDefaults | None = None,
        source: str | None = None,
    ) -> None:
        """`source` is the name under which the model was opened; an adapter (LoRA) records it as its base."""
        config = config or StableDiffusionConfig()
        defaults = defaults or GenerationDefaults()
        schedule = with_objective(networks.scheduler_config, config.prediction_type, config.zero_terminal_snr)
        self.networks = replace(networks, scheduler_config=schedule)
        self.config = config
        self.solver = choose_solver(solver or defaults.solver, schedule)
        own = solver is None or solver == defaults.solver  # the default steps belong to the default solver
        self.defaults = defaults if own else replace(defaults, solver=solver, steps=None)
        self.source = source
        self._prediction_type = str(schedule.get("prediction_type", "epsilon"))
        self._alpha_bars_T = alpha_bars_from_config(schedule)
        self._sampling_scheduler = build_solver(self.solver, schedule)
        self._text = TextReader(self.networks, cache_empty=not config.train_text_encoder)
        self._prepare_training()

    @classmethod
    def from_folder(
        cls,
        path: Path | str,
        config: StableDiffusionConfig | None = None,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        solver: str | None = None,
        adapter: Path | str | None = None,
        vae: Path | str | None = None,
        embeddings: Sequence[Path] = (),
        source: str | None = None,
    ) -> StableDiffusion:
        """Open a diffusers folder; `adapter` is a LoRA folder, merged into the weights in float32 before casting.

        `vae` is the folder of an autoencoder that takes the place of the model's own; `embeddings` are folders of
        learnt tokens, of which the last one's generation defaults hold.

        Train in float32 (autocast is the engine's affair); "bfloat16" is for sampling. Raises ModelError that names
        the missing or refused part, ConfigError for a config that does not fit the checkpoint.
        """
        folder = Path(path)
        if adapter is None:
            networks = load.open_networks(folder, dtype)
        else:
            networks = load.open_networks(folder, "float32")
            lora.merge_lora(networks, Path(adapter))
            load.cast(networks, dtype)
        if vae is not None:
            networks = replace(networks, vae=load.open_autoencoder(Path(vae), dtype))
        learnt = [embedding for place in embeddings for embedding in read_embeddings(place)]
        if learnt:
            networks = place_embeddings(networks, learnt)
        defaults = load.read_defaults([folder, *([Path(adapter)] if adapter is not None else []), *embeddings][-1])
        if defaults.height is not None and defaults.width is not None:
            load.use_size(networks, defaults.height, defaults.width)
            defaults = replace(defaults, height=None, width=None)  # from here on the networks carry it
        model = cls(networks, config, solver=solver, defaults=defaults, source=source or str(folder.resolve()))
        return model.to(device)

    @classmethod
    def from_config(
        cls,
        network: NetworkConfig,
        tokenizer: CLIPTokenizer,
        config: StableDiffusionConfig | None = None,
        *,
        seed: int = 0,
        defaults: GenerationDefaults | None = None,
    ) -> StableDiffusion:
        """A model of this size with random weights; the same seed gives the same weights."""
        return cls(build_networks(network, tokenizer, seed=seed), config, defaults=defaults)

    def _prepare_training(self) -> None:
        """Only what the config trains asks for gradients; all modules stay in eval mode until `trainable` is called."""
        networks, config = self.networks, self.config
        for module in networks.modules():
            module.requires_grad_(False)
            module.eval()
        if config.lora_rank:
            if self.source is None:
                raise ConfigError("a LoRA records its base model: save the base first and open it with from_folder")
            lora.add_lora(networks, config)
            self._text.freeze_unread()
        else:
            networks.unet.requires_grad_(True)
            if config.train_text_encoder:
                self._text.require_gradients()
        if config.gradient_checkpointing:
            networks.unet.enable_gradient_checkpointing()
            if config.train_text_encoder:
                for encoder in networks.text_encoders:
                    encoder.gradient_checkpointing_enable()

    @property
    def device(self) -> torch.device:
        return next(self.networks.unet.parameters()).device  # diffusers' own `device` walks through all modules

    def to(self, device: str | torch.device) -> StableDiffusion:
        """Move all networks; returns self."""
        for module in self.networks.modules():
            module.to(device)
        return self

    # The five words of the protocol

    def encode(self, samples: Sequence[Sample]) -> Encoded:
        """Pictures (uint8, one size) and captions as the rows described above, on the CPU; nothing is drawn."""
        return {**self.encode_pictures(samples), **self.encode_captions(samples)}

    def encode_pictures(self, samples: Sequence[Sample]) -> Encoded:
        """What `encode` makes of the pictures: "mean", "logvar", and for SDXL "time_ids".

        SDXL's original size and crop come from the metadata keys "original_size" (height, width) and "crop_top_left"
        (top, left) where they are, else from the picture: not cropped.
        """
        vae = self.networks.vae
        pixels = latent_space.pixels_from_samples(samples, self.networks.factor)
        with self._inference():
            posterior = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist
        rows = {"mean": posterior.mean, "logvar": posterior.logvar}
        if self.networks.is_xl:
            height, width = pixels.shape[2:]
            rows["time_ids"] = torch.tensor([size_conditioning(sample, height, width) for sample in samples])
        return {name: row.float().cpu() for name, row in rows.items()}

    def encode_captions(self, samples: Sequence[Captioned]) -> Encoded:
        """What `encode` makes of the captions: "text" and for SDXL "pooled", or the token ids.

        A caption's rows are the same, bit for bit, whichever captions stand beside it.
        """
        captions = [sample.caption for sample in samples]
        if self.config.train_text_encoder:
            return self._text.tokens(captions)
        with self._inference():
            return {name: row.float().cpu() for name, row in self._text.embed_alike(captions).items()}

    def loss(self, encoded: Encoded, draws: Sequence[torch.Generator]) -> torch.Tensor:
        """Loss per sample (B,), float32. Row i draws from draws[i]: posterior noise, timestep, noise, caption drop."""
        networks, device = self.networks, self.device
        mean, logvar = encoded["mean"].to(device), encoded["logvar"].to(device)
        drawn = draw(draws, mean.shape[1:], len(self._alpha_bars_T), self.config).to(device)

        raw = latent_space.draw_posterior(mean, logvar, drawn.posterior_BChw)
        clean = latent_space.scale_latents(networks.vae, raw)
        alpha, sigma = alpha_sigma(self._alpha_bars_T, drawn.timesteps_B)
        noisy = add_noise(clean, drawn.noise_BChw, alpha, sigma)

        conditions = self._conditions(encoded, drawn.dropped_B, device)
        prediction = condition_call(networks.unet, noisy, drawn.timesteps_B, conditions)
        target = target_for(self._prediction_type, clean, drawn.noise_BChw, alpha, sigma)
        alpha_bars_B = self._alpha_bars_T.to(device)[drawn.timesteps_B]
        return loss_per_sample(prediction, target, alpha_bars_B, self._prediction_type, self.config.snr_gamma)

    def sample(self, requests: Sequence[Request]) -> torch.Tensor:
        """Latents (B, C, h, w) float32 for requests that share size, steps and guidance (else InputError).

        Row i starts from the noise of requests[i].seed whatever the batch. Across batch sizes the matrix library may
        round differently: decoded pictures then differ by at most 1 grey level in float32.
        """
        if self.networks.reads_mask:
            raise InputError(
                "this is an inpainting checkpoint: it paints into a picture. Use `medisyn generate inpaint` with an "
                "image and a mask, or choose its text-to-image sibling"
            )
        return self._sample([self.resolve(request) for request in requests], None)

    def _sample(self, resolved: Sequence[Request], held: Held | None) -> torch.Tensor:
        height, width, steps, guidance = _common(resolved)
        factor = self.networks.factor
        shape = (self.networks.vae.config.latent_channels, height // factor, width // factor)
        with self._inference():
            generators = [generator_for(request.seed, "noise") for request in resolved]
            noise = torch.stack(
                [noise_of(request, generator, shape) for request, generator in zip(resolved, generators, strict=True)]
            )
            sizes = (height, width, 0, 0, height, width) if self.networks.is_xl else None
            return denoise(
                self.networks.unet,
                self._sampling_scheduler,
                noise.to(self.device),
                conditions_for(self._text, resolved, sizes),
                steps=steps,
                guidance=guidance,
                guidance_rescale=self.defaults.guidance_rescale,
                generators=generators,
                held=held,
            )

    def inpaint(
        self, requests: Sequence[Request], pictures: Sequence[Picture], masks_BHW: torch.Tensor, *, strength: float
    ) -> torch.Tensor:
        """Latents (B, C, h, w) of pictures (uint8, of the requests' common size) painted anew where the mask is 1.

        masks_BHW: (B, H, W) from 0 (held) to 1. strength in (0, 1]: the share of the steps that are made; below 1 the
        masked part keeps some of what was there. What the latents show outside the mask comes near the picture and is
        not equal to it: put the picture itself there. Raises InputError for sizes that do not fit, ConfigError for a
        checkpoint that was distilled for its own schedule.
        """
        check_inpaints(self.networks.scheduler_config)
        resolved = [self.resolve(request) for request in requests]
        pixels = latent_space.pixels_from_samples(
            [Sample(r.key, picture, r.prompt) for r, picture in zip(resolved, pictures, strict=True)],
            self.networks.factor,
        )
        if {pixels.shape[2:], masks_BHW.shape[1:]} != {_common(resolved)[:2]}:
            raise InputError(
                f"pictures of {tuple(pixels.shape[2:])} and masks of {tuple(masks_BHW.shape[1:])} pixels do not fit "
                f"requests of {_common(resolved)[:2]}"
            )
        with self._inference():
            held = hold(self.networks, pixels.to(self.device), masks_BHW.to(self.device), strength)
        return self._sample(resolved, held)

    def decode(self, latents: torch.Tensor) -> list[Item]:
        """Latents of `sample` as uint8 RGB pictures. Raises ModelError when a number is not finite."""
        with self._inference():
            pictures: list[Item] = []
            for row in latents.to(self.device).split(1):  # one by one: memory stays flat and no batch rounds another
                pictures += latent_space.decode_pictures(self.networks.vae, row)
        return pictures

    def trainable(self) -> list[ParamGroup]:
        """The U-Net (or its LoRA), and the text encoders where they are trained; puts these in training mode."""
        networks = self.networks
        if networks.reads_mask:
            raise ModelError("an inpainting checkpoint cannot be trained here; train its text-to-image sibling")
        networks.unet.train()
        groups = [ParamGroup("unet", _with_gradients([networks.unet]))]
        if self.config.train_text_encoder:
            for encoder in networks.text_encoders:
                encoder.train()
            parameters = _with_gradients(networks.text_encoders)
            groups.append(ParamGroup("text_encoder", parameters, lr_scale=self.config.text_encoder_lr_scale))
        return groups

    # What else a user of the model asks

    @property
    def native_size(self) -> tuple[int, int]:
        """Height and width in pixels of what the model makes when a request leaves them open."""
        side = self.networks.unet.config.sample_size
        rows, columns = (side, side) if isinstance(side, int) else side
        return rows * self.networks.factor, columns * self.networks.factor

    def resolve(self, request: Request) -> Request:
        """The request with size, steps and guidance filled in. Raises InputError for a size the model cannot make."""
        factor = self.networks.factor
        height, width = self.native_size
        height, width = request.height or height, request.width or width
        if height % factor or width % factor or min(height, width) < factor:
            raise InputError(
                f"request {request.key}: size {height}x{width} must be a multiple of {factor} pixels. "
                f"Nearest: {_nearest(height, factor)}x{_nearest(width, factor)}."
            )
        return replace(
            request,
            height=height,
            width=width,
            steps=request.steps or self.defaults.steps or DEFAULT_STEPS[self.solver],
            guidance=self.defaults.guidance if request.guidance is None else request.guidance,
        )

    def known_tokens(self) -> list[str]:
        """The words that were added to the tokenizer, such as "<prostate-mri>": what textual inversion learnt."""
        return sorted({token for tokenizer in self.networks.tokenizers for token in tokenizer.get_added_vocab()})

    def lost_words(self, prompt: str) -> str:
        """The words at the end of the prompt that the text encoder's window cuts off; "" when all fit."""
        return lost_words(self.networks.tokenizers, prompt)

    def save(self, folder: Path | str, *, dtype: str | None = None) -> None:
        """Write an ordinary diffusers folder; with LoRA the adapter alone, the name of its base, and its own size.

        `dtype` ("float16", "bfloat16", "float32") is what full weights are stored in; None: as they are.
        Atomic: the folder appears whole. Raises ModelError when the folder holds files that are not a model.
        """
        defaults = asdict(self.defaults)
        with load.model_folder(Path(folder)) as target:
            if self.config.lora_rank:
                lora.save_lora(self.networks, self.config, target)
                height, width = self.native_size
                load.write_settings(target, base=self.source, defaults={**defaults, "height": height, "width": width})
            else:
                scheduler = build_solver("checkpoint", self.networks.scheduler_config)
                load.save_networks(self.networks, scheduler, target, dtype)
                load.write_settings(target, defaults=defaults)

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """Eval mode and no gradients; afterwards each module is in the mode it was in."""
        modules = [module for module in self.networks.modules() if module.training]
        for module in modules:
            module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module in modules:
                module.train()

    def _conditions(self, encoded: Encoded, dropped_B: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
        rows = {name: encoded[name].to(device) for name in encoded if name not in ("mean", "logvar")}
        text = self._text.drop(rows, dropped_B)
        return {**text, "time_ids": rows["time_ids"]} if "time_ids" in rows else text


def _common(resolved: Sequence[Request]) -> tuple[int, int, int, float]:
    asked = {(r.height, r.width, r.steps, r.guidance) for r in resolved}
    if len(asked) != 1:
        raise InputError(
            f"requests of one call must share height, width, steps and guidance, got {len(asked)} kinds: "
            f"{sorted(asked)}. Group them first."
        )
    return cast(tuple[int, int, int, float], asked.pop())  # resolve filled all four in


def _with_gradients(modules: Sequence[torch.nn.Module]) -> list[torch.nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


def _nearest(pixels: int, factor: int) -> int:
    return max(factor, round(pixels / factor) * factor)
