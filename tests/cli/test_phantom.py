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
