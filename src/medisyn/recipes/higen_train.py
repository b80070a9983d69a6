"""HiGen as a run of `medisyn train`: joint training on clips and on their key frames, on split workers or one.

Every clip and caption is encoded once before training starts, by the autoencoder, by the text encoder and, for the
likeness of its frames, by an image encoder whose id is on record. Heavy packages are imported inside the functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn import runs
from medisyn.errors import ConfigError, ModelError
from medisyn.families.higen.config import ClipGrid, UNetConfig
from medisyn.families.higen.settings import HiGenDefaults, HiGenSettings
from medisyn.families.stable_diffusion.config import NetworkConfig
from medisyn.recipes.higen_corpus import ClipData, ClipReader, fingerprint
from medisyn.training.settings import TrainSettings, resolved

if TYPE_CHECKING:
    import torch

    from medisyn.families.higen.model import HiGen
    from medisyn.training.batches import Examples
    from medisyn.training.loop import TrainReport
    from medisyn.training.precompute import EncodedStore, JoinedStore

Announce = Callable[[str], object]
ROWS_VERSION = 1  # raised when motion, likeness or masks come out otherwise: encoded rows are then made again
SHARD_BYTES = 2**28


@dataclass(frozen=True, kw_only=True)
class JointFrames:
    """Training on single key frames beside the clips. `batch_size` 0: clips alone."""

    batch_size: int
    micro_batch_size: int
    weight: float = 0.5  # of the frames' mean loss; the clips' counts the rest

    def __post_init__(self) -> None:
        if self.batch_size < 0 or self.micro_batch_size < 1 or not 0 < self.weight < 1:
            raise ConfigError(
                f"frames: batch_size must be 0 or more, micro_batch_size at least 1 and weight between 0 and 1, got "
                f"{self.batch_size}, {self.micro_batch_size} and {self.weight}"
            )


@dataclass(frozen=True, kw_only=True)
class HiGenRun:
    """One run of HiGen. Height, width and frames per second of its clips are the corpus's."""

    summary: str
    base: str = ""  # a HiGen folder, or a folder or hub id in Stable Diffusion 2's layout; "" builds from nothing:
    network: UNetConfig | None = None  # the U-Net,
    image: NetworkConfig | None = None  # and autoencoder and text encoder, of Stable Diffusion's kind
    grid: ClipGrid = field(default_factory=ClipGrid)
    model: HiGenSettings = field(default_factory=HiGenSettings)
    defaults: HiGenDefaults = field(default_factory=HiGenDefaults)
    data: ClipData = field(default_factory=ClipData)
    frame_encoder: str  # compares frames: a name of `medisyn evaluate`'s encoders of images
    frames: JointFrames
    train: TrainSettings
    preview_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.base == "") != (self.network is not None and self.image is not None):
            raise ConfigError(
                "give either base, a model to start from, or network and image, of one built from nothing"
            )

    # The words of recipes.Preset

    def plan(self, corpus: Path, out: Path, announce: Announce) -> None:
        """Clips, disk, steps and the memory of one process, measured on the first clip; `out` is left alone."""
        import tempfile

        from medisyn.training import memory

        reader = self.reader(corpus)
        with tempfile.TemporaryDirectory() as scratch:
            family = self.family(Path(scratch), reader, encodes=True)
            rows = family.encode([reader.window(reader(0), 0)])
            full, groups = self.train.settled(len(reader.keys)), family.trainable()
            estimate = memory.estimate(family, groups, {name: tensor[0] for name, tensor in rows.items()}, full)
        weights = sum(parameter.numel() for group in groups for parameter in group.parameters)
        disk = self.data.windows * len(reader.keys) * sum(t.numel() * t.element_size() for t in rows.values())
        announce(
            f"{len(reader.keys)} clips, {self.data.windows} windows of each; encoded rows take {disk / 1e9:.2f} GB"
        )
        announce(f"{full.num_steps} steps of {full.batch_size} clips and {self.frames.batch_size} frames")
        announce(f"{weights / 1e6:.1f} million weights, {full.precision}; frames are compared by {self.frame_encoder}")
        for line in estimate.lines():
            announce(line)

    def prepare(self, corpus: Path, out: Path, announce: Announce, *, processes: int) -> None:
        """Check that the run can be resumed, make the base where it is built, and encode every clip and caption."""
        from medisyn.training.run import refuse_another_run

        reader = self.reader(corpus)
        settings = resolved(self.train.settled(len(reader.keys)))
        with runs.lock(out):
            refuse_another_run(out, {**self.record(), "train": settings}, fingerprint(corpus))
            family = self.family(out, reader, encodes=True)
            store = self._store(family, reader, out)
        for line in self._told(store.own, family):
            announce(line)

    def run(self, corpus: Path, out: Path, announce: Announce) -> TrainReport:
        """One training process's part; the loop does the rest."""
        from medisyn.recipes.higen_preview import ClipPreview
        from medisyn.training.launch import local_device
        from medisyn.training.loop import train

        reader = self.reader(corpus)
        family = self.family(out, reader, encodes=True)
        store = self._store(family, reader, out)
        family.to(local_device())
        return train(
            family,
            self.examples(store),
            self.train,
            out,
            save_model=family.save,
            preview=ClipPreview(family, self.preview_prompts) if self.preview_prompts else None,
            config=self.record(),
            corpus=fingerprint(corpus),
            notes={"clips": self._told(store.own, family)},
            announce=announce,
        )

    # Parts of the above

    def reader(self, corpus: Path) -> ClipReader:
        return ClipReader(corpus, self.data, self.grid.frames)

    def record(self) -> dict[str, Any]:
        """What a resumed run must share, besides the settings; a base folder by its name, not its place."""
        values = {**dataclasses.asdict(self), "base": Path(self.base).name if Path(self.base).is_dir() else self.base}
        return {name: value for name, value in values.items() if name not in ("summary", "train", "preview_prompts")}

    def family(self, out: Path, reader: ClipReader, *, encodes: bool) -> HiGen:
        """The model to start from; the same run gives the same weights. `encodes`: with the encoder of frames."""
        from medisyn.families.higen.model import HiGen

        unet, vae, text_encoder, tokenizer = self._parts(out, reader)
        return HiGen(
            unet,
            vae,
            text_encoder,
            tokenizer,
            grid=reader.grid(self.grid),
            settings=self.model,
            defaults=self.defaults,
            frame_features=self._frame_features() if encodes else None,
        )

    def _parts(self, out: Path, reader: ClipReader) -> tuple[Any, Any, Any, Any]:
        """U-Net, autoencoder, text encoder and tokenizer."""
        from medisyn.families.higen.folders import FOLDER
        from medisyn.families.higen.model import HiGen
        from medisyn.recipes.models import find_model

        if not self.base:
            return self._built(out, reader)
        folder = find_model(self.base).folder
        if not FOLDER.holds(folder):
            return self._on_image_model(folder)
        opened = HiGen.from_folder(folder)
        return opened.unet, opened.vae, opened.reader.encoder, opened.reader.tokenizer

    def _on_image_model(self, folder: Path) -> tuple[Any, Any, Any, Any]:
        """The spatial blocks of an image model, with new blocks through time."""
        from medisyn.families.higen.networks import build_unet
        from medisyn.families.higen.spatial_start import config_like, start_on
        from medisyn.families.stable_diffusion.load import open_networks

        networks = open_networks(folder, "float32")
        if networks.is_xl or networks.reads_mask:
            raise ModelError(
                "base: HiGen starts on Stable Diffusion 2's text-to-image layout, not on SDXL or inpainting"
            )
        unet = build_unet(config_like(networks.unet), seed=self.train.seed)
        start_on(unet, networks.unet)
        return unet, networks.vae, networks.text_encoders[0], networks.tokenizers[0]

    def _built(self, out: Path, reader: ClipReader) -> tuple[Any, Any, Any, Any]:
        """Random weights, with a vocabulary learnt from the captions: made once, so that resuming finds the same."""
        from transformers import CLIPTokenizer

        from medisyn.families.higen.networks import build_unet
        from medisyn.families.stable_diffusion.networks import build_networks
        from medisyn.families.stable_diffusion.text import train_tokenizer

        assert self.network is not None  # __post_init__
        assert self.image is not None
        vocabulary = out / "tokenizer"
        if not (vocabulary / "tokenizer_config.json").is_file():
            made = train_tokenizer(reader.captions, window=self.image.text_window)
            with runs.atomic_folder(vocabulary) as folder:
                made.save_pretrained(folder)
        tokenizer = CLIPTokenizer.from_pretrained(vocabulary, local_files_only=True)
        image = build_networks(self.image, tokenizer, seed=self.train.seed)
        return build_unet(self.network, seed=self.train.seed), image.vae, image.text_encoders[0], tokenizer

    def _frame_features(self) -> Any:
        from medisyn.evaluation.features import load_extractor

        return load_extractor(self.frame_encoder)

    def _store(self, family: HiGen, reader: ClipReader, out: Path) -> JoinedStore:
        """Every window of every clip, and every distinct caption, encoded once."""
        from medisyn.recipes.finetune import caption_key
        from medisyn.training.precompute import SHARD_ROWS, JoinedStore, precompute

        frames, channels = self.grid.frames, family.vae.config.latent_channels
        row_bytes = 4 * frames * channels * family.grid.height * family.grid.width // 16  # at most
        digests = weights_digests(family)
        clips = precompute(
            out / "encoded",
            reader.keys,
            reader,
            lambda: family.encode_clips,
            encoder=runs.digest([digests["vae"], family.frame_features.id, frames, self.data.seed, ROWS_VERSION]),  # type: ignore[union-attr]
            corpus=fingerprint(reader.corpus),
            variants=self.data.windows,
            vary=reader.window,
            shard_rows=max(1, min(SHARD_ROWS, SHARD_BYTES // row_bytes)),
            batch_size=1,
        )
        captions = reader.distinct_captions
        texts = precompute(
            out / "encoded",
            [caption.key for caption in captions],
            captions.__getitem__,
            lambda: family.encode_captions,
            encoder=runs.digest([digests["text"], self.model.text_layer, self.model.train_text_encoder]),
            corpus="captions",
        )
        return JoinedStore(clips, texts, [caption_key(caption) for caption in reader.captions])

    def examples(self, store: JoinedStore) -> Examples:
        """Clips, and beside them their key frames."""
        from medisyn.training.batches import Joint, Kind

        if self.frames.batch_size == 0:
            return store
        clips = Kind("clips", store, self.train.batch_size, self.train.micro_batch_size, 1 - self.frames.weight)
        frames = Kind(
            "frames", KeyFrames(store), self.frames.batch_size, self.frames.micro_batch_size, self.frames.weight
        )
        return Joint([clips, frames])

    def _told(self, clips: EncodedStore, family: HiGen) -> list[str]:
        """What was read, for a person and for run.json."""
        motion = clips.column("motion").flatten()
        low, middle, high = (float(motion.quantile(share)) for share in (0.05, 0.5, 0.95))
        grid, encoder = family.grid, family.frame_features
        return [
            f"{len(clips.keys)} clips of {grid.height} x {grid.width} pixels, {self.data.windows} windows of "
            f"{grid.frames} frames each",
            f"motion values: median {middle:.0f}, 5th to 95th percentile {low:.0f} to {high:.0f}",
            f"frames are compared by {encoder.id} ({encoder.preprocessing})",  # type: ignore[union-attr]
        ]


class KeyFrames:
    """The key frames of encoded clips as examples of their own, with keys of their own; read from the clips' rows."""

    def __init__(self, clips: Any) -> None:
        self.clips, self.variants = clips, clips.variants
        self.keys = [f"{key}/key-frame" for key in clips.keys]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        from medisyn.families.higen.model import key_frame_row

        return key_frame_row(self.clips[row])


def weights_digests(family: HiGen) -> dict[str, str]:
    """Digests of what decides encoded rows: the autoencoder; the text encoder with its vocabulary."""
    import hashlib

    from safetensors.torch import save

    digests = {}
    for name, module in (("vae", family.vae), ("text", family.reader.encoder)):
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in module.state_dict().items()}
        digests[name] = hashlib.sha256(save(state)).hexdigest()
    tokenizer = family.reader.tokenizer
    digests["text"] = runs.digest([digests["text"], tokenizer.get_vocab(), tokenizer.model_max_length])
    return digests
