"""Inpainting: what is held stays, what is painted is free, and inpainting checkpoints as diffusers runs them."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

import build
from medisyn.errors import ConfigError, InputError, ModelError
from medisyn.families.stable_diffusion.held import FROM_THE_START, Held, encode, level_of
from medisyn.families.stable_diffusion.model import StableDiffusion
from medisyn.families.stable_diffusion.networks import Networks
from medisyn.families.stable_diffusion.sampler import EXCHANGEABLE, build_solver
from medisyn.seeding import generator_for
from medisyn.types import Picture, Request

REQUEST = Request("a", "red square", 7, steps=6, guidance=3.0)
NETWORKS = {"epsilon": build.TINY_SD1, "v": build.TINY_SD2, "zero": build.TINY_ZERO_SNR, "sdxl": build.TINY_SDXL}


def picture(colour: str = "green", shape: str = "disc") -> Picture:
    return Picture(build.shape_pixels(colour, shape))


def latents_of(model: StableDiffusion, of: Picture) -> torch.Tensor:
    pixels = torch.from_numpy(of.array_CHW.astype(np.float32))[None] / 127.5 - 1
    with torch.no_grad():
        return encode(model.networks.vae, pixels)


def mask(value: float = 0.0) -> torch.Tensor:
    return torch.full((1, 32, 32), value)


def half() -> torch.Tensor:
    left = mask()
    left[:, :, :16] = 1
    return left


@pytest.mark.parametrize("name", NETWORKS)
def test_where_everything_is_held_the_picture_comes_back(name):
    model = build.tiny_model(NETWORKS[name])
    got = model.inpaint([REQUEST], [picture()], mask(0), strength=1.0)
    torch.testing.assert_close(got, latents_of(model, picture()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_where_nothing_is_held_it_is_an_ordinary_picture(name):
    model = build.tiny_model(NETWORKS[name])
    # The replaced estimate is turned back into the network's own prediction, so only rounding is left.
    torch.testing.assert_close(
        model.inpaint([REQUEST], [picture()], mask(1), strength=1.0), model.sample([REQUEST]), rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("scheduler", EXCHANGEABLE)
def test_half_is_held_with_every_solver(scheduler, strength):
    network = build.tiny_model().networks
    config = {**network.scheduler_config, "_class_name": scheduler}
    model = StableDiffusion(build.with_scheduler(network, config), solver="checkpoint")
    request = replace(REQUEST, steps=8)
    if strength < 1 and scheduler in FROM_THE_START:
        with pytest.raises(ConfigError, match="needs all of its steps, so strength must be 1"):
            model.inpaint([request], [picture()], half(), strength=strength)
        return
    got = model.inpaint([request], [picture()], half(), strength=strength)
    clean = latents_of(model, picture())
    painted, held = (got - clean).abs()[..., :8], (got - clean).abs()[..., 8:]
    # Some solvers end one step before the clean latents, or with noise of their own: within the least noise level.
    assert float(held.mean()) < 0.1
    assert float(painted.mean()) > 5 * float(held.mean())
    assert torch.equal(got, model.inpaint([request], [picture()], half(), strength=strength))


def test_the_noised_original_is_what_the_solver_carries_where_it_is_held():
    """With a deterministic solver the held part of x_t is alpha * clean + sigma * the request's own noise."""
    model = build.tiny_model()
    clean, noise = latents_of(model, picture()), torch.randn(4, 16, 16, generator=generator_for(7, "noise"))[None]
    seen = []
    forward = model.networks.unet.forward
    model.networks.unet.forward = lambda x, t, **k: seen.append((x[:1].clone(), t)) or forward(x, t, **k)
    model.inpaint([REQUEST], [picture()], half(), strength=1.0)
    assert len(seen) == 6
    scheduler = build_solver(model.solver, model.networks.scheduler_config)
    scheduler.set_timesteps(6)
    for number, (noisy, _) in enumerate(seen):
        alpha, sigma = level_of(scheduler, number)
        torch.testing.assert_close(noisy[..., 8:], (alpha * clean + sigma * noise)[..., 8:], rtol=1e-3, atol=2e-3)


def test_strength_is_the_share_of_the_steps():
    model = build.tiny_model()
    seen = []
    forward = model.networks.unet.forward
    model.networks.unet.forward = lambda x, t, **k: seen.append(int(t)) or forward(x, t, **k)
    distance = {}
    for strength in (0.01, 0.5, 1.0):
        seen.clear()
        got = model.inpaint([REQUEST], [picture()], mask(1), strength=strength)
        distance[strength] = (len(seen), float((got - latents_of(model, picture())).abs().mean()))
    assert [count for count, _ in distance.values()] == [1, 3, 6]
    assert distance[0.01][1] < distance[0.5][1] < distance[1.0][1]


