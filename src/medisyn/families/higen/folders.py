"""HiGen's model folders: `higen.json` (settings, grid, defaults), `unet/`, `vae/`, `text_encoder/` and `tokenizer/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medisyn.nn.folders import FolderKind, check_part, open_part, save_part

__all__ = ["FOLDER", "check_part", "open_part", "open_tokenizer", "save_part"]

FOLDER = FolderKind("higen.json", family="higen", title="HiGen")


def open_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    check_part(folder, "tokenizer_config.json")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
