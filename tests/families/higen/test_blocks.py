"""The parts of HiGen's network against formulas, torch's own layers and diffusers' blocks."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from medisyn.families.higen.blocks import (
    Attention,
    ResidualBlock,
    TemporalConv,
    TemporalTransformer,
    TextResampler,
    TransformerLayer,
    sinusoids,
)
from medisyn.families.higen.published import LAYER, renamed


def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight random, also those that start at 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_sinusoids_by_hand():
    # width 4: frequencies 1 and 10000^(-1/2) = 0.01; cosines first
    got = sinusoids(torch.tensor([[2.0, 0.0]]), 4)
    wanted = [[math.cos(2), math.cos(0.02), math.sin(2), math.sin(0.02)], [1, 1, 0, 0]]
    torch.testing.assert_close(got, torch.tensor([wanted]))


def test_sinusoids_are_those_of_stable_diffusion():
    from diffusers.models.embeddings import get_timestep_embedding

    times = torch.tensor([0.0, 1.0, 300.0, 999.0])
    oracle = get_timestep_embedding(times, 320, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoids(times, 320), oracle, rtol=0, atol=2e-4)  # float32 of 999 * frequency


def test_attention_by_its_formula():
    attention, x, text = fill(Attention(6, 2, 4, 5)), random(3, 7, 6), random(3, 9, 5, seed=2)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        q, k, v = (x @ attention.to_q.weight.T, text @ attention.to_k.weight.T, text @ attention.to_v.weight.T)
        scores = q[..., head] @ k[..., head].transpose(1, 2) / math.sqrt(4)
        heads.append(scores.softmax(-1) @ v[..., head])
    torch.testing.assert_close(attention(x, text), attention.to_out(torch.cat(heads, -1)))


def test_a_temporal_convolution_is_the_published_one():
    """Four times GroupNorm, SiLU and a (3, 1, 1) convolution over (T, H, W), and what came in."""
    ours, x = fill(TemporalConv(8, groups=4, dropout=0.1)), random(2 * 5, 8, 3, 2)
    clip = x.view(2, 5, 8, 3, 2).transpose(1, 2)
    h = clip
    for norm, conv in zip(ours.norms, ours.convs, strict=True):
        full = nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0))
        full.weight.data, full.bias.data = conv.weight.data[..., None], conv.bias.data
        h = full(F.silu(F.group_norm(h, 4, norm.weight, norm.bias)))
    wanted = (clip + h).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(ours(x, 5), wanted, rtol=1e-4, atol=1e-5)


def test_a_fresh_block_adds_nothing():
    x, time = random(6, 8, 4, 4), random(6, 32)
    assert torch.equal(TemporalConv(8, groups=4, dropout=0.0)(x, 3), x)
    assert torch.equal(TemporalTransformer(8, heads=2, head_width=4, groups=4)(x, 3), x)
    assert torch.equal(ResidualBlock(8, 8, time_width=32, groups=4, dropout=0.0)(x, time), x)


def test_dropout_spares_the_first_temporal_convolution():
    block = TemporalConv(8, groups=4, dropout=0.5).train()
    seen = []
    block.dropout.register_forward_hook(lambda *_: seen.append(1))
    block(random(3, 8, 2, 2), 3)
    assert len(seen) == 3


def test_attention_through_time_keeps_clips_and_pixels_apart():
    block = fill(TemporalTransformer(8, heads=2, head_width=4, groups=4))
    x = random(2 * 3, 8, 4, 4)
    both, alone = block(x, 3), block(x[3:], 3)
    torch.testing.assert_close(both[3:], alone, rtol=1e-5, atol=1e-6)
    turned = block(x.flip(3), 3).flip(3)  # the norm does not see where a pixel lies
    torch.testing.assert_close(turned, both, rtol=1e-5, atol=1e-6)


def test_many_pixels_go_through_time_in_parts(monkeypatch):
    block, x = fill(TemporalTransformer(8, heads=2, head_width=4, groups=4)), random(2 * 3, 8, 4, 4)
    whole = block(x, 3)
    monkeypatch.setattr("medisyn.families.higen.blocks.PIXELS_AT_ONCE", 5)
    torch.testing.assert_close(block(x, 3), whole, rtol=1e-5, atol=1e-6)


def test_attention_through_time_knows_no_order():
    block, x = fill(TemporalTransformer(8, heads=2, head_width=4, groups=4)), random(5, 8, 2, 2)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(block(x[order], 5), block(x, 5)[order], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(block(x[:1], 1), block(x, 5)[:1])


def test_the_resampler_is_two_attentions_to_the_text_and_a_gate():
    """diffusers' transformer block as an oracle: both of its attentions read the text."""
    from diffusers.models.attention import BasicTransformerBlock

    layer = fill(TransformerLayer(16, 2, 8, (16, 16)))
    oracle = BasicTransformerBlock(
        16, 2, 8, cross_attention_dim=16, only_cross_attention=True, activation_fn="geglu"
    ).eval()
    oracle.load_state_dict({renamed(name, LAYER): weight for name, weight in layer.state_dict().items()})
    x, text = random(3, 4, 16), random(3, 11, 16, seed=2)
    torch.testing.assert_close(layer(x, text), oracle(x, encoder_hidden_states=text), rtol=1e-5, atol=1e-5)


def test_the_resampler_makes_as_many_tokens_of_any_text():
    resampler = fill(TextResampler(6, 16, 5, tokens=3, blocks=2, heads=4))
    long, short = random(2, 77, 6), random(2, 9, 6)
    assert resampler(long).shape == resampler(short).shape == (2, 3, 5)
    torch.testing.assert_close(resampler(long.flip(1)), resampler(long), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(resampler(long)[:1], resampler(long[:1]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(resampler(long)[0], resampler(long)[1])
