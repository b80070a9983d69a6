import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from build_training import LinearFamily, run
from medisyn import runs
from medisyn.errors import ConfigError, WorkerError
from medisyn.training.launch import StopSignals, is_worker, launch, local_device

RANK = """
import os, signal, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from build_training import LinearFamily, run
from medisyn.training.launch import leave_together
rank, stop = os.environ["RANK"], sys.argv[2] == "stop"
# 2 rows per rank and step in one pass; call 1 is the memory estimate's, so call 5 is step 4
family = LinearFamily(on_loss=lambda call: stop and rank == "1" and call == 5 and os.kill(os.getpid(), signal.SIGTERM))
out = Path(sys.argv[1])
def judge(step):
    out.with_name(f"judged-{rank}-{step}").touch()
    return {"score": 1.0 + int(rank)}
report = run(out, family=family, judge=judge)
print("rank", rank, "done", report.steps_done)
leave_together()
"""


@pytest.fixture
def rank_environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_two_processes_follow_the_trajectory_of_one(tmp_path, rank_environment):
    """The second rank alone is told to stop after step 4: both stop, a checkpoint is written, and both go on."""
    for stop in ("stop", "go on"):
        assert launch([sys.executable, "-c", RANK, str(tmp_path / "two"), stop], 2) == 0
        stopped_at = runs.read_run(tmp_path / "two")["steps_done"]
        assert stopped_at == (4 if stop == "stop" else 10)
    one = LinearFamily()
    run(tmp_path / "one", family=one)
    first, second = (runs.read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [record["step"] for record in second] == list(range(1, 11))
    for a, b in zip(first, second, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)  # float32 sums in another order
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    state = "checkpoints/step-00000010/state.safetensors"
    mine, theirs = load_file(tmp_path / "one" / state), load_file(tmp_path / "two" / state)
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-5)
    assert runs.read_run(tmp_path / "two")["processes"] == 2
    judged = {path.name for path in tmp_path.glob("judged-*")}
    assert judged == {f"judged-{rank}-{step}" for rank in (0, 1) for step in (4, 8, 10)}  # by all, once each
    judgement = json.loads((tmp_path / "two" / "checkpoints/step-00000010/judgement.json").read_text())
    assert judgement == {"score": 1.0}  # what the main process says


def test_a_rank_that_fails_alone_is_shown(capfd):
    code = "import os, sys; sys.exit('rank one has a problem' if os.environ['RANK'] == '1' else 0)"
    with pytest.raises(WorkerError, match=r"process\(es\) 1 of 2 died. Repeat the command"):
        launch([sys.executable, "-c", code], 2)
    assert "rank one has a problem" in capfd.readouterr().err


def test_the_last_words_of_a_rank_that_aborts_are_shown(capfd):
    code = "import os, sys\nif os.environ['RANK'] == '1':\n    print('lost a friend', file=sys.stderr)\n    os.abort()"
    with pytest.raises(WorkerError, match="killed, often for lack of memory"):
        launch([sys.executable, "-c", code], 2)
    assert "lost a friend" in capfd.readouterr().err


def test_a_rank_that_is_killed_ends_the_others(monkeypatch):
    monkeypatch.setattr("medisyn.training.launch.SECONDS_TO_FOLLOW", 0.5)
    code = (
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGKILL) if os.environ['RANK'] == '1' else time.sleep(60)"
    )
    with pytest.raises(WorkerError, match="killed, often for lack of memory"):
        launch([sys.executable, "-c", code], 2)


def test_the_exit_code_of_rank_0(capfd):
    assert launch([sys.executable, "-c", "raise SystemExit(3)"], 2) == 3


def test_signals_are_handed_on():
    code = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(60); sys.exit(9)"
    )
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert launch([sys.executable, "-c", code], 2) == 0


def test_no_processes():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        launch(["true"], 0)


def test_the_first_signal_waits_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_outside_the_main_thread_are_left_alone():
    seen = []

    def inside() -> None:
        with StopSignals() as signals:
            seen.append(signals.before)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [{}]


def test_place_among_the_ranks(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not is_worker()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_worker()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device() == "cuda:3"


LEAVING = """
import atexit, sys, time
from pathlib import Path
from medisyn.training.launch import accelerator_for, leave_together
leave_together()  # nobody to leave yet
out, rank = Path(sys.argv[1]), accelerator_for("fp32").process_index
time.sleep(rank)
(out / f"{rank}-ready").write_text("")
atexit.register(lambda: (out / f"{rank}-left").write_text(str((out / "1-ready").exists())))
print("unflushed", end="")
leave_together(5)
print("and not a word more")
"""


def test_ranks_leave_together(tmp_path, capfd):
    """The main rank is done a second before the other, and waits for it; neither gets to the interpreter's shutdown."""
    with pytest.raises(WorkerError, match="1 of 2 died"):
        launch([sys.executable, "-c", LEAVING.replace("(5)", "(5 * rank)"), str(tmp_path)], 2)
    assert launch([sys.executable, "-c", LEAVING, str(tmp_path)], 2) == 5
    assert [(tmp_path / f"{rank}-left").read_text() for rank in range(2)] == ["True", "True"]
    printed = capfd.readouterr()
    assert printed.out == "unflushedunflushed"
    assert "unflushed" in printed.err
    assert "not a word more" not in printed.out + printed.err
