"""`medisyn generate anatomy`: chest CTs around given lobes, airways or vessels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def anatomy(
    prompt: Annotated[
        str, typer.Argument(help="The report; left out: anatomy alone.", show_default="the learned null text")
    ] = "",
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Folder with lobe.nii.gz, airway.nii.gz, vessel.nii.gz, of one or more bodies; or a table with "
            "columns lobe, airway, vessel and, optional, key and prompt."
        ),
    ] = None,
    fix: Annotated[
        str, typer.Option(help="What is kept: of lobe, airway, vessel, with commas.", show_default="every mask there")
    ] = "",
    n: Annotated[int, typer.Option("-n", "--number", help="Volumes per anatomy.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the run; each volume has its own, from this and its key.")] = 0,
    model: Annotated[
        str, typer.Option(help="A CT model that ships with MediSyn, a run's folder, or a MedSyn folder.")
    ] = "starter-ct",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the volumes.", show_default="a folder of its own in synthetic/")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Solver steps of the base model.", show_default="the model's")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strongly the report steers; 1 is not at all.", show_default="the model's")
    ] = None,
    negative: Annotated[str, typer.Option(help="What the volume should not show.")] = "",
    solver: Annotated[str | None, typer.Option(help="ddim or dpmpp-2m.", show_default="the model's")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Volumes made at once.", show_default="1")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU where there is one.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, or auto: bfloat16 where the machine computes in it.")
    ] = "auto",
    dicom: Annotated[bool, typer.Option("--dicom", help="Also write a DICOM series and its masks.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make chest CTs around given lobes, airways or vessels.

    The given masks are kept at every step and come out as they went in; the rest follows them and the report. Where the
    two contradict each other, the masks stay. Masks of any spacing and orientation are brought to the model's grid.

    Example:
        medisyn generate anatomy "Large right pleural effusion." --masks patient/ --fix lobe,airway
        medisyn generate anatomy --masks anatomies.csv -n 4 --out synthetic/bodies
    """
    from medisyn.errors import InputError
    from medisyn.recipes.fixed_channels import generate_anatomy

    if masks is None:
        raise InputError("--masks is missing: name the folder or table of the masks that are to be kept")
    report = generate_anatomy(
        prompt,
        masks=masks,
        fix=tuple(name.strip() for name in fix.split(",") if name.strip()),
        model=model,
        out=out,
        n=n,
        seed=seed,
        negative_prompt=negative,
        steps=steps,
        guidance=guidance,
        solver=solver,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        dicom=dicom,
    )
    if json:
        import json as json_format

        typer.echo(json_format.dumps(report.as_dict(), indent=2))
        return
    typer.echo(report.summary())
    typer.echo("Synthetic images. Not for diagnostic use.")
