"""How much memory a run will need, said before it starts.

What is loaded is read from the machine, the optimiser's part is arithmetic, and the activations are counted: one
forward pass of one sample, adding up every tensor that autograd keeps for the backward pass.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medisyn.families.base import Family, ParamGroup
from medisyn.seeding import generator_for
from medisyn.training.settings import TrainSettings

MIB = 2**20
MIB_OF_KERNELS = 128  # buffers of the first passes that are nobody's tensors: matrix libraries, thread pools


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes in one process. `loaded` is what it holds already: libraries, weights, frozen parts."""

    loaded: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    available: int | None

    @property
    def total(self) -> int:
        return self.loaded + self.gradients + self.optimizer + self.average + self.activations + MIB_OF_KERNELS * MIB

    @property
    def fits(self) -> bool:
        return self.available is None or self.total - self.loaded <= self.available

    def lines(self) -> list[str]:
        """The estimate for a person, in MiB."""
        parts = ("loaded", "gradients", "optimizer", "average", "activations")
        text = [f"{part:<12}{getattr(self, part) / MIB:>10.0f} MiB" for part in parts]
        text.append(f"{'peak':<12}{self.total / MIB:>10.0f} MiB per process")
        if self.available is not None:
            text.append(f"{'free now':<12}{self.available / MIB:>10.0f} MiB")
        if not self.fits:
            text.append("WARNING: this run may not fit. Lower micro_batch_size, or use the LoRA preset.")
        return text

    def record(self) -> dict[str, Any]:
        return {"peak_mib": round(self.total / MIB), "activations_mib": round(self.activations / MIB)}


def estimate(
    family: Family, groups: Sequence[ParamGroup], example: Mapping[str, torch.Tensor], settings: TrainSettings
) -> MemoryEstimate:
    """Before the optimiser exists and any step was taken. `example` is one row of the store."""
    parameters = [parameter for group in groups for parameter in group.parameters]
    device = parameters[0].device
    trained = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    rows = min(settings.micro_batch_size, settings.batch_size)
    loaded, available = _loaded_and_available(device)
    return MemoryEstimate(
        loaded=loaded,
        gradients=trained,
        optimizer=2 * trained,  # AdamW's two moments
        average=trained if settings.ema_decay else 0,
        activations=activation_bytes(family, parameters, example, device, settings.precision) * rows,
        available=available,
    )


def activation_bytes(
    family: Family,
    parameters: Sequence[torch.nn.Parameter],
    example: Mapping[str, torch.Tensor],
    device: torch.device,
    precision: str,
) -> int:
    """Bytes that one sample's forward pass keeps for the backward pass, without weights, trained or frozen.

    The bf16 copies that autocast makes of trained weights are left out too; those of frozen weights are kept for the
    backward pass and counted.
    """
    own = {weight.untyped_storage().data_ptr() for weight in (*parameters, *weights_in(vars(family).values()))}
    shapes = {tuple(parameter.shape) for parameter in parameters} | {
        tuple(parameter.shape[::-1]) for parameter in parameters
    }
    seen: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tuple(tensor.shape) not in shapes:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    encoded = {name: tensor[None].to(device) for name, tensor in example.items()}
    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        family.loss(encoded, [generator_for(0, "memory")])
    return sum(seen.values())


def weights_in(values: Iterable[object]) -> Iterator[torch.Tensor]:
    """Parameters and buffers of the networks among the values, also of those inside tuples, lists and dataclasses."""
    for value in values:
        if isinstance(value, torch.nn.Module):
            yield from value.parameters()
            yield from value.buffers()
        elif isinstance(value, tuple | list):
            yield from weights_in(value)
        elif dataclasses.is_dataclass(value):
            yield from weights_in(vars(value).values())


def _loaded_and_available(device: torch.device) -> tuple[int, int | None]:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return torch.cuda.memory_allocated(device), free
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE"), _free_main_memory()


def _free_main_memory() -> int | None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024
