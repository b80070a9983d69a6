"""HiGen's network: its size, what a picture and a clip go through, what each condition does, and what is refused."""

import re
from dataclasses import asdict, replace

import pytest
import torch

from medisyn.errors import ConfigError, InputError
from medisyn.families.higen.config import UNET_PAPER, UNET_TINY, ClipGrid, UNetConfig
from medisyn.families.higen.networks import (
    HiGenUNet,
    build_unet,
    check_frames,
    count_parameters,
    motion_per_frame,
    resample_rows,
)
from medisyn.families.higen.published import LAYER, TRANSFORMER, renamed
from medisyn.families.higen.spatial_start import name_in_diffusers

FRAMES = 8


def filled(config: UNetConfig = UNET_TINY, *, but: str = "-", seed: int = 0) -> HiGenUNet:
    """A network without a weight that is 0, except where the name holds `but`; in eval mode."""
    network, generator = build_unet(config, seed=seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if but not in name and not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def inputs(batch: int = 2, frames: int = FRAMES) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "noisy_BCTHW": torch.randn(batch, 4, frames, 8, 8, generator=generator),
        "times_B": torch.linspace(20, 900, batch),
        "text_BNE": torch.randn(batch, 11, 16, generator=generator),
        "prior_BCHW": torch.randn(batch, 4, 8, 8, generator=generator),
        "motion_BT": 500 * torch.rand(batch, frames - 1, generator=generator),
        "appearance_BTT": torch.rand(batch, frames, frames, generator=generator),
    }


def plain(batch: int = 2, frames: int = FRAMES) -> dict[str, torch.Tensor]:
    return {name: value for name, value in inputs(batch, frames).items() if name[:5] in ("noisy", "times", "text_")}


# ---- size


