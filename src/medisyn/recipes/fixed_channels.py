"""`medisyn generate anatomy`: chest CTs around lobes, airways or vessels that are given and kept at every step.

Masks are NIfTI or NRRD files of any spacing and orientation:

    a folder   lobe.nii.gz, airway.nii.gz, vessel.nii.gz in it or in its subfolders, or <any>-lobe.nii.gz and so on
    a table    CSV, JSONL or Parquet with columns lobe, airway, vessel (files, from the table's own folder), and, each
               optional, key and prompt

Shapes here: B requests, C channels; D, H, W of the finest grid, d, h, w of the base model's.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medisyn.errors import InputError, closest
from medisyn.families.medsyn.cascade import MedSyn
from medisyn.families.medsyn.channels import channels_from_sample, scale_mask
from medisyn.generation.grammar import terms_for_request
from medisyn.generation.prompts import SAFE_KEY, Defaults
from medisyn.recipes.medsyn_corpus import MASKS, TABLE_SUFFIXES, VOLUME_SUFFIX
from medisyn.runs import digest
from medisyn.seeding import seed_for
from medisyn.types import HU, Request, Sample, Volume

if TYPE_CHECKING:
    from medisyn.families.medsyn.base_model import Known
    from medisyn.families.medsyn.config import Grid
    from medisyn.recipes.generate_volumes import VolumesReport

NO_REPORT = "(no report)"  # what requests and records say where the model is to read the learned null text
KnownOf = Callable[[Request], "Known"]
CONFLICT = (
    "The given masks are kept as they are, also where the text contradicts them; the conflict is the user's to settle."
)


@dataclass(frozen=True)
class Anatomy:
    """Mask files of one body, by channel name; `prompt` is what its row of a table says."""

    key: str
    masks: Mapping[str, Path]
    prompt: str = ""


class Fixing(MedSyn):
    """A cascade that keeps given channels at every step of both models.

    known_of  request -> channel name -> (D, H, W) of the finest grid in [-1, 1]; of it the base model keeps every
              `factor`-th voxel, and super-resolution all of it
    A request whose prompt is NO_REPORT gets the learned null text.
    """

    def __init__(self, family: MedSyn, known_of: KnownOf) -> None:
        super().__init__(family.base, family.superres)
        self.known_of = known_of

    def sample(self, requests: Sequence[Request], known: Sequence[Known | None] | None = None) -> torch.Tensor:
        """As `MedSyn.sample`; `known` must be left out, since the requests say what is known."""
        if known is not None:
            raise InputError("this model takes its given channels from the requests; leave `known` out")
        fine = self._fine(requests)
        low = self._low(requests, fine)
        if self.superres is None:
            return low
        return self.superres.upscale(low, [request.seed for request in requests], known=fine)

    def sample_and_mean(self, requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor]:
        """What `sample` gives, and what the finest network says of pure noise, both (B, C, D, H, W).

        Trained on squared error, it can say there no more than the mean of all that may be: of a mask's channel the
        chance of each voxel, where a sample has one of the possible masks. A cascade's mean is that of its base sample.
        A network that has not learnt to be given channels (`given_share` 0) sees nothing of them in pure noise: its
        mean is the sample.
        """
        fine = self._fine(requests)
        once = self.with_defaults(solver="renoise")  # whose single step is a single call
        low = self._low(requests, fine)
        if self.superres is None or once.superres is None:
            if not self.base.config.given_share:
                return low, low
            return low, Fixing(once, self.known_of).sample([replace(one, steps=1) for one in requests])
        seeds = [request.seed for request in requests]
        sample = self.superres.upscale(low, seeds, known=fine)
        if not self.superres.config.given_share:
            return sample, sample
        return sample, once.superres.upscale(low, seeds, steps=1, known=fine)

    def _fine(self, requests: Sequence[Request]) -> list[Known]:
        return [self.known_of(request) for request in requests]

    def _low(self, requests: Sequence[Request], fine: Sequence[Known]) -> torch.Tensor:
        """The base model's channels."""
        step = 1 if self.superres is None else self.superres.config.factor
        return self.base.sample(
            [replace(one, prompt="") if one.prompt == NO_REPORT else one for one in requests],
            [{name: channel[::step, ::step, ::step] for name, channel in one.items()} for one in fine],
        )


