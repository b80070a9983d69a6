"""CT volumes and clips for the membership attack, read as `medisyn train` reads them for the model that is attacked.

How a run read them is on its record (run.json beside its model). For a model without one, such as those that come with
MediSyn, the defaults of `medisyn train` are taken; the report says which.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from medisyn import runs
from medisyn.errors import ConfigError, InputError
from medisyn.recipes.corpus_images import stratum_of
from medisyn.recipes.membership_attack import AttackSettings, Candidate, Sides, matched
from medisyn.types import Clip, Sample

if TYPE_CHECKING:
    from medisyn.families.higen.config import ClipGrid
    from medisyn.recipes.higen_corpus import ClipReader
    from medisyn.recipes.models import OpenedModel

FRAME_ENCODER = "medical-encoder"  # of starter-video, and of every preset that needs no download
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Listed:
    """A volume or clip of a folder, unread; `place` is what metadata.jsonl calls its file."""

    place: str
    read: Callable[[], Sample]


def need_held_out(kind: str, held_out: Path | str | None) -> Path:
    """ConfigError without a folder of held-out ones."""
    if held_out is None:
        raise ConfigError(
            f"the membership attack compares training {kind} with held-out ones: name a folder of {kind} that the "
            f"model was not trained on with --held-out-folder, laid out as the training folder, or leave --model out"
        )
    return Path(held_out)


def stack_sides(opened: OpenedModel, model: str, against: Path, held_out: Path, settings: AttackSettings) -> Sides:
    """Training volumes or clips of `against`, and held-out ones of `held_out`; `model` is the name `opened` came by.

    Lines of metadata.jsonl in either folder may name image_type and specialty, within which the sides are matched, the
    patient, and in `against` the split, where only "train" are members. Whether a patient is in both folders is not
    looked at here. A model of clips is given the encoder of frames that it was trained with.
    Raises CorpusError for a folder without volumes or clips, InputError when the two share no kind.
    """
    record = trained_by(model)
    kind, listed, reading = _volumes(opened, record) if opened.volumes is not None else _clips(opened, record)
    members, others, classes = matched(
        ("train", _candidates(against, listed(against), members=True)),
        ("held-out", _candidates(held_out, listed(held_out), members=False)),
        settings,
        f"{against.name}/ and {held_out.name}/",
        kind,
    )
    whose = "as its training run read them" if record else "with the defaults of medisyn train: no run is on record"
    return Sides(kind, members, others, classes, f"{reading} {whose}")


def trained_by(model: str) -> Mapping[str, Any]:
    """The configuration of the run whose model this is; empty where it is not on record."""
    from medisyn.recipes.models import find_model

    run = runs.read_run(find_model(model).folder.parent)
    config = run.get("config") if run is not None and run.get("command") == "train" else None
    return config if isinstance(config, dict) and isinstance(config.get("data"), dict) else {}


def _candidates(folder: Path, listed: list[Listed], *, members: bool) -> list[Candidate]:
    records = {str(line.get("file_name")): line for line in runs.read_jsonl(folder / "metadata.jsonl")}
    found = []
    for one in listed:
        line = records.get(one.place, {})
        if not members or str(line.get("split") or "train") == "train":
            found.append(Candidate(stratum_of(line), str(line.get("patient") or one.place), one.read))
    return found


def _settings(kind: type[Settings], record: Mapping[str, Any]) -> Settings:
    """What a run's record says of how it read; its defaults where nothing is on record."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in record.get("data", {}).items() if name in known})


# ---- volumes


def _volumes(opened: OpenedModel, record: Mapping[str, Any]) -> tuple[str, Callable[[Path], list[Listed]], str]:
    """The kind, a function that lists a folder, and how its volumes are read, in words."""
    from medisyn.recipes.medsyn_corpus import CtData, CtReader, find_cts

    assert opened.volumes is not None
    grid, data = opened.volumes.base.grid, _settings(CtData, record)

    def listed(folder: Path) -> list[Listed]:
        reader = CtReader(folder, find_cts(folder), data, grid)
        return [Listed(one.ct, functools.partial(reader, number)) for number, one in enumerate(reader.found)]

    shape = " x ".join(str(side) for side in grid.shape)
    return (
        "volumes",
        listed,
        f"CT, masks and report were brought to the base model's grid of {shape} voxels, whose loss it is; "
        f"super-resolution was not attacked. They were read",
    )


# ---- clips


def _clips(opened: OpenedModel, record: Mapping[str, Any]) -> tuple[str, Callable[[Path], list[Listed]], str]:
    """As `_volumes`."""
    from medisyn.evaluation.features import load_extractor
    from medisyn.families.higen.model import HiGen
    from medisyn.recipes.higen_corpus import CLIP_FILE, ClipData, ClipReader

    family = opened.clips
    assert isinstance(family, HiGen)
    grid, data = family.grid, _settings(ClipData, record)
    encoder = load_extractor(str(record.get("frame_encoder") or FRAME_ENCODER))
    family.frame_features = encoder

    def listed(folder: Path) -> list[Listed]:
        reader = ClipReader(folder, data, grid.frames)
        return [
            Listed(f"{key}/{CLIP_FILE}", functools.partial(_first_window, reader, number, grid))
            for number, key in enumerate(reader.keys)
        ]

    return (
        "clips",
        listed,
        f"Of each clip one window of {grid.frames} frames was taken, the first that training draws for it, and its "
        f"frames compared by {encoder.id}. They were read",
    )


def _first_window(reader: ClipReader, number: int, grid: ClipGrid) -> Sample:
    """InputError for a clip of another size than the model's, which would be told by that alone."""
    sample = reader.window(reader(number), 0)
    assert isinstance(sample.item, Clip)
    height, width = sample.item.array_CTHW.shape[2:]
    if (height, width) != (grid.height, grid.width):
        raise InputError(
            f"{sample.key}: its frames have {height} x {width} pixels, the model was trained on {grid.height} x "
            f"{grid.width}. Prepare training and held-out clips as for training"
        )
    return sample
