import json
from pathlib import Path

import pytest

from medisyn.errors import ConfigError, CorpusError, WorkerError
from medisyn.recipes import train_preset
from medisyn.recipes.medical_encoder_run import EncoderReport, MedicalEncoderRun


class Fake:
    """A preset that notes what is asked of it."""

    summary = "a preset for this test"

    def __init__(self):
        self.calls = []

    def prepare(self, corpus, out, announce, *, processes):
        self.calls.append(("prepare", processes))

    def run(self, corpus, out, announce):
        self.calls.append(("run",))
        return EncoderReport(Path("out"), {})


@pytest.fixture
def fake(monkeypatch):
    preset = Fake()
    monkeypatch.setattr(train_preset, "preset_for", lambda *_: preset)
    return preset


def test_one_process_prepares_and_runs(fake, tmp_path):
    report = train_preset.train_preset("any", tmp_path, tmp_path)
    assert fake.calls == [("prepare", 1), ("run",)]
    assert report.as_dict() == {"out": "out"}


def test_a_rank_of_torchrun_prepares_only_on_rank_0(fake, tmp_path, monkeypatch):
    import contextlib

    class Accelerator:
        is_main_process = False
        main_process_first = contextlib.nullcontext

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("medisyn.training.launch.accelerator_for", lambda precision: Accelerator())
    train_preset.train_preset("any", tmp_path, tmp_path)
    assert fake.calls == [("run",)]
    Accelerator.is_main_process = True
    train_preset.train_preset("any", tmp_path, tmp_path)
    assert fake.calls == [("run",), ("prepare", 1), ("run",)]


def launched(monkeypatch, content):
    """Instead of starting ranks, write what rank 0 would."""

    def launch(command, processes):
        name, _, _, assignments, result = json.loads(command[-1])
        assert (name, assignments, processes) == ("medisyn-v2-tiny", ["seed=1", "num_steps=3"], 2)
        if content is not None:
            Path(result).write_text(json.dumps(content))

    monkeypatch.setattr("medisyn.training.launch.launch", launch)


def call(tmp_path):
    return train_preset.train_preset(
        "medisyn-v2-tiny", tmp_path, tmp_path, assignments=["seed=1"], num_steps=3, processes=2
    )


def test_what_rank_0_reports_is_handed_on(fake, tmp_path, monkeypatch):
    launched(monkeypatch, {"summary": "done", "values": {"steps_done": 3}})
    report = call(tmp_path)
    assert (report.summary(), report.as_dict()) == ("done", {"steps_done": 3})
    assert fake.calls == [("prepare", 2)]


def test_an_error_of_rank_0_is_raised_as_its_kind(fake, tmp_path, monkeypatch):
    launched(monkeypatch, {"error": "CorpusError", "message": "shard 3 is missing"})
    with pytest.raises(CorpusError, match="shard 3 is missing"):
        call(tmp_path)


def test_ranks_that_end_without_a_result(fake, tmp_path, monkeypatch):
    launched(monkeypatch, None)
    with pytest.raises(WorkerError, match="ended without a result"):
        call(tmp_path)


def test_a_rank_writes_its_report_or_its_error(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    result = tmp_path / "result.json"
    arguments = json.dumps(["any", "c", "o", [], str(result)])
    train_preset.worker(arguments)
    assert json.loads(result.read_text())["values"] == {"out": "out"}

    class OwnError(CorpusError):
        pass

    def fail(*_):
        raise OwnError("gone")

    fake.run = fail
    with pytest.raises(SystemExit):
        train_preset.worker(arguments)
    assert json.loads(result.read_text()) == {"error": "CorpusError", "message": "gone"}


def test_steps_are_short_for_num_steps():
    preset = train_preset.preset_for("medisyn-v2-tiny", ["learning_rate=0.5"], 7)
    assert (preset.train.num_steps, preset.train.learning_rate) == (7, 0.5)


def test_the_encoder_preset(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "medisyn.recipes.medical_encoder.run",
        lambda corpus, out, *, steps, judge_steps, seed: asked.append((steps, judge_steps, seed)) or {"encoder": {}},
    )
    run = MedicalEncoderRun(num_steps=5, judge_steps=7, seed=2)
    lines = []
    run.plan(tmp_path, tmp_path, lines.append)
    assert "5 steps of 32 images for the encoder, 7 for the judge" in lines[0]
    run.prepare(tmp_path, tmp_path, lines.append, processes=1)
    report = run.run(tmp_path, tmp_path, lines.append)
    assert asked == [(5, 7, 2)]
    assert "encoder and judge written" in report.summary()
    with pytest.raises(ConfigError, match="one process, got processes=2"):
        run.prepare(tmp_path, tmp_path, lines.append, processes=2)
    for name in ("num_steps", "judge_steps"):
        with pytest.raises(ConfigError, match=f"{name} must be at least 1"):
            MedicalEncoderRun(**{name: 0})
