"""A textual-inversion step beside that of diffusers' example script, at Stable Diffusion 2's text-encoder size.

Both learn the same token on the same tiny U-Net and the same latents, so that what differs is what the optimiser sees:

ours      the new vectors alone (families.stable_diffusion.inversion), fused AdamW as the training engine builds it
script    the whole embedding matrix in AdamW, and every old row written back after each step (diffusers 0.42,
          examples/textual_inversion/textual_inversion.py, written out here)

The script encodes the picture and clips nothing; here it gets the latents, which is in its favour. Time: contenders
take turns in one process, medians of the ratios within a round. Memory: highest resident size while stepping, above
what was resident before the contender was built, the model itself taken off; each in a process of its own.

    python benchmarks/textual_inversion.py --rounds 5 --steps 4
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import multiprocessing
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler

from medisyn import runs
from medisyn.families.stable_diffusion.config import InversionConfig, NetworkConfig, StableDiffusionConfig
from medisyn.families.stable_diffusion.embedding_files import Embedding
from medisyn.families.stable_diffusion.embeddings import entries_of, place, vectors_from_words
from medisyn.families.stable_diffusion.inversion import TextualInversion
from medisyn.families.stable_diffusion.model import StableDiffusion
from medisyn.families.stable_diffusion.text import tokenize, train_tokenizer
from medisyn.seeding import generator_for
from medisyn.training.optim import build_optimizer
from medisyn.training.settings import TrainSettings

RESULTS = Path(__file__).parent / "results"
MIB = 2**20
TOKEN, WORDS = "<prostate-mri>", "chest X-ray frontal lateral effusion nodule axial CT lung window"
TINY = NetworkConfig(
    image_size=64,
    vae_widths=(16, 16, 16, 16),
    unet_widths=(16, 32),
    unet_attention=(False, True),
    unet_layers=1,
    unet_heads=2,
    norm_groups=8,
    prediction_type="epsilon",
)


@dataclass(frozen=True)
class Size:
    """Stable Diffusion 2's text encoder (OpenCLIP ViT-H/14 without its last layer), unless told otherwise."""

    vocabulary: int = 49_408
    width: int = 1024
    layers: int = 23
    heads: int = 16
    vectors: int = 64


@dataclass
class Contender:
    """A step to call, the bytes its optimiser holds after one, and what it holds besides."""

    step: Callable[[int], float]
    optimizer: torch.optim.Optimizer

    def state_bytes(self) -> int:
        states = self.optimizer.state.values()
        return sum(value.nbytes for state in states for value in state.values() if isinstance(value, torch.Tensor))


def make_model(size: Size) -> StableDiffusion:
    config = replace(TINY, text_width=size.width, text_layers=size.layers, text_heads=size.heads)
    model = StableDiffusion.from_config(config, train_tokenizer([WORDS]), StableDiffusionConfig())
    model.networks.text_encoders[0].resize_token_embeddings(size.vocabulary, mean_resizing=False)
    model.source = "benchmark"
    return model


