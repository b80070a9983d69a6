"""Würstchen as a family: encode, loss, sample, decode, trainable.

Shapes here: B samples or requests, C latent channels, h, w cells of Stage C's grid, u, v rows and columns of Stage A's
latents, L text tokens, E text width.
Stage C makes latents of the image encoder from text; Stage B makes Stage A's latents from those; Stage A decodes. Only
Stage C is trained. What `encode` returns, one row per sample: "latents" (B, C, h, w), normalised, and "text" (B, L, E).
`sample` runs Stages C and B, because both read the prompt; `decode` is Stage A alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from medisyn.diffusion.guidance import guide
from medisyn.errors import InputError, ModelError, closest
from medisyn.families.base import ParamGroup
from medisyn.families.wuerstchen import latents as latent_space
from medisyn.families.wuerstchen import layouts
from medisyn.families.wuerstchen.effnet import features_from_prior, prior_from_features
from medisyn.families.wuerstchen.networks import Networks, build_networks
from medisyn.families.wuerstchen.objective import add_noise, draw, loss_per_sample
from medisyn.families.wuerstchen.sampler import denoise, times_for, unit_noise
from medisyn.families.wuerstchen.settings import (
    SHORT_STEPS,
    GenerationDefaults,
    LatentGrid,
    Sizes,
    WuerstchenConfig,
)
from medisyn.families.wuerstchen.text import Captioned, TextReader
from medisyn.seeding import generator_for
from medisyn.types import Item, Request, Sample

if TYPE_CHECKING:
    from medisyn.families.base import Encoded


class Wuerstchen:
    """Würstchen v2, all three stages. Built by `from_folder` or from networks; implements families.base.Family."""

    def __init__(
        self,
        networks: Networks,
        config: WuerstchenConfig | None = None,
        *,
        grid: LatentGrid | None = None,
        defaults: GenerationDefaults | None = None,
        solver: str | None = None,
    ) -> None:
        """`solver` replaces that of `defaults`. Everything but Stage C is frozen."""
        self.networks = networks
        self.config = config or WuerstchenConfig()
        self.grid = grid or LatentGrid()
        defaults = defaults or GenerationDefaults()
        self.defaults = defaults if solver is None else replace(defaults, solver=solver)
        self._text = TextReader(networks.text_encoder, networks.tokenizer)
        self._decoder_text = TextReader(networks.decoder_text_encoder, networks.decoder_tokenizer)
        for module in networks.modules():
            module.requires_grad_(False)
            module.eval()
        networks.prior.requires_grad_(True)
        if self.config.gradient_checkpointing:
            networks.prior.enable_gradient_checkpointing()

    @classmethod
    def from_folder(
        cls,
        path: Path | str,
        config: WuerstchenConfig | None = None,
        *,
        decoder: Path | str | None = None,
        image_encoder: Path | str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        solver: str | None = None,
    ) -> Wuerstchen:
        """Open a folder that `save` wrote, or a published one; for `decoder` and `image_encoder` see layouts.py.

        Train in float32 (autocast is the engine's affair); "bfloat16" is for sampling. Raises ModelError that names
        the missing or refused part.
        """
        folder = Path(path)
        networks = layouts.open_networks(
            folder,
            decoder=None if decoder is None else Path(decoder),
            image_encoder=None if image_encoder is None else Path(image_encoder),
            dtype=dtype,
        )
        settings = layouts.read_settings(folder)
        grid = _from_json(LatentGrid, settings.get("grid", {}))
        defaults = _from_json(GenerationDefaults, settings.get("defaults", {}))
        return cls(networks, config, grid=grid, defaults=defaults, solver=solver).to(device)

    def save(self, folder: Path | str, *, dtype: str | None = None) -> None:
        """Write a folder that `from_folder` opens; weights stored in `dtype`, or in the type they have. Atomic."""
        with layouts.FOLDER.written_whole(Path(folder)) as target:
            layouts.save_networks(self.networks, target, dtype)
            layouts.FOLDER.write_settings(target, grid=asdict(self.grid), defaults=asdict(self.defaults))

    @classmethod
    def from_sizes(
        cls,
        sizes: Sizes,
        tokenizer: Any,
        config: WuerstchenConfig | None = None,
        *,
        seed: int = 0,
        defaults: GenerationDefaults | None = None,
    ) -> Wuerstchen:
        """A model of this size with random weights; the same seed gives the same weights.

        Its image encoder has no use before `networks.settle` gave it the statistics of pictures.
        """
        networks = build_networks(sizes, tokenizer, seed=seed)
        return cls(networks, config, grid=LatentGrid(cell_pixels=sizes.cell_pixels), defaults=defaults)

    @property
    def device(self) -> torch.device:
        return next(iter(self.networks.prior.parameters())).device

    def to(self, device: str | torch.device) -> Wuerstchen:
        """Move all networks; returns self."""
        for module in self.networks.modules():
            module.to(device)
        return self

    def with_defaults(self, defaults: GenerationDefaults) -> Wuerstchen:
        """The same networks with other generation defaults. Raises InputError for a size they cannot make."""
        changed = Wuerstchen(self.networks, self.config, grid=self.grid, defaults=defaults)
        changed.resolve(Request("the default", "", 0))
        return changed

    # The five words of the protocol

    def encode(self, samples: Sequence[Sample]) -> Encoded:
        """Pictures (uint8, one size) and captions as the rows described above, on the CPU; nothing is drawn."""
        return {**self.encode_pictures(samples), **self.encode_captions(samples)}

    def encode_pictures(self, samples: Sequence[Sample]) -> Encoded:
        """What `encode` makes of the pictures: "latents"."""
        pixels = latent_space.pixels_from_samples(samples)
        with self._inference():
            return {"latents": self._encoder_latents(pixels).cpu()}

    def encode_captions(self, samples: Sequence[Captioned]) -> Encoded:
        """What `encode` makes of the captions: "text".

        A caption's rows are the same, bit for bit, whichever captions stand beside it.
        """
        with self._inference():
            return {"text": self._text.embed_alike([sample.caption for sample in samples]).float().cpu()}

    def loss(self, encoded: Encoded, draws: Sequence[torch.Generator]) -> torch.Tensor:
        """Loss per sample (B,), float32. Row i draws from draws[i]: time, noise, caption drop."""
        clean = encoded["latents"].to(self.device)
        drawn = draw(draws, clean.shape[1:], self.config).to(self.device)
        noisy = add_noise(clean, drawn.noise_BChw, drawn.times_B)
        text = self._text.drop(encoded["text"].to(self.device), drawn.dropped_B)
        predicted = self._predict_noise(noisy, drawn.times_B, text)
        return loss_per_sample(predicted, drawn.noise_BChw, drawn.times_B, self.config.loss_weight)

    def sample(self, requests: Sequence[Request]) -> torch.Tensor:
        """Stage A's latents (B, C, u, v) float32 for requests that share size, steps and guidance (else InputError).

        Row i starts from the noise of requests[i].seed whatever the batch. Across batch sizes the matrix library may
        round differently.
        """
        resolved = [self.resolve(request) for request in requests]
        height, width, _, _ = _common(resolved)
        return self.upscale(
            self.sample_latents(resolved),
            [request.prompt for request in resolved],
            [request.seed for request in resolved],
            height=height,
            width=width,
        )

    def decode(self, latents: torch.Tensor) -> list[Item]:
        """Latents of `sample` as uint8 RGB pictures. Raises ModelError when a number is not finite."""
        with self._inference():
            pictures: list[Item] = []
            for row in latents.to(self.device).split(1):  # one by one: memory stays flat and no batch rounds another
                pictures += latent_space.decode_pictures(self.networks.vqgan, row)
        return pictures

    def trainable(self) -> list[ParamGroup]:
        """Stage C; puts it in training mode."""
        self.networks.prior.train()
        return [ParamGroup("prior", list(self.networks.prior.parameters()))]

    # The stages by themselves

    def sample_latents(self, requests: Sequence[Request]) -> torch.Tensor:
        """Stage C alone: normalised latents (B, C, h, w) float32 of requests that share size, steps and guidance."""
        resolved = [self.resolve(request) for request in requests]
        height, width, steps, guidance = _common(resolved)
        shape = (self.networks.prior.config.c_in, self.grid.cells(height), self.grid.cells(width))
        generators = [generator_for(request.seed, "noise") for request in resolved]
        with self._inference():
            asked = self._text.embed([request.prompt for request in resolved])
            blank = self._text.negative([request.negative_prompt for request in resolved])

            def predict(latents: torch.Tensor, times_B: torch.Tensor) -> torch.Tensor:
                if guidance == 1:
                    return self._predict_noise(latents, times_B, asked)
                both = self._predict_noise(latents.repeat(2, 1, 1, 1), times_B.repeat(2), torch.cat([blank, asked]))
                away, towards = both.chunk(2)
                return guide(away, towards, guidance)

            noise = unit_noise(generators, shape).to(self.device)
            return denoise(predict, noise, times_for(self.defaults.solver, steps), generators)

    def upscale(
        self, latents_BChw: torch.Tensor, prompts: Sequence[str], seeds: Sequence[int], *, height: int, width: int
    ) -> torch.Tensor:
        """Stage B: Stage A's latents (B, C, u, v) of pictures of height x width pixels, from Stage C's latents.

        Row i's noise comes from seeds[i]. Guidance, off by default, leads away from features of zeros and the empty
        prompt.
        """
        decoder, guidance = self.networks.decoder, self.defaults.decoder_guidance
        factor = self.networks.vqgan.factor
        generators = [generator_for(seed, "decoder") for seed in seeds]
        with self._inference():
            features = features_from_prior(latents_BChw.to(self.device)).to(decoder.dtype)
            text = self._decoder_text.embed(list(prompts)).to(decoder.dtype)
            if guidance > 1:
                features = torch.cat([torch.zeros_like(features), features])
                text = torch.cat([self._decoder_text.empty().to(text.dtype).expand_as(text), text])

            def predict(latents: torch.Tensor, times_B: torch.Tensor) -> torch.Tensor:
                repeats = 2 if guidance > 1 else 1
                rows = latents.repeat(repeats, 1, 1, 1).to(decoder.dtype)
                noise: torch.Tensor = decoder(
                    rows, times_B.repeat(repeats), effnet_BCHW=features, text_BNE=text
                ).float()
                if guidance <= 1:
                    return noise
                away, towards = noise.chunk(2)
                return guide(away, towards, guidance)

            shape = (decoder.config.c_in, height // factor, width // factor)
            noise = unit_noise(generators, shape).to(self.device)
            return denoise(predict, noise, times_for("ancestral", self.defaults.decoder_steps), generators)

    def rebuild(self, samples: Sequence[Sample]) -> list[Item]:
        """Pictures through Stage A alone: encoded, not quantised, decoded. Sizes must divide by Stage A's factor."""
        vqgan = self.networks.vqgan
        pixels = latent_space.pixels_from_samples(samples)
        with self._inference():
            encoded = vqgan.encode(pixels.to(self.device, vqgan.dtype)).float() / vqgan.config.scale_factor
        return self.decode(encoded)

    def rebuild_from_features(self, samples: Sequence[Sample], seeds: Sequence[int]) -> list[Item]:
        """Pictures through the image encoder, Stage B with their captions, and Stage A. Sizes must divide by `factor`.

        Row i's noise comes from seeds[i].
        """
        pixels = latent_space.pixels_from_samples(samples)
        height, width = pixels.shape[2:]
        with self._inference():
            encoded = self._encoder_latents(pixels)
        captions = [sample.caption for sample in samples]
        return self.decode(self.upscale(encoded, captions, seeds, height=height, width=width))

    # What else a user of the model asks

    @property
    def factor(self) -> int:
        """Height and width of a picture are multiples of this many pixels: 64 for the published networks."""
        return self.networks.factor

    @property
    def native_size(self) -> tuple[int, int]:
        """Height and width in pixels of what the model makes when a request leaves them open."""
        return self.defaults.height, self.defaults.width

    def resolve(self, request: Request) -> Request:
        """The request with size, steps and guidance filled in.

        Raises InputError for a size the model cannot make, for a prompt of several terms or one that is mixed, and for
        a number of steps beside the solver with the short list of times.
        """
        if request.terms or request.toward_prompt or request.toward_seed is not None:
            raise InputError(
                f"request {request.key}: a Würstchen model reads one prompt; it neither combines prompts with AND and "
                f"weights nor goes from one to another. Write 'and' in small letters"
            )
        height, width = request.height or self.defaults.height, request.width or self.defaults.width
        if height % self.factor or width % self.factor:
            raise InputError(
                f"request {request.key}: size {height}x{width} must be a multiple of {self.factor} pixels. "
                f"Nearest: {_nearest(height, self.factor)}x{_nearest(width, self.factor)}."
            )
        short = self.defaults.solver == "ancestral-short"
        if short and request.steps not in (None, SHORT_STEPS):
            raise InputError(
                f"request {request.key}: solver ancestral-short makes {SHORT_STEPS} steps, got {request.steps}. Leave "
                f"steps out, or use solver ancestral"
            )
        return replace(
            request,
            height=height,
            width=width,
            steps=SHORT_STEPS if short else request.steps or self.defaults.steps,
            guidance=self.defaults.guidance if request.guidance is None else request.guidance,
        )

    def lost_words(self, prompt: str) -> str:
        """The words at the end of the prompt that Stage C's text encoder cuts off; "" when all fit."""
        return self._text.lost_words(prompt)

    def _encoder_latents(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        view = latent_space.encoder_view(pixels_BCHW, self.grid).to(self.device)
        return prior_from_features(self.networks.encoder()(view).float())

    def _predict_noise(self, noisy_BChw: torch.Tensor, times_B: torch.Tensor, text_BLE: torch.Tensor) -> torch.Tensor:
        prior = self.networks.prior
        predicted: torch.Tensor = prior(noisy_BChw.to(prior.dtype), times_B, text_BLE.to(prior.dtype))
        return predicted.float()

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """Eval mode and no gradients; afterwards Stage C is in the mode it was in."""
        training = self.networks.prior.training
        self.networks.prior.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.networks.prior.train(training)


Settings = TypeVar("Settings", LatentGrid, GenerationDefaults)


def _from_json(kind: type[Settings], values: dict[str, Any]) -> Settings:
    """Raises ModelError for a key that is none of the kind's."""
    names = [field.name for field in fields(kind)]
    for name in values:
        if name not in names:
            raise ModelError(
                f"{layouts.SETTINGS_FILE}: {name!r} is no setting of {kind.__name__}, allowed: {', '.join(names)}."
                f"{closest(name, names)}"
            )
    return kind(**values)


def _common(resolved: Sequence[Request]) -> tuple[int, int, int, float]:
    asked = {(r.height, r.width, r.steps, r.guidance) for r in resolved}
    if len(asked) != 1:
        raise InputError(
            f"requests of one call must share height, width, steps and guidance, got {len(asked)} kinds: "
            f"{sorted(asked)}. Group them first."
        )
    return cast(tuple[int, int, int, float], asked.pop())  # resolve filled all four in


def _nearest(pixels: int, factor: int) -> int:
    return max(factor, round(pixels / factor) * factor)
