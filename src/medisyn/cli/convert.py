"""`medisyn convert`: checkpoints and embeddings of other programs as our model folders."""

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


@app.command()
def embedding(
    files: Annotated[list[Path], typer.Argument(help="Textual-inversion files: .safetensors, .pt or .bin.")],
    out: Annotated[Path, typer.Option(help="Folder of the model, or with --layout the file to write.")],
    base: Annotated[str | None, typer.Option(help="The model that they were trained on.")] = None,
    token: Annotated[
        str | None, typer.Option(help='The word in prompts, such as "<healthy>".', show_default="the file's name")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="Write one file for another program: diffusers, a1111 or kohya.")
    ] = None,
) -> None:
    """Turn textual-inversion files into a folder that `--model` opens, or into another program's file.

    Example:
        medisyn convert embedding healthy.pt cardiomegaly.pt --base stabilityai/stable-diffusion-2-base --out chest/
        medisyn convert embedding runs/c/model/learned_embeds.safetensors --layout a1111 --out prostate-mri.pt
    """
    from medisyn.recipes.embedding_convert import convert_embeddings

    typer.echo(convert_embeddings(files, out, base=base, token=token, layout=layout).summary())
