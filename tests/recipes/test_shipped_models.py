"""What the package says of the models that come with it, with and without their weights."""

from __future__ import annotations

import pytest

from medisyn.cli import main
from medisyn.errors import ModelError
from medisyn.generation.prompts import Defaults
from medisyn.recipes import models, shipped_models
from medisyn.recipes.generate_images import default_folder
from medisyn.recipes.shipped_models import MARKS, shipped_model
from medisyn.runs import digest


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("name", ["starter-ct", "starter-video"])
def test_a_model_is_present_with_its_mark_and_its_weights(monkeypatch, tmp_path, capsys, mark, name):
    monkeypatch.setattr(shipped_models, "FOLDER", tmp_path)
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    how = f"not in this build: make it with `medisyn train {name}`"
    assert (shipped_model(name).present, shipped_model(name).state) == (False, how)
    assert main(["models", name]) == 0
    assert how in capsys.readouterr().out
    with pytest.raises(ModelError, match=f"the weights of {name} are not in this build. Run `medisyn train {name}`"):
        models.find_model(name)
    (tmp_path / name / "unet").mkdir(parents=True)
    (tmp_path / name / "unet" / "a.safetensors").write_bytes(b"x" * 2_500_000)
    assert not shipped_model(name).present
    (tmp_path / name / mark).write_text("{}")
    assert (shipped_model(name).present, shipped_model(name).state) == (True, "2.5 MB")
    assert models.find_model(name).folder == tmp_path / name


def test_every_starter_model_is_listed(capsys):
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert all(f"{name}   " in text for name in ("starter-image", "starter-ct", "starter-video"))


def test_folders_of_pictures_keep_the_names_they_had():
    """Settings of clips that nobody gave do not count: the same command finds its folder of an earlier version."""
    facts = {"id": "starter-image"}
    before = {
        "seed": 0, "negative_prompt": "", "height": None, "width": None, "steps": 30, "guidance": None,
    }  # fmt: skip
    name = f"chest-{digest(['chest', facts, before])[:6]}"
    assert default_folder("chest", Defaults(steps=30), facts).name == name
    assert default_folder("chest", Defaults(steps=30, motion=0.0), facts).name != name
