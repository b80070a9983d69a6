"""Diffusers folders and hub ids: found, checked part by part, opened; and written again."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from medisyn.errors import ModelError, closest
from medisyn.families.stable_diffusion.config import GenerationDefaults
from medisyn.families.stable_diffusion.networks import Networks
from medisyn.nn.folders import quiet, refuse_pickles, written_whole
from medisyn.runs import write_json

SETTINGS_FILE = "medisyn.json"  # beside model_index.json; plain diffusers does not look at it

_PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
_XL_PARTS = ("vae", "unet", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
PARTS = {
    "StableDiffusionPipeline": _PARTS,
    "StableDiffusionInpaintPipeline": _PARTS,
    "StableDiffusionXLPipeline": _XL_PARTS,
    "StableDiffusionXLInpaintPipeline": _XL_PARTS,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STORED_DTYPES = {**DTYPES, "float16": torch.float16}
HUB_FILES = (
    "model_index.json",
    "*/*.json",
    "*/*.txt",
    "*/*.safetensors",
    "config.json",  # a repository that holds one part, such as an autoencoder
    "diffusion_pytorch_model.safetensors",
)
HUB_EXTRAS = ("*.fp16.*", "*.non_ema.*", "safety_checker/*", "feature_extractor/*", "*onnx*", "*flax*")
CONVERT = (
    "load the model with diffusers and `use_safetensors=False`, then `save_pretrained(folder, safe_serialization=True)`"
)


def looks_like_hub_id(name: str) -> bool:
    """Whether `name` has the form owner/name of a model on a hub."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None


def network_allowed() -> bool:
    """False when the user set MEDISYN_OFFLINE or HF_HUB_OFFLINE."""
    return not any(os.environ.get(name, "").lower() in ("1", "true", "yes") for name in OFFLINE)


OFFLINE = ("MEDISYN_OFFLINE", "HF_HUB_OFFLINE")


def fetch_from_hub(hub_id: str) -> Path:
    """The local folder of a hub id: from the cache, else downloaded (no pickles) when the network is allowed."""
    from huggingface_hub import snapshot_download

    online = network_allowed()
    try:
        folder = snapshot_download(
            hub_id,
            allow_patterns=[*HUB_FILES],
            ignore_patterns=[*HUB_EXTRAS],
            local_files_only=not online,
        )
    except Exception as error:  # the hub client has many; each of them means that the model is not here
        reason = f"the download failed ({type(error).__name__})" if online else "and the network is switched off"
        raise ModelError(
            f"model {hub_id!r} is not on this machine, {reason}. Download it once on a machine with network "
            f"(`hf download {hub_id}`), or give the path of its folder."
        ) from error
    return Path(folder)


