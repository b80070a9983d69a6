"""`medisyn train`: a preset and a corpus in, a run's folder with a model out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from medisyn.cli.options import Json


def train(
    preset: Annotated[str, typer.Argument(help="Name of a preset; `medisyn presets` lists them.")],
    corpus: Annotated[Path, typer.Option(help="A curated corpus.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command goes on with it.")],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value, for example learning_rate=1e-5. Repeatable.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The model to start from; short for --set base=NAME.", show_default="the preset's"),
    ] = None,
    token: Annotated[
        list[str] | None,
        typer.Option(help='textual-inversion: the word to learn, such as "<prostate-mri>". Repeatable.'),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps in all; short for --set num_steps=N.")] = None,
    processes: Annotated[int, typer.Option(help="Training processes on this machine, one per GPU.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and the memory it takes, and stop.")
    ] = False,
    json: Json = False,
) -> None:
    """Train a model from a preset; the same command resumes.

    Ctrl-C ends the step at hand and writes a checkpoint. The model of the best (else the latest) checkpoint is in
    OUT/model: an ordinary diffusers folder, or for a LoRA or a new word what was learnt and the name of its base.
    metrics.jsonl, previews/ and run.json stand beside it.

    Example:
        medisyn train medisyn-v2 --corpus corpus/ --out runs/a --processes 4
        medisyn train medisyn-v2-lora --corpus corpus/ --out runs/b --set learning_rate=5e-5 --dry-run
        medisyn train textual-inversion --token "<prostate-mri>" --corpus corpus/ --out runs/c
    """
    import json as json_format

    from medisyn.recipes.train_preset import preset_for, train_preset
    from medisyn.training.launch import leave_together

    assignments = [*(assignments or ())]
    if base is not None:
        assignments.append(f"base={base}")
    if token:
        assignments.append(f"tokens={','.join(token)}")

    def announce(line: str) -> None:
        typer.echo(line, err=True)

    if dry_run:
        preset_for(preset, assignments, steps).plan(corpus, out, typer.echo)
        return
    report = train_preset(
        preset, corpus, out, assignments=assignments, num_steps=steps, processes=processes, announce=announce
    )
    values, is_main = report.as_dict(), os.environ.get("RANK", "0") == "0"
    if is_main:  # torchrun or accelerate may have started several of us: one speaks
        typer.echo(json_format.dumps(values, indent=2, default=str) if json else report.summary())
    code = 130 if is_main and values.get("interrupted") else 0
    leave_together(code)
    raise typer.Exit(code)
