"""Options that several commands share, each said once, and how the forms of `medisyn generate` tell what was made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medisyn.recipes import Report

Model = Annotated[
    str, typer.Option(help="A model that ships with MediSyn, a run's folder, a diffusers folder, or a hub id.")
]
Seed = Annotated[int, typer.Option(help="Seed of the run; each picture has its own, from this and its key.")]
Steps = Annotated[int | None, typer.Option(help="Solver steps.", show_default="the model's")]
Solver = Annotated[
    str | None, typer.Option(help="dpmpp-2m, euler, or checkpoint: the model's own.", show_default="dpmpp-2m")
]
Size = Annotated[int | None, typer.Option(help="Height and width in pixels.", show_default="the model's")]
BatchSize = Annotated[int | None, typer.Option(help="Pictures made at once.", show_default="8 or fewer")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU where there is one.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, or auto: bfloat16 where the machine computes in it.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

# Of the CT models
CtModel = Annotated[str, typer.Option(help="A CT model that ships with MediSyn, a run's folder, or a MedSyn folder.")]
CtSteps = Annotated[int | None, typer.Option(help="Solver steps of the base model.", show_default="the model's")]
CtGuidance = Annotated[
    float | None, typer.Option(help="How strongly the report steers; 1 is not at all.", show_default="the model's")
]
CtSolver = Annotated[str | None, typer.Option(help="ddim, dpmpp-2m or renoise.", show_default="the model's")]


def tell(report: Report, json: bool, note: str = "Synthetic images. Not for diagnostic use.") -> None:
    """Print a report as JSON, or for a person and with a note."""
    if json:
        import json as json_format

        typer.echo(json_format.dumps(report.as_dict(), indent=2))
        return
    typer.echo(report.summary())
    typer.echo(note)
