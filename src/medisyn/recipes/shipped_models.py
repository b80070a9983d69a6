"""The models that come inside the package, and what each of them says of itself."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medisyn.errors import InputError, closest

FOLDER = Path(__file__).resolve().parents[1] / "starter"
MAKES = {
    "starter-image": "2D medical images, 128 x 128 pixels",
    "starter-ct": "chest CT with lobes, airways and vessels from a report, 64 x 64 x 64 voxels",
    "starter-video": "beating-heart ultrasound clips, 16 frames of 64 x 112 pixels",
}
MARKS = ("model_index.json", "medisyn.json", "higen.json")  # a model's folder holds one of these


@dataclass(frozen=True)
class ShippedModel:
    """A starter model. `megabytes` is the size of its weights; `present` is False in a build without weights."""

    name: str
    makes: str
    present: bool
    megabytes: float
    card: str

    @property
    def state(self) -> str:
        """Its size, or how to get it."""
        return (
            f"{self.megabytes} MB" if self.present else f"not in this build: make it with `medisyn train {self.name}`"
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def shipped_models() -> list[ShippedModel]:
    """Every starter model, whether or not its weights are in this build."""
    return [_describe(name) for name in MAKES]


def shipped_model(name: str) -> ShippedModel:
    """One starter model. Raises InputError for a name that is none."""
    if name not in MAKES:
        raise InputError(
            f"{name!r} is not a model that comes with MediSyn; these do: {', '.join(MAKES)}.{closest(name, MAKES)}"
        )
    return _describe(name)


def is_model(folder: Path) -> bool:
    """Whether a folder holds a file by which models are known."""
    return any((folder / mark).is_file() for mark in MARKS)


def card_of(name: str) -> str:
    """The model card (README.md, without its YAML header) of a shipped model or a model folder; "" when it has none."""
    folder = FOLDER / name if name in MAKES else Path(name)
    path = folder / "README.md"
    if not path.is_file():
        return ""
    return re.sub(r"\A---\n.*?\n---\n", "", path.read_text(encoding="utf-8"), flags=re.DOTALL).strip()


def _describe(name: str) -> ShippedModel:
    folder = FOLDER / name
    weights = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    present = is_model(folder) and weights > 0
    return ShippedModel(name, MAKES[name], present, round(weights / 1e6, 1), card_of(name))
