"""Names of models: what each opens, and what is said about a name that opens nothing."""

import json

import pytest

import build
from medisyn.errors import ConfigError, ModelError
from medisyn.families.stable_diffusion.config import StableDiffusionConfig
from medisyn.families.stable_diffusion.model import StableDiffusion
from medisyn.recipes import models
from medisyn.recipes.models import find_model, open_model
from medisyn.types import Request


@pytest.fixture
def folder(tmp_path):
    return build.tiny_folder(tmp_path / "tiny")


def test_a_folder_opens_ready_to_sample(folder):
    opened = open_model(str(folder))
    assert (opened.id, opened.solver) == ("tiny", "dpmpp-2m")
    request = opened.resolve(Request("a", "red square", 0))
    assert (request.height, request.steps, request.guidance) == (32, 25, 7.0)
    assert opened.lost_words("red") == ""
    [picture] = opened.family.decode(opened.family.sample([Request("a", "red", 0, steps=1)]))
    assert picture.array_CHW.shape == (3, 32, 32)


def test_the_digest_names_the_weights_and_not_the_place(folder, tmp_path):
    first = open_model(str(folder)).digest
    assert len(first) == 64
    folder.rename(tmp_path / "moved")
    assert open_model(str(tmp_path / "moved")).digest == first
    build.tiny_folder(tmp_path / "other", seed=1)
    assert open_model(str(tmp_path / "other")).digest != first


def test_the_solver_can_be_chosen(folder):
    opened = open_model(str(folder), solver="euler")
    assert opened.solver == "euler"
    assert opened.resolve(Request("a", "x", 0)).steps == 50
    with pytest.raises(ConfigError, match="solver 'pndm' is unknown"):
        open_model(str(folder), solver="pndm")


def test_a_run_folder_opens_its_model(tmp_path):
    build.tiny_folder(tmp_path / "run-a" / "model")
    (tmp_path / "run-a" / "run.json").write_text("{}")
    place = find_model(str(tmp_path / "run-a"))
    assert (place.id, place.folder.name) == ("run-a", "model")


def test_an_adapter_opens_with_its_base(folder, tmp_path):
    base = open_model(str(folder))
    StableDiffusion.from_folder(folder, StableDiffusionConfig(lora_rank=2)).save(tmp_path / "run" / "model")
    opened = open_model(str(tmp_path / "run"))
    assert opened.id == "run"
    assert opened.digest != base.digest
    place = find_model(str(tmp_path / "run"))
    assert place.folder == folder
    assert place.adapter == tmp_path / "run" / "model"


def test_an_adapter_without_a_base_on_record_says_where_to_write_it(folder, tmp_path):
    StableDiffusion.from_folder(folder, StableDiffusionConfig(lora_rank=2)).save(tmp_path / "adapter")
    settings = tmp_path / "adapter" / "medisyn.json"
    settings.unlink()
    with pytest.raises(ModelError, match=r"adapter/ is an adapter \(LoRA\) without its base model on record"):
        find_model(str(tmp_path / "adapter"))
    settings.write_text(json.dumps({"base": str(tmp_path / "adapter")}))
    (tmp_path / "twice").mkdir()
    for file in (tmp_path / "adapter").iterdir():
        (tmp_path / "twice" / file.name).write_bytes(file.read_bytes())
    settings.write_text(json.dumps({"base": str(folder)}))
    with pytest.raises(ModelError, match="twice/ is an adapter on another adapter"):
        find_model(str(tmp_path / "twice"))


def test_a_shipped_name_is_found_or_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    with pytest.raises(ModelError, match="the weights of starter-image are not in this build"):
        find_model("starter-image")
    build.tiny_folder(tmp_path / "starter-image")
    assert open_model("starter-image").id == "starter-image"


def test_a_misspelt_name_gets_the_nearest_one():
    with pytest.raises(ModelError, match=r"'starter-imge' is neither a shipped model.*Did you mean 'starter-image'"):
        find_model("starter-imge")


def test_a_misspelt_folder_is_not_taken_for_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build.tiny_folder(tmp_path / "runs" / "chest")
    with pytest.raises(ModelError, match=r"there is no model folder 'chset' in runs/. Did you mean 'chest'"):
        find_model("runs/chset")


def test_a_hub_id_is_looked_up_when_no_folder_has_its_name(monkeypatch, folder, tmp_path):
    from medisyn.families.stable_diffusion import load

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "fetch_from_hub", lambda hub_id: folder)
    assert find_model("owner/name").id == "owner/name"
    assert models.find_autoencoder("owner/name") == folder
    assert models.find_autoencoder(str(folder)) == folder


@pytest.mark.parametrize("file", ["model.safetensors", "sd-v1-4.ckpt"])
def test_a_single_file_says_how_to_convert_it(tmp_path, file):
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(ModelError, match=rf"{file} is a single file, not a model folder.*from_single_file"):
        find_model(str(tmp_path / file))
