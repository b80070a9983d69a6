"""starter-video: a small HiGen of 16 frames of 64 x 112 pixels, trained on heart phantoms in five stages.

0. corpus       heart phantoms, made where the corpus is a new folder
1. autoencoder  encoder and decoder on crops of single frames
2. text         a text encoder that learns to tell view, function, fluid and rate from captions
3. diffusion    U-Net and text encoder together, on clips and their key frames
4. decoder      the decoder again, against a patch discriminator; the latents stay what they are
5. model        an ordinary HiGen folder in float16
Each stage is a run of its own under the output folder, resumed by the same command.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn import runs
from medisyn.errors import ConfigError, ModelError
from medisyn.families.higen.config import ClipGrid, UNetConfig
from medisyn.families.higen.settings import HiGenDefaults, HiGenSettings
from medisyn.families.stable_diffusion.config import NetworkConfig
from medisyn.recipes.higen_corpus import ClipData, ClipPlace, ClipReader, fingerprint
from medisyn.recipes.higen_train import HiGenRun, JointFrames
from medisyn.recipes.labels import read_labels
from medisyn.recipes.starter_image import AutoencoderStage
from medisyn.training.settings import TrainSettings

if TYPE_CHECKING:
    from medisyn.families.autoencoder import Autoencoder
    from medisyn.training.loop import TrainReport
    from medisyn.training.precompute import EncodedStore
    from medisyn.types import Sample

Announce = Callable[[str], object]
AUTOENCODER, TEXT, DIFFUSION, DECODER = "autoencoder", "text", "diffusion", "decoder"
MODEL, START = "model", "start"


@dataclass(frozen=True, kw_only=True)
class HeartSet:
    """The heart phantoms that are made where the corpus is a new folder; frames and size are the grid's."""

    count: int
    vigorous: float = 0.0  # see phantoms.heart.draw_case
    seed: int = 0
    processes: int = 1


@dataclass(frozen=True)
class FrameReader:
    """Single frames of clips as pictures, for the autoencoder; `per_clip` of each, evenly spaced."""

    clips: ClipReader
    per_clip: int

    def frame(self, place: ClipPlace, number: int) -> Sample:
        from medisyn.types import Clip, Picture

        sample = self.clips.window(place, 0)
        assert isinstance(sample.item, Clip)
        array_CTHW = sample.item.array_CTHW
        chosen = number * array_CTHW.shape[1] // self.per_clip
        return dataclasses.replace(sample, item=Picture(array_CTHW[:, chosen]), masks={})


