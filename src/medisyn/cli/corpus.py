"""`medisyn corpus`: look into a corpus, check it, and print the schema of source descriptions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisyn.cli.options import Json

app = typer.Typer(
    help="Look into a corpus: show, verify, and the schema of a source description.", no_args_is_help=True
)


@app.command()
def show(
    corpus: Annotated[Path, typer.Argument(help="Folder of a corpus.")],
    captions: Annotated[int, typer.Option(help="Frequent captions to list.")] = 10,
    json: Json = False,
) -> None:
    """Counts per specialty, image type, source and split, and the most frequent captions.

    Example:
        medisyn corpus show corpus/
    """
    from medisyn.corpus.checks import summary, summary_text

    counted = summary(corpus, captions)
    if json:
        import json as json_format

        typer.echo(json_format.dumps(counted, indent=2, ensure_ascii=False))
    else:
        typer.echo(summary_text(counted))


@app.command()
def verify(corpus: Annotated[Path, typer.Argument(help="Folder of a corpus.")], json: Json = False) -> None:
    """Read every shard and check every hash, caption, offset and split; exit code 2 when something is wrong.

    Example:
        medisyn corpus verify corpus/
    """
    from medisyn.corpus.checks import verify as run

    report = run(corpus)
    if json:
        import json as json_format
        from dataclasses import asdict

        typer.echo(json_format.dumps(asdict(report), indent=2))
    report.raise_if_broken()
    if not json:
        typer.echo(f"{report.samples:,} samples in {report.shards:,} shards: all readable, hashes and splits right")


@app.command()
def schema() -> None:
    """The JSON schema of a source description, for editors and other programs.

    Example:
        medisyn corpus schema > source.schema.json
    """
    import json as json_format

    from medisyn.corpus.source import schema as source_schema

    typer.echo(json_format.dumps(source_schema(), indent=2))


@app.command()
def sources() -> None:
    """The source descriptions that come with the package.

    Example:
        medisyn corpus sources
    """
    from medisyn.corpus.source import load_source, shipped

    for name in shipped():
        source, _ = load_source(name)
        typer.echo(f"{name:28} {source.licence:24} {source.title}")
