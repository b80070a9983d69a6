import sys
import time
import types

import pytest

from medisyn.training.energy import BusyCores, EnergyMeter, RaplZone, find_counters, rapl_zones


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


def test_gpu_counter_by_hand(tmp_path, monkeypatch):
    readings = iter([1_000_000, 4_600_000])  # millijoules
    nvml = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(readings),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    zone(tmp_path / "intel-rapl:0", "package-0", 0)
    meter = EnergyMeter(find_counters(1, 0, tmp_path))
    assert meter.kwh() == pytest.approx(0.001, rel=1e-12)
    assert meter.source == "NVML"


def test_gpu_without_pynvml(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = EnergyMeter(find_counters(0, 0, tmp_path))
    assert meter.source == f"{BusyCores.source} + GPU not measured (pip install nvidia-ml-py)"


def test_a_gpu_whose_counter_fails_is_said_not_to_be_measured(tmp_path, monkeypatch):
    def fails():
        raise RuntimeError("NVML Shared Library Not Found")

    monkeypatch.setitem(sys.modules, "pynvml", types.SimpleNamespace(nvmlInit=fails))
    assert "GPU not measured" in EnergyMeter(find_counters(0, 0, tmp_path)).source


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
