"""`medisyn generate anatomy` and `segment`: options reach the recipe, and what is missing is named."""

from types import SimpleNamespace

import pytest

from medisyn.cli import main


@pytest.fixture
def called(monkeypatch):
    calls = {}
    import medisyn.recipes.fixed_channels as anatomy
    import medisyn.recipes.segment_volumes as segment

    for module, name in ((anatomy, "generate_anatomy"), (segment, "segment_volumes")):

        def stand_in(*arguments, name=name, **options):
            calls[name] = (arguments, options)
            return SimpleNamespace(summary=lambda: f"{name} done", as_dict=lambda: {"name": name})

        monkeypatch.setattr(module, name, stand_in)
    return calls


def test_options_reach_the_recipes(called, capsys):
    assert main(["generate", "anatomy", "Effusion.", "--masks", "m", "--fix", "lobe, airway", "-n", "2"]) == 0
    arguments, options = called["generate_anatomy"]
    assert (arguments, options["fix"], options["n"], str(options["masks"])) == (
        ("Effusion.",),
        ("lobe", "airway"),
        2,
        "m",
    )
    assert main(["generate", "anatomy", "--masks", "m", "--json"]) == 0
    assert called["generate_anatomy"][0] == ("",)
    assert called["generate_anatomy"][1]["fix"] == ()
    assert main(["generate", "segment", "--ct", "a.nii.gz", "--report", "Effusion.", "--draws", "2"]) == 0
    arguments, options = called["segment_volumes"]
    assert (str(arguments[0]), options["report"], options["model"]) == ("a.nii.gz", "Effusion.", "starter-ct")
    assert (options["draws"], options["steps"]) == (2, None)
    assert main(["generate", "segment", "--ct", "a.nii.gz", "--json"]) == 0
    printed = capsys.readouterr().out
    assert "Not for diagnostic use." in printed
    assert '"name": "segment_volumes"' in printed


@pytest.mark.parametrize(("form", "option"), [("anatomy", "--masks"), ("segment", "--ct")])
def test_what_is_missing_is_named(called, capsys, form, option):
    assert main(["generate", form]) == 2
    assert f"{option} is missing" in capsys.readouterr().err
    assert called == {}
