"""Channels handed over clean: how often, which, and that the loss leaves them out. Low noise: weights, what is seen."""

import math
from dataclasses import replace

import pytest
import torch

import build_medsyn as build
from medisyn.diffusion.cosine import cosine_alpha_sigma
from medisyn.diffusion.schedules import add_noise
from medisyn.errors import ConfigError
from medisyn.families.medsyn.config import MedSynConfig, SuperResolutionConfig
from medisyn.families.medsyn.objective import (
    draw_given,
    error_per_sample,
    weight_of,
    weight_of_lungs,
    with_what_is_seen,
)
from medisyn.seeding import generator_for
from medisyn.types import Request


def draws(count: int) -> list[torch.Generator]:
    return [generator_for(0, f"0/{number}") for number in range(count)]


def test_the_share_of_rows_that_are_given_channels_and_which():
    given_BC = draw_given(draws(1000), 0.4).flatten(1)
    some = given_BC[given_BC.any(dim=1)]
    assert 350 <= len(some) <= 450  # 400 expected, 15 the deviation
    assert not some.all(dim=1).any()
    segmenting = some[:, 0] & ~some[:, 1:].any(dim=1)
    assert 0.45 < float(segmenting.float().mean()) < 0.63  # a half, and 1/14 of the other half
    assert len({tuple(row.tolist()) for row in some}) == 14


def test_a_share_of_zero_draws_nothing():
    [generator] = draws(1)
    before = generator.get_state()
    assert not draw_given([generator], 0.0).any()
    assert torch.equal(generator.get_state(), before)


def test_given_channels_stay_out_of_the_error():
    clean = torch.zeros(2, 4, 1, 1, 2)
    prediction = torch.tensor([[100.0, 1.0, 2.0, 3.0], [4.0, 0.0, 0.0, 0.0]])[:, :, None, None, None].expand(
        clean.shape
    )
    given = torch.tensor([[True, False, False, False], [False] * 4])[:, :, None, None, None]
    assert error_per_sample(prediction, clean, given).tolist() == pytest.approx([(1 + 4 + 9) / 3, 16 / 4])


def test_lungs_count_more_and_leave_the_other_channels_alone():
    lobe = torch.tensor([-1.0, -0.8, -0.6, 1.0]).reshape(1, 1, 1, 4)  # background, half a lobe, labels 1 and 5
    weight = weight_of_lungs(lobe, 5.0)
    assert weight.flatten().tolist() == pytest.approx([4 / 14, 12 / 14, 20 / 14, 20 / 14])

    clean, nothing = torch.zeros(1, 4, 1, 1, 4), torch.zeros(1, 4, 1, 1, 1, dtype=torch.bool)
    clean[:, 1], given = lobe, torch.tensor([False, True, False, False])[None, :, None, None, None]
    prediction = torch.tensor([2.0, 0.0, 0.0, 1.0]).expand(1, 4, 1, 1, 4)
    plain = (4 + 1) / 4  # of each channel but the lobes
    by_given = (1 * 4 + 5 * 1) / 14
    assert error_per_sample(prediction, clean, given, 5.0).item() == pytest.approx((by_given + 2 * plain) / 3)
    assert error_per_sample(prediction, clean, given).item() == pytest.approx(plain)
    drawn = prediction.clone()
    drawn[:, 1] = lobe  # drawn right, where it is not given
    assert error_per_sample(drawn, clean, nothing, 5.0).item() == pytest.approx((by_given + 0 + 2 * plain) / 4)
    assert weight_of_lungs(lobe, 5.0, 1).flatten().tolist() == pytest.approx([3 / 4.5, 5 / 4.5, 5 / 4.5, 5 / 4.5])
    everywhere = torch.ones_like(lobe)
    assert torch.equal(weight_of_lungs(everywhere, 5.0), everywhere)


def test_the_weight_of_lungs_is_no_target_of_its_own():
    """The lobe that weighs the CT's error is not moved to make it cheaper."""
    clean, nothing = torch.zeros(1, 4, 1, 1, 2), torch.zeros(1, 4, 1, 1, 1, dtype=torch.bool)
    prediction = torch.tensor([2.0, 0.0]).expand(1, 4, 1, 1, 2).clone().requires_grad_()
    error_per_sample(prediction, clean, nothing, 5.0).backward()
    assert prediction.grad[:, 1].flatten().tolist() == pytest.approx([2 * 2.0 / 2 / 4, 0.0])


def test_both_networks_learn_with_the_weight_of_lungs():
    for model, weighted in (
        (build.base(), build.base(config=MedSynConfig(lung_weight=10.0))),
        (build.superres(), build.superres(config=replace(build.SUPERRES, lung_weight=10.0))),
    ):
        rows = model.encode(build.chests(4))
        plain, heavy = model.loss(rows, draws(4)), weighted.loss(rows, draws(4))
        assert torch.isfinite(heavy).all()
        assert not torch.allclose(heavy, plain)


