"""Composition, `medisyn generate interpolate` and `medisyn generate inpaint` from the command line to the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import build
from medisyn import runs
from medisyn.cli import main
from medisyn.errors import InputError, ModelError
from medisyn.evaluation.classify import JudgeNetwork, save_judge
from medisyn.generation import provenance
from medisyn.recipes import inpaint_images as inpainting
from medisyn.recipes.generate_images import generate_images
from medisyn.recipes.interpolate_images import interpolate_images


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build.tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(model: str) -> Any:
    def call(*arguments: str) -> int:
        return main(["generate", *arguments, "--model", model, "--steps", "2", "--dtype", "float32"])

    return call


def pixels(path: Path | str) -> np.ndarray:
    return np.asarray(Image.open(path))


def image(name: str = "image.png", side: int = 32, mode: str = "RGB") -> np.ndarray:
    array = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(array).convert(mode).save(name)
    return pixels(name)


# ---- composition


def test_a_composed_prompt_and_its_record(run: Any, model: str) -> None:
    assert run("red disc :0.75 AND 0.5*blue cross", "-n", "2", "--out", "out", "--guidance", "4") == 0
    record = provenance.read(Path("out/00001-001.png"))
    assert record["prompt"] == "red disc :0.75 AND 0.5*blue cross"
    assert record["terms"] == [{"text": "red disc", "weight": 0.75}, {"text": "blue cross", "weight": 0.5}]
    assert (record["guidance"], record["effective_guidance"]) == (4.0, 5.0)
    source = Image.open("out/00001-001.png").info["Source"]
    assert source.endswith(f"seed {record['seed']}, weights 0.75 + 0.5, effective guidance 5.0")
    generate_images(
        prompts="out/metadata.jsonl", model=model, out="again", dtype="float32"
    )  # the list makes them again
    assert Path("again/00001-001.png").read_bytes() == Path("out/00001-001.png").read_bytes()
    assert run("red disc :0.75 AND 0.5*blue cross", "-n", "3", "--out", "out", "--guidance", "4") == 0  # more of them


def test_a_term_that_is_too_long_is_told(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    long = "red disc on black " * 30 + "finally"
    assert run(f"blue cross AND {long}", "--out", "out") == 0
    assert "lost: " in capsys.readouterr().err
    assert provenance.read(Path("out/00001-000.png"))["lost_words"].endswith("finally")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["red AND"], "term 2 of 2 is empty"),
        (["<healthy> lungs"], "the model knows no token <healthy>"),
        (["--prompts", "p.csv"], "p.csv row 2: the weights of the prompt sum to zero"),
        (["inpaint", "--mask", "box:0,0,4,4", "--prompt", "red"], "give --image, --mask and --prompt"),
        (["inpaint", "--table", "t.csv", "--prompt", "red"], "give either --table, or --image"),
        (["inpaint", "--table", "t.csv"], "t.csv: request 00001-000 has no mask"),
        (["inpaint", "--image", "no.png", "--mask", "box:0,0,4,4", "--prompt", "red"], "the image cannot be read"),
        (["inpaint", "--image", "image.png", "--mask", "no.png", "--prompt", "red"], "the mask cannot be read"),
        (["inpaint", "--image", "image.png", "--mask", "small.png", "--prompt", "red"], "the mask is 16 x 16"),
        (["inpaint", "--image", "image.png", "--mask", "black.png", "--prompt", "red"], "the mask is empty"),
        (["inpaint", "--image", "stack.tif", "--mask", "box:0,0,4,4", "--prompt", "red"], "one picture is needed"),
        (["inpaint", "--image", "deep.png", "--mask", "box:0,0,4,4", "--prompt", "red"], "needs a uint8 image"),
        (
            ["inpaint", "--image", "image.png", "--mask", "box:0,0,4,4", "--prompt", "red", "--strength", "0"],
            "strength must lie above 0",
        ),
        (
            ["inpaint", "--image", "image.png", "--mask", "box:0,0,4,4", "--prompt", "red", "--feather", "-1"],
            "feather must be a number from 0 to 1000",
        ),
        (["interpolate", "--from", "red"], "by weight needs two prompts"),
        (["interpolate", "--from", "red", "--to", "<b>"], "knows no token <b>"),
        (["interpolate", "--from", "red", "--to", "blue", "--judge", "judge"], "a judge needs a target class"),
        (["interpolate", "--to", "blue"], "Missing option '--from'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    run: Any, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image()
    Image.new("L", (16, 16), 255).save("small.png")
    Image.new("L", (32, 32), 0).save("black.png")
    Image.fromarray(np.full((32, 32), 3000, np.uint16)).save("deep.png")
    frames = [Image.new("L", (32, 32), value) for value in (1, 2)]
    frames[0].save("stack.tif", save_all=True, append_images=frames[1:])
    Path("p.csv").write_text("prompt\nred\na :1 AND b :-1\n")
    Path("t.csv").write_text("prompt,image\nred,image.png\n")
    assert run(*arguments, "--out", "out") == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert "no.png" not in error
    assert not Path("out").exists()


# ---- interpolate


def test_a_series_with_sheet_animation_and_judge(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    save_judge(JudgeNetwork(["red", "blue"], (4, 4, 4, 4), 16), Path("judge"), {"trained_on": "x"})
    ends = ["--from", "red disc", "--to", "blue cross", "--frames", "3", "-n", "2"]
    judge = ["--judge", "judge", "--target", "blue", "--json"]
    assert run("interpolate", *ends, *judge, "--out", "out") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["made"], result["monotone"]["n"], result["monotone"]["frames"]) == (6, 2, 3)
    assert runs.read_jsonl(Path("out/metadata.jsonl"))[1]["prompt"] == "red disc :0.5 AND blue cross :0.5"
    measured = json.loads(Path("out/series/monotone.json").read_text())
    assert measured["scored_by"].startswith("log-odds of 'blue' by judge:")
    assert pixels("out/series/sheet.png").shape == (2 * 32 + 2, 3 * 32 + 4, 3)
    with Image.open("out/series/animation.gif") as animation:
        assert animation.n_frames == 3
    assert run("red disc", "--out", "plain", "--seed", "0") == 0
    assert run("interpolate", *ends, "--out", "out") == 0  # again: all there
    assert "6 pictures, none left to make, 6 there before" in capsys.readouterr().out


@pytest.mark.parametrize("by", ["weight", "embedding"])
def test_the_ends_are_the_plain_pictures(model: str, by: str) -> None:
    options: dict[str, Any] = {"model": model, "steps": 2, "dtype": "float32", "batch_size": 1}
    report = interpolate_images("red disc", "blue cross", frames=2, by=by, out="out", **options)
    seed = provenance.read(report.out / "s000-f000.png")["seed"]
    Path("p.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "seed": seed}) + "\n" for p in ("red disc", "blue cross"))
    )
    plain = generate_images(prompts="p.jsonl", out="plain", **options)
    for frame, key in (("s000-f000", "00001-000"), ("s000-f001", "00002-000")):
        difference = pixels(report.out / f"{frame}.png").astype(int) - pixels(plain.out / f"{key}.png")
        assert np.abs(difference).max() <= 1
    again = generate_images(prompts=report.out / "metadata.jsonl", out="again", **options)
    assert (again.out / "s000-f001.png").read_bytes() == (report.out / "s000-f001.png").read_bytes()


def test_by_noise_with_a_score_of_ones_own(model: str) -> None:
    def bright(pictures: Any) -> np.ndarray:
        return np.array([picture.mean() for picture in pictures])

    report = interpolate_images("red disc", frames=3, by="noise", model=model, steps=2, dtype="float32", score=bright)
    assert report.out.parent == Path("synthetic")
    first, _, last = (pixels(report.out / f"s000-f00{i}.png") for i in range(3))
    assert report.monotone is not None
    assert report.monotone.rise == pytest.approx(last.mean() - first.mean())
    assert "score: " in report.summary()
    with pytest.raises(InputError, match="give either a score of your own, or a target class"):
        interpolate_images("a", "b", model=model, target="x", score=bright)


def test_an_unknown_class_of_the_judge_is_named(model: str) -> None:
    with pytest.raises(InputError, match=r"knows no class 'chest X-ray/AP'.*Its classes: "):
        interpolate_images("a", "b", model=model, target="chest X-ray/AP")


# ---- inpaint


@pytest.mark.parametrize(("side", "mode"), [(32, "RGB"), (32, "L"), (80, "RGB")])
def test_pixels_outside_the_mask_come_back_bit_for_bit(run: Any, side: int, mode: str) -> None:
    original = image(side=side, mode=mode)
    arguments = ["--image", "image.png", "--mask", "ellipse:16,15,6,4", "--prompt", "red disc :2", "-n", "2"]
    assert run("inpaint", *arguments, "--out", "out") == 0
    rows, columns = np.mgrid[:side, :side]
    inside = ((columns - 16) / 6) ** 2 + ((rows - 15) / 4) ** 2 <= 1
    for name in ("00001-000", "00001-001"):
        got = pixels(f"out/{name}.png")
        assert got.shape == original.shape
        np.testing.assert_array_equal(got[~inside], original[~inside])
        assert (got[inside] != original[inside]).mean() > 0.5
    record = provenance.read(Path("out/00001-000.png"))
    assert (record["height"], record["mask_pixels"], record["feather"]) == (side, int(inside.sum()), 2.0)
    assert record["effective_guidance"] == 14.0


def test_the_default_folder_belongs_to_image_and_mask(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    image()
    common = ["inpaint", "--image", "image.png", "--prompt", "red disc", "--mask"]
    assert [run(*common, "box:0,0,8,8"), run(*common, "box:0,0,8,8"), run(*common, "box:0,0,8,9")] == [0, 0, 0]
    assert "none left to make, 1 there before" in capsys.readouterr().out
    assert len(list(Path("synthetic").iterdir())) == 2


def test_a_table_places_lesions_by_location_and_size(run: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    original = image("in/a.png")
    Image.fromarray(np.kron(np.eye(2, dtype=np.uint8), np.full((16, 16), 255, np.uint8))).save("in/m.png")
    rows = [
        {"image": "a.png", "mask": "box:2,3,8,8", "prompt": "red disc", "key": "small", "label": "small"},
        {"image": "a.png", "mask": "m.png", "prompt": "blue cross", "key": "file", "strength": 0.5, "feather": 0},
        {"image": "a.png", "mask": "box:0,0,32,32", "prompt": "green", "key": "all", "seed": 7, "feather": "1"},
    ]
    Path("in/t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("inpaint", "--table", "in/t.jsonl", "--out", "out", "--strength", "0.9") == 0
    records = {record["key"]: record for record in runs.read_jsonl(Path("out/metadata.jsonl"))}
    assert [(r["strength"], r["feather"], r["mask_box"]) for r in records.values()] == [
        (0.9, 2.0, [2, 3, 8, 8]), (0.5, 0.0, [0, 0, 32, 32]), (0.9, 1.0, [0, 0, 32, 32])
    ]  # fmt: skip
    assert records["small"]["label"] == "small"
    assert not any("a.png" in str(record) or "in/" in str(record) for record in records.values())
    np.testing.assert_array_equal(pixels("out/file.png")[16:, :16], original[16:, :16])
    np.testing.assert_array_equal(pixels("out/small.png")[11:], original[11:])


def test_inpainting_is_for_stable_diffusion() -> None:
    with pytest.raises(ModelError, match="inpainting is offered for Stable Diffusion models; this is a dict"):
        inpainting._painter({})  # type: ignore[arg-type]
