"""`medisyn curate`: source descriptions in, a corpus out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisyn.cli.options import Json


def curate(
    sources: Annotated[list[str], typer.Argument(help="Source descriptions: YAML files, or names of shipped ones.")],
    out: Annotated[Path, typer.Option(help="Folder of the corpus.")],
    root: Annotated[
        Path | None,
        typer.Option(help="Folder that holds the files, or the sources' folders.", show_default="the YAML's"),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Pixels of both sides.", show_default="the description's")] = None,
    engine: Annotated[str, typer.Option(help="inline, processes, or processes:N.")] = "processes",
    key_file: Annotated[
        Path | None, typer.Option(help="Secret for pseudonyms, hex.", show_default="OUT.key, made when needed")
    ] = None,
    shares: Annotated[str, typer.Option(help="train:validation:test.")] = "80:10:10",
    test_per_specialty: Annotated[
        int | None, typer.Option(help="Reserve at least so many samples of each specialty for test (MediSyn v1: 125).")
    ] = None,
    json: Json = False,
) -> None:
    """Turn files and a metadata table into a captioned, split corpus with a data card.

    Bad files go to quarantine.jsonl with the reason. Repeat the command after an interruption: what was done is kept.

    Example:
        medisyn curate chest.yaml --root /data/chest --out corpus/
        medisyn curate cxr_hannover us_nerve_usgra --root /data/open --size 128 --out corpus/
    """
    from dataclasses import asdict

    from tqdm import tqdm

    from medisyn.corpus.curate import curate as run
    from medisyn.corpus.splits import Shares

    bars: dict[str, tqdm] = {}

    def progress(stage: str, done: int, total: int) -> None:
        bar = bars.setdefault(stage, tqdm(desc=stage, total=total, unit=stage[:-1], disable=None))
        bar.update(done - bar.n)

    try:
        report = run(
            list(sources),
            out,
            root=root,
            size=size,
            engine=engine,
            key_file=key_file,
            shares=Shares.parse(shares),
            test_per_specialty=test_per_specialty,
            progress=progress,
        )
    finally:  # an error stands on a line of its own, below the bars
        for bar in bars.values():
            bar.close()
    if json:
        import json as json_format

        typer.echo(json_format.dumps(asdict(report), indent=2))
        return
    typer.echo(report.text())
    typer.echo(f"Corpus {report.fingerprint} in {out}, card: {out / 'README.md'}")
