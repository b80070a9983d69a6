import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from build_training import LinearFamily, Rows, run
from medisyn import runs
from medisyn.errors import BusyError, ConfigError, ModelError, TrainingError


def weights(family):
    return [parameter.detach().clone() for parameter in family.net.parameters()]


def model_bytes(run_dir):
    return (run_dir / "model" / "net.safetensors").read_bytes()


def records(run_dir):
    return runs.read_jsonl(run_dir / "metrics.jsonl")


@pytest.mark.parametrize("changes", [{}, {"schedule": "cosine", "warmup_steps": 3}, {"precision": "bf16"}])
@pytest.mark.parametrize("stop_at", [1, 5, 9])
def test_resuming_is_exact_also_inside_an_epoch(tmp_path, stop_at, changes):
    """10 steps of 4 over 11 samples: every stop lies inside an epoch. Weights, average and optimiser: torch.equal."""
    straight, interrupted, resumed = (LinearFamily(dropout=0.2) for _ in range(3))
    run(tmp_path / "a", family=straight, **changes)
    passes = 2  # a batch of 4 in passes of 3 and 1
    interrupted.on_loss = lambda call: call == 1 + passes * stop_at and os.kill(os.getpid(), signal.SIGTERM)
    first = run(tmp_path / "b", family=interrupted, **changes)  # call 1 is the memory estimate's
    assert (first.steps_done, first.interrupted) == (stop_at, True)
    assert "repeat the command to go on" in first.summary()
    second = run(tmp_path / "b", family=resumed, **changes)
    assert (second.resumed_from, second.steps_done, second.interrupted) == (stop_at, 10, False)
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))
    state = "checkpoints/step-00000010/state.safetensors"
    assert (tmp_path / "a" / state).read_bytes() == (tmp_path / "b" / state).read_bytes()
    assert model_bytes(tmp_path / "a") == model_bytes(tmp_path / "b")
    same = ("step", "loss", "learning_rate", "grad_norm", "epoch")
    assert [[r[k] for k in same] for r in records(tmp_path / "a")] == [
        [r[k] for k in same] for r in records(tmp_path / "b")
    ]


KILLING = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from build_training import LinearFamily, run
from medisyn.training.checkpoint import Checkpoints
out, rng = Path(sys.argv[1]), random.Random(5)

def train():
    family = LinearFamily(dropout=0.2, on_loss=lambda call: time.sleep(0.004))
    run(out, family=family, num_steps=60, checkpoint_every=3, keep_last=1)

kills = 0
while kills < 20:
    child = os.fork()
    if child == 0:
        train()
        os._exit(0)
    time.sleep(rng.uniform(0.02, 0.25))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
    for checkpoint in Checkpoints(out, 1).complete():
        assert {"state.safetensors", "training.json", "model"} <= set(os.listdir(checkpoint.folder))
