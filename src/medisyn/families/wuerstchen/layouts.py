"""Würstchen's folders on disk: the published layouts and ours, found, checked part by part, opened; and written.

Three layouts hold the same networks. Published: one pipeline folder with the prior, a second with Stages B and A, and
the image encoder in a checkpoint of its own. Combined: diffusers' pipeline of both, saved locally. Ours: one folder
with every part. In the first two the image encoder is given beside the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from medisyn.errors import ModelError, closest
from medisyn.families.wuerstchen.networks import Networks
from medisyn.families.wuerstchen.parts import (
    CONVERT,
    open_network,
    open_text_encoder,
    open_tokenizer,
)
from medisyn.nn.folders import FolderKind, refuse_pickles, save_part

SETTINGS_FILE = "wuerstchen.json"
FOLDER = FolderKind(SETTINGS_FILE, family="wuerstchen", title="Würstchen")

# Part of a model -> its folder within each pipeline of diffusers. Our own folders have the parts' names.
PRIOR_PIPELINE = {"prior": "prior", "text_encoder": "text_encoder", "tokenizer": "tokenizer"}
DECODER_PIPELINE = {
    "decoder": "decoder",
    "vqgan": "vqgan",
    "decoder_text_encoder": "text_encoder",
    "decoder_tokenizer": "tokenizer",
}
COMBINED_PIPELINE = {**DECODER_PIPELINE, **{part: f"prior_{part}" for part in PRIOR_PIPELINE}}
PIPELINES = {
    "WuerstchenPriorPipeline": PRIOR_PIPELINE,
    "WuerstchenDecoderPipeline": DECODER_PIPELINE,
    "WuerstchenCombinedPipeline": COMBINED_PIPELINE,
}
PARTS = (*PRIOR_PIPELINE, *DECODER_PIPELINE, "image_encoder")

# Numbers that a pipeline or scheduler may state; ours are the published ones, and others need other mathematics.
EXPECTED = {
    "latent_mean": 42.0,
    "latent_std": 1.0,
    "resolution_multiple": 42.67,
    "latent_dim_scale": 10.67,
    "scaler": 1.0,
    "s": 0.008,
}


# ---- finding


def is_wuerstchen(folder: Path) -> bool:
    """Whether a folder is of this family: ours, or a Würstchen pipeline of diffusers."""
    if (folder / SETTINGS_FILE).is_file():
        return True
    index = folder / "model_index.json"
    return index.is_file() and _read_json(index).get("_class_name") in PIPELINES


def find_parts(
    folder: Path, *, decoder: Path | None = None, image_encoder: Path | None = None, needs_image_encoder: bool = False
) -> dict[str, Path]:
    """The folder of each part of a model.

    folder         ours, a combined pipeline, or the published prior's pipeline
    decoder        the published decoder's pipeline; for the prior's pipeline only
    image_encoder  a folder (config.json, .safetensors); None: image_encoder/ in `folder`

    Raises ModelError when a part is missing or the folder is of another kind, such as Stable Cascade.
    """
    if (folder / SETTINGS_FILE).is_file():
        places = {part: folder / part for part in PARTS}
    else:
        places = pipeline_parts(folder)
    if "decoder" not in places:
        if decoder is None:
            raise ModelError(
                f"{folder.name}/ holds Stage C alone, as published. Give the folder of the decoder's pipeline too "
                f"(published as warp-ai/wuerstchen), which holds Stages B and A."
            )
        places |= pipeline_parts(decoder)
    elif decoder is not None:
        raise ModelError(f"{folder.name}/ holds Stages B and A itself; leave out the second folder, {decoder.name}/")
    if "prior" not in places:
        raise ModelError(
            f"{folder.name}/ holds Stages B and A without Stage C. Give the prior's pipeline first (published as "
            f"warp-ai/wuerstchen-prior), and this one as the decoder."
        )
    return _with_image_encoder(places, folder, image_encoder, needs_image_encoder)


def pipeline_parts(folder: Path) -> dict[str, Path]:
    """The folder of each part that a pipeline of diffusers holds, by our name of the part."""
    index = _read_index(folder)
    _check_numbers(folder.name, index)
    for scheduler in sorted(folder.glob("*scheduler/scheduler_config.json")):
        _check_numbers(f"{folder.name}/{scheduler.parent.name}", _read_json(scheduler))
    return {part: folder / place for part, place in PIPELINES[index["_class_name"]].items()}


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    if not path.is_file():
        refuse_pickles(folder, CONVERT)
        raise ModelError(
            f"{folder.name}/ holds neither {SETTINGS_FILE} nor model_index.json: it is not a Würstchen model. Give the "
            f"folder of a pipeline, or one that MediSyn saved."
        )
    index = _read_json(path)
    name = str(index.get("_class_name"))
    if name.startswith("StableCascade"):
        raise ModelError(
            f"{folder.name}/ is a Stable Cascade model ({name}), the successor of Würstchen with other networks and "
            f"another latent. Give Würstchen v2: warp-ai/wuerstchen-prior and warp-ai/wuerstchen."
        )
    if name not in PIPELINES:
        raise ModelError(
            f"{folder.name}/ is a {name} model, allowed: {', '.join(PIPELINES)}.{closest(name, PIPELINES)}"
        )
    return index


def _check_numbers(what: str, given: Mapping[str, Any]) -> None:
    for name, expected in EXPECTED.items():
        if name in given and given[name] != expected:
            raise ModelError(f"{what}/ was made for {name} {given[name]}; only the published {expected} is supported")


def _with_image_encoder(
    places: dict[str, Path], folder: Path, image_encoder: Path | None, needed: bool
) -> dict[str, Path]:
    place = image_encoder or folder / "image_encoder"
    if place.is_dir():
        return {**places, "image_encoder": place}
    if needed or image_encoder is not None:
        where = place.name if image_encoder is not None else f"{folder.name}/{place.name}"
        raise ModelError(
            f"the image encoder is missing: there is no folder {where}. The published pipelines leave out "
            f"its weights, an EfficientNetV2-S; they are the entry effnet_state_dict of model_v2_stage_b.pt in the "
            f"repository dome272/wuerstchen. Run `medisyn convert wuerstchen --stage-b model_v2_stage_b.pt --out "
            f"image_encoder` once, and give that folder as the image encoder."
        )
    return {part: path for part, path in places.items() if part != "image_encoder"}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path.parent.name}/{path.name} is not readable JSON ({error})") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path.parent.name}/{path.name} must hold a JSON object, got {type(content).__name__}")
    return content


# ---- opening and writing


def open_networks(
    folder: Path,
    *,
    decoder: Path | None = None,
    image_encoder: Path | None = None,
    needs_image_encoder: bool = False,
    dtype: str = "float32",
) -> Networks:
    """All networks of a model, in eval mode on the CPU, in `dtype` ("float32" or "bfloat16"). See `find_parts`.

    Generation does without the image encoder; training needs it. Raises ModelError that names the part and what
    its file lacks or has too much; nothing is filled in.
    """
    places = find_parts(folder, decoder=decoder, image_encoder=image_encoder, needs_image_encoder=needs_image_encoder)
    return open_parts(places, dtype)


def open_parts(places: Mapping[str, Path], dtype: str = "float32") -> Networks:
    """The networks of the folders that `find_parts` gives. Raises ModelError when they do not fit each other."""
    encoder = places.get("image_encoder")
    networks = Networks(
        prior=open_network("prior", places["prior"], dtype),
        text_encoder=open_text_encoder(places["text_encoder"], dtype),
        tokenizer=open_tokenizer(places["tokenizer"]),
        decoder=open_network("decoder", places["decoder"], dtype),
        vqgan=open_network("vqgan", places["vqgan"], dtype),
        decoder_text_encoder=open_text_encoder(places["decoder_text_encoder"], dtype),
        decoder_tokenizer=open_tokenizer(places["decoder_tokenizer"]),
        image_encoder=None if encoder is None else open_network("image_encoder", encoder, dtype),
    )
    check_together(networks)
    return networks


def check_together(networks: Networks) -> None:
    """Raise ModelError when two parts have sizes that contradict each other, as swapped folders have."""
    configs: list[Any] = [networks.prior.config, networks.decoder.config, networks.vqgan.config]
    prior, decoder, vqgan = configs
    image_encoder: Any = networks.image_encoder
    encoder = prior.c_in if image_encoder is None else image_encoder.config.c_latent
    pairs = (
        ("the prior's text width", prior.c_cond, "its text encoder's", networks.text_encoder.config.hidden_size),
        (
            "Stage B's text width",
            decoder.clip_embd,
            "its text encoder's",
            networks.decoder_text_encoder.config.hidden_size,
        ),
        ("the prior's channels", prior.c_in, "those that Stage B reads", decoder.effnet_embd),
        ("the prior's channels", prior.c_in, "the image encoder's", encoder),
        ("Stage B's channels", decoder.c_in, "Stage A's", vqgan.latent_channels),
    )
    for what, ours, other, theirs in pairs:
        if ours != theirs:
            raise ModelError(
                f"these networks do not belong together: {what} is {ours}, {other} {theirs}. Were two of the "
                f"folders swapped, or do they come from different versions?"
            )


def save_networks(networks: Networks, target: Path, dtype: str | None = None) -> None:
    """Write every part to `target` as safetensors, in `dtype` or in the type it has.

    diffusers' deprecated classes open `prior`, `decoder` and `vqgan`.
    """
    for field in fields(networks):
        value = getattr(networks, field.name)
        if isinstance(value, torch.nn.Module):
            save_part(value, target / field.name, dtype)
        elif value is not None:
            value.save_pretrained(target / field.name)


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of `wuerstchen.json`; {} for a published folder, which has none."""
    path = folder / SETTINGS_FILE
    return _read_json(path) if path.is_file() else {}
