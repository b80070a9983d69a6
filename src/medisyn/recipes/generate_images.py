"""From prompts to a folder of pictures: the one call behind `medisyn generate`."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn.errors import InputError
from medisyn.families.base import Family
from medisyn.generation.generate import GenerateReport, Reject, generate
from medisyn.generation.grammar import check_tokens, lost_words
from medisyn.generation.prompts import (
    OF_CLIPS,
    Defaults,
    requests_from_prompt,
    requests_from_prompts,
    requests_from_table,
)
from medisyn.machine import choose_device, fast_dtype
from medisyn.recipes.generate_clips import generate_clips, is_clip_file, refuse_factors
from medisyn.recipes.generate_volumes import generate_volumes, refuse_options
from medisyn.recipes.shipped_models import card_of
from medisyn.runs import digest
from medisyn.types import Request

if TYPE_CHECKING:
    from medisyn.recipes.models import OpenedModel

DEFAULT_MODEL = "starter-image"
DEFAULT_FOLDER = Path("synthetic")


def generate_images(
    prompt: str | Sequence[str] | None = None,
    *,
    prompts: Path | str | None = None,
    model: str = DEFAULT_MODEL,
    out: Path | str | None = None,
    n: int = 1,
    seed: int = 0,
    negative_prompt: str = "",
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    frames: int | None = None,
    motion: float | None = None,
    appearance: float | None = None,
    solver: str | None = None,
    batch_size: int | None = None,
    processes: int = 1,
    device: str = "auto",
    dtype: str = "auto",
    reject: Reject | None = None,
    reject_copies_of: Path | str | None = None,
    policy: Path | str | None = None,
    tries: int = 3,
    gallery: Path | str | None = None,
    gallery_also: Sequence[Path | str] = (),
    dicom: bool = False,
    formats: Sequence[str] = (),
) -> GenerateReport:
    """Make pictures, CT volumes or clips for a prompt, a list of them, or a table of `prompts` (CSV, TSV, JSONL, TXT).

    model: a model that ships with MediSyn, a run's folder, a diffusers Stable Diffusion folder, or a hub id.
    out: the folder; None: one under `synthetic/`, named after the prompt and the settings. The same call goes on where
        it was interrupted, and one with more prompts adds to the folder.
    n, seed, negative_prompt, height, width, steps, guidance: for every prompt whose row does not say otherwise; None is
        the model's own value. Every picture gets its own seed from `seed` and its key.
    frames, motion, appearance: the same, of models that make clips (motion: 0 and up, how much moves; appearance: 0 to
        1, how far the last frame may drift from the first).
    processes: each opens the model for itself; on one GPU leave it at 1.
    dtype: "float32", "bfloat16", or "auto": bfloat16 on a GPU and on a CPU that computes in it (half the time, and
        grey levels off by half a level on average), else float32. Every file says which.
    reject_copies_of: a corpus; a picture that `medisyn audit` would withhold as a copy of one of its training images is
        drawn again with a seed of its own, up to `tries` draws, and then left out.
    policy: the release rules of `medisyn audit` as a YAML file, for reject_copies_of; None: the built-in ones.
    reject: a rule of your own instead.
    gallery: also write an HTML page of the folder there, and of the folders `gallery_also` below it.
    dicom: of a model of CT or clips, also write DICOM (see recipes/generate_volumes.py and recipes/generate_clips.py,
        which such models go on to). formats: of clips, any of mkv, mp4 and gif; none: mkv and mp4. For one clip, `out`
        may be a file that ends in one of them.
    """
    defaults = Defaults(
        n=n, seed=seed, negative_prompt=negative_prompt, height=height, width=width, steps=steps, guidance=guidance,
        frames=frames, motion=motion, appearance=appearance,
    )  # fmt: skip
    table = Path(prompts) if prompts is not None else None
    requests = _requests(prompt, table, defaults)
    if gallery_also and gallery is None:
        raise InputError("more folders can only stand on a gallery page: name the page with --gallery")
    if processes < 1:
        raise InputError(f"processes must be at least 1, got {processes}")
    rejecting = None
    if reject_copies_of is not None:
        reject, rejecting = copies_of(reject_copies_of, reject, policy)
    elif policy is not None:
        raise InputError("a policy says which copies are rejected; name the corpus too, with --reject-copies-of")
    opened, facts, device = open_for_sampling(model, device, dtype, solver)
    if opened.clips is None:
        refuse_factors(requests, opened.id)
        clip_file = out is not None and is_clip_file(Path(out))
        refuse_options({"--format": formats, "a clip's file as --out": clip_file}, f"{opened.id} makes no clips")
    requests = [opened.resolve(request) for request in requests]
    folder = (
        Path(out)
        if out is not None
        else default_folder(
            table or requests[0].prompt,
            defaults,
            facts if rejecting is None else {**facts, "rejecting": digest(rejecting)},
        )
    )
    check_tokens(requests, opened.known_tokens)
    lost = {request.prompt: lost_words(request, opened.lost_words) for request in requests}
    settings = {"device": device_name(device), "processes": processes, "seed": seed}
    if opened.clips is not None:
        unread = {"--processes": processes > 1, "--reject-copies-of": reject}
        refuse_options(unread, "a model of clips works in one process, and copies are looked for among pictures")
        refuse_options({"--gallery": gallery is not None and is_clip_file(folder)}, "it shows folders of clips")
        made = generate_clips(
            requests, opened.clips, folder, model=facts, formats=formats, batch_size=batch_size, lost_words=lost,
            dicom=dicom, settings=settings,
        )  # fmt: skip
        _write_gallery(folder, gallery, gallery_also, model)
        return made
    if opened.volumes is not None:
        for_pictures = {"--processes": processes > 1, "--reject-copies-of": reject}
        refuse_options(for_pictures, "a CT model makes volumes, one process at a time")
        volumes = generate_volumes(
            requests, opened.volumes, folder, model=facts, batch_size=batch_size, lost_words=lost, dicom=dicom,
            settings=settings,
        )  # fmt: skip
        _write_gallery(folder, gallery, gallery_also, model)
        return volumes
    refuse_options({"--dicom": dicom}, "this model makes pictures, and DICOM is for CT volumes and clips")
    family: Family | None = opened.family
    if processes > 1:
        del opened  # the other processes open their own; this one keeps no second copy
        family = None
    report = generate(
        requests,
        family,
        folder,
        model=facts,
        batch_size=batch_size,
        engine="inline" if processes == 1 else f"processes:{processes}",
        open_family=None if processes == 1 else functools.partial(_open_family, model, device, facts["dtype"], solver),
        lost_words=lost.__getitem__,
        reject=reject,
        rejecting=rejecting,
        tries=tries,
        settings=settings,
    )
    _write_gallery(folder, gallery, gallery_also, model)
    return report


def _write_gallery(folder: Path, page: Path | str | None, also: Sequence[Path | str], model: str) -> None:
    """The page of the folder and of those `also`, where one was asked for."""
    if page is not None:
        from medisyn.generation.gallery import write_gallery

        write_gallery(folder, Path(page), also=[Path(other) for other in also], card=card_of(model))


def open_for_sampling(
    model: str, device: str, dtype: str, solver: str | None, *, only_images: str = ""
) -> tuple[OpenedModel, dict[str, str], str]:
    """The opened model, what every record says of it (id, digest, solver, dtype), and the device that "auto" became.

    only_images: what is to be done, where a model of CT volumes or of clips cannot do it; such a model is then an
    InputError.
    """
    device = choose_device(device)
    dtype = fast_dtype(device) if dtype == "auto" else dtype
    opened = _open(model, device, dtype, solver)
    if only_images and (opened.volumes is not None or opened.clips is not None):
        made = "CT volumes" if opened.volumes is not None else "clips"
        raise InputError(f"{only_images} works on pictures; {opened.id} makes {made}. Choose another --model")
    return opened, {"id": opened.id, "digest": opened.digest, "solver": opened.solver, "dtype": dtype}, device


def device_name(device: str) -> str:
    """The device as a person knows it, such as "CPU (AMD EPYC), 2 threads"."""
    import torch

    if device == "cpu":
        num_threads = torch.get_num_threads()
        abilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch cannot tell
        return f"CPU ({abilities.get('cpu_name', 'unknown')}), {num_threads} thread{'s' * (num_threads > 1)}"
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def copies_of(
    corpus: Path | str, other: Reject | None = None, policy: Path | str | None = None
) -> tuple[Reject, dict[str, Any]]:
    """The rule that throws copies of the corpus's training images away, and its description; it opens the corpus."""
    from medisyn.recipes.audit import read_policy
    from medisyn.recipes.copy_search import RejectCopies, SearchSettings
    from medisyn.recipes.evaluate_images import user_cache

    if other is not None:
        raise InputError("give either `reject` or `reject_copies_of`, not both")
    rule = RejectCopies(str(Path(corpus).resolve()), SearchSettings(), read_policy(policy), str(user_cache()))
    return rule, rule.describe()


