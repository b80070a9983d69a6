"""`medisyn phantom`: patients that we make, for training and for tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medisyn.cli.options import Json
from medisyn.errors import InputError

if TYPE_CHECKING:
    from medisyn.phantoms.folder import PhantomReport
    from medisyn.phantoms.heart.folder import HeartReport

app = typer.Typer(help="Make phantoms: chest CT and heart ultrasound with exact masks and truth.", no_args_is_help=True)


@app.callback()
def phantom() -> None:
    """Make phantoms: chest CT and heart ultrasound with exact masks and truth."""


@app.command()
def ct(
    out: Annotated[Path, typer.Option(help="Folder of the phantoms.")],
    count: Annotated[int, typer.Option("-n", "--count", help="How many.")] = 100,
    size: Annotated[int, typer.Option(help="Voxels of each side, 32 to 512; the field of view stays the same.")] = 64,
    findings: Annotated[
        str | None,
        typer.Option(
            help="Kinds to draw the main finding from, with commas: effusion, cardiomegaly, bullae, consolidation, "
            "ground_glass, nodule, atelectasis, none. A kind named twice is drawn twice as often.",
            show_default="all",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed makes other patients.")] = 0,
    processes: Annotated[int, typer.Option(help="Processes; 1 stays in this one.")] = 1,
    json: Json = False,
) -> None:
    """Chest CT phantoms with lobe, airway, vessel and finding masks, exact truth and a report.

    Repeat the command after an interruption, or with a larger -n: what is there is kept.

    Example:
        medisyn phantom ct -n 1000 --size 64 --out phantoms/
        medisyn phantom ct -n 200 --findings effusion,none --processes 2 --out effusions/
    """
    from tqdm import tqdm

    from medisyn.phantoms.findings import KINDS
    from medisyn.phantoms.folder import write_phantoms

    kinds = (*KINDS, "none") if findings is None else tuple(word.strip() for word in findings.split(","))
    with tqdm(total=count, unit="phantom", disable=None) as bar:
        report = write_phantoms(
            out,
            count,
            size=size,
            seed=seed,
            findings=kinds,
            engine="inline" if processes == 1 else f"processes:{processes}",
            progress=lambda done, _: bar.update(done - bar.n),
        )
    _print(report, json)


@app.command()
def ultrasound(
    out: Annotated[Path, typer.Option(help="Folder of the phantoms.")],
    count: Annotated[int, typer.Option("-n", "--count", help="How many.")] = 100,
    size: Annotated[str, typer.Option(help="Height x width in pixels, each 48 to 1024.")] = "64x112",
    frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 16,
    rate: Annotated[float, typer.Option(help="Frames in a second; 16 at 12.5 hold a beat from 47 a minute on.")] = 12.5,
    grades: Annotated[
        str | None,
        typer.Option(
            help="Ejection fractions to draw from, with commas: normal, mildly reduced, moderately reduced, "
            "severely reduced.",
            show_default="all",
        ),
    ] = None,
    views: Annotated[
        str | None,
        typer.Option(help="Views, with commas: apical four-chamber, apical two-chamber.", show_default="both"),
    ] = None,
    vigorous: Annotated[
        float,
        typer.Option(help="Share of hearts of normal function at 80 to 140 beats a minute: clips that move much."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Another seed makes other hearts.")] = 0,
    processes: Annotated[int, typer.Option(help="Processes; 1 stays in this one.")] = 1,
    json: Json = False,
) -> None:
    """Beating-heart ultrasound clips with masks, volumes and ejection fraction for each, and a caption.

    Repeat the command after an interruption, or with a larger -n: what is there is kept.

    Example:
        medisyn phantom ultrasound -n 1000 --out hearts/
        medisyn phantom ultrasound -n 64 --size 256x448 --frames 32 --rate 25 --grades "severely reduced" --out weak/
    """
    from tqdm import tqdm

    from medisyn.phantoms.heart.case import GRADES, VIEWS
    from medisyn.phantoms.heart.folder import write_heart_phantoms

    with tqdm(total=count, unit="phantom", disable=None) as bar:
        report = write_heart_phantoms(
            out,
            count,
            size=_size(size),
            frames=frames,
            frames_per_second=rate,
            seed=seed,
            grades=GRADES if grades is None else tuple(word.strip() for word in grades.split(",")),
            views=VIEWS if views is None else tuple(word.strip() for word in views.split(",")),
            vigorous=vigorous,
            engine="inline" if processes == 1 else f"processes:{processes}",
            progress=lambda done, _: bar.update(done - bar.n),
        )
    _print(report, json)


def _size(text: str) -> tuple[int, int]:
    """`64x112` as height and width."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise InputError(f"--size {text!r} is not height x width in pixels, such as 64x112")
    return int(height), int(width)


def _print(report: PhantomReport | HeartReport, as_json: bool) -> None:
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps(asdict(report), indent=2, default=str))
    else:
        typer.echo(report.text())
