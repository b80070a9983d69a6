"""Channels handed over clean: how often, which, and that the loss leaves them out."""

from dataclasses import replace

import pytest
import torch

import build_medsyn as build
from medisyn.errors import ConfigError
from medisyn.families.medsyn.config import MedSynConfig, SuperResolutionConfig
from medisyn.families.medsyn.objective import draw_given, error_per_sample
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
