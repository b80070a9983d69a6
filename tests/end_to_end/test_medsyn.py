"""MedSyn from phantoms, and from a real CT, to volumes on disk, by the commands a user types."""

import json
import shutil

import nibabel
import pytest
import torch
from safetensors.torch import load_file

from medisyn.cli import main

PROMPT = "Large right pleural effusion. No cardiomegaly."
UNET = "model/base/diffusion_pytorch_model.safetensors"


def medisyn(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms")
    medisyn("phantom", "ct", "-n", 4, "--size", 32, "--out", out)
    return out


@pytest.fixture(scope="module")
def encoder(phantoms, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoder")
    medisyn("train", "medsyn-report-encoder-tiny", "--corpus", phantoms / "table.csv", "--out", out)
    return out


@pytest.fixture(scope="module")
def base(phantoms, encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("base")
    medisyn("train", "medsyn-base-tiny", "--corpus", phantoms, "--out", out, "--set", f"report_encoder={encoder}")
    return out


def test_phantoms_to_volumes(phantoms, base, tmp_path, capsys):
    superres, out = tmp_path / "superres", tmp_path / "volumes"
    medisyn("train", "medsyn-superres-tiny", "--corpus", phantoms, "--out", superres, "--set", f"base={base}")
    medisyn("generate", PROMPT, "--model", superres, "-n", 2, "--out", out, "--dtype", "float32")
    assert "2 CT volumes with masks, 2 made" in capsys.readouterr().out
    records = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [record["prompt"] for record in records] == [PROMPT] * 2
    for record in records:
        assert nibabel.load(out / record["file_name"]).shape == (16, 16, 16)
    assert len(list(out.glob("*-lobe.nii.gz"))) == 2
    medisyn("generate", PROMPT, "--model", superres, "-n", 2, "--out", out, "--dtype", "float32")
    assert "none left to make, 2 there before" in capsys.readouterr().out


def test_two_processes_train_what_one_does(phantoms, encoder, base, tmp_path):
    command = ["train", "medsyn-base-tiny", "--corpus", phantoms, "--out", tmp_path, "--processes", 2]
    medisyn(*command, "--set", f"report_encoder={encoder}")
    two, one = load_file(tmp_path / UNET), load_file(base / UNET)
    assert json.loads((tmp_path / "run.json").read_text())["processes"] == 2
    for name, weight in one.items():
        torch.testing.assert_close(
            two[name], weight, rtol=1e-3, atol=2e-4
        )  # sums in another order, and Adam's division


def test_a_real_ct_as_its_zip(shared_data, encoder, tmp_path, capsys):
    zipped = tmp_path / "ct.zip"
    shutil.copy(shared_data / "open" / "ct_chest_lungpetctdx" / "Lung_Dx-A0001.zip", zipped)
    common = ["--corpus", zipped, "--steps", 1, "--set", "masks=empty"]
    reading = ["--set", f"report_encoder={encoder}", "--set", "data.report=Findings: Mass in the right lung."]
    medisyn("train", "medsyn-base-tiny", *common, "--out", tmp_path / "base", *reading)
    medisyn("train", "medsyn-superres-tiny", *common, "--out", tmp_path / "sr", "--set", f"base={tmp_path / 'base'}")
    (told, lack, *_) = json.loads((tmp_path / "base" / "run.json").read_text())["notes"]["volumes"]
    assert told == "1 CT volumes with voxels of 5.00, 0.84, 0.84 mm"
    assert "1 of them lack masks" in lack
    medisyn("generate", PROMPT, "--model", tmp_path / "sr", "--out", tmp_path / "out")
    assert "1 CT volumes with masks" in capsys.readouterr().out


def test_a_user_is_told_in_one_line(phantoms, tmp_path, capsys):
    arguments = ["train", "medsyn-base-tiny", "--corpus", str(phantoms), "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert "give --set report_encoder=FOLDER" in capsys.readouterr().err
    assert main(["generate", PROMPT, "--model", str(tmp_path)]) == 2
