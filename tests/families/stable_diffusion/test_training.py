"""Encode and loss: what is cached, what is drawn anew each step, and that every trained weight learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import build
from medisyn.errors import ConfigError, InputError, ModelError
from medisyn.families.stable_diffusion import latents as latent_space
from medisyn.families.stable_diffusion.config import NetworkConfig, StableDiffusionConfig
from medisyn.families.stable_diffusion.model import StableDiffusion
from medisyn.families.stable_diffusion.networks import Networks
from medisyn.families.stable_diffusion.objective import draw, loss_per_sample
from medisyn.seeding import generator_for
from medisyn.types import Picture, Sample, Volume

NETWORKS = {"sd1": build.TINY_SD1, "zero": build.TINY_ZERO_SNR, "sdxl": build.TINY_SDXL}
TEXT = StableDiffusionConfig(train_text_encoder=True)


def draws(count: int, step: int = 0) -> list[torch.Generator]:
    return [generator_for(0, f"{step}/item-{i}") for i in range(count)]


def test_encode_caches_moments_and_embeddings_on_the_cpu():
    model = build.tiny_model()
    rows = model.encode(build.samples(3))
    assert {name: tuple(row.shape) for name, row in rows.items()} == {
        "mean": (3, 4, 16, 16),
        "logvar": (3, 4, 16, 16),
        "text": (3, 77, 16),
    }
    again = model.encode(build.samples(3))
    assert all(torch.equal(rows[name], again[name]) for name in rows)
    assert not torch.equal(rows["text"][0], rows["text"][1])


def test_encoded_moments_are_those_of_diffusers():
    model = build.tiny_model()
    [sample] = build.samples(1)
    pixels = torch.from_numpy(sample.item.array_CHW.copy())[None].float() / 255 * 2 - 1
    posterior = model.networks.vae.encode(pixels).latent_dist
    rows = model.encode([sample])
    torch.testing.assert_close(rows["mean"], posterior.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows["logvar"], posterior.logvar, rtol=1e-4, atol=1e-5)


def test_a_grey_picture_is_encoded_as_its_rgb_twin():
    model = build.tiny_model()
    grey = np.arange(32 * 32, dtype=np.uint8).reshape(1, 32, 32)
    one = model.encode([Sample("a", Picture(grey), "x")])
    three = model.encode([Sample("a", Picture(grey.repeat(3, axis=0)), "x")])
    assert torch.equal(one["mean"], three["mean"])


def test_sdxl_keeps_pooled_text_and_the_six_numbers_of_the_size():
    model = build.tiny_model(build.TINY_SDXL)
    plain, cropped = build.samples(2)
    cropped = replace(cropped, metadata={"original_size": [600, 400], "crop_top_left": [0, 100]})
    rows = model.encode([plain, cropped])
    assert rows["text"].shape == (2, 77, 32)
    assert rows["pooled"].shape == (2, 16)
    assert rows["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32], [600, 400, 0, 100, 32, 32]]


@pytest.mark.parametrize(("name", "value"), [("crop_top_left", 3), ("original_size", (1, 2, 3))])
def test_a_size_that_is_not_two_numbers_is_refused(name, value):
    [sample] = build.samples(1)
    with pytest.raises(InputError, match=f"sample item-000: metadata '{name}' must be two numbers"):
        build.tiny_model(build.TINY_SDXL).encode([replace(sample, metadata={name: value})])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_caption_has_the_same_rows_whatever_stands_beside_it(name):
    """Bit for bit: a caption is stored once and serves every sample that has it. One alone, 5, 8, 12 in two orders."""
    model = build.tiny_model(NETWORKS[name])
    samples = build.samples(12)
    rows = model.encode(samples)
    for chosen in ([3], [0, 1, 2, 3, 4], list(range(8)), list(range(11, -1, -1))):
        alone = model.encode_captions([samples[n] for n in chosen])
        assert all(torch.equal(alone[key], rows[key][chosen]) for key in alone)
    pictures = model.encode_pictures(samples)
    assert {*pictures, *alone} == set(rows)
    assert all(torch.equal(pictures[key], rows[key]) for key in pictures)


def test_pictures_that_cannot_be_encoded_are_named():
    model = build.tiny_model()
    small, large = build.samples(1, size=32)[0], build.samples(1, size=64)[0]
    with pytest.raises(InputError, match="pictures of one batch must have one size"):
        model.encode([small, large])
    with pytest.raises(InputError, match=r"sample a: 33x32 pixels do not divide by the autoencoder's factor 2"):
        model.encode([Sample("a", Picture(np.zeros((3, 33, 32), np.uint8)), "x")])
    with pytest.raises(InputError, match="sample b: this model learns from uint8 pictures, got a picture of float32"):
        model.encode([Sample("b", Picture(np.zeros((3, 32, 32), np.float32)), "x")])
    with pytest.raises(InputError, match="sample c: this model learns from uint8 pictures, got Volume"):
        model.encode([Sample("c", Volume(np.zeros((1, 4, 4, 4)), np.eye(4)), "x")])


def test_the_posterior_draw_and_the_latent_scale_by_hand():
    # 1 + exp(log(4) / 2) * 3 = 7
    drawn = latent_space.draw_posterior(torch.tensor(1.0), torch.tensor(4.0).log(), torch.tensor(3.0))
    assert float(drawn) == pytest.approx(7)
    vae = build.tiny_model().networks.vae
    vae.register_to_config(scaling_factor=0.5, latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=[2.0] * 4)
    raw = torch.full((1, 4, 2, 2), 5.0)
    scaled = latent_space.scale_latents(vae, raw)
    torch.testing.assert_close(scaled[0, :, 0, 0], torch.tensor([1.0, 0.75, 0.5, 0.25]))  # (5 - mean) / 2 * 0.5
    torch.testing.assert_close(latent_space.unscale_latents(vae, scaled), raw)


def test_the_loss_by_hand_and_its_weight():
    prediction, target = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]], [[[2.0, 0.0]]]])
    alpha_bars_B = torch.tensor([0.5, 0.9])  # SNR 1 and 9
    plain = loss_per_sample(prediction, target, alpha_bars_B, "epsilon", None)
    torch.testing.assert_close(plain, torch.tensor([5.0, 2.0]))
    weighted = loss_per_sample(prediction, target, alpha_bars_B, "epsilon", 5.0)
    torch.testing.assert_close(weighted, torch.tensor([5.0, 2.0 * 5 / 9]))


def test_a_row_draws_from_its_own_generator_alone():
    config = StableDiffusionConfig()
    together = draw(draws(3), (4, 2, 2), 1000, config)
    [_, second, _] = draws(3)
    alone = draw([second], (4, 2, 2), 1000, config)
    assert torch.equal(together.posterior_BChw[1], alone.posterior_BChw[0])
    assert torch.equal(together.noise_BChw[1], alone.noise_BChw[0])
    assert int(together.timesteps_B[1]) == int(alone.timesteps_B[0])
    assert not torch.equal(together.noise_BChw[0], together.posterior_BChw[0])


def test_the_order_of_the_draws_is_part_of_the_format():
    [generator] = draws(1)
    drawn = draw(draws(1), (4, 2, 2), 1000, StableDiffusionConfig(caption_dropout=0.5))
    assert torch.equal(drawn.posterior_BChw[0], torch.randn(4, 2, 2, generator=generator))
    assert int(drawn.timesteps_B[0]) == int(torch.randint(1000, (1,), generator=generator))
    assert torch.equal(drawn.noise_BChw[0], torch.randn(4, 2, 2, generator=generator))
    assert bool(drawn.dropped_B[0]) == bool(torch.rand(1, generator=generator) < 0.5)


def test_captions_drop_at_their_rate_and_anew_at_every_step():
    config = StableDiffusionConfig(caption_dropout=0.1)
    dropped = torch.stack([draw(draws(40, step), (1, 1, 1), 10, config).dropped_B for step in range(50)])
    assert 0.075 < float(dropped.float().mean()) < 0.125  # 0.1 of 2000, standard deviation 0.0067
    some_steps_only = dropped.any(dim=0) & ~dropped.all(dim=0)  # of the same sample; chance of never: 0.9^50 = 0.5 %
    assert float(some_steps_only.float().mean()) > 0.9


def test_latents_and_timesteps_are_drawn_anew_at_every_step():
    config = StableDiffusionConfig(timestep_sampling="logit_normal")
    first, second = (draw(draws(4, step), (4, 2, 2), 1000, config) for step in (0, 1))
    assert not torch.equal(first.posterior_BChw, second.posterior_BChw)
    assert not torch.equal(first.noise_BChw, second.noise_BChw)
    assert not torch.equal(first.timesteps_B, second.timesteps_B)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_loss_of_a_row_does_not_depend_on_its_batch(name):
    model = build.tiny_model(NETWORKS[name])
    rows = model.encode(build.samples(4))
    together = model.loss(rows, draws(4))
    assert together.shape == (4,)
    assert together.dtype == torch.float32
    alone = [model.loss({n: r[i : i + 1] for n, r in rows.items()}, [draws(4)[i]]) for i in range(4)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.loss(rows, draws(4)), together)


def test_the_loss_is_the_squared_error_of_the_network():
    model = build.tiny_model(build.TINY_SD2, StableDiffusionConfig(caption_dropout=0))
    rows = model.encode(build.samples(1))
    drawn = draw(draws(1), (4, 16, 16), 1000, model.config)
    import diffusers

    scheduler = diffusers.DDPMScheduler.from_config(dict(model.networks.scheduler_config))
    clean = (
        rows["mean"] + (rows["logvar"] / 2).exp() * drawn.posterior_BChw
    ) * model.networks.vae.config.scaling_factor
    noisy = scheduler.add_noise(clean, drawn.noise_BChw, drawn.timesteps_B)
    prediction = model.networks.unet(noisy, drawn.timesteps_B, rows["text"]).sample
    velocity = scheduler.get_velocity(clean, drawn.noise_BChw, drawn.timesteps_B)
    torch.testing.assert_close(model.loss(rows, draws(1)), (prediction - velocity).pow(2).mean()[None])


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_dropped_caption_is_the_empty_prompt_that_guidance_uses(name, cached):
    never, always = (StableDiffusionConfig(caption_dropout=p, train_text_encoder=not cached) for p in (0.0, 1.0))
    model = build.tiny_model(NETWORKS[name], always)
    dropped = model.loss(model.encode(build.samples(2)), draws(2))

    model = build.tiny_model(NETWORKS[name], StableDiffusionConfig(caption_dropout=0.0))
    rows = model.encode(build.samples(2))
    blank = model._text.negative(["", ""])
    torch.testing.assert_close(model.loss({**rows, **blank}, draws(2)), dropped, rtol=1e-5, atol=1e-6)
    kept = build.tiny_model(NETWORKS[name], never)
    assert not torch.allclose(kept.loss(kept.encode(build.samples(2)), draws(2)), dropped, rtol=1e-4)


def test_no_text_is_zeros_for_sdxl_base_and_the_empty_prompt_otherwise():
    model = build.tiny_model(build.TINY_SDXL)
    assert float(model._text.empty()["text"].abs().max()) == 0
    networks = replace(model.networks, zero_empty_prompt=False)
    blank = StableDiffusion(networks)._text.empty()
    embedded = model._text.embed(model._text.tokens([""]))
    assert torch.equal(blank["text"], embedded["text"])
    assert torch.equal(blank["pooled"], embedded["pooled"])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_caption_changes_the_loss(name):
    model = build.tiny_model(NETWORKS[name], StableDiffusionConfig(caption_dropout=0))
    rows = dict(model.encode(build.samples(2)))
    other = {**rows, "text": rows["text"].flip(0)}
    with torch.no_grad():
        assert float((model.loss(rows, draws(2)) - model.loss(other, draws(2))).abs().min()) > 1e-5


def test_training_the_text_encoder_gives_the_loss_of_the_cached_embeddings():
    for network in (build.TINY_SD1, build.TINY_SDXL):
        cached, trained = (build.tiny_model(network, config) for config in (StableDiffusionConfig(), TEXT))
        rows = trained.encode(build.samples(3))
        assert rows["token_ids"].dtype == torch.int64
        assert "text" not in rows
        torch.testing.assert_close(
            trained.loss(rows, draws(3)), cached.loss(cached.encode(build.samples(3)), draws(3)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_gradient_reaches_every_trained_weight(name, checkpointing):
    config = replace(TEXT, caption_dropout=0.0, gradient_checkpointing=checkpointing, text_encoder_lr_scale=0.1)
    model = build.tiny_model(NETWORKS[name], config)
    groups = model.trainable()
    assert [(group.name, group.lr_scale) for group in groups] == [("unet", 1.0), ("text_encoder", 0.1)]
    model.loss(model.encode(build.samples(4)), draws(4)).sum().backward()
    for group in groups:
        for parameter in group.parameters:
            assert parameter.grad is not None
            assert bool(torch.isfinite(parameter.grad).all())
            assert float(parameter.grad.abs().max()) > 0
    assert all(parameter.grad is None for parameter in model.networks.vae.parameters())


def test_by_default_only_the_u_net_is_trained():
    model = build.tiny_model()
    [group] = model.trainable()
    assert len(group.parameters) == len(list(model.networks.unet.parameters()))
    assert model.networks.unet.training
    frozen = [*model.networks.vae.parameters(), *model.networks.text_encoders[0].parameters()]
    assert not any(parameter.requires_grad for parameter in frozen)


def test_training_fits_four_pictures():
    """Measured with the same draws before and after, so that only the weights differ."""
    model = build.tiny_model(build.TINY_SD2)
    rows = model.encode(build.samples(4))
    [group] = model.trainable()
    optimizer = torch.optim.AdamW(group.parameters, lr=3e-3)

    def measure() -> float:
        with torch.no_grad():
            return float(torch.cat([model.loss(rows, draws(4, 1000 + i)) for i in range(4)]).mean())

    before = measure()
    for step in range(40):
        optimizer.zero_grad()
        model.loss(rows, draws(4, step)).mean().backward()
        optimizer.step()
    assert measure() < 0.6 * before


def test_the_objective_can_differ_from_the_checkpoints():
    model = build.tiny_model(
        build.TINY_SD1, StableDiffusionConfig(prediction_type="v_prediction", zero_terminal_snr=True)
    )
    config = model.networks.scheduler_config
    assert config["prediction_type"] == "v_prediction"
    assert config["rescale_betas_zero_snr"] is True
    assert config["timestep_spacing"] == "trailing"
    with pytest.raises(ConfigError, match="zero terminal SNR cannot be learned with prediction_type 'epsilon'"):
        build.tiny_model(build.TINY_SD1, StableDiffusionConfig(zero_terminal_snr=True))


@pytest.mark.parametrize(("channels", "levels"), [(4, 3), (8, 3), (16, 4)])
def test_other_latent_channels_and_factors(channels, levels):
    network = replace(build.TINY_SD1, latent_channels=channels, vae_widths=(8, 8, 8, 8)[:levels])
    assert network.factor == 2 ** (levels - 1)
    model = build.tiny_model(network)
    side = 32 // network.factor
    rows = model.encode(build.samples(2))
    assert rows["mean"].shape == (2, channels, side, side)
    assert model.loss(rows, draws(2)).shape == (2,)


def test_an_inpainting_u_net_is_refused():
    networks = build.tiny_model().networks
    wide = build.tiny_model(replace(build.TINY_SD1, latent_channels=8)).networks.unet
    with pytest.raises(ModelError, match=r"the U-Net reads 8 channels and the autoencoder makes 4.*inpainting"):
        replace(networks, unet=wide)


def test_the_same_seed_builds_the_same_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = (build.tiny_model(seed=seed).networks.unet.conv_in.weight for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert isinstance(build.tiny_model().networks, Networks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"caption_dropout": 1.5}, r"caption_dropout must lie in \[0, 1\], got 1.5"),
        ({"prediction_type": "eps"}, "prediction_type 'eps' is unknown"),
        ({"timestep_sampling": "unifrom"}, r"timestep_sampling 'unifrom' is unknown.*Did you mean 'uniform'"),
        ({"snr_gamma": 0.0}, "snr_gamma must be above 0, got 0.0"),
        ({"lora_rank": -1}, r"lora_rank must be 0 \(full fine-tune\) or more, got -1"),
        ({"lora_rank": 4, "lora_targets": ()}, "lora_targets is empty"),
    ],
)
def test_a_training_config_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        StableDiffusionConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unet_attention": (True,)}, "unet_widths has 3 levels and unet_attention 1"),
        ({"image_size": 100}, "image_size must divide by the autoencoder's factor 8, got 100"),
        ({"norm_groups": 24}, r"vae_widths must divide by norm_groups 24"),
        ({"vae_widths": (24, 24), "norm_groups": 24}, r"unet_widths must divide by norm_groups 24"),
    ],
)
def test_a_network_config_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        NetworkConfig(**options)
