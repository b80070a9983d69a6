"""Fine-tune Stable Diffusion on a corpus: the configuration of such a run, and its wiring.

Heavy packages are imported inside the functions, so that presets are listed without torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn.errors import ConfigError
from medisyn.families.stable_diffusion.config import NetworkConfig, StableDiffusionConfig
from medisyn.recipes.finetune import (
    BALANCE,
    Announce,
    PictureRun,
    PreviewConfig,
    caption_digest,
    picture_digest,
)
from medisyn.recipes.selection import JudgeConfig
from medisyn.training.settings import TrainSettings

if TYPE_CHECKING:
    from medisyn.families.stable_diffusion.model import StableDiffusion
    from medisyn.training.precompute import EncodedStore, JoinedStore


@dataclass(frozen=True, kw_only=True)
class StableDiffusionRun(PictureRun):
    """One fine-tune of a Stable Diffusion 1, 2 or XL checkpoint."""

    summary: str
    base: str  # diffusers folder or hub id; "" builds `network` from nothing, with a tokenizer learnt from the captions
    vae: str = ""  # an autoencoder's folder or hub id that replaces the base's own; "" keeps that
    network: NetworkConfig | None = None  # the model's size when base is ""
    model: StableDiffusionConfig = field(default_factory=StableDiffusionConfig)
    train: TrainSettings
    split: str = "train"
    balance: str = "none"  # "specialty", "image_type" or "class": draw each of them equally often
    encode_batch_size: int = 8
    cache: str = ""  # folder of encoded rows, to share them between runs; "" keeps them in the run's folder
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        if self.balance not in BALANCE:
            raise ConfigError(f"balance must be one of {', '.join(BALANCE)}, got {self.balance!r}")
        if (self.base == "") != (self.network is not None):
            raise ConfigError(
                "give either base, a model to start from, or network, the size of one with random weights"
            )
        if self.encode_batch_size < 1:
            raise ConfigError(f"encode_batch_size must be at least 1, got {self.encode_batch_size}")

    # The words of recipes.Preset

    # Parts of the above

    def family(self, out: Path, corpus: Any) -> StableDiffusion:
        """The model before training."""
        from medisyn.families.stable_diffusion.model import StableDiffusion
        from medisyn.recipes.models import find_autoencoder, find_model

        place = find_model(self.base if self.base else str(self._built_base(out, corpus).resolve()))
        return StableDiffusion.from_folder(
            place.folder,
            self.model,
            adapter=place.adapter,
            embeddings=place.embeddings,
            vae=find_autoencoder(self.vae) if self.vae else None,
            source=place.name,
        )

    def _built_base(self, out: Path, corpus: Any) -> Path:
        """Random weights and a tokenizer for these captions, made once: every process and resume has the same."""
        from medisyn.families.stable_diffusion.model import StableDiffusion
        from medisyn.families.stable_diffusion.text import train_tokenizer

        assert self.network is not None  # __post_init__
        folder = out / "base"
        if not (folder / "model_index.json").exists():
            captions = [row.caption for row in corpus.rows(self.split)]
            tokenizer = train_tokenizer(captions, window=self.network.text_window)
            StableDiffusion.from_config(self.network, tokenizer, seed=self.train.seed).save(folder)
        return folder

    def check_size(self, family: StableDiffusion, corpus: Any, announce: Announce) -> None:
        from medisyn.families.stable_diffusion.load import use_size

        native = family.native_size
        height, width = corpus.read(corpus.rows(self.split)[0]).item.array_CHW.shape[1:]
        if (height, width) == native:
            return
        text = f"the corpus holds pictures of {height}x{width} pixels, the model makes {native[0]}x{native[1]}"
        if not self.base:
            raise ConfigError(f"{text}. Curate at that size, or set network.image_size={height}.")
        announce(f"note: {text} by default; this run trains, judges and exports it at the corpus's size")
        use_size(family.networks, height, width)

    def store(self, family: StableDiffusion, corpus: Path, out: Path, opened: Any, processes: int) -> JoinedStore:
        """Every sample's encoded rows, made where they are not there yet."""
        sizes = [(row.original_size, row.crop_top_left) for row in opened.rows(self.split)]
        digests = {"pictures": picture_digest(family, sizes), "captions": caption_digest(family)}
        return self._encoded(family, corpus, out, opened, processes, **digests)

    def notes(self, family: StableDiffusion, store: JoinedStore) -> dict[str, str]:
        return {"size_conditioning": size_note(store.own)} if family.networks.is_xl else {}


def size_note(pictures: EncodedStore) -> str:
    """What SDXL's size and crop conditioning was learnt from."""
    sizes_N6 = pictures.column("time_ids")
    told = ((sizes_N6[:, :2] != sizes_N6[:, 4:]).any(dim=1) | (sizes_N6[:, 2:4] != 0).any(dim=1)).sum()
    return (
        f"size conditioning: {int(told)} of {len(sizes_N6)} samples tell another original size or a crop; "
        "the others are taken as not cropped"
    )
