"""What a HiGen model is trained on, as the user has it: the clips of a curated corpus, or a folder of clips.

    curated corpus   a folder of `medisyn curate`; its pictures are left out, and so are clips without a caption
    clip folders     <any>/clip.mkv with caption.txt beside it, as heart phantoms are written

Shapes here: T frames of a window, H, W pixels. All clips of a corpus have one height and width.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medisyn.errors import ConfigError, CorpusError
from medisyn.families.higen.config import ClipGrid
from medisyn.recipes.finetune import Caption, caption_key
from medisyn.types import Clip, Sample

CLIP_FILE, CAPTION_FILE = "clip.mkv", "caption.txt"


@dataclass(frozen=True, kw_only=True)
class ClipData:
    """How clips are read.

    split    of a curated corpus; a folder of clips has none
    windows  how many places of each clip are encoded, each the length of the model's clips; epochs take them in turn
    seed     of those places
    """

    split: str = "train"
    windows: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.windows < 1:
            raise ConfigError(f"windows must be at least 1, got {self.windows}")


@dataclass(frozen=True)
class ClipPlace:
    """A clip that was found and not yet read."""

    key: str
    number: int


@dataclass(frozen=True)
class ClipReader:
    """Clip number n of a corpus, unread, and its windows as Samples; picklable."""

    corpus: Path
    data: ClipData
    frames: int

    def __call__(self, number: int) -> ClipPlace:
        return ClipPlace(self.keys[number], number)

    @property
    def keys(self) -> Sequence[str]:
        return [key for key, _ in _found(self.corpus, self.data.split)]

    @property
    def captions(self) -> Sequence[str]:
        return [caption for _, caption in _found(self.corpus, self.data.split)]

    def window(self, place: ClipPlace, visit: int) -> Sample:
        """The `visit`-th window of a clip, from a place drawn by its key; padded black where the clip is shorter."""
        from medisyn.corpus import clips

        generator = clips.window_generator(self.data.seed, place.key, visit)
        if is_curated(self.corpus):
            corpus, rows = _curated(self.corpus, self.data.split)
            return corpus.read_window(rows[place.number], self.frames, generator)
        clip = _clip_of(self.corpus, place.key)
        caption = _found(self.corpus, self.data.split)[place.number][1]
        return clips.window(Sample(place.key, clip, caption), self.frames, generator)

    def grid(self, wanted: ClipGrid) -> ClipGrid:
        """`wanted` with the corpus's height and width, and the median of its frame rates where they are known."""
        if is_curated(self.corpus):
            _, rows = _curated(self.corpus, self.data.split)
            rates = [row.fps for row in rows if row.fps is not None]
            height, width = self.window(self(0), 0).item.array_CTHW.shape[2:]  # type: ignore[union-attr]
        else:
            clip = _clip_of(self.corpus, self.keys[0])
            rates = [] if clip.frames_per_second is None else [clip.frames_per_second]
            height, width = clip.array_CTHW.shape[2:]
        rate = statistics.median(rates) if rates else wanted.frames_per_second
        return dataclasses.replace(wanted, height=height, width=width, frames_per_second=float(rate))

    @property
    def distinct_captions(self) -> list[Caption]:
        """Every caption once, in the order of their keys."""
        texts = {caption_key(caption): caption for caption in self.captions}
        return [Caption(key, texts[key]) for key in sorted(texts)]


def is_curated(corpus: Path) -> bool:
    return (corpus / "index.parquet").is_file()


def fingerprint(corpus: Path) -> str:
    """A digest of a corpus."""
    from medisyn.recipes import medsyn_corpus

    if is_curated(corpus):
        from medisyn.corpus.loader import Corpus

        return Corpus(corpus).fingerprint
    return medsyn_corpus.fingerprint(corpus)


@functools.lru_cache(maxsize=2)
def _curated(corpus: Path, split: str) -> tuple[Any, list[Any]]:
    from medisyn.corpus.loader import Corpus

    opened = Corpus(corpus)
    return opened, [row for row in opened.rows(split) if row.is_clip and row.caption.strip()]


@functools.lru_cache(maxsize=2)
def _found(corpus: Path, split: str) -> list[tuple[str, str]]:
    """Key and caption of every clip. Raises CorpusError when there is none, or a clip of a folder has no caption."""
    if is_curated(corpus):
        found = [(row.key, row.caption) for row in _curated(corpus, split)[1]]
        where = f"in split {split!r} of the corpus"
    else:
        folders = sorted(file.parent for file in corpus.glob(f"*/{CLIP_FILE}")) if corpus.is_dir() else []
        found = [(folder.name, _caption_of(folder)) for folder in folders]
        where = f"in the corpus: give a folder of `medisyn curate`, or one with {CLIP_FILE} and {CAPTION_FILE} in each "
        where += "of its folders"
    if not found:
        raise CorpusError(f"there is no clip with a caption {where}")
    return found


def _caption_of(folder: Path) -> str:
    path = folder / CAPTION_FILE
    caption = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    if not caption:
        raise CorpusError(f"{folder.name}: its clip has no caption. Write one to {CAPTION_FILE}, or remove the folder.")
    return caption


def _clip_of(corpus: Path, key: str) -> Clip:
    from medisyn.corpus.readers.video import read_clip

    return read_clip(corpus / key / CLIP_FILE)
