"""`medisyn study`: reader studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisyn.cli.options import Json

app = typer.Typer(help="Analyse what readers answered in a finished study.", no_args_is_help=True)


@app.callback()
def study() -> None:
    """Analyse what readers answered in a finished study."""


@app.command()
def report(
    answers: Annotated[Path, typer.Argument(help="Table of answers (CSV), or a folder with answers.csv.")],
    reference: Annotated[
        str | None, typer.Option(help="Group that the others are compared with.", show_default="real, else the first")
    ] = None,
    margin: Annotated[
        float, typer.Option(help="Difference in accuracy that is of no importance: 0.1 is ten percentage points.")
    ] = 0.1,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the report.", show_default="ANSWERS-report")] = None,
    json: Json = False,
) -> None:
    """Accuracy, agreement, confidence or ranks of the readers, with intervals and tests.

    A classification has the columns reader, item, truth, answer, and optional source (real, synthetic), confidence
    (1 to 5) and repeat (1 where the item was shown again). A ranking has reader, block, system, rank (1 is best, no
    ties) and optional group. Writes report.html, result.json and CSV tables.

    Example:
        medisyn study report answers.csv
        medisyn study report answers.csv --margin 0.05 --out study/report
    """
    from medisyn.recipes.study_report import study_report

    found = study_report(answers, reference=reference, margin=margin, resamples=resamples, seed=seed, out=out)
    if json:
        import json as json_format

        typer.echo(json_format.dumps({**found.as_dict(), "report": str(found.page)}, indent=2, ensure_ascii=False))
        return
    typer.echo(found.summary())
