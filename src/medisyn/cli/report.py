"""`medisyn report`: every result below a folder on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisyn.cli.options import Json


def report(
    folder: Annotated[Path, typer.Argument(help="Folder with results of evaluate, audit, utility, training runs.")],
    out: Annotated[Path | None, typer.Option(help="The page.", show_default="FOLDER/report.html")] = None,
    json: Json = False,
) -> None:
    """Combine every result below a folder into one page.

    What was trained on what, with which settings, and every measure with its n, extractor, interval and baseline.
    Results of different corpora, models, extractors or numbers of images are kept apart, and the page says why.

    Example:
        medisyn report study/ --out study.html
    """
    from medisyn.recipes.combined_report import combined_report

    found = combined_report(folder, out)
    if json:
        import json as json_format

        typer.echo(json_format.dumps(found.as_dict(), indent=2, ensure_ascii=False))
        return
    typer.echo(found.summary())
