"""`medisyn generate segment`: lobes, airways and vessels of a given CT."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisyn.cli.options import CtGuidance, CtModel, CtSolver, CtSteps, Device, Dtype, Json, tell


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
    model: CtModel = "starter-ct",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the masks.", show_default="a folder of its own in synthetic/")
    ] = None,
    steps: CtSteps = None,
    draws: Annotated[
        int | None,
        typer.Option(help="How often the masks are drawn; lobes go by vote.", show_default="the model's"),
    ] = None,
    guidance: CtGuidance = None,
    solver: CtSolver = None,
    batch_size: Annotated[int, typer.Option(help="CTs segmented at once.")] = 1,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
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
        draws=draws,
        guidance=guidance,
        solver=solver,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
    )
    tell(done, json, "Masks of a generative model. Not for diagnostic use.")
