"""The image autoencoder. Shapes here: B batch, C channels, H, W pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch

import build
from medisyn.errors import ConfigError, InputError
from medisyn.families.autoencoder import Autoencoder, AutoencoderConfig
from medisyn.families.autoencoder.model import kl_to_normal, reconstruction_loss
from medisyn.seeding import generator_for
from medisyn.types import HU, Picture, Request, Sample

TINY = AutoencoderConfig(latent_channels=4, widths=(8, 16), crop=16, discriminator_width=8)
SHARP = AutoencoderConfig(
    latent_channels=4, widths=(8, 16), crop=16, discriminator_width=8, adversarial_weight=0.1, feature_weight=0.5
)


def draws(step: int, count: int = 4) -> list[torch.Generator]:
    return [generator_for(0, f"{step}/{number}") for number in range(count)]


def test_reconstruction_loss_by_hand():
    # a 2x2 picture, one channel, error [[1, 0], [0, 0]]: L1 0.25, |across| (1 + 0) / 2, |down| (1 + 0) / 2
    error = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    got = reconstruction_loss(error, torch.zeros_like(error), gradient_weight=0.5)
    torch.testing.assert_close(got, torch.tensor([0.25 + 0.5 * (0.5 + 0.5)]))


def test_a_tint_costs_more_than_the_same_error_in_grey():
    # one pixel, three channels, each wrong by 0.3: in grey no colour; (0.3, -0.3, 0.3) has mean 0.1, so 0.2 0.4 0.2
    grey = torch.full((1, 3, 1, 1), 0.3)
    tint = torch.tensor([0.3, -0.3, 0.3]).reshape(1, 3, 1, 1)
    losses = [float(reconstruction_loss(e.expand(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), 0.0, 1.0)) for e in (grey, tint)]
    assert losses == pytest.approx([0.3, 0.3 + 0.8 / 3], rel=1e-6)


def test_latent_noise_reaches_the_decoder_in_the_latents_own_scale():
    torch.manual_seed(0)
    family = Autoencoder(TINY)
    mean = torch.randn(2, 4, 8, 8) * 3
    assert not family._extra_variance(mean, draws(0, 2)).any()
    family.config = AutoencoderConfig(**{**vars(TINY), "latent_noise": 0.5})
    drawn = torch.stack([torch.randn((1, 1, 1), generator=draw) for draw in draws(0, 2)])
    torch.testing.assert_close(family._extra_variance(mean, draws(0, 2)), (0.5 * mean.std() * drawn) ** 2)
    rows = family.encode(build.samples(2))
    noisy = family.loss(rows, draws(0, 2))
    family.config = TINY
    assert not torch.equal(noisy, family.loss(rows, draws(0, 2)))


def test_kl_to_normal_by_hand():
    # KL(N(2, 1) || N(0, 1)) = 2 nats; KL(N(0, e) || N(0, 1)) = (e - 1 - 1) / 2
    got = kl_to_normal(torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0], [1.0]]))
    torch.testing.assert_close(got, torch.tensor([2.0, (np.e - 2) / 2], dtype=torch.float32))


def test_a_few_steps_lower_the_loss_and_every_parameter_has_a_gradient():
    torch.manual_seed(0)
    family = Autoencoder(TINY)
    (group,) = family.trainable()
    rows = family.encode(build.samples(4))
    optimizer = torch.optim.AdamW(group.parameters, lr=3e-3)
    losses = []
    for step in range(30):
        loss = family.loss(rows, draws(step)).mean()
        loss.backward()
        if step == 0:
            assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in group.parameters)
            assert sum(float(p.grad.abs().sum()) == 0 for p in group.parameters) == 0
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_the_same_draws_give_the_same_loss_and_others_another():
    family = Autoencoder(TINY)
    rows = family.encode(build.samples(4))
    assert torch.equal(family.loss(rows, draws(0)), family.loss(rows, draws(0)))
    assert not torch.equal(family.loss(rows, draws(0)), family.loss(rows, draws(1)))


def test_the_adversarial_stage_trains_decoder_and_discriminator_and_leaves_the_encoder():
    torch.manual_seed(0)
    family = Autoencoder(SHARP)
    before = [p.clone() for p in family.vae.encoder.parameters()]
    groups = {group.name: list(group.parameters) for group in family.trainable()}
    assert set(groups) == {"decoder", "discriminator"}
    family.loss(family.encode(build.samples(4)), draws(0)).sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in groups["decoder"])
    bias = family.discriminator.head.bias  # at first its two hinges cancel
    weights = [p for p in groups["discriminator"] if p is not bias]
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in weights)
    assert all(p.grad is None for p in family.vae.encoder.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, family.vae.encoder.parameters(), strict=True))


def test_the_decoder_cannot_lower_its_loss_through_the_discriminators_weights():
    """Gradients of the discriminator come from its own hinge loss alone."""
    torch.manual_seed(0)
    family = Autoencoder(SHARP)
    rows = family.encode(build.samples(2))
    family.loss(rows, draws(0, 2)).sum().backward()
    mixed = [p.grad.clone() for p in family.discriminator.parameters()]
    family.discriminator.zero_grad()
    family.config = AutoencoderConfig(**{**vars(SHARP), "adversarial_weight": 1e-9, "feature_weight": 1e-9})
    family.loss(rows, draws(0, 2)).sum().backward()
    for a, b in zip(mixed, family.discriminator.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad)


def test_save_and_reopen_rebuilds_the_same_pictures(tmp_path: Path):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    family = Autoencoder(TINY)
    pictures = [sample.item for sample in build.samples(2)]
    family.save(tmp_path / "vae")
    again = Autoencoder(TINY, AutoencoderKL.from_pretrained(tmp_path / "vae"))
    for a, b in zip(family.rebuild(pictures), again.rebuild(pictures), strict=True):
        np.testing.assert_array_equal(a.array_CHW, b.array_CHW)
        assert a.array_CHW.shape == (3, 32, 32)


def test_latent_scale_makes_latents_of_unit_deviation():
    torch.manual_seed(0)
    family = Autoencoder(TINY)
    pixels = family.encode(build.samples(8))["pixels"]
    scale = family.latent_scale(pixels)
    with torch.no_grad():
        latents = family.vae.encode(pixels.float() / 127.5 - 1).latent_dist.mean
    assert float((latents * scale).std()) == pytest.approx(1.0, rel=1e-4)


def test_sampled_noise_decodes_to_pictures():
    requests = [Request(key=str(n), prompt="", seed=n) for n in range(2)]
    family = Autoencoder(TINY)
    latents = family.sample(requests)
    assert latents.shape == (2, 4, 8, 8)
    assert torch.equal(latents[0], family.sample(requests[:1])[0])
    assert [item.array_CHW.shape for item in family.decode(latents)] == [(3, 16, 16)] * 2


def test_refusals():
    with pytest.raises(ConfigError, match="crop must divide by 2"):
        AutoencoderConfig(widths=(8, 16), crop=15)
    with pytest.raises(ConfigError, match="weights must be 0 or more"):
        AutoencoderConfig(kl_weight=-1)
    hounsfield = Sample("ct-1", Picture(np.linspace(-1000, 400, 1024, dtype=np.float32).reshape(1, 32, 32), HU), "")
    with pytest.raises(InputError, match="sample ct-1: the image autoencoder takes uint8 pictures"):
        Autoencoder(TINY).encode([hounsfield])