def test_the_papers_network_block_by_block():
    """The published number of weights is not known. It is the sum of three: Stable Diffusion 2's U-Net, the blocks
    through time, and HiGen's conditions, the first two of which diffusers counts independently."""
    from diffusers import UNet2DConditionModel, UNet3DConditionModel

    with torch.device("meta"):
        image = UNet2DConditionModel(
            cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        )
        video = UNet3DConditionModel(cross_attention_dim=1024, attention_head_dim=64)

    # One block through time at C channels with I inside: norm 2C, in CI + I, out IC + C; two attentions of 4 I^2 + I,
    # three norms 2I, feed-forward I * 8I + 8I and 4I * I + I. At I = C: 22 C^2 + 21 C. A convolution block: four
    # times a norm of 2C and a convolution of 3 C^2 + C, so 12 C^2 + 12 C.
    def attention(c: int, i: int) -> int:
        return 2 * c + c * i + i + i * c + c + 2 * (4 * i * i + i) + 3 * 2 * i + 8 * i * i + 8 * i + 4 * i * i + i

    assert attention(320, 320) == 22 * 320**2 + 21 * 320
    blocks = [320] * 5 + [640] * 5 + [1280] * 5  # two down and three up of each size with attention
    temporal = attention(320, 8 * 64) + sum(attention(c, c) for c in [*blocks, 1280])  # the stem, and the middle
    temporal += sum(12 * c * c + 12 * c for c in [*blocks, *[1280] * 5, *[1280] * 2])  # also without attention
    assert temporal == 545_323_136
    assert count(image) + temporal == count(video) == 1_411_233_860

    mlp = 1280 * 1280 + 1280  # the second layer of each
    conditions = {
        "prior_conv": 4 * 320 * 9 + 320,
        "motion_mlp": 320 * 1280 + 1280 + mlp,
        "appearance_mlp": 32 * 1280 + 1280 + mlp,
        "resampler": 16 * 1280  # tokens, in, out, and twice: two attentions, a feed-forward, three norms
        + (1024 * 1280 + 1280)
        + (1280 * 1024 + 1024)
        + 2 * (2 * (4 * 1280**2 + 1280) + (1280 * 10240 + 10240) + (5120 * 1280 + 1280) + 3 * 2560),
    }
    with torch.device("meta"):
        network = HiGenUNet(**asdict(UNET_PAPER))
    assert {name: count(network.get_submodule(name)) for name in conditions} == conditions
    assert sum(p.numel() for _, p in network.temporal_parameters()) == temporal
    assert count_parameters(UNET_PAPER) == 1_411_233_860 + sum(conditions.values()) == 1_483_201_924


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_seed_makes_the_same_network():
    first, again, other = (build_unet(UNET_TINY, seed=seed).stem.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# ---- pictures and clips


@pytest.mark.parametrize("frames", [2, 5, FRAMES])
def test_a_fresh_clip_is_as_many_pictures(frames):
    """Blocks through time add nothing at the start: T frames are T pictures, whatever T is."""
    network, given = filled(but="temporal"), plain(frames=frames)
    with torch.no_grad():
        clip = network(**given)
        noisy = given["noisy_BCTHW"]
        pictures = [network(**{**given, "noisy_BCTHW": noisy[:, :, t : t + 1]}) for t in range(frames)]
    # the conditions of a clip without motion and drift are those of a picture; rounding differs with the batch
    torch.testing.assert_close(clip, torch.cat(pictures, dim=2), rtol=1e-4, atol=1e-5)
    assert clip.std() > 0.01


def test_blocks_through_time_do_not_touch_a_picture():
    network, given = filled(), plain(frames=1)
    with torch.no_grad():
        before, clip = network(**given), network(**plain())
        for _, parameter in network.temporal_parameters():
            parameter.mul_(-3)
        assert torch.equal(network(**given), before)
        assert not torch.allclose(network(**plain()), clip)


def test_a_trained_clip_reads_its_other_frames():
    network, given = filled(), plain()
    changed = {**given, "noisy_BCTHW": given["noisy_BCTHW"].clone()}
    changed["noisy_BCTHW"][:, :, -1] += 1
    with torch.no_grad():
        assert not torch.allclose(network(**given)[:, :, 0], network(**changed)[:, :, 0], atol=1e-5)


def test_a_clip_is_what_an_independent_implementation_makes_of_it():
    """diffusers' UNet3DConditionModel has the same blocks in the same order; HiGen's conditions add nothing."""
    from diffusers import UNet3DConditionModel

    torch.manual_seed(0)
    oracle = UNet3DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()
    with torch.no_grad():
        for parameter in oracle.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    network = build_unet(replace(UNET_TINY, stem_heads=8)).eval()  # diffusers has 8 there
    theirs, own = oracle.state_dict(), network.state_dict()
    names = {ours: name for ours in own if (name := name_in_diffusers(ours) or temporal_name(ours))}
    assert set(names.values()) == set(theirs)
    network.load_state_dict({o: theirs[t].reshape(own[o].shape) for o, t in names.items()}, strict=False)

    given = plain(frames=5)
    with torch.no_grad():
        text = network.resampler(given["text_BNE"])
        wanted = oracle(given["noisy_BCTHW"], given["times_B"], text).sample
        torch.testing.assert_close(network(**given), wanted, rtol=1e-4, atol=1e-5)
    assert wanted.std() > 0.01


def temporal_name(ours: str) -> str | None:
    """diffusers' name of a weight of a block through time."""
    if ours.startswith("stem_temporal."):
        return "transformer_in." + renamed(ours.removeprefix("stem_temporal."), TRANSFORMER, LAYER)
    found = re.match(r"(downs|ups|middle)\.(?:(\d)\.blocks\.)?(\d)\.(temporal_conv|temporal)\.(.*)", ours)
    if found is None:
        return None
    side, level, number, kind, rest = found.groups()
    place = {"downs": f"down_blocks.{level}", "ups": f"up_blocks.{level}", "middle": "mid_block"}[side]
    if kind == "temporal":
        return f"{place}.temp_attentions.{number}.{renamed(rest, TRANSFORMER, LAYER)}"
    part, step, last = rest.split(".")
    position = 0 if part == "norms" else 2 if step == "0" else 3
    return f"{place}.temp_convs.{number}.conv{int(step) + 1}.{position}.{last}"


# ---- gradients


def test_every_weight_gets_a_gradient():
    network = filled()
    network(**inputs()).square().mean().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_a_picture_leaves_gradients_of_zero_in_the_blocks_through_time():
    """Not None: worker processes of which some train on pictures exchange the gradients of all weights."""
    network = filled()
    network(**plain(frames=1)).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    temporal = dict(network.temporal_parameters())
    assert len(temporal) > 100
    assert not any(p.grad.any() for p in temporal.values())
    dead = [name for name, p in network.named_parameters() if name not in temporal and not p.grad.any()]
    assert dead == ["prior_conv.weight"]  # it reads zeros: a picture has no prior
    for parameter in temporal.values():
        parameter.requires_grad_(False)
    assert network(**plain(frames=1)).requires_grad


def test_gradient_checkpointing_changes_nothing():
    results = []
    for saving in (False, True):
        network = filled().train()
        if saving:
            network.enable_gradient_checkpointing()
        torch.manual_seed(3)  # dropout
        output = network(**inputs())
        output.square().mean().backward()
        results.append((output.detach(), network.downs[0].blocks[0].temporal.enter.weight.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert network.is_gradient_checkpointing


# ---- conditions


def test_each_condition_reaches_the_output_and_none_does_at_the_start():
    network, given = filled(), inputs()
    fresh = filled(but="_mlp.2")  # the time's own second layer is not 0 at the start
    with torch.no_grad():
        fresh.prior_conv.weight.zero_(), fresh.prior_conv.bias.zero_()
        told, untold = network(**given), fresh(**given)
        for name in ("prior_BCHW", "motion_BT", "appearance_BTT"):
            changed = {**given, name: given[name].flip(0)}
            assert not torch.allclose(network(**changed), told, atol=1e-6), name
            torch.testing.assert_close(fresh(**changed), untold, rtol=0, atol=0)
        for name in ("times_B", "text_BNE"):
            assert not torch.allclose(network(**{**given, name: given[name].flip(0)}), told, atol=1e-6), name


def test_what_is_left_out_is_told_as_of_a_picture():
    network, given = filled(), plain()
    explicit = {
        "prior_BCHW": torch.zeros(2, 4, 8, 8),
        "motion_BT": torch.zeros(2, FRAMES - 1),
        "appearance_BTT": torch.ones(2, FRAMES, FRAMES),
    }
    with torch.no_grad():
        assert torch.equal(network(**given), network(**given, **explicit))
        picture = plain(frames=1)
        told = {"motion_BT": torch.zeros(2, 0), "appearance_BTT": torch.ones(2, 1, 1)}
        assert torch.equal(network(**picture), network(**picture, **told))


def test_each_frame_is_told_its_own_row_and_gap():
    """With blocks through time at rest, a changed row of the matrix or a changed gap moves its own frames only."""
    network, given = filled(but="temporal"), inputs()
    row, gap = given["appearance_BTT"].clone(), given["motion_BT"].clone()
    row[:, 2] = 0.5
    gap[:, 4] = 900  # between frames 4 and 5
    with torch.no_grad():
        before = network(**given)
        for name, value, wanted in (("appearance_BTT", row, [2]), ("motion_BT", gap, [4, 5])):
            moved = (network(**{**given, name: value}) - before).abs().amax(dim=(0, 1, 3, 4)) > 1e-5
            assert moved.nonzero().flatten().tolist() == wanted


def test_motion_between_gaps_by_hand():
    # two gaps for three frames: frame 0 takes gap 0, frame 2 gap 1, frame 1 their mean, of the sinusoids
    got = motion_per_frame(torch.tensor([[100.0, 300.0]]), 8)[0]
    from medisyn.families.higen.blocks import sinusoids

    low, high = sinusoids(torch.tensor([100.0, 300.0]), 8)
    torch.testing.assert_close(got, torch.stack([low, (low + high) / 2, high]))
    assert motion_per_frame(torch.zeros(2, 0), 8).tolist() == [[[1.0] * 4 + [0.0] * 4]] * 2


def test_rows_of_the_appearance_matrix_by_hand():
    row = torch.tensor([[[1.0, 0.5, 0.2]]])
    torch.testing.assert_close(resample_rows(row, 5), torch.tensor([[[1.0, 0.75, 0.5, 0.35, 0.2]]]))
    published = torch.rand(1, 32, 32)
    assert resample_rows(published, 32) is published
    assert resample_rows(torch.ones(2, 1, 1), 32).tolist() == [[[1.0] * 32]] * 2


@pytest.mark.parametrize("frames", [11, 16, 63])
def test_clips_of_any_length_are_told_the_same_drift(frames):
    """The first and last frame's row of the published matrix is a straight line, at any number of frames."""
    from medisyn.families.higen.appearance import appearance_matrix

    rows = resample_rows(torch.from_numpy(appearance_matrix(0.7, frames))[None], 32)[0]
    told = torch.from_numpy(appearance_matrix(0.7, 32))
    torch.testing.assert_close(rows[0], told[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(rows[-1], told[-1], rtol=0, atol=1e-5)


# ---- files and types


def test_a_saved_network_opens_again(tmp_path):
    network, given = filled(), inputs(batch=1)
    network.save_pretrained(tmp_path)
    again = HiGenUNet.from_pretrained(tmp_path).eval()
    assert again.config["multipliers"] == [1, 2]
    with torch.no_grad():
        assert torch.equal(again(**given), network(**given))


def test_bfloat16_is_close():
    network, given = filled(), inputs(batch=1)
    noisy, times = given.pop("noisy_BCTHW"), given.pop("times_B")
    with torch.no_grad():
        full = network(noisy, times, **given)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(noisy, times, **given)
        half = network.to(torch.bfloat16)(noisy.bfloat16(), times, **given)
    assert half.dtype == torch.bfloat16
    for low in (mixed, half):
        assert (low.float() - full).abs().max() < 0.05 * full.abs().max()


# ---- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noisy_BCTHW": torch.zeros(2, 3, FRAMES, 8, 8)}, r"takes \(B, 4, T, H, W\) with H and W multiples of 2, got"),
        ({"noisy_BCTHW": torch.zeros(2, 4, FRAMES, 7, 8)}, r"multiples of 2, got \(2, 4, 8, 7, 8\)"),
        ({"noisy_BCTHW": torch.zeros(2, 4, 8, 8)}, r"got \(2, 4, 8, 8\)"),
        ({"times_B": torch.zeros(3)}, r"times must have shape \(2,\) for these latents, got \(3,\)"),
        ({"text_BNE": torch.zeros(2, 11, 15)}, r"the text must be \(B, N, 16\), got \(2, 11, 15\)"),
        ({"text_BNE": torch.zeros(1, 11, 16)}, r"the text must have shape \(2,\)"),
        ({"prior_BCHW": torch.zeros(2, 4, 4, 4)}, r"the prior must have shape \(2, 4, 8, 8\)"),
        ({"motion_BT": torch.zeros(2, FRAMES)}, r"the motion must have shape \(2, 7\)"),
        ({"appearance_BTT": torch.ones(2, FRAMES, 32)}, r"the appearance must have shape \(2, 8, 8\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        build_unet(UNET_TINY)(**{**inputs(), **change})


def test_weights_that_know_one_length_refuse_others():
    network = filled(replace(UNET_TINY, frames=FRAMES))
    with torch.no_grad():
        assert network(**plain()).shape[2] == FRAMES
        assert network(**plain(frames=1)).shape[2] == 1
        with pytest.raises(InputError, match="trained on clips of 8 frames and on pictures, got 5 frames"):
            network(**plain(frames=5))
    check_frames(5, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multipliers": ()}, "multipliers and blocks of at least 1"),
        ({"blocks": 0}, "multipliers and blocks of at least 1"),
        ({"attention_levels": (0, 4)}, r"attention_levels must name levels from 0 to 3, got \(0, 4\)"),
        ({"head_width": 60}, "width 320 times each multiplier must divide by head_width 60"),
        ({"norm_groups": 48}, "width must divide by norm_groups 48, got 320"),
        ({"text_heads": 7}, "four times it must divide by text_heads 7"),
        ({"appearance_points": 1}, "appearance_points must be at least 2"),
        ({"dropout": 1.0}, r"dropout lie in \[0, 1\)"),
        ({"frames": 1}, r"frames must be None \(any\) or at least 2, got 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(UNET_PAPER, **change)


def test_clips_that_are_none_are_refused():
    assert (ClipGrid().frames, ClipGrid().height, ClipGrid().width) == (32, 256, 448)
    assert (UNET_PAPER.factor, UNET_TINY.factor) == (8, 2)
    with pytest.raises(ConfigError, match="at least 2 frames and 1 pixel, got 1 frames of 256 x 448"):
        ClipGrid(frames=1)
    with pytest.raises(ConfigError, match="frames_per_second must be above 0, got 0"):
        ClipGrid(frames_per_second=0)


def test_pooled_text_starts_by_adding_nothing_and_then_counts():
    told = inputs()
    plain_network, pooled = filled(), filled(replace(UNET_TINY, pooled_text=True), but="text_mlp")
    pooled.load_state_dict(plain_network.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(pooled(**told), plain_network(**told))
        torch.nn.init.normal_(pooled.text_mlp[-1].weight)
        assert not torch.allclose(pooled(**told), plain_network(**told))
        turned = {**told, "text_BNE": told["text_BNE"].flip(1)}  # the same mean
        embedded = [
            pooled._embed(one["times_B"], one["text_BNE"], FRAMES, None, None, torch.float32) for one in (told, turned)
        ]
    torch.testing.assert_close(*embedded)