@dataclass(frozen=True, kw_only=True)
class StarterVideoRun:
    """Everything that decides the starter model. `image` is its autoencoder and text encoder."""

    summary: str
    phantoms: HeartSet
    network: UNetConfig
    image: NetworkConfig
    grid: ClipGrid
    model: HiGenSettings
    defaults: HiGenDefaults
    data: ClipData
    frame_encoder: str
    frames: JointFrames
    frames_per_clip: int  # that the autoencoder sees
    vocabulary: int
    labels: tuple[str, ...]  # columns of the phantoms' table.csv
    autoencoder: AutoencoderStage
    text: TrainSettings
    diffusion: TrainSettings
    decoder: AutoencoderStage
    max_megabytes: float = 30.0  # of the weights in float16
    preview_prompts: tuple[str, ...] = ()

    def plan(self, corpus: Path, out: Path, announce: Announce) -> None:
        """Phantoms, steps and weights of each stage; makes nothing."""
        from medisyn.families.higen.networks import count_parameters

        announce(f"{self.phantoms.count} heart phantoms are made" if _is_new(corpus) else "the corpus is there")
        trained = (self.autoencoder.train, self.text, self.diffusion, self.decoder.train)
        for stage, settings in zip((AUTOENCODER, TEXT, DIFFUSION, DECODER), trained, strict=True):
            announce(f"{stage}: {settings.num_steps} steps of {settings.batch_size}, rate {settings.learning_rate:g}")
        announce(f"U-Net: {count_parameters(self.network) / 1e6:.2f} million weights")

    def prepare(self, corpus: Path, out: Path, announce: Announce, *, processes: int) -> None:
        """Make the phantoms."""
        if processes != 1:
            raise ConfigError("starter-video trains its stages on one process; use --processes 1")
        if _is_new(corpus):
            from medisyn.phantoms.heart import write_heart_phantoms

            announce(f"making {self.phantoms.count} heart phantoms")
            write_heart_phantoms(
                corpus,
                self.phantoms.count,
                size=(self.grid.height, self.grid.width),
                frames=self.grid.frames,
                vigorous=self.phantoms.vigorous,
                seed=self.phantoms.seed,
                engine="inline" if self.phantoms.processes == 1 else f"processes:{self.phantoms.processes}",
            )

    def run(self, corpus: Path, out: Path, announce: Announce) -> TrainReport:
        """All stages, each resumed or skipped when it is done. Returns the diffusion stage's report."""
        clips = ClipReader(corpus, self.data, self.grid.frames)
        labels = read_labels(corpus / "table.csv", self.labels, clips.keys)  # first: the stage before is long
        pixels = self._pixels(clips, out)
        announce("stage 1 of 5: autoencoder")
        report = self._train_autoencoder(AUTOENCODER, None, pixels, out, announce)
        if report.interrupted:
            return report
        announce("stage 2 of 5: text")
        report = self._train_text(clips, labels, out, announce)
        if report.interrupted:
            return report
        announce("stage 3 of 5: diffusion")
        self._start(clips, pixels, out)
        stage = self._diffusion_run(out)
        stage.prepare(corpus, out / DIFFUSION, announce, processes=1)
        diffused = stage.run(corpus, out / DIFFUSION, announce)
        if diffused.interrupted:
            return diffused
        announce("stage 4 of 5: decoder")
        report = self._train_autoencoder(DECODER, AUTOENCODER, pixels, out, announce)
        if report.interrupted:
            return report
        announce("stage 5 of 5: model folder")
        self._export(out, announce)
        return dataclasses.replace(diffused, model=out / MODEL)

    # Parts of the above

    def _pixels(self, clips: ClipReader, out: Path) -> EncodedStore:
        """Frames as rows of pixels."""
        from medisyn.training.precompute import precompute

        family = self._autoencoder(self.autoencoder, None)
        return precompute(
            out / "pixels",
            clips.keys,
            clips,
            lambda: family.encode,
            encoder=f"pixels of {self.frames_per_clip} frames",
            corpus=fingerprint(clips.corpus),
            variants=self.frames_per_clip,
            vary=FrameReader(clips, self.frames_per_clip).frame,
        )

    def _autoencoder(self, stage: AutoencoderStage, folder: Path | None) -> Autoencoder:
        import torch
        from diffusers import AutoencoderKL

        from medisyn.families.autoencoder import Autoencoder, AutoencoderConfig

        options = {name: value for name, value in vars(stage).items() if name != "train"}
        config = AutoencoderConfig(latent_channels=self.image.latent_channels, widths=self.image.vae_widths, **options)
        if folder is not None:
            return Autoencoder(config, AutoencoderKL.from_pretrained(folder, local_files_only=True))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage.train.seed)
            return Autoencoder(config)

    def _train_autoencoder(
        self, name: str, start: str | None, pixels: EncodedStore, out: Path, announce: Announce
    ) -> TrainReport:
        """The stage `name` into a folder of that name, from the model of the stage `start`."""
        from medisyn.training.launch import local_device
        from medisyn.training.loop import train

        stage: AutoencoderStage = getattr(self, name)
        family = self._autoencoder(stage, out / start / "model" if start else None).to(local_device())
        options = {key: value for key, value in dataclasses.asdict(stage).items() if key != "train"}
        return train(
            family,
            pixels,
            stage.train,
            out / name,
            save_model=family.save,
            config={"image": dataclasses.asdict(self.image), name: options},
            corpus=pixels.folder.name,
            announce=announce,
        )

    def _train_text(
        self, clips: ClipReader, labels: Sequence[tuple[float, ...]], out: Path, announce: Announce
    ) -> TrainReport:
        """The text encoder and its vocabulary, from nothing."""
        from medisyn.families.higen.caption_labels import CaptionLabels
        from medisyn.training.launch import local_device
        from medisyn.training.loop import train
        from medisyn.training.precompute import precompute
        from medisyn.types import Sample

        encoder, tokenizer = self._new_text(clips, out)
        layer = self.model.text_layer
        family = CaptionLabels(encoder, tokenizer, layer=layer, num_labels=len(self.labels), seed=self.text.seed)

        def caption(number: int) -> Any:
            return Sample(clips.keys[number], None, clips.captions[number], {"labels": labels[number]})  # type: ignore[arg-type]

        store = precompute(
            out / "captions",
            clips.keys,
            caption,
            lambda: family.encode,
            encoder=runs.digest([tokenizer.get_vocab(), self.labels]),
            corpus=fingerprint(clips.corpus),
        )

        family.to(local_device())
        config = {"labels": self.labels, "text_layer": layer, "vocabulary": self.vocabulary}
        return train(
            family,
            store,
            self.text,
            out / TEXT,
            save_model=lambda folder: save_text(encoder, tokenizer, folder),
            config=config,
            corpus=store.folder.name,
            announce=announce,
        )

    def _new_text(self, clips: ClipReader, out: Path) -> tuple[Any, Any]:
        """Text encoder and tokenizer before training; kept, since a vocabulary learnt again may number ties anew."""
        from medisyn.families.stable_diffusion.networks import build_networks
        from medisyn.families.stable_diffusion.text import train_tokenizer

        folder = out / f"{TEXT}-{START}"
        if not folder.is_dir():
            tokenizer = train_tokenizer(clips.captions, vocab_size=self.vocabulary, window=self.image.text_window)
            encoder = build_networks(self.image, tokenizer, seed=self.diffusion.seed).text_encoders[0]
            with runs.atomic_folder(folder) as target:
                save_text(encoder, tokenizer, target)
        return open_text(folder)

    def _start(self, clips: ClipReader, pixels: EncodedStore, out: Path) -> None:
        """A HiGen folder with the trained autoencoder and all else random, made once."""
        import torch
        from diffusers import AutoencoderKL

        from medisyn.families.higen.model import HiGen
        from medisyn.families.higen.networks import build_unet

        if (out / START).is_dir():
            return
        trained = self._autoencoder(self.autoencoder, out / AUTOENCODER / "model")
        rows = [pixels[row]["pixels"] for row in range(0, len(pixels), max(1, len(pixels) // 256))]
        vae = AutoencoderKL.from_pretrained(out / AUTOENCODER / "model", local_files_only=True)
        vae.register_to_config(scaling_factor=trained.latent_scale(torch.stack(rows)))
        text_encoder, tokenizer = open_text(out / TEXT / "model")
        unet = build_unet(self.network, seed=self.diffusion.seed)
        grid = clips.grid(self.grid)
        HiGen(unet, vae, text_encoder, tokenizer, grid=grid, settings=self.model, defaults=self.defaults).save(
            out / START
        )

    def _diffusion_run(self, out: Path) -> HiGenRun:
        return HiGenRun(
            summary=self.summary,
            base=str(out / START),
            grid=self.grid,
            model=self.model,
            defaults=self.defaults,
            data=self.data,
            frame_encoder=self.frame_encoder,
            frames=self.frames,
            train=self.diffusion,
            preview_prompts=self.preview_prompts,
        )

    def _export(self, out: Path, announce: Announce) -> None:
        """The diffusion model with the sharpened decoder, in float16. ModelError when it is larger than may ship."""
        from diffusers import AutoencoderKL

        from medisyn.families.higen.model import HiGen

        trained = HiGen.from_folder(out / DIFFUSION / "model")
        vae: Any = AutoencoderKL.from_pretrained(out / DECODER / "model", local_files_only=True)
        vae.register_to_config(scaling_factor=trained.vae.config.scaling_factor)
        parts = (trained.unet, vae, trained.reader.encoder, trained.reader.tokenizer)
        model = HiGen(*parts, grid=trained.grid, settings=trained.settings, defaults=self.defaults)
        model.save(out / MODEL, dtype="float16")
        megabytes = sum(file.stat().st_size for file in (out / MODEL).rglob("*.safetensors")) / 1e6
        if megabytes > self.max_megabytes:
            raise ModelError(
                f"the weights in {out.name}/{MODEL} take {megabytes:.1f} MB, at most {self.max_megabytes:g} MB "
                f"ship. Take smaller networks, or raise max_megabytes."
            )
        announce(f"{megabytes:.1f} MB of weights in {out.name}/{MODEL}")


def save_text(encoder: Any, tokenizer: Any, folder: Path) -> None:
    """What `open_text` opens."""
    encoder.save_pretrained(folder / "text_encoder", safe_serialization=True)
    tokenizer.save_pretrained(folder / "tokenizer")


def open_text(folder: Path) -> tuple[Any, Any]:
    """Text encoder and tokenizer."""
    from transformers import CLIPTextModel

    from medisyn.families.higen import folders

    encoder = folders.open_part(folder / "text_encoder", CLIPTextModel, "float32")
    return encoder, folders.open_tokenizer(folder / "tokenizer")


def _is_new(corpus: Path) -> bool:
    from medisyn.phantoms.heart.folder import HEARTS
    from medisyn.phantoms.many import is_to_be_made

    return is_to_be_made(HEARTS, corpus)


_TRAIN = TrainSettings(
    num_steps=4000,  # of eight 64² crops
    batch_size=8,
    micro_batch_size=8,
    learning_rate=1e-3,  # as starter-image's: stable with warm-up, gradient clipping and the cosine
    schedule="cosine",
    warmup_steps=100,
    beta2=0.99,  # short run: the second moment must follow
    weight_decay=1e-3,
    ema_decay=0.998,
    ema_start=500,
    checkpoint_every=500,
    log_every=20,
)

STARTER_VIDEO = StarterVideoRun(
    summary="the video model that ships with MediSyn: 16 frames of 64 x 112 pixels from text, from heart phantoms",
    phantoms=HeartSet(count=3000, vigorous=0.33),  # else few clips move as much as a factor of 500 asks
    network=UNetConfig(
        width=48,
        multipliers=(1, 2),
        blocks=1,
        attention_levels=(1,),  # at 4 x 7 latents: half the time of attention at 8 x 14 too
        head_width=16,
        stem_heads=3,
        latent_channels=8,
        text_width=128,
        context_width=128,
        text_tokens=16,  # published
        text_blocks=1,
        text_heads=4,
        pooled_text=True,
        appearance_points=16,  # as many as frames
        norm_groups=16,
        dropout=0.0,  # thousands of different hearts, seen a few times each
    ),
    image=NetworkConfig(
        image_size=64,
        latent_channels=8,
        vae_widths=(24, 32, 96, 128),  # starter-image's
        unet_widths=(8,),  # not used
        unet_layers=1,
        unet_attention=(True,),
        unet_heads=1,
        text_width=128,
        text_layers=2,
        text_heads=4,
        norm_groups=8,
    ),
    grid=ClipGrid(frames=16, height=64, width=112),
    model=HiGenSettings(
        untold=0.5,  # else the motion says so much of the ejection fraction that the words for it are lost
        appearance_scale=100.0,  # two frames of a phantom: 1 - similarity 0.0001 to 0.006, so that 0.7 is usual
        text_layer="last",
        train_text_encoder=True,
        text_encoder_lr_scale=0.5,
    ),
    defaults=HiGenDefaults(
        steps=15,
        spacing="trailing",  # starts at pure noise with few steps too
        guidance=3.0,
        motion=None,
        appearance=None,
        overlap=4,
    ),
    data=ClipData(),
    frame_encoder="medical-encoder",  # shipped; DINOv2's weights are not
    frames=JointFrames(batch_size=16, micro_batch_size=16),
    frames_per_clip=2,
    vocabulary=600,
    labels=("label_view", "label_function", "label_effusion", "label_rate"),
    autoencoder=AutoencoderStage(train=_TRAIN, crop=64),
    text=dataclasses.replace(_TRAIN, num_steps=800, batch_size=32, micro_batch_size=32, ema_start=200),
    diffusion=dataclasses.replace(
        _TRAIN,
        num_steps=2400,  # 155 ms a clip and 14 ms a frame on one busy CPU core in bfloat16: an hour
        batch_size=8,
        micro_batch_size=8,
        learning_rate=5e-4,
        warmup_steps=200,
        final_lr_share=0.02,
        weight_decay=1e-2,
        checkpoint_every=250,
        preview_every=1000,
    ),
    decoder=AutoencoderStage(
        train=dataclasses.replace(_TRAIN, num_steps=1000, batch_size=4, micro_batch_size=4, learning_rate=2e-4),
        crop=64,
        latent_noise=0.2,
        adversarial_weight=0.05,
        feature_weight=0.5,
    ),
    preview_prompts=(
        "Apical four-chamber view. Left ventricular systolic function is normal. No pericardial effusion.",
        "Apical four-chamber view. Left ventricular systolic function is severely reduced.",
        "Apical two-chamber view. Large pericardial effusion. Heart rate 60/min.",
    ),
)
