"""Sweeps: a grid made, ranked and resumed at tiny size; axes that nothing reads are refused before anything is made."""

import json

import pytest

from build import tiny_folder
from end_to_end.test_evaluate import corpus, encoder  # noqa: F401  fixtures
from medisyn.cli import main
from medisyn.errors import ConfigError, InputError
from medisyn.recipes import sweep as module
from medisyn.recipes.sweep import SweepSettings, grid, label, sweep, training_part

ASKED = {"prompt": "A red slide", "n": 6, "resamples": 20}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("sweep") / "model")


def test_a_grid_is_made_ranked_and_extended(corpus, encoder, model, tmp_path, capsys):  # noqa: F811
    command = ["sweep", "--against", str(corpus), "--model", str(model), "--prompt", "A red slide", "-n", "6"]
    command += ["--weights", str(encoder), "--resamples", "20", "--vary", "guidance=1,2", "--out", str(tmp_path / "s")]
    assert main([*command, "--vary", "steps=1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["cell"] for one in found["cells"]] == [{"guidance": "1", "steps": "1"}, {"guidance": "2", "steps": "1"}]
    assert (found["n"], found["n_real"]) == (6, 12)
    assert min(one["ranked"]["frechet"]["rank"] for one in found["cells"]) == 1
    assert {"report.html", "result.json", "frechet.csv", "kid.csv"} <= {
        file.name for file in (tmp_path / "s").iterdir()
    }
    page = (tmp_path / "s" / "report.html").read_text()
    assert "Equal ranks are not told apart" in page
    assert "real to real" in page
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "s" / "cells").rglob("*.png")}
    assert main([*command, "--vary", "steps=1,2"]) == 0
    assert "Fréchet distance: not beaten by more than chance: " in capsys.readouterr().out
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "s" / "cells").rglob("*.png")}
    assert (len(before), len(after)) == (12, 24)
    assert all(after[file] == made for file, made in before.items())


def test_cells_share_seeds(corpus, encoder, model, tmp_path):  # noqa: F811
    sweep(
        corpus,
        {"guidance": ["1", "3"]},
        tmp_path / "s",
        SweepSettings(model=str(model), weights=str(encoder), **ASKED),
    )
    seeds = [
        [json.loads(line)["seed"] for line in (cell / "metadata.jsonl").read_text().splitlines()]
        for cell in sorted((tmp_path / "s" / "cells").iterdir())
    ]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 6


def test_training_is_shared_by_cells_that_differ_in_generation(corpus, encoder, model, tmp_path):  # noqa: F811
    settings = SweepSettings(
        preset="textual-inversion-tiny",
        corpus=str(corpus),
        assignments=(f"base={model}", "tokens=<slide>", "num_steps=2", "num_vectors=1"),
        real_class="histopathology/red",
        weights=str(encoder),
        **{**ASKED, "prompt": "<slide>"},
    )
    said = []
    vary = {"images": ["2", "4"], "guidance": ["1", "2"]}
    found = sweep(corpus, vary, tmp_path / "s", settings, announce=said.append)
    assert len(list((tmp_path / "s" / "runs").iterdir())) == 2
    assert found.n_real == 6
    assert found.cells[0].training == found.cells[1].training
    assert 0 < found.cells[0].training["megabytes"] < 1
    assert "training: images 2" in said
    assert "MB learnt" in found.page.read_text()


def test_grid_by_hand():
    assert grid({"a": ["1", "2"], "b": ["x"]}) == [{"a": "1", "b": "x"}, {"a": "2", "b": "x"}]
    assert label({"model.vectors": "8", "steps": "5"}) == "vectors 8, steps 5"
    assert training_part({"model.vectors": "8", "steps": "5"}) == {"model.vectors": "8"}
    names = {module._folder_name({"tokens": value}) for value in ("<a>", "[a]", "a")}
    assert len(names) == 3


@pytest.mark.parametrize(
    ("vary", "settings", "message"),
    [
        ({}, {}, "varies at least one setting"),
        ({"steps": ["5", "5"]}, {}, "vary steps: give different values"),
        ({"steps": ["many"]}, {}, "steps=many: expected a whole number"),
        ({"guidanse": ["1"]}, {}, "nothing here reads 'guidanse'.*guidance"),
        ({"vektors": ["1"]}, {"preset": "textual-inversion-tiny", "corpus": "c"}, "vektors: unknown key"),
        ({"steps": ["1"]}, {"prompts": "p.csv"}, "either a prompt"),
        ({"steps": ["1"]}, {"n": 5}, "6 images per prompt and 20 resamples or more, got 5, 20"),
        ({"steps": ["1"]}, {"preset": "x"}, "needs the corpus it is trained on"),
    ],
)
def test_what_nothing_reads_is_refused_first(tmp_path, vary, settings, message):
    with pytest.raises(ConfigError, match=message):
        sweep(tmp_path / "no-corpus", vary, tmp_path / "s", SweepSettings(**{**ASKED, **settings}))
    assert not (tmp_path / "s").exists()


def test_a_class_without_real_images(corpus, tmp_path):  # noqa: F811
    settings = SweepSettings(real_class="histopathology/redd", **ASKED)
    with pytest.raises(InputError, match=r"no real image of the class 'histopathology/redd'.*histopathology/red"):
        sweep(corpus, {"steps": ["1"]}, tmp_path / "s", settings)


def test_an_axis_given_twice(tmp_path, capsys):
    command = ["sweep", "--against", "c", "--out", str(tmp_path), "--prompt", "x", "--vary", "steps=1"]
    assert main([*command, "--vary", "steps=2"]) == 2
    assert "write each axis once" in capsys.readouterr().err
    assert main([*command, "--vary", "steps"]) == 2