def latents(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def ours(size: Size) -> Contender:
    family = TextualInversion(
        make_model(size), InversionConfig(tokens=(TOKEN,), num_vectors=size.vectors, init=("CT",))
    )
    groups = family.trainable()
    optimizer = build_optimizer(groups, TrainSettings(num_steps=1, batch_size=1, learning_rate=0.005))
    clean = latents(8)
    scale = family.networks.vae.config.scaling_factor

    def step(number: int) -> float:
        row = clean[number % 8][None] / scale
        encoded = {"mean": row, "logvar": torch.full_like(row, -60.0), "concept": torch.zeros(1, dtype=torch.long)}
        with torch.autocast("cpu", torch.bfloat16):
            loss = family.loss(encoded, [generator_for(0, str(number))]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return Contender(step, optimizer)


def script(size: Size) -> Contender:
    """The example's loop, with its own names for what is its own."""
    base = make_model(size).networks
    first = Embedding(TOKEN, tuple(vectors_from_words(base, "CT", size.vectors)))
    networks = place(base, [first])
    [text_encoder], [tokenizer], unet = networks.text_encoders, networks.tokenizers, networks.unet
    networks.vae.requires_grad_(False)
    unet.requires_grad_(False)
    text_encoder.get_input_embeddings().requires_grad_(True)  # the example freezes all but the token embeddings
    placeholder_token_ids = tokenizer.convert_tokens_to_ids(entries_of(TOKEN, size.vectors))
    optimizer = torch.optim.AdamW(text_encoder.get_input_embeddings().parameters(), lr=0.005, weight_decay=1e-2)
    orig_embeds_params = text_encoder.get_input_embeddings().weight.data.clone()
    noise_scheduler: Any = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    clean, ids = latents(8), tokenize(tokenizer, [TOKEN])

    def step(number: int) -> float:
        row = clean[number % 8][None]
        noise = torch.randn_like(row)
        timesteps = torch.randint(0, 1000, (1,)).long()
        noisy = noise_scheduler.add_noise(row, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = text_encoder(ids)[0]
            prediction = unet(noisy, timesteps, hidden).sample
            loss = torch.nn.functional.mse_loss(prediction.float(), noise.float(), reduction="mean")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        index_no_updates = torch.ones((text_encoder.get_input_embeddings().num_embeddings,), dtype=torch.bool)
        index_no_updates[min(placeholder_token_ids) : max(placeholder_token_ids) + 1] = False
        with torch.no_grad():
            text_encoder.get_input_embeddings().weight[index_no_updates] = orig_embeds_params[index_no_updates]
        return float(loss.detach())

    return Contender(step, optimizer)


CONTENDERS: dict[str, Callable[[Size], Contender]] = {"ours": ours, "script": script}


def resident(field: str) -> float:
    """MiB of this process: "VmRSS" now, "VmHWM" the highest since it was last reset."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def model_mib(size: Size) -> float:
    modules = make_model(size).networks.modules()
    return sum(parameter.nbytes for module in modules for parameter in module.parameters()) / MIB


def memory_of(name: str, size: Size, model: float) -> dict[str, float]:
    """Highest resident MiB while stepping, above the model's; in a process that has held nothing before."""
    before = resident("VmRSS")
    contender = CONTENDERS[name](size)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # start the highest resident size anew
    for number in range(2):
        contender.step(number)
    return {
        "above_the_model_mib": round(resident("VmHWM") - before - model, 1),
        "optimizer_state_mib": round(contender.state_bytes() / MIB, 3),
    }


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result from a new process: memory that was freed before would hide what is taken."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(size: Size, rounds: int, steps: int) -> dict[str, Any]:
    model = alone(model_mib, size)
    memory = {name: alone(memory_of, name, size, model) for name in CONTENDERS}
    contenders = {name: build(size) for name, build in CONTENDERS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, contender in contenders.items():
            started = time.perf_counter()
            for step in range(steps):
                contender.step(number * steps + step)
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - started) / steps)
    ratios_R = np.array(seconds["script"]) / np.array(seconds["ours"])
    return {
        "size": vars(size),
        "rounds": rounds,
        "steps_per_round": steps,
        "median_seconds_per_step": {name: round(float(np.median(times)), 4) for name, times in seconds.items()},
        "step_time_script_over_ours": {
            name: round(float(pick(ratios_R)), 3)
            for name, pick in (("median", np.median), ("low", np.min), ("high", np.max))
        },
        "memory": memory,
        "memory_script_over_ours": round(
            memory["script"]["above_the_model_mib"] / memory["ours"]["above_the_model_mib"], 2
        ),
        "optimizer_state_ours_over_script": round(
            memory["ours"]["optimizer_state_mib"] / memory["script"]["optimizer_state_mib"], 6
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps per round and contender")
    parser.add_argument("--layers", type=int, default=Size.layers, help="of the text encoder")
    parser.add_argument("--dry-run", action="store_true", help="print, write no file")
    asked = parser.parse_args()
    result = measure(Size(layers=asked.layers), asked.rounds, asked.steps)
    print(json.dumps(result, indent=2))
    if asked.dry_run:
        return
    content = {
        "benchmark": "textual_inversion",
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/textual_inversion.py --rounds {asked.rounds} --steps {asked.steps} "
        f"--layers {asked.layers}",
        "environment": runs.environment(),
        "threads": torch.get_num_threads(),
        "result": result,
    }
    path = RESULTS / f"textual_inversion-{content['date']}.json"
    runs.write_json(path, content)
    print(f"written to benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
