"""Würstchen's Stage A against diffusers' deprecated class."""

from dataclasses import asdict, replace

import pytest
import torch
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel as Published

from build_wuerstchen_folders import randomise
from medisyn.errors import ConfigError, InputError
from medisyn.families.wuerstchen import vqgan
from medisyn.families.wuerstchen.config import VQGAN_F4, VQGAN_TINY, VQGANConfig
from medisyn.families.wuerstchen.vqgan import Codebook, PaellaVQ, build_vqgan


@pytest.mark.parametrize(
    "config",
    [
        VQGAN_TINY,
        VQGANConfig(levels=1, bottleneck_blocks=1, embed_dim=8, num_vq_embeddings=8, up_down_scale_factor=4),
        VQGANConfig(levels=3, bottleneck_blocks=1, embed_dim=16, latent_channels=3, num_vq_embeddings=8, in_channels=1),
    ],
)
def test_outputs_equal_diffusers_class(config):
    ours, theirs = randomise(build_vqgan(config)), Published(**asdict(config)).eval()
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.rand(2, config.in_channels, 2 * config.factor, 3 * config.factor)
    with torch.no_grad():
        latents = theirs.encode(pixels).latents
        torch.testing.assert_close(ours.encode(pixels), latents, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.decode(latents), theirs.decode(latents).sample, rtol=1e-5, atol=1e-5)
        quantised = theirs.decode(latents, force_not_quantize=False).sample
        torch.testing.assert_close(ours.decode(ours.quantise(latents)), quantised, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours(pixels), theirs(pixels).sample, rtol=1e-5, atol=1e-5)
    assert latents.shape == (2, config.latent_channels, 2, 3)


def test_paper_size_has_the_published_number_of_weights():
    with torch.device("meta"):
        ours, theirs = PaellaVQ(**asdict(VQGAN_F4)), Published()
    assert sum(p.numel() for p in ours.parameters()) == 18_406_894
    assert {n: w.shape for n, w in ours.state_dict().items()} == {n: w.shape for n, w in theirs.state_dict().items()}
    # one mixing block: depthwise 3 x 3, two layers of 4 times the width, six scales; 1 + 12 of 384, 2 of 192
    blocks = [9 * c + c + (4 * c * c + 4 * c) + (4 * c * c + c) + 6 for c in (384, 192)]
    wide, narrow = (blocks[0] * 13, blocks[1] * 2)
    ends = (12 * 192 + 192) + (192 * 384 * 16 + 384) + (384 * 4 + 2 * 4) + (4 * 384 + 384) + (384 * 192 * 16 + 192)
    assert wide + narrow + ends + (192 * 12 + 12) + 8192 * 4 == 18_406_894
    assert VQGAN_F4.factor == ours.factor == 4


def test_codebook_takes_the_nearest_code_whatever_is_held_at_once(monkeypatch):
    book = Codebook(3, 2)
    with torch.no_grad():
        book.embedding.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [-2.0, 0.0]]))
    cells = torch.tensor([[0.4, 0.3], [0.9, 0.2], [-1.1, 0.1], [5.0, 5.0]])  # the second lies 0.65 from 1, 0.85 from 0
    latents = cells.T.reshape(1, 2, 2, 2)
    expected = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-2.0, 0.0], [1.0, 1.0]]).T.reshape(1, 2, 2, 2)
    assert torch.equal(book(latents), expected)
    monkeypatch.setattr(vqgan, "CELLS_AT_ONCE", 3)
    assert torch.equal(book(latents), expected)


def test_statistics_stay_as_stored_in_training_mode():
    network = randomise(build_vqgan(VQGAN_TINY)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pixels = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        training = network.encode(pixels)
        assert torch.equal(training, network.eval().encode(pixels))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_wrong_pictures_and_sizes_are_refused():
    network = build_vqgan(VQGAN_TINY)
    with pytest.raises(InputError, match=r"Stage A reads pictures \(B, 3, H, W\) in \[0, 1\], got \(1, 1, 8, 8\)"):
        network.encode(torch.zeros(1, 1, 8, 8))
    with pytest.raises(InputError, match=r"must divide by 4, got \(8, 10\)"):
        network.encode(torch.zeros(1, 3, 8, 10))
    with pytest.raises(ConfigError, match="embed_dim must halve once per level but the first, got 18 for 3 levels"):
        replace(VQGAN_TINY, embed_dim=18, levels=3)
    with pytest.raises(ConfigError, match="scale_factor must be above 0, got 0"):
        replace(VQGAN_TINY, scale_factor=0)
