"""`medisyn phantom ct`: what it writes, prints, and refuses."""

from __future__ import annotations

import json

from medisyn.cli import main


def test_it_makes_phantoms_and_says_so(tmp_path, capsys):
    command = ["phantom", "ct", "-n", "1", "--size", "32", "--findings", "effusion", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "1 phantoms in" in capsys.readouterr().out
    assert "effusion" in (tmp_path / "out" / "thorax-000000" / "report.txt").read_text()
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["count"], result["there_before"], result["with_finding"]) == (1, 1, {"effusion": 1})


def test_a_wrong_finding_is_one_line(tmp_path, capsys):
    assert main(["phantom", "ct", "-n", "1", "--findings", "efusion", "--out", str(tmp_path / "out")]) == 2
    assert "Did you mean 'effusion'?" in capsys.readouterr().err


# ---- ultrasound


def test_it_films_hearts_and_says_so(tmp_path, capsys):
    command = ["phantom", "ultrasound", "-n", "1", "--size", "48x84", "--frames", "2", "--grades", "severely reduced"]
    command += ["--views", "apical two-chamber", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "1 heart phantoms in" in capsys.readouterr().out
    truth = json.loads((tmp_path / "out" / "heart-000000" / "truth.json").read_text())["truth"]
    assert (truth["grade"], truth["view"], len(truth["volume_ml"])) == ("severely reduced", "apical two-chamber", 2)
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["count"], result["there_before"], result["of_grade"]) == (1, 1, {"severely reduced": 1})


def test_a_wrong_size_or_grade_is_one_line(tmp_path, capsys):
    assert main(["phantom", "ultrasound", "-n", "1", "--size", "64", "--out", str(tmp_path / "out")]) == 2
    assert "not height x width in pixels, such as 64x112" in capsys.readouterr().err
    assert main(["phantom", "ultrasound", "-n", "1", "--grades", "normall", "--out", str(tmp_path / "out")]) == 2
    assert "Did you mean 'normal'?" in capsys.readouterr().err
