"""MedSyn's model folders on disk: found, checked part by part, opened; and written again."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from medisyn.errors import ModelError
from medisyn.families.medsyn.networks import MedSynUNet
from medisyn.families.medsyn.report_encoder import quiet, save_encoder
from medisyn.runs import atomic_folder, write_json

SETTINGS_FILE = "medisyn.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMPUTE_DTYPES = ("float32", "bfloat16")


def is_medsyn(folder: Path) -> bool:
    """Whether a folder says that it is a model of this family."""
    with contextlib.suppress(ModelError):
        read_settings(folder)
        return True
    return False


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of `medisyn.json`. Raises ModelError when the folder is no MedSyn model."""
    path = folder / SETTINGS_FILE
    if not path.is_file():
        raise ModelError(f"{folder.name}/ holds no {SETTINGS_FILE}: it is not a MedSyn model. Give a folder that has.")
    try:
        settings = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder.name}/{SETTINGS_FILE} is not readable JSON ({error})") from None
    if not isinstance(settings, dict) or settings.get("family") != "medsyn":
        raise ModelError(f"{folder.name}/ is not a MedSyn model: its {SETTINGS_FILE} does not say family medsyn")
    return settings


def write_settings(folder: Path, **settings: Any) -> None:
    write_json(folder / SETTINGS_FILE, {"family": "medsyn", **settings})


def open_unet(folder: Path, dtype: str = "float32") -> MedSynUNet:
    """A network from its own folder, in eval mode on the CPU. Raises ModelError when weights are missing."""
    if dtype not in COMPUTE_DTYPES:
        raise ModelError(f"dtype {dtype!r} is not offered, allowed: {', '.join(COMPUTE_DTYPES)}")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder.parent.name}/ lacks the part {folder.name}: {folder.name}/config.json is missing")
    try:
        with quiet():
            network, report = MedSynUNet.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                low_cpu_mem_usage=False,
                torch_dtype=DTYPES[dtype],
            )
    except Exception as error:  # the loader has many; each means that the part's files do not fit together
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"the part {folder.name} cannot be opened: {reason}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"the part {folder.name} lacks {len(missing)} of its weights, the first is {missing[0]}")
    return network.eval()


def save_unet(network: MedSynUNet, folder: Path, dtype: str | None = None) -> None:
    """Write one network as safetensors; `dtype` None keeps the type it has."""
    with quiet():
        _stored(network, dtype).save_pretrained(folder, safe_serialization=True)


def save_report_encoder(encoder: Any, tokenizer: Any, target: Path, dtype: str | None = None) -> None:
    """Write the encoder and its tokenizer to `target`/report_encoder."""
    save_encoder(_stored(encoder, dtype), tokenizer, target / "report_encoder")


def _stored(network: Any, dtype: str | None) -> Any:
    if dtype is None:
        return network
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not offered, allowed: {', '.join(DTYPES)}")
    return copy.deepcopy(network).to(DTYPES[dtype])


@contextlib.contextmanager
def model_folder(target: Path) -> Iterator[Path]:
    """A folder that replaces `target` whole when the block ends well. Refuses to replace what is not a model."""
    if target.exists():
        names = [file.name for file in target.iterdir()] if target.is_dir() else [target.name]
        if names and SETTINGS_FILE not in names:
            raise ModelError(
                f"{target.name}/ holds files that are no MediSyn model ({', '.join(sorted(names)[:3])}); "
                f"they would be lost. Save to another folder."
            )
    with atomic_folder(target) as temporary:
        yield temporary
