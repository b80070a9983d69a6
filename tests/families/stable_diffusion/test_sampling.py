"""Sampling: the same image as plain diffusers, whatever the batch; and the requests that are refused."""

import diffusers
import numpy as np
import pytest
import torch

import build
from medisyn.errors import ConfigError, InputError, ModelError
from medisyn.families.stable_diffusion.config import GenerationDefaults
from medisyn.families.stable_diffusion.model import StableDiffusion
from medisyn.families.stable_diffusion.sampler import build_solver, choose_solver, with_objective
from medisyn.seeding import generator_for
from medisyn.types import Request

NETWORKS = {"sd1": build.TINY_SD1, "sd2": build.TINY_SD2, "zero": build.TINY_ZERO_SNR, "sdxl": build.TINY_SDXL}
PIPELINES = {"sdxl": diffusers.StableDiffusionXLPipeline}
SOLVERS = {"dpmpp-2m": diffusers.DPMSolverMultistepScheduler, "euler": diffusers.EulerDiscreteScheduler}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: build.tiny_folder(tmp_path_factory.mktemp(name) / "m", net) for name, net in NETWORKS.items()}


def unit_noise(seed: int, shape=(1, 4, 16, 16)) -> torch.Tensor:
    return torch.randn(shape[1:], generator=generator_for(seed, "noise"))[None]


@pytest.mark.parametrize("solver", ["dpmpp-2m", "euler", "checkpoint"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_image_as_plain_diffusers(folders, name, solver):
    model = StableDiffusion.from_folder(folders[name], solver=solver)
    request = Request("a", "red square on black", seed=7, steps=6, guidance=7.0)
    [ours] = model.decode(model.sample([request]))

    pipeline = PIPELINES.get(name, diffusers.StableDiffusionPipeline).from_pretrained(folders[name])
    if solver in SOLVERS:
        pipeline.scheduler = SOLVERS[solver].from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "red square on black", num_inference_steps=6, guidance_scale=7.0, latents=unit_noise(7), output_type="np"
    ).images[0]
    assert theirs.std() > 0.05  # an image, not one grey
    np.testing.assert_array_equal(ours.array_CHW, (theirs * 255).round().astype(np.uint8).transpose(2, 0, 1))


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_the_same_image_with_a_negative_prompt_another_size_and_no_guidance(folders, name):
    model = StableDiffusion.from_folder(folders[name])
    pipeline = PIPELINES.get(name, diffusers.StableDiffusionPipeline).from_pretrained(folders[name])
    pipeline.scheduler = SOLVERS["dpmpp-2m"].from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    common = {"height": 48, "width": 32}
    for guidance, negative in ((4.0, "blue disc"), (1.0, "")):
        request = Request("a", "red cross", 3, negative_prompt=negative, steps=4, guidance=guidance, **common)
        [ours] = model.decode(model.sample([request]))
        theirs = pipeline(
            "red cross",
            negative_prompt=negative or None,
            num_inference_steps=4,
            guidance_scale=guidance,
            latents=unit_noise(3, (1, 4, 24, 16)),
            output_type="np",
            **common,
        ).images[0]
        assert ours.array_CHW.shape == (3, 48, 32)
        np.testing.assert_array_equal(ours.array_CHW, (theirs * 255).round().astype(np.uint8).transpose(2, 0, 1))


def test_guidance_rescaling_is_that_of_diffusers(folders):
    model = StableDiffusion.from_folder(folders["zero"])
    model.defaults = GenerationDefaults(guidance_rescale=0.7)
    ours = model.sample([Request("a", "red cross", 3, steps=4)])
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folders["zero"])
    pipeline.scheduler = SOLVERS["dpmpp-2m"].from_config(pipeline.scheduler.config)
    theirs = pipeline(
        "red cross",
        num_inference_steps=4,
        guidance_scale=7.0,
        guidance_rescale=0.7,
        latents=unit_noise(3),
        output_type="latent",
    ).images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    model.defaults = GenerationDefaults()
    assert not torch.allclose(model.sample([Request("a", "red cross", 3, steps=4)]), ours, atol=1e-2)


def test_an_image_does_not_depend_on_its_batch():
    model = build.tiny_model(build.TINY_SDXL)
    requests = [Request(f"r{i}", text, seed=i, steps=5) for i, text in enumerate(build.captions()[:5])]
    together = model.decode(model.sample(requests))
    for request, picture in zip(requests, together, strict=True):
        [alone] = model.decode(model.sample([request]))
        difference = np.abs(alone.array_CHW.astype(int) - picture.array_CHW.astype(int)).max()
        assert difference <= 1  # the bound that `sample` states for float32
    assert not np.array_equal(together[0].array_CHW, together[1].array_CHW)


def test_one_u_net_call_per_step_on_two_rows_each_or_one_without_guidance(monkeypatch):
    model = build.tiny_model()
    seen = []
    forward = model.networks.unet.forward
    monkeypatch.setattr(model.networks.unet, "forward", lambda x, *a, **k: seen.append(len(x)) or forward(x, *a, **k))
    model.sample([Request("a", "red", 0, steps=3), Request("b", "blue", 1, steps=3)])
    model.sample([Request("a", "red", 0, steps=2, guidance=1.0)])
    assert seen == [4, 4, 4, 1, 1]


