"""Würstchen at tiny size on real images: does fine-tuning Stage C bring generated images nearer to held-out real ones?

    python benchmarks/wuerstchen_tiny.py --corpus corpus/open --out runs/wuerstchen-tiny

Everything at 64 x 64 pixels, on one core in about 35 minutes:

1. Stage A and Stage B are trained on the training images of all kinds. The image encoder stays random; only its
   normalisation is set to the images, so Stage C's latent is one of random features. The text encoders stay random too.
2. Stage C learns all kinds but the `--target` specialties: the start, as the published model is one of other pictures.
3. It is fine-tuned on the target specialties with the preset's objective, by the package's own training loop.
4. For random, start and fine-tuned weights: the Fréchet distance of images made from the captions of held-out target
   images to those images, by the shipped medical encoder, at one n, with bootstrap intervals. Beside them: training
   images (the floor), and the held-out images through Stages B and A (what decoding alone costs). The same distance
   between Stage C's latents, undecoded, says what Stage C learnt whatever Stages B and A can show of it. The
   fine-tune's three checkpoints are measured with and without the moving average: Table 2 of MediSyn v1 at this size.
5. Seconds per training step on precomputed latents against the same step with the encoders in it, taking turns.

Captions of held-out images stand for prompts; many training captions are equal to them. Small models, few steps: the
figures say whether the training works, nothing about the quality that the published model reaches.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from medisyn import runs
from medisyn.corpus.loader import Corpus
from medisyn.evaluation.evaluate import FeatureSet, Settings, evaluate
from medisyn.evaluation.features import load_extractor
from medisyn.evaluation.frechet import frechet_distance
from medisyn.evaluation.ranking import MEASURES, rank_sets
from medisyn.families.stable_diffusion.text import train_tokenizer
from medisyn.families.wuerstchen.config import DecoderConfig, ImageEncoderConfig, PriorConfig, VQGANConfig
from medisyn.families.wuerstchen.latents import encoder_view, pixels_from_samples
from medisyn.families.wuerstchen.model import Wuerstchen
from medisyn.families.wuerstchen.networks import settle
from medisyn.families.wuerstchen.objective import add_noise, draw, loss_per_sample
from medisyn.families.wuerstchen.settings import GenerationDefaults, Sizes, WuerstchenConfig
from medisyn.families.wuerstchen.vqgan import build_vqgan
from medisyn.recipes.corpus_images import rgb
from medisyn.recipes.wuerstchen import MEDISYN_V1_IMAGE
from medisyn.seeding import generator_for, seed_for
from medisyn.training.checkpoint import Checkpoints
from medisyn.training.loop import train
from medisyn.training.order import balanced_weights
from medisyn.types import Picture, Request, Sample

RESULTS = Path(__file__).parent / "results"
SIDE, BATCH, CHECKPOINTS = 64, 32, 3
SIZES = Sizes(
    prior=PriorConfig(c_in=16, c=128, c_cond=64, c_r=32, depth=6, nhead=4, dropout=0.1),
    decoder=DecoderConfig(
        c_r=32,
        c_cond=64,
        c_hidden=(64, 128),
        nhead=(-1, 4),
        blocks=(2, 4),
        level_config=("CT", "CTA"),
        inject_effnet=(True, True),
        clip_embd=64,
        dropout=0.0,
    ),
    vqgan=VQGANConfig(bottleneck_blocks=3, embed_dim=64, num_vq_embeddings=8),
    image_encoder=ImageEncoderConfig(
        c_cond=256,
        stages=(
            ("fused", 1, 1, 16, 16, 1),
            ("fused", 2, 2, 16, 32, 1),
            ("fused", 2, 2, 32, 64, 1),
            ("mb", 2, 2, 64, 96, 1),
            ("mb", 2, 2, 96, 128, 1),
        ),
    ),
    text_window=32,
    cell_pixels=16.0,  # 4 x 4 cells
)
DEFAULTS = GenerationDefaults(steps=20, guidance=2.0, decoder_steps=12, height=SIDE, width=SIDE)


class Rows:
    """Encoded samples in memory, as the training loop takes them."""

    def __init__(self, keys: Sequence[str], encoded: dict[str, torch.Tensor]) -> None:
        self.keys, self.encoded = list(keys), encoded

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {name: tensor[row] for name, tensor in self.encoded.items()}

    def batch(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        return {name: tensor[list(numbers)] for name, tensor in self.encoded.items()}


def read_samples(corpus: Corpus, splits: Sequence[str], limit: int) -> list[Sample]:
    """Samples of the splits at 64 pixels, of each image type at most `limit`, drawn with a seed."""
    rows = [row for split in splits for row in corpus.rows(split)]
    order, taken, chosen = np.random.default_rng(0).permutation(len(rows)), Counter[str](), []
    for number in order.tolist():
        taken[rows[number].image_type] += 1
        if taken[rows[number].image_type] <= limit:
            chosen.append(number)
    samples = []
    for number in sorted(chosen):
        sample = corpus.read(rows[number])
        image = Image.fromarray(rgb(sample.item)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        samples.append(dataclasses.replace(sample, item=Picture(np.asarray(image).transpose(2, 0, 1))))
    return samples


def encode_all(encode: Callable[[Sequence[Sample]], Any], samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    parts = [encode(samples[start : start + BATCH]) for start in range(0, len(samples), BATCH)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def fit(network: torch.nn.Module, loss: Callable[[np.ndarray], torch.Tensor], weights: np.ndarray, steps: int) -> None:
    """AdamW with a linear end on batches drawn by weight; says the loss ten times."""
    network.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 3 * (steps - step) / steps))
    rng = np.random.default_rng(1)
    for step in range(steps):
        value = loss(rng.choice(len(weights), BATCH, p=weights))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if step % max(1, steps // 10) == 0:
            print(f"  step {step}: {float(value.detach()):.4f}", flush=True)
    network.requires_grad_(False).eval()


def train_stage_a(family: Wuerstchen, pixels_N: torch.Tensor, weights: np.ndarray, steps: int) -> Wuerstchen:
    """Stage A by absolute error, without the quantiser; then the scale that gives its latents variance 1."""
    vqgan = family.networks.vqgan

    def loss(numbers: np.ndarray) -> torch.Tensor:
        pixels = pixels_N[numbers]
        return (vqgan(pixels) - pixels).abs().mean()

    fit(vqgan, loss, weights, steps)
    with torch.no_grad():
        spread = float(vqgan.encode(pixels_N[:256]).std())
    scaled = build_vqgan(dataclasses.replace(SIZES.vqgan, scale_factor=spread))
    scaled.load_state_dict(vqgan.state_dict())
    networks = dataclasses.replace(family.networks, vqgan=scaled)
    return Wuerstchen(networks, family.config, grid=family.grid, defaults=family.defaults)


def train_stage_b(
    family: Wuerstchen, pixels_N: torch.Tensor, rows: Rows, captions: Sequence[str], weights: np.ndarray, steps: int
) -> None:
    """Stage B by the objective of Stage C, unweighted, told the image's features and caption."""
    from medisyn.families.wuerstchen.effnet import features_from_prior

    decoder, vqgan = family.networks.decoder, family.networks.vqgan
    config = WuerstchenConfig(loss_weight="none", time_sampling="uniform")
    kinds = sorted(set(captions))
    with torch.no_grad():
        read = torch.cat([family._decoder_text.embed_alike(kinds[i : i + 64]) for i in range(0, len(kinds), 64)])
        latents_N = torch.cat([vqgan.encode(part) for part in pixels_N.split(64)]) / vqgan.config.scale_factor
    text = {caption: number for number, caption in enumerate(kinds)}
    drawn = 0

    def loss(numbers: np.ndarray) -> torch.Tensor:
        nonlocal drawn
        drawn += 1
        one = draw([generator_for(drawn, str(slot)) for slot in range(len(numbers))], latents_N.shape[1:], config)
        features = features_from_prior(rows.encoded["latents"][numbers])
        told = read[[text[captions[number]] for number in numbers]]
        noisy = add_noise(latents_N[numbers], one.noise_BChw, one.times_B)
        predicted = decoder(noisy, one.times_B, effnet_BCHW=features, text_BNE=told)
        return loss_per_sample(predicted, one.noise_BChw, one.times_B, "none").mean()

    fit(decoder, loss, weights, steps)