def generate_anatomy(
    prompt: str = "",
    *,
    masks: Path | str,
    fix: Sequence[str] = (),
    model: str = "starter-ct",
    out: Path | str | None = None,
    n: int = 1,
    seed: int = 0,
    negative_prompt: str = "",
    steps: int | None = None,
    guidance: float | None = None,
    solver: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    dicom: bool = False,
) -> VolumesReport:
    """Write `n` CTs for each anatomy of `masks`, with the channels `fix` kept as given; see `generate_volumes`.

    prompt  the report; "" is the learned null text: anatomy alone. A table may give each anatomy a prompt instead.
    fix     of lobe, airway, vessel; empty: every mask that an anatomy has

    Where text and anatomy contradict each other, the given channels stay and the rest follows both as far as it can;
    every record says so. Raises InputError for masks that are missing, empty, of another grid than one another or not
    reached by the model's field of view, RangeError for unknown labels; all before the first volume is made.
    """
    from medisyn.generation.grammar import check_tokens
    from medisyn.recipes.generate_images import default_folder, device_name
    from medisyn.recipes.generate_volumes import generate_volumes

    defaults = Defaults(n=n, seed=seed, negative_prompt=negative_prompt, steps=steps, guidance=guidance)
    anatomies = find_anatomies(Path(masks), fix)
    if prompt.strip() and any(anatomy.prompt for anatomy in anatomies):
        raise InputError("the table has prompts of its own; leave the prompt of the command out, or the column")
    family, facts, device, lost_words = open_ct_model(model, device, dtype, solver)
    read = functools.lru_cache(maxsize=2)(lambda number: channels_of(anatomies[number], family.grid))
    by_key: dict[str, int] = {}
    requests: list[Request] = []
    for number, anatomy in enumerate(anatomies):
        made = _requests(anatomy, prompt.strip() or anatomy.prompt, defaults, _told(anatomy, read(number)))
        by_key |= {request.key: number for request in made}
        requests += [family.resolve(request) for request in made]
    check_tokens(requests, list)
    fixed = digest([(request.metadata["fixed"], request.metadata["anatomy_digest"]) for request in requests])
    folder = Path(out) if out else default_folder(prompt or "anatomy", defaults, {**facts, "fixed": fixed})
    return generate_volumes(
        requests,
        Fixing(family, lambda request: read(by_key[request.key])),
        folder,
        model=facts,
        batch_size=batch_size,
        lost_words={text: lost_words(text) for text in {one.prompt for one in requests} - {NO_REPORT}},
        dicom=dicom,
        settings={"device": device_name(device), "processes": 1, "seed": seed},
    )


def open_ct_model(
    model: str, device: str, dtype: str, solver: str | None
) -> tuple[MedSyn, dict[str, str], str, Callable[[str], str]]:
    """A model of CT volumes, what every record says of it, the device, and `lost_words`. InputError for another."""
    from medisyn.recipes.generate_images import open_for_sampling

    opened, facts, device = open_for_sampling(model, device, dtype, solver)
    if opened.volumes is None:
        raise InputError(f"{opened.id} makes no CT volumes, and channels are fixed in those. Choose another --model")
    return opened.volumes, facts, device, opened.lost_words


def find_anatomies(place: Path, fix: Sequence[str] = ()) -> list[Anatomy]:
    """The anatomies of a folder or table, each with the masks of `fix`, or all it has. InputError when there is none.

    Folders are told apart by their order, since a file name may be a patient's; those of phantoms keep their names.
    """
    for name in fix:
        if name == "ct":
            raise InputError("--fix ct: a CT that is given is segmented; use `medisyn generate segment --ct FILE`")
        if name not in MASKS:
            raise InputError(f"--fix {name!r} is unknown.{closest(name, MASKS)} Allowed: {', '.join(MASKS)}")
    if place.is_dir():
        found = _of_folder(place)
    elif place.is_file() and place.suffix.lower() in TABLE_SUFFIXES and not VOLUME_SUFFIX.search(place.name):
        found = _of_table(place)
    elif place.exists():
        raise InputError(f"--masks {place.name}: give the folder of the masks, or a table (CSV, JSONL, Parquet)")
    else:
        raise InputError(f"--masks: there is no folder or table {place.name!r}")
    if not found:
        raise InputError(
            f"{place.name}/ holds no mask. Looked for: {', '.join(f'{name}.nii.gz' for name in MASKS)}, or "
            f"<any>-{MASKS[0]}.nii.gz and so on"
        )
    return [_only(anatomy, fix) for anatomy in found]


def channels_of(anatomy: Anatomy, grid: Grid) -> dict[str, torch.Tensor]:
    """The masks of an anatomy as channels (D, H, W) of the grid in [-1, 1], brought there by nearest labels."""
    from medisyn.recipes.medsyn_grid import place

    blank, masks = _read(anatomy)
    placed = place(blank, masks, grid, 1, anatomy.key)
    channels = channels_from_sample(Sample(anatomy.key, placed.volume, "", masks=placed.masks), grid, tuple(masks))
    for name, channel_DHW in zip(masks, channels, strict=True):
        if not (channel_DHW > -1).any():
            raise InputError(
                f"{anatomy.key}: nothing of mask {name!r} lies on the model's grid of {_by(grid.shape)} voxels around "
                f"the middle of the mask's volume. Check its spacing and field of view"
            )
    return dict(zip(masks, channels, strict=True))


# Parts of the above


