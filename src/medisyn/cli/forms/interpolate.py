"""`medisyn generate interpolate`: from one prompt to another in frames."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisyn.cli.options import BatchSize, Device, Dtype, Json, Model, Size, Solver, Steps, tell


def interpolate(
    start: Annotated[str, typer.Option("--from", help="The prompt of the first frame.")],
    end: Annotated[
        str | None, typer.Option("--to", help="The prompt of the last frame.", show_default="none, for --by noise")
    ] = None,
    frames: Annotated[int, typer.Option(help="Pictures from the first to the last.")] = 9,
    by: Annotated[
        str, typer.Option(help="weight: prompts combined; embedding: texts mixed; noise: from one seed to another.")
    ] = "weight",
    n: Annotated[int, typer.Option("-n", "--number", help="Series, each with a seed of its own.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the run; each series has its own, from this.")] = 0,
    model: Model = "starter-image",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the frames.", show_default="a folder of its own in synthetic/")
    ] = None,
    steps: Steps = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strongly the prompts steer.", show_default="the model's")
    ] = None,
    negative: Annotated[str, typer.Option(help="What the pictures should not show.")] = "",
    solver: Solver = None,
    size: Size = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    target: Annotated[
        str | None, typer.Option(help="Class of the judge whose log-odds should rise along a series.")
    ] = None,
    judge: Annotated[
        Path | None, typer.Option(help="Folder of a classifier of real images.", show_default="the shipped one")
    ] = None,
    json: Json = False,
) -> None:
    """Make series of images from one prompt to another, with a sheet and an animation.

    Along a series the seed stays, so only what the prompts say changes. With --target, a classifier of real images says
    whether its score rises from frame to frame.

    Example:
        medisyn generate interpolate --from "Axial chest CT image, lung window" \\
            --to "Axial chest CT image, lung window, showing lung tumour" --frames 7 -n 4
    """
    from medisyn.recipes.interpolate_images import interpolate_images

    report = interpolate_images(
        start,
        end,
        frames=frames,
        by=by,
        n=n,
        seed=seed,
        model=model,
        out=out,
        negative_prompt=negative,
        height=size,
        width=size,
        steps=steps,
        guidance=guidance,
        solver=solver,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        target=target,
        judge=judge,
    )
    tell(report, json)
