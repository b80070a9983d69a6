"""Folders: saved for plain diffusers, opened the same again, and refused with the part that is wrong."""

import json
import os
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import build
from medisyn.errors import ConfigError, ModelError
from medisyn.families.stable_diffusion import load
from medisyn.families.stable_diffusion.config import GenerationDefaults, StableDiffusionConfig
from medisyn.families.stable_diffusion.model import StableDiffusion
from medisyn.seeding import generator_for
from medisyn.types import Request

REQUEST = Request("a", "red square on black", 3, steps=2)


@pytest.fixture
def folder(tmp_path) -> Path:
    return build.tiny_folder(tmp_path / "model")


def weights(folder: Path, part: str) -> Path:
    [file] = (folder / part).glob("*.safetensors")
    return file


@pytest.mark.parametrize("network", [build.TINY_SD1, build.TINY_SDXL])
def test_what_is_saved_opens_as_the_same_model(tmp_path, network):
    model = build.tiny_model(network, defaults=GenerationDefaults(guidance=2.5, steps=9))
    model.save(tmp_path / "m")
    opened = StableDiffusion.from_folder(tmp_path / "m")
    for before, after in zip(model.networks.modules(), opened.networks.modules(), strict=True):
        for (name, a), (other, b) in zip(before.state_dict().items(), after.state_dict().items(), strict=True):
            assert name == other
            assert torch.equal(a, b)
    assert torch.equal(opened.sample([REQUEST]), model.sample([REQUEST]))
    assert opened.resolve(Request("a", "x", 0)).guidance == 2.5
    assert opened.resolve(Request("a", "x", 0)).steps == 9
    assert [t(["Red cross!"]).input_ids for t in opened.networks.tokenizers] == [
        t(["Red cross!"]).input_ids for t in model.networks.tokenizers
    ]


def test_plain_diffusers_opens_the_folder_as_what_it_is(tmp_path):
    for network, kind in (
        (build.TINY_SD1, diffusers.StableDiffusionPipeline),
        (build.TINY_SDXL, diffusers.StableDiffusionXLPipeline),
    ):
        folder = build.tiny_folder(tmp_path / kind.__name__, network)
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
        assert type(pipeline) is kind
        assert json.loads((folder / "model_index.json").read_text()).get("safety_checker", [None, None]) == [None, None]
        assert not [*folder.rglob("*.bin")]


def test_trained_weights_are_what_is_saved(folder, tmp_path):
    model = StableDiffusion.from_folder(folder)
    with torch.no_grad():
        model.networks.unet.conv_in.weight.add_(1)
    model.save(tmp_path / "trained")
    kept, changed = (load_file(weights(f, "unet"))["conv_in.weight"] for f in (folder, tmp_path / "trained"))
    torch.testing.assert_close(changed, kept + 1)


def test_weights_can_be_stored_in_half_and_open_in_full(folder, tmp_path):
    model = StableDiffusion.from_folder(folder)
    model.save(tmp_path / "half", dtype="float16")
    stored = [load_file(weights(tmp_path / "half", part)) for part in ("unet", "vae", "text_encoder")]
    assert {tensor.dtype for part in stored for tensor in part.values()} == {torch.float16}
    assert model.networks.unet.dtype == torch.float32
    opened = StableDiffusion.from_folder(tmp_path / "half")
    assert opened.networks.unet.dtype == opened.networks.vae.dtype == torch.float32
    torch.testing.assert_close(opened.sample([REQUEST]), model.sample([REQUEST]), rtol=0.05, atol=0.05)
    with pytest.raises(ModelError, match=r"dtype 'float61' is not offered.*Did you mean 'float16'"):
        model.save(tmp_path / "other", dtype="float61")
    assert not (tmp_path / "other").exists()


def test_a_new_objective_is_saved_with_the_model(folder, tmp_path):
    config = StableDiffusionConfig(prediction_type="v_prediction", zero_terminal_snr=True)
    StableDiffusion.from_folder(folder, config).save(tmp_path / "v")
    scheduler = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "v").scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr is True
    assert scheduler.config.timestep_spacing == "trailing"


