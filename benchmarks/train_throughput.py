"""Training throughput beside the loop of diffusers' SDXL example script, on the same tiny SDXL, batch and machine.

Three contenders take turns in one process, so that whatever else the machine does hits all of them alike:

ours      `medisyn.training.loop.train` on rows of `precompute`: latents as moments, resampled every step
in loop   the example script's loop with both text encoders and the autoencoder inside it
cached    the same loop on what its `.map` caches: one latent sample and the text embeddings

The script's algorithm is written out here (diffusers 0.42, examples/text_to_image/train_text_to_image_sdxl.py): a
shuffled DataLoader, noise for the whole batch, DDPMScheduler.add_noise, mean squared error, gather of the loss,
clipping, torch.optim.AdamW with its defaults, a scheduler step, a progress bar. All contenders use bf16 autocast.

    python benchmarks/train_throughput.py --rounds 5 --steps 12 --network small
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.optimization import get_scheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from medisyn import runs
from medisyn.families.stable_diffusion.config import NetworkConfig, StableDiffusionConfig
from medisyn.families.stable_diffusion.model import StableDiffusion
from medisyn.families.stable_diffusion.text import train_tokenizer
from medisyn.training.loop import train
from medisyn.training.precompute import precompute
from medisyn.training.settings import TrainSettings
from medisyn.types import Picture, Sample

RESULTS = Path(__file__).parent / "results"
NETWORKS = {
    "tiny": NetworkConfig(
        xl=True,
        image_size=64,
        vae_widths=(16, 16, 16, 16),
        unet_widths=(16, 32),
        unet_attention=(False, True),
        unet_layers=1,
        unet_heads=2,
        text_width=32,
        text_layers=2,
        text_heads=2,
        time_id_width=8,
        norm_groups=8,
    ),
    "small": NetworkConfig(
        xl=True,
        image_size=128,
        vae_widths=(32, 64, 64, 64),
        unet_widths=(64, 128),
        unet_attention=(False, True),
        unet_layers=1,
        unet_heads=4,
        text_width=64,
        text_layers=4,
        text_heads=4,
        time_id_width=16,
        norm_groups=16,
    ),
}
Round = Callable[[int], np.ndarray]  # steps -> seconds per step, on the wall and of the processor
WORDS = ("chest", "X-ray", "frontal", "lateral", "effusion", "nodule", "axial", "CT", "lung", "window")


def make_samples(count: int, size: int) -> list[Sample]:
    """Noise pictures with captions of six words: what is in them does not change the time."""
    rng = np.random.default_rng(0)
    return [
        Sample(
            f"item-{number:04d}",
            Picture(rng.integers(0, 256, (3, size, size)).astype(np.uint8)),
            " ".join(rng.choice(WORDS, 6)),
        )
        for number in range(count)
    ]


def make_model(network: NetworkConfig) -> StableDiffusion:
    return StableDiffusion.from_config(network, train_tokenizer(WORDS), StableDiffusionConfig())


def clocks() -> np.ndarray:
    """Now, in seconds on the wall and of processor time; the second does not see what else the machine does."""
    return np.array([time.perf_counter(), time.process_time()])


class Clocked:
    """A store that notes when the first row of each batch is asked for; each reading costs time itself."""

    def __init__(self, store: Any, batch_size: int) -> None:
        self.store, self.keys, self.batch_size = store, store.keys, batch_size
        self.asked, self.marks = 0, list[np.ndarray]()

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, row: int) -> Any:
        if self.asked % self.batch_size == 1 % self.batch_size:  # row 0 was asked for by the memory estimate
            self.marks.append(clocks())
        self.asked += 1
        return self.store[row]


def ours(network: NetworkConfig, samples: list[Sample], batch_size: int, scratch: Path) -> Round:
    """Seconds per step of our loop, from the start of its second step; each call is a run of its own."""
    family = make_model(network)
    store = precompute(
        scratch / "encoded",
        [sample.key for sample in samples],
        samples.__getitem__,
        lambda: family.encode,
        encoder="benchmark",
        corpus="benchmark",
    )
    numbers = iter(range(10**6))

    def round_of(steps: int) -> np.ndarray:
        settings = TrainSettings(
            num_steps=steps + 2,
            batch_size=batch_size,
            micro_batch_size=batch_size,
            learning_rate=1e-5,
            checkpoint_every=10**6,
        )
        out = scratch / f"run-{next(numbers)}"
        clocked = Clocked(store, batch_size)
        train(family, clocked, settings, out, save_model=lambda folder: folder.mkdir())
        return (clocked.marks[steps + 1] - clocked.marks[1]) / steps

    return round_of


def time_ids(size: int) -> torch.Tensor:
    """As the script's compute_time_ids: original size, crop, target size."""
    return torch.tensor([[size, size, 0, 0, size, size]], dtype=torch.float32)


