"""Tiny Würstchen networks with random weights, and their folders in the layouts of the published models."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import build
from medisyn.families.wuerstchen.config import DECODER_TINY, IMAGE_ENCODER_TINY, PRIOR_TINY, VQGAN_TINY
from medisyn.families.wuerstchen.networks import Networks, build_networks
from medisyn.families.wuerstchen.settings import Sizes

SIZES = Sizes(
    prior=PRIOR_TINY,
    decoder=DECODER_TINY,
    vqgan=VQGAN_TINY,
    image_encoder=IMAGE_ENCODER_TINY,
    text_layers=1,
    text_heads=2,
    text_window=16,
)


def randomise(network: Any, seed: int = 0) -> Any:
    """Small random numbers in every weight and statistic, so that no zero at the start hides a branch; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return network.eval()


@cache
def networks() -> Networks:
    """Networks whose text encoders and tokenizers are those of a CLIP of width 32."""
    made = build_networks(SIZES, build.tokenizer(), seed=1)
    for number, module in enumerate((made.prior, made.decoder, made.vqgan, made.encoder())):
        randomise(module, seed=number)
    with torch.no_grad():
        made.prior.out[1].weight.mul_(0.2)  # b away from 1, where the division makes rounding large
    return made


@cache
def oracle(part: str) -> Any:
    """diffusers' deprecated network with the weights of ours."""
    from diffusers.pipelines.deprecated import wuerstchen as published

    classes: dict[str, Any] = {
        "prior": (published.WuerstchenPrior, PRIOR_TINY),
        "decoder": (published.WuerstchenDiffNeXt, DECODER_TINY),
        "vqgan": (published.PaellaVQModel, VQGAN_TINY),
    }
    kind, config = classes[part]
    with mock.patch.object(kind, "_init_weights", return_value=None, create=True):  # slow, and replaced below
        network = kind(**as_lists(config)).eval()
    network.load_state_dict(getattr(networks(), part).state_dict())
    return network


def as_lists(config: Any) -> dict[str, Any]:
    """A config's values as diffusers' classes take them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}


def write_hub_folders(folder: Path) -> tuple[Path, Path]:
    """The two published pipelines as diffusers saved them: the prior's and the decoder's folder."""
    made = networks()
    prior, decoder = folder / "wuerstchen-prior", folder / "wuerstchen"
    for place, name, parts, numbers in (
        (prior, "WuerstchenPriorPipeline", ("prior",), {"latent_mean": 42.0, "latent_std": 1.0}),
        (decoder, "WuerstchenDecoderPipeline", ("decoder", "vqgan"), {"latent_dim_scale": 10.67}),
    ):
        stage = "" if place is prior else "decoder_"
        for part in parts:
            oracle(part).save_pretrained(place / part)
        getattr(made, f"{stage}text_encoder").save_pretrained(place / "text_encoder")
        getattr(made, f"{stage}tokenizer").save_pretrained(place / "tokenizer")
        write_scheduler(place / "scheduler")
        index = {"_class_name": name, **{part: ["wuerstchen", type(oracle(part)).__name__] for part in parts}}
        (place / "model_index.json").write_text(json.dumps({**index, **numbers}))
    return prior, decoder


def write_combined_folder(folder: Path) -> Path:
    """Both pipelines as one, as diffusers saves a combined pipeline."""
    prior, decoder = write_hub_folders(folder)
    for place in list(prior.iterdir()):
        if place.is_dir():
            place.rename(decoder / f"prior_{place.name}")
    (decoder / "model_index.json").write_text(json.dumps({"_class_name": "WuerstchenCombinedPipeline"}))
    return decoder


def write_scheduler(folder: Path, **changes: float) -> None:
    folder.mkdir()
    content = {"_class_name": "DDPMWuerstchenScheduler", "s": 0.008, "scaler": 1.0, **changes}
    (folder / "scheduler_config.json").write_text(json.dumps(content))


def to_raw(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of a raw checkpoint: queries, keys and values joined, out_proj, codebook."""
    raw: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        found = re.fullmatch(r"(.*attention)\.to_([qkv])\.(weight|bias)", name)
        if found is None:
            name = name.replace(".to_out.0.", ".attn.out_proj.").replace("vquantizer.embedding", "vquantizer.codebook")
            raw[name] = value
        elif found[2] == "q":
            joined = torch.cat([state[f"{found[1]}.to_{letter}.{found[3]}"] for letter in "qkv"])
            raw[f"{found[1]}.attn.in_proj_{found[3]}"] = joined
    return raw


def write_raw(folder: Path) -> dict[str, Path]:
    """The three raw checkpoints, with entries that sampling does not need."""
    made = networks()
    folder.mkdir(parents=True)
    files = {stage: folder / f"{stage}.pt" for stage in ("stage_a", "stage_b", "stage_c")}
    prior = to_raw(made.prior.state_dict())
    noise = {name: torch.zeros_like(value) for name, value in prior.items()}
    torch.save({"ema_state_dict": prior, "state_dict": noise, "step": 3}, files["stage_c"])
    decoder = {f"module.{name}": value for name, value in to_raw(made.decoder.state_dict()).items()}
    torch.save({"state_dict": decoder, "effnet_state_dict": made.encoder().state_dict()}, files["stage_b"])
    torch.save({"state_dict": to_raw(made.vqgan.state_dict())}, files["stage_a"])
    return files


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
