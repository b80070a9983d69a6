"""Generated CT volumes against real ones: distances in 3D features, and how alike the volumes of each set are.

Shapes here: D, H, W voxels; D counts axial slices from the feet up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medisyn.errors import InputError, MedisynError
from medisyn.recipes.evaluate_sets import (
    SetEvaluation,
    SetSettings,
    diversity_dict,
    evaluate_sets,
    files_fingerprint,
    halves,
    listed,
    set_warnings,
    write_set_page,
)
from medisyn.types import Volume

ENDINGS = (".nii", ".nii.gz", ".nrrd")
LOW_HU, HIGH_HU = -1024.0, 600.0  # what MedSyn keeps of a CT
CUBE = 96  # voxels: four scales of MS-SSIM


def read_hu(path: Path) -> np.ndarray:
    """A CT file as (D, H, W) float32 HU: axial slices from the feet up, anterior at the top, square pixels."""
    from medisyn.corpus.readers import read_item
    from medisyn.corpus.readers.nifti import slices

    try:
        item = read_item(path, modality="CT")
    except MedisynError as error:
        raise type(error)(f"a volume of {path.parent.name}/: {error}") from None
    if not isinstance(item, Volume) or item.array_CDHW.shape[0] != 1:
        raise InputError(f"a file of {path.parent.name}/ is no CT volume with one channel")
    return np.stack([picture.array_CHW[0] for picture in slices(item)])


def evaluate_volumes(
    synthetic: Path | str,
    against: Path | str,
    settings: SetSettings | None = None,
    *,
    weights: Path | None = None,
    cache: Path | None = None,
    out: Path | None = None,
    diversity_pairs: int = 10,
) -> SetEvaluation:
    """Compare the CT volumes (NIfTI or NRRD in HU) of two folders; see `evaluate_images` for the other arguments.

    The real volumes are split into two halves of different patients: one to compare with, one for the baseline.
    `settings.extractor`: "medical-encoder-slices", or "med3d" with MedicalNet's `resnet_50.pth` as `weights`.
    """
    from medisyn.evaluation.diversity import diversity
    from medisyn.evaluation.features import load_extractor
    from medisyn.evaluation.ssim import scales_for
    from medisyn.recipes.evaluate_images import user_cache
    from medisyn.recipes.evaluation_page import diversity_table
    from medisyn.recipes.results import made_by

    settings = settings or SetSettings(extractor="medical-encoder-slices")
    synthetic, against = Path(synthetic), Path(against)
    out = synthetic.with_name(f"{synthetic.name}-evaluation") if out is None else out
    generated, real = listed(synthetic, ENDINGS, read_hu), listed(against, ENDINGS, read_hu)
    held_out, other = halves(real, settings.seed)
    extractor = load_extractor(settings.extractor, weights, kind="volumes")
    result = evaluate_sets(generated, (held_out, other), extractor, cache or user_cache(), settings)
    within = diversity(
        [functools.partial(as_cube, item.read) for item in generated],
        [functools.partial(as_cube, item.read) for item in real],
        ([item.name for item in generated], [item.name for item in real]),
        ([item.patient for item in generated], [item.patient for item in real]),
        data_range=HIGH_HU - LOW_HU,
        scales=scales_for(CUBE),
        seed=settings.seed,
        most=diversity_pairs,
        resamples=settings.resamples,
    )
    warnings = set_warnings(generated, real, result)
    found = SetEvaluation(
        kind="volumes",
        result=result,
        extra=diversity_dict(within),
        settings=settings,
        warnings=warnings,
        page=out / "report.html",
        corpus=files_fingerprint(real),
        model=made_by(synthetic),
    )
    write_set_page(
        out,
        found,
        counts={"Generated volumes": len(generated), "Real volumes": len(real)},
        tables=[diversity_table(within, "volumes")] if within is not None else [],
        methods=[
            f"Likeness within a set is the mean 3D MS-SSIM ({scales_for(CUBE)} scales, window 11, SD 1.5) of random "
            f"pairs of different volumes, clipped to {LOW_HU:.0f} to {HIGH_HU:.0f} HU (data range "
            f"{HIGH_HU - LOW_HU:.0f}) and brought to {CUBE}³ voxels by trilinear interpolation."
        ],
    )
    return found


def as_cube(read: Callable[[], np.ndarray]) -> np.ndarray:
    """The volume clipped to MedSyn's range and at (1, 96, 96, 96), float32 HU."""
    import torch

    hu = torch.from_numpy(np.asarray(read(), dtype=np.float32)).clamp(LOW_HU, HIGH_HU)[None, None]
    cube = torch.nn.functional.interpolate(hu, (CUBE,) * 3, mode="trilinear", align_corners=False)
    return cube[0].numpy()