def _read(anatomy: Anatomy) -> tuple[Volume, dict[str, np.ndarray]]:
    """The masks on the grid of the first, and a volume of air there to carry its place in the patient."""
    from medisyn.corpus.readers import read_item
    from medisyn.recipes.medsyn_grid import mask_like

    blank: Volume | None = None
    masks: dict[str, np.ndarray] = {}
    for name, path in anatomy.masks.items():
        item = read_item(path)
        if not isinstance(item, Volume) or item.array_CDHW.shape[0] != 1:
            raise InputError(f"{anatomy.key}: mask {name!r} is no volume of one channel")
        if blank is None:
            air = np.full(item.array_CDHW.shape, -1000, np.float32)
            blank = Volume(air, item.affine, HU)
        try:
            mask = mask_like(item, blank, name, anatomy.key)
        except InputError:
            raise InputError(
                f"{anatomy.key}: mask {name!r} ({_grid(item)}) lies on another grid than mask {next(iter(masks))!r} "
                f"({_grid(blank)}). Resample one of them onto the other"
            ) from None
        scale_mask(name, np.unique(mask), anatomy.key)  # refuses labels that the channel cannot mean
        if not mask.any():
            raise InputError(
                f"{anatomy.key}: mask {name!r} is empty. Fixed, it would forbid the model any {name}; leave it out "
                f"with --fix, or give another"
            )
        masks[name] = mask.astype(np.uint8)
    assert blank is not None, "an anatomy has at least one mask"
    return blank, masks


def _told(anatomy: Anatomy, channels: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What a record says of the anatomy."""
    values = [(name, hashlib.sha256(channel.numpy().tobytes()).hexdigest()) for name, channel in channels.items()]
    return {"anatomy": anatomy.key, "fixed": ", ".join(channels), "anatomy_digest": digest(values)[:16]}


def _requests(anatomy: Anatomy, prompt: str, defaults: Defaults, told: Mapping[str, Any]) -> list[Request]:
    keys = [f"{anatomy.key}-{number:03d}" for number in range(defaults.n)]
    metadata = {**told, "conflict": CONFLICT if prompt else ""}
    return [
        Request(
            key=key,
            prompt=prompt or NO_REPORT,
            seed=seed_for(defaults.seed, key),
            negative_prompt=defaults.negative_prompt,
            steps=defaults.steps,
            guidance=defaults.guidance,
            metadata=metadata,
            terms=terms_for_request(prompt) if prompt else (),
        )
        for key in keys
    ]


def _only(anatomy: Anatomy, fix: Sequence[str]) -> Anatomy:
    missing = [name for name in fix if name not in anatomy.masks]
    if missing:
        raise InputError(
            f"{anatomy.key}: there is no mask of {', '.join(missing)} to fix; there are: {', '.join(anatomy.masks)}"
        )
    return Anatomy(
        anatomy.key,
        {name: anatomy.masks[name] for name in MASKS if name in anatomy.masks and (not fix or name in fix)},
        anatomy.prompt,
    )


def _of_folder(folder: Path) -> list[Anatomy]:
    groups: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in sorted(folder.rglob("*")):
        stem = VOLUME_SUFFIX.sub("", path.name)
        named = re.fullmatch(rf"(?:(.+)[_-])?({'|'.join(MASKS)})", stem)
        if named and VOLUME_SUFFIX.search(path.name) and path.is_file():
            groups.setdefault((path.parent, named[1] or ""), {})[named[2]] = path
    phantoms = all(re.fullmatch(r"thorax-\d+", parent.name) and not head for parent, head in groups)
    return [
        Anatomy(parent.name if phantoms else f"anatomy-{number:04d}", masks)
        for number, ((parent, _), masks) in enumerate(groups.items(), start=1)
    ]


def _of_table(table: Path) -> list[Anatomy]:
    from medisyn.corpus.table import read_table

    rows = read_table(table)
    if not any(name in rows[0] for name in MASKS):
        raise InputError(
            f"{table.name}: there is no column of masks ({', '.join(MASKS)}). Columns there: {', '.join(rows[0])}"
        )
    anatomies = []
    for number, row in enumerate(rows, start=1):
        masks = {name: table.parent / row[name] for name in MASKS if row.get(name)}
        key = row.get("key") or f"anatomy-{number:04d}"
        absent = [name for name, path in masks.items() if not path.is_file()]
        if absent or not masks:
            what = f"the file of mask {absent[0]!r} is not there" if absent else "it names no mask"
            raise InputError(f"{table.name} row {number}: {what}. Files are looked for from the table's own folder")
        if not SAFE_KEY.fullmatch(key):
            raise InputError(f"{table.name} row {number}: the key becomes a file name; use letters, digits, - and _")
        anatomies.append(Anatomy(key, masks, (row.get("prompt") or "").strip()))
    keys = [anatomy.key for anatomy in anatomies]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"{table.name}: the key {twice!r} occurs twice; every anatomy needs its own")
    return anatomies


def _grid(volume: Volume) -> str:
    return f"{_by(volume.array_CDHW.shape[1:])} voxels of {' x '.join(f'{mm:.3g}' for mm in volume.spacing_mm)} mm"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
