"""`medisyn audit`: copies of training images, membership, and the release gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisyn.cli.options import Json

POLICY_FAILED = 3  # 1 is a failure of the program, 2 a mistake of the user


def audit(
    synthetic: Annotated[
        Path,
        typer.Argument(
            help="Folder of generated images with metadata.jsonl, or a corpus of them; of clips (.npz, .gif) or CT "
            "volumes (.nii, .nii.gz, .nrrd)."
        ),
    ],
    against: Annotated[
        Path, typer.Option(help="Corpus the model was trained on; for clips and volumes a folder of them.")
    ],
    split: Annotated[str, typer.Option(help="Its held-out images, for calibration: test or validation.")] = "test",
    extractor: Annotated[str, typer.Option(help="Finds the neighbours; as in `medisyn evaluate`.")] = "medical-encoder",
    weights: Annotated[
        Path | None, typer.Option(help="The extractor's weight file or folder.", show_default="the shipped one")
    ] = None,
    neighbours: Annotated[int, typer.Option(help="Training images each image is compared with.")] = 10,
    flips: Annotated[
        str, typer.Option(help="Mirrorings tried, of: none, horizontal, vertical, both.")
    ] = "none,horizontal",
    held_out: Annotated[int, typer.Option(help="Held-out images for calibration, at most.")] = 1000,
    held_out_folder: Annotated[
        Path | None, typer.Option(help="Clips and volumes: folder of held-out real ones.", show_default="see the docs")
    ] = None,
    pictures: Annotated[int, typer.Option(help="Clips and volumes: frames or slices that are compared.")] = 12,
    window: Annotated[str, typer.Option(help="Volumes: HU shown black and white, LOW,HIGH.")] = "-1024,600",
    model: Annotated[
        str | None,
        typer.Option(
            help="Also attack this model, which made them: can what it was trained on be told by its loss? Clips and "
            "volumes need --held-out-folder for it."
        ),
    ] = None,
    attack_images: Annotated[
        int, typer.Option(help="Images, clips or volumes of each side for the attack, at most.")
    ] = 200,
    policy: Annotated[
        Path | None, typer.Option(help="Release rules as YAML.", show_default="the built-in rules")
    ] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Write released/ and withheld/; exit code 3 if not met.")
    ] = False,
    files: Annotated[str, typer.Option(help="For --gate: copy, link (hard links) or list (no files).")] = "copy",
    seed: Annotated[int, typer.Option(help="Seed of draws and resamples.")] = 0,
    cache: Annotated[Path | None, typer.Option(help="Folder for features.", show_default="~/.cache/medisyn")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report.", show_default="SYNTHETIC-audit")] = None,
    json: Json = False,
) -> None:
    """Look for copies of training images, and decide what may be released.

    The test of MediSyn v2 (nearest neighbour, patch distance), a second descriptor, mirrorings and perceptual hashes,
    each beside held-out real images; with --model a membership attack. Writes report.html, result.json, images.jsonl
    and CSV tables. With --gate the exit code is 0 when the set meets the policy and 3 when it does not.

    Example:
        medisyn audit synthetic/a --against corpus/ --model runs/a
        medisyn audit synthetic/a --against corpus/ --gate --policy policy.yaml --out release/
        medisyn audit volumes/ --against training-volumes/ --held-out-folder test-volumes/ --model starter-ct
    """
    from medisyn.recipes.audit import audit as run_audit
    from medisyn.recipes.membership_attack import AttackSettings
    from medisyn.recipes.stack_search import StackSettings, read_window

    settings = StackSettings(
        split=split,
        extractor=extractor,
        weights=str(weights) if weights is not None else "",
        neighbours=neighbours,
        flips=tuple(flip.strip() for flip in flips.split(",")),
        held_out=held_out,
        seed=seed,
        pictures=pictures,
        window=read_window(window),
    )
    attack = AttackSettings(images=attack_images, split=split, seed=seed)
    found = run_audit(
        synthetic,
        against,
        settings,
        policy=policy,
        model=model,
        attack=attack,
        gate=gate,
        files=files,
        cache=cache,
        out=out,
        held_out=held_out_folder,
    )
    if json:
        import json as json_format

        content = {**found.as_dict(), "report": str(found.page)}
        typer.echo(json_format.dumps(content, indent=2, ensure_ascii=False, default=str))
    else:
        typer.echo(found.summary())
    if gate and not found.passed:
        raise typer.Exit(POLICY_FAILED)
