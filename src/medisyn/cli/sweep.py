"""`medisyn sweep`: a grid of settings, ranked as far as the images allow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisyn.cli.options import Json


def sweep(
    against: Annotated[Path, typer.Option(help="Corpus of real images.")],
    out: Annotated[Path, typer.Option(help="Folder of the sweep; the same command goes on with it.")],
    vary: Annotated[
        list[str], typer.Option(help="steps=10,25,50. Repeatable; all combinations are made.", show_default=False)
    ],
    prompt: Annotated[str, typer.Option(help="What every image shows.")] = "",
    prompts: Annotated[str, typer.Option(help="A table of prompts instead, as for `medisyn generate`.")] = "",
    n: Annotated[int, typer.Option("-n", "--number", help="Images per prompt.")] = 100,
    model: Annotated[str, typer.Option(help="The model of every cell.")] = "starter-image",
    preset: Annotated[
        str, typer.Option(help="Train this instead, once per combination of the axes that are its keys.")
    ] = "",
    corpus: Annotated[str, typer.Option(help="What the preset is trained on.")] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value of the preset, for all cells. Repeatable.")
    ] = None,
    real_class: Annotated[
        str, typer.Option(help='Only real images of this class, such as "chest X-ray/pneumonia".')
    ] = "",
    split: Annotated[str, typer.Option(help="Real images of this split.")] = "test",
    extractor: Annotated[str, typer.Option(help="As for `medisyn evaluate`.")] = "medical-encoder",
    weights: Annotated[str, typer.Option(help="Weights of the extractor, where it is not the shipped one.")] = "",
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of images and resamples.")] = 0,
    json: Json = False,
) -> None:
    """Make images with every combination of some settings, and rank them by distance to real images.

    All cells share prompts and seeds. Cells whose difference lies inside what chance gives share a rank. Writes
    report.html, result.json and CSV tables. Repeat the command to go on after an interruption, or with more values.

    Example:
        medisyn sweep --against c/ --prompt "Chest X-ray image" --vary steps=10,25 --vary guidance=1,2,4 --out s/a
        medisyn sweep --against c/ --preset textual-inversion --corpus c/ --set "tokens=<x>" --prompt "<x>" \
--vary num_vectors=8,64 --vary images=10,100 --out s/b
    """
    from medisyn.errors import ConfigError
    from medisyn.recipes.sweep import SweepSettings
    from medisyn.recipes.sweep import sweep as run

    axes = {}
    for assignment in vary:
        axis, equals, values = assignment.partition("=")
        if not equals or axis in axes:
            raise ConfigError(f"vary {assignment!r}: write each axis once, as steps=10,25,50")
        axes[axis] = [value.strip() for value in values.split(",")]
    settings = SweepSettings(
        model=model,
        preset=preset,
        corpus=corpus,
        assignments=tuple(set_ or ()),
        prompt=prompt,
        prompts=prompts,
        n=n,
        seed=seed,
        split=split,
        real_class=real_class,
        extractor=extractor,
        weights=weights,
        resamples=resamples,
    )
    found = run(against, axes, out, settings, announce=lambda line: typer.echo(line, err=True))
    if json:
        import json as json_format

        typer.echo(json_format.dumps({**found.as_dict(), "report": str(found.page)}, indent=2, ensure_ascii=False))
        return
    typer.echo(found.summary())
    typer.echo(f"Report: {found.page}")
