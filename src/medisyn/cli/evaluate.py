"""`medisyn evaluate`: generated images, clips or volumes against real ones, or a model's autoencoder; one report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medisyn.cli.options import Json


def evaluate(
    synthetic: Annotated[
        Path,
        typer.Argument(
            help="Folder of generated images with metadata.jsonl, or a corpus of them; of clips (.mkv, .npz, .avi, "
            ".mp4, .mov, .webm, .gif) or CT volumes (.nii, .nii.gz, .nrrd); with --stages a model."
        ),
    ],
    against: Annotated[
        Path | None,
        typer.Option(
            help="Corpus of real images or clips; for clips and volumes also a folder. Not with --anatomy; "
            "with --motion held-out clips, where there are any."
        ),
    ] = None,
    anatomy: Annotated[
        bool, typer.Option("--anatomy", help="Measure organs in generated chest CTs, and compare pairs of prompts.")
    ] = False,
    motion: Annotated[
        bool,
        typer.Option(
            "--motion", help="Measure generated clips: ejection fraction by prompt, motion by its factor, flicker."
        ),
    ] = False,
    masks: Annotated[
        str, typer.Option(help="Masks for --anatomy: own, classical, lungmask or totalsegmentator.")
    ] = "own",
    pairs: Annotated[str, typer.Option(help="Pairs of prompts for --anatomy: auto, or a CSV.")] = "auto",
    stages: Annotated[
        bool, typer.Option("--stages", help="Check how much of the corpus's images the model's autoencoder keeps.")
    ] = False,
    count: Annotated[int, typer.Option(help="Images for --stages, drawn at random.")] = 1000,
    split: Annotated[str, typer.Option(help="Images of the corpus to compare with: test, validation or train.")] = (
        "test"
    ),
    extractor: Annotated[
        str | None,
        typer.Option(
            help="Images: medical-encoder, inception, inception:download, inception-legacy, inception-torchmetrics, "
            "inception-tf, dinov2:FOLDER, clip:FOLDER, clip-224:FOLDER, biomedclip. Clips: medical-encoder-frames, "
            "i3d, i3d:FRAMES. Volumes: medical-encoder-slices, med3d, med3d:SIDE.",
            show_default="medical-encoder in its form for the kind",
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The extractor's weight file or folder.", show_default="the shipped one")
    ] = None,
    judge: Annotated[
        str, typer.Option(help="Classifier that names classes: train (on the corpus), none, or its folder.")
    ] = "train",
    judge_steps: Annotated[int, typer.Option(help="Steps for --judge train; the judge is kept in the cache.")] = 600,
    neighbours: Annotated[int, typer.Option(help="Training images each image is compared with; 0 for none.")] = 10,
    diversity_pairs: Annotated[
        int, typer.Option(help="Pairs of each class whose likeness is measured; 0 for none.")
    ] = 10,
    clip: Annotated[
        Path | None, typer.Option(help="CLIP folder: is an image closest to the prompt of its class? (R@1)")
    ] = None,
    mmd_bandwidth: Annotated[
        float | None,
        typer.Option(help="Alpha of MMD's kernel exp(-alpha d²).", show_default="1 / median d² of the real items"),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of every interval.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of draws and resamples.")] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for features and judges.", show_default="~/.cache/medisyn")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report.", show_default="SYNTHETIC-evaluation")
    ] = None,
    json: Json = False,
) -> None:
    """Measure generated images against a corpus.

    Fréchet and kernel distances, precision, recall, density and coverage to held-out real images, each beside
    real-to-real; how alike the images of a class are; how often a classifier of real images names the class that was
    asked for; and how close the images come to training images. Clips and CT volumes have the same distances in
    features of their own. With --anatomy organs are measured in generated chest CTs, against nothing but the
    prompts; with --motion what moves in generated clips. Writes report.html, result.json and CSV tables.

    Example:
        medisyn evaluate synthetic/a --against corpus/
        medisyn evaluate synthetic/a --against corpus/ --extractor dinov2:dinov2-large/ --judge none
        medisyn evaluate volumes/ --against real-volumes/ --extractor med3d --weights resnet_50.pth
        medisyn evaluate starter-image --stages --against corpus/
        medisyn evaluate volumes/ --anatomy --masks classical
        medisyn evaluate clips/ --motion --against held-out-clips/
    """
    if anatomy:
        from medisyn.recipes.evaluate_anatomy import evaluate_anatomy

        if stages or motion or against is not None or extractor is not None or weights is not None:
            raise typer.BadParameter(
                "--stages, --motion, --against, --extractor and --weights have no use with --anatomy"
            )
        found: Any = evaluate_anatomy(synthetic, masks=masks, pairs=pairs, out=out)
    elif motion:
        from medisyn.recipes.evaluate_motion import evaluate_motion

        if stages or extractor is not None or weights is not None or masks != "own" or pairs != "auto":
            raise typer.BadParameter("--stages, --extractor, --weights, --masks and --pairs have no use with --motion")
        found = evaluate_motion(synthetic, against, out=out, seed=seed)
    elif masks != "own" or pairs != "auto":
        raise typer.BadParameter("--masks and --pairs have no use without --anatomy")
    elif against is None:
        raise typer.BadParameter("--against is missing: the corpus or folder of real items to compare with")
    elif stages:
        from medisyn.recipes.evaluate_stages import evaluate_stages

        if extractor is not None or weights is not None or clip is not None:
            raise typer.BadParameter("--extractor, --weights and --clip have no use with --stages")
        found = evaluate_stages(
            str(synthetic), against, split=split, count=count, resamples=resamples, seed=seed, out=out
        )
    else:
        from medisyn.recipes.evaluate_folder import EvaluateSettings, evaluate_folder

        settings = EvaluateSettings(
            split=split,
            judge=judge,
            judge_steps=judge_steps,
            neighbours=neighbours,
            diversity_pairs=diversity_pairs,
            mmd_alpha=mmd_bandwidth,
            resamples=resamples,
            seed=seed,
        )
        found = evaluate_folder(
            synthetic, against, settings, extractor=extractor, weights=weights, cache=cache, out=out, clip=clip
        )
    if json:
        import json as json_format

        typer.echo(json_format.dumps({**found.as_dict(), "report": str(found.page)}, indent=2, ensure_ascii=False))
        return
    typer.echo(found.summary())
