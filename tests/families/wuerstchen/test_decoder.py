"""Würstchen's Stage B against diffusers' deprecated class."""

from dataclasses import asdict, replace

import pytest
import torch
from diffusers.pipelines.deprecated.wuerstchen import WuerstchenDiffNeXt as Published

from build_wuerstchen_folders import as_lists, randomise
from medisyn.errors import ConfigError, InputError
from medisyn.families.wuerstchen.config import DECODER_TINY, DECODER_V2, DecoderConfig
from medisyn.families.wuerstchen.decoder import WuerstchenDecoder, build_decoder

SIZES = {"c_r": 8, "c_cond": 16, "effnet_embd": 4, "clip_embd": 32}


def inputs(config: DecoderConfig = DECODER_TINY, rows: int = 2, cells: int = 3):
    generator = torch.Generator().manual_seed(4)
    side = config.factor
    return (
        torch.randn(rows, config.c_in, 2 * side, 3 * side, generator=generator),
        torch.rand(rows, generator=generator),
        torch.randn(rows, config.effnet_embd, cells, cells, generator=generator),
        torch.randn(rows, 7, config.clip_embd, generator=generator),
    )


@pytest.mark.parametrize(
    "config",
    [
        DECODER_TINY,
        DecoderConfig(  # one level, without attention or picture, as in diffusers' own tests
            c_hidden=(8,), nhead=(-1,), blocks=(2,), level_config=("CT",), inject_effnet=(False,), **SIZES
        ),
        DecoderConfig(  # the picture read at the first level and skipped at the next; attention before time
            c_hidden=(8, 12, 16),
            nhead=(2, -1, 4),
            blocks=(1, 2, 1),
            level_config=("CAT", "C", "CTA"),
            inject_effnet=(True, False, True),
            kernel_size=5,
            **SIZES,
        ),
        DecoderConfig(  # no patches, a time block first
            patch_size=1,
            c_hidden=(8, 8),
            nhead=(1, 1),
            blocks=(1, 1),
            level_config=("TCA", "CTA"),
            inject_effnet=(True, True),
            **{**SIZES, "c_r": 7},
        ),
    ],
)
@pytest.mark.parametrize("cells", [1, 3, 20])  # features smaller and larger than the latents
def test_output_equals_diffusers_class(config, cells):
    ours, theirs = randomise(build_decoder(config)), Published(**as_lists(config)).eval()
    theirs.load_state_dict(ours.state_dict())
    noisy, times, effnet, text = inputs(config, cells=cells)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(noisy, times, effnet, text), theirs(noisy, times, effnet, text), rtol=1e-5, atol=1e-5
        )


@pytest.fixture(autouse=True)
def quick_start(monkeypatch):
    """diffusers' start of the weights takes a minute at paper size, and the tests replace the weights anyway."""
    monkeypatch.setattr(Published, "_init_weights", lambda self, module: None)


def test_paper_size_has_the_published_number_of_weights():
    with torch.device("meta"):
        ours, theirs = WuerstchenDecoder(**asdict(DECODER_V2)), Published()
    assert sum(p.numel() for p in ours.parameters()) == count_by_hand() == 1_055_365_280
    assert {n: w.shape for n, w in ours.state_dict().items()} == {n: w.shape for n, w in theirs.state_dict().items()}
    assert DECODER_V2.factor == ours.factor == 16  # latents of 256 cells are a picture of 1024 pixels


def count_by_hand() -> int:
    """Weights of Stage B v2 from its table of levels, block by block."""
    text, time, widths, repeats = 1024, 64, (320, 640, 1280, 1280), (4, 4, 14, 4)
    total = (1024 * text + text) + 6 * (16 * text + text) + (16 * 320 + 320) + (320 * 32 + 32)
    for level, (c, repeat) in enumerate(zip(widths, repeats, strict=True)):
        read = text if level > 0 else 0
        conv = (9 * c + c) + ((c + read) * 4 * c + 4 * c) + 8 * c + (4 * c * c + c)
        attention = 4 * (c * c + c) + (text * c + c) if level > 0 else 0
        total += 2 * repeat * (conv + (time * 2 * c + 2 * c) + attention)
        if level < 3:
            total += c * 4 * c  # the first block on the way up reads c channels more
        if level > 0:
            above = widths[level - 1]
            total += (above * c * 4 + c) + (c * above * 4 + above)
    return total


def test_a_new_network_has_b_of_one_half():
    # the last layer starts at 0: a = 0 and b = 0.5 * (1 - 2e-3) + 1e-3 = 0.5, so the noise is 2 x
    noisy, times, effnet, text = inputs()
    with torch.no_grad():
        torch.testing.assert_close(build_decoder(DECODER_TINY)(noisy, times, effnet, text), 2 * noisy)


def test_picture_text_and_time_change_the_output():
    network, given = randomise(build_decoder(DECODER_TINY)), inputs()
    with torch.no_grad():
        out = network(*given)
        for position in (1, 2, 3):
            changed = [value.flip(0) if number == position else value for number, value in enumerate(given)]
            assert not torch.allclose(out, network(*changed), atol=1e-3), position


def test_bfloat16_and_autocast_agree():
    network, (noisy, times, effnet, text) = randomise(build_decoder(DECODER_TINY)).bfloat16(), inputs()
    with torch.no_grad():
        out = network(noisy.bfloat16(), times, effnet.bfloat16(), text.bfloat16())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            near = network.float()(noisy, times, effnet, text)
    assert out.dtype == torch.bfloat16
    assert near.dtype == torch.float32
    torch.testing.assert_close(out.float(), near, rtol=0.1, atol=0.2)


def test_wrong_shapes_are_refused():
    network, (noisy, times, effnet, text) = build_decoder(DECODER_TINY), inputs()
    with pytest.raises(InputError, match=r"Stage B reads latents \(B, 4, H, W\), got \(2, 3, 8, 12\)"):
        network(noisy[:, :3], times, effnet, text)
    with pytest.raises(InputError, match=r"latents divide by 4, got \(8, 10\)"):
        network(noisy[..., :10], times, effnet, text)
    with pytest.raises(InputError, match=r"one time per latent, \(2,\), got \(\)"):
        network(noisy, times[0], effnet, text)
    with pytest.raises(InputError, match=r"features \(2, 4, h, w\), got \(2, 3, 3, 3\)"):
        network(noisy, times, effnet[:, :3], text)
    with pytest.raises(InputError, match=r"text of shape \(2, N, 32\), got \(1, 7, 32\)"):
        network(noisy, times, effnet, text[:1])


def test_wrong_sizes_are_refused():
    with pytest.raises(ConfigError, match="one value per level, got 2, 2, 1, 2, 2"):
        replace(DECODER_TINY, blocks=(1,))
    with pytest.raises(ConfigError, match="level_config 'CF' must be made of C, T, A"):
        replace(DECODER_TINY, level_config=("CF", "CTA"))
    with pytest.raises(ConfigError, match="width 16 with attention needs heads that divide it, got 3"):
        replace(DECODER_TINY, nhead=(-1, 3))
    with pytest.raises(ConfigError, match="c_r must be at least 4"):
        replace(DECODER_TINY, c_r=2)
