"""`medisyn generate anatomy`: chest CTs around given lobes, airways or vessels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisyn.cli.options import CtGuidance, CtModel, CtSolver, CtSteps, Device, Dtype, Json, tell


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
    model: CtModel = "starter-ct",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the volumes.", show_default="a folder of its own in synthetic/")
    ] = None,
    steps: CtSteps = None,
    guidance: CtGuidance = None,
    negative: Annotated[str, typer.Option(help="What the volume should not show.")] = "",
    solver: CtSolver = None,
    batch_size: Annotated[int | None, typer.Option(help="Volumes made at once.", show_default="1")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    dicom: Annotated[bool, typer.Option("--dicom", help="Also write a DICOM series and its masks.")] = False,
    json: Json = False,
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
    tell(report, json)
