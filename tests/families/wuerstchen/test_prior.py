"""Würstchen's Stage C against diffusers' deprecated class, by hand where a number can be worked out."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from diffusers.pipelines.deprecated.wuerstchen import WuerstchenPrior as Published

from build_wuerstchen_folders import randomise
from medisyn.errors import ConfigError, InputError
from medisyn.families.wuerstchen.blocks import ChannelNorm, ResponseNorm, time_embedding
from medisyn.families.wuerstchen.config import PRIOR_TINY, PRIOR_V2, PriorConfig
from medisyn.families.wuerstchen.prior import WuerstchenPrior, build_prior


def inputs(config: PriorConfig = PRIOR_TINY, rows: int = 2):
    generator = torch.Generator().manual_seed(3)
    noisy = torch.randn(rows, config.c_in, 3, 5, generator=generator)
    return noisy, torch.rand(rows, generator=generator), torch.randn(rows, 7, config.c_cond, generator=generator)


@pytest.mark.parametrize(
    "config",
    [
        PRIOR_TINY,
        PriorConfig(c_in=3, c=24, c_cond=10, c_r=9, depth=1, nhead=3),  # an odd time width, other widths
        PriorConfig(c_in=16, c=16, c_cond=16, c_r=64, depth=3, nhead=1),
    ],
)
def test_output_equals_diffusers_class(config):
    ours, theirs = randomise(build_prior(config)), Published(**asdict(config)).eval()
    with torch.no_grad():
        ours.out[1].weight.mul_(0.2)  # b away from 1, where the division makes rounding large
    theirs.load_state_dict(ours.state_dict())  # strict: the same names and shapes, both ways
    with torch.no_grad():
        noisy, times, text = inputs(config)
        torch.testing.assert_close(ours(noisy, times, text), theirs(noisy, times, text), rtol=1e-5, atol=1e-5)


def test_paper_size_has_the_published_number_of_weights():
    with torch.device("meta"):
        ours = WuerstchenPrior(**asdict(PRIOR_V2))
        theirs = Published(c_in=16, c=1536, c_cond=1280, c_r=64, depth=32, nhead=24)
    c = 1536
    conv_block = (9 * c + c) + (4 * c * c + 4 * c) + 2 * 4 * c + (4 * c * c + c)  # depthwise, in, response norm, out
    block = conv_block + (64 * 2 * c + 2 * c) + (4 * (c * c + c) + c * c + c)  # and time, attention with its text map
    ends = (16 * c + c) + (1280 * c + c) + (c * c + c) + (c * 32 + 32)
    assert ends + 32 * block == 993_636_896
    assert sum(p.numel() for p in ours.parameters()) == 993_636_896
    assert {n: w.shape for n, w in ours.state_dict().items()} == {n: w.shape for n, w in theirs.state_dict().items()}


def test_time_embedding_by_hand():
    # width 5: two frequencies, 1 and 1/10000, of 10000 t; then a column of zeros
    got = time_embedding(torch.tensor([0.0, 0.5]), 5)
    angles = (5000.0, 0.5)
    expected = [*(math.sin(a) for a in angles), *(math.cos(a) for a in angles), 0.0]
    torch.testing.assert_close(got, torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0], expected]), rtol=0, atol=1e-4)
    # a half-precision time is widened before it is multiplied by 10000
    assert time_embedding(torch.tensor([0.5], dtype=torch.bfloat16), 4).dtype == torch.float32


def test_norms_by_hand():
    x = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2).expand(1, 2, 2, 2)  # channels last, 4 positions
    norm = ResponseNorm(2)
    torch.testing.assert_close(norm(x), x)  # both scales start at 0
    with torch.no_grad():
        norm.gamma.fill_(1)
        norm.beta.fill_(0.5)
    # strengths 6 and 8, relative to their mean 7: 3 + 3 * 6 / 7 + 0.5 and 4 + 4 * 8 / 7 + 0.5
    torch.testing.assert_close(norm(x)[0, 0, 0], torch.tensor([3.5 + 18 / 7, 4.5 + 32 / 7]))
    normed = ChannelNorm()(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1))
    torch.testing.assert_close(normed.flatten(), torch.tensor([-1.0, 1.0]), rtol=0, atol=1e-5)


def test_a_new_network_says_that_all_of_its_input_is_noise():
    # the last layer starts at 0: a = b = 0, so the noise is x / (1 + 1e-5)
    noisy, times, text = inputs()
    with torch.no_grad():
        torch.testing.assert_close(build_prior(PRIOR_TINY)(noisy, times, text), noisy / (1 + 1e-5))


def test_same_seed_same_weights():
    a, b, c = (build_prior(PRIOR_TINY, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["projection.weight"], c["projection.weight"])


def test_gradient_checkpointing_gives_the_same_gradients_and_every_weight_learns():
    network = randomise(build_prior(PRIOR_TINY)).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            network.enable_gradient_checkpointing()
        network.zero_grad()
        network(*inputs()).square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in network.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)
        if not name.endswith("to_k.bias"):  # moves all scores of a query alike, which softmax does not see
            assert gradient.isfinite().all(), name
            assert gradient.abs().max() > 0, name


def test_text_and_time_change_the_output_and_rows_do_not_meet():
    network = randomise(build_prior(PRIOR_TINY))
    noisy, times, text = inputs()
    with torch.no_grad():
        out = network(noisy, times, text)
        assert not torch.allclose(out, network(noisy, times, text.flip(0)), atol=1e-3)
        assert not torch.allclose(out, network(noisy, times.flip(0), text), atol=1e-3)
        torch.testing.assert_close(network(noisy[:1], times[:1], text[:1]), out[:1], rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near_float32():
    network, (noisy, times, text) = build_prior(PRIOR_TINY).eval(), inputs()
    with torch.no_grad():
        torch.nn.init.normal_(network.out[1].weight, std=0.02)
        exact = network(noisy, times, text)
        near = network.bfloat16()(noisy.bfloat16(), times, text.bfloat16())
    assert near.dtype == torch.bfloat16
    torch.testing.assert_close(near.float(), exact, rtol=5e-2, atol=5e-2)


def test_under_autocast_the_noise_stays_float32_and_every_weight_learns():
    network, (noisy, times, text) = build_prior(PRIOR_TINY), inputs()
    torch.nn.init.normal_(network.out[1].weight, std=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = network(noisy, times, text)
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, network(noisy, times, text), rtol=5e-2, atol=5e-2)
    near.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_wrong_shapes_are_refused():
    network, (noisy, times, text) = build_prior(PRIOR_TINY), inputs()
    with pytest.raises(InputError, match=r"latents \(B, 4, H, W\), got \(2, 3, 3, 5\)"):
        network(noisy[:, :3], times, text)
    with pytest.raises(InputError, match=r"one time per latent, \(2,\), got \(1,\)"):
        network(noisy, times[:1], text)
    with pytest.raises(InputError, match=r"text of shape \(2, N, 32\), got \(2, 7, 16\)"):
        network(noisy, times, text[:, :, :16])


def test_wrong_sizes_are_refused():
    with pytest.raises(ConfigError, match="width c 32 must divide by its heads, nhead 5"):
        replace(PRIOR_TINY, nhead=5)
    with pytest.raises(ConfigError, match="sizes must be at least 1, got PriorConfig"):
        replace(PRIOR_TINY, depth=0)
    with pytest.raises(ConfigError, match="c_r must be at least 4 wide, got 3"):
        replace(PRIOR_TINY, c_r=3)