def default_folder(prompts: str | Path, defaults: Defaults, facts: dict[str, str]) -> Path:
    """`synthetic/<words of the prompt or the table's name>-<digest of model and settings>`.

    The same command finds its folder again, also with a larger n or a longer table; another one never meets it.
    """
    name = prompts.stem if isinstance(prompts, Path) else str(prompts)
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    unsaid = [setting for setting in OF_CLIPS if getattr(defaults, setting) is None]
    settings = [name, facts, {key: value for key, value in vars(defaults).items() if key not in ("n", *unsaid)}]
    return DEFAULT_FOLDER / f"{words or 'prompt'}-{digest(settings)[:6]}"


def _requests(prompt: str | Sequence[str] | None, table: Path | None, defaults: Defaults) -> list[Request]:
    if (prompt is None) == (table is None):
        raise InputError("give either a prompt, such as 'Frontal (PA) chest X-ray image', or a table with --prompts")
    if table is not None:
        return requests_from_table(table, defaults)
    if isinstance(prompt, str):
        return requests_from_prompt(prompt, defaults)
    return requests_from_prompts(list(prompt or ()), defaults)


def _open(model: str, device: str, dtype: str, solver: str | None) -> OpenedModel:
    from medisyn.recipes.models import open_model

    return open_model(model, device=device, dtype=dtype, solver=solver)


def _open_family(model: str, device: str, dtype: str, solver: str | None) -> Family:
    """What each process calls; a function of the module, so that it can be sent there."""
    return _open(model, device, dtype, solver).family
