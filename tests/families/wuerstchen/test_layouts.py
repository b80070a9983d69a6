"""Würstchen's folders: published, combined and ours, opened with equal outputs; and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel, WuerstchenDiffNeXt, WuerstchenPrior
from safetensors.torch import load_file, save_file

import build_wuerstchen_folders as folders
from medisyn.errors import ModelError
from medisyn.families.wuerstchen import layouts, parts
from medisyn.families.wuerstchen.config import IMAGE_ENCODER_TINY, PRIOR_TINY
from medisyn.families.wuerstchen.effnet import build_image_encoder
from medisyn.families.wuerstchen.prior import build_prior
from medisyn.nn.folders import save_part

WEIGHTS = "diffusion_pytorch_model.safetensors"


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def same_networks(opened: layouts.Networks, *, image_encoder: bool) -> bool:
    made = folders.networks()
    names = ["prior", "decoder", "vqgan", "text_encoder", "decoder_text_encoder"]
    names += ["image_encoder"] if image_encoder else []
    assert (opened.image_encoder is not None) == image_encoder
    assert not any(module.training for module in opened.modules())
    assert opened.tokenizer("red circle").input_ids == made.tokenizer("red circle").input_ids
    assert opened.decoder_tokenizer("red circle").input_ids == made.tokenizer("red circle").input_ids
    return all(equal(getattr(opened, name), getattr(made, name)) for name in names)


def image_encoder_folder(folder: Path) -> Path:
    save_part(folders.networks().encoder(), folder / "encoder")
    return folder / "encoder"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The two published folders, for reading only."""
    return folders.write_hub_folders(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def prior_folder(tmp_path, hub):
    """A folder prior/ of one network, to be damaged."""
    return Path(shutil.copytree(hub[0] / "prior", tmp_path / "prior"))


# ---- the three layouts


def test_published_pipelines_open_with_and_without_the_image_encoder(tmp_path, hub):
    prior, decoder = hub
    assert same_networks(layouts.open_networks(prior, decoder=decoder), image_encoder=False)
    encoder = image_encoder_folder(tmp_path)
    opened = layouts.open_networks(prior, decoder=decoder, image_encoder=encoder, needs_image_encoder=True)
    assert same_networks(opened, image_encoder=True)


def test_opened_networks_give_the_outputs_of_diffusers_on_the_same_folders(hub):
    prior, decoder = hub
    opened = layouts.open_networks(prior, decoder=decoder)
    theirs = WuerstchenPrior.from_pretrained(prior / "prior", low_cpu_mem_usage=False)
    noisy, times, text = torch.randn(2, 4, 3, 3), torch.rand(2), torch.randn(2, 5, 32)
    with torch.no_grad():
        torch.testing.assert_close(opened.prior(noisy, times, text), theirs(noisy, times, text), rtol=1e-4, atol=1e-4)


def test_combined_pipeline_opens(tmp_path):
    folder = folders.write_combined_folder(tmp_path)
    assert layouts.is_wuerstchen(folder)
    assert same_networks(layouts.open_networks(folder), image_encoder=False)
    with pytest.raises(ModelError, match=r"holds Stages B and A itself; leave out the second folder, wuerstchen/"):
        layouts.open_networks(folder, decoder=folder)


def save_ours(folder: Path, networks: layouts.Networks | None = None, dtype: str | None = None) -> Path:
    with layouts.FOLDER.written_whole(folder) as target:
        layouts.save_networks(networks or folders.networks(), target, dtype)
        layouts.FOLDER.write_settings(target, defaults={"steps": 3})
    return folder


def test_saved_folder_opens_again_and_in_diffusers(tmp_path):
    folder = save_ours(tmp_path / "ours")
    assert same_networks(layouts.open_networks(folder, needs_image_encoder=True), image_encoder=True)
    assert layouts.read_settings(folder) == {"family": "wuerstchen", "defaults": {"steps": 3}}
    assert layouts.is_wuerstchen(folder)
    made = folders.networks()
    with torch.no_grad():
        text, times, noisy = torch.randn(1, 5, 32), torch.rand(1), torch.randn(1, 4, 8, 8)
        prior = WuerstchenPrior.from_pretrained(folder / "prior", low_cpu_mem_usage=False).eval()
        torch.testing.assert_close(made.prior(noisy, times, text), prior(noisy, times, text), rtol=1e-4, atol=1e-4)
        decoder = WuerstchenDiffNeXt.from_pretrained(folder / "decoder", low_cpu_mem_usage=False).eval()
        effnet = torch.randn(1, 4, 2, 2)
        ours = made.decoder(noisy, times, effnet, text)
        torch.testing.assert_close(ours, decoder(noisy, times, effnet, text), rtol=1e-5, atol=1e-5)
        vqgan = PaellaVQModel.from_pretrained(folder / "vqgan", low_cpu_mem_usage=False).eval()
        torch.testing.assert_close(made.vqgan.decode(noisy), vqgan.decode(noisy).sample, rtol=1e-5, atol=1e-5)
    for config in folder.glob("*/config.json"):
        assert "_name_or_path" not in json.loads(config.read_text())
    # saved again over itself; what is no model is never replaced
    save_ours(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    with pytest.raises(ModelError, match=r"other/ holds files that are no Würstchen model \(notes.txt\)"):
        save_ours(tmp_path / "other")


def test_stored_type_and_compute_type(tmp_path):
    made = folders.networks()
    folder = save_ours(tmp_path / "half", dtype="float16")
    stored = load_file(folder / "prior" / WEIGHTS)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    opened = layouts.open_networks(folder, dtype="bfloat16")
    assert opened.prior.dtype == opened.decoder_text_encoder.dtype == torch.bfloat16
    weight = made.prior.projection.weight
    torch.testing.assert_close(opened.prior.projection.weight.float(), weight, rtol=1e-2, atol=1e-3)
    assert made.prior.dtype == torch.float32  # saving changed nothing
    with pytest.raises(ModelError, match=r"dtype 'int8' is not offered, allowed: float32, bfloat16, float16"):
        save_part(made.prior, tmp_path / "x", "int8")
    with pytest.raises(ModelError, match=r"dtype 'float16' is not offered, allowed: float32, bfloat16"):
        layouts.open_networks(folder, dtype="float16")


def test_a_model_without_image_encoder_is_saved_without(tmp_path):
    folder = save_ours(tmp_path / "m", replace(folders.networks(), image_encoder=None))
    assert not (folder / "image_encoder").exists()
    assert layouts.open_networks(folder).image_encoder is None


def test_weights_in_several_files_and_in_one_variant_open(tmp_path, prior_folder):
    state = load_file(prior_folder / WEIGHTS)
    (prior_folder / WEIGHTS).unlink()
    names = sorted(state)
    for number, some in enumerate((names[::2], names[1::2]), start=1):
        part = {name: state[name] for name in some}
        save_file(part, prior_folder / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors")
    assert equal(parts.open_network("prior", prior_folder), folders.networks().prior)
    for file in prior_folder.glob("*.safetensors"):
        file.unlink()
    save_file({name: value.half() for name, value in state.items()}, prior_folder / "model.fp16.safetensors")
    opened = parts.open_network("prior", prior_folder)
    assert opened.dtype == torch.float32
    # beside the plain file, the variant is not read
    save_file(state, prior_folder / WEIGHTS)
    assert equal(parts.open_network("prior", prior_folder), folders.networks().prior)


# ---- what is refused


def test_missing_image_encoder_says_which_file_and_whence(tmp_path, hub):
    prior, decoder = hub
    whence = "effnet_state_dict of model_v2_stage_b.pt in the repository dome272/wuerstchen. Run `medisyn convert"
    with pytest.raises(ModelError, match=rf"no folder wuerstchen-prior/image_encoder.*{whence}"):
        layouts.open_networks(prior, decoder=decoder, needs_image_encoder=True)
    with pytest.raises(ModelError, match=rf"no folder elsewhere.*{whence}"):
        layouts.open_networks(prior, decoder=decoder, image_encoder=tmp_path / "elsewhere")


def test_pipelines_in_the_wrong_place(hub):
    prior, decoder = hub
    with pytest.raises(
        ModelError, match=r"wuerstchen-prior/ holds Stage C alone, as published. Give the folder of the"
    ):
        layouts.open_networks(prior)
    with pytest.raises(ModelError, match=r"wuerstchen/ holds Stages B and A without Stage C"):
        layouts.open_networks(decoder)


def write_index(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "model_index.json").write_text(content)
    return folder


def test_folders_of_other_models(tmp_path):
    cascade = write_index(tmp_path / "c", '{"_class_name": "StableCascadePriorPipeline"}')
    with pytest.raises(ModelError, match=r"c/ is a Stable Cascade model \(StableCascadePriorPipeline\)"):
        layouts.open_networks(cascade)
    other = write_index(tmp_path / "o", '{"_class_name": "WuerstchenPriorPipelines"}')
    with pytest.raises(
        ModelError, match=r"allowed: WuerstchenPriorPipeline, .* Did you mean 'WuerstchenPriorPipeline'"
    ):
        layouts.open_networks(other)
    with pytest.raises(ModelError, match=r"model_index.json is not readable JSON"):
        layouts.open_networks(write_index(tmp_path / "d", "{"))
    with pytest.raises(ModelError, match=r"model_index.json must hold a JSON object, got list"):
        layouts.open_networks(write_index(tmp_path / "l", "[]"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds neither wuerstchen.json nor model_index.json"):
        layouts.open_networks(tmp_path / "empty")
    assert not layouts.is_wuerstchen(tmp_path / "empty")
    assert not layouts.is_wuerstchen(cascade)


def test_a_folder_of_raw_checkpoints_points_to_the_converter(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "model_v2_stage_c.pt").write_bytes(b"")
    with pytest.raises(ModelError, match=r"raw/model_v2_stage_c.pt is a pickle.*`medisyn convert wuerstchen`"):
        layouts.open_networks(tmp_path / "raw")


def test_numbers_of_another_mathematics(tmp_path, hub):
    prior = Path(shutil.copytree(hub[0], tmp_path / "p"))
    folders.edit_json(prior / "model_index.json", latent_mean=40.0)
    with pytest.raises(ModelError, match=r"p/ was made for latent_mean 40.0; only the published 42.0 is supported"):
        layouts.open_networks(prior, decoder=hub[1])
    folders.edit_json(prior / "model_index.json", latent_mean=42.0)
    folders.edit_json(prior / "scheduler" / "scheduler_config.json", scaler=2.0)
    with pytest.raises(ModelError, match=r"p/scheduler/ was made for scaler 2.0"):
        layouts.open_networks(prior, decoder=hub[1])


def test_parts_that_do_not_belong_together(tmp_path, hub):
    made = folders.networks()
    wide = build_prior(replace(PRIOR_TINY, c_cond=16))
    with pytest.raises(
        ModelError, match=r"the prior's text width is 16, its text encoder's 32. Were two of the folders"
    ):
        layouts.check_together(replace(made, prior=wide))
    other = build_image_encoder(replace(IMAGE_ENCODER_TINY, c_latent=5))
    with pytest.raises(ModelError, match=r"the prior's channels is 4, the image encoder's 5"):
        layouts.check_together(replace(made, image_encoder=other))


def test_every_weight_that_is_missing_left_over_or_of_another_shape_is_named(prior_folder):
    state = load_file(prior_folder / WEIGHTS)
    del state["out.1.bias"]
    state["out.2.bias"] = torch.zeros(3)
    state["projection.bias"] = torch.zeros(7)
    save_file(state, prior_folder / WEIGHTS)
    with pytest.raises(ModelError) as caught:
        parts.open_network("prior", prior_folder)
    assert str(caught.value) == (
        "the part prior lacks 1 weights (out.1.bias), and has too much 1 weights (out.2.bias), and has in another "
        "shape 1 weights (projection.bias (7,) instead of (32,)). Nothing is filled in; fetch the model again."
    )
    save_file({"projection.bias": state["projection.bias"]}, prior_folder / WEIGHTS)
    with pytest.raises(ModelError, match=r"lacks \d+ weights \(.*(, .*){4} and more\)"):
        parts.open_network("prior", prior_folder)


def test_networks_of_stable_cascade(prior_folder):
    folders.edit_json(prior_folder / "config.json", _class_name="StableCascadeUNet")
    with pytest.raises(ModelError, match=r"the part prior is a network of Stable Cascade \(StableCascadeUNet\)"):
        parts.open_network("prior", prior_folder)
    folders.edit_json(prior_folder / "config.json", _class_name="WuerstchenPrior")
    save_file({"clip_txt_pooled_mapper.weight": torch.zeros(2)}, prior_folder / WEIGHTS)
    with pytest.raises(ModelError, match=r"the part prior holds weights of Stable Cascade"):
        parts.open_network("prior", prior_folder)


def test_a_config_that_describes_no_such_network(prior_folder):
    folders.edit_json(prior_folder / "config.json", something_old=3)  # passed over, as diffusers does
    assert equal(parts.open_network("prior", prior_folder), folders.networks().prior)
    with pytest.raises(ModelError, match=r"the part vqgan is a WuerstchenPrior, allowed: PaellaVQModel, PaellaVQ"):
        parts.open_network("vqgan", prior_folder)
    folders.edit_json(prior_folder / "config.json", nhead=5)
    with pytest.raises(
        ModelError, match=r"config.json does not describe a network: the prior's width c 32 must divide"
    ):
        parts.open_network("prior", prior_folder)
    (prior_folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"the part prior: config.json is not readable JSON"):
        parts.open_network("prior", prior_folder)


def test_missing_and_damaged_files(tmp_path, prior_folder):
    (prior_folder / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(ModelError, match=rf"the part prior: {WEIGHTS} is damaged"):
        parts.open_network("prior", prior_folder)
    (prior_folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"prior/ holds no .safetensors weights"):
        parts.open_network("prior", prior_folder)
    (prior_folder / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"prior/diffusion_pytorch_model.bin is a pickle"):
        parts.open_network("prior", prior_folder)
    (prior_folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"diffusion_pytorch_model.bin is a pickle"):
        parts.open_network("prior", prior_folder)
    with pytest.raises(ModelError, match=r"/ lacks the part prior: none/config.json is missing"):
        parts.open_network("prior", tmp_path / "none")


def test_text_encoders_and_tokenizers(tmp_path, hub):
    encoder = Path(shutil.copytree(hub[0] / "text_encoder", tmp_path / "text_encoder"))
    file = encoder / "model.safetensors"
    state = load_file(file)
    lost = next(name for name in state if name.endswith("final_layer_norm.weight"))
    save_file({name: value for name, value in state.items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"the part text_encoder lacks 1 weights \(.*final_layer_norm.weight\)"):
        parts.open_text_encoder(encoder)
    file.write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"the part text_encoder cannot be opened"):
        parts.open_text_encoder(encoder)
    (encoder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"lacks the part text_encoder: text_encoder/config.json is missing"):
        parts.open_text_encoder(encoder)
    with pytest.raises(ModelError, match=r"lacks the part text_encoder: it holds no tokenizer.json or vocab.json"):
        parts.open_tokenizer(encoder)