def test_saving_replaces_a_model_whole_and_nothing_else(folder):
    (folder / "leftover.txt").write_text("of the old model")
    build.tiny_model(seed=1).save(folder)
    assert not (folder / "leftover.txt").exists()
    other = folder.parent / "notes"
    other.mkdir()
    (other / "important.txt").write_text("x")
    with pytest.raises(ModelError, match=r"notes/ holds files that are no MediSyn model \(important.txt\)"):
        build.tiny_model().save(other)
    assert (other / "important.txt").exists()


def test_only_a_variant_of_the_weights_is_opened_too(folder):
    exact = StableDiffusion.from_folder(folder).sample([REQUEST])
    for part in ("unet", "vae", "text_encoder"):
        file = weights(folder, part)
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    assert torch.equal(StableDiffusion.from_folder(folder).sample([REQUEST]), exact)


def test_another_autoencoder_takes_the_place_of_the_models_own(folder, tmp_path):
    other = build.tiny_folder(tmp_path / "other", seed=9)
    opened = StableDiffusion.from_folder(folder, vae=other / "vae")
    a, b = opened.networks.vae.state_dict(), StableDiffusion.from_folder(other).networks.vae.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(ModelError, match=r"other/ holds no config.json: it is not an autoencoder's folder"):
        StableDiffusion.from_folder(folder, vae=other)


def test_old_stable_diffusion_schedulers_are_read_as_diffusers_corrects_them(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    old = {**json.loads(path.read_text()), "_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 0}
    path.write_text(json.dumps(old))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "PNDMScheduler"]}))
    model = StableDiffusion.from_folder(folder, solver="checkpoint")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    assert pipeline.scheduler.config.steps_offset == 1
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(4, 16, 16, generator=generator_for(3, "noise"))[None]
    theirs = pipeline(REQUEST.prompt, num_inference_steps=2, guidance_scale=7.0, latents=noise, output_type="latent")
    torch.testing.assert_close(model.sample([REQUEST]), theirs.images, rtol=1e-4, atol=1e-4)


def test_a_folder_of_pickles_is_refused_and_says_how_to_convert(folder):
    file = weights(folder, "unet")
    file.rename(file.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(ModelError, match=r"unet/diffusion_pytorch_model.bin is a pickle.*save_pretrained"):
        StableDiffusion.from_folder(folder)


def test_a_folder_that_holds_one_checkpoint_pickle_is_refused(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "sd-v1-4.ckpt").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"old/sd-v1-4.ckpt is a pickle"):
        StableDiffusion.from_folder(tmp_path / "old")


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(folder, part):
    shutil.rmtree(folder / part)
    with pytest.raises(ModelError, match=rf"model/ lacks the part {part}: {part}/"):
        StableDiffusion.from_folder(folder)


