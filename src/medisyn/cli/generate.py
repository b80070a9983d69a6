"""`medisyn generate`: prompts in, a folder of pictures, CT volumes or clips out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisyn.cli.options import Device, Dtype, Json, Model, Seed, Size, Solver, Steps


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the picture shows.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A table instead: CSV, TSV, JSONL (column prompt, caption or text) or TXT (one per line)."),
    ] = None,
    model: Model = "starter-image",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for what is made; for one clip also its file (.mp4, .mkv, .gif).",
            show_default="a folder of its own in synthetic/",
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--number", help="Pictures per prompt.")] = 1,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strongly the prompt steers; 1 is not at all.", show_default="the model's")
    ] = None,
    negative: Annotated[str, typer.Option(help="What the picture should not show.")] = "",
    frames: Annotated[int | None, typer.Option(help="Frames of a clip.", show_default="the model's")] = None,
    motion: Annotated[
        float | None, typer.Option(help="Of a clip: how much moves, 0 and up.", show_default="the model's")
    ] = None,
    appearance: Annotated[
        float | None,
        typer.Option(
            help="Of a clip: how far its last frame may drift from the first, 0 to 1.", show_default="the model's"
        ),
    ] = None,
    solver: Solver = None,
    size: Size = None,
    height: Annotated[int | None, typer.Option(help="Height in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures made at once.", show_default="8, fewer for large pictures")
    ] = None,
    processes: Annotated[int, typer.Option(help="Processes that share the work; each opens the model.")] = 1,
    device: Device = "auto",
    dtype: Dtype = "auto",
    reject_copies_of: Annotated[
        Path | None, typer.Option(help="Corpus: draw a picture again that is a copy of one of its training images.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Rules as YAML, for --reject-copies-of.", show_default="the built-in rules")
    ] = None,
    tries: Annotated[int, typer.Option(help="Draws per picture, for --reject-copies-of.")] = 3,
    gallery: Annotated[Path | None, typer.Option(help="Also write one HTML page with all pictures there.")] = None,
    gallery_also: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of other generated pictures to show on the --gallery page. Repeatable."),
    ] = None,
    dicom: Annotated[
        bool, typer.Option("--dicom", help="Also write DICOM: of a CT a series and its masks, of a clip one file.")
    ] = False,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="Files of a clip: mkv (lossless, what evaluate reads), mp4, gif. Repeatable.",
            show_default="mkv and mp4",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Make images, CT volumes or clips from a prompt or a file of prompts.

    Repeat the command to go on after an interruption; add prompts to the table to add pictures to the folder. Every
    file carries its prompt, seed and model, and metadata.jsonl lists them all (imagefolder layout). What is made
    depends on the model.

    Example:
        medisyn generate "Frontal (PA) chest X-ray image" -n 4
        medisyn generate --prompts prompts.csv --model runs/a --out synthetic/a --gallery synthetic/a.html
        medisyn generate "Apical four-chamber view" --model starter-video --motion 300 --appearance 0.7 -o clip.mp4
    """
    from medisyn.recipes.generate_images import generate_images

    report = generate_images(
        prompt,
        prompts=prompts,
        model=model,
        out=out,
        n=n,
        seed=seed,
        negative_prompt=negative,
        height=size if height is None else height,
        width=size if width is None else width,
        steps=steps,
        guidance=guidance,
        frames=frames,
        motion=motion,
        appearance=appearance,
        solver=solver,
        batch_size=batch_size,
        processes=processes,
        device=device,
        dtype=dtype,
        reject_copies_of=reject_copies_of,
        policy=policy,
        tries=tries,
        gallery=gallery,
        gallery_also=gallery_also or (),
        dicom=dicom,
        formats=formats or (),
    )
    if json:
        import json as json_format

        typer.echo(json_format.dumps({**report.as_dict(), "gallery": str(gallery) if gallery else None}, indent=2))
        return
    typer.echo(report.summary())
    if gallery is not None:
        typer.echo(f"Gallery: {gallery}")
    typer.echo("Synthetic images. Not for diagnostic use.")
