"""`medisyn utility`: every design end to end at tiny size, resuming, leakage, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from build_utility import TINY, TINY_OVERRIDES, build_corpus, build_generated, build_volumes
from medisyn import runs
from medisyn.cli import main
from medisyn.errors import ConfigError
from medisyn.recipes.utility import utility


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_corpus(tmp_path_factory.mktemp("real") / "corpus", {"train": 12, "validation": 6, "test": 8})


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    folder = build_generated(tmp_path_factory.mktemp("made") / "a", 20)
    runs.write_run(folder, kind="generate", model={"id": "m", "digest": "d" * 64})
    return folder


def test_the_papers_design_as_a_command(corpus, synthetic, tmp_path, capsys):
    arguments = ["utility", "--real", str(corpus), "--synthetic", str(synthetic), "--trained-on", str(corpus)]
    assert main([*arguments, *TINY, "--out", str(tmp_path / "out"), "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert "run (one half for both, as in the paper): 24 real; 12 real; 12 real + 12 synthetic" in printed.err
    assert found["classes"] == ["slide/blue", "slide/red"]
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["model"] == found["model"] == {"id": "m", "digest": "d" * 64}
    assert run["corpus"] == found["corpus"]
    assert [(cell["real"], cell["synthetic"]) for cell in found["cells"]] == [(24, 0), (12, 0), (12, 12)]
    assert found["cells"][2]["counts"] == {"slide/blue": 12, "slide/red": 12}
    arms, gaps = found["auroc"]["arms"], found["auroc"]["differences"]
    assert gaps["12 real"]["value"] == pytest.approx(arms["24 real"]["value"] - arms["12 real"]["value"], abs=1e-12)
    assert found["auroc"]["n"] == 16
    assert found["auroc"]["clusters"] == 8  # patients
    assert "not checked" not in " ".join(found["warnings"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/png;base64" in page
    assert "12 real + 12 synthetic" in page
    assert {path.name for path in (tmp_path / "out").glob("*.csv")} == {
        "arms.csv", "differences.csv", "classes.csv", "counts.csv",
    }  # fmt: skip
    assert not (tmp_path / "out" / "arrays").exists()


def test_synthetic_images_that_show_the_classes_teach_them(corpus, synthetic, tmp_path):
    overrides = ["network=10", "width=4", "size=32", "steps=30", "evaluations=3", "learning_rate=0.003", "seeds=1"]
    found = utility(corpus, synthetic, "tstr", [*overrides, "resamples=20"], out=tmp_path / "out")
    assert found.auroc is not None
    assert found.auroc.arms["20 synthetic"].value > 0.9  # red and blue; a coin gives 0.5
    assert any("assumed, not checked" in warning for warning in found.warnings)
    assert "negative favours 20 synthetic" in found.summary()


def test_an_interrupted_run_goes_on_and_ends_the_same(corpus, synthetic, tmp_path):
    asked = (corpus, synthetic, "budget", [*TINY_OVERRIDES, "seeds=2", "table=4+0,4+6"])
    whole = utility(*asked, out=tmp_path / "out")
    first = tmp_path / "out" / "cells" / "4-real-seed0.json"
    lost = tmp_path / "out" / "cells" / "4-real-6-synthetic-seed1.json"
    before, kept = json.loads(lost.read_text()), first.read_bytes()
    lost.unlink()
    again = utility(*asked, out=tmp_path / "out")
    assert json.loads(lost.read_text())["chances"] == before["chances"]
    assert first.read_bytes() == kept
    assert again.auroc.arms["4 real"].per_run == whole.auroc.arms["4 real"].per_run
    assert len(set(whole.auroc.arms["4 real"].per_run)) == 2  # two seeds, two networks
    with pytest.raises(ConfigError, match="another learning_rate; choose another --out"):
        utility(*asked[:3], [*asked[3], "learning_rate=0.01"], out=tmp_path / "out")


def test_pre_training_comes_first_and_alone(corpus, synthetic, tmp_path):
    found = utility(corpus, synthetic, "pretrain", [*TINY_OVERRIDES, "seeds=1", "synthetic=10"], out=tmp_path / "out")
    last = found.cells[-1]
    assert last["arm"] == "10 synthetic, then 24 real"
    assert (last["real"], last["synthetic"], last["pretrain"], len(last["steps"])) == (24, 0, 10, 2)
    assert last["counts"] == {"slide/blue": 12, "slide/red": 12}


def test_a_multi_label_task(tmp_path):
    kinds = (("red",), ("blue",), ("blue", "red"), ("green",))
    corpus = build_corpus(tmp_path / "corpus", {"train": 8, "validation": 4, "test": 6}, kinds)
    made = build_generated(tmp_path / "a", 16, kinds[:3])
    overrides = [*TINY_OVERRIDES, "task=multi-label", "classes=red,blue"]
    found = utility(corpus, made, "tstr", [*overrides, "seeds=1"], out=tmp_path / "out")
    assert found.trial.task.classes == ("red", "blue")
    assert len(found.trial.parts.test) == 18  # the green ones show neither
    assert found.cells[0]["counts"] == {"red": 10, "blue": 11}  # 6 blue, 5 red, 5 of both
    assert "not used" not in " ".join(found.warnings)


def test_cross_validation_of_volumes_by_patient(tmp_path):
    real = build_volumes(tmp_path / "real", 12)
    made = build_volumes(tmp_path / "made", 8, patients="s", nifti=True, seed=1)
    overrides = ["network=10", "width=2", "size=16", "steps=3", "folds=3", "min_train=4", "min_test=2", "resamples=9"]
    asked = (real, made, "medsyn", [*overrides, "learning_rate=0.01"])
    found = utility(*asked, out=tmp_path / "out")
    assert [(cell["real"], cell["synthetic"]) for cell in found.cells if cell["fold"] == 0] == [(8, 0), (8, 8)]
    tested = [number for cell in found.cells if cell["arm"] == "real" for number in cell["test"]]
    assert sorted(tested) == list(range(12))
    patients = [case.image.patient for case in found.trial.parts.test]
    for fold in range(3):
        inside = {patients[n] for n in np.flatnonzero(found.trial.folds_N == fold)}
        assert inside.isdisjoint(patients[n] for n in np.flatnonzero(found.trial.folds_N != fold))
    assert len(found.folds["real"].overall) == 3
    assert "accuracy" in found.summary()
    assert "Accuracy and F1 in cross-validation" in found.page.read_text()
