"""MedSyn's networks: their size, their published names, and what reaches what."""

from dataclasses import replace

import pytest
import torch

from medisyn.errors import ConfigError, InputError, ModelError
from medisyn.families.medsyn.blocks import SliceAttention, TextAttention, TimeEmbedding
from medisyn.families.medsyn.config import BASE_PAPER, BASE_TINY, SUPERRES_PAPER, SUPERRES_TINY, UNetConfig
from medisyn.families.medsyn.networks import (
    build_unet,
    count_parameters,
    infer_config,
    load_published,
    published_names,
    to_published,
)


def base_input(batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "noisy_BCDHW": torch.randn(batch, 4, 6, 8, 8, generator=generator),
        "times_B": torch.linspace(0.2, 0.8, batch),
        "text_BTE": torch.randn(batch, 12, 16, generator=generator),
    }


def superres_input() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "noisy_BCDHW": torch.randn(1, 4, 6, 8, 8, generator=generator),
        "times_B": torch.tensor([0.5]),
        "condition_BCDHW": torch.randn(1, 4, 6, 8, 8, generator=generator),
    }


def test_the_papers_networks_have_the_published_number_of_weights():
    assert count_parameters(BASE_PAPER) == 716_215_684
    assert count_parameters(SUPERRES_PAPER) == 54_307_908


@pytest.mark.parametrize(
    ("config", "inputs"),
    [(BASE_TINY, base_input()), (SUPERRES_TINY, superres_input()), (replace(BASE_TINY, patch=2), base_input())],
    ids=["base", "superres", "patches"],
)
def test_every_weight_gets_a_gradient(config, inputs):
    network = build_unet(config)
    if config.text_width:
        inputs = {**inputs, "text_BTE": inputs["text_BTE"] + network.null_text}
    output = network(**inputs)
    assert output.shape == inputs["noisy_BCDHW"].shape
    output.square().mean().backward()
    # a bias or scale that group normalisation removes gets none beyond rounding: there is no such one here
    dead = [n for n, p in network.named_parameters() if p.grad is None or not (p.grad.abs().sum() > 0)]
    assert dead == []


def test_a_network_of_patches_begins_as_the_coarser_one():
    coarse, fine, inputs = build_unet(BASE_TINY), build_unet(replace(BASE_TINY, patch=2), seed=1), base_input()
    fine.begin_with_coarser(coarse)
    first_voxels = coarse(**{**inputs, "noisy_BCDHW": inputs["noisy_BCDHW"][..., ::2, ::2, ::2]})
    torch.testing.assert_close(
        fine(**inputs), first_voxels.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    )
    with pytest.raises(ModelError, match="other sizes"):
        fine.begin_with_coarser(build_unet(replace(BASE_TINY, width=16)))


def test_each_value_of_the_head_is_one_voxel_of_the_patch():
    network = build_unet(replace(BASE_TINY, patch=2))
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.arange(32.0))
        network.detail_head.weight.zero_()
        network.detail_head.bias.zero_()
    out_BCDHW = network(**base_input())
    for channel, i, j, k in ((0, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (2, 1, 0, 1), (3, 1, 1, 1)):
        assert (out_BCDHW[:, channel, i::2, j::2, k::2] == 8 * channel + 4 * i + 2 * j + k).all()


def test_text_time_and_slices_reach_the_output():
    network, inputs = build_unet(BASE_TINY), base_input()
    first = network(**inputs)
    other_text = {**inputs, "text_BTE": inputs["text_BTE"].flip(0)}
    other_time = {**inputs, "times_B": inputs["times_B"].flip(0)}
    assert not torch.allclose(network(**other_text), first)
    assert not torch.allclose(network(**other_time), first)


def test_pooled_text_reaches_every_level_and_only_where_asked():
    """With the cross-attention at zero, the text acts through the time alone; without the option, not at all."""
    inputs = base_input()
    told = {**inputs, "text_BTE": inputs["text_BTE"] + torch.randn(1, 1, inputs["text_BTE"].shape[-1])}
    for pooled in (True, False):
        network = build_unet(replace(BASE_TINY, pooled_text=pooled))
        for block in network.middle:
            torch.nn.init.zeros_(block.text_attention.to_out.weight)
        assert torch.equal(network(**inputs), network(**told)) is not pooled
    network = build_unet(replace(BASE_TINY, pooled_text=True))
    reports = 3 + 2 * torch.randn(50, *inputs["text_BTE"].shape[1:])
    network.begin_with_reports(reports)
    pooled = (reports.mean(dim=1) - network.text_mean) / network.text_sd
    torch.testing.assert_close(pooled.std(dim=0), torch.ones(pooled.shape[1]))
    torch.testing.assert_close(network.null_text[0].mean(dim=0), network.text_mean)
    with pytest.raises(ConfigError, match="pooled_text needs a text"):
        replace(SUPERRES_TINY, pooled_text=True)


def test_a_row_does_not_depend_on_its_batch():
    network, inputs = build_unet(BASE_TINY), base_input()
    both, alone = network(**inputs), network(**{name: tensor[:1] for name, tensor in inputs.items()})
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)


