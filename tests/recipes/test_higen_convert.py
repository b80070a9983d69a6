"""The published HiGen checkpoint: a randomly initialised one in the published layout, read back."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import build
from medisyn.errors import InputError, ModelError
from medisyn.families.higen.config import UNET_TINY, ClipGrid
from medisyn.families.higen.model import HiGen
from medisyn.families.higen.networks import build_unet
from medisyn.families.higen.published import to_published
from medisyn.families.higen.settings import HiGenDefaults
from medisyn.recipes.higen_convert import convert_higen
from medisyn.types import Request

NETWORK = replace(UNET_TINY, appearance_points=8, stem_heads=2)  # as published: rows of 8 for clips of 8 frames
OPTIONS = {
    "head_width": 8,
    "norm_groups": 8,
    "grid": ClipGrid(frames=8, height=16, width=16),
    "defaults": HiGenDefaults(overlap=4),
    "text_layer": "last",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(build.tiny_folder(tmp_path_factory.mktemp("base") / "sd2"))


def checkpoint(folder: Path, state: dict[str, torch.Tensor] | None = None, **beside) -> Path:
    """A checkpoint as the published scripts save it."""
    weights = to_published(build_unet(NETWORK, seed=5)) if state is None else state
    torch.save({"state_dict": weights, "step": 725000, **beside}, folder / "higen.pth")
    return folder / "higen.pth"


def test_the_checkpoint_becomes_a_model(tmp_path, base):
    state = {f"module.{name}": weight for name, weight in to_published(build_unet(NETWORK, seed=5)).items()}
    file = checkpoint(tmp_path, {**state, "module.fps_embedding.0.bias": torch.ones(4), "betas": torch.ones(5)})
    report = convert_higen(file, base, tmp_path / "model", **OPTIONS).summary()
    assert "U-Net: higen.pth, " in report
    assert "width 16 x (1, 2), 2 entries that it has no place for left out" in report
    assert "clips: 8 frames, the only length that these weights know" in report
    assert "text encoder: last of 2 layers, 16 wide" in report

    model = HiGen.from_folder(tmp_path / "model")
    wanted, got = build_unet(NETWORK, seed=5).state_dict(), model.unet.state_dict()
    assert all(torch.equal(weight, got[name]) for name, weight in wanted.items())
    assert (model.unet.config["frames"], model.grid, model.settings.text_layer) == (8, OPTIONS["grid"], "last")
    request = Request(key="a", prompt="red disc", seed=1, steps=1, guidance=1.0)
    assert model.sample([request]).shape == (1, 4, 8, 8, 8)
    with pytest.raises(InputError, match="5 frames"):
        model.resolve(replace(request, frames=5))


def test_half_precision_weights_are_held_in_float32(tmp_path, base):
    state = {name: weight.half() for name, weight in to_published(build_unet(NETWORK, seed=5)).items()}
    convert_higen(checkpoint(tmp_path, state), base, tmp_path / "model", **OPTIONS)
    unet = HiGen.from_folder(tmp_path / "model").unet
    assert unet.dtype == torch.float32
    assert torch.equal(unet.stem.weight, build_unet(NETWORK, seed=5).stem.weight.half().float())


def test_a_clip_length_that_the_weights_cannot_do_is_refused(tmp_path, base):
    options = {**OPTIONS, "grid": ClipGrid(frames=6, height=16, width=16)}
    with pytest.raises(ModelError, match="weights know clips of 8 frames, the grid has 6"):
        convert_higen(checkpoint(tmp_path), base, tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


def test_the_text_layer_is_told_or_refused(tmp_path, base):
    file = checkpoint(tmp_path)
    with pytest.raises(InputError, match="text_layer must be one of penultimate, last, got 'first'"):
        convert_higen(file, base, tmp_path / "model", **{**OPTIONS, "text_layer": "first"})
    with pytest.raises(InputError, match="has 2 layers, not the 23 or 24 of ViT-H: say with --text-layer"):
        convert_higen(file, base, tmp_path / "model", **{**OPTIONS, "text_layer": None})
    convert_higen(file, base, tmp_path / "model", **{**OPTIONS, "text_layer": "penultimate"})
    assert HiGen.from_folder(tmp_path / "model").settings.text_layer == "penultimate"


@pytest.mark.parametrize(("layers", "layer"), [(23, "last"), (24, "penultimate")])
def test_the_number_of_layers_tells_where_the_published_text_is(layers, layer):
    from transformers import CLIPTextConfig, CLIPTextModel

    from medisyn.recipes.higen_convert import _layer

    config = CLIPTextConfig(
        vocab_size=9, hidden_size=4, intermediate_size=4, num_hidden_layers=layers, num_attention_heads=1
    )
    assert _layer(CLIPTextModel(config)) == layer


def test_other_checkpoints_are_refused(tmp_path, base):
    with pytest.raises(ModelError, match=r"there is no file nowhere.pth"):
        convert_higen(tmp_path / "nowhere.pth", base, tmp_path / "model", **OPTIONS)
    state = to_published(build_unet(NETWORK))
    image_model = {f"model.diffusion_model.{name}": weight for name, weight in state.items() if "embedding" not in name}
    with pytest.raises(ModelError, match=r"has no context_embedding.tokens, .* not one of a HiGen network"):
        convert_higen(checkpoint(tmp_path, image_model), base, tmp_path / "model", **OPTIONS)
    with pytest.raises(ModelError, match=r"no weight called input_blocks.0.0.weight: it is of another kind"):
        convert_higen(checkpoint(tmp_path, {"conv_in.weight": torch.ones(1)}), base, tmp_path / "model", **OPTIONS)
    state.pop("middle_block.2.proj_out.bias")
    with pytest.raises(ModelError, match=r"the checkpoint lacks 1 weights .*: middle_block.2.proj_out.bias"):
        convert_higen(checkpoint(tmp_path, state), base, tmp_path / "model", **OPTIONS)


def test_the_command_refuses_in_one_line(tmp_path, base):
    from medisyn.cli.convert import app

    file = checkpoint(tmp_path, {"conv_in.weight": torch.ones(1)})
    result = CliRunner().invoke(
        app, ["higen", "--checkpoint", str(file), "--base", base, "--out", str(tmp_path / "model")]
    )
    assert isinstance(result.exception, ModelError)
    assert "no weight called input_blocks.0.0.weight" in str(result.exception)
