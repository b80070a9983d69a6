"""The base model as a family: losses that depend on the sample alone, and what stays fixed while sampling."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import build_medsyn as build
from medisyn.errors import ConfigError, InputError, ModelError
from medisyn.families.medsyn.base_model import MedSynBase
from medisyn.families.medsyn.config import BASE_TINY, SUPERRES_TINY, MedSynConfig, MedSynDefaults, UNetConfig
from medisyn.families.medsyn.networks import build_unet
from medisyn.families.medsyn.objective import draw_base
from medisyn.seeding import generator_for
from medisyn.types import Request

REQUEST = Request(key="a", prompt="Findings: Large right pleural effusion.", seed=5)


def draws(count: int, step: int = 0) -> list[torch.Generator]:
    return [generator_for(0, f"{step}/{number}") for number in range(count)]


def count_calls(model) -> list[int]:
    """Rows of each network call from now on."""
    rows: list[int] = []
    model.unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    return rows


def test_encoding_gives_rows_on_the_cpu_and_draws_nothing():
    model = build.base()
    rows = model.encode(build.chests(2))
    assert rows["channels"].shape == (2, 4, 8, 8, 8)
    assert rows["channels"].dtype == torch.float16
    assert rows["text"].shape == (2, 12, 16)
    again = model.encode(build.chests(2))
    assert all(torch.equal(rows[name], again[name]) for name in rows)
    torch.testing.assert_close(model.encode(build.chests(2)[1:])["text"][0], rows["text"][1])


def test_a_samples_loss_depends_on_its_own_draws_alone():
    model = build.base()
    rows = model.encode(build.chests(3))
    together = model.loss(rows, draws(3))
    assert together.shape == (3,)
    alone = model.loss({name: row[1:2] for name, row in rows.items()}, draws(3)[1:2])
    torch.testing.assert_close(alone[0], together[1], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(model.loss(rows, draws(3, step=1)), together)


def test_draws_by_hand_and_the_share_of_dropped_reports():
    drawn = draw_base(draws(400), (1, 1, 1, 1), 0.1)
    assert 20 <= int(drawn.dropped_B.sum()) <= 62  # 40 expected, 6 the deviation
    assert float(drawn.times_B.min()) >= 0
    assert float(drawn.times_B.max()) < 1
    assert abs(float(drawn.times_B.mean()) - 0.5) < 0.06
    assert not draw_base(draws(20), (1,), 0.0).dropped_B.any()


def test_a_dropped_report_trains_the_null_text_and_no_other_does():
    for dropout, trained in ((1.0, True), (0.0, False)):
        model = build.base(config=MedSynConfig(report_dropout=dropout))
        model.loss(model.encode(build.chests(1)), draws(1)).sum().backward()
        grad = model.unet.null_text.grad
        assert (grad is not None and float(grad.abs().sum()) > 0) is trained


def test_fifty_steps_are_fifty_one_calls_and_the_fast_solver_fewer():
    for solver, steps, calls in (("ddim", 50, 51), ("dpmpp-2m", 5, 5)):
        model = build.base(defaults=replace(build.DEFAULTS, solver=solver, steps=steps))
        rows = count_calls(model)
        model.sample([REQUEST])
        assert rows == [1] * calls


def test_guidance_runs_both_texts_in_one_call_and_scale_one_is_none():
    model = build.base()
    rows = count_calls(model)
    unguided = model.sample([REQUEST])
    guided = model.sample([replace(REQUEST, guidance=3.0)])
    assert rows == [1, 1, 1, 2, 2, 2]
    assert not torch.allclose(unguided, guided)
    rows.clear()
    model.sample([replace(REQUEST, prompt="", guidance=3.0)])  # nothing to guide
    assert rows == [1, 1, 1]


def test_guidance_is_on_the_clean_prediction():
    model = build.base()
    x, null, told = torch.randn(1, 4, 8, 8, 8), model._text([""]), model._text(["No effusion."])
    with model.inference():
        blank, text = model._clean(x, 0.5, null, None, 1), model._clean(x, 0.5, told, None, 1)
        torch.testing.assert_close(
            model._clean(x, 0.5, told, null, 3.0), blank + 3 * (text - blank), rtol=1e-4, atol=1e-5
        )


def test_noise_comes_from_the_requests_seed():
    model = build.base()
    first = model.sample([REQUEST, replace(REQUEST, key="b", seed=6)])
    assert not torch.allclose(first[0], first[1])
    torch.testing.assert_close(model.sample([REQUEST])[0], first[0], rtol=1e-4, atol=1e-4)
    assert first.abs().max() <= 1


@pytest.mark.parametrize("names", [["lobe"], ["airway", "vessel"], ["lobe", "airway", "vessel"], ["ct"]])
def test_given_channels_come_out_exactly_and_change_the_others(names):
    model, sample = build.base(), build.chest()
    known = model.known_from(sample, names)
    free, fixed = model.sample([REQUEST]), model.sample([REQUEST], [known])
    order = ("ct", "lobe", "airway", "vessel")
    for number, name in enumerate(order):
        if name in names:
            assert torch.equal(fixed[0, number], known[name])
        else:
            assert not torch.allclose(fixed[0, number], free[0, number])
    masks = model.masks(fixed)[0]
    for name in set(names) - {"ct"}:
        np.testing.assert_array_equal(masks[name], sample.masks[name][::2, ::2, ::2])


def test_the_ct_becomes_the_mean_of_draws_and_masks_stay_as_the_solver_left_them():
    plain = build.base()
    model = build.base(defaults=replace(build.DEFAULTS, ct_draws=3, ct_draws_time=0.25))
    rows = count_calls(model)
    ends, means = plain.sample([REQUEST]), model.sample([REQUEST])
    assert rows == [1] * 6
    assert torch.equal(means[:, 1:], ends[:, 1:])
    assert not torch.allclose(means[:, 0], ends[:, 0])
    given = model.known_from(build.chest(), ["ct"])
    rows.clear()
    assert torch.equal(model.sample([REQUEST], [given])[0, 0], given["ct"])
    assert rows == [1] * 3  # nothing is drawn of a CT that is given


def test_given_channels_of_one_request_leave_the_others_alone():
    model = build.base()
    known = model.known_from(build.chest(), ["lobe"])
    both = model.sample([REQUEST, REQUEST], [known, None])
    torch.testing.assert_close(both[1], model.sample([REQUEST])[0], rtol=1e-4, atol=1e-4)


def test_segmentation_fixes_the_ct_with_and_without_the_report():
    model = build.base()
    told, blind = (model.segment(build.chests(1), seed=3, with_report=report) for report in (True, False))
    assert set(told[0]) == {"lobe", "airway", "vessel"}
    assert told[0]["lobe"].shape == (8, 8, 8)
    assert told[0]["lobe"].max() <= 5
    assert any(not np.array_equal(told[0][name], blind[0][name]) for name in told[0])


def test_decoded_volumes_are_ct_in_hu_with_spacing():
    model = build.base()
    [volume] = model.decode(model.sample([REQUEST]))
    assert volume.array_CDHW.shape == (1, 8, 8, 8)
    assert volume.spacing_mm == pytest.approx((40, 44, 44))
    assert -1024 <= volume.array_CDHW.min() <= volume.array_CDHW.max() <= 600
    with pytest.raises(ModelError, match="NaN or infinite: the training run diverged"):
        model.decode(torch.full((1, 4, 8, 8, 8), float("nan")))


def test_a_few_steps_lower_the_loss():
    model = build.base(config=MedSynConfig(report_dropout=0.0))
    rows = model.encode(build.chests(2))
    (group,) = model.trainable()
    optimizer = torch.optim.AdamW(group.parameters, lr=3e-3)
    losses = []
    for _ in range(15):
        loss = model.loss(rows, draws(2)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_what_does_not_fit_is_refused():
    model = build.base()
    with pytest.raises(InputError, match="sample chest-0: it has no report"):
        model.encode([replace(build.chest(), caption=" ")])
    with pytest.raises(InputError, match="requests of one batch must share steps and guidance"):
        model.sample([REQUEST, replace(REQUEST, steps=9)])
    with pytest.raises(InputError, match="request a: height 512 is not the model's 8"):
        model.sample([replace(REQUEST, height=512)])
    with pytest.raises(InputError, match="request a: a CT model reads one report"):
        model.sample([replace(REQUEST, terms=(("effusion", 0.5), ("nodule", 0.5)))])
    with pytest.raises(InputError, match="known has 2 rows for 1 requests"):
        model.sample([REQUEST], [None, None])
    with pytest.raises(InputError, match="channel 'lung' is unknown"):
        model.known_from(build.chest(), ["lung"])
    parts = (build.encoder(), build.tokenizer())
    with pytest.raises(ModelError, match="this is a super-resolution network"):
        MedSynBase(build_unet(SUPERRES_TINY), *parts, build.GRID)
    with pytest.raises(ModelError, match="reads vectors of width 24, the report encoder makes 16"):
        MedSynBase(build_unet(replace(BASE_TINY, text_width=24)), *parts, build.GRID)
    with pytest.raises(ModelError, match="height and width of the grid must divide by 2"):
        MedSynBase(build_unet(BASE_TINY), *parts, replace(build.GRID, shape=(8, 7, 8)))
    with pytest.raises(ModelError, match="reads 64 tokens, the report encoder's window has 48"):
        MedSynBase(build_unet(UNetConfig(**{**vars(BASE_TINY), "text_tokens": 64})), *parts, build.GRID)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match=r"report_dropout must lie in \[0, 1\], got 2"):
        MedSynConfig(report_dropout=2)
    with pytest.raises(ConfigError, match="short_reports must be one of pad, stretch, got 'drop'"):
        MedSynConfig(short_reports="drop")
    with pytest.raises(ConfigError, match="long_reports must be one of pool, cut, got 'drop'"):
        MedSynConfig(long_reports="drop")
    with pytest.raises(ConfigError, match=r"^steps must be at least 1, got 0"):
        MedSynDefaults(steps=0)
    with pytest.raises(ConfigError, match=r"^segment_draws must be at least 1, got 0"):
        MedSynDefaults(segment_draws=0)
    assert MedSynDefaults(segment_steps=None).segment_steps is None
    with pytest.raises(ConfigError, match="ct_draws must be 0 or more, got -1"):
        MedSynDefaults(ct_draws=-1)
    with pytest.raises(ConfigError, match="ct_draws_time must lie between 0 and 1, got 0"):
        MedSynDefaults(ct_draws_time=0)
    with pytest.raises(ConfigError, match="guidance must be 0 or more, got -1"):
        MedSynDefaults(guidance=-1)
    with pytest.raises(ConfigError, match=r"tile \(16, 8, 8\) must be larger than the overlap 8"):
        MedSynDefaults(tile=(16, 8, 8), overlap=8)
