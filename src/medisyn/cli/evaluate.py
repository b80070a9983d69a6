"""`medisyn evaluate`: generated images against a corpus, one report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    synthetic: Annotated[
        Path, typer.Argument(help="Folder of generated images with metadata.jsonl, or a corpus of them.")
    ],
    against: Annotated[Path, typer.Option(help="Corpus of real images.")],
    split: Annotated[str, typer.Option(help="Its images to compare with: test, validation or train.")] = "test",
    extractor: Annotated[
        str, typer.Option(help="medical-encoder, inception, inception:download, inception-legacy, or dinov2:FOLDER.")
    ] = "medical-encoder",
    weights: Annotated[
        Path | None, typer.Option(help="The extractor's weight file or folder.", show_default="the shipped one")
    ] = None,
    judge: Annotated[
        str, typer.Option(help="Classifier that names classes: train (on the corpus), none, or its folder.")
    ] = "train",
    judge_steps: Annotated[int, typer.Option(help="Steps for --judge train; the judge is kept in the cache.")] = 600,
    neighbours: Annotated[int, typer.Option(help="Training images each image is compared with; 0 for none.")] = 10,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of every interval.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of draws and resamples.")] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for features and judges.", show_default="~/.cache/medisyn")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report.", show_default="SYNTHETIC-evaluation")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure generated images against a corpus.

    Fréchet and kernel distance, precision, recall, density and coverage to held-out real images, each beside
    real-to-real; how often a classifier of real images names the class that was asked for; and how close the images
    come to training images. Writes report.html, result.json and CSV tables.

    Example:
        medisyn evaluate synthetic/a --against corpus/
        medisyn evaluate synthetic/a --against corpus/ --extractor dinov2:dinov2-large/ --judge none
    """
    from medisyn.recipes.evaluate_images import EvaluateSettings, evaluate_images

    settings = EvaluateSettings(
        split=split,
        extractor=extractor,
        judge=judge,
        judge_steps=judge_steps,
        neighbours=neighbours,
        resamples=resamples,
        seed=seed,
    )
    found = evaluate_images(synthetic, against, settings, weights=weights, cache=cache, out=out)
    if json:
        import json as json_format

        typer.echo(json_format.dumps({**found.as_dict(), "report": str(found.page)}, indent=2, ensure_ascii=False))
        return
    typer.echo(found.summary())
