"""Weight files that others published: their names, where they come from, and how a copy is known to be right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medisyn.errors import ModelError
from medisyn.runs import file_sha256


@dataclass(frozen=True)
class Published:
    """One file. `sha256` is whole, or empty where no trusted record of it was at hand; then any file is taken."""

    what: str
    file: str
    source: str
    sha256: str


I3D = Published(
    "i3d",
    "i3d_torchscript.pt",
    "the TorchScript port of the Kinetics-400 I3D that the StyleGAN-V and fvd-comparison repositories link to",
    "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
)
BIOMEDCLIP = Published(
    "biomedclip",
    "open_clip_pytorch_model.bin",
    "hub model microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
    "",
)
MEDICALNET = Published("med3d", "resnet_50.pth", "Tencent/MedicalNet, pretrained models (not resnet_50_23dataset)", "")


def digest_of(published: Published, path: Path | None) -> str:
    """The sha256 of the file at `path`. ModelError when none was given or it is not there: nothing stands in for it."""
    if path is None or not path.is_file():
        problem = "no weight file was given" if path is None else f"{path.name} does not exist"
        known = f", sha256 {published.sha256}" if published.sha256 else ""
        raise ModelError(
            f"{published.what}: {problem}. Download {published.file}{known}, from {published.source}, and give its "
            f"path with --weights."
        )
    return file_sha256(path)


def name_of(published: Published, digest: str) -> str:
    """What stands for the weights in an extractor's id: the start of their sha256, and whether they are the published.

    "other" marks a file that is not the one we know, "unlisted" one for which no sha256 is on record.
    """
    if not published.sha256:
        return f"{digest[:8]}-unlisted"
    return digest[:8] if digest == published.sha256 else f"{digest[:8]}-other"
