"""MedSyn's base model as a family: CT, lobes, airways and vessels from a report, any of them held fixed.

Shapes here: B samples or requests, C channels (CT, lobe, airway, vessel), D, H, W of the grid, T report tokens, E their
width. What `encode` returns: "channels" (B, C, D, H, W) float16 in [-1, 1] and "text" (B, T, E).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medisyn.diffusion.clean_solvers import mean_prediction, solve
from medisyn.diffusion.cosine import cosine_alpha_sigma
from medisyn.diffusion.guidance import guide
from medisyn.diffusion.schedules import add_noise
from medisyn.errors import InputError, ModelError
from medisyn.families.base import ParamGroup
from medisyn.families.medsyn.channels import (
    channels_from_sample,
    masks_from_channels,
    stack_known,
    volume_from_channels,
)
from medisyn.families.medsyn.config import CHANNELS, Grid, MedSynConfig, MedSynDefaults
from medisyn.families.medsyn.networks import MedSynUNet
from medisyn.families.medsyn.objective import (
    draw_base,
    draw_given,
    error_per_sample,
    weight_of,
    with_what_is_seen,
)
from medisyn.families.medsyn.reports import ReportReader
from medisyn.seeding import generator_for
from medisyn.types import Item, Request, Sample

if TYPE_CHECKING:
    from medisyn.families.base import Encoded

Known = Mapping[str, torch.Tensor]  # channel name -> (D, H, W) in [-1, 1]


class MedSynBase:
    """Implements `families.base.Family`."""

    def __init__(
        self,
        unet: MedSynUNet,
        report_encoder: Any,
        tokenizer: Any,
        grid: Grid | None = None,
        config: MedSynConfig | None = None,
        defaults: MedSynDefaults | None = None,
    ) -> None:
        """The report encoder is frozen. Raises ModelError when the three parts do not fit together."""
        self.unet: Any = unet
        self.grid = grid or Grid()
        self.config, self.defaults = config or MedSynConfig(), defaults or MedSynDefaults()
        if not unet.reads_text:
            raise ModelError("the network of the base model must read text; this is a super-resolution network")
        if report_encoder.config.hidden_size != unet.config["text_width"]:
            raise ModelError(
                f"the base model reads vectors of width {unet.config['text_width']}, the report encoder makes "
                f"{report_encoder.config.hidden_size}: they do not belong together"
            )
        depth, *slice_sides = self.grid.shape
        patch, factor = unet.config["patch"], unet.factor
        if depth % patch or any(side % factor for side in slice_sides):
            raise ModelError(
                f"height and width of the grid must divide by {factor}, its depth by {patch}, got {self.grid.shape}"
            )
        self.reader = ReportReader(
            report_encoder,
            tokenizer,
            num_tokens=unet.config["text_tokens"],
            long_reports=self.config.long_reports,
            short_reports=self.config.short_reports,
        )
        unet.eval()

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def to(self, device: str | torch.device) -> MedSynBase:
        """Move the networks; returns self."""
        self.unet.to(device)
        self.reader.encoder.to(device)
        return self

    def encode(self, samples: Sequence[Sample]) -> Encoded:
        """CT volumes in HU with masks "lobe", "airway", "vessel", and their reports, as the rows described above."""
        for sample in samples:
            if not sample.caption.strip():
                raise InputError(f"sample {sample.key}: it has no report. Leave it out of the corpus, or add one.")
        channels = torch.stack([channels_from_sample(sample, self.grid) for sample in samples])
        return {"channels": channels.half(), "text": self.reader.read([sample.caption for sample in samples])}

    def loss(self, encoded: Encoded, draws: Sequence[torch.Generator]) -> torch.Tensor:
        """Loss per sample (B,): weighted squared error of the predicted clean channels. Row i draws from draws[i]."""
        clean = encoded["channels"].to(self.device).float()
        drawn = draw_base(draws, clean.shape[1:], self.config.report_dropout)
        times, noise = drawn.times_B.to(self.device), drawn.noise_BCDHW.to(self.device)
        alpha, sigma = cosine_alpha_sigma(times, clean.ndim)
        dropped = drawn.dropped_B.to(self.device)[:, None, None]
        text = torch.where(dropped, self.unet.null_text, encoded["text"].to(self.device).float())
        given = draw_given(draws, self.config.given_share).to(self.device)
        noisy = torch.where(given, clean, add_noise(clean, noise, alpha, sigma))
        predicted = with_what_is_seen(self.unet(noisy, times, text_BTE=text), noisy, times, self.config.ct_residual)
        error = error_per_sample(predicted, clean, given, self.config.lung_weight, self.config.lung_reach)
        return weight_of(times, self.config.weight_limit) * error

    def sample(self, requests: Sequence[Request], known: Sequence[Known | None] | None = None) -> torch.Tensor:
        """Channels (B, C, D, H, W) float32 in [-1, 1] for requests that share steps and guidance.

        `known[i]` holds the channels of request i that are given (`known_from` makes them): each clean prediction gets
        them before the solver goes on, and the result has them exactly. "ct" alone is segmentation. An empty prompt is
        the learned null text, so there is nothing to guide. A given anatomy that contradicts the prompt is not
        resolved: the given channels stay, and the rest follows both as far as it can.
        """
        resolved = [self.resolve(request) for request in requests]
        steps, guidance = _common(resolved)
        given = [stack_known(row, self.grid) for row in (known or [None] * len(requests))]
        if len(given) != len(requests):
            raise InputError(f"known has {len(given)} rows for {len(requests)} requests")
        values = torch.stack([value for value, _ in given]).to(self.device)
        is_given = torch.stack([mask for _, mask in given]).to(self.device)
        shape = (len(CHANNELS), *self.grid.shape)
        generators = [generator_for(request.seed, "noise") for request in resolved]

        def draw() -> torch.Tensor:
            return torch.stack([torch.randn(shape, generator=one) for one in generators]).to(self.device)

        with self.inference():
            asked = self._text([request.prompt for request in resolved])
            away = self._text([request.negative_prompt for request in resolved])
            guided = guidance != 1 and any(request.prompt for request in resolved)

            def predict(x_BCDHW: torch.Tensor, time: float) -> torch.Tensor:
                seen = torch.where(is_given, values, x_BCDHW) if self.config.given_share else x_BCDHW
                clean = self._clean(seen, time, asked, away if guided else None, guidance)
                return torch.where(is_given, values, clean).clamp(-1, 1)

            clean = solve(predict, draw, self.defaults.solver, steps)
            draws, time = self.defaults.ct_draws, self.defaults.ct_draws_time
            if not draws or bool(is_given[:, :1].all()):
                return clean
            mean = mean_prediction(predict, draw, clean, time, draws)
            return torch.cat([mean[:, :1], clean[:, 1:]], dim=1)  # the mean of two lobes' labels is another lobe's

    def _clean(
        self, x_BCDHW: torch.Tensor, time: float, asked: torch.Tensor, away: torch.Tensor | None, guidance: float
    ) -> torch.Tensor:
        """The clean prediction, guided as null + scale * (text - null): one network call in either case."""
        x, texts = (x_BCDHW, asked) if away is None else (torch.cat([x_BCDHW, x_BCDHW]), torch.cat([away, asked]))
        times, dtype = torch.full((len(x),), time, device=self.device), self.unet.dtype
        guess = self.unet(x.to(dtype), times, text_BTE=texts.to(dtype))
        clean = with_what_is_seen(guess, x, times, self.config.ct_residual)
        if away is None:
            return clean
        blank, told = clean.chunk(2)
        return guide(blank, told, guidance)

    def _text(self, prompts: Sequence[str]) -> torch.Tensor:
        """(B, T, E); the null text where a prompt is empty."""
        null = self.unet.null_text[0].float()
        rows = [self.reader.read([prompt])[0].to(self.device) if prompt.strip() else null for prompt in prompts]
        return torch.stack(rows)

    def decode(self, latents: torch.Tensor) -> list[Item]:
        """Channels as CT volumes in HU, float32 (1, D, H, W), along S, P, L with the grid's spacing."""
        _check_finite(latents)
        return [volume_from_channels(row, self.grid) for row in latents]

    def masks(self, latents: torch.Tensor) -> list[dict[str, np.ndarray]]:
        """The masks "lobe" (0 to 5), "airway", "vessel" of each row, uint8 (D, H, W), in the axes of `decode`."""
        return [masks_from_channels(row, self.grid) for row in latents]

    def trainable(self) -> list[ParamGroup]:
        """The U-Net; puts it in training mode. The report encoder is frozen."""
        self.unet.train()
        return [ParamGroup("unet", list(self.unet.parameters()))]

    # What else a user of the model asks

    def known_from(self, sample: Sample, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The named channels of a sample ("ct", "lobe", "airway", "vessel") as `sample` takes them."""
        unknown = [name for name in names if name not in CHANNELS]
        if unknown:
            raise InputError(f"channel {unknown[0]!r} is unknown, allowed: {', '.join(CHANNELS)}")
        return dict(zip(names, channels_from_sample(sample, self.grid, tuple(names)), strict=True))

    def segment(self, samples: Sequence[Sample], *, seed: int, with_report: bool = True) -> list[dict[str, np.ndarray]]:
        """The model's masks for given CT volumes, with the report or without, along the grid's SPL axes."""
        requests = [
            Request(key=sample.key, prompt=sample.caption if with_report else "", seed=seed) for sample in samples
        ]
        return self.masks(self.sample(requests, [self.known_from(sample, ["ct"]) for sample in samples]))

    def resolve(self, request: Request) -> Request:
        """The request with steps and guidance filled in.

        Raises InputError for a size that is not the model's, and for a prompt of several terms or one that is mixed.
        """
        if request.terms or request.toward_prompt or request.toward_seed is not None:
            raise InputError(
                f"request {request.key}: a CT model reads one report; it neither combines prompts with AND and weights "
                "nor goes from one to another. Write 'and' in small letters"
            )
        for name, asked, has in zip(
            ("height", "width"), (request.height, request.width), self.grid.shape[1:], strict=True
        ):
            if asked is not None and asked != has:
                raise InputError(
                    f"request {request.key}: {name} {asked} is not the model's {has}; leave it out, and resample the "
                    f"volume afterwards"
                )
        guidance = self.defaults.guidance if request.guidance is None else request.guidance
        return replace(request, steps=request.steps or self.defaults.steps, guidance=guidance)

    def lost_words(self, prompt: str) -> str:
        """The end of the prompt that is not read; "" unless long_reports is "cut"."""
        return self.reader.lost_words(prompt)

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Eval mode and no gradients; afterwards the network is in the mode it was in."""
        with eval_mode(self.unet):
            yield


@contextlib.contextmanager
def eval_mode(network: torch.nn.Module) -> Iterator[None]:
    """Within the block the network is in eval mode and records no gradients."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)


def _common(resolved: Sequence[Request]) -> tuple[int, float]:
    asked = {(request.steps, request.guidance) for request in resolved}
    if len(asked) != 1:
        raise InputError(f"requests of one batch must share steps and guidance, got {sorted(asked, key=str)}")
    ((steps, guidance),) = asked
    assert steps is not None
    assert guidance is not None
    return steps, guidance


def _check_finite(latents: torch.Tensor) -> None:
    if not torch.isfinite(latents).all():
        raise ModelError(
            "the model made voxels that are NaN or infinite: the training run diverged. Use an earlier checkpoint."
        )
