"""From a name to a model that generates: shipped models, run folders, diffusers folders, adapters and hub ids.

The only place that knows which family opens which folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medisyn.errors import ConfigError, ModelError, closest
from medisyn.families.base import Family
from medisyn.recipes.shipped_models import FOLDER, MAKES, MARKS, is_model
from medisyn.runs import file_sha256
from medisyn.types import Request

if TYPE_CHECKING:
    from medisyn.families.medsyn.cascade import MedSyn

HIGEN_SOLVER = "ddim"


@dataclass(frozen=True)
class ModelPlace:
    """Where a model lies: its diffusers folder, an adapter (LoRA) folder on top where there is one, learnt tokens.

    `name` is what opens it again: a shipped name, a hub id or an absolute path. `id` names it without a path.
    """

    name: str
    id: str
    folder: Path
    adapter: Path | None = None
    embeddings: tuple[Path, ...] = ()  # folders of tokens learnt by textual inversion


@dataclass(frozen=True)
class OpenedModel:
    """A model ready to sample. `digest` is the sha256 over its weight files."""

    family: Family
    id: str
    digest: str
    solver: str
    resolve: Callable[[Request], Request]  # fills in size, steps and guidance
    lost_words: Callable[[str], str]  # words beyond the text encoder's window, "" when none
    known_tokens: Callable[[], Collection[str]] = list  # words learnt by textual inversion, such as "<prostate-mri>"
    volumes: MedSyn | None = None  # the family once more, where it makes CT volumes with masks
    clips: Family | None = None  # the family once more, where it makes clips


def open_model(name: str, *, device: str = "cpu", dtype: str = "float32", solver: str | None = None) -> OpenedModel:
    """Open a model to sample with. `name`: see find_model; `dtype`: "float32" or "bfloat16"; `solver`: None is its own.

    Raises ModelError when it is not there, incomplete or of a kind we refuse; ConfigError for an unknown solver.
    """
    place = find_model(name)
    from medisyn.families.wuerstchen.layouts import is_wuerstchen

    if is_wuerstchen(place.folder):
        return _open_wuerstchen(place, device, dtype, solver)
    if not (place.folder / "model_index.json").is_file():
        from medisyn.families.medsyn.folders import FOLDER as MEDSYN

        if MEDSYN.holds(place.folder):
            return _open_medsyn(place, device, dtype, solver)
        if (place.folder / "higen.json").is_file():
            return _open_higen(place, device, dtype, solver)
    from medisyn.families.stable_diffusion.model import StableDiffusion

    family = StableDiffusion.from_folder(
        place.folder,
        device=device,
        dtype=dtype,
        solver=solver,
        adapter=place.adapter,
        embeddings=place.embeddings,
        source=place.name,
    )
    return OpenedModel(
        family,
        place.id,
        weights_digest(place),
        family.solver,
        resolve=family.resolve,
        lost_words=family.lost_words,
        known_tokens=family.known_tokens,
    )


def _open_wuerstchen(place: ModelPlace, device: str, dtype: str, solver: str | None) -> OpenedModel:
    """MediSyn v1's kind of image model: three stages, of which the first reads the prompt at the request's guidance."""
    from medisyn.families.wuerstchen.model import Wuerstchen

    family = Wuerstchen.from_folder(place.folder, device=device, dtype=dtype, solver=solver)
    return OpenedModel(
        family,
        place.id,
        weights_digest(place),
        family.defaults.solver,
        resolve=family.resolve,
        lost_words=family.lost_words,
    )


def _open_medsyn(place: ModelPlace, device: str, dtype: str, solver: str | None) -> OpenedModel:
    """A 3D CT model: base model, report encoder and, where there is one, super-resolution."""
    from medisyn.families.medsyn.cascade import MedSyn

    family = MedSyn.from_folder(place.folder, device=device, dtype=dtype)
    if solver is not None:
        family = family.with_defaults(solver=solver)
    return OpenedModel(
        family,
        place.id,
        weights_digest(place),
        family.base.defaults.solver,
        resolve=family.resolve,
        lost_words=family.lost_words,
        volumes=family,
    )


def _open_higen(place: ModelPlace, device: str, dtype: str, solver: str | None) -> OpenedModel:
    """A model of clips. Raises ConfigError for a solver: it is sampled with DDIM alone."""
    from medisyn.families.higen.model import HiGen

    if solver not in (None, HIGEN_SOLVER):
        raise ConfigError(f"solver {solver!r} does not apply: {place.id} makes clips, with {HIGEN_SOLVER} alone")
    family = HiGen.from_folder(place.folder, device=device, dtype=dtype)
    return OpenedModel(
        family,
        place.id,
        weights_digest(place),
        HIGEN_SOLVER,
        resolve=family.resolve,
        lost_words=family.lost_words,
        clips=family,
    )


def find_model(name: str) -> ModelPlace:
    """The place of a model by its name.

    In this order: a shipped model ("starter-image"), a folder (of a run, diffusers, or an adapter with its base on
    record), a hub id "owner/name" (from the local cache; downloaded only when the network is allowed).
    """
    from medisyn.families.stable_diffusion import load

    if name in MAKES:
        if not is_model(FOLDER / name):
            raise ModelError(f"the weights of {name} are not in this build. Run `medisyn train {name}` to make them.")
        return ModelPlace(name, name, FOLDER / name)
    path = Path(name)
    if path.is_dir():
        return _place_of_folder(path)
    if path.suffix in (".safetensors", ".ckpt", ".bin", ".pt", ".pth"):
        raise ModelError(
            f"{path.name} is a single file, not a model folder. Convert it once with diffusers: "
            f"`StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)`, and give the folder."
        )
    if path.parent.is_dir() and path.parent != Path():
        raise ModelError(
            f"there is no model folder {path.name!r} in {path.parent.name}/."
            f"{closest(path.name, (other.name for other in path.parent.iterdir() if other.is_dir()))}"
        )
    if load.looks_like_hub_id(name):
        return ModelPlace(name, name, load.fetch_from_hub(name))
    raise ModelError(
        f"model {path.name!r} is neither a shipped model ({', '.join(MAKES)}), nor a folder, nor a hub id of the form "
        f"owner/name.{closest(name, MAKES)}"
    )


def find_autoencoder(name: str) -> Path:
    """The folder of an autoencoder: a folder with its config.json, or a hub id that holds one."""
    from medisyn.families.stable_diffusion import load

    if not Path(name).is_dir() and load.looks_like_hub_id(name):
        return load.fetch_from_hub(name)
    return Path(name)


def weights_digest(place: ModelPlace) -> str:
    """sha256 over the names and sha256 of all weight files, of the adapter and of learnt tokens too."""
    total = hashlib.sha256()
    for folder in [place.folder, *([place.adapter] if place.adapter is not None else []), *place.embeddings]:
        for file in sorted(folder.rglob("*.safetensors")):
            total.update(f"{file.relative_to(folder)} {file_sha256(file)}\n".encode())
    return total.hexdigest()


def _place_of_folder(path: Path) -> ModelPlace:
    from medisyn.families.stable_diffusion import load
    from medisyn.families.stable_diffusion.embedding_files import DIFFUSERS_FILE, EMBEDDINGS
    from medisyn.families.stable_diffusion.lora import LORA_FILE

    absolute = path.resolve()
    marks = (*MARKS, LORA_FILE, DIFFUSERS_FILE)
    holds_model = any((absolute / file).is_file() for file in marks)
    folder = absolute / "model" if not holds_model and (absolute / "model").is_dir() else absolute
    if not (folder / "model_index.json").is_file() and (
        EMBEDDINGS in load.read_settings(folder) or (folder / DIFFUSERS_FILE).is_file()
    ):
        return _place_of_embeddings(absolute, folder)
    if not (folder / LORA_FILE).is_file() or (folder / "model_index.json").is_file():
        return ModelPlace(str(absolute), absolute.name, folder)
    base = load.read_settings(folder).get("base")
    if base is None:
        raise ModelError(
            f"{absolute.name}/ is an adapter (LoRA) without its base model on record. "
            f'Write {{"base": "the base model\'s folder or hub id"}} to {load.SETTINGS_FILE} in that folder.'
        )
    below = find_model(str(base))
    if below.adapter is not None:
        raise ModelError(f"{absolute.name}/ is an adapter on another adapter; merge the first into its base.")
    return ModelPlace(str(absolute), absolute.name, below.folder, adapter=folder, embeddings=below.embeddings)


def _place_of_embeddings(named: Path, folder: Path) -> ModelPlace:
    """Learnt tokens on top of their base, which may be an adapter or hold learnt tokens itself."""
    from medisyn.families.stable_diffusion import load

    base = load.read_settings(folder).get("base")
    if base is None:
        raise ModelError(
            f"{named.name}/ holds a textual-inversion embedding without its base model on record. Make a folder that "
            f"opens: `medisyn convert embedding FILE --base MODEL --out FOLDER`"
        )
    below = find_model(str(base))
    return dataclasses.replace(below, name=str(named), id=named.name, embeddings=(*below.embeddings, folder))
