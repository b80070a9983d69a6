"""The whole of MedSyn for generation: a base model and, where there is one, its super-resolution model.

Shapes here: B requests, C channels, D, H, W of the finest grid.
A folder holds `medisyn.json`, `base/`, `report_encoder/` and, for a cascade, `superres/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from medisyn.errors import ModelError
from medisyn.families.base import ParamGroup
from medisyn.families.medsyn import folders
from medisyn.families.medsyn.base_model import Known, MedSynBase
from medisyn.families.medsyn.channels import masks_from_channels, volume_from_channels
from medisyn.families.medsyn.config import Grid, MedSynConfig, MedSynDefaults, SuperResolutionConfig
from medisyn.families.medsyn.report_encoder import open_encoder
from medisyn.families.medsyn.superres import MedSynSuperResolution
from medisyn.types import Item, Request, Sample

if TYPE_CHECKING:
    from medisyn.families.base import Encoded


class MedSyn:
    """Implements `families.base.Family`. Training words are the base model's; the refiner is trained by itself."""

    def __init__(self, base: MedSynBase, superres: MedSynSuperResolution | None = None) -> None:
        if superres is not None and superres.base_grid.shape != base.grid.shape:
            raise ModelError(
                f"the base model makes {base.grid.shape} voxels, the super-resolution model refines "
                f"{superres.base_grid.shape}: they do not belong together"
            )
        if superres is not None and superres.base_grid.hu_knots != base.grid.hu_knots:
            raise ModelError(
                "the base model and the super-resolution model scale HU differently: train both on one grid"
            )
        self.base, self.superres = base, superres
        self.grid = superres.grid if superres is not None else base.grid

    @classmethod
    def from_folder(cls, folder: Path | str, *, device: str = "cpu", dtype: str = "float32") -> MedSyn:
        """Open what `save` wrote. Raises ModelError that names the missing part."""
        path = Path(folder)
        settings = folders.FOLDER.read_settings(path)
        grid = _from_json(Grid, settings["grid"])
        defaults = _from_json(MedSynDefaults, settings["defaults"])
        encoder, tokenizer = open_encoder(path / "report_encoder")
        base = MedSynBase(
            folders.open_unet(path / "base", dtype),
            encoder,
            tokenizer,
            grid,
            _from_json(MedSynConfig, settings["config"]),
            defaults,
        )
        superres = None
        if (path / "superres").is_dir():
            superres = MedSynSuperResolution(
                folders.open_unet(path / "superres", dtype),
                grid,
                _from_json(SuperResolutionConfig, settings["superres"]),
                defaults,
            )
        return cls(base, superres).to(device)

    def to(self, device: str | torch.device) -> MedSyn:
        """Move all networks; returns self."""
        self.base.to(device)
        if self.superres is not None:
            self.superres.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.base.device

    def with_defaults(self, **changes: Any) -> MedSyn:
        """The same networks with other generation defaults (solver, steps, guidance, tile, ...)."""
        defaults = replace(self.base.defaults, **changes)
        base = MedSynBase(
            self.base.unet,
            self.base.reader.encoder,
            self.base.reader.tokenizer,
            self.base.grid,
            self.base.config,
            defaults,
        )
        if self.superres is None:
            return MedSyn(base)
        refiner = self.superres
        return MedSyn(base, MedSynSuperResolution(refiner.unet, refiner.base_grid, refiner.config, defaults))

    def save(self, folder: Path | str, *, dtype: str | None = None) -> None:
        """Write a folder that `from_folder` opens; weights stored in `dtype`, or in the type they have. Atomic."""
        with folders.FOLDER.written_whole(Path(folder)) as target:
            folders.save_part(self.base.unet, target / "base", dtype)
            folders.save_report_encoder(self.base.reader.encoder, self.base.reader.tokenizer, target, dtype)
            if self.superres is not None:
                folders.save_part(self.superres.unet, target / "superres", dtype)
            folders.FOLDER.write_settings(
                target,
                grid=asdict(self.base.grid),
                config=asdict(self.base.config),
                defaults=asdict(self.base.defaults),
                superres=None if self.superres is None else asdict(self.superres.config),
            )

    def encode(self, samples: Sequence[Sample]) -> Encoded:
        return self.base.encode(samples)

    def loss(self, encoded: Encoded, draws: Sequence[torch.Generator]) -> torch.Tensor:
        return self.base.loss(encoded, draws)

    def trainable(self) -> list[ParamGroup]:
        return self.base.trainable()

    def sample(self, requests: Sequence[Request], known: Sequence[Known | None] | None = None) -> torch.Tensor:
        """Channels (B, C, D, H, W) of the finest grid; see `MedSynBase.sample` for `known`, which the base model keeps.

        The super-resolution model refines all four channels and sees neither report nor given masks.
        """
        low = self.base.sample(requests, known)
        if self.superres is None:
            return low
        return self.superres.upscale(low, [request.seed for request in requests])

    def decode(self, latents: torch.Tensor) -> list[Item]:
        """CT volumes in HU, float32 (1, D, H, W), along S, P, L with the finest grid's spacing."""
        if not torch.isfinite(latents).all():
            raise ModelError(
                "the model made voxels that are NaN or infinite: the training run diverged. Use an earlier checkpoint."
            )
        return [volume_from_channels(row, self.grid) for row in latents]

    def masks(self, latents: torch.Tensor) -> list[dict[str, np.ndarray]]:
        """The masks of each row, uint8 (D, H, W), in the axes of `decode`."""
        return [masks_from_channels(row, self.grid) for row in latents]

    def resolve(self, request: Request) -> Request:
        """See `MedSynBase.resolve`."""
        return self.base.resolve(request)

    def lost_words(self, prompt: str) -> str:
        """See `MedSynBase.lost_words`."""
        return self.base.lost_words(prompt)


T = TypeVar("T")


def _from_json(kind: type[T], values: dict[str, Any]) -> T:
    """A config from JSON, where tuples became lists. Raises ModelError for a key it does not have."""
    allowed = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in allowed:
            raise ModelError(f"medisyn.json: {name!r} is no setting of {kind.__name__}, allowed: {', '.join(allowed)}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
