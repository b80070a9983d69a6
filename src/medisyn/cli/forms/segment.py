"""`medisyn generate segment`: lobes, airways and vessels of a given CT."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def segment(
    ct: Annotated[
        Path | None,
        typer.Option(help="CT in HU: a NIfTI or NRRD file, or a folder or zip of CTs or of one DICOM series."),
    ] = None,
    report: Annotated[
        str,
        typer.Option(
            help="Report of every CT, or a table with columns ct and report.", show_default="the text beside each CT"
        ),
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of the run; each CT has its own, from this and its key.")] = 0,
    model: Annotated[
        str, typer.Option(help="A CT model that ships with MediSyn, a run's folder, or a MedSyn folder.")
    ] = "starter-ct",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the masks.", show_default="a folder of its own in synthetic/")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Solver steps of the base model.", show_default="the model's")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strongly the report steers; 1 is not at all.", show_default="the model's")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="ddim or dpmpp-2m.", show_default="the model's")] = None,
    batch_size: Annotated[int, typer.Option(help="CTs segmented at once.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU where there is one.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, or auto: bfloat16 where the machine computes in it.")
    ] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Segment a CT with a generative model: lobes, airways and vessels.

    The CT is kept at every step and the model fills in the masks, once without a report and once with it where there is
    one. Masks come on the CT's own grid. Where masks lie beside the CT, the Dice of both ways is written too.

    Example:
        medisyn generate segment --ct scan.nii.gz --report "Large right pleural effusion."
        medisyn generate segment --ct phantoms/ --out segmented/
    """
    from medisyn.errors import InputError
    from medisyn.recipes.segment_volumes import segment_volumes

    if ct is None:
        raise InputError("--ct is missing: name the CT that is to be segmented, or a folder of CTs")
    done = segment_volumes(
        ct,
        report=report,
        model=model,
        out=out,
        seed=seed,
        steps=steps,
        guidance=guidance,
        solver=solver,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
    )
    if json:
        import json as json_format

        typer.echo(json_format.dumps(done.as_dict(), indent=2))
        return
    typer.echo(done.summary())
    typer.echo("Masks of a generative model. Not for diagnostic use.")
