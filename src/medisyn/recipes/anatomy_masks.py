"""Masks of a generated CT: its own, the classical segmenter's, or those of lungmask or TotalSegmentator as programs.

The two programs are never imported: they run as separate processes, in whatever environment the user put them, and
their files are read back and renumbered. Shapes here: D, H, W voxels.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medisyn.errors import ConfigError, InputError, MedisynError, MissingDependency, closest
from medisyn.types import Volume

ORGANS = ("lobe", "airway", "vessel", "heart", "effusion")
PROGRAMS = {"lungmask": "lungmask", "totalsegmentator": "TotalSegmentator"}
SOURCES = ("own", "classical", *PROGRAMS)
GET = {
    "lungmask": "pip install lungmask (its weights are downloaded on first use)",
    "totalsegmentator": "pip install TotalSegmentator in an environment of its own: it brings torchvision, which "
    "breaks a CPU build of torch beside it",
}
TOTAL_LOBES = (
    "lung_upper_lobe_left", "lung_lower_lobe_left",
    "lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right",
)  # fmt: skip
TOTAL_TASKS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "total": {"lobe": TOTAL_LOBES, "heart": ("heart",)},
    "lung_vessels": {"airway": ("lung_airways",), "vessel": ("lung_arteries", "lung_veins")},
    "pleural_pericard_effusion": {"effusion": ("pleural_effusion",)},
}  # of TotalSegmentator 2.18: task -> organ -> files


@dataclass(frozen=True, eq=False)
class Masks:
    """uint8 masks (D, H, W) on the CT's grid, and where they come from.

    source: what a row of a table says; commands: the programs that were called, as they could be typed.
    """

    masks: Mapping[str, np.ndarray]
    source: str
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = field(default=())


def check_source(source: str) -> None:
    """Raise ConfigError for an unknown source, MissingDependency when its program is not on PATH."""
    if source not in SOURCES:
        raise ConfigError(f"--masks {source!r} is unknown.{closest(source, SOURCES)} Allowed: {', '.join(SOURCES)}")
    if source in PROGRAMS and shutil.which(PROGRAMS[source]) is None:
        raise MissingDependency(
            f"--masks {source} calls the program {PROGRAMS[source]}, which is not on PATH. Get it with: {GET[source]}; "
            f"or choose --masks classical"
        )


def masks_of(source: str, ct: Path, volume: Volume, own: Mapping[str, Path], key: str) -> Masks:
    """The masks of one CT from a source that `check_source` accepted.

    ct: its NIfTI file, for the programs; own: mask files that lie beside it. Raises InputError where own masks are
    asked for and there is no lobe mask, or a mask has other voxels than its CT.
    """
    if source == "own":
        return _own(volume, own, key)
    if source == "classical":
        from medisyn.evaluation.segment_ct import segment_ct

        found = segment_ct(volume)
        return Masks({name: found.masks[name] for name in ORGANS}, found.source, found.notes)
    with tempfile.TemporaryDirectory(prefix="medisyn-masks-") as folder:
        if source == "lungmask":
            return _lungmask(ct, volume, Path(folder), key)
        return _totalsegmentator(ct, volume, Path(folder), key)


def _own(volume: Volume, own: Mapping[str, Path], key: str) -> Masks:
    if "lobe" not in own:
        raise InputError(
            f"{key}: no lobe mask lies beside the CT (lobe.nii.gz, or <name>-lobe.nii.gz). Choose --masks classical"
        )
    return Masks({name: _read(path, volume, name, key) for name, path in own.items()}, "own")


def _lungmask(ct: Path, volume: Volume, folder: Path, key: str) -> Masks:
    """LTRCLobes filled up by R231; the labels are ours already. Lobes only: nothing else is measured."""
    out = folder / "lobe.nii.gz"
    shown = _call(["lungmask", "--modelname", "LTRCLobes_R231", str(ct), str(out)], key, ct, folder)
    return Masks({"lobe": _read(out, volume, "lobe", key)}, "lungmask LTRCLobes_R231", commands=(shown,))


def _totalsegmentator(ct: Path, volume: Volume, folder: Path, key: str) -> Masks:
    """Three tasks, one file per structure, put together under our numbers."""
    masks: dict[str, np.ndarray] = {}
    commands = []
    for task, organs in TOTAL_TASKS.items():
        out = folder / task
        command = ["TotalSegmentator", "-i", str(ct), "-o", str(out), "-ta", task]
        if task == "total":
            command += ["-rs", *(name for names in organs.values() for name in names)]
        commands.append(_call(command, key, ct, folder))
        for organ, names in organs.items():
            parts = [_read(out / f"{name}.nii.gz", volume, name, key) > 0 for name in names]
            mask = np.zeros(parts[0].shape, dtype=np.uint8)
            for number, part in enumerate(parts, start=1):
                mask[part] = number if organ == "lobe" else 1
            masks[organ] = mask
    return Masks(masks, "TotalSegmentator", commands=tuple(commands))


def _call(command: list[str], key: str, ct: Path, folder: Path) -> str:
    """Run a program; the command line with file names for paths. MedisynError with its last line when it fails."""
    shown = shlex.join(part.replace(str(folder), "OUT").replace(str(ct), ct.name) for part in command)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        last = last.replace(str(folder), "OUT").replace(str(ct.parent), "DIR")
        raise MedisynError(f"{key}: `{shown}` failed with exit code {done.returncode}: {last[:300]}")
    return shown


def _read(path: Path, volume: Volume, name: str, key: str) -> np.ndarray:
    """A mask file on the CT's grid, uint8."""
    from medisyn.corpus.readers import read_item
    from medisyn.recipes.medsyn_grid import mask_like

    if not path.is_file():
        raise InputError(f"{key}: the mask {path.name} is missing; the program may be of another version")
    item = read_item(path)
    assert isinstance(item, Volume), "NIfTI files are read as volumes"
    return mask_like(item, volume, name, key).astype(np.uint8)