def test_missing_weights_are_named(folder):
    weights(folder, "vae").unlink()
    with pytest.raises(ModelError, match=r"model/vae holds no .safetensors weights"):
        StableDiffusion.from_folder(folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_part_that_lacks_a_weight_is_not_filled_with_noise(folder, part):
    file = weights(folder, part)
    kept = load_file(file)
    lost = sorted(kept)[0]
    save_file({name: tensor for name, tensor in kept.items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"the part {part} lacks 1 of its weights"):
        StableDiffusion.from_folder(folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_damaged_weight_file_is_named(folder, part):
    file = weights(folder, part)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=f"the part {part} cannot be opened"):
        StableDiffusion.from_folder(folder)


def test_a_folder_of_another_kind_is_refused(folder, tmp_path):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    with pytest.raises(ModelError, match="model/ is a FluxPipeline model; allowed: StableDiffusionPipeline"):
        StableDiffusion.from_folder(folder)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match=r"model/model_index.json is not readable JSON"):
        StableDiffusion.from_folder(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty/ holds no model_index.json: it is not a diffusers folder"):
        StableDiffusion.from_folder(tmp_path / "empty")


def test_generation_defaults_that_cannot_be_are_refused(folder):
    settings = folder / "medisyn.json"
    settings.write_text(json.dumps({"defaults": {"guidence": 3}}))
    with pytest.raises(ModelError, match=r"'guidence' is no generation default.*Did you mean 'guidance'"):
        StableDiffusion.from_folder(folder)
    settings.write_text("no json")
    with pytest.raises(ModelError, match=r"medisyn.json is not readable JSON"):
        StableDiffusion.from_folder(folder)
    settings.unlink()
    assert StableDiffusion.from_folder(folder).defaults == GenerationDefaults()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "eulre"}, "solver 'eulre' is unknown"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"guidance": -1.0}, "guidance must be 0 or more, got -1.0"),
        ({"guidance_rescale": 2.0}, r"guidance_rescale must lie in \[0, 1\], got 2.0"),
        ({"height": 64}, "give both height and width in pixels, or neither, got 64 and None"),
    ],
)
def test_a_default_out_of_range_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        GenerationDefaults(**options)


def test_a_model_is_held_in_float32_or_bfloat16(folder):
    with pytest.raises(ModelError, match=r"dtype 'float16' is not offered, allowed: float32, bfloat16"):
        StableDiffusion.from_folder(folder, dtype="float16")


def test_opening_prints_nothing(folder, capfd):
    StableDiffusion.from_folder(folder).save(folder.parent / "again")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_hub_id_that_is_not_here_says_what_to_download(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("MEDISYN_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"model 'owner/name' is not on this machine, and the network.*hf download"):
        load.fetch_from_hub("owner/name")


def test_a_failed_download_is_told_apart_from_no_network(monkeypatch):
    import huggingface_hub

    asked = {}

    def fail(hub_id, **options):
        asked.update(options)
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    for name in load.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ModelError, match=r"model 'owner/name' is not on this machine, the download failed \(OSError\)"):
        load.fetch_from_hub("owner/name")
    assert asked["local_files_only"] is False


@pytest.mark.parametrize("name", load.OFFLINE)
def test_either_variable_switches_the_network_off(monkeypatch, name):
    for other in load.OFFLINE:
        monkeypatch.delenv(other, raising=False)
    assert load.network_allowed()
    monkeypatch.setenv(name, "1")
    assert not load.network_allowed()
    assert os.environ[name] == "1"


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("unet/diffusion_pytorch_model.safetensors", True),
        ("unet/config.json", True),
        ("tokenizer/vocab.json", True),
        ("model_index.json", True),
        ("diffusion_pytorch_model.safetensors", True),
        ("unet/diffusion_pytorch_model.bin", False),
        ("unet/diffusion_pytorch_model.fp16.safetensors", False),
        ("safety_checker/model.safetensors", False),
        ("v1-5-pruned.safetensors", False),
        ("v1-5-pruned.ckpt", False),
    ],
)
def test_only_what_is_needed_is_downloaded(file, wanted):
    from huggingface_hub.utils import filter_repo_objects

    got = [*filter_repo_objects([file], allow_patterns=[*load.HUB_FILES], ignore_patterns=[*load.HUB_EXTRAS])]
    assert got == ([file] if wanted else [])


def test_hub_ids_look_like_owner_and_name():
    assert load.looks_like_hub_id("stabilityai/stable-diffusion-xl-base-1.0")
    assert not any(load.looks_like_hub_id(name) for name in ("starter-image", "a/b/c", "/a", "../b", "a b/c"))


def test_a_saved_folder_holds_no_path_of_the_machine_it_was_made_on(tmp_path):
    first = build.tiny_folder(tmp_path / "first")
    StableDiffusion.from_folder(first).save(tmp_path / "second", dtype="float16")
    for file in (tmp_path / "second").rglob("*.json"):
        assert str(tmp_path) not in file.read_text(), file.name
