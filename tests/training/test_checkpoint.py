import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from build_training import LinearFamily, settings
from medisyn.errors import InputError, TrainingError
from medisyn.training.checkpoint import Checkpoints, pack, unpack
from medisyn.training.ema import Ema
from medisyn.training.optim import build_optimizer


def write_model(folder: Path) -> None:
    folder.mkdir()
    (folder / "weights").write_text(folder.parent.name[:14])


def saved(tmp_path, steps, keep_last=2, scores=()):
    checkpoints = Checkpoints(tmp_path, keep_last)
    for step in steps:
        checkpoint = checkpoints.save(step, {"weight/x/0": torch.ones(2)}, write_model, {"kwh": 0.0})
        score = dict(scores).get(step)
        if score is not None:
            checkpoints.add_judgement(checkpoint, {"score": score})
        checkpoints.settle()
    return checkpoints


def steps_of(checkpoints):
    return [checkpoint.step for checkpoint in checkpoints.complete()]


def test_the_last_ones_are_kept_and_the_model_is_the_latest(tmp_path):
    checkpoints = saved(tmp_path, [1, 2, 3, 4])
    assert steps_of(checkpoints) == [3, 4]
    assert checkpoints.best() is None
    assert (tmp_path / "model" / "weights").read_text().startswith(".step-00000004")


def test_the_best_is_kept_and_is_the_model(tmp_path):
    checkpoints = saved(tmp_path, [1, 2, 3, 4], keep_last=1, scores=[(1, 5.0), (2, 3.0), (3, 3.0), (4, 9.0)])
    assert steps_of(checkpoints) == [2, 4]
    assert checkpoints.best().step == 2
    assert (tmp_path / "model" / "weights").read_text().startswith(".step-00000002")


def test_a_damaged_newest_checkpoint_is_left_out(tmp_path):
    checkpoints = saved(tmp_path, [1, 2])
    (tmp_path / "checkpoints" / "step-00000002" / "state.safetensors").write_bytes(b"short")
    assert checkpoints.latest().step == 1
    (tmp_path / "checkpoints" / ".step-00000003.abc.tmp").mkdir()
    (tmp_path / "checkpoints" / "step-00000007").mkdir()  # nothing in it
    checkpoints.clear_unfinished()
    assert steps_of(checkpoints) == [1]
    assert not (tmp_path / "checkpoints" / ".step-00000003.abc.tmp").exists()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "the disk is full. The checkpoint of step 1 is whole"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "the disk quota is used up"),
        (PermissionError(errno.EACCES, "Permission denied"), "PermissionError"),
    ],
)
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, error, text):
    checkpoints = saved(tmp_path, [1])

    def fail(folder: Path) -> None:
        write_model(folder)
        raise error

    with pytest.raises(TrainingError, match=text):
        checkpoints.save(2, {"x": torch.ones(1)}, fail, {})
    assert steps_of(checkpoints) == [1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_the_first_checkpoint_on_a_full_disk(tmp_path):
    def fail(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(TrainingError, match="There is no earlier checkpoint"):
        Checkpoints(tmp_path, 2).save(2, {"x": torch.ones(1)}, fail, {})


@pytest.mark.parametrize("score", [None, "low", float("nan"), float("inf")])
def test_a_judge_must_return_a_number(tmp_path, score):
    checkpoints = saved(tmp_path, [1])
    with pytest.raises(InputError, match="finite 'score'"):
        checkpoints.add_judgement(checkpoints.latest(), {"score": score})


def state_after_two_steps(family, asked):
    groups = family.trainable()
    parameters = list(groups[0].parameters)
    optimizer, ema = build_optimizer(groups, asked), Ema(parameters, asked)
    for step in range(1, 3):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, float(step))
        optimizer.step()
        ema.update(step)
    return groups, ema, optimizer


def test_packing_and_unpacking_is_exact(tmp_path):
    from safetensors.torch import save_file

    asked = settings(ema_decay=0.9, ema_start=1, ema_interval=1)
    groups, ema, optimizer = state_after_two_steps(LinearFamily(), asked)
    save_file(pack(groups, ema, optimizer), tmp_path / "state.safetensors")
    other = LinearFamily()
    other_groups = other.trainable()
    other_ema = Ema(list(other_groups[0].parameters), asked)
    other_optimizer = build_optimizer(other_groups, asked)
    unpack(tmp_path / "state.safetensors", other_groups, other_ema, other_optimizer)
    again = pack(other_groups, other_ema, other_optimizer)
    before = pack(groups, ema, optimizer)
    assert again.keys() == before.keys()
    assert sum(name.startswith("ema/") for name in again) == 4
    assert all(torch.equal(again[name], before[name]) for name in again)


def test_the_state_of_another_model_is_refused(tmp_path):
    from safetensors.torch import save_file

    asked = settings()
    groups, ema, optimizer = state_after_two_steps(LinearFamily(), asked)
    save_file({"weight/net/0": torch.ones(3)}, tmp_path / "state.safetensors")
    with pytest.raises(InputError, match=r"weight net/0 has shape \(3,\), the model \(8, 6\)"):
        unpack(tmp_path / "state.safetensors", groups, ema, optimizer)


def test_views_of_one_storage_can_be_saved(tmp_path):
    from medisyn.training.checkpoint import _own_memory

    whole = torch.arange(6.0)
    part = _own_memory(whole[2:4])
    assert part.untyped_storage().nbytes() == 8
    assert part.tolist() == [2.0, 3.0]


def test_model_is_copied_where_links_are_not_possible(tmp_path, monkeypatch):
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr("medisyn.training.checkpoint.os.link", no_links)
    saved(tmp_path, [1])
    assert (tmp_path / "model" / "weights").exists()
