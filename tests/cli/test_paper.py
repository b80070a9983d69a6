"""`medisyn paper` from the command line."""

import json

import pytest

from medisyn import cli, runs
from medisyn.cli import main
from medisyn.evaluation.page import Page, Table, Value
from medisyn.evaluation.report import write_report


def test_the_papers_are_listed(capsys):
    assert main(["paper"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["medisyn-v1", "medisyn-v2", "textual-inversion", "medsyn"]
    assert "Medical diffusion on a budget" in lines[2]


def test_a_paper_without_results(capsys):
    assert main(["paper", "medisyn-v2"]) == 0
    text = capsys.readouterr().out
    block = text[text.index("Table 1 (section 2.2)") : text.index("Fig. 3")]
    assert "6 (0.03%) [slip]" in block
    assert "right is '6 (0.30%)'" in block
    assert "Ours: not run" in block
    assert "medisyn audit synthetic/ --against corpus/" in block


def test_a_command_that_is_not_there_is_said_and_comes_by_itself(capsys, monkeypatch):
    monkeypatch.delitem(cli.COMMANDS, "study", raising=False)
    main(["paper", "medisyn-v2"])
    assert "Ours: not available in this version: medisyn study" in capsys.readouterr().out
    monkeypatch.setitem(cli.COMMANDS, "study", "Run a reader study.")
    main(["paper", "medisyn-v2"])
    assert "not available in this version: medisyn study" not in capsys.readouterr().out


@pytest.mark.parametrize("times", [1, 2])
def test_results_stand_beside(tmp_path, capsys, times):
    table = Table("t", "T", "", ("x",), (("y",),), values=(Value("ssim", 0.9, "vae", n=16),))
    for number in range(times):
        folder = tmp_path / f"r{number}"
        write_report(folder, Page("A title", (), (table,), ()), {})
        runs.write_run(folder, kind="evaluate stages")
    options = [word for number in range(times) for word in ("--results", str(tmp_path / f"r{number}"))]
    assert main(["paper", "medisyn-v1", *options]) == 0
    assert capsys.readouterr().out.count("no: n 16, paper 1,000") == times
    assert main(["paper", "medisyn-v1", *options, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    table = next(table for table in content["tables"] if table["id"] == "table-3")
    assert [row["differs"] for row in table["beside"]] == [["n 16, paper 1,000"]] * times


def test_an_unknown_paper(capsys):
    assert main(["paper", "medisyn-v9"]) == 2
    assert "paper 'medisyn-v9' is unknown" in capsys.readouterr().err
