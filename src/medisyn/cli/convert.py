"""`medisyn convert`: checkpoints of other programs as our model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Turn published checkpoints into model folders; the only command that reads pickles.", no_args_is_help=True
)


@app.callback()
def convert() -> None:
    """Turn published checkpoints into model folders; the only command that reads pickles."""


@app.command()
def medsyn(
    base: Annotated[Path, typer.Option(help="Checkpoint of the 64³ base model: a file, or its folder.")],
    report_encoder: Annotated[Path, typer.Option(help="Checkpoint of the report encoder: a file, or its folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the model.")],
    superres: Annotated[Path | None, typer.Option(help="Checkpoint of the super-resolution model.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with vocab.txt, where the report encoder's has none.")
    ] = None,
    up_order: Annotated[
        str | None, typer.Option(help="late or mid; the published scripts differ. Default: --check decides, else late.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="A .npy scan (4, 64, 64, 64) in [-1, 1] that tells the two orders apart.")
    ] = None,
) -> None:
    """Turn the released MedSyn checkpoints into a model folder.

    Example:
        medisyn convert medsyn --base base/ --superres sr/ --report-encoder pretrained_lm/ --out medsyn/
    """
    from medisyn.recipes.medsyn_convert import convert_medsyn

    report = convert_medsyn(
        base, report_encoder, out, superres=superres, tokenizer=tokenizer, up_order=up_order, check=check
    )
    typer.echo(report.summary())
