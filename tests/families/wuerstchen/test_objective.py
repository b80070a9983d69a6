"""Würstchen's schedule, draws and loss: against diffusers' scheduler and by hand."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMWuerstchenScheduler

from medisyn.errors import ConfigError
from medisyn.families.wuerstchen.objective import add_noise, alpha_bar, draw, draw_time, loss_per_sample
from medisyn.families.wuerstchen.settings import GenerationDefaults, LatentGrid, WuerstchenConfig
from medisyn.seeding import generator_for

SHAPE = (2, 3, 4)


def generators(count, seed=0):
    return [generator_for(seed, f"row {number}") for number in range(count)]


def test_alpha_bar_is_the_published_schedulers():
    times = torch.linspace(0, 1, 101)
    expected = DDPMWuerstchenScheduler()._alpha_cumprod(times, torch.device("cpu"))
    torch.testing.assert_close(alpha_bar(times), expected, rtol=1e-5, atol=1e-7)


def test_alpha_bar_by_hand():
    """cos^2 divided by its value at 0: exactly 1 there, so cut to 1 - 1e-4; 1e-4 at the end."""
    half = math.cos(0.508 / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    got = alpha_bar(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    np.testing.assert_allclose(got, [0.9999, half, 1e-4], rtol=1e-12)


def test_noise_is_added_as_the_published_scheduler_does():
    clean, noise = torch.randn(5, *SHAPE), torch.randn(5, *SHAPE)
    times = torch.tensor([0.0, 0.001, 0.3, 0.9, 1.0])
    expected = DDPMWuerstchenScheduler().add_noise(clean, noise, times)
    torch.testing.assert_close(add_noise(clean, noise, times), expected, rtol=1e-4, atol=1e-5)


def test_original_times_are_one_in_7_5_percent_of_the_draws():
    """(1 - U) * 1.08 + 0.001 >= 1 for U <= 1 - 0.999 / 1.08 = 0.075."""
    generator = torch.Generator().manual_seed(0)
    times = torch.cat([draw_time(generator, "original") for _ in range(4000)])
    assert float((times == 1).float().mean()) == pytest.approx(0.075, abs=0.015)  # 3.6 standard errors
    assert float(times.min()) >= 0.001
    uniform = torch.cat([draw_time(generator, "uniform") for _ in range(4000)])
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(uniform.max()) < 1


def test_a_row_is_drawn_from_its_own_generator_whatever_stands_beside_it():
    config = WuerstchenConfig()
    together, alone = draw(generators(3), SHAPE, config), draw(generators(3)[2:], SHAPE, config)
    for name in ("times_B", "noise_BChw", "dropped_B"):
        assert torch.equal(getattr(together, name)[2:], getattr(alone, name))


def test_captions_are_dropped_per_sample_or_per_batch():
    many = [draw(generators(8, seed), SHAPE, WuerstchenConfig(caption_dropout=0.5)).dropped_B for seed in range(50)]
    batches = [
        draw(generators(8, seed), SHAPE, WuerstchenConfig(caption_dropout=0.5, drop_unit="batch")).dropped_B
        for seed in range(50)
    ]
    assert any(len(set(row.tolist())) == 2 for row in many)
    assert all(len(set(row.tolist())) == 1 for row in batches)
    assert {bool(row[0]) for row in batches} == {True, False}
    assert float(torch.cat(many).float().mean()) == pytest.approx(0.5, abs=0.1)
    none = draw(generators(8), SHAPE, WuerstchenConfig(caption_dropout=0))
    assert not none.dropped_B.any()


def test_the_weight_is_one_minus_alpha_bar():
    predicted, noise = torch.zeros(2, *SHAPE), torch.full((2, *SHAPE), 3.0)
    times = torch.tensor([0.25, 1.0])
    plain = loss_per_sample(predicted, noise, times, "none")
    weighted = loss_per_sample(predicted, noise, times, "p2")
    assert plain.tolist() == [9.0, 9.0]
    snr = alpha_bar(times) / (1 - alpha_bar(times))
    torch.testing.assert_close(weighted, 9 / (1 + snr))
    assert float(weighted[1]) == pytest.approx(9 * (1 - 1e-4))


def test_the_published_sizes_in_cells():
    grid = LatentGrid()
    assert [grid.cells(pixels) for pixels in (512, 768, 1024)] == [12, 18, 24]
    assert grid.cells(1000) == 24
    # the published pipeline makes pictures of 4 * int(cells * 10.67) pixels
    assert all(4 * int(grid.cells(pixels) * 10.67) == pixels for pixels in range(128, 2049, 128))
    assert 4 * int(grid.cells(704) * 10.67) == 724  # ours are 704


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        (WuerstchenConfig, {"caption_dropout": 1.5}, r"caption_dropout must lie in \[0, 1\], got 1.5"),
        (WuerstchenConfig, {"drop_unit": "batches"}, "drop_unit 'batches' is unknown, allowed: sample, batch"),
        (WuerstchenConfig, {"loss_weight": "p3"}, "loss_weight 'p3' is unknown, allowed: p2, none"),
        (WuerstchenConfig, {"time_sampling": "even"}, "time_sampling 'even' is unknown, allowed: original, uniform"),
        (LatentGrid, {"cell_pixels": 0.5}, "cell_pixels must be at least 1, got 0.5"),
        (GenerationDefaults, {"solver": "ddim"}, "solver 'ddim' is unknown, allowed: ancestral, ancestral-short"),
        (GenerationDefaults, {"decoder_steps": 0}, "decoder_steps must be at least 1, got 0"),
        (GenerationDefaults, {"guidance": -1.0}, "guidance must be 0 or more, got -1.0"),
    ],
)
def test_refused_settings(kind, values, text):
    with pytest.raises(ConfigError, match=text):
        kind(**values)
