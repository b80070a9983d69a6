"""MedSyn's model folders: `medisyn.json`, `base/`, `report_encoder/` and, where there is one, `superres/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medisyn.families.medsyn.networks import MedSynUNet
from medisyn.families.medsyn.report_encoder import save_encoder
from medisyn.nn.folders import FolderKind, in_dtype, open_part, save_part

__all__ = ["FOLDER", "open_unet", "save_part", "save_report_encoder"]

FOLDER = FolderKind("medisyn.json", family="medsyn", title="MedSyn")


def open_unet(folder: Path, dtype: str = "float32") -> MedSynUNet:
    """A network from its own folder, in eval mode on the CPU. Raises ModelError when weights are missing."""
    network: MedSynUNet = open_part(folder, MedSynUNet, dtype)
    return network


def save_report_encoder(encoder: Any, tokenizer: Any, target: Path, dtype: str | None = None) -> None:
    """Write the encoder and its tokenizer to `target`/report_encoder."""
    save_encoder(in_dtype(encoder, dtype), tokenizer, target / "report_encoder")
