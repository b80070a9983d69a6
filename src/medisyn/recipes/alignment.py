"""Text alignment by a CLIP folder: generated images among their class prompts, beside real ones.

Shapes here: N images, P prompts, D features.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medisyn.errors import InputError, ModelError
from medisyn.evaluation.alignment import ImageEncoder, Retrieval, TextEncoder, retrieval
from medisyn.recipes.corpus_images import LabelledImage
from medisyn.runs import file_sha256

BATCH = 32


@dataclass(frozen=True)
class ClipPair:
    """An image and a text encoder of one space. `id` names the weights."""

    encode_images: ImageEncoder
    encode_texts: TextEncoder
    id: str


@dataclass(frozen=True)
class Alignment:
    """R@1 of generated images among the prompts, and of real images of the same classes among the same prompts."""

    generated: Retrieval
    real: Retrieval
    prompts: tuple[str, ...]
    encoder: str
    left_out: int  # generated images without a class, or of a class without real images


def open_clip_folder(folder: Path, device: str = "cpu") -> ClipPair:
    """A CLIP model as transformers saves it: config.json, model.safetensors, tokenizer and image processor.

    Texts longer than the model's window (77 tokens) are cut there.

    Raises ModelError for a folder that is not complete, not CLIP, or whose weights are pickles. BiomedCLIP's published
    files are of another library; its text encoder is a BERT, which this reader does not take.
    """
    config = folder / "config.json"
    if not config.is_file() or not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"CLIP: {folder.name}/ needs config.json and model.safetensors, as transformers saves a CLIPModel. "
            f"Published pickles are converted once with transformers: from_pretrained(...).save_pretrained(folder)"
        )
    try:
        kind = json.loads(config.read_text()).get("model_type")
    except (ValueError, AttributeError):
        raise ModelError(f"CLIP: {folder.name}/config.json is not a JSON object") from None
    if kind != "clip":
        raise ModelError(
            f"CLIP: {folder.name}/ holds a model of type {kind!r}, allowed: clip. BiomedCLIP in its published form "
            f"(a BERT text encoder, another library's files) is not readable here."
        )
    return _load(folder, device)


def _load(folder: Path, device: str) -> ClipPair:
    import torch
    from safetensors import SafetensorError
    from transformers import CLIPModel, CLIPTokenizer

    try:
        model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise ModelError(f"CLIP: {folder.name}/ does not open ({type(error).__name__}); is it complete?") from None
    model = model.float().eval().requires_grad_(False).to(device)
    size, length = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings
    mean, std = _normalisation(folder)

    @torch.inference_mode()
    def encode_images(images: Sequence[np.ndarray]) -> np.ndarray:
        found = []
        for start in range(0, len(images), BATCH):
            pixels = np.stack([_clip_pixels(image, size) for image in images[start : start + BATCH]])
            batch = torch.from_numpy((pixels - mean) / std).permute(0, 3, 1, 2).float().to(device)
            pooled = model.vision_model(pixel_values=batch).pooler_output
            found.append(model.visual_projection(pooled).cpu().numpy())
        return np.concatenate(found)

    @torch.inference_mode()
    def encode_texts(texts: Sequence[str]) -> np.ndarray:
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        pooled = model.text_model(**tokens.to(device)).pooler_output
        return model.text_projection(pooled).cpu().numpy()

    return ClipPair(encode_images, encode_texts, f"clip:{file_sha256(folder / 'model.safetensors')[:8]}")


def _normalisation(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the folder's image processor; CLIP's own where it has none."""
    file = folder / "preprocessor_config.json"
    stated = json.loads(file.read_text()) if file.is_file() else {}
    mean = stated.get("image_mean", [0.48145466, 0.4578275, 0.40821073])
    return np.array(mean), np.array(stated.get("image_std", [0.26862954, 0.26130258, 0.27577711]))


def _clip_pixels(image_HWC: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 3) in 0..1: short side by bicubic, then the middle, as CLIP was trained."""
    from PIL import Image

    picture = Image.fromarray(image_HWC)
    scale = size / min(picture.size)
    picture = picture.resize([max(size, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float64) / 255


def align(generated: Sequence[LabelledImage], real: Sequence[LabelledImage], pair: ClipPair) -> Alignment:
    """Retrieval of generated and of real images among the prompts of the classes that both show.

    The prompt of a class is its most frequent real caption, so both sides are judged by the same words. InputError when
    fewer than 2 classes are on both sides.
    """
    names = sorted({image.name for image in generated if image.name} & {image.name for image in real})
    captions = {
        name: Counter(image.caption for image in real if image.name == name).most_common(1)[0][0] for name in names
    }
    prompts = tuple(dict.fromkeys(captions.values()))
    if len(prompts) < 2:
        raise InputError(
            f"retrieval among class prompts needs 2 classes that both generated and real images show, with captions "
            f"that differ; there are {len(prompts)}"
        )
    prompts_PD = pair.encode_texts(prompts)

    def found(part: Sequence[LabelledImage]) -> Retrieval:
        shown = [image for image in part if image.name in captions]
        vectors = [pair.encode_images([i.read() for i in shown[n : n + BATCH]]) for n in range(0, len(shown), BATCH)]
        return retrieval(np.concatenate(vectors), prompts_PD, [captions[image.name] for image in shown], prompts)

    left_out = sum(image.name not in captions for image in generated)
    return Alignment(found(generated), found(real), prompts, pair.id, left_out)