def test_the_two_orders_share_weights_and_differ():
    network, inputs = build_unet(BASE_TINY), base_input()
    late = network(**inputs)
    network.use_up_order("mid")
    mid = network(**inputs)
    assert network.config["up_order"] == "mid"
    assert late.shape == mid.shape
    assert not torch.allclose(late, mid)
    other = build_unet(replace(BASE_TINY, up_order="mid"))
    assert torch.equal(other(**inputs), mid)


def test_time_embedding_by_hand():
    # width 4: frequencies 1 and 1/10000; sines first, then cosines
    got = TimeEmbedding(4)(torch.tensor([2.0]))[0]
    expected = torch.tensor([2.0, 0.0002]).double()
    torch.testing.assert_close(got.double(), torch.cat([expected.sin(), expected.cos()]), rtol=1e-5, atol=1e-7)


def test_slices_do_not_read_each_other_in_self_attention():
    attention = SliceAttention(8, heads=2, head_width=4)
    x_BDSC = torch.randn(1, 3, 5, 8)
    changed = x_BDSC.clone()
    changed[:, 2] += 1
    assert torch.equal(attention(x_BDSC)[:, :2], attention(changed)[:, :2])


def test_text_attention_is_that_of_each_slice_on_its_own():
    attention = TextAttention(8, 6, heads=2, head_width=4)
    x_BDSC, text_BTE = torch.randn(2, 3, 5, 8), torch.randn(2, 7, 6)
    together = attention(x_BDSC, text_BTE)
    for number in range(3):
        torch.testing.assert_close(
            attention(x_BDSC[:, number : number + 1], text_BTE), together[:, number : number + 1]
        )


# ---- published names


def test_the_base_models_names_are_the_published_ones():
    names = set(to_published(build_unet(replace(BASE_TINY, middle_blocks=4))))
    expected = [
        "init_conv.weight",
        "time_mlp.1.weight",
        "time_mlp.3.bias",
        "null_cond_emb",
        "downs.0.0.mlp.1.weight",
        "downs.0.0.block1.proj.weight",
        "downs.0.1.block2.norm.bias",
        "downs.1.0.res_conv.weight",
        "downs.0.2.block1.proj.weight",
        "downs.0.3.weight",
        "mid_block1.mlp.1.bias",
        "mid_spatial_attn1.fn.norm.gamma",
        "mid_spatial_attn4.fn.fn.fn.to_qkv.weight",
        "mid_spatial_attn2.fn.fn.fn.to_out.weight",
        "mid_cross_attn3.fn.norm.gamma",
        "mid_cross_attn3.fn.fn.to_q.weight",
        "mid_cross_attn3.fn.fn.to_kv.weight",
        "mid_cross_attn3.fn.fn.to_out.bias",
        "mid_temporal_attn2.block1.proj.weight",
        "mid_block2.block2.proj.bias",
        "ups.0.0.res_conv.weight",
        "ups.0.1.block1.norm.weight",
        "ups.0.2.mlp.1.weight",
        "ups.0.3.weight",
        "final_conv.0.block1.proj.weight",
        "final_conv.0.res_conv.weight",
        "final_conv.1.bias",
    ]
    assert set(expected) <= names
    assert not any(name.startswith(("downs.1.3", "ups.1.3")) for name in names)  # the last level keeps its size
    assert not any("mid_spatial_attn5" in name or "final_conv.0.mlp" in name for name in names)


