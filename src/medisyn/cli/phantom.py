"""`medisyn phantom`: patients that we make, for training and for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Make phantoms: chest CT with exact masks, truth and report.", no_args_is_help=True)


@app.callback()
def phantom() -> None:
    """Make phantoms: chest CT with exact masks, truth and report."""


@app.command()
def ct(
    out: Annotated[Path, typer.Option(help="Folder of the phantoms.")],
    count: Annotated[int, typer.Option("-n", "--count", help="How many.")] = 100,
    size: Annotated[int, typer.Option(help="Voxels of each side, 32 to 512; the field of view stays the same.")] = 64,
    findings: Annotated[
        str | None,
        typer.Option(
            help="Kinds to draw the main finding from, with commas: effusion, cardiomegaly, bullae, consolidation, "
            "ground_glass, nodule, atelectasis, none.",
            show_default="all",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed makes other patients.")] = 0,
    processes: Annotated[int, typer.Option(help="Processes; 1 stays in this one.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
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
    if json:
        import json as json_format
        from dataclasses import asdict

        typer.echo(json_format.dumps(asdict(report), indent=2, default=str))
    else:
        typer.echo(report.text())
