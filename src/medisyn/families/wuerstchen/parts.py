"""One part of a Würstchen model: its weights read from safetensors, compared with the network name by name, opened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from medisyn.errors import ConfigError, ModelError
from medisyn.families.wuerstchen.config import DecoderConfig, ImageEncoderConfig, PriorConfig, VQGANConfig
from medisyn.families.wuerstchen.decoder import WuerstchenDecoder
from medisyn.families.wuerstchen.effnet import EfficientNetEncoder
from medisyn.families.wuerstchen.prior import WuerstchenPrior
from medisyn.families.wuerstchen.vqgan import PaellaVQ
from medisyn.nn.folders import quiet, refuse_pickles

Config = PriorConfig | DecoderConfig | VQGANConfig | ImageEncoderConfig
State = Mapping[str, torch.Tensor]

# Part -> its config, its class, and the class names that its config.json may state: diffusers' and ours.
KINDS: dict[str, tuple[type[Config], Any, tuple[str, ...]]] = {
    "prior": (PriorConfig, WuerstchenPrior, ("WuerstchenPrior",)),
    "decoder": (DecoderConfig, WuerstchenDecoder, ("WuerstchenDiffNeXt", "WuerstchenDecoder")),
    "vqgan": (VQGANConfig, PaellaVQ, ("PaellaVQModel", "PaellaVQ")),
    "image_encoder": (ImageEncoderConfig, EfficientNetEncoder, ("EfficientNetEncoder",)),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CONVERT = "`medisyn convert wuerstchen`"  # of the raw checkpoints, which are pickles
CASCADE_NAMES = ("clip_txt_mapper", "clip_txt_pooled_mapper", "clip_img_mapper", "effnet_mapper.", "pixels_mapper")
SHOWN = 5  # names in a message


def open_network(part: str, folder: Path, dtype: str = "float32") -> Any:
    """The network of `part` (a key of KINDS) from its folder, in eval mode on the CPU.

    Keys of config.json that the network does not know are passed over, as diffusers does: its weights decide. Raises
    ModelError for a folder without safetensors, another class, and every weight that is missing, left over or of
    another shape.
    """
    torch_dtype = _dtype(dtype)
    kind, _, names = KINDS[part]
    given = _read_config(part, folder)
    name = str(given.get("_class_name", names[0]))
    if name.startswith("StableCascade"):
        raise ModelError(
            f"the part {part} is a network of Stable Cascade ({name}), not of Würstchen. Give Würstchen v2, published "
            f"as warp-ai/wuerstchen-prior and warp-ai/wuerstchen."
        )
    if name not in names:
        raise ModelError(f"the part {part} is a {name}, allowed: {', '.join(names)}. Were two folders swapped?")
    known = {field.name for field in fields(kind)}
    try:
        config = kind(**{key: _frozen(value) for key, value in given.items() if key in known})
    except (ConfigError, TypeError) as error:
        raise ModelError(f"the part {part}: its config.json does not describe a network: {error}") from error
    return load_network(part, config, read_weights(part, folder), torch_dtype)


def load_network(part: str, config: Config, state: State, dtype: torch.dtype = torch.float32) -> Any:
    """The network of `part` with the weights of `state`, which must fit one by one."""
    network_class = KINDS[part][1]
    with torch.device("meta"):
        network = network_class(**asdict(config))
    check_weights(part, state, network.state_dict())
    network.load_state_dict(
        {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}, assign=True
    )
    return network.eval()


def check_weights(part: str, state: State, needed: State) -> None:
    """Raise ModelError that names what `state` lacks, what it has too much, and what has another shape."""
    refuse_cascade(part, state)
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in needed.items()
        if name in state and state[name].shape != value.shape
    ]
    faults = {
        "lacks": [name for name in needed if name not in state],
        "has too much": [name for name in state if name not in needed],
        "has in another shape": shapes,
    }
    told = [f"{what} {len(names)} weights ({_some(names)})" for what, names in faults.items() if names]
    if told:
        raise ModelError(f"the part {part} {', and '.join(told)}. Nothing is filled in; fetch the model again.")


def refuse_cascade(part: str, state: State) -> None:
    """Raise ModelError when the names of the weights are those of Stable Cascade."""
    if any(name.startswith(CASCADE_NAMES) for name in state):
        raise ModelError(
            f"the part {part} holds weights of Stable Cascade, the successor of Würstchen. Give Würstchen v2, "
            f"published as warp-ai/wuerstchen-prior and warp-ai/wuerstchen."
        )


def read_weights(part: str, folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a folder's safetensors, of one variant: the plain files, or "fp16" where only those are there."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        refuse_pickles(folder, CONVERT)
        raise ModelError(f"the part {part}: {folder.name}/ holds no .safetensors weights. Fetch the model again.")
    variant = min(_variant(file) for file in files)
    state: dict[str, torch.Tensor] = {}
    for file in files:
        if _variant(file) == variant:
            try:
                state |= load_file(file)
            except (SafetensorError, OSError) as error:
                raise ModelError(f"the part {part}: {file.name} is damaged ({error}). Fetch the model again.") from None
    return state


def open_text_encoder(folder: Path, dtype: str = "float32") -> Any:
    """A CLIP text encoder, in eval mode on the CPU, from its folder or from that of a whole CLIP."""
    from transformers import CLIPTextModel

    torch_dtype = _dtype(dtype)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder.parent.name}/ lacks the part {folder.name}: {folder.name}/config.json is missing")
    refuse_pickles(folder, CONVERT)
    try:
        with quiet():
            opened: Any = CLIPTextModel.from_pretrained(
                folder, dtype=torch_dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        encoder, report = opened
    except Exception as error:  # the loader has many; each means that the part's files do not fit together
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"the part {folder.name} cannot be opened: {reason}. Fetch the model again.") from error
    missing = sorted(str(name) for name in report["missing_keys"])
    if missing:
        raise ModelError(f"the part {folder.name} lacks {len(missing)} weights ({_some(missing)}). Fetch it again.")
    return encoder.eval()


def open_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer from its folder (tokenizer.json, or vocab.json and merges.txt)."""
    from transformers import CLIPTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ModelError(
            f"{folder.parent.name}/ lacks the part {folder.name}: it holds no tokenizer.json or vocab.json"
        )
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _read_config(part: str, folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        if folder.is_dir():
            refuse_pickles(folder, CONVERT)
        raise ModelError(f"{folder.parent.name}/ lacks the part {part}: {folder.name}/config.json is missing")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"the part {part}: config.json is not readable JSON ({error})") from None
    return dict(content)


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ModelError(f"dtype {name!r} is not offered, allowed: {', '.join(DTYPES)}")
    return DTYPES[name]


def _frozen(value: Any) -> Any:
    return tuple(_frozen(part) for part in value) if isinstance(value, list) else value


def _variant(file: Path) -> str:
    """ "" for model.safetensors and its numbered pieces, "fp16" for model.fp16.safetensors."""
    return file.name.removesuffix(".safetensors").split("-")[0].partition(".")[2]


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:SHOWN])}{' and more' if len(names) > SHOWN else ''}"
