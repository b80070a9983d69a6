"""The command line: lazy commands with help, one line per error, and the exit codes."""

from __future__ import annotations

import errno
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from medisyn import cli
from medisyn.cli import COMMANDS, doctor, keep_examples, load_command, main
from medisyn.errors import InputError, TrainingError, WorkerError


@pytest.fixture
def command(monkeypatch):
    """Put a command `doctor` in place that raises what the test wants."""

    def install(error: BaseException | None) -> None:
        def stand_in() -> None:
            if error is not None:
                raise error

        module = SimpleNamespace(doctor=stand_in)
        monkeypatch.setitem(sys.modules, "medisyn.cli.doctor", module)

    monkeypatch.delenv("MEDISYN_DEBUG", raising=False)
    return install


# ---- the table of commands


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_is_the_first_line_of_the_commands_help(name):
    assert load_command(name).help.splitlines()[0].strip() == COMMANDS[name]


def test_every_module_beside_main_is_in_the_table():
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - {"__init__", "options"}
    assert files == set(COMMANDS)


def test_help_lists_every_command_with_its_summary(capsys):
    assert main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, summary in COMMANDS.items():
        assert f"{name} {summary}" in text


def test_no_argument_prints_help(capsys):
    assert main([]) == 0
    assert "Usage: medisyn" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"medisyn {importlib.import_module('medisyn').__version__}\n"


def test_examples_keep_their_lines():
    text = "Do it.\n\nLong text that\nmay be wrapped.\n\nExample:\n    medisyn a\n    medisyn b\n\nMore text."
    assert keep_examples(text) == (
        "Do it.\n\nLong text that\nmay be wrapped.\n\n\b\nExample:\n    medisyn a\n    medisyn b\n\n\b\nMore text."
    )
    assert keep_examples("Do it.") == "Do it."


