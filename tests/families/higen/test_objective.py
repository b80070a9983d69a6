import pytest
import torch
from diffusers import DDIMScheduler

from medisyn.families.higen.objective import (
    SCHEDULE,
    alpha_bars,
    alpha_sigma,
    draw,
    error_per_sample,
    noise_with_offset,
    valid_latents,
)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_the_published_schedule():
    bars = alpha_bars()
    assert bars[-1] == 0
    assert float(bars[981]) == pytest.approx(6.9e-5, rel=0.01)  # as computed from the published code
    theirs = DDIMScheduler(**SCHEDULE).alphas_cumprod
    torch.testing.assert_close(bars[:-1], theirs[:-1], rtol=1e-4, atol=1e-7)


def test_alpha_and_sigma_broadcast_over_clips():
    alpha, sigma = alpha_sigma(alpha_bars(), torch.tensor([0, 999]))
    assert alpha.shape == (2, 1, 1, 1, 1)
    assert (float(alpha[1]), float(sigma[1])) == (0.0, 1.0)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(2, 1, 1, 1, 1))


def test_every_row_draws_from_its_own_generator():
    options = {"offset_noise": 0.1, "caption_dropout": 0.5}
    both = draw(generators(3, 4), (4, 2, 3, 3), **options)
    alone = draw(generators(4), (4, 2, 3, 3), **options)
    for name in ("posterior_BCThw", "timesteps_B", "noise_BCThw", "dropped_B"):
        assert torch.equal(getattr(both, name)[1:], getattr(alone, name))


def test_captions_are_dropped_at_their_share():
    dropped = draw(generators(*range(2000)), (1, 1, 1, 1), offset_noise=0.0, caption_dropout=0.1).dropped_B
    assert abs(int(dropped.sum()) - 200) < 54  # four standard deviations of sqrt(2000 * 0.1 * 0.9)


def test_offset_noise_is_one_number_per_channel_and_frame():
    plain, shifted = (noise_with_offset((2, 3, 4, 5), generators(0)[0], strength) for strength in (0.0, 0.1))
    offset = shifted - plain
    torch.testing.assert_close(offset, offset[..., :1, :1].expand_as(offset), atol=1e-6, rtol=0)
    assert len(offset[..., 0, 0].unique()) == 6
    many = noise_with_offset((100, 100, 1, 1), generators(1)[0], 0.1)
    assert float(many.var()) == pytest.approx(1 + 0.1**2, rel=0.06)


def test_a_latent_counts_where_all_its_pixels_are_real():
    valid = torch.ones(1, 2, 4, 6)
    valid[0, 0, 3, 5] = 0  # the last pixel of the last cell of frame 0
    valid[0, 1] = 0
    got = valid_latents(valid, 2)
    assert got.tolist() == [[[[True] * 3, [True, True, False]], [[False] * 3] * 2]]


def test_the_error_by_hand():
    prediction = torch.zeros(2, 2, 1, 1, 2)
    target = torch.tensor([[1.0, 3.0], [1.0, 5.0]]).view(1, 2, 1, 1, 2).repeat(2, 1, 1, 1, 1)
    valid = torch.tensor([[True, True], [True, False]]).view(2, 1, 1, 2)
    # row 0: (1 + 9 + 1 + 25) / 4; row 1: its second cell is padding, (1 + 1) / 2
    assert error_per_sample(prediction, target, valid).tolist() == [9.0, 1.0]
    prediction[1, :, :, :, 1] = float("nan")  # what the network says in padding does not even matter there
    assert error_per_sample(prediction, target, valid).tolist() == [9.0, 1.0]