def train_stage_c(family: Wuerstchen, rows: Rows, weights: np.ndarray, steps: int, out: Path) -> None:
    """The package's own loop with the preset's settings, but batch, steps and what goes with them."""
    settings = dataclasses.replace(
        MEDISYN_V1_IMAGE.train,
        epochs=0,
        num_steps=steps,
        batch_size=BATCH,
        micro_batch_size=BATCH,
        learning_rate=1e-3,  # the preset's 1e-4 belongs to a billion weights
        schedule="cosine",
        warmup_steps=min(50, steps // 4),
        precision="fp32",
        ema_start=steps // 4,
        ema_interval=10,
        checkpoint_every=-(-steps // CHECKPOINTS),
        keep_last=CHECKPOINTS,
        preview_every=0,
        log_every=max(1, steps // 10),
    )
    train(family, rows, settings, out, save_model=family.save, weights=weights, announce=print)


def checkpoints_of(run: Path, distances: Distances, held: Sequence[Sample]) -> list[dict[str, Any]]:
    """The distance of each checkpoint's images, with the moving average and without: Table 2 of MediSyn v1."""
    found = []
    for checkpoint in Checkpoints(run, CHECKPOINTS).complete():
        family = Wuerstchen.from_folder(checkpoint.folder / "model", MEDISYN_V1_IMAGE.model)
        averaged = distances.of(images_of(family, held))
        state = load_file(checkpoint.folder / "state.safetensors")
        for group in family.trainable():
            for number, parameter in enumerate(group.parameters):
                parameter.data.copy_(state[f"weight/{group.name}/{number}"])
        family.networks.prior.eval()
        found.append({"step": checkpoint.step, "ema": averaged, "without": distances.of(images_of(family, held))})
    return found


def images_of(family: Wuerstchen, samples: Sequence[Sample]) -> list[np.ndarray]:
    """One image for each caption, seeded by its key."""
    made: list[np.ndarray] = []
    for start in range(0, len(samples), BATCH):
        requests = [Request(s.key, s.caption, seed_for(0, s.key)) for s in samples[start : start + BATCH]]
        made += [rgb(picture) for picture in family.decode(family.sample(requests))]
    return made


def latents_of(family: Wuerstchen, samples: Sequence[Sample]) -> np.ndarray:
    """Stage C's latents for each caption, (N, channels * cells), with the seeds of `images_of`."""
    requests = [Request(s.key, s.caption, seed_for(0, s.key)) for s in samples]
    parts = [family.sample_latents(requests[start : start + BATCH]) for start in range(0, len(requests), BATCH)]
    return torch.cat(parts).flatten(1).numpy()


def rebuilt(family: Wuerstchen, samples: Sequence[Sample]) -> list[np.ndarray]:
    """The samples through image encoder, Stage B and Stage A."""
    made: list[np.ndarray] = []
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        made += [rgb(item) for item in family.rebuild_from_features(part, [seed_for(0, s.key) for s in part])]
    return made


class Distances:
    """Fréchet and kernel distances of sets of images to the held-out ones, all at the number of the held-out."""

    def __init__(self, real: Sequence[Sample], floor: Sequence[Sample], resamples: int) -> None:
        self.extractor, self.settings = load_extractor("medical-encoder"), Settings(resamples=resamples)
        self.real = self.features([rgb(s.item) for s in real], [str(s.metadata["patient"]) for s in real])
        self.floor = self.features([rgb(s.item) for s in floor], [str(s.metadata["patient"]) for s in floor])

    def features(self, images: list[np.ndarray], patients: Sequence[str] | None = None) -> FeatureSet:
        parts = [self.extractor(images[start : start + 64]) for start in range(0, len(images), 64)]
        told = None if patients is None else tuple(patients)
        return FeatureSet(np.concatenate(parts), self.extractor.id, self.extractor.preprocessing, told)

    def of(self, images: list[np.ndarray]) -> dict[str, Any]:
        return self.of_features(self.features(images))

    def of_features(self, made: FeatureSet) -> dict[str, Any]:
        result = evaluate(made, self.real, self.floor, self.settings)
        return {**self._told(result.measures), "floor": self._told(result.baseline)}

    def ranked(self, sets: Mapping[str, FeatureSet]) -> dict[str, dict[str, Any]]:
        """Every set's rank by either distance, and its difference from the best; differences inside the noise tie."""
        return {
            measure: {
                name: dataclasses.asdict(one)
                for name, one in zip(
                    sets,
                    rank_sets(list(sets.values()), self.real, measure, resamples=self.settings.resamples),
                    strict=True,
                )
            }
            for measure in MEASURES
        }

    @staticmethod
    def _told(measures: Sequence[Any]) -> dict[str, Any]:
        told = {m.name: m for m in measures}
        frechet = told["frechet"]
        return {
            "frechet": frechet.value,
            "low": frechet.interval.low,
            "high": frechet.interval.high,
            "n": frechet.n_first,
            "precision": told["precision"].value,
            "recall": told["recall"].value,
        }


def throughput(family: Wuerstchen, samples: Sequence[Sample], rows: Rows, rounds: int, steps: int) -> dict[str, Any]:
    """Processor seconds per step, forward and backward, on stored rows and with the encoders in the step."""
    family.trainable()
    parameters = list(family.networks.prior.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.0)
    rng, seconds = np.random.default_rng(0), {name: list[float]() for name in ("precomputed", "in loop")}

    def step(encoded: Any) -> None:
        family.loss(encoded, [generator_for(0, str(slot)) for slot in range(BATCH)]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(rounds + 1):
        for name, spent in seconds.items():
            start = time.process_time()
            for _ in range(steps):
                chosen = rng.choice(len(rows), BATCH).tolist()
                step(rows.batch(chosen) if name == "precomputed" else family.encode([samples[n] for n in chosen]))
            spent.append((time.process_time() - start) / steps)
    ratios = [b / a for a, b in zip(*(spent[1:] for spent in seconds.values()), strict=True)]  # the first warms up
    medians = {name: float(np.median(spent[1:])) for name, spent in seconds.items()}
    return {"seconds_per_step": medians, "ratio": float(np.median(ratios)), "ratios": ratios, "batch": BATCH}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and sheets; must be new")
    parser.add_argument("--target", default="hematology,pathology", help="specialties to fine-tune on")
    parser.add_argument("--limit", type=int, default=200, help="images of each type, in training and held out")
    parser.add_argument("--steps", type=int, nargs=4, default=(1500, 3000, 700, 700), help="A, B, start, fine-tune")
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    began, corpus, targets = time.perf_counter(), Corpus(options.corpus), set(options.target.split(","))

    # Images and networks
    samples = read_samples(corpus, ["train"], options.limit)
    held = [
        s for s in read_samples(corpus, ["validation", "test"], options.limit) if s.metadata["specialty"] in targets
    ]
    captions = [s.caption for s in samples]
    kinds = [str(s.metadata["image_type"]) for s in samples]
    tokenizer = train_tokenizer(captions, window=SIZES.text_window)
    family = Wuerstchen.from_sizes(SIZES, tokenizer, MEDISYN_V1_IMAGE.model, defaults=DEFAULTS)
    pixels_N = pixels_from_samples(samples)
    settle(family.networks.encoder(), encoder_view(pixels_N[:: -(-len(samples) // 256)], family.grid))

    # Stages A and B, on all kinds equally often
    weights = balanced_weights(kinds)
    print(f"Stage A on {len(samples)} images", flush=True)
    family = train_stage_a(family, pixels_N, weights, options.steps[0])
    rows = Rows([s.key for s in samples], encode_all(family.encode, samples))
    print("Stage B", flush=True)
    train_stage_b(family, pixels_N, rows, captions, weights, options.steps[1])

    # Stage C: random, the start on other kinds, and the fine-tune
    other = [n for n, s in enumerate(samples) if s.metadata["specialty"] not in targets]
    own = [n for n, s in enumerate(samples) if s.metadata["specialty"] in targets]
    distances = Distances(held, [samples[n] for n in own], options.resamples)
    found = {"held-out images through Stages B and A": distances.of(rebuilt(family, held))}
    sets = {"Stage C, random": distances.features(images_of(family, held))}
    real_latents = encode_all(family.encode_pictures, held)["latents"].flatten(1).numpy()
    in_latents = {
        "training images": frechet_distance(rows.batch(own)["latents"].flatten(1).numpy(), real_latents),
        "Stage C, random": frechet_distance(latents_of(family, held), real_latents),
    }
    for name, part, steps in (("start", other, options.steps[2]), ("fine-tuned", own, options.steps[3])):
        chosen = Rows([rows.keys[n] for n in part], rows.batch(part))
        train_stage_c(family, chosen, balanced_weights([kinds[n] for n in part]), steps, options.out / name)
        family = Wuerstchen.from_folder(options.out / name / "model", MEDISYN_V1_IMAGE.model)
        images = images_of(family, held)
        sets[f"Stage C, {name}"] = distances.features(images)
        in_latents[f"Stage C, {name}"] = frechet_distance(latents_of(family, held), real_latents)
        sheet = [
            np.concatenate(images[start : start + 8], axis=1) for start in range(0, min(64, len(images) // 8 * 8), 8)
        ]
        Image.fromarray(np.concatenate(sheet)).save(options.out / f"{name}.png")

    # What was found
    found |= {name: distances.of_features(made) for name, made in sets.items()}
    ranked = distances.ranked(sets)
    for name, row in found.items():
        print(f"{name}: Fréchet distance {row['frechet']:.3f} ({row['low']:.3f} to {row['high']:.3f}), n = {row['n']}")
    for measure, rows_of in ranked.items():
        for name, one in rows_of.items():
            print(f"{measure}, {name}: {one['value']:.4f}, rank {one['rank']}, p against the best {one['p']}")
    per_checkpoint = checkpoints_of(options.out / "fine-tuned", distances, held)
    for row in per_checkpoint:
        print(
            f"step {row['step']}: {row['without']['frechet']:.3f} without, {row['ema']['frechet']:.3f} with the average"
        )
    floor = next(iter(found.values()))["floor"]
    print(f"training images: {floor['frechet']:.3f} ({floor['low']:.3f} to {floor['high']:.3f})")
    print("Fréchet distance of Stage C's latents, without decoding:", in_latents)
    speed = throughput(family, samples, rows, rounds=5, steps=5)
    print(f"a step with the encoders in it takes {speed['ratio']:.2f} times the processor time of one on stored rows")
    told = {
        "command": f"wuerstchen_tiny.py --target {options.target} --limit {options.limit} --steps "
        f"{' '.join(map(str, options.steps))}",
        "corpus": corpus.fingerprint,
        "extractor": distances.extractor.id,
        "images": {"train": len(samples), "target": len(own), "held out": len(held)},
        "distances": found,
        "ranked": ranked,
        "distances_of_latents": in_latents,
        "checkpoints": per_checkpoint,
        "throughput": speed,
        "minutes": (time.perf_counter() - began) / 60,
        "environment": runs.environment(),
    }
    if options.write:
        runs.write_json(RESULTS / f"wuerstchen_tiny-{datetime.date.today().isoformat()}.json", told)


if __name__ == "__main__":
    main()