def cts_seen_by(model) -> list[torch.Tensor]:
    """The CT channel (B, D, H, W) of each network call from now on."""
    seen: list[torch.Tensor] = []
    model.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:, 0]))
    return seen


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_generation_hands_given_channels_over_as_the_networks_learnt_them(share):
    """Clean where they learnt that, with the step's noise as in the published code where they did not."""
    base = build.base(config=MedSynConfig(given_share=share))
    known = base.known_from(build.chest(), ["ct"])
    seen = cts_seen_by(base)
    base.sample([Request(key="a", prompt="", seed=0)], [known])
    assert [torch.equal(ct[0], known["ct"]) for ct in seen] == [bool(share)] * 3

    whole = replace(build.DEFAULTS, tile=(16, 16, 16))
    superres = build.superres(config=replace(build.SUPERRES, given_share=share), defaults=whole)
    fine = torch.rand(16, 16, 16) * 2 - 1
    seen = cts_seen_by(superres)
    superres.upscale(torch.zeros(1, 4, 8, 8, 8), [0], known=[{"ct": fine}])
    assert [torch.equal(ct[0], fine) for ct in seen] == [bool(share)] * 3


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_training_hands_channels_over_clean(share):
    """All rows are given something, half of them and more the CT; noise leaves [-1, 1], a scaled CT does not."""
    for model in (
        build.base(config=MedSynConfig(given_share=share)),
        build.superres(config=replace(build.SUPERRES, given_share=share)),
    ):
        rows = model.encode(build.chests(8))
        seen = cts_seen_by(model)
        model.loss(rows, draws(8))
        clean = int((seen[0].abs().amax(dim=(1, 2, 3)) <= 1).sum())
        assert clean >= 4 if share else clean == 0


@pytest.mark.parametrize("config", [MedSynConfig, SuperResolutionConfig])
def test_a_share_is_a_share(config):
    with pytest.raises(ConfigError, match=r"given_share must lie in \[0, 1\], got 1.5"):
        config(given_share=1.5)


def test_what_is_seen_joins_the_guess_by_its_precision():
    """CTs that miss the guess by a spread of s: the joined prediction errs by s^2 (1 - c), the least there is."""
    generator, spread = torch.Generator().manual_seed(0), 0.2
    guess = torch.full((3, 4, 16, 16, 16), 0.3)
    clean = guess + spread * torch.randn(guess.shape, generator=generator)
    times = torch.tensor([0.02, 0.15, 0.6])
    alpha, sigma = cosine_alpha_sigma(times, 5)
    noisy = add_noise(clean, torch.randn(guess.shape, generator=generator), alpha, sigma)
    joined = with_what_is_seen(guess, noisy, times, spread)
    noise_B = (sigma / alpha).square().flatten()
    least = spread**2 * noise_B / (spread**2 + noise_B)
    assert (joined - clean)[:, 0].square().mean(dim=(1, 2, 3)).tolist() == pytest.approx(least.tolist(), rel=0.05)
    assert least[0] < 0.05 * spread**2 < 0.9 * spread**2 < least[2]
    assert torch.equal(joined[:, 1:], guess[:, 1:])  # the masks
    assert torch.equal(with_what_is_seen(guess, noisy, times, 0.0), guess)


def test_low_noise_counts_more_up_to_the_limit():
    times = torch.tensor([0.0, 0.492, 1.0])  # in the middle alpha and sigma are alike: cos^2 of (0.492 + 0.008) / 1.008
    assert weight_of(times, 10.0).tolist() == pytest.approx(
        [10.0, 1 / math.sin(math.pi / 2 * 0.5 / 1.008) ** 2, 1.0], rel=1e-3
    )
    assert weight_of(times, 1.0).tolist() == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize("limit", [1.0, 4.0])
def test_the_loss_of_both_networks_is_weighted(limit):
    for model, limited in (
        (build.base(), build.base(config=MedSynConfig(weight_limit=limit))),
        (build.superres(), build.superres(config=replace(build.SUPERRES, weight_limit=limit))),
    ):
        rows = model.encode(build.chests(4))
        times = torch.stack([torch.rand((), generator=generator) for generator in draws(4)])
        assert torch.allclose(limited.loss(rows, draws(4)), model.loss(rows, draws(4)) * weight_of(times, limit))


def test_generation_joins_what_the_network_was_shown():
    """With a residual far above the noise the CT is the noisy one, whatever an untrained network guesses."""
    base = build.base(config=MedSynConfig(ct_residual=1e4))
    noise = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    clean = base._clean(noise, 0.5, base._text([""]), None, 1.0)
    alpha, _ = cosine_alpha_sigma(torch.tensor([0.5]), 5)
    assert torch.allclose(clean[:, :1], noise[:, :1] / alpha, atol=1e-3)

    superres = build.superres(config=replace(build.SUPERRES, ct_residual=1e4))
    fine = superres.upscale(torch.zeros(1, 4, 8, 8, 8), [0])
    started_from = torch.randn(4, 16, 16, 16, generator=generator_for(0, "superres"))
    assert torch.equal(fine[0, 0].sign(), started_from[0].sign())


@pytest.mark.parametrize("config", [MedSynConfig, SuperResolutionConfig])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight_limit", 0.5),
        ("weight_limit", float("inf")),
        ("lung_weight", float("nan")),
        ("lung_reach", 0.5),
        ("ct_residual", -1),
    ],
)
def test_settings_of_the_loss_are_checked(config, name, value):
    with pytest.raises(ConfigError, match=f"{name} must be"):
        config(**{name: value})
