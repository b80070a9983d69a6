"""`medisyn generate` and `medisyn models` from the command line to the files, on a tiny Stable Diffusion."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import build
import medisyn
from medisyn import runs
from medisyn.cli import main
from medisyn.errors import InputError
from medisyn.generation import provenance
from medisyn.recipes import shipped_models as shipped


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build.tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    return main(["generate", *arguments, "--steps", "2", "--dtype", "float32"])


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_one_prompt_and_its_default_folder(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("Red disc, on black!", "-n", "2", "--model", model) == 0
    output = capsys.readouterr().out
    (folder,) = (tmp_path / "synthetic").iterdir()
    assert folder.name.startswith("red-disc-on-black-")
    assert f"synthetic/{folder.name}: 2 pictures, 2 made" in output
    assert "Not for diagnostic use" in output
    record = provenance.read(folder / "00001-001.png")
    assert (record["prompt"], record["model"], record["solver"], record["steps"]) == (
        "Red disc, on black!", "tiny", "dpmpp-2m", 2
    )  # fmt: skip
    assert (record["height"], record["width"], record["dtype"]) == (32, 32, "float32")

    assert run("Red disc, on black!", "-n", "3", "--model", model) == 0  # more of the same: the same folder
    assert run("Red disc, on black!", "-n", "3", "--model", model, "--seed", "1") == 0  # another run: another folder
    names = sorted(path.name for path in (tmp_path / "synthetic").iterdir())
    assert (folder.name in names, len(names)) == (True, 2)
    assert len(runs.read_jsonl(folder / "metadata.jsonl")) == 3


def test_a_table_with_gallery_and_json(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.csv").write_text("prompt,key,guidance,specialty\nred disc,a,1,radiology\nblue cross,b,3,pathology\n")
    options = ["--prompts", "p.csv", "--model", model, "--out", "out", "--gallery", "page.html", "--json"]
    assert run(*options, "--size", "48", "--width", "32") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["made"], result["skipped"], result["gallery"]) == (2, 0, "page.html")
    assert result["seconds_per_image"] == pytest.approx(result["seconds"] / 2, abs=1e-3)
    records = {r["key"]: r for r in runs.read_jsonl(tmp_path / "out" / "metadata.jsonl")}
    assert [(r["height"], r["width"], r["guidance"], r["specialty"]) for r in records.values()] == [
        (48, 32, 1.0, "radiology"), (48, 32, 3.0, "pathology")
    ]  # fmt: skip
    assert "Pathology" in (tmp_path / "page.html").read_text()
    assert picture(tmp_path / "out" / "a.png").shape == (48, 32, 3)

    also = ["--gallery-also", "again"]
    assert run("blue cross", "--model", model, "--out", "again", "--size", "32", *also) == 2
    assert "name the page with --gallery" in capsys.readouterr().err
    assert run("blue cross", "--model", model, "--out", "again", "--size", "32") == 0
    assert run(*options[:-1], "--size", "48", "--width", "32", *also) == 0
    assert "Again" in (tmp_path / "page.html").read_text()
    shutil.rmtree(tmp_path / "again")

    # The list of an earlier run is a table that makes the same pictures again.
    assert run("--prompts", "out/metadata.jsonl", "--model", model, "--out", "again") == 0
    assert (tmp_path / "again" / "a.png").read_bytes() == (tmp_path / "out" / "a.png").read_bytes()


def test_batch_size_changes_at_most_one_grey_level(model: str) -> None:
    options: dict[str, Any] = {"model": model, "n": 5, "steps": 4, "dtype": "float32"}
    alone = medisyn.generate("red disc on black", out="alone", batch_size=1, **options)
    medisyn.generate("red disc on black", out="together", batch_size=5, **options)
    pictures = [picture(alone.out / f"00001-00{i}.png") for i in range(5)]
    for i, image in enumerate(pictures):
        assert abs(image - picture(Path("together") / f"00001-00{i}.png")).max() <= 1  # float32 rounds by batch shape
    assert all(abs(image - pictures[0]).max() > 20 for image in pictures[1:])  # the seeds do differ


def test_two_processes_make_the_pictures_of_one(model: str) -> None:
    prompts = ["red disc", "blue cross", "green square"]
    options: dict[str, Any] = {"model": model, "steps": 2, "dtype": "float32", "batch_size": 1}
    medisyn.generate(prompts, out="one", **options)
    report = medisyn.generate(prompts, out="two", processes=2, **options)
    assert report.made == 3
    for i in (1, 2, 3):
        one, two = (Path(name) / f"0000{i}-000.png" for name in ("one", "two"))
        assert abs(picture(one) - picture(two)).max() <= 1
        assert provenance.read(one) == provenance.read(two)


def test_a_long_prompt_warns_once_with_the_lost_words(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "red disc on black " * 30 + "finally"
    assert run(prompt, "-n", "2", "--model", model, "--out", "out") == 0
    assert capsys.readouterr().err.count("longer than the model reads; lost: ") == 1
    assert all(r["lost_words"].endswith("finally") for r in runs.read_jsonl(Path("out") / "metadata.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a prompt"),
        (["a prompt", "--prompts", "p.csv"], "give either a prompt"),
        (["--prompts", "absent.csv"], "absent.csv: cannot be read"),
        (["red disc", "--processes", "0"], "processes must be at least 1, got 0"),
        (["red disc", "-n", "0"], "n must be a whole number from 1"),
        (["red disc", "--height", "33"], "must be a multiple of"),
        (["red disc", "--solver", "eulr"], "Did you mean 'euler'"),
        (["red disc", "--device", "cdua"], "device 'cdua' is unknown, allowed: auto, cpu, cuda, cuda:N. Did you mean"),
        (["red disc", "--device", "cuda:99"], "GPUs here; `medisyn doctor` shows them"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    model: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "--model", model, "--out", "out") == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert not Path("out").exists()


def test_another_prompt_in_the_same_folder_is_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("red disc", "--model", model, "--out", "out") == 0
    assert run("blue cross", "--model", model, "--out", "out") == 2
    assert "holds '00001-000' with prompt 'red disc', now it is 'blue cross'" in capsys.readouterr().err


def test_run_json_says_on_what_it_ran(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    abilities = {"cpu_name": "Abacus 9"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert run("red disc", "--model", model, "--out", "out", "--seed", "3") == 0
    content = runs.read_run(Path("out"))
    assert content is not None
    assert content["settings"] == {"device": "CPU (Abacus 9), 1 thread", "processes": 1, "seed": 3}
    assert content["model"]["id"] == "tiny"


def test_models_lists_what_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert "starter-image   2D medical images" in text
    assert "a diffusers folder" in text
    assert main(["models", "starter-image", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)
    assert model["name"] == "starter-image"
    assert main(["models", "starter-imag"]) == 2
    assert "Did you mean 'starter-image'" in capsys.readouterr().err


def test_a_shipped_model_is_described_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    assert not shipped.shipped_model("starter-image").present
    build.tiny_folder(tmp_path / "starter-image")
    (tmp_path / "starter-image" / "README.md").write_text("---\nlicense: x\n---\n# Starter\n\nText.\n")
    model = shipped.shipped_model("starter-image")
    weights = sum(path.stat().st_size for path in (tmp_path / "starter-image").rglob("*.safetensors"))
    assert (model.present, model.card) == (True, "# Starter\n\nText.")
    assert model.megabytes == pytest.approx(weights / 1e6, abs=0.05)
    assert main(["models", "starter-image"]) == 0
    assert "# Starter" in capsys.readouterr().out
    assert shipped.card_of(str(tmp_path / "nowhere")) == ""
    with pytest.raises(InputError, match="is not a model that comes with MediSyn; these do: starter-image"):
        shipped.shipped_model("x")


def test_the_gallery_prompts_of_the_demo_are_a_valid_table() -> None:
    from medisyn.generation.prompts import Defaults, requests_from_table
    from medisyn.terms import SPECIALTIES

    path = shipped.FOLDER / "gallery_prompts.csv"
    requests = requests_from_table(path, Defaults())
    assert len(requests) >= 12
    with path.open(newline="") as stream:
        keys = [row["key"] for row in csv.DictReader(stream)]
    assert [request.key for request in requests] == keys
    specialties = {request.metadata["specialty"] for request in requests}
    assert specialties <= set(SPECIALTIES)
    assert len(specialties) >= 4
