"""`medisyn report` from the command line."""

import json

from medisyn import runs
from medisyn.cli import main
from medisyn.evaluation.page import Page, Table, Value
from medisyn.evaluation.report import write_report


def results(folder):
    for name, n in (("a", 10), ("b", 20)):
        table = Table("t", "T", "", ("x",), (("y",),), values=(Value("frechet", 1.5, n=n),))
        write_report(folder / name, Page("A title", (), (table,), ()), {})
        runs.write_run(folder / name, kind="evaluate", corpus="c")


def test_a_summary_and_a_page(tmp_path, capsys):
    results(tmp_path)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "all.html")]) == 0
    text = capsys.readouterr().out
    assert "2 results, 0 training runs, 0 generated sets, 0 corpora" in text
    assert "Note: a and b are not put side by side: number of images 10 and 20 (frechet)." in text
    assert text.rstrip().endswith("all.html")
    assert (tmp_path / "all.html").read_text().startswith("<!DOCTYPE html>")


def test_json(tmp_path, capsys):
    results(tmp_path)
    assert main(["report", str(tmp_path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["results"][0] == {"name": "a", "command": "evaluate", "corpus": "c", "model": ""}
    assert len(content["contradictions"]) == 1
    assert content["report"] == str(tmp_path / "report.html")


def test_an_empty_folder_is_the_user_s_mistake(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "no result.json and no run.json" in capsys.readouterr().err