train()
print("kills", kills)
"""


def test_killed_twenty_times_at_random_moments(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLING, str(tmp_path / "b")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "kills 20" in done.stdout
    run(tmp_path / "a", family=LinearFamily(dropout=0.2), num_steps=60, checkpoint_every=3, keep_last=1)
    state = "checkpoints/step-00000060/state.safetensors"
    assert (tmp_path / "a" / state).read_bytes() == (tmp_path / "b" / state).read_bytes()
    assert [record["step"] for record in records(tmp_path / "b")] == list(range(1, 61))
    assert sorted(path.name for path in (tmp_path / "b" / "checkpoints").iterdir()) == ["step-00000060"]


def test_training_learns(tmp_path):
    """Seen once with a learning rate of 0: the ratio is then 1."""
    run(tmp_path, num_steps=150, batch_size=11, checkpoint_every=150)
    losses = [record["loss"] for record in records(tmp_path)]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


def test_accumulated_passes_equal_one_pass(tmp_path):
    one, many = LinearFamily(), LinearFamily()
    run(tmp_path / "a", family=one, micro_batch_size=4)
    run(tmp_path / "b", family=many, micro_batch_size=1)
    for a, b in zip(weights(one), weights(many), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)  # float32 sums in another order, through 10 steps


def test_a_finished_run_is_only_opened(tmp_path):
    family = LinearFamily()
    run(tmp_path, family=family)
    before = model_bytes(tmp_path)
    again = run(tmp_path)
    assert (again.steps_done, again.resumed_from, again.loss, again.interrupted) == (10, 10, None, False)
    assert model_bytes(tmp_path) == before
    assert len(records(tmp_path)) == 10


def test_more_steps_may_be_asked_for_later(tmp_path):
    straight, longer = LinearFamily(), LinearFamily()
    run(tmp_path / "a", family=straight, num_steps=12)
    run(tmp_path / "b", num_steps=7)
    run(tmp_path / "b", family=longer, num_steps=12)
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(longer), strict=True))


def test_another_configuration_is_refused(tmp_path):
    run(tmp_path, config={"split": "train", "sizes": (1, 2)}, corpus="aaaa")
    run(tmp_path, config={"split": "train", "sizes": (1, 2)}, corpus="aaaa", keep_last=5)
    with pytest.raises(ConfigError, match=r"other values of: split, train.learning_rate, train.seed, corpus"):
        run(tmp_path, config={"split": "x", "sizes": (1, 2)}, corpus="bbbb", learning_rate=0.5, seed=3)


def test_a_loss_that_is_not_finite_names_the_samples_and_saves_the_state_before(tmp_path):
    family = LinearFamily()
    with pytest.raises(
        TrainingError, match=r"step \d+: the loss is not finite for sample\(s\) key-4\..*lower learning_rate"
    ):
        run(tmp_path, family=family, rows=Rows(11, bad=("key-4",)))
    latest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    record = json.loads((latest / "training.json").read_text())
    assert record["step"] == len(records(tmp_path))  # the bad step left no record
    assert all(torch.isfinite(weight).all() for weight in weights(family))


def test_a_gradient_that_is_not_finite_is_caught_too(tmp_path):
    family = LinearFamily()
    family.net[0].weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match="step 1: the gradient is not finite"):
        run(tmp_path, family=family)


def test_the_disk_is_full(tmp_path):
    family = LinearFamily()
    run(tmp_path, family=family, num_steps=4)

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    family.save = full
    with pytest.raises(TrainingError, match=r"the disk is full\. The checkpoint of step 4 is whole"):
        run(tmp_path, family=family, num_steps=8)
    assert run(tmp_path, num_steps=8).resumed_from == 4


def test_the_judge_decides_which_model_is_kept(tmp_path):
    scores = {4: 3.0, 8: 1.0, 10: 2.0}
    seen = []

    def judge(step):
        seen.append(step)
        return {"score": scores[step], "n": 2}

    report = run(tmp_path, judge=judge, keep_last=1)
    assert seen == [4, 8, 10]
    assert report.best_step == 8
    assert model_bytes(tmp_path) == (tmp_path / "checkpoints/step-00000008/model/net.safetensors").read_bytes()
    assert json.loads((tmp_path / "checkpoints/step-00000008/judgement.json").read_text()) == {"score": 1.0, "n": 2}


def test_a_checkpoint_that_a_kill_left_unjudged_is_judged_on_resuming(tmp_path):
    run(tmp_path, num_steps=4)
    seen = []
    run(tmp_path, num_steps=4, judge=lambda step: seen.append(step) or {"score": 1.0})
    assert seen == [4]


def test_a_kill_before_the_model_was_put_in_place_is_made_good(tmp_path):
    """Killed while the last checkpoint is judged: the same command judges it and puts the best model in place."""

    def judge(step):
        if step == 8 and not finished:
            raise KeyboardInterrupt
        return {"score": 1.0 if step == 8 else 3.0}

    finished = False
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, num_steps=8, judge=judge)
    finished = True
    assert run(tmp_path, num_steps=8, judge=judge).best_step == 8
    assert model_bytes(tmp_path) == (tmp_path / "checkpoints/step-00000008/model/net.safetensors").read_bytes()


def test_untrained_weights_are_not_judged(tmp_path):
    family, seen = LinearFamily(), []
    family.net[0].weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match="step 1: the gradient is not finite"):
        run(tmp_path, family=family, judge=lambda step: seen.append(step) or {"score": 1.0})
    assert seen == []


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_judge_works_in_the_run_s_precision(tmp_path, precision):
    seen = []

    def judge(step):
        seen.append(torch.is_autocast_enabled("cpu"))
        return {"score": 1.0}

    run(tmp_path, num_steps=4, precision=precision, judge=judge)
    assert seen == [precision == "bf16"]


def test_a_run_goes_on_in_the_precision_it_began_in(tmp_path):
    run(tmp_path, precision="bf16", num_steps=4)
    with pytest.raises(ConfigError, match=r"begun in bf16, here it would go on in fp32.*--set precision=bf16"):
        run(tmp_path, precision="fp32", num_steps=4)


@pytest.mark.parametrize(("abilities", "notes"), [({"avx512_bf16": True}, 0), ({"avx2": True}, 1)])
def test_bfloat16_on_a_processor_without_it_is_said_to_be_slow(tmp_path, monkeypatch, abilities, notes):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)
    lines = []
    run(tmp_path, precision="bf16", num_steps=4, announce=lines.append)
    assert sum("does not compute in bfloat16" in line for line in lines) == notes


def test_judge_preview_and_export_see_the_average_and_training_mode_returns(tmp_path):
    family = LinearFamily(dropout=0.5)
    shown = []

    def preview(path: Path) -> None:
        family.net.eval()
        shown.append((path.name, float(family.net[0].weight.detach()[0, 0])))

    run(tmp_path, family=family, preview=preview, preview_every=5, num_steps=10)
    assert [name for name, _ in shown] == ["step-00000005.png", "step-00000010.png"]
    assert shown[-1][1] != float(family.net[0].weight.detach()[0, 0])
    assert family.net.training


def test_the_judge_sees_the_weights_that_are_exported(tmp_path):
    """Of the 10 steps the last is judged: what it saw is the average in the export, not the weights in training."""
    family, seen = LinearFamily(), {}

    def judge(step):
        seen[step] = family.net[0].weight.detach().clone()
        return {"score": 1.0 / step}

    run(tmp_path, family=family, judge=judge)
    exported = load_file(tmp_path / "model" / "net.safetensors")
    assert torch.equal(seen[10], exported["0.weight"])
    assert not torch.equal(seen[10], family.net[0].weight)


def test_two_processes_may_not_write_to_one_folder(tmp_path):
    with runs.lock(tmp_path), pytest.raises(BusyError, match="another process is writing"):
        run(tmp_path)


def test_a_family_must_give_one_loss_per_sample(tmp_path):
    family = LinearFamily()
    family.loss = lambda encoded, draws: (family.net(encoded["x"]) ** 2).mean()
    with pytest.raises(ModelError, match=r"one loss per sample, \(3,\); got \(\)"):
        run(tmp_path, family=family)


def test_what_run_json_holds(tmp_path):
    run(tmp_path, corpus="abcd", config={"base": "x"})
    content = runs.read_run(tmp_path)
    assert content["config"]["base"] == "x"
    assert content["config"]["train"]["num_steps"] == 10
    assert content["corpus"] == "abcd"
    assert content["steps_done"] == 10
    assert content["energy"]["kwh"] > 0
    assert content["energy"]["source"]
    assert content["memory"]["peak_mib"] > 100
    assert content["environment"]["packages"]["torch"] == torch.__version__


def test_energy_adds_up_over_resumes(tmp_path):
    first = run(tmp_path, num_steps=4)
    second = run(tmp_path, num_steps=8)
    assert second.kwh > first.kwh > 0
