import sys
import time
import types

import pytest
import torch

from medisyn.training.energy import BusyCores, EnergyMeter, RaplZone, find_counters, gpu_uuid_of, rapl_zones


def zone(folder, name, energy, *, wraps_at=1_000_000_000):
    folder.mkdir(parents=True)
    (folder / "name").write_text(name)
    (folder / "energy_uj").write_text(str(energy))
    (folder / "max_energy_range_uj").write_text(str(wraps_at))
    return folder


def test_packages_and_memory_are_counted_once(tmp_path):
    zone(tmp_path / "intel-rapl:0", "package-0", 0)
    zone(tmp_path / "intel-rapl:0:0", "core", 0)  # part of the package
    zone(tmp_path / "intel-rapl:0:1", "dram", 0)
    zone(tmp_path / "intel-rapl:1", "package-1", 0)
    assert [path.name for path in rapl_zones(tmp_path)] == ["intel-rapl:0", "intel-rapl:0:1", "intel-rapl:1"]


def test_a_counter_that_wraps_round_by_hand(tmp_path):
    folder = zone(tmp_path / "intel-rapl:0", "package-0", 900_000_000)
    counter = RaplZone(folder)
    (folder / "energy_uj").write_text("950000000")
    assert counter.joules() == 50.0
    (folder / "energy_uj").write_text("50000000")  # 50 J to the top of 1,000 J and 50 J more
    assert counter.joules() == 150.0


def test_kwh_by_hand(tmp_path):
    folder = zone(tmp_path / "intel-rapl:0", "package-0", 0, wraps_at=10**13)
    meter = EnergyMeter(find_counters(0, None, tmp_path), kwh_before=2.0)
    (folder / "energy_uj").write_text(str(1_800_000 * 10**6))  # 1.8 MJ are half a kWh
    assert meter.kwh() == pytest.approx(2.5, rel=1e-12)
    assert meter.source == "RAPL"


def test_only_the_first_rank_of_a_node_reads_the_processor(tmp_path):
    zone(tmp_path / "intel-rapl:0", "package-0", 0)
    meter = EnergyMeter(find_counters(1, None, tmp_path))
    assert meter.kwh() == 0.0
    assert meter.source == "measured by the node's first rank"


def test_without_a_sensor_it_is_an_estimate_and_says_so(tmp_path, monkeypatch):
    seconds = iter([10.0, 10.0 + 450.0, 0.0])
    monkeypatch.setattr("medisyn.training.energy.time.process_time", lambda: next(seconds))
    meter = EnergyMeter([BusyCores()])
    assert meter.kwh() == pytest.approx(450 * 8 / 3.6e6, rel=1e-12)  # 450 core seconds of 8 W
    assert "estimate (8 W per busy core" in meter.source
    assert [counter.source for counter in find_counters(1, None, tmp_path)] == [meter.source]


def test_unreadable_counters_are_not_used(tmp_path):
    folder = zone(tmp_path / "intel-rapl:0", "package-0", 0)
    (folder / "energy_uj").unlink()
    assert rapl_zones(tmp_path) == []


class FakeNvml(types.SimpleNamespace):
    """Two GPUs as NVML lists them; each reading adds what the GPU used in between, in millijoules."""

    def __init__(self):
        self.used_mj = {"GPU-aaaa": 500, "GPU-bbbb": 3_600_000}
        self.total_mj = dict.fromkeys(self.used_mj, 10**9)

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid not in self.used_mj:
            raise RuntimeError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        now = self.total_mj[handle]
        self.total_mj[handle] += self.used_mj[handle]
        return now


def test_the_gpu_that_cuda_calls_first_is_found_in_nvml_by_its_uuid(tmp_path, monkeypatch):
    """CUDA_VISIBLE_DEVICES=1: device 0 of this process is the machine's second GPU, which used 3.6 kJ (0.001 kWh)."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid={0: "bbbb"}[device.index])
    )
    zone(tmp_path / "intel-rapl:0", "package-0", 0)
    uuid = gpu_uuid_of(torch.device("cuda", 0))
    meter = EnergyMeter(find_counters(1, uuid, tmp_path))
    assert meter.kwh() == pytest.approx(0.001, rel=1e-12)
    assert meter.source == "NVML"
    assert gpu_uuid_of(torch.device("cpu")) is None


def test_gpu_without_pynvml(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = EnergyMeter(find_counters(0, "GPU-aaaa", tmp_path))
    assert meter.source.startswith(f"{BusyCores.source} + GPU not measured (it needs nvidia-ml-py")


@pytest.mark.parametrize("nvml", [FakeNvml(), types.SimpleNamespace(nvmlInit=lambda: 1 / 0)])
def test_a_gpu_that_nvml_does_not_know_or_cannot_read_is_said_not_to_be_measured(tmp_path, monkeypatch, nvml):
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert "GPU not measured" in EnergyMeter(find_counters(0, "GPU-part-of-one", tmp_path)).source


def test_a_counter_is_read_although_nobody_asks(tmp_path, monkeypatch):
    """Between two questions it wraps round twice: 1,000 J each, of which only a reading in between can know."""
    monkeypatch.setattr("medisyn.training.energy.SECONDS_BETWEEN_READINGS", 0.01)
    folder = zone(tmp_path / "intel-rapl:0", "package-0", 100_000_000)
    counter = RaplZone(folder)
    for level in (900_000_000, 100_000_000, 900_000_000, 100_000_000):
        staged = tmp_path / "staged"
        staged.write_text(str(level))
        staged.replace(folder / "energy_uj")  # whole at once, as the kernel's file is
        time.sleep(0.1)
    assert counter.joules() == 2000.0
