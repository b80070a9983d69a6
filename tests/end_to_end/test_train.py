"""`medisyn train` on a tiny corpus: one process, two processes, killed, interrupted and refused.

MEDISYN_KILLS sets how often the run is killed (default 1): first after three steps, then at random moments.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

import build_corpus
import build_training
from medisyn import runs
from medisyn.cli import main

PROGRAM = "import sys; from medisyn.cli import main; sys.exit(main(sys.argv[1:]))"
KILLS = int(os.environ.get("MEDISYN_KILLS", "1"))
SMALL = 2_000_000
UNET = "model/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_corpus.tiny_corpus(tmp_path_factory.mktemp("corpus"), size=64)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return build_training.tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def straight(corpus, tmp_path_factory):
    """An uninterrupted run without a judge, in float32."""
    out = tmp_path_factory.mktemp("straight") / "run"
    assert main(command(corpus, out)) == 0
    return out


def command(corpus, out, *more):
    settings = ("judge.images=0", "num_steps=12", "checkpoint_every=4", "precision=fp32", "preview_every=6")
    sets = [part for setting in settings for part in ("--set", setting)]
    return ["train", "medisyn-v2-tiny", "--corpus", str(corpus), "--out", str(out), *sets, *more]


def test_a_run_judged_previewed_and_exported(corpus, encoder, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["train", "medisyn-v2-tiny", "--corpus", str(corpus), "--out", str(out), "--json"]
    assert main([*arguments, "--set", f"judge.extractor_path={encoder}"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["steps_done"], report["interrupted"]) == (20, False)
    judged = {
        folder.name: json.loads((folder / "judgement.json").read_text())["score"]
        for folder in (out / "checkpoints").iterdir()
    }
    best = min(judged, key=judged.get)
    assert best == f"step-{report['best_step']:08d}"
    assert (out / UNET).read_bytes() == (out / "checkpoints" / best / UNET).read_bytes()
    assert len(list((out / "previews").iterdir())) == 2
    assert "machine" not in (out / "run.json").read_text()
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(out / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("red disc on black", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)


def test_the_exported_model_is_the_average(straight):
    state = load_file(straight / "checkpoints/step-00000012/state.safetensors")
    exported = sorted(float(tensor.double().sum()) for tensor in load_file(straight / UNET).values())
    averages = sorted(float(tensor.double().sum()) for name, tensor in state.items() if name.startswith("ema/"))
    weights = sorted(float(tensor.double().sum()) for name, tensor in state.items() if name.startswith("weight/"))
    assert exported == averages != weights


def start(corpus, out, *more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *command(corpus, out, *more)], env=environment)


def wait_for_steps(out, steps):
    deadline = time.monotonic() + 300
    while len(runs.read_jsonl(out / "metrics.jsonl")) < steps:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_and_repeated(corpus, straight, tmp_path):
    out = tmp_path / "run"
    for moment in range(KILLS):
        process = start(corpus, out)
        wait_for_steps(out, 3)
        time.sleep(random.Random(moment).uniform(0, 15) if moment else 0)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main(command(corpus, out)) == 0
    assert (out / UNET).read_bytes() == (straight / UNET).read_bytes()
    assert [record["step"] for record in runs.read_jsonl(out / "metrics.jsonl")] == list(range(1, 13))


def test_a_full_disk_keeps_the_last_checkpoint_and_the_same_command_goes_on(corpus, straight, tmp_path):
    """No file may grow beyond 2 MB from step 5 on: the state of step 8 (4.4 MB, with the average) cannot be written."""
    out = tmp_path / "run"
    assert main(command(corpus, out, "--steps", "4")) == 0
    whole = (out / "checkpoints/step-00000004/state.safetensors").read_bytes()
    assert len(whole) > SMALL
    limited = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command(corpus, out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, SMALL)),
        capture_output=True,
        text=True,
    )
    assert limited.returncode == 1
    assert "checkpoint of step 8 could not be written: no file may grow that large here" in limited.stderr
    assert "The checkpoint of step 4 is whole; make room" in limited.stderr
    assert "repeat the command" in limited.stderr
    assert [folder.name for folder in (out / "checkpoints").iterdir()] == ["step-00000004"]
    assert (out / "checkpoints/step-00000004/state.safetensors").read_bytes() == whole
    assert main(command(corpus, out)) == 0
    assert (out / UNET).read_bytes() == (straight / UNET).read_bytes()


def test_two_processes_interrupted_and_repeated(corpus, straight, tmp_path, capfd):
    out = tmp_path / "run"
    # each rank takes its 4 rows in passes of 3 and 1, of which only the last may reduce gradients
    process = start(corpus, out, "--processes", "2", "--set", "num_steps=4000", "--set", "micro_batch_size=3")
    wait_for_steps(out, 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 130
    assert "A checkpoint was written; repeat the command to go on" in capfd.readouterr().out
    assert runs.read_run(out)["processes"] == 2
    done = runs.read_run(out)["steps_done"]
    assert done >= 2
    assert main(command(corpus, out, "--set", f"num_steps={done + 1}")) == 0  # one process goes on with it
    one, two = (runs.read_jsonl(folder / "metrics.jsonl") for folder in (straight, out))
    for a, b in zip(one[:2], two[:2], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)  # AdamW would hide a wrong scale in the loss
        assert a["learning_rate"] == b["learning_rate"]


def test_lora_with_two_processes_reports_an_error_once(corpus, tmp_path, capfd):
    out = tmp_path / "run"
    arguments = command(
        corpus, out, "--processes", "2", "--set", "model.lora_targets=to_nowhere", "--set", "lora_rank=2"
    )
    assert main(arguments) == 2
    assert "LoRA target 'to_nowhere' is the name of no layer" in capfd.readouterr().err


def test_lora_trains_and_is_exported_as_an_adapter(corpus, tmp_path):
    out = tmp_path / "run"
    assert main(command(corpus, out, "--set", "lora_rank=2", "--steps", "2")) == 0
    weights = load_file(out / "model" / "pytorch_lora_weights.safetensors")
    assert any(
        float(tensor.abs().sum()) > 0 for name, tensor in weights.items() if "lora_B" in name or "lora.up" in name
    )


def test_dry_run_writes_nothing(corpus, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(command(corpus, out, "--dry-run")) == 0
    text = capsys.readouterr().out
    assert "12 steps of 8, a checkpoint every 4" in text
    assert "peak" in text
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--set", "learning_rat=1"), "Did you mean 'learning_rate'"),
        (("--set", "precision=fp16"), "fp16 is refused"),
        (("--set", "balance=what"), "balance must be one of"),
        (("--processes", "0"), "processes must be at least 1"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(corpus, tmp_path, capsys, more, text):
    assert main(command(corpus, tmp_path / "run", *more)) == 2
    error = capsys.readouterr().err.strip()
    assert text in error
    assert "\n" not in error


def test_another_configuration_for_an_existing_run(corpus, straight, capsys):
    assert main(command(corpus, straight, "--set", "learning_rate=0.5", "--set", "split=validation")) == 2
    assert "other values of: split, train.learning_rate" in capsys.readouterr().err


def test_not_a_corpus(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(command(tmp_path / "empty", tmp_path / "run")) == 2
    assert "not a corpus" in capsys.readouterr().err
