"""`medisyn paper`: the published tables, the commands that give ours, and both side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisyn.cli.options import Json


def paper(
    name: Annotated[
        str | None, typer.Argument(help="medisyn-v1, medisyn-v2, textual-inversion or medsyn; none lists them.")
    ] = None,
    results: Annotated[
        list[Path] | None, typer.Option(help="Folder with our results to put beside; may be repeated.")
    ] = None,
    json: Json = False,
) -> None:
    """Print a paper's tables, the commands that give ours, and both side by side.

    The figures are as printed; known slips are marked with what is right. Ours stand beside them where --results holds
    them, each with its n and extractor; where these differ from the paper's, the row says that the two do not compare.

    Example:
        medisyn paper medisyn-v2
        medisyn paper medisyn-v2 --results study/
    """
    from medisyn.recipes.papers.tables import PAPERS, load_paper

    if name is None:
        for known in PAPERS:
            typer.echo(f"{known:<18}  {load_paper(known).title}")
        return
    from medisyn.cli import COMMANDS
    from medisyn.recipes import PRESETS
    from medisyn.recipes.papers.beside import paper_report

    found = paper_report(name, results or (), commands=COMMANDS, presets=PRESETS)
    if json:
        import json as json_format

        typer.echo(json_format.dumps(found.as_dict(), indent=2, ensure_ascii=False))
        return
    typer.echo(found.text())
