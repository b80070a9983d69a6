"""Model folders of our own families on disk: settings as JSON, each network in a folder of its own, written whole.

A folder holds `<settings file>` that names the family, and one folder per part (config.json and safetensors).
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medisyn.errors import ModelError, closest
from medisyn.runs import atomic_folder, write_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # of stored weights
COMPUTE_DTYPES = ("float32", "bfloat16")
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")


@dataclass(frozen=True)
class FolderKind:
    """What one family's folders are called: the settings file, the family it names, and the name for a person."""

    settings_file: str
    family: str
    title: str

    def holds(self, folder: Path) -> bool:
        """Whether a folder says that it is a model of this family."""
        with contextlib.suppress(ModelError):
            self.read_settings(folder)
            return True
        return False

    def read_settings(self, folder: Path) -> dict[str, Any]:
        """The content of the settings file. Raises ModelError when the folder is no model of this family."""
        path, file = folder / self.settings_file, self.settings_file
        if not path.is_file():
            raise ModelError(f"{folder.name}/ holds no {file}: it is not a {self.title} model. Give a folder that has.")
        try:
            settings = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{folder.name}/{file} is not readable JSON ({error})") from None
        if not isinstance(settings, dict) or settings.get("family") != self.family:
            raise ModelError(
                f"{folder.name}/ is not a {self.title} model: its {file} does not say family {self.family}"
            )
        return settings

    def write_settings(self, folder: Path, **settings: Any) -> None:
        write_json(folder / self.settings_file, {"family": self.family, **settings})

    def written_whole(self, target: Path) -> contextlib.AbstractContextManager[Path]:
        """`written_whole` for this kind."""
        return written_whole(target, self.settings_file, self.title)


@contextlib.contextmanager
def written_whole(target: Path, settings_file: str, title: str) -> Iterator[Path]:
    """A folder that replaces `target` when the block ends well. Refuses to replace what is not such a model."""
    if target.exists():
        names = [file.name for file in target.iterdir()] if target.is_dir() else [target.name]
        if names and settings_file not in names:
            raise ModelError(
                f"{target.name}/ holds files that are no {title} model ({', '.join(sorted(names)[:3])}); "
                f"they would be lost. Save to another folder."
            )
    with atomic_folder(target) as temporary:
        yield temporary


def open_part(folder: Path, kind: Any, dtype: str = "float32") -> Any:
    """A network of the class `kind` (of diffusers or transformers) from its own folder, in eval mode on the CPU.

    Raises ModelError when a file or a weight is missing, or they do not fit together.
    """
    if dtype not in COMPUTE_DTYPES:
        raise ModelError(
            f"dtype {dtype!r} is not offered, allowed: {', '.join(COMPUTE_DTYPES)}.{closest(dtype, COMPUTE_DTYPES)}"
        )
    check_part(folder, "config.json")
    of_transformers = kind.__module__.startswith("transformers")
    options = (
        {"dtype": DTYPES[dtype]} if of_transformers else {"torch_dtype": DTYPES[dtype], "low_cpu_mem_usage": False}
    )
    try:
        with quiet():
            network, report = kind.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
            )
    except Exception as error:  # the loaders have many; each means that the part's files do not fit together
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"the part {folder.name} cannot be opened: {reason}") from error
    missing = sorted(str(name) for name in report["missing_keys"])
    if missing:
        raise ModelError(f"the part {folder.name} lacks {len(missing)} of its weights, the first is {missing[0]}")
    return network.eval()


def check_part(folder: Path, file: str) -> None:
    """Raise ModelError when a part of a model folder is not there."""
    if not (folder / file).is_file():
        raise ModelError(f"{folder.parent.name}/ lacks the part {folder.name}: {folder.name}/{file} is missing")


def refuse_pickles(folder: Path, convert: str) -> None:
    """Raise ModelError when weights lie in `folder` as pickles alone; `convert` is what the message says to do."""
    if any(folder.glob("*.safetensors")):
        return
    for file in sorted(file for pattern in PICKLES for file in folder.glob(pattern)):
        raise ModelError(
            f"{folder.name}/{file.name} is a pickle, which can run code when it is opened, and there is no "
            f".safetensors beside it. Convert it once where you trust it: {convert}."
        )


def save_part(network: Any, folder: Path, dtype: str | None = None) -> None:
    """Write one network as config.json and safetensors. Its config names no path of this machine."""
    with quiet():
        in_dtype(network, dtype).save_pretrained(folder, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    if config.pop("_name_or_path", None) is not None:
        write_json(folder / "config.json", config)


def in_dtype(network: Any, dtype: str | None) -> Any:
    """The network, or a copy with weights of another type; None keeps the type it has."""
    if dtype is None:
        return network
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not offered, allowed: {', '.join(DTYPES)}.{closest(dtype, DTYPES)}")
    # Not the `to` of diffusers: it warns of parts to be kept in float32 even where there are none.
    return torch.nn.Module.to(copy.deepcopy(network), DTYPES[dtype])


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
