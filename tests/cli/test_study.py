"""`medisyn study report` from the command line."""

import json

from medisyn.cli import main

LINES = ["reader,item,source,truth,answer"] + [
    f"r{reader},{source}{item},{source},{'ab'[item % 2]},{'ab'[(item + (item < reader)) % 2]}"
    for reader in range(3)
    for source in ("real", "synthetic")
    for item in range(6)
]


def answers(folder):
    (folder / "answers.csv").write_text("\n".join(LINES))
    return str(folder / "answers.csv")


def test_a_summary_and_a_page(tmp_path, capsys):
    assert main(["study", "report", answers(tmp_path), "--resamples", "20", "--margin", "0.2"]) == 0
    text = capsys.readouterr().out
    assert "3 readers, 36 answers, classes a, b" in text
    assert "real: accuracy 83.33 ± 16.67 %" in text  # 6, 5 and 4 of 6
    assert "synthetic minus real: +0.00 points" in text
    assert "margin 20 points" in text
    assert text.rstrip().endswith("report.html")
    assert (tmp_path / "answers-report" / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_json_and_out(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["study", "report", answers(tmp_path), "--resamples", "20", "--out", str(out), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["accuracy"]["groups"]["real"]["mean"] == 15 / 18
    assert content["asked"] == {"reference": "real", "margin": 0.1, "resamples": 20, "seed": 0}
    assert content["report"] == str(out / "report.html")


def test_a_wrong_reference_is_the_user_s_mistake(tmp_path, capsys):
    assert main(["study", "report", answers(tmp_path), "--reference", "reel"]) == 2
    assert "--reference reel is no group of this study; its groups are real, synthetic" in capsys.readouterr().err
