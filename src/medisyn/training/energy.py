"""Energy of a run in kWh: read from the counters of processor (RAPL) and GPU (NVML), else estimated and labelled so.

Every rank reads its own GPU; the first rank of a node reads the processor packages and memory.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

JOULES_PER_KWH = 3.6e6
WATTS_PER_BUSY_CORE = (
    8.0  # server processors of 2020 to 2025: 200 to 400 W for 32 to 64 cores, memory and losses on top
)
SECONDS_BETWEEN_READINGS = 60.0  # a package at 200 W runs through its counter's range in some 20 minutes
POWERCAP = Path("/sys/class/powercap")


class Counter(Protocol):
    """A sensor: joules used since it was made."""

    source: str

    def joules(self) -> float: ...


class RaplZone:
    """One powercap zone. Its counter wraps round at `max_energy_range_uj`, so a thread reads it every minute."""

    source = "RAPL"

    def __init__(self, zone: Path) -> None:
        self.file = zone / "energy_uj"
        self.range_uj = int((zone / "max_energy_range_uj").read_text())
        self.last_uj, self.total_uj = self._read(), 0
        self.turn = threading.Lock()
        threading.Thread(target=_read_on, args=(weakref.ref(self),), daemon=True).start()

    def _read(self) -> int:
        return int(self.file.read_text())

    def joules(self) -> float:
        with self.turn:
            now = self._read()
            step = now - self.last_uj
            self.total_uj += step if step >= 0 else step + self.range_uj
            self.last_uj = now
            return self.total_uj / 1e6


def _read_on(zone: weakref.ref[RaplZone]) -> None:
    """Read as long as somebody holds the zone."""
    while True:
        time.sleep(SECONDS_BETWEEN_READINGS)
        held = zone()
        if held is None:
            return
        with contextlib.suppress(OSError):
            held.joules()
        del held


class NvmlDevice:
    """The energy counter of one NVIDIA GPU (Volta and later), through pynvml.

    NVML numbers all GPUs of the machine in the order of their slots, CUDA those that CUDA_VISIBLE_DEVICES leaves, the
    fastest first. Only the UUID is the same in both.
    """

    source = "NVML"

    def __init__(self, uuid: str) -> None:
        self.nvml: Any = importlib.import_module("pynvml")
        self.nvml.nvmlInit()
        self.handle = self.nvml.nvmlDeviceGetHandleByUUID(uuid)
        self.first_mj = self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)

    def joules(self) -> float:
        return (self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) - self.first_mj) / 1e3


class UnmeasuredGpu:
    """A GPU whose counter cannot be read: it adds nothing, and the source says so."""

    source = "GPU not measured (it needs nvidia-ml-py and a whole GPU, not a MIG part)"

    def joules(self) -> float:
        return 0.0


class BusyCores:
    """No sensor: processor time of this process at a stated power per core. An estimate, and labelled as one."""

    source = f"estimate ({WATTS_PER_BUSY_CORE:g} W per busy core, no sensor readable)"

    def __init__(self) -> None:
        self.first = time.process_time()

    def joules(self) -> float:
        return (time.process_time() - self.first) * WATTS_PER_BUSY_CORE


def rapl_zones(powercap: Path = POWERCAP) -> list[Path]:
    """Processor packages, and the memory zones beside them (the package counter leaves memory out)."""
    zones = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        is_package = zone.name.count(":") == 1
        with contextlib.suppress(OSError):  # since 2020 many kernels let only root read the counters
            name = (zone / "name").read_text().strip()
            (zone / "energy_uj").read_text()
            if is_package or name == "dram":
                zones.append(zone)
    return zones


def find_counters(local_rank: int, gpu_uuid: str | None, powercap: Path = POWERCAP) -> list[Counter]:
    """The sensors this rank is to read; the processor estimate where the node's processor cannot be measured."""
    counters: list[Counter] = []
    zones = rapl_zones(powercap)
    if not zones:
        counters.append(BusyCores())
    elif local_rank == 0:
        counters += [RaplZone(zone) for zone in zones]
    if gpu_uuid is not None:
        counters.append(_gpu_counter(gpu_uuid))
    return counters


def gpu_uuid_of(device: torch.device) -> str | None:
    """The UUID of a CUDA device as NVML writes it, whatever CUDA_VISIBLE_DEVICES holds; None for another device."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None


def _gpu_counter(uuid: str) -> Counter:
    try:
        return NvmlDevice(uuid)
    except Exception:  # pynvml is optional, and its own error class exists only where it does (no driver, no counter)
        return UnmeasuredGpu()


@dataclass
class EnergyMeter:
    """What was used before (of a resumed run) and what the counters say now."""

    counters: list[Counter]
    kwh_before: float = 0.0

    def kwh(self) -> float:
        return self.kwh_before + sum(counter.joules() for counter in self.counters) / JOULES_PER_KWH

    @property
    def source(self) -> str:
        return (
            " + ".join(dict.fromkeys(counter.source for counter in self.counters))
            or "measured by the node's first rank"
        )