def test_the_super_resolution_models_names_are_the_published_ones():
    names = set(to_published(build_unet(SUPERRES_TINY)))
    expected = [
        "init_conv0.weight",
        "downs.0.4.block1.proj.weight",
        "downs.0.5.weight",
        "mid_spatial_attn.fn.norm.gamma",
        "mid_spatial_attn.fn.fn.fn.to_qkv.weight",
        "mid_temporal_conv.block2.norm.weight",
        "ups.0.4.mlp.1.weight",
        "ups.0.5.bias",
        "final_conv0.0.block2.proj.weight",
        "final_conv0.1.weight",
    ]
    assert set(expected) <= names
    assert not any(re in name for name in names for re in ("cross", "null", "downs.0.2", "downs.0.3"))


@pytest.mark.parametrize("config", [BASE_TINY, SUPERRES_TINY], ids=["base", "superres"])
def test_published_names_round_trip_through_an_inferred_size(config):
    network = build_unet(config, seed=3)
    published = to_published(network)
    inferred = infer_config(published, head_width=config.head_width)
    assert inferred == replace(config, norm_groups=8)  # groups leave no trace in the shapes; all published ones are 8
    again = build_unet(config, seed=4)
    assert load_published(again, {**published, "betas": torch.ones(3)}) == ["betas"]
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_shapes_of_the_published_paper_model_are_inferred_too():
    with torch.device("meta"):
        network = build_unet(BASE_PAPER)
    assert infer_config(to_published(network)) == BASE_PAPER
    assert len(published_names(network)["self_attention.to_qkv.weight"]) == 4


def test_one_of_the_shared_attentions_names_is_enough_and_unequal_copies_are_refused():
    published = to_published(build_unet(BASE_TINY, seed=3))
    kept = {n: w for n, w in published.items() if not n.startswith("mid_spatial_attn1.fn.fn")}
    network = build_unet(BASE_TINY)
    load_published(network, kept)
    assert torch.equal(network.self_attention.to_qkv.weight, published["mid_spatial_attn1.fn.fn.fn.to_qkv.weight"])
    published["mid_spatial_attn2.fn.fn.fn.to_qkv.weight"] = torch.zeros(24, 16)
    with pytest.raises(ModelError, match=r"mid_spatial_attn1.fn.fn.fn.to_qkv.weight and its copies .* differ"):
        load_published(network, published)


def test_missing_and_misshapen_weights_are_refused():
    published, network = to_published(build_unet(BASE_TINY)), build_unet(BASE_TINY)
    lacking = {name: weight for name, weight in published.items() if not name.startswith("ups.1.0")}
    with pytest.raises(ModelError, match=r"lacks 12 weights .*ups.1.0.mlp.1.weight"):
        load_published(network, lacking)
    with pytest.raises(ModelError, match=r"final_conv.1.bias has shape \(5,\), the network needs \(4,\)"):
        load_published(network, {**published, "final_conv.1.bias": torch.zeros(5)})
    with pytest.raises(ModelError, match="no state dict of a MedSyn network"):
        infer_config({"something.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match="lacks downs"):
        infer_config({n: w for n, w in published.items() if n != "downs.1.1.block2.proj.weight"})


def test_inputs_that_do_not_fit_are_refused():
    network, inputs = build_unet(BASE_TINY), base_input()
    with pytest.raises(InputError, match=r"\(B, 4, D, H, W\) with H and W multiples of 2"):
        network(**{**inputs, "noisy_BCDHW": torch.zeros(2, 4, 6, 7, 8)})
    with pytest.raises(InputError, match=r"multiples of 4 and D of 2, got \(2, 4, 5, 8, 8\)"):
        build_unet(replace(BASE_TINY, patch=2))(**{**inputs, "noisy_BCDHW": torch.zeros(2, 4, 5, 8, 8)})
    with pytest.raises(InputError, match="this network takes a text and no condition"):
        network(**{**inputs, "text_BTE": None})
    with pytest.raises(InputError, match="this network takes a condition and no text"):
        build_unet(SUPERRES_TINY)(**inputs)


def test_sizes_that_cannot_be_built_are_refused():
    with pytest.raises(ConfigError, match="up_order must be one of late, mid, got 'early'"):
        UNetConfig(width=8, up_order="early")
    with pytest.raises(ConfigError, match="patch must be 1 or more, got 0"):
        UNetConfig(width=8, patch=0)
    with pytest.raises(ConfigError, match="width must divide by norm_groups 8, got 12"):
        UNetConfig(width=12)
    with pytest.raises(ConfigError, match="both 0 or both above 0, got 16 and 0"):
        UNetConfig(width=8, text_width=16)
