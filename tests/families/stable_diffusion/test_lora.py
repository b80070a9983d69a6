"""Adapters: small, harmless when new, and the same image here and in plain diffusers."""

import diffusers
import pytest
import torch
from safetensors.torch import load_file

import build
from medisyn.errors import ConfigError, ModelError
from medisyn.families.stable_diffusion.config import StableDiffusionConfig
from medisyn.families.stable_diffusion.load import use_size
from medisyn.families.stable_diffusion.lora import LORA_FILE
from medisyn.families.stable_diffusion.model import StableDiffusion
from medisyn.recipes.models import open_model
from medisyn.seeding import generator_for
from medisyn.types import Request

REQUEST = Request("a", "red square on black", 3, steps=4)
# alpha differs from the rank, so that a lost alpha shows
CONFIG = StableDiffusionConfig(lora_rank=2, lora_alpha=8, train_text_encoder=True, caption_dropout=0)


@pytest.fixture(params=["sd1", "sdxl"])
def base(request, tmp_path):
    return build.tiny_folder(tmp_path / "base", {"sd1": build.TINY_SD1, "sdxl": build.TINY_SDXL}[request.param])


def trained(base, config=CONFIG) -> StableDiffusion:
    """An adapter whose both matrices are away from zero."""
    model = StableDiffusion.from_folder(base, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for group in model.trainable():
            for parameter in group.parameters:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def test_a_new_adapter_changes_nothing(base):
    plain, adapted = StableDiffusion.from_folder(base), StableDiffusion.from_folder(base, CONFIG)
    assert torch.equal(plain.sample([REQUEST]), adapted.sample([REQUEST]))


def test_only_the_adapter_is_trained_and_every_matrix_of_it(base):
    model = trained(base)
    unet, text = model.trainable()
    assert {p.shape[0] == 2 or p.shape[1] == 2 for p in (*unet.parameters, *text.parameters)} == {True}
    rows = model.encode(build.samples(4))
    model.loss(rows, [generator_for(0, str(i)) for i in range(4)]).sum().backward()
    for parameter in (*unet.parameters, *text.parameters):
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) > 0
    assert model.networks.unet.conv_in.weight.grad is None


def test_the_saved_adapter_gives_the_same_image_in_plain_diffusers_and_here(base, tmp_path):
    model = trained(base)
    ours = model.sample([REQUEST])
    model.save(tmp_path / "adapter")
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == ["medisyn.json", LORA_FILE]

    pipeline = diffusers.DiffusionPipeline.from_pretrained(base)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    noise = torch.randn(4, 16, 16, generator=generator_for(3, "noise"))[None]
    options = {"num_inference_steps": 4, "guidance_scale": 7.0, "output_type": "latent"}
    without = pipeline(REQUEST.prompt, latents=noise.clone(), **options).images
    pipeline.load_lora_weights(tmp_path / "adapter")
    theirs = pipeline(REQUEST.prompt, latents=noise.clone(), **options).images
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert float((without - theirs).abs().max()) > 0.1


def test_merging_adds_scale_times_the_product_to_the_weights(base, tmp_path):
    trained(base).save(tmp_path / "adapter")
    plain, merged = StableDiffusion.from_folder(base), StableDiffusion.from_folder(base, adapter=tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / LORA_FILE)
    down = next(key for key in stored if key.startswith("unet.") and key.endswith("to_v.lora.down.weight"))
    layer = down.removeprefix("unet.").removesuffix(".lora.down.weight")
    product = stored[f"unet.{layer}.lora.up.weight"] @ stored[down]
    before, after = (m.networks.unet.get_submodule(layer).weight for m in (plain, merged))
    torch.testing.assert_close(after, before + 8 / 2 * product, rtol=1e-5, atol=1e-6)  # alpha 8, rank 2
    assert float(product.detach().abs().max()) > 1e-3


def test_a_merged_adapter_is_an_ordinary_model(base, tmp_path):
    trained(base).save(tmp_path / "adapter")
    merged = StableDiffusion.from_folder(base, adapter=tmp_path / "adapter")
    merged.save(tmp_path / "merged")
    assert torch.equal(StableDiffusion.from_folder(tmp_path / "merged").sample([REQUEST]), merged.sample([REQUEST]))


def test_rank_and_targets_decide_what_is_stored(tmp_path):
    base = build.tiny_folder(tmp_path / "base")
    config = StableDiffusionConfig(lora_rank=3, lora_targets=("to_v",))
    trained(base, config).save(tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / LORA_FILE)
    assert all(".to_v." in name for name in stored)
    assert all(3 in tensor.shape for tensor in stored.values())
    count = sum(name.endswith("to_v") for name, _ in StableDiffusion.from_folder(base).networks.unet.named_modules())
    assert len(stored) == 2 * count


def test_the_same_adapter_starts_every_run(tmp_path):
    base = build.tiny_folder(tmp_path / "base")
    a, b = (StableDiffusion.from_folder(base, CONFIG).trainable() for _ in range(2))
    for x, y in zip(a, b, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(x.parameters, y.parameters, strict=True))


def test_a_target_that_names_no_layer_is_refused(tmp_path):
    base = build.tiny_folder(tmp_path / "base")
    with pytest.raises(ConfigError, match="LoRA target 'to_w' is the name of no layer of the unet"):
        StableDiffusion.from_folder(base, StableDiffusionConfig(lora_rank=2, lora_targets=("to_q", "to_w")))


def test_an_adapter_needs_a_base_with_a_name():
    with pytest.raises(ConfigError, match="a LoRA records its base model: save the base first"):
        build.tiny_model(build.TINY_SD1, CONFIG)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    small = build.tiny_folder(tmp_path / "sd", build.TINY_SD1)
    large = build.tiny_folder(tmp_path / "xl", build.TINY_SDXL)
    trained(small).save(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"the adapter adapter/ does not fit its base model"):
        StableDiffusion.from_folder(large, adapter=tmp_path / "adapter")


def test_an_adapter_samples_at_the_size_it_was_trained_at(tmp_path):
    """The base makes 32x32 pixels; the adapter was trained on 48x64."""
    base = build.tiny_folder(tmp_path / "base")
    model = trained(base)
    use_size(model.networks, 48, 64)
    model.save(tmp_path / "adapter")
    opened = StableDiffusion.from_folder(base, adapter=tmp_path / "adapter")
    [picture] = opened.decode(opened.sample([REQUEST]))
    assert picture.array_CHW.shape == (3, 48, 64)
    assert open_model(str(tmp_path / "adapter")).resolve(REQUEST).width == 64
    assert StableDiffusion.from_folder(base).native_size == (32, 32)
    opened.save(tmp_path / "merged")  # a whole model keeps its size in the U-Net's config
    assert StableDiffusion.from_folder(tmp_path / "merged").native_size == (48, 64)


def test_a_size_that_the_autoencoder_cannot_make(tmp_path):
    with pytest.raises(ModelError, match="size 33x32 does not divide by the autoencoder's factor 2"):
        use_size(build.tiny_model().networks, 33, 32)