def encode_text(model: StableDiffusion, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As the script's encode_prompt: penultimate hidden states of both encoders, pooled text of the second."""
    embeddings, pooled = [], torch.empty(0)
    with torch.no_grad():
        for encoder in model.networks.text_encoders:
            encoded = encoder(token_ids, output_hidden_states=True, return_dict=False)
            pooled = encoded[0]
            embeddings.append(encoded[-1][-2])
    return torch.concat(embeddings, dim=-1), pooled


def encode_pixels(model: StableDiffusion, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.networks.vae.encode(pixels).latent_dist.sample() * model.networks.vae.config.scaling_factor


def script_rows(model: StableDiffusion, samples: list[Sample], *, cached: bool) -> list[dict[str, torch.Tensor]]:
    """What the script's data set holds: pixels and token ids, or what its two `.map` calls cache (once per sample)."""
    tokenizer = model.networks.tokenizers[0]
    rows = []
    for sample in samples:
        pixels = torch.from_numpy(sample.item.array_CHW.copy()).float() / 127.5 - 1  # type: ignore[union-attr]
        ids = tokenizer(sample.caption, padding="max_length", truncation=True, return_tensors="pt").input_ids[0]
        if cached:
            text, pooled = encode_text(model, ids[None])
            rows.append({"model_input": encode_pixels(model, pixels[None])[0], "text": text[0], "pooled": pooled[0]})
        else:
            rows.append({"pixels": pixels, "ids": ids})
    return rows


def script(network: NetworkConfig, samples: list[Sample], batch_size: int, *, cached: bool) -> Round:
    """Seconds per step of the script's loop, its first step left out."""
    model = make_model(network)
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    unet = model.networks.unet.train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, weight_decay=1e-2)
    scheduler = get_scheduler("constant", optimizer=optimizer)
    noise_scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    rows = cast(Dataset[dict[str, torch.Tensor]], script_rows(model, samples, cached=cached))  # a list serves as one
    loader = DataLoader(rows, shuffle=True, batch_size=batch_size, drop_last=True)
    unet, optimizer, loader, scheduler = accelerator.prepare(unet, optimizer, loader, scheduler)
    batches = endless(loader)

    def step(bar: Any) -> None:
        batch = next(batches)
        with accelerator.accumulate(unet):
            if cached:
                model_input, text, pooled = batch["model_input"], batch["text"], batch["pooled"]
            else:
                model_input = encode_pixels(model, batch["pixels"])
                text, pooled = encode_text(model, batch["ids"])
            noise = torch.randn_like(model_input)
            timesteps = torch.randint(0, 1000, (len(model_input),)).long()
            noisy = noise_scheduler.add_noise(model_input, noise, timesteps)
            sizes = torch.cat([time_ids(network.image_size) for _ in range(len(model_input))])
            conditions = {"time_ids": sizes, "text_embeds": pooled}
            prediction = unet(noisy, timesteps, text, added_cond_kwargs=conditions, return_dict=False)[0]
            loss = torch.nn.functional.mse_loss(prediction.float(), noise.float(), reduction="mean")
            mean_loss = accelerator.gather(loss.repeat(batch_size)).mean()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        bar.update(1)
        bar.set_postfix(step_loss=mean_loss.item(), lr=scheduler.get_last_lr()[0])

    def round_of(steps: int) -> np.ndarray:
        with tqdm(total=steps, disable=None) as bar:
            step(bar)
            started = clocks()
            for _ in range(steps):
                step(bar)
            return (clocks() - started) / steps

    return round_of


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def measure(network: str, batch_size: int, rounds: int, steps: int) -> dict[str, Any]:
    """Ratios are medians over the rounds of the ratio within a round."""
    samples = make_samples(4 * batch_size, NETWORKS[network].image_size)
    with tempfile.TemporaryDirectory() as scratch:
        contenders = {
            "ours": ours(NETWORKS[network], samples, batch_size, Path(scratch)),
            "in loop": script(NETWORKS[network], samples, batch_size, cached=False),
            "cached": script(NETWORKS[network], samples, batch_size, cached=True),
        }
        seconds: dict[str, list[np.ndarray]] = {name: [] for name in contenders}
        for number in range(rounds + 1):
            for name, round_of in contenders.items():
                taken = round_of(steps)
                if number:  # the first round warms up
                    seconds[name].append(taken)
    ratios = {name: np.array(seconds[name]) / np.array(seconds["ours"]) for name in ("in loop", "cached")}
    return {
        "network": network,
        "unet_parameters": sum(p.numel() for p in make_model(NETWORKS[network]).networks.unet.parameters()),
        "batch_size": batch_size,
        "rounds": rounds,
        "steps_per_round": steps,
        "median_seconds_per_step": {
            name: round(float(np.median(np.array(values)[:, 0])), 5) for name, values in seconds.items()
        },
        "speedup_over_encoders_in_the_loop": summary(ratios["in loop"]),
        "speedup_over_cached": summary(ratios["cached"]),
    }


def summary(ratios_R2: np.ndarray) -> dict[str, dict[str, float]]:
    """Median and range over the rounds, by wall clock and by processor time."""
    picks = (("median", np.median), ("low", np.min), ("high", np.max))
    return {
        clock: {name: round(float(pick(ratios_R2[:, column])), 3) for name, pick in picks}
        for column, clock in enumerate(("wall", "processor"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=[*NETWORKS, "both"], default="both")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=16, help="steps per round and contender")
    options = parser.parse_args()
    networks = list(NETWORKS) if options.network == "both" else [options.network]
    results = [measure(name, options.batch_size, options.rounds, options.steps) for name in networks]
    content = {
        "benchmark": "train_throughput",
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/train_throughput.py --network {options.network} "
        f"--batch-size {options.batch_size} --rounds {options.rounds} --steps {options.steps}",
        "environment": runs.environment(),
        "threads": torch.get_num_threads(),
        "results": results,
    }
    path = RESULTS / f"train_throughput-{content['date']}.json"
    runs.write_json(path, content)
    print(json.dumps(results, indent=2))
    print(f"written to benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
