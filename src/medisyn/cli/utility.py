"""`medisyn utility`: classifiers trained with and without synthetic images, tested on real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisyn.cli.options import Json


def utility(
    real: Annotated[Path, typer.Option(help="Corpus of real images, or a folder of volumes with metadata.jsonl.")],
    synthetic: Annotated[Path, typer.Option(help="Folder of generated images or volumes with metadata.jsonl.")],
    design: Annotated[
        str, typer.Option(help="medisyn-v2, budget, medsyn (cross-validation), pretrain, or tstr.")
    ] = "medisyn-v2",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value of the design, for example network=18.")
    ] = None,
    trained_on: Annotated[
        Path | None,
        typer.Option(help="The generator's corpus or run folder, for the check of leakage.", show_default="unchecked"),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="ImageNet or MedicalNet weights of the ResNet.", show_default="random weights")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report.", show_default="SYNTHETIC-utility-DESIGN")
    ] = None,
    json: Json = False,
) -> None:
    """Measure what synthetic images are worth to a classifier.

    Trains classifiers on real images, on fewer of them, and on these with synthetic ones, and tests all on the same
    held-out real images. Sizes shrink to what there is, and are printed. Repeat the command to go on after an
    interruption. Writes report.html, result.json and CSV tables.

    Example:
        medisyn utility --real corpus/ --synthetic synthetic/a --trained-on corpus/
        medisyn utility --real corpus/ --synthetic synthetic/a --design tstr --set network=10 --set size=64
    """
    from medisyn.recipes.utility import utility as run

    found = run(
        real,
        synthetic,
        design,
        set_ or (),
        trained_on=trained_on,
        weights=weights,
        out=out,
        announce=lambda line: typer.echo(line, err=True),
    )
    if json:
        import json as json_format

        typer.echo(json_format.dumps({**found.as_dict(), "report": str(found.page)}, indent=2, ensure_ascii=False))
        return
    typer.echo(found.summary())
