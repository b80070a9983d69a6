import json
import sys

import pytest

from medisyn.errors import MissingDependency
from medisyn.training.log import TrainLog, cut_after


def test_records_after_the_resumed_step_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 6)) + '{"step": 6, "lo')
    cut_after(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_only_the_main_process_writes(tmp_path):
    with TrainLog(tmp_path, 0, 5, is_main=False, tensorboard=False) as log:
        log.step(1.0)
        log.write(1, loss=1.0)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_tensorboard_records(tmp_path):
    pytest.importorskip("tensorboard")
    with TrainLog(tmp_path, 0, 5, is_main=True, tensorboard=True) as log:
        log.write(1, loss=1.0)
    assert list((tmp_path / "tensorboard").iterdir())


def test_tensorboard_absent(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependency, match=r"pip install 'medisyn\[track\]'"):
        TrainLog(tmp_path, 0, 5, is_main=True, tensorboard=True)