def test_the_mask_the_prompt_and_compositions_reach_the_painted_part():
    model = build.tiny_model()
    base = model.inpaint([REQUEST], [picture()], half(), strength=1.0)
    for changed in (
        replace(REQUEST, prompt="blue cross"),
        replace(REQUEST, seed=8),
        replace(REQUEST, terms=(("red square", 0.5), ("blue cross", 1.0))),
    ):
        other = model.inpaint([changed], [picture()], half(), strength=1.0)
        assert float((other - base)[..., :8].abs().max()) > 1e-2
    several = [REQUEST, replace(REQUEST, seed=8)]
    together = model.inpaint(several, [picture(), picture("blue")], half().repeat(2, 1, 1), strength=1.0)
    torch.testing.assert_close(together[:1], base, rtol=1e-3, atol=1e-3)


# ---- inpainting checkpoints


def inpainting(network=build.TINY_SD1) -> Networks:
    """The tiny model with a U-Net that reads 9 channels."""
    networks = build.tiny_model(network).networks
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel.from_config({**networks.unet.config, "in_channels": 9}).eval()
    return replace(networks, unet=unet)


@pytest.mark.parametrize("network", [build.TINY_SD1, build.TINY_SDXL])
def test_a_nine_channel_checkpoint_runs_as_in_diffusers(tmp_path, network):
    StableDiffusion(inpainting(network)).save(tmp_path / "m")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "m")
    assert type(pipeline).__name__ in ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline")
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)

    model = StableDiffusion.from_folder(tmp_path / "m")
    assert model.networks.reads_mask
    [ours] = model.decode(model.inpaint([REQUEST], [picture()], half(), strength=1.0))
    pixels = torch.from_numpy(picture().array_CHW.astype(np.float32))[None] / 127.5 - 1
    with torch.no_grad():
        masked = encode(model.networks.vae, pixels * (1 - half()[:, None]))
    theirs = pipeline(
        REQUEST.prompt,
        image=(pixels + 1) / 2,
        mask_image=half()[:, None],
        masked_image_latents=masked,
        latents=torch.randn(4, 16, 16, generator=generator_for(7, "noise"))[None],
        num_inference_steps=6,
        guidance_scale=3.0,
        strength=1.0,
        height=32,
        width=32,
        output_type="np",
    ).images[0]
    difference = np.abs(ours.array_CHW.transpose(1, 2, 0).astype(int) - (theirs * 255).round().astype(int))
    assert difference.max() <= 1
    assert theirs.std() > 0.05


def test_an_inpainting_checkpoint_makes_no_picture_from_text_alone_and_is_not_trained():
    model = StableDiffusion(inpainting())
    with pytest.raises(InputError, match="this is an inpainting checkpoint: it paints into a picture"):
        model.sample([REQUEST])
    with pytest.raises(ModelError, match="an inpainting checkpoint cannot be trained here"):
        model.trainable()
    assert model.inpaint([REQUEST], [picture()], half(), strength=0.5).shape == (1, 4, 16, 16)


# ---- what is refused


def test_a_strength_of_zero_is_refused():
    for strength in (0.0, 1.5):
        with pytest.raises(InputError, match="strength must lie above 0 and at most at 1, got"):
            build.tiny_model().inpaint([REQUEST], [picture()], half(), strength=strength)


def test_sizes_must_fit():
    model = build.tiny_model()
    with pytest.raises(InputError, match=r"pictures of \(32, 32\) and masks of \(16, 32\) pixels do not fit"):
        model.inpaint([REQUEST], [picture()], mask()[:, :16], strength=1.0)
    with pytest.raises(InputError, match=r"do not fit requests of \(64, 32\)"):
        model.inpaint([replace(REQUEST, height=64)], [picture()], mask(), strength=1.0)


def test_distilled_checkpoints_are_refused():
    network = build.tiny_model().networks
    config = {**network.scheduler_config, "_class_name": "LCMScheduler"}
    model = StableDiffusion(build.with_scheduler(network, config))
    with pytest.raises(
        ConfigError, match="inpainting needs an ordinary diffusion checkpoint; this one was made for LCM"
    ):
        model.inpaint([REQUEST], [picture()], half(), strength=1.0)


def test_a_prediction_of_the_clean_latents_is_replaced_as_it_is():
    held = Held(torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.0, 1.0]]]]), 1.0, "sample")
    scheduler = build_solver("checkpoint", {"_class_name": "DDIMScheduler", "prediction_type": "sample"})
    scheduler.set_timesteps(4)
    kept = held.keep(scheduler, 0, torch.ones(1, 1, 1, 2), torch.full((1, 1, 1, 2), 5.0))
    torch.testing.assert_close(kept, torch.tensor([[[[0.0, 5.0]]]]))