def read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json`. Raises ModelError when the folder is no Stable Diffusion text-to-image model."""
    path = folder / "model_index.json"
    if not path.is_file():
        refuse_pickles(folder, CONVERT)
        raise ModelError(
            f"{folder.name}/ holds no model_index.json: it is not a diffusers folder. Give a folder that has one."
        )
    try:
        index = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder.name}/model_index.json is not readable JSON ({error})") from None
    name = str(index.get("_class_name"))
    if name not in PARTS:
        raise ModelError(
            f"{folder.name}/ is a {name} model; allowed: {', '.join(PARTS)}.{closest(name, PARTS)} "
            f"Give a Stable Diffusion 1, 2 or XL folder, text-to-image or inpainting."
        )
    return index


def check_parts(folder: Path, index: Mapping[str, Any]) -> None:
    """Raise ModelError that names the first part that is missing, has no weights, or has only pickles."""
    for part in PARTS[index["_class_name"]]:
        place = folder / part
        settings = {"scheduler": "scheduler_config.json"}.get(part, "config.json")
        if part.startswith("tokenizer"):
            settings = "tokenizer_config.json"
        if not (place / settings).is_file():
            raise ModelError(
                f"{folder.name}/ lacks the part {part}: {part}/{settings} is missing. Fetch the model again."
            )
        if part == "scheduler" or part.startswith("tokenizer"):
            continue
        refuse_pickles(place, CONVERT)
        if not any(place.glob("*.safetensors")):
            raise ModelError(f"{folder.name}/{part} holds no .safetensors weights. Fetch the model again.")


def open_networks(folder: Path, dtype: str) -> Networks:
    """All parts of a diffusers folder, in eval mode on the CPU; the autoencoder too is held in `dtype`."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    index = read_index(folder)
    check_parts(folder, index)
    xl = PARTS[index["_class_name"]] is _XL_PARTS
    encoders = [_open_part(folder / "text_encoder", CLIPTextModel, dtype)]
    tokenizers = [CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)]
    if xl:
        encoders.append(_open_part(folder / "text_encoder_2", CLIPTextModelWithProjection, dtype))
        tokenizers.append(CLIPTokenizer.from_pretrained(folder / "tokenizer_2", local_files_only=True))
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    scheduler["_class_name"] = index["scheduler"][1]  # the index decides, as in diffusers
    return Networks(
        vae=open_autoencoder(folder / "vae", dtype),
        unet=_open_part(folder / "unet", UNet2DConditionModel, dtype),
        text_encoders=tuple(encoders),
        tokenizers=tuple(tokenizers),
        # Old Stable Diffusion folders carry two values that diffusers' pipeline corrects when it opens them.
        scheduler_config=scheduler if xl else {**scheduler, "steps_offset": 1, "clip_sample": False},
        zero_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", xl)),
    )


def open_autoencoder(folder: Path, dtype: str) -> Any:
    """An AutoencoderKL from its own folder (config.json and .safetensors)."""
    from diffusers import AutoencoderKL

    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder.name}/ holds no config.json: it is not an autoencoder's folder.")
    refuse_pickles(folder, CONVERT)
    return _open_part(folder, AutoencoderKL, dtype)


def _open_part(folder: Path, kind: Any, dtype: str) -> Any:
    """One network. Raises ModelError when its files are damaged, or lack a weight that would stay random."""
    argument = "torch_dtype" if kind.__module__.startswith("diffusers") else "dtype"
    options = {argument: _dtype(dtype, DTYPES), "use_safetensors": True, "local_files_only": True, **_variant(folder)}
    try:
        with quiet():
            network, report = kind.from_pretrained(folder, output_loading_info=True, **options)
    except Exception as error:  # each loader has its own; all mean that this part's files do not fit together
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"the part {folder.name} cannot be opened: {reason}. Fetch the model again.") from error
    missing = sorted(str(name) for name in report["missing_keys"])
    if missing:
        raise ModelError(
            f"the part {folder.name} lacks {len(missing)} of its weights, the first is {missing[0]}. "
            f"Fetch the model again."
        )
    return network.eval()


def _dtype(name: str, allowed: Mapping[str, torch.dtype]) -> torch.dtype:
    if name not in allowed:
        raise ModelError(f"dtype {name!r} is not offered, allowed: {', '.join(allowed)}.{closest(name, allowed)}")
    return allowed[name]


def _variant(part: Path) -> dict[str, str]:
    """Diffusers' variant name when only a variant of the weights is there, as in model.fp16.safetensors."""
    variants = set()
    for file in part.glob("*.safetensors"):
        name = file.name.removesuffix(".safetensors").split("-of-")[0].split("-")[0]
        variants.add(name.partition(".")[2])
    return {} if "" in variants else {"variant": min(variants)}


def cast(networks: Networks, dtype: str) -> None:
    """Hold all networks in `dtype`."""
    for module in networks.modules():
        module.to(_dtype(dtype, DTYPES))


def use_size(networks: Networks, height: int, width: int) -> None:
    """Make this the size (pixels) of requests that leave it open. Raises ModelError for one that cannot be made."""
    factor = networks.factor
    if height % factor or width % factor:
        raise ModelError(f"size {height}x{width} does not divide by the autoencoder's factor {factor}")
    rows, columns = height // factor, width // factor
    networks.unet.register_to_config(sample_size=rows if rows == columns else (rows, columns))


def read_settings(folder: Path) -> dict[str, Any]:
    """`medisyn.json`: generation defaults and, for an adapter, its base. {} when a folder has none."""
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{folder.name}/{SETTINGS_FILE} is not readable JSON ({error}). Delete it to use defaults."
        ) from None
    return dict(settings)


def write_settings(folder: Path, **settings: Any) -> None:
    write_json(folder / SETTINGS_FILE, settings)


def read_defaults(folder: Path) -> GenerationDefaults:
    """The generation defaults of a model folder. Raises ModelError for a key that is none of them."""
    given = read_settings(folder).get("defaults", {})
    names = [field.name for field in fields(GenerationDefaults)]
    for name in given:
        if name not in names:
            raise ModelError(
                f"{folder.name}/{SETTINGS_FILE}: {name!r} is no generation default, allowed: {', '.join(names)}."
                f"{closest(name, names)}"
            )
    return GenerationDefaults(**given)


def model_folder(target: Path) -> contextlib.AbstractContextManager[Path]:
    """A folder that replaces `target` whole when the block ends well. Refuses to replace what is not a model."""
    return written_whole(target, SETTINGS_FILE, "MediSyn")


def pipeline_of(networks: Networks, scheduler: Any) -> Any:
    """The plain diffusers pipeline on the same networks (nothing is copied)."""
    import diffusers

    parts: dict[str, Any] = {
        "vae": networks.vae,
        "unet": networks.unet,
        "scheduler": scheduler,
        "text_encoder": networks.text_encoders[0],
        "tokenizer": networks.tokenizers[0],
    }
    if networks.is_xl:
        xl = "StableDiffusionXLInpaintPipeline" if networks.reads_mask else "StableDiffusionXLPipeline"
        return getattr(diffusers, xl)(
            **parts,
            text_encoder_2=networks.text_encoders[1],
            tokenizer_2=networks.tokenizers[1],
            force_zeros_for_empty_prompt=networks.zero_empty_prompt,
            add_watermarker=False,
        )
    kind = diffusers.StableDiffusionInpaintPipeline if networks.reads_mask else diffusers.StableDiffusionPipeline
    return kind(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def save_networks(networks: Networks, scheduler: Any, folder: Path, dtype: str | None) -> None:
    """Write a folder that `DiffusionPipeline.from_pretrained` opens; weights in `dtype`, or in the type they have."""
    if dtype is not None:
        torch_dtype = _dtype(dtype, STORED_DTYPES)
        networks = Networks(
            vae=copy.deepcopy(networks.vae).to(torch_dtype),
            unet=copy.deepcopy(networks.unet).to(torch_dtype),
            text_encoders=tuple(copy.deepcopy(encoder).to(torch_dtype) for encoder in networks.text_encoders),
            tokenizers=networks.tokenizers,
            scheduler_config=networks.scheduler_config,
            zero_empty_prompt=networks.zero_empty_prompt,
        )
    with quiet():
        pipeline_of(networks, scheduler).save_pretrained(folder, safe_serialization=True)
    for config in folder.glob("*/config.json"):  # diffusers notes where a part was opened: a path of this machine
        content = json.loads(config.read_text())
        if content.pop("_name_or_path", None) is not None:
            write_json(config, content)
