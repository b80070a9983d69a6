"""Two kinds of example, trained on together: by two processes, one of each kind, as by one process in turn."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from build_training import LinearFamily, Rows, run
from medisyn import runs
from medisyn.training.batches import Joint, Kind
from medisyn.training.launch import launch

STATE = "checkpoints/step-00000010/state.safetensors"
RANK = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from training.test_joint import joint
from build_training import LinearFamily, run
from medisyn.training.launch import leave_together
run(Path(sys.argv[1]), family=LinearFamily(), rows=joint(), num_steps=int(sys.argv[2]))
leave_together()
"""


def joint() -> Joint:
    frames = Rows(7)
    frames.keys = [f"{key}/frame" for key in frames.keys]
    frames.x = frames.x * 3  # so that the two kinds pull in other directions
    return Joint([Kind("clips", Rows(11), 4, 3, 0.75), Kind("frames", frames, 6, 4, 0.25)])


def train(out, **options):
    run(out, family=LinearFamily(), rows=joint(), **options)
    return load_file(out / STATE)


def test_one_step_by_hand(tmp_path):
    """The gradient norm of the first step is that of 0.75 mean(clips) + 0.25 mean(frames), computed here."""
    from medisyn.seeding import generator_for
    from medisyn.training.batches import kinds_of, orders_of, read_step
    from medisyn.training.order import Order, Split

    kinds = kinds_of(joint(), 4, 3)
    rows = read_step(kinds, orders_of(kinds, Order(11, 4, 0)), Split((4, 6), (0.75, 0.25), 1), 0, 0)
    family = LinearFamily()
    draws = [generator_for(0, key) for key in rows.draw_keys_R]
    losses = family.loss({"x": torch.cat([part["x"] for part in rows.passes])}, draws)
    loss = 0.75 * losses[:4].mean() + 0.25 * losses[4:].mean()
    loss.backward()
    norm = torch.stack([weight.grad.norm() for weight in family.net.parameters()]).norm()
    train(tmp_path)
    first = runs.read_jsonl(tmp_path / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert first["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert (first["loss_clips"], first["loss_frames"]) == pytest.approx(
        (losses[:4].mean().item(), losses[4:].mean().item()), rel=1e-5
    )


def test_two_processes_train_what_one_does_and_go_on(tmp_path, monkeypatch):
    """One process on clips, one on frames, stopped and resumed; float32 sums in another order, then Adam's division."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for steps in ("4", "10"):
        assert launch([sys.executable, "-c", RANK, str(tmp_path / "two"), steps], 2) == 0
    mine, theirs = train(tmp_path / "one"), load_file(tmp_path / "two" / STATE)
    first, second = (runs.read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for a, b in zip(first, second, strict=True):
        for name in ("loss", "loss_clips", "loss_frames"):
            assert a[name] == pytest.approx(b[name], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-5)


def test_resuming_is_exact(tmp_path):
    whole = train(tmp_path / "whole")
    run(tmp_path / "parts", family=LinearFamily(), rows=joint(), num_steps=3)
    parts = train(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
