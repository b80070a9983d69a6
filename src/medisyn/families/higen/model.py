"""HiGen as a family: encode, loss, sample, decode, trainable.

One network makes a clip in two levels: first a key frame (structure), then all frames around it (content), told how
much moves and how alike the frames are.
Shapes here: B samples or requests, C latent channels, T frames of the network's clips, N frames of a requested clip,
h, w latent rows and columns, L text tokens, E text width.
What `encode` returns, one row per sample: "mean", "logvar" (B, C, T, h, w) float16, moments of the autoencoder's
posterior before scaling; "valid" (B, T, h, w) uint8, 1 where a latent is all of real pixels; "key" (B,), the number of
the key frame; "motion" (B, T - 1) and "appearance" (B, T, T), of clips only; "text" (B, L, E), or "token_ids" (B, L)
when the text encoder is trained.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medisyn.diffusion.schedules import add_noise
from medisyn.diffusion.targets import velocity_target
from medisyn.errors import InputError, ModelError
from medisyn.families.base import ParamGroup
from medisyn.families.higen import folders
from medisyn.families.higen.appearance import FrameFeatures, frame_similarity, stretched
from medisyn.families.higen.captions import Captioned, CaptionReader
from medisyn.families.higen.conditions import guided_velocity, motion_and_appearance, shared_values
from medisyn.families.higen.config import ClipGrid
from medisyn.families.higen.latents import (
    clip_of,
    decode_frames,
    encode_frames,
    key_frame_of,
    one_shape,
    pixels_of,
    valid_of,
    without_padding,
)
from medisyn.families.higen.motion import motion_value
from medisyn.families.higen.objective import (
    alpha_bars,
    alpha_sigma,
    draw,
    error_per_sample,
    noise_with_offset,
    valid_latents,
)
from medisyn.families.higen.parts import check_parts, from_json, unet_factor, vae_factor
from medisyn.families.higen.sampler import Velocity, ddim, ddim_times, over_windows
from medisyn.families.higen.settings import MOTION_LIMIT, HiGenDefaults, HiGenSettings
from medisyn.seeding import generator_for
from medisyn.types import Clip, Item, Request, Sample

if TYPE_CHECKING:
    from medisyn.families.base import Encoded

FEW_LATENTS = 512  # per frame; with more the plain products' memory grows too large


class HiGen:
    """Implements families.base.Family. The autoencoder is frozen; the text encoder too, unless the settings say so."""

    def __init__(
        self,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        *,
        grid: ClipGrid | None = None,
        settings: HiGenSettings | None = None,
        defaults: HiGenDefaults | None = None,
        frame_features: FrameFeatures | None = None,
    ) -> None:
        """`frame_features` compares frames when clips are encoded; sampling and training on encoded rows need none.

        Raises ModelError when the parts do not fit together, or the grid does not fit them.
        """
        self.unet, self.vae, self.grid = unet, vae, grid or ClipGrid()
        self.settings, self.defaults = settings or HiGenSettings(), defaults or HiGenDefaults()
        self.frame_features = frame_features
        check_parts(unet, vae, text_encoder, self.grid, self.defaults)
        if None in (self.defaults.motion, self.defaults.appearance) and not self.settings.untold:
            raise ModelError(
                "the model was always told motion and appearance; its defaults must name both, or it be trained with "
                "`untold` above 0"
            )
        vae.requires_grad_(False)
        self.reader = CaptionReader(
            text_encoder, tokenizer, layer=self.settings.text_layer, trained=self.settings.train_text_encoder
        )
        if self.settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        for module in (unet, vae, text_encoder):
            module.eval()
        self._alpha_bars_S = alpha_bars()

    @classmethod
    def from_folder(
        cls,
        path: Path | str,
        *,
        settings: HiGenSettings | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        frame_features: FrameFeatures | None = None,
    ) -> HiGen:
        """Open what `save` wrote; `settings` None keeps the folder's. Raises ModelError that names the missing part.

        Train in float32 (autocast is the engine's affair); "bfloat16" is for sampling.
        """
        from diffusers import AutoencoderKL
        from transformers import CLIPTextModel

        from medisyn.families.higen.networks import HiGenUNet

        folder = Path(path)
        stored = folders.FOLDER.read_settings(folder)
        return cls(
            folders.open_part(folder / "unet", HiGenUNet, dtype),
            folders.open_part(folder / "vae", AutoencoderKL, dtype),
            folders.open_part(folder / "text_encoder", CLIPTextModel, dtype),
            folders.open_tokenizer(folder / "tokenizer"),
            grid=from_json(ClipGrid, stored["grid"]),
            settings=settings or from_json(HiGenSettings, stored["settings"]),
            defaults=from_json(HiGenDefaults, stored["defaults"]),
            frame_features=frame_features,
        ).to(device)

    def save(self, path: Path | str, dtype: str | None = None) -> None:
        """Write a folder that `from_folder` opens; weights stored in `dtype`, or in the type they have. Atomic."""
        with folders.FOLDER.written_whole(Path(path)) as target:
            for name, network in (("unet", self.unet), ("vae", self.vae), ("text_encoder", self.reader.encoder)):
                folders.save_part(network, target / name, dtype)
            self.reader.tokenizer.save_pretrained(target / "tokenizer")
            folders.FOLDER.write_settings(
                target, grid=asdict(self.grid), settings=asdict(self.settings), defaults=asdict(self.defaults)
            )

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def to(self, device: str | torch.device) -> HiGen:
        """Move all networks; returns self."""
        for module in self._modules():
            module.to(device)
        return self

    def _modules(self) -> tuple[Any, Any, Any]:
        return self.unet, self.vae, self.reader.encoder

    # The five words of the protocol

    def encode(self, samples: Sequence[Sample]) -> Encoded:
        """Clips, or pictures, of one shape and their captions as the rows described above, on the CPU."""
        return {**self.encode_clips(samples), **self.encode_captions(samples)}

    def encode_clips(self, samples: Sequence[Sample]) -> Encoded:
        """What `encode` makes of the pixels. Padding (the mask "valid") is black whatever it holds.

        Raises InputError for what is no uint8 clip, sizes that differ or do not divide, and a clip without one latent
        of real pixels only; ModelError for clips without an encoder of frames.
        """
        clips = [clip_of(sample) for sample in samples]
        one_shape(samples, clips, vae_factor(self.vae) * unet_factor(self.unet))
        with self.inference():
            rows = [self._row(sample, clip) for sample, clip in zip(samples, clips, strict=True)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, sample: Sample, clip: Clip) -> dict[str, torch.Tensor]:
        valid_THW = valid_of(sample, clip)
        valid_Thw = valid_latents(torch.from_numpy(valid_THW.copy())[None], vae_factor(self.vae))[0]
        key = key_frame_of(valid_THW)
        if not valid_Thw[key].any():
            raise InputError(
                f"sample {sample.key}: its key frame has not one latent of real pixels only; there is nothing to learn "
                f"from"
            )
        clip = without_padding(clip, valid_THW)
        mean, logvar = encode_frames(self.vae, pixels_of(clip))
        row = {
            "mean": mean.half(),
            "logvar": logvar.half(),
            "valid": valid_Thw.to(torch.uint8),
            "key": torch.tensor(key),
        }
        if clip.array_CTHW.shape[1] == 1:
            return row
        if self.frame_features is None:
            raise ModelError(
                "clips are encoded with the likeness of their frames: open the model with frame_features, a function "
                "from RGB frames to vectors"
            )
        real_T = [bool(frame_HW.any()) for frame_HW in valid_THW]
        similarity_TT = frame_similarity(clip, self.frame_features, real_T)
        return {
            **row,
            "motion": torch.from_numpy(motion_value(clip, valid_THW)),
            "appearance": torch.from_numpy(similarity_TT),
        }

    def encode_captions(self, samples: Sequence[Captioned]) -> Encoded:
        """What `encode` makes of the captions; the same, bit for bit, whichever captions stand beside one."""
        captions = [sample.caption for sample in samples]
        if self.settings.train_text_encoder:
            return {"token_ids": self.reader.tokens(captions)}
        with self.inference():
            return {"text": self.reader.read_alike(captions).float().cpu()}

    def loss(self, encoded: Encoded, draws: Sequence[torch.Generator]) -> torch.Tensor:
        """Loss per sample (B,): mean squared error of v over real latents. Row i draws from draws[i] alone.

        Rows of clips are told their key frame's latent, their motion and the likeness of their frames; rows of one
        frame are told nothing, and leave the network's blocks through time out.
        """
        rows = {name: tensor.to(self.device) for name, tensor in encoded.items()}
        mean, logvar = rows["mean"].float(), rows["logvar"].float()
        drawn = draw(
            draws,
            mean.shape[1:],
            offset_noise=self.settings.offset_noise,
            caption_dropout=self.settings.caption_dropout,
        ).to(self.device)

        raw = mean + torch.exp(0.5 * logvar) * drawn.posterior_BCThw
        clean = raw * self.vae.config.scaling_factor
        alpha, sigma = alpha_sigma(self._alpha_bars_S, drawn.timesteps_B)
        noisy = add_noise(clean, drawn.noise_BCThw, alpha, sigma)

        told: dict[str, Any] = {}
        if clean.shape[2] > 1:
            key_BChw = clean[torch.arange(len(clean), device=self.device), :, rows["key"]]
            likeness_BTT = stretched(rows["appearance"], self.settings.appearance_scale)
            told = {"prior_BCHW": key_BChw, "motion_BT": rows["motion"], "appearance_BTT": likeness_BTT}
            self._leave_untold(told, draws)
        text = self._training_text(rows, drawn.dropped_B)
        with self._attention_for_training(noisy):
            velocity = self.unet(noisy, drawn.timesteps_B, text_BNE=text, **told)
        target = velocity_target(clean, drawn.noise_BCThw, alpha, sigma)
        return error_per_sample(velocity, target, rows["valid"].bool())

    def _leave_untold(self, told: dict[str, Any], draws: Sequence[torch.Generator]) -> None:
        """NaN for the rows whose draws say so, each condition by itself; nothing is drawn where all is told."""
        if not self.settings.untold:
            return
        drawn_B2 = torch.stack([torch.rand(2, generator=draw) for draw in draws]).to(self.device)
        for number, name in enumerate(("motion_BT", "appearance_BTT")):
            untold_B = drawn_B2[:, number] < self.settings.untold
            told[name] = told[name].masked_fill(untold_B.view(-1, *[1] * (told[name].ndim - 1)), torch.nan)

    def _attention_for_training(self, noisy_BCThw: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        """On a CPU, attention over few latents by plain matrix products.

        The fused kernel's backward pass takes a third of a step there: 16 frames of 8 x 14 latents 589 ms a clip, so
        392 ms. Not with checkpointing, which would compute the second time by another kernel.
        """
        from torch.nn.attention import SDPBackend, sdpa_kernel

        few = noisy_BCThw.shape[-1] * noisy_BCThw.shape[-2] <= FEW_LATENTS
        if few and noisy_BCThw.device.type == "cpu" and not self.settings.gradient_checkpointing:
            return sdpa_kernel(SDPBackend.MATH)
        return contextlib.nullcontext()

    def _training_text(self, rows: Mapping[str, torch.Tensor], dropped_B: torch.Tensor) -> torch.Tensor:
        if "token_ids" in rows:
            return self.reader.drop_tokens(rows["token_ids"], dropped_B)
        return self.reader.drop_states(rows["text"], dropped_B)

    def sample(self, requests: Sequence[Request]) -> torch.Tensor:
        """Latents (B, C, N, h, w) float32 for requests that share frames, size, steps and guidance (else InputError).

        Row i starts from the noise of requests[i].seed whatever the batch. Motion and appearance are each row's own.
        """
        resolved = [self.resolve(request) for request in requests]
        frames, height, width, steps, guidance = shared_values(resolved)
        channels, factor = self.vae.config.latent_channels, vae_factor(self.vae)
        times, size = ddim_times(steps, self.defaults.spacing), (height // factor, width // factor)
        with self.inference():
            text = self.reader.embed(self.reader.tokens([request.prompt for request in resolved]))
            away = self.reader.embed(self.reader.tokens([request.negative_prompt for request in resolved]))

            def velocity(told: Mapping[str, torch.Tensor]) -> Velocity:
                rescale = self.defaults.guidance_rescale
                return guided_velocity(self.unet, text, away, told, guidance=guidance, rescale=rescale)

            # The structure level: one frame, prior 0, motion 0, likeness 1
            draws = [generator_for(request.seed, "key") for request in resolved]
            noise = torch.stack([torch.randn((channels, 1, *size), generator=draw) for draw in draws])
            key = ddim(velocity({}), noise.to(self.device), times, self._alpha_bars_S)
            if frames == 1:
                return key

            # The content level: all frames around the key frame
            draws = [generator_for(request.seed, "clip") for request in resolved]
            offset, shape = self.settings.offset_noise, (channels, frames, *size)
            noise = torch.stack([noise_with_offset(shape, draw, offset) for draw in draws])
            asked = motion_and_appearance(resolved, self.grid.frames)
            told = {name: value.to(self.device) for name, value in asked.items()} | {"prior_BCHW": key[:, :, 0]}
            in_windows = over_windows(velocity(told), self.grid.frames, self.defaults.overlap)
            return ddim(in_windows, noise.to(self.device), times, self._alpha_bars_S)

    def decode(self, latents: torch.Tensor) -> list[Item]:
        """Latents of `sample` as uint8 RGB clips. Raises ModelError when a number is not finite."""
        with self.inference():
            return [
                Clip(decode_frames(self.vae, row), frames_per_second=self.grid.frames_per_second) for row in latents
            ]

    def trainable(self) -> list[ParamGroup]:
        """The U-Net, and the text encoder where it is trained; puts these in training mode."""
        self.unet.train()
        groups = [ParamGroup("unet", list(self.unet.parameters()))]
        if self.settings.train_text_encoder:
            self.reader.encoder.train()
            read = [weight for weight in self.reader.encoder.parameters() if weight.requires_grad]
            groups.append(ParamGroup("text_encoder", read, lr_scale=self.settings.text_encoder_lr_scale))
        return groups

    # What else a user of the model asks

    def resolve(self, request: Request) -> Request:
        """The request with frames, size, steps, guidance, and what the model has of motion and appearance filled in.

        Raises InputError for what this model cannot make: a prompt of several terms or a mixed one, fewer frames than
        its own, a size that does not divide, a motion factor above the limit.
        """
        self._refuse(request)
        return replace(
            request,
            frames=request.frames or self.grid.frames,
            height=request.height or self.grid.height,
            width=request.width or self.grid.width,
            steps=request.steps or self.defaults.steps,
            guidance=self.defaults.guidance if request.guidance is None else request.guidance,
            motion=self.defaults.motion if request.motion is None else request.motion,
            appearance=self.defaults.appearance if request.appearance is None else request.appearance,
        )

    def _refuse(self, request: Request) -> None:
        if request.terms or request.toward_prompt or request.toward_seed is not None:
            raise InputError(
                f"request {request.key}: a video model reads one prompt; it neither combines prompts with AND and "
                "weights nor goes from one to another. Write 'and' in small letters"
            )
        if request.frames is not None and 1 < request.frames < self.grid.frames:
            raise InputError(
                f"request {request.key}: {request.frames} frames are fewer than the {self.grid.frames} that this model "
                f"was trained on. Ask for {self.grid.frames} or more (made in overlapping windows), or for 1, the key "
                f"frame alone"
            )
        if request.motion is not None and request.motion > MOTION_LIMIT:
            raise InputError(
                f"request {request.key}: motion {request.motion:g} lies above {MOTION_LIMIT:g}, the largest value that "
                f"a model is told in training"
            )
        factor = vae_factor(self.vae) * unet_factor(self.unet)
        for name, pixels in (("height", request.height), ("width", request.width)):
            if pixels is not None and pixels % factor:
                near = max(factor, round(pixels / factor) * factor)
                raise InputError(
                    f"request {request.key}: {name} {pixels} must be a multiple of {factor} pixels. Nearest: {near}"
                )

    def lost_words(self, prompt: str) -> str:
        """The words at the end of the prompt that the text encoder's window cuts off; "" when all fit."""
        return self.reader.lost_words(prompt)

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Eval mode and no gradients; afterwards each network is in the mode it was in."""
        training = [module for module in self._modules() if module.training]
        for module in training:
            module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module in training:
                module.train()


def key_frame_row(row: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The row of a clip's key frame as a picture: one frame, and what belongs to clips left out."""
    key = int(row["key"])
    own = {name: row[name] for name in row if name not in ("motion", "appearance")}
    return {
        **own,
        "mean": row["mean"][:, key : key + 1],
        "logvar": row["logvar"][:, key : key + 1],
        "valid": row["valid"][key : key + 1],
        "key": torch.zeros_like(row["key"]),
    }
