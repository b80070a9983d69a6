"""Pictures painted anew inside a mask, one or a table of them: the call behind `medisyn generate inpaint`.

A table (CSV, TSV or JSONL) has the columns image, mask and prompt, and optionally those of any prompt table (key, seed,
n, negative_prompt, steps, guidance), strength and feather. Relative paths in it start at the table's folder. A mask is
a file, `box:x,y,width,height` or `ellipse:cx,cy,rx,ry` in pixels of the image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from medisyn.errors import InputError, ModelError, ReadError
from medisyn.families.base import Family
from medisyn.generation.generate import GenerateReport, generate
from medisyn.generation.grammar import check_tokens, lost_words
from medisyn.generation.inpaint import FEATHER, STRENGTH, Painting, PaintingFamily
from medisyn.generation.masks import mask_from, working_size
from medisyn.generation.prompts import Defaults, number_within, requests_from_prompt, requests_from_table
from medisyn.recipes.generate_images import DEFAULT_MODEL, default_folder, device_name, open_for_sampling
from medisyn.runs import digest
from medisyn.types import Item, Picture, Request

if TYPE_CHECKING:
    import torch

    from medisyn.families.stable_diffusion.model import StableDiffusion

COLUMNS = ("image", "mask", "strength", "feather")  # of a table, beside those of a prompt table
MOST_FEATHER = 1000


def inpaint_images(
    prompt: str | None = None,
    *,
    image: Path | str | None = None,
    mask: str | None = None,
    table: Path | str | None = None,
    strength: float = STRENGTH,
    feather: float = FEATHER,
    n: int = 1,
    seed: int = 0,
    model: str = DEFAULT_MODEL,
    out: Path | str | None = None,
    negative_prompt: str = "",
    steps: int | None = None,
    guidance: float | None = None,
    solver: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> GenerateReport:
    """Paint `prompt` into `image` where `mask` says so, or do so for each row of a `table`.

    image: PNG, JPEG, TIFF or BMP with 8 bits per channel. Pixels outside the mask come back bit for bit. An image of
        another size than the model's is worked on at about the model's area and the painted part scaled back.
    mask: a file (white is painted), `box:x,y,width,height` or `ellipse:cx,cy,rx,ry`.
    strength: share of the steps that are made; 1 paints anew, less keeps some of what was there.
    feather: pixels inside the mask's edge over which the painted part fades in.
    The other options are those of `generate_images`; the folder is filled and resumed as there.
    """
    defaults = Defaults(n=n, seed=seed, negative_prompt=negative_prompt, steps=steps, guidance=guidance)
    asked = _asked(prompt, image, mask, None if table is None else Path(table), defaults)
    opened, facts, device = open_for_sampling(model, device, dtype, solver, only_images="inpainting")
    family = _painter(opened.family)
    common = {"strength": strength, "feather": feather}
    read = functools.cache(_read_image)  # many masks may share one image
    paintings = [_painting(request, {**common, **options}, family, read) for request, options in asked]
    requests = [painting.request for painting in paintings]
    check_tokens(requests, opened.known_tokens)
    lost = {request.prompt: lost_words(request, opened.lost_words) for request in requests}
    name = Path(table) if table is not None else f"inpaint {prompt}"
    what = {} if table is not None else {"what": digest(paintings[0].facts())}
    return generate(
        requests,
        cast(Family, PaintingFamily(paintings, _paint_with(family))),  # it samples and decodes; nothing trains it
        Path(out) if out is not None else default_folder(name, defaults, {**facts, **what}),
        model=facts,
        batch_size=batch_size,
        lost_words=lost.__getitem__,
        settings={"device": device_name(device), "seed": seed},
    )


def _asked(
    prompt: str | None, image: Path | str | None, mask: str | None, table: Path | None, defaults: Defaults
) -> list[tuple[Request, dict[str, Any]]]:
    """Requests, and for each the image, mask, strength and feather that a row says."""
    if table is None:
        if prompt is None or image is None or mask is None:
            raise InputError("give --image, --mask and --prompt, or a table of them with --table")
        requests = requests_from_prompt(prompt, defaults)
        return [(request, {"image": Path(image), "mask": mask, "folder": Path()}) for request in requests]
    if (prompt, image, mask) != (None, None, None):
        raise InputError("give either --table, or --image, --mask and --prompt")
    asked = []
    for request in requests_from_table(table, defaults):
        options = {name: request.metadata[name] for name in COLUMNS if request.metadata.get(name) not in (None, "")}
        missing = [name for name in ("image", "mask") if name not in options]
        if missing:
            raise InputError(f"{table.name}: request {request.key} has no {missing[0]}; each row needs image and mask")
        metadata = {name: value for name, value in request.metadata.items() if name not in COLUMNS}
        options["image"] = table.parent / str(options["image"])
        asked.append((replace(request, metadata=metadata), {**options, "folder": table.parent}))
    return asked


def _painting(
    request: Request, options: Mapping[str, Any], family: StableDiffusion, read: Callable[[Path], Picture]
) -> Painting:
    """The request with its size, the image and the mask read and checked."""
    where = f"request {request.key}: "
    original = _named(lambda: read(Path(options["image"])), f"{where}the image")
    height, width = original.array_CHW.shape[1:]
    folder = Path(options["folder"])
    mask_HW = mask_from(str(options["mask"]), height, width, lambda name: _read_mask(folder / name, where), where)
    rows, columns = working_size(height, width, family.native_size, family.networks.factor)
    return Painting(
        family.resolve(replace(request, height=rows, width=columns)),
        original,
        mask_HW,
        number_within(options["strength"], "strength", 0, 1, where),
        number_within(options["feather"], "feather", 0, MOST_FEATHER, where),
    ).with_facts()


def _read_image(path: Path) -> Picture:
    from medisyn.corpus.readers import read_item

    item = read_item(path)
    if not isinstance(item, Picture):
        raise ReadError(f"one picture is needed, this is a {type(item).__name__}")
    return item


def _read_mask(path: Path, where: str) -> np.ndarray:
    """(H, W) numbers of a mask file; a colour file is averaged over its channels."""
    return _named(lambda: _read_image(path), f"{where}the mask").array_CHW.mean(axis=0)


def _named(read: Callable[[], Picture], what: str) -> Picture:
    """What `read` returns; its error says which file it was, without naming it."""
    try:
        return read()
    except ReadError as error:
        raise ReadError(f"{what} cannot be read: {error}") from None


def _painter(family: Family) -> StableDiffusion:
    from medisyn.families.stable_diffusion.model import StableDiffusion

    if not isinstance(family, StableDiffusion):
        raise ModelError(f"inpainting is offered for Stable Diffusion models; this is a {type(family).__name__}")
    return family


def _paint_with(family: StableDiffusion) -> Any:
    """The function that `PaintingFamily` calls."""

    def paint(
        requests: Sequence[Request], pictures: Sequence[Picture], masks_BHW: torch.Tensor, strength: float
    ) -> list[Item]:
        return family.decode(family.inpaint(requests, pictures, masks_BHW, strength=strength))

    return paint
