"""A linear model that speaks the family protocol, and examples for it: the engine's tests need no diffusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from medisyn.families.base import ParamGroup
from medisyn.training.loop import TrainReport, train
from medisyn.training.settings import TrainSettings
from medisyn.types import UINT8, Picture, Request, Sample

WIDTH = 6


class LinearFamily:
    """Predicts its input from a noisy copy. `on_loss(number of the call)` lets a test step in."""

    def __init__(self, *, dropout: float = 0.0, on_loss: Callable[[int], object] | None = None) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(
                torch.nn.Linear(WIDTH, 8), torch.nn.SiLU(), torch.nn.Dropout(dropout), torch.nn.Linear(8, WIDTH)
            )
        self.calls, self.on_loss = 0, on_loss

    def encode(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        rows = [torch.tensor(sample.item.array_CHW[:, 0, 0] / 255.0).float() for sample in samples]
        return {"x": torch.stack(rows)}

    def loss(self, encoded: Mapping[str, torch.Tensor], draws: Sequence[torch.Generator]) -> torch.Tensor:
        self.calls += 1
        if self.on_loss is not None:
            self.on_loss(self.calls)
        noise = torch.stack([torch.randn(WIDTH, generator=generator) for generator in draws])
        return ((self.net(encoded["x"] + noise) - encoded["x"]) ** 2).mean(dim=1)

    def sample(self, requests: Sequence[Request]) -> torch.Tensor:
        self.net.eval()
        with torch.no_grad():
            return torch.stack([self.net(torch.full((WIDTH,), request.seed / 10)) for request in requests])

    def decode(self, latents: torch.Tensor) -> list[Any]:
        levels = (latents.sigmoid() * 255).round().to(torch.uint8).numpy()
        return [Picture(row.reshape(1, 2, 3), UINT8) for row in levels]

    def trainable(self) -> list[ParamGroup]:
        self.net.train()
        return [ParamGroup("net", list(self.net.parameters()))]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in self.net.state_dict().items()}, folder / "net.safetensors"
        )


def tiny_encoder(folder: Path) -> Path:
    """A medical encoder with random weights, for judges that must be fast; returns the folder."""
    from medisyn.evaluation.features.encoder import MedicalEncoder, save_network

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MedicalEncoder(["a", "b"], widths=(8, 16), size=32)
    save_network(network, folder, network.config)
    return folder


@dataclass
class Rows:
    """`count` random rows with keys key-0, key-1, ..."""

    count: int = 11
    bad: tuple[str, ...] = ()  # keys whose row is NaN
    keys: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.keys = [f"key-{number}" for number in range(self.count)]
        self.x = torch.randn(self.count, WIDTH, generator=torch.Generator().manual_seed(1))
        for key in self.bad:
            self.x[self.keys.index(key)] = float("nan")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[row]}


def settings(**changes: Any) -> TrainSettings:
    """Everything that a resume has to restore: dropout aside, an average, accumulation, batches across epochs."""
    values: dict[str, Any] = {
        "num_steps": 10,
        "batch_size": 4,
        "micro_batch_size": 3,
        "learning_rate": 1e-2,
        "precision": "fp32",
        "ema_decay": 0.9,
        "ema_start": 3,
        "ema_interval": 2,
        "checkpoint_every": 4,
    }
    return TrainSettings(**{**values, **changes})


def run(run_dir: Path, *, family: LinearFamily | None = None, rows: Rows | None = None, **options: Any) -> TrainReport:
    """`loop.train` on the linear family; settings' fields and train's options may be given together."""
    family = family or LinearFamily()
    fields = set(TrainSettings.__dataclass_fields__)
    changes = {name: options.pop(name) for name in list(options) if name in fields}
    return train(family, rows or Rows(), settings(**changes), run_dir, save_model=family.save, **options)
