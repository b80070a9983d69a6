"""How much of a corpus's images and clips survives a model's stages: MediSyn v1's check, on your own data.

Shapes here: B batch, T frames, H, W pixels.
A model with one autoencoder has one stage. Würstchen has Stage A alone, and the image encoder, Stage B and Stage A in a
row. Clips go through frame by frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn.errors import InputError, ModelError
from medisyn.recipes.stages_page import BY_FRAME, CLIP_FRAMES, kind_of, write_page
from medisyn.seeding import seed_for

if TYPE_CHECKING:
    from medisyn.corpus.loader import Corpus
    from medisyn.evaluation.stages import Rebuild, Spread, StageCheck

COUNT = 1000  # images, as in MediSyn v1 appendix A.1


@dataclass(frozen=True)
class StageItem:
    """One image (H, W, 3) or clip (T, H, W, 3) of a corpus, uint8, that can be read when it is needed."""

    key: str
    patient: str
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class StageEvaluation:
    """What `evaluate_stages` found, one check per stage and kind of item; `page` is the report it wrote."""

    checks: tuple[StageCheck, ...]
    split: str
    page: Path

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        stages = [asdict(check) for check in self.checks]
        for content in stages:
            for name in ("ssim", "psnr_db"):
                content[name]["range"] = content[name]["high"] - content[name]["low"]
        return {"stages": stages, "split": self.split}

    def summary(self) -> str:
        """A few lines for a terminal."""
        lines = []
        for check in self.checks:
            lines += [
                f"{check.name}, {check.n} {kind_of(check)}: {check.verdict} (mean SSIM {check.ssim.mean:.4f}, limit "
                f"{check.keep_from:g})",
                f"SSIM  mean {_spread_text(check.ssim, 4)}",
                f"PSNR  mean {_spread_text(check.psnr_db, 1)}, dB",
            ]
        return "\n".join([*lines, f"Report: {self.page}"])


def _spread_text(spread: Spread, digits: int) -> str:
    return (
        f"{spread.mean:.{digits}f} ({spread.interval.low:.{digits}f} to {spread.interval.high:.{digits}f}), median "
        f"{spread.median:.{digits}f}, SD {spread.sd:.{digits}f}, range {spread.range:.{digits}f} "
        f"({spread.low:.{digits}f} to {spread.high:.{digits}f})"
    )


def evaluate_stages(
    model: str,
    against: Path | str,
    *,
    split: str = "test",
    count: int = COUNT,
    resamples: int = 200,
    seed: int = 0,
    out: Path | None = None,
) -> StageEvaluation:
    """Rebuild items of one split of a corpus through each stage of `model` and compare them with the originals.

    model: a shipped model, a model folder, a hub id, or the folder of an autoencoder alone (diffusers AutoencoderKL).
    count: images, and clips, drawn at random; all when there are fewer. out: None is `<model>-stages` in the current
    folder. Runs on the GPU where there is one.
    """
    from tqdm import tqdm

    from medisyn.corpus.loader import Corpus
    from medisyn.evaluation.stages import check_stage

    if count < 2:
        raise InputError(f"a stage check needs at least 2 images, got a count of {count}")
    corpus = Corpus(against)
    captions: dict[str, str] = {}
    stages = open_stages(model, captions, seed=seed)
    found: list[tuple[StageCheck, Sequence[StageItem], Rebuild]] = []
    for clips in (False, True):
        items = _drawn(corpus, split, count, seed, captions, clips=clips)
        patients = [item.patient for item in items]
        for name, rebuild in stages if items else ():
            whole = by_frame(rebuild) if clips else rebuild
            with tqdm(total=len(items), desc=f"rebuilding: {name}", unit="item", disable=None) as bar:
                check = check_stage(
                    f"{name}{BY_FRAME}" if clips else name,
                    whole,
                    [item.read for item in items],
                    patients=patients if len(set(patients)) < len(patients) else None,
                    resamples=resamples,
                    seed=seed,
                    on_batch=bar.update,
                )
            found.append((check, items, whole))
    if not found:
        raise InputError(f"the corpus has no images or clips in the split {split!r}")
    out = Path(f"{Path(model).name}-stages") if out is None else out
    result = StageEvaluation(tuple(check for check, _, _ in found), split, out / "report.html")
    write_page(out, result, found, corpus.fingerprint, {"count": count, "seed": seed, "split": split})
    return result


# ---- what is rebuilt


def _drawn(
    corpus: Corpus, split: str, count: int, seed: int, captions: dict[str, str], *, clips: bool
) -> list[StageItem]:
    """At most `count` images or clips of a split, in the order of the corpus."""
    rows = [row for row in corpus.rows(split) if row.is_clip == clips]
    order = np.random.default_rng(seed_for(seed, "stages")).permutation(len(rows))[:count]
    return [_item(corpus, rows[number], seed, captions) for number in sorted(order)]


def _item(corpus: Corpus, row: Any, seed: int, captions: dict[str, str]) -> StageItem:
    """An item that notes its caption under the address of its pixels when it is read: a stage is handed those alone."""

    def read() -> np.ndarray:
        from medisyn.recipes.corpus_images import rgb

        array = _real_frames(corpus, row, seed) if row.is_clip else rgb(corpus.read(row).item)
        for frame in array if row.is_clip else (array,):
            captions[address_of(frame)] = row.caption
        return array

    return StageItem(row.key, row.patient or row.key, read)


def _real_frames(corpus: Corpus, row: Any, seed: int) -> np.ndarray:
    """Up to 32 consecutive frames of a clip from a place drawn by its key, without the padded border."""
    generator = np.random.default_rng(seed_for(seed, f"stages/{row.key}"))
    clip: Any = corpus.read_window(row, min(row.frames, CLIP_FRAMES), generator).item
    height, width = clip.array_CTHW.shape[2:]
    top, left, bottom, right = row.valid or (0, 0, height, width)
    frames = np.broadcast_to(clip.array_CTHW, (3, *clip.array_CTHW.shape[1:])).transpose(1, 2, 3, 0)
    return np.ascontiguousarray(frames[:, top:bottom, left:right])


def address_of(image_HWC: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(image_HWC).tobytes()).hexdigest()


# ---- the stages of a model


def open_stages(model: str, captions: Mapping[str, str], *, seed: int = 0) -> list[tuple[str, Rebuild]]:
    """Each stage of a model: its name, and what sends images through it.

    captions: by the address of an image's pixels (`address_of`), what Stage B of Würstchen is told of it; "" where
    there is none. Its noise depends on `seed` and the pixels alone.
    """
    from medisyn.families.wuerstchen.layouts import is_wuerstchen
    from medisyn.recipes.models import find_model

    if (Path(model) / "config.json").is_file():
        return [open_autoencoder(model)]
    place = find_model(model)
    if not is_wuerstchen(place.folder):
        return [open_autoencoder(model)]
    return _wuerstchen_stages(place.folder, place.id, captions, seed)


def _wuerstchen_stages(folder: Path, name: str, captions: Mapping[str, str], seed: int) -> list[tuple[str, Rebuild]]:
    from medisyn.families.wuerstchen.model import Wuerstchen
    from medisyn.machine import choose_device
    from medisyn.types import Sample

    family = Wuerstchen.from_folder(folder, device=choose_device("auto"))

    def through_a(sample: Sample) -> Any:
        return family.rebuild([sample])[0]

    def through_b(sample: Sample) -> Any:
        return family.rebuild_from_features([sample], [seed_for(seed, f"stages/{sample.key}")])[0]

    family.networks.encoder()  # Stage B's check needs it
    return [
        (f"Stage A of {name}", _one_by_one(through_a, family.networks.vqgan.factor, captions)),
        (f"Stages B and A of {name}", _one_by_one(through_b, family.factor, captions)),
    ]


def open_autoencoder(model: str) -> tuple[str, Rebuild]:
    """The name of a model's autoencoder, and what sends images through it (posterior mean, float32, no sampling)."""
    from diffusers import AutoencoderKL

    from medisyn.families.autoencoder.model import Autoencoder, AutoencoderConfig
    from medisyn.machine import choose_device
    from medisyn.recipes.models import find_model

    folder = Path(model)
    if (folder / "config.json").is_file():
        name = folder.resolve().name
    else:
        place = find_model(model)
        name, folder = f"autoencoder of {place.id}", place.folder / "vae"
    if not (folder / "config.json").is_file():
        raise ModelError(f"{Path(model).name} holds no autoencoder: neither its own config.json nor vae/config.json")
    try:
        vae = AutoencoderKL.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the autoencoder cannot be opened ({str(error).splitlines()[0][:200]})") from None
    family = Autoencoder(AutoencoderConfig(), vae.float().eval().to(choose_device("auto")))
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return name, _one_by_one(lambda sample: family.rebuild([sample.item])[0], factor, {})


def _one_by_one(through: Callable[[Any], Any], factor: int, captions: Mapping[str, str]) -> Rebuild:
    """A stage for samples as one for images of any size, one after the other, so that no batch rounds another.

    Sides that are no multiple of `factor` are continued by their edge, and cut again.
    """
    from medisyn.types import Picture, Sample

    def rebuilt(image_HWC: np.ndarray) -> np.ndarray:
        height, width = image_HWC.shape[:2]
        padded = np.pad(image_HWC, ((0, -height % factor), (0, -width % factor), (0, 0)), mode="edge")
        address = address_of(image_HWC)
        picture = through(Sample(address, Picture(padded.transpose(2, 0, 1)), captions.get(address, "")))
        return np.ascontiguousarray(picture.array_CHW.transpose(1, 2, 0)[:height, :width])

    return lambda batch: [rebuilt(image) for image in batch]


def by_frame(rebuild: Rebuild) -> Rebuild:
    """A stage for images as one for clips."""
    return lambda batch: [np.stack(rebuild(list(clip))) for clip in batch]
