"""HiGen's model folders on disk: found, checked part by part, opened; and written again.

A folder holds `higen.json` (settings, grid, defaults), `unet/`, `vae/`, `text_encoder/` and `tokenizer/`.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from medisyn.errors import ModelError, closest
from medisyn.runs import atomic_folder, write_json

SETTINGS_FILE = "higen.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMPUTE_DTYPES = ("float32", "bfloat16")


def is_higen(folder: Path) -> bool:
    """Whether a folder says that it is a model of this family."""
    with contextlib.suppress(ModelError):
        read_settings(folder)
        return True
    return False


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of `higen.json`. Raises ModelError when the folder is no HiGen model."""
    path = folder / SETTINGS_FILE
    if not path.is_file():
        raise ModelError(f"{folder.name}/ holds no {SETTINGS_FILE}: it is not a HiGen model. Give a folder that has.")
    try:
        settings = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder.name}/{SETTINGS_FILE} is not readable JSON ({error})") from None
    if not isinstance(settings, dict) or settings.get("family") != "higen":
        raise ModelError(f"{folder.name}/ is not a HiGen model: its {SETTINGS_FILE} does not say family higen")
    return settings


def write_settings(folder: Path, **settings: Any) -> None:
    write_json(folder / SETTINGS_FILE, {"family": "higen", **settings})


def open_part(folder: Path, kind: Any, dtype: str = "float32") -> Any:
    """One network from its own folder, in eval mode on the CPU. Raises ModelError when a weight is missing."""
    if dtype not in COMPUTE_DTYPES:
        raise ModelError(
            f"dtype {dtype!r} is not offered, allowed: {', '.join(COMPUTE_DTYPES)}.{closest(dtype, COMPUTE_DTYPES)}"
        )
    check_part(folder, "config.json")
    argument = "dtype" if kind.__module__.startswith("transformers") else "torch_dtype"
    options = {argument: DTYPES[dtype], "use_safetensors": True, "local_files_only": True}
    try:
        with quiet():
            network, report = kind.from_pretrained(folder, output_loading_info=True, **options)
    except Exception as error:  # the loaders have many; each means that the part's files do not fit together
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"the part {folder.name} cannot be opened: {reason}") from error
    missing = sorted(str(name) for name in report["missing_keys"])
    if missing:
        raise ModelError(f"the part {folder.name} lacks {len(missing)} of its weights, the first is {missing[0]}")
    return network.eval()


def open_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    check_part(folder, "tokenizer_config.json")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def check_part(folder: Path, file: str) -> None:
    """Raise ModelError when a part of a model folder is not there."""
    if not (folder / file).is_file():
        raise ModelError(f"{folder.parent.name}/ lacks the part {folder.name}: {folder.name}/{file} is missing")


def save_part(network: Any, folder: Path, dtype: str | None) -> None:
    """Write one network as safetensors in `dtype`; None keeps the type it has. Its config names no path."""
    if dtype is not None:
        if dtype not in DTYPES:
            raise ModelError(f"dtype {dtype!r} is not offered, allowed: {', '.join(DTYPES)}.{closest(dtype, DTYPES)}")
        network = copy.deepcopy(network).to(DTYPES[dtype])
    with quiet():
        network.save_pretrained(folder, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    if config.pop("_name_or_path", None) is not None:
        write_json(folder / "config.json", config)


@contextlib.contextmanager
def model_folder(target: Path) -> Iterator[Path]:
    """A folder that replaces `target` whole when the block ends well. Refuses to replace what is not a model."""
    if target.exists():
        names = [file.name for file in target.iterdir()] if target.is_dir() else [target.name]
        if names and SETTINGS_FILE not in names:
            raise ModelError(
                f"{target.name}/ holds files that are no HiGen model ({', '.join(sorted(names)[:3])}); they would be "
                f"lost. Save to another folder."
            )
    with atomic_folder(target) as temporary:
        yield temporary


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers and diffusers while a part is read or written; it takes a moment only."""
    import diffusers.utils.logging
    import transformers.utils.logging

    shown = [log for log in (diffusers.utils.logging, transformers.utils.logging) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()
