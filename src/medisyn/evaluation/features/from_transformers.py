"""A vision network from a transformers folder or hub id: safetensors only, and every weight must be there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from medisyn.errors import InputError, ModelError
from medisyn.runs import file_sha256


def load_network(network_class: Any, source: str, what: str, example: str) -> tuple[Any, str]:
    """The network, and the name that goes into the extractor's id: start of the weights' sha256, or the hub id.

    A hub id is the one case that may reach the network (not with MEDISYN_OFFLINE). Raises InputError without a source,
    ModelError for anything that cannot be loaded whole.
    """
    from safetensors import SafetensorError

    if not source:
        raise InputError(
            f"extractor {what} needs its weights: {what}:FOLDER with a transformers {what} model (config.json and "
            f"model.safetensors), or a hub id such as {what}:{example}"
        )
    folder = Path(source)
    for name in ("config.json", "model.safetensors"):
        if folder.is_dir() and not (folder / name).is_file():
            raise ModelError(
                f"{what}: {folder.name}/ holds no {name}; weights as a pickle are not read. Convert them once with "
                f"transformers: `AutoModel.from_pretrained(FOLDER).save_pretrained(OTHER)`, and give the other folder."
            )
    if not folder.is_dir() and source.count("/") != 1:
        raise ModelError(f"{what}: {folder.name!r} is neither a folder nor a hub id of the form owner/name")
    offline = os.environ.get("MEDISYN_OFFLINE", "").lower() in ("1", "true", "yes")
    try:
        loaded: Any = network_class.from_pretrained(
            source, use_safetensors=True, output_loading_info=True, local_files_only=folder.is_dir() or offline
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{what}: the model cannot be loaded ({str(error).splitlines()[0]})") from None
    network, loading = loaded
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ModelError(f"{what}: {len(missing)} weights are not in the file, for instance {missing[0]}")
    name = file_sha256(folder / "model.safetensors")[:8] if folder.is_dir() else source
    return network.float().eval().requires_grad_(False), name
