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
def wuerstchen(
    out: Annotated[Path, typer.Option(help="Folder of the model; with --stage-b alone, of the image encoder.")],
    stage_c: Annotated[Path | None, typer.Option(help="Raw checkpoint, such as model_v3_stage_c.pt.")] = None,
    stage_b: Annotated[
        Path | None, typer.Option(help="Raw checkpoint model_v2_stage_b.pt: Stage B and the image encoder.")
    ] = None,
    stage_a: Annotated[Path | None, typer.Option(help="Raw checkpoint vqgan_f4_v1_500k.pt.")] = None,
    prior: Annotated[
        Path | None, typer.Option(help="Folder of the published prior's pipeline, for what is not given raw.")
    ] = None,
    decoder: Annotated[Path | None, typer.Option(help="Folder of the published decoder's pipeline, likewise.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="Folder of Stage C's text encoder and tokenizer.", show_default="--prior's")
    ] = None,
    decoder_text: Annotated[
        Path | None, typer.Option(help="Folder of Stage B's text encoder and tokenizer.", show_default="--decoder's")
    ] = None,
) -> None:
    """Turn the published Würstchen v2 into one model folder, or its image encoder into a folder.

    Example:
        medisyn convert wuerstchen --prior wuerstchen-prior/ --decoder wuerstchen/ --stage-b stage_b.pt --out v2/
        medisyn convert wuerstchen --stage-b model_v2_stage_b.pt --out image_encoder/
    """
    from medisyn.recipes.wuerstchen_convert import convert_wuerstchen

    report = convert_wuerstchen(
        out,
        stage_a=stage_a,
        stage_b=stage_b,
        stage_c=stage_c,
        prior=prior,
        decoder=decoder,
        text=text,
        decoder_text=decoder_text,
    )
    typer.echo(report.summary())


@app.command()
def higen(
    checkpoint: Annotated[Path, typer.Option(help="The released U-Net, such as cvpr2024.t2v.higen.ema.pth.")],
    base: Annotated[
        str, typer.Option(help="Stable Diffusion 2.1, folder or hub id: its autoencoder and text encoder are used.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the model.")],
    text_layer: Annotated[
        str | None,
        typer.Option(
            help="penultimate or last layer of the text encoder.", show_default="told by its number of layers"
        ),
    ] = None,
) -> None:
    """Turn the released HiGen checkpoint into a model folder.

    Example:
        medisyn convert higen --checkpoint higen.pth --base stabilityai/stable-diffusion-2-1-base --out higen/
    """
    from medisyn.recipes.higen_convert import convert_higen

    typer.echo(convert_higen(checkpoint, base, out, text_layer=text_layer).summary())


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
