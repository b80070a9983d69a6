"""`medisyn convert medsyn` hands its options on and prints what was done."""

from pathlib import Path

from medisyn.cli import main
from medisyn.recipes import medsyn_convert
from medisyn.recipes.medsyn_convert import Conversion


def test_options_reach_the_recipe(monkeypatch, capsys):
    seen = {}

    def record(base, report_encoder, out, **options):
        seen.update(options, base=base, report_encoder=report_encoder)
        return Conversion(out, ("base model: 3 weights",))

    monkeypatch.setattr(medsyn_convert, "convert_medsyn", record)
    parts = "--base b --superres s --report-encoder r --tokenizer t --up-order mid --check c.npy --out models/new"
    assert main(["convert", "medsyn", *parts.split()]) == 0
    assert capsys.readouterr().out == "base model: 3 weights\nnew/ is ready: give it to --model\n"
    paths = {"base": "b", "superres": "s", "report_encoder": "r", "tokenizer": "t", "check": "c.npy"}
    assert seen == {**{name: Path(value) for name, value in paths.items()}, "up_order": "mid"}


def test_a_missing_checkpoint_is_one_line_and_code_2(tmp_path, capsys):
    line = f"convert medsyn --base {tmp_path}/none --report-encoder {tmp_path}/none --out {tmp_path}/out"
    assert main(line.split()) == 2
    assert capsys.readouterr().err == "medisyn: base model: there is no none. Give the checkpoint's file or folder.\n"
