"""`medisyn generate inpaint`: a prompt painted into an image, inside a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisyn.cli.options import BatchSize, Device, Dtype, Json, Model, Seed, Solver, Steps, tell


def inpaint(
    image: Annotated[Path | None, typer.Option(help="Image with 8 bits per channel: PNG, JPEG, TIFF, BMP.")] = None,
    mask: Annotated[
        str | None, typer.Option(help="box:x,y,width,height, ellipse:cx,cy,rx,ry, or a file: white is painted.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What the painted part shows.")] = None,
    table: Annotated[
        Path | None, typer.Option(help="A table instead: CSV, TSV or JSONL with columns image, mask and prompt.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="Share of the steps that are made: 1 paints anew, less keeps some of what was there.")
    ] = 1.0,
    feather: Annotated[
        float, typer.Option(help="Pixels inside the mask's edge over which the painted part fades in.")
    ] = 2.0,
    n: Annotated[int, typer.Option("-n", "--number", help="Pictures per image and mask.")] = 1,
    seed: Seed = 0,
    model: Model = "starter-image",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pictures.", show_default="a folder of its own in synthetic/")
    ] = None,
    steps: Steps = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strongly the prompt steers.", show_default="the model's")
    ] = None,
    negative: Annotated[str, typer.Option(help="What the painted part should not show.")] = "",
    solver: Solver = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Paint a prompt into an image inside a mask; every other pixel stays as it is.

    An image of another size than the model's is worked on at about the model's area, and the painted part is scaled
    back. Pixels outside the mask come back bit for bit. The result is marked as synthetic.

    Example:
        medisyn generate inpaint --image ct.png --mask ellipse:80,60,10,8 --prompt "Axial chest CT image, lung tumour"
        medisyn generate inpaint --table lesions.csv --out painted/
    """
    from medisyn.recipes.inpaint_images import inpaint_images

    report = inpaint_images(
        prompt,
        image=image,
        mask=mask,
        table=table,
        strength=strength,
        feather=feather,
        n=n,
        seed=seed,
        model=model,
        out=out,
        negative_prompt=negative,
        steps=steps,
        guidance=guidance,
        solver=solver,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
    )
    tell(report, json)
