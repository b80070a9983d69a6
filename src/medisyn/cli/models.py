"""`medisyn models`: what `--model` takes."""

from __future__ import annotations

from typing import Annotated

import typer

from medisyn.cli.options import Json

OTHERS = """
Other values of --model:
  a run's folder       from `medisyn train`
  a diffusers folder   model_index.json of a Stable Diffusion 1, 2 or XL text-to-image model, weights as .safetensors
                       (a folder with pickles only is refused)
  a hub id             owner/name of such a model; downloaded once, and only because it was named"""


def models(
    name: Annotated[str | None, typer.Argument(help="A model that ships with MediSyn: print its card.")] = None,
    json: Json = False,
) -> None:
    """List the models that are at hand, or describe one.

    Example:
        medisyn models
        medisyn models starter-image
    """
    from medisyn.recipes.shipped_models import shipped_model, shipped_models

    found = shipped_models() if name is None else [shipped_model(name)]
    if json:
        import json as json_format

        typer.echo(json_format.dumps([model.as_dict() for model in found], indent=2, ensure_ascii=False))
        return
    for model in found:
        typer.echo(f"{model.name}   {model.makes} ({model.state})")
        if name is not None and model.card:
            typer.echo(f"\n{model.card}")
    if name is None:
        typer.echo(OTHERS)
