"""`medisyn generate` and its forms: the first word decides, and help shows them."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from medisyn.cli import FORMS, load_command, main


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each recipe was called with, instead of being run."""
    calls: dict[str, Any] = {}
    for name in ("generate", "interpolate", "inpaint"):
        module = importlib.import_module(f"medisyn.recipes.{name}_images")

        def stand_in(*arguments: Any, name: str = name, **options: Any) -> Any:
            calls[name] = (arguments, options)
            return SimpleNamespace(summary=lambda: f"{name} done", as_dict=dict)

        monkeypatch.setattr(module, f"{name}_images", stand_in)
    return calls


def test_the_first_word_decides(called: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "inpaint the left lung", "-n", "2"]) == 0
    assert called.pop("generate")[0] == ("inpaint the left lung",)
    assert main(["generate", "-n", "3", "inpaint"]) == 0  # not the first word: a prompt
    assert called.pop("generate")[0] == ("inpaint",)
    assert main(["generate", "inpaint", "--image", "a.png", "--mask", "box:1,2,3,4", "--prompt", "x"]) == 0
    assert called.pop("inpaint")[1]["mask"] == "box:1,2,3,4"
    assert main(["generate", "interpolate", "--from", "a", "--to", "b", "--frames", "4"]) == 0
    arguments, options = called.pop("interpolate")
    assert (arguments, options["frames"], options["by"]) == (("a", "b"), 4, "weight")
    assert called == {}
    assert "interpolate done" in capsys.readouterr().out


def test_help_names_the_forms_and_each_form_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in FORMS["generate"]:
        assert load_command("generate").commands[name].help.splitlines()[0] in text
    assert main(["generate", "inpaint", "--help"]) == 0
    assert "Usage: medisyn generate inpaint [OPTIONS]" in capsys.readouterr().out


def test_a_mistake_names_the_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "interpolate", "--frame", "3"]) == 2
    error = capsys.readouterr().err
    assert "Did you mean --frames" in error or "No such option" in error
    assert "medisyn generate interpolate --help" in error
