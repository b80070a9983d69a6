"""Guidance: numbers worked by hand and diffusers as the oracle."""

import torch

from medisyn.diffusion.guidance import guide, rescale_guided


def test_guidance_by_hand():
    blank, asked = torch.tensor([1.0, 0.0]), torch.tensor([2.0, -1.0])
    torch.testing.assert_close(guide(blank, asked, 7.0), torch.tensor([8.0, -7.0]))
    assert torch.equal(guide(blank, asked, 0.0), blank)
    assert torch.equal(guide(blank, asked, 1.0), asked)


def test_rescaling_by_hand():
    # standard deviations 2 (guided) and 1 (conditional): halved at share 1, three quarters at share 0.5
    guided, asked = torch.tensor([[-2.0, 2.0]]), torch.tensor([[4.0, 6.0]])
    torch.testing.assert_close(rescale_guided(guided, asked, 1.0), torch.tensor([[-1.0, 1.0]]))
    torch.testing.assert_close(rescale_guided(guided, asked, 0.5), torch.tensor([[-1.5, 1.5]]))
    assert torch.equal(rescale_guided(guided, asked, 0.0), guided)


def test_rescaling_equals_diffusers_row_by_row():
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    guided, asked = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    theirs = rescale_noise_cfg(guided, asked, guidance_rescale=0.7)
    torch.testing.assert_close(rescale_guided(guided, asked, 0.7), theirs)
