"""starter-image: a small latent diffusion model of open-licence medical images, made from nothing in five stages.

1. autoencoder  encoder and decoder on reconstruction alone, on crops;
2. whole        the same on whole images: group norms see other statistics than on crops;
3. denoiser     U-Net and text encoder together on the frozen encoder's latents, cached as moments of four variants;
4. decoder      the decoder again, against a patch discriminator; the latents stay what they are;
5. model        an ordinary Stable Diffusion folder in float16.
Each stage is a run of its own under the output folder, resumed by the same command.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn import runs
from medisyn.errors import ConfigError
from medisyn.families.stable_diffusion.config import GenerationDefaults, NetworkConfig, StableDiffusionConfig
from medisyn.recipes.finetune import SplitReader, encoder_digest, open_corpus
from medisyn.training.settings import TrainSettings

if TYPE_CHECKING:
    from medisyn.families.autoencoder import Autoencoder
    from medisyn.families.stable_diffusion.model import StableDiffusion
    from medisyn.families.stable_diffusion.networks import Networks
    from medisyn.training.loop import TrainReport
    from medisyn.training.precompute import EncodedStore

Announce = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class AutoencoderStage:
    """Stage 1, 2 or 4: see `families.autoencoder.AutoencoderConfig`; the size is that of the run's `network`."""

    train: TrainSettings
    crop: int = 64
    gradient_weight: float = 0.5
    chroma_weight: float = 1.0  # X-rays and CT came out tinted without it
    kl_weight: float = 1e-4
    latent_noise: float = 0.0
    adversarial_weight: float = 0.0
    feature_weight: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StarterImageRun:
    """Everything that decides the starter model. `num_variants` augmented copies of each image are encoded.

    start_from: a model (as `--model` names one) of the same `network` whose weights and vocabulary the run begins
    with; "" begins with random weights.
    """

    summary: str
    network: NetworkConfig
    autoencoder: AutoencoderStage
    whole: AutoencoderStage
    denoiser: TrainSettings
    decoder: AutoencoderStage
    model: StableDiffusionConfig
    defaults: GenerationDefaults
    num_variants: int = 4
    type_rarity: float = 0.75  # an image type is drawn with count ** (1 - rarity): 0 as often as it occurs, 1 all alike
    class_rarity: float = 0.5  # the same for the classes of one image type
    vocabulary: int = 1000
    start_from: str = ""
    preview_prompts: tuple[str, ...] = field(default_factory=tuple)

    def plan(self, corpus: Path, out: Path, announce: Announce) -> None:
        opened = open_corpus(corpus, "train")
        count = len(opened.rows("train"))
        announce(f"{count} training images, corpus {opened.fingerprint}")
        for name, settings in self._stages().items():
            full = settings.settled(count)
            announce(f"{name}: {full.num_steps} steps of {full.batch_size}, learning rate {full.learning_rate:g}")

    def prepare(self, corpus: Path, out: Path, announce: Announce, *, processes: int) -> None:
        if processes != 1:
            raise ConfigError("starter-image trains on one process; use --processes 1")
        open_corpus(corpus, "train")
        self._start()

    def run(self, corpus: Path, out: Path, announce: Announce) -> TrainReport:
        """All stages, each resumed or skipped when it is done. Returns the denoiser's report."""
        opened = open_corpus(corpus, "train")
        pixels = self._pixels(corpus, out, opened)
        announce("stage 1 of 5: autoencoder on crops")
        report = self._train_autoencoder("autoencoder", None, pixels, opened, out, announce)
        if report.interrupted:
            return report
        announce("stage 2 of 5: autoencoder on whole images")
        report = self._train_autoencoder("whole", "autoencoder", pixels, opened, out, announce)
        if report.interrupted:
            return report
        scale = self._latent_scale(pixels, out)
        announce("stage 3 of 5: denoiser and text encoder")
        denoised = self._train_denoiser(corpus, opened, out, scale, announce)
        if denoised.interrupted:
            return denoised
        announce("stage 4 of 5: decoder")
        report = self._train_autoencoder("decoder", "whole", pixels, opened, out, announce)
        if report.interrupted:
            return report
        announce("stage 5 of 5: model folder")
        self._export(out, scale)
        return dataclasses.replace(denoised, model=out / "model")

    # Parts of the above

    def _stages(self) -> dict[str, TrainSettings]:
        return {
            "autoencoder": self.autoencoder.train,
            "whole": self.whole.train,
            "denoiser": self.denoiser,
            "decoder": self.decoder.train,
        }

    def _record(self, stage: str) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        shared = {
            name: values[name]
            for name in ("network", "num_variants", "type_rarity", "class_rarity", "vocabulary", "start_from")
        }
        own = {"denoiser": {"model": values["model"]}}.get(stage) or {
            stage: {name: value for name, value in values[stage].items() if name != "train"}
        }
        return {**shared, **own}

    def _pixels(self, corpus: Path, out: Path, opened: Any) -> EncodedStore:
        """The training pictures as rows of pixels."""
        from medisyn.training.precompute import precompute

        family = self._autoencoder(self.autoencoder, None)
        keys = [row.key for row in opened.rows("train")]
        return precompute(
            out / "pixels",
            keys,
            SplitReader(corpus, "train"),
            lambda: family.encode,
            encoder="pixels",
            corpus=opened.fingerprint,
        )

    def _start(self) -> Networks | None:
        """The networks of `start_from` in float32; raises ConfigError when they are not of this run's shape."""
        from medisyn.families.stable_diffusion.load import open_networks
        from medisyn.recipes.models import find_model

        if not self.start_from:
            return None
        networks = open_networks(find_model(self.start_from).folder, "float32")
        have = (networks.unet.config.block_out_channels, networks.vae.config.block_out_channels)
        want = (self.network.unet_widths, self.network.vae_widths)
        if [tuple(widths) for widths in have] != list(want):
            raise ConfigError(
                f"start_from={self.start_from}: its U-Net and autoencoder have widths {have}, this run's {want}. "
                "Start from a model of the same network, or from random weights with start_from=."
            )
        return networks

    def _autoencoder(self, stage: AutoencoderStage, folder: Path | None) -> Autoencoder:
        from diffusers import AutoencoderKL

        from medisyn.families.autoencoder import Autoencoder, AutoencoderConfig

        options = {name: value for name, value in vars(stage).items() if name != "train"}
        config = AutoencoderConfig(
            latent_channels=self.network.latent_channels, widths=self.network.vae_widths, **options
        )
        if folder is not None:
            return Autoencoder(config, AutoencoderKL.from_pretrained(folder, local_files_only=True))
        start = self._start()
        if start is not None:
            return Autoencoder(config, start.vae)
        import torch

        torch.manual_seed(stage.train.seed)
        return Autoencoder(config)

    def _train_autoencoder(
        self, name: str, start: str | None, pixels: EncodedStore, opened: Any, out: Path, announce: Announce
    ) -> TrainReport:
        """The stage `name` into a folder of that name, from the model of the stage `start`."""
        from medisyn.training.launch import local_device
        from medisyn.training.loop import train

        stage: AutoencoderStage = getattr(self, name)
        family = self._autoencoder(stage, out / start / "model" if start else None).to(local_device())
        return train(
            family,
            pixels,
            stage.train,
            out / name,
            save_model=family.save,
            preview=_RebuiltPreview(family, opened),
            weights=self._weights(opened),
            config=self._record(name),
            corpus=opened.fingerprint,
            announce=announce,
        )

    def _latent_scale(self, pixels: EncodedStore, out: Path) -> float:
        """1 / standard deviation of the trained encoder's latents, measured once and kept beside the stages."""
        import torch

        path = out / "latent_scale.json"
        if not path.exists():
            family = self._autoencoder(self.autoencoder, out / "whole" / "model")
            rows = [pixels[row]["pixels"] for row in range(0, len(pixels), max(1, len(pixels) // 256))]
            runs.write_json(path, {"images": len(rows), "scaling_factor": family.latent_scale(torch.stack(rows))})
        return float(json.loads(path.read_text())["scaling_factor"])

    def _train_denoiser(self, corpus: Path, opened: Any, out: Path, scale: float, announce: Announce) -> TrainReport:
        from medisyn.training.launch import local_device
        from medisyn.training.loop import train
        from medisyn.training.preview import Preview

        family = self._denoiser(opened, out, scale)
        store = self._latents(family, corpus, opened, out)
        family.to(local_device())
        return train(
            family,
            store,
            self.denoiser,
            out / "denoiser",
            save_model=family.save,
            preview=Preview(family, self._preview_requests(opened)),
            weights=self._weights(opened),
            config=self._record("denoiser"),
            corpus=opened.fingerprint,
            announce=announce,
        )

    def _denoiser(self, opened: Any, out: Path, scale: float) -> StableDiffusion:
        from diffusers import AutoencoderKL

        from medisyn.families.stable_diffusion.model import StableDiffusion
        from medisyn.families.stable_diffusion.networks import build_networks
        from medisyn.families.stable_diffusion.text import train_tokenizer

        networks = self._start()
        if networks is None:
            captions = [row.caption for row in opened.rows("train")]
            tokenizer = train_tokenizer(captions, vocab_size=self.vocabulary, window=self.network.text_window)
            networks = build_networks(self.network, tokenizer, seed=self.denoiser.seed)
        vae = AutoencoderKL.from_pretrained(out / "whole" / "model", local_files_only=True)
        vae.register_to_config(scaling_factor=scale)
        return StableDiffusion(dataclasses.replace(networks, vae=vae), self.model, defaults=self.defaults)

    def _latents(self, family: StableDiffusion, corpus: Path, opened: Any, out: Path) -> EncodedStore:
        from medisyn.recipes.augment import vary
        from medisyn.recipes.reword import WORDINGS
        from medisyn.training.precompute import precompute

        return precompute(
            out / "latents",
            [row.key for row in opened.rows("train")],
            SplitReader(corpus, "train"),
            lambda: family.encode,
            encoder=runs.digest([encoder_digest(family), WORDINGS]),
            corpus=opened.fingerprint,
            variants=self.num_variants,
            vary=vary,
        )

    def _weights(self, opened: Any) -> list[float]:
        """One sampling weight per training row: by image type first, since red cells are most of the corpus."""
        rows = opened.rows("train")
        classes = Counter((row.image_type, row.labels) for row in rows)
        types = Counter(row.image_type for row in rows)
        inside: Counter[str] = Counter()  # what the class weights of a type sum to
        for (image_type, _), count in classes.items():
            inside[image_type] += count ** (1 - self.class_rarity)
        return [
            types[row.image_type] ** (1 - self.type_rarity)
            * classes[row.image_type, row.labels] ** -self.class_rarity
            / inside[row.image_type]
            for row in rows
        ]

    def _preview_requests(self, opened: Any) -> list[Any]:
        from medisyn.types import Request

        prompts = self.preview_prompts or tuple(dict.fromkeys(row.caption for row in opened.rows("train")))[:16]
        return [Request(key=f"preview-{n}", prompt=prompt, seed=n) for n, prompt in enumerate(prompts)]

    def _export(self, out: Path, scale: float) -> None:
        """The denoiser with the sharpened decoder, in float16."""
        from diffusers import AutoencoderKL

        from medisyn.families.stable_diffusion.load import open_networks
        from medisyn.families.stable_diffusion.model import StableDiffusion

        networks = open_networks(out / "denoiser" / "model", "float32")
        vae = AutoencoderKL.from_pretrained(out / "decoder" / "model", local_files_only=True)
        vae.register_to_config(scaling_factor=scale)
        family = StableDiffusion(dataclasses.replace(networks, vae=vae), self.model, defaults=self.defaults)
        family.save(out / "model", dtype="float16")


@dataclass(frozen=True)
class _RebuiltPreview:
    """The first validation picture of each image type, above its reconstruction."""

    family: Autoencoder
    opened: Any

    def __call__(self, path: Path) -> None:
        import io

        import numpy as np
        from PIL import Image

        from medisyn.recipes.corpus_images import rgb

        rows = {(row.image_type, row.source): row for row in self.opened.rows("validation")}.values()
        pictures = [self.opened.read(row).item for row in rows]
        columns = [
            np.concatenate([rgb(picture), rgb(rebuilt)])
            for picture, rebuilt in zip(pictures, self.family.rebuild(pictures), strict=True)
        ]
        stream = io.BytesIO()
        Image.fromarray(np.concatenate(columns, axis=1)).save(stream, "PNG")
        runs.write_bytes(path, stream.getvalue())


_AUTOENCODER_TRAIN = TrainSettings(
    num_steps=14500,  # of eight 64² crops: 70 minutes on one core
    batch_size=8,
    micro_batch_size=8,
    learning_rate=1e-3,  # stable with warm-up, gradient clipping and the cosine
    schedule="cosine",
    warmup_steps=100,
    beta2=0.99,  # short run: the second moment must follow
    weight_decay=1e-3,
    ema_decay=0.998,
    ema_start=1000,
    checkpoint_every=500,
    preview_every=1000,
    log_every=20,
)

STARTER_IMAGE = StarterImageRun(
    summary="the model that ships with MediSyn: 128 x 128 medical images from text, trained from nothing on two cores",
    network=NetworkConfig(
        image_size=128,
        latent_channels=8,  # 4 blurred nuclei and lung markings; 16 were behind after one short trial
        vae_widths=(24, 32, 96, 128),  # the wide layers sit where there are few pixels
        unet_widths=(96, 160),
        unet_layers=2,
        unet_attention=(False, True),  # text is read at 8 x 8 latents: half the time of reading it at 16 x 16 too
        unet_heads=4,
        text_width=192,
        text_layers=2,
        text_heads=4,
        norm_groups=8,
        prediction_type="v_prediction",
        zero_terminal_snr=True,  # X-rays and smears differ in mean brightness; see Lin et al. 2023
    ),
    autoencoder=AutoencoderStage(train=_AUTOENCODER_TRAIN),
    whole=AutoencoderStage(
        train=dataclasses.replace(
            _AUTOENCODER_TRAIN,
            num_steps=1300,
            batch_size=4,
            micro_batch_size=4,
            learning_rate=3e-4,
            ema_decay=0.995,
            ema_start=200,
            preview_every=500,
        ),
        crop=128,
    ),
    denoiser=TrainSettings(
        num_steps=13450,
        batch_size=32,
        micro_batch_size=32,
        learning_rate=5e-4,
        schedule="cosine",
        warmup_steps=200,
        final_lr_share=0.05,
        beta2=0.99,
        weight_decay=1e-2,
        ema_decay=0.998,
        ema_start=500,
        checkpoint_every=250,
        preview_every=500,
        log_every=20,
    ),
    decoder=AutoencoderStage(
        train=dataclasses.replace(
            _AUTOENCODER_TRAIN,
            num_steps=950,
            batch_size=4,
            micro_batch_size=4,
            learning_rate=2e-4,
            ema_decay=0.99,
            ema_start=200,
            preview_every=150,
            checkpoint_every=150,
        ),
        crop=128,
        latent_noise=0.2,
        adversarial_weight=0.05,
        feature_weight=0.5,
    ),
    model=StableDiffusionConfig(caption_dropout=0.1, train_text_encoder=True, text_encoder_lr_scale=0.5),
    defaults=GenerationDefaults(solver="dpmpp-2m", steps=30, guidance=6.0),
    type_rarity=0.4,  # at 0.75 most shapes of red cells were seen 13 to 40 times, rare scans hundreds of times
    class_rarity=0.7,
    preview_prompts=(
        "Frontal (PA) chest X-ray image",
        "Frontal (AP) chest X-ray image showing COVID-19",
        "Axial chest CT image, lung window",
        "Axial chest CT image, mediastinal window",
        "Axial chest CT angiography image, mediastinal window",
        "Axial abdominal CT image, soft tissue window",
        "Axial brain MRI image",
        "Nerve ultrasound image showing nerve and blood vessel",
        "Blood smear microscopy image of a white blood cell",
        "Blood smear microscopy image of a platelet",
        "Blood smear microscopy image of a red blood cell",
        "Blood smear microscopy image showing target red blood cell",
        "Blood smear microscopy image showing teardrop red blood cell",
        "Blood smear microscopy image, whole field, showing red blood cells and white blood cells",
        "Histopathology image, H&E stain, at 40x magnification",
        "Histopathology image, Ki67 immunohistochemistry stain, at 40x magnification",
    ),
)