def test_the_prompt_the_negative_prompt_and_the_seed_change_the_image():
    model = build.tiny_model()
    base = Request("a", "red square", 0, steps=4)
    variants = [
        base,
        Request("a", "blue disc", 0, steps=4),
        Request("a", "red square", 1, steps=4),
        Request("a", "red square", 0, negative_prompt="green", steps=4),
    ]
    latents = model.sample(variants)
    for i in range(1, 4):
        assert float((latents[i] - latents[0]).abs().max()) > 1e-2
    assert torch.equal(model.sample([base]), model.sample([base]))


def test_sampling_leaves_the_training_mode_as_it_was():
    model = build.tiny_model()
    model.trainable()
    model.sample([Request("a", "red", 0, steps=1)])
    assert model.networks.unet.training
    assert not model.networks.vae.training


def test_defaults_fill_what_a_request_leaves_open():
    model = build.tiny_model(defaults=GenerationDefaults(guidance=3.0))
    assert model.solver == "dpmpp-2m"
    resolved = model.resolve(Request("a", "red", 0))
    assert (resolved.height, resolved.width, resolved.steps, resolved.guidance) == (32, 32, 25, 3.0)
    resolved = model.resolve(Request("a", "red", 0, height=64, steps=9, guidance=0.0))
    assert (resolved.height, resolved.width, resolved.steps, resolved.guidance) == (64, 32, 9, 0.0)


def test_euler_takes_the_papers_fifty_steps(folders):
    model = StableDiffusion.from_folder(folders["sd1"], solver="euler")
    resolved = model.resolve(Request("a", "red", 0))
    assert (resolved.steps, resolved.guidance) == (50, 7.0)


def test_bfloat16_stays_near_float32(folders):
    request = Request("a", "red square", 5, steps=5, guidance=3.0)
    exact = StableDiffusion.from_folder(folders["sd2"]).sample([request])
    rounded = StableDiffusion.from_folder(folders["sd2"], dtype="bfloat16").sample([request])
    assert rounded.dtype == torch.float32
    assert float((rounded - exact).abs().mean() / exact.abs().mean()) < 0.05  # bfloat16 keeps 8 bits


def test_the_default_steps_belong_to_the_default_solver():
    networks, defaults = build.tiny_model().networks, GenerationDefaults(solver="euler", steps=33)
    steps = {
        solver: StableDiffusion(networks, solver=solver, defaults=defaults).resolve(Request("a", "red", 0)).steps
        for solver in (None, "euler", "dpmpp-2m")
    }
    assert steps == {None: 33, "euler": 33, "dpmpp-2m": 25}


def test_requests_of_one_call_must_agree():
    model = build.tiny_model()
    with pytest.raises(InputError, match="must share height, width, steps and guidance, got 2 kinds"):
        model.sample([Request("a", "red", 0, steps=2), Request("b", "red", 0, steps=3)])


def test_a_size_between_two_latents_is_refused():
    with pytest.raises(InputError, match=r"request a: size 33x32 must be a multiple of 2 pixels. Nearest: 32x32"):
        build.tiny_model().resolve(Request("a", "red", 0, height=33))


def test_latents_that_are_not_numbers_are_named():
    with pytest.raises(ModelError, match="denoiser made latents that are NaN"):
        build.tiny_model().decode(torch.full((1, 4, 16, 16), float("nan")))


def test_pixels_that_are_not_numbers_name_the_float16_trap():
    model = build.tiny_model()
    with torch.no_grad():
        model.networks.vae.decoder.conv_out.bias.fill_(float("inf"))
    with pytest.raises(ModelError, match=r"autoencoder of SDXL overflows in float16.*sdxl-vae-fp16-fix"):
        model.decode(torch.zeros(1, 4, 16, 16))


def test_the_solver_follows_the_checkpoint():
    assert choose_solver(None, {"_class_name": "PNDMScheduler"}) == "dpmpp-2m"
    assert choose_solver(None, {"_class_name": "LCMScheduler"}) == "checkpoint"
    assert choose_solver("euler", {"_class_name": "DDIMScheduler"}) == "euler"
    with pytest.raises(ConfigError, match="solver 'euler' does not fit a checkpoint made for LCMScheduler"):
        choose_solver("euler", {"_class_name": "LCMScheduler"})
    with pytest.raises(ConfigError, match=r"solver 'eular' is unknown.*Did you mean 'euler'"):
        choose_solver("eular", {"_class_name": "DDIMScheduler"})
    with pytest.raises(ModelError, match="scheduler 'OwnScheduler' is not one that diffusers"):
        build_solver("checkpoint", {"_class_name": "OwnScheduler"})


def test_zero_terminal_snr_starts_at_pure_noise():
    config = with_objective({"_class_name": "PNDMScheduler", "timestep_spacing": "leading"}, "v_prediction", True)
    assert config["_class_name"] == "EulerDiscreteScheduler"  # PNDM knows no zero terminal SNR
    for solver in ("dpmpp-2m", "euler"):
        scheduler = build_solver(solver, config)
        scheduler.set_timesteps(10)
        assert int(scheduler.timesteps[0]) == 999
        assert float(scheduler.alphas_cumprod[-1]) < 1e-6


def test_a_solver_that_adds_noise_draws_it_from_the_requests_seed():
    model = build.tiny_model()
    network = model.networks
    config = {**network.scheduler_config, "_class_name": "EulerAncestralDiscreteScheduler"}
    model = StableDiffusion(build.with_scheduler(network, config), solver="checkpoint")
    a, b = Request("a", "red", 1, steps=4), Request("b", "red", 2, steps=4)
    together, alone = model.sample([b, a])[1], model.sample([a])[0]
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)
