"""`medisyn audit` from the command line: its options, exit codes and output."""

import json

import pytest

from build_audit import corpus_of, generated_of, planted, smooth, tiny_encoder
from medisyn.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    corpus_of(
        folder / "corpus", {"train": [smooth(n) for n in range(12)], "test": [smooth(100 + n) for n in range(20)]}
    )
    generated_of(folder / "set", {"new-0": smooth(300), "new-1": smooth(301), **planted(smooth(3))})
    tiny_encoder(folder / "encoder")
    return folder


def run(place, *arguments):
    places = ["--weights", str(place / "encoder"), "--cache", str(place / "cache"), "--neighbours", "2"]
    return main(["audit", str(place / "set"), "--against", str(place / "corpus"), *places, *arguments])


def test_the_gate_leaves_with_3_when_the_policy_is_not_met(place, tmp_path, capsys):
    assert run(place, "--gate", "--out", str(tmp_path / "out")) == 3
    text = capsys.readouterr().out
    assert "withheld by the policy: 4 of 6" in text
    assert "rule 'share withheld': NOT MET (4 of 6, upper bound" in text
    assert "released 0, withheld 6" in text


def test_the_gate_leaves_with_0_when_it_is_met(place, tmp_path, capsys):
    (tmp_path / "policy.yaml").write_text("max_share: 1\n")
    arguments = ("--gate", "--policy", str(tmp_path / "policy.yaml"), "--files", "list", "--out", str(tmp_path / "out"))
    assert run(place, *arguments) == 0
    assert "released 2, withheld 4" in capsys.readouterr().out
    assert not (tmp_path / "out" / "released").exists()


def test_without_the_gate_it_reports_and_leaves_with_0(place, tmp_path, capsys):
    assert run(place, "--json", "--flips", "none, horizontal,vertical", "--out", str(tmp_path / "out")) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["n"], result["released"], result["verdict"]["passed"]) == (6, None, False)
    assert result["asked"]["flips"] == ["none", "horizontal", "vertical"]
    assert result["report"].endswith("report.html")
    assert not (tmp_path / "out" / "released.jsonl").exists()


def test_a_window_that_is_none(place, tmp_path, capsys):
    assert main(["audit", str(tmp_path), "--against", str(tmp_path), "--window", "lung"]) == 2
    assert "window 'lung' is not two numbers of HU" in capsys.readouterr().err


def test_a_mistake_is_2(place, tmp_path, capsys):
    assert run(place, "--split", "train") == 2
    assert "held-out images cannot be the training images" in capsys.readouterr().err
    assert run(place, "--gate", "--files", "move", "--out", str(tmp_path / "out")) == 2
    assert "allowed: copy, link, list" in capsys.readouterr().err
