"""`medisyn presets`: what can be trained, and with which values."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from medisyn.cli.options import Json


def presets(
    name: Annotated[str | None, typer.Argument(help="Show this preset's values.")] = None,
    json: Json = False,
) -> None:
    """List the training presets, or one preset with its values and their sources.

    Example:
        medisyn presets
        medisyn presets medisyn-v2
    """
    import json as json_format

    from medisyn.recipes import PRESETS, get_preset
    from medisyn.recipes.sources import sources_of

    if name is None:
        lines = {preset_name: preset.summary for preset_name, preset in PRESETS.items()}
        width = max(map(len, lines))
        text = "\n".join(f"{preset_name:<{width}}  {summary}" for preset_name, summary in lines.items())
        typer.echo(json_format.dumps(lines, indent=2) if json else text)
        return
    preset: Any = get_preset(name)
    values = dataclasses.asdict(preset)
    if json:
        typer.echo(json_format.dumps(values, indent=2))
        return
    sources = sources_of(preset)
    for key, value in flat(values):
        source = sources.get(key)
        typer.echo(f"{key} = {value}" + (f"  # {source}" if source else ""))


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested values as dotted keys, as `medisyn train --set` takes them."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        rows += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return rows