# ---- what the user sees when something is wrong


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (None, 0, ""),
        (InputError("column 'label' is missing.\nAdd it."), 2, "medisyn: column 'label' is missing. Add it.\n"),
        (TrainingError("step 3: the loss is not finite"), 1, "medisyn: step 3: the loss is not finite"),
        (WorkerError("a worker died"), 1, "medisyn: a worker died"),
        (KeyboardInterrupt(), 130, "medisyn: interrupted; finished work is kept"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "medisyn: the disk is full. Free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 1, "medisyn: the disk is full."),
        (RuntimeError("write failed: No space left on device (os error 28)"), 1, "medisyn: the disk is full."),
        (MemoryError(), 1, "medisyn: out of memory. Lower the batch size"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 1, "medisyn: out of memory."),
        (KeyError("x"), 1, "medisyn: unexpected KeyError: 'x'. Set MEDISYN_DEBUG=1 for the traceback"),
        (typer.Exit(3), 3, ""),
        (typer.Abort(), 130, "medisyn: interrupted"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_and_an_exit_code(command, capsys, error, code, text):
    command(error)
    assert main(["doctor"]) == code
    written = capsys.readouterr().err
    assert written.startswith(text)
    assert written.count("\n") == (1 if text else 0)


def test_the_path_of_an_unexpected_error_is_not_shown(command, capsys):
    command(PermissionError(errno.EACCES, "Permission denied", "data/Doe^John/1.dcm"))
    assert main(["doctor"]) == 1
    written = capsys.readouterr().err
    assert "unexpected PermissionError: Permission denied" in written
    assert "Doe" not in written


def test_the_traceback_is_there_for_who_asks(command, capsys, monkeypatch):
    monkeypatch.setenv("MEDISYN_DEBUG", "1")
    command(InputError("wrong"))
    assert main(["doctor"]) == 2
    written = capsys.readouterr().err
    assert "Traceback" in written
    assert written.endswith("medisyn: wrong\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["generat"], "'generat' is not a command. Did you mean 'generate'? Commands: curate, corpus, train"),
        (["zzz"], "'zzz' is not a command. Commands: curate"),
        (["doctor", "--jason"], "No such option: --jason"),
        (["doctor", "extra"], "unexpected extra argument"),
        (["--wrong"], "No such option: --wrong"),
        (["corpus"], "Missing command. (see `medisyn corpus --help`)"),
        (["corpus", "verrify"], "verrify"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_the_next_step(capsys, arguments, text):
    assert main(arguments) == 2
    written = capsys.readouterr().err
    assert written.startswith("medisyn: ")
    assert text in written
    assert "--help`)" in written
    assert written.count("\n") == 1


def test_the_program_leaves_with_the_exit_code():
    done = subprocess.run([sys.executable, "-m", "medisyn", "generat"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Did you mean 'generate'?" in done.stderr


def test_a_reader_that_goes_away_is_no_error():
    code = "import sys, os; os.close(1); from medisyn.cli import main; sys.exit(main(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-c", code.replace("os.close(1)", f"os.dup2({writer}, 1)")]
    done = subprocess.run(program, stderr=subprocess.PIPE, text=True, pass_fds=[writer], check=False)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""


def test_the_environment_is_set_but_never_overruled(monkeypatch, command):
    for name in cli.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    command(None)
    assert main(["doctor"]) == 0
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"


# ---- doctor


def test_doctor_reports_this_machine_as_json(capsys):
    assert main(["doctor", "--json"]) == 0
    findings = {finding["topic"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert int(findings["cores"]["value"]) >= 1
    assert findings["torchvision"]["value"] == "not installed, as it should be"
    assert "JPEG 2000" in findings["DICOM compressions"]["value"]
    assert {finding["state"] for finding in findings.values()} <= {"ok", "note"}


def test_doctor_prints_one_line_for_each_finding(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(doctor.examine())
    assert any(line.startswith("  memory ") and line.endswith(" GB") for line in lines)


def test_a_problem_is_an_exit_code(monkeypatch, capsys):
    problem = doctor.Finding("torchvision", "0.28.0 does not import (RuntimeError)", "problem", "run: pip uninstall")
    monkeypatch.setattr(doctor, "examine", lambda: [problem])
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.startswith("! torchvision")


def test_a_broken_torchvision_is_found(monkeypatch, tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    (tmp_path / "torchvision-9.9.dist-info").mkdir()
    (tmp_path / "torchvision-9.9.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = doctor.torchvision_trap()
    assert finding.state == "problem"
    assert finding.value == "9.9 does not import (RuntimeError)"
    assert "pip uninstall torchvision" in finding.advice


def test_a_torchvision_that_imports_is_only_noted(monkeypatch, tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").touch()
    (tmp_path / "torchvision-9.9.dist-info").mkdir()
    (tmp_path / "torchvision-9.9.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    assert doctor.torchvision_trap().state == "note"
    sys.modules.pop("torchvision")


def test_pillow_does_not_count_for_twelve_bits():
    assert doctor.can_decode("JPEG baseline", ("pillow",))
    assert not doctor.can_decode("JPEG 12-bit", ("pillow",))
    assert doctor.can_decode("JPEG 12-bit", ("pillow", "pylibjpeg"))
    assert not doctor.can_decode("JPEG lossless", ())


def test_a_model_without_weights_is_noted():
    assert doctor.starter_model("starter-image", True, 29.4) == doctor.Finding("model starter-image", "29 MB")
    assert doctor.starter_model("starter-image", False, 0).state == "note"


def test_what_fits_is_a_comparison():
    assert doctor.fit("LoRA", 5.2, 24.0, "GPU") == doctor.Finding("LoRA", "fits: 5 of 24 GB GPU")
    too_large = doctor.fit("full fine-tune", 66.8, 24.0, "GPU")
    assert too_large.state == "note"
    assert too_large.value == "does not fit: 67 GB needed, 24 GB GPU"
