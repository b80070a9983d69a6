"""Published MedSyn checkpoints: randomly initialised state dicts in the published layout, read back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import build_medsyn as build
from medisyn.errors import InputError, ModelError
from medisyn.families.medsyn.cascade import MedSyn
from medisyn.families.medsyn.config import MedSynConfig, UNetConfig
from medisyn.families.medsyn.networks import build_unet, to_published
from medisyn.recipes.medsyn_convert import (
    compare_up_orders,
    convert_medsyn,
    encoder_config,
    find_file,
    read_state,
    without_prefix,
)
from medisyn.types import Request

BASE = UNetConfig(
    width=8, multipliers=(1, 2), heads=2, head_width=4, text_width=64, text_tokens=12, middle_blocks=4, norm_groups=8
)
SUPERRES = UNetConfig(width=8, multipliers=(1, 2), heads=2, head_width=4, norm_groups=8)
OPTIONS = {"head_width": 4, "grid": replace(build.GRID, axes="SAL"), "superres_config": build.SUPERRES}
REQUEST = Request(key="a", prompt="Findings: No effusion.", seed=1, steps=1)


def encoder():
    from medisyn.families.medsyn.report_encoder import new_encoder

    return new_encoder(len(build.tokenizer()), width=64, layers=1, heads=1, window=40)


def published(folder: Path) -> dict[str, Path]:
    """The three checkpoints as the training scripts save them: accelerate folders, prefixes, buffers, a vocabulary."""
    base, superres, text = folder / "base", folder / "superres", folder / "pretrained_lm"
    for number in ("39", "40"):
        (base / f"{number}_ckpt").mkdir(parents=True)
    (superres / "12_ckpt").mkdir(parents=True)
    text.mkdir()
    average = {f"denoise_fn.{name}": weight for name, weight in to_published(build_unet(BASE, seed=5)).items()}
    raw = {f"denoise_fn.{name}": weight for name, weight in to_published(build_unet(BASE, seed=6)).items()}
    torch.save({**raw, "betas": torch.ones(5)}, base / "40_ckpt" / "pytorch_model.bin")
    torch.save({**average, "betas": torch.ones(5)}, base / "40_ckpt" / "pytorch_model_1.bin")
    torch.save(raw, base / "39_ckpt" / "pytorch_model_1.bin")
    wrapped = {f"module.denoise_fn.{n}": w for n, w in to_published(build_unet(SUPERRES, seed=7)).items()}
    torch.save(wrapped, superres / "12_ckpt" / "pytorch_model.bin")
    torch.save(encoder().state_dict(), text / "pytorch_model.bin")
    build.tokenizer().save_pretrained(text)
    return {"base": base, "superres": superres, "report_encoder": text}


def convert(paths: dict[str, Path], out: Path, **changes):
    return convert_medsyn(
        **{
            **paths,
            "out": out,
            **OPTIONS,
            "defaults": replace(build.DEFAULTS, tile=(16, 16, 16), superres_steps=1),
            **changes,
        }
    )


def test_the_three_checkpoints_become_one_model(tmp_path):
    paths = published(tmp_path)
    report = convert(paths, tmp_path / "model").summary()
    assert "base model: pytorch_model_1.bin" in report
    assert "1 entries not needed for sampling left out" in report
    assert "order of the up blocks: late (assumed; --check decides it)" in report
    assert "report encoder: pytorch_model.bin, window of 40 tokens" in report

    model = MedSyn.from_folder(tmp_path / "model")
    own, average = build_unet(BASE, seed=5).state_dict(), model.base.unet.state_dict()
    assert all(torch.equal(weight, average[name]) for name, weight in own.items())
    small = model.superres.unet.state_dict()
    assert all(torch.equal(weight, small[name]) for name, weight in build_unet(SUPERRES, seed=7).state_dict().items())
    words = encoder().state_dict()
    assert all(torch.equal(weight, words[name]) for name, weight in model.base.reader.encoder.state_dict().items())
    assert model.base.config == MedSynConfig(long_reports="cut")
    assert model.sample([REQUEST]).shape == (1, 4, 16, 16, 16)
    again = to_published(model.base.unet)
    assert set(again) == set(to_published(build_unet(BASE)))


def test_the_order_asked_for_is_kept_in_both_networks(tmp_path):
    report = convert(published(tmp_path), tmp_path / "model", up_order="mid").summary()
    assert "order of the up blocks: mid (as asked)" in report
    model = MedSyn.from_folder(tmp_path / "model")
    assert (model.base.unet.config["up_order"], model.superres.unet.config["up_order"]) == ("mid", "mid")
    assert model.base.unet.ups[0].order == "mid"


def test_the_numeric_test_finds_the_order_a_network_was_trained_in(tmp_path):
    """Trained for a moment in the order that is not the default, a network restores its scan better in that one."""
    from medisyn.diffusion.cosine import cosine_alpha_sigma
    from medisyn.families.medsyn.channels import channels_from_sample

    order, other = "mid", "late"
    clean = channels_from_sample(build.chest(), build.GRID)[None, :, ::2]
    unet = build_unet(replace(BASE, middle_blocks=1, up_order=order), seed=1)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        times = torch.rand(2, generator=generator)
        alpha, sigma = cosine_alpha_sigma(times, 5)
        noisy = alpha * clean + sigma * torch.randn((2, *clean.shape[1:]), generator=generator)
        text = unet.null_text.expand(2, -1, -1)
        (unet(noisy, times, text_BTE=text) - clean).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    errors = compare_up_orders(unet, clean[0])
    assert 1.3 * errors[order] < errors[other]
    assert unet.config["up_order"] == order

    paths = published(tmp_path)
    torch.save(to_published(unet), tmp_path / "trained.bin")
    np.save(tmp_path / "scan.npy", clean[0].numpy())
    changed = {**paths, "base": tmp_path / "trained.bin"}
    report = convert(changed, tmp_path / "model", check=tmp_path / "scan.npy").summary()
    assert f"order of the up blocks: {order} (error when restoring scan.npy" in report
    with pytest.raises(InputError, match=f"--up-order {other} contradicts the check, which says {order}"):
        convert(changed, tmp_path / "model2", check=tmp_path / "scan.npy", up_order=other)


def test_a_check_that_tells_nothing_is_refused(tmp_path):
    paths = published(tmp_path)
    np.save(tmp_path / "noise.npy", np.clip(np.random.default_rng(0).normal(size=(4, 8, 8, 8)), -1, 1))
    with pytest.raises(InputError, match="does not tell the orders apart"):
        convert(paths, tmp_path / "model", check=tmp_path / "noise.npy")
    np.save(tmp_path / "flat.npy", np.zeros((8, 8, 8)))
    with pytest.raises(InputError, match=r"flat.npy must hold \(4, D, H, W\) finite numbers"):
        convert(paths, tmp_path / "model", check=tmp_path / "flat.npy")
    with pytest.raises(InputError, match="up_order must be one of late, mid, got 'early'"):
        convert(paths, tmp_path / "model", up_order="early")
    assert not (tmp_path / "model").exists()


def test_an_encoder_with_cxr_berts_names_alone_is_enough(tmp_path):
    paths = published(tmp_path)
    body = {name: weight for name, weight in encoder().state_dict().items() if not name.startswith("classifier")}
    torch.save({**body, "bert.pooler.dense.weight": torch.ones(1)}, paths["report_encoder"] / "pytorch_model.bin")
    report = convert(paths, tmp_path / "model").summary()
    assert "without 2 weights of the pre-training heads" in report
    config = encoder_config(encoder().state_dict())
    assert (config.hidden_size, config.num_hidden_layers, config.max_position_embeddings) == (64, 1, 40)
    assert config.projection_size == 64


def test_missing_weights_and_swapped_files_are_refused(tmp_path):
    paths = published(tmp_path)
    with pytest.raises(
        ModelError, match=r"is a super-resolution network, not the base model. Were the two files swapped"
    ):
        convert({**paths, "base": paths["superres"]}, tmp_path / "model")
    state = encoder().state_dict()
    state.pop("bert.encoder.layer.0.output.dense.weight")
    torch.save(state, paths["report_encoder"] / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"report encoder lacks 1 weights: bert.encoder.layer.0.output.dense.weight"):
        convert(paths, tmp_path / "model")
    state.pop("bert.embeddings.position_embeddings.weight")
    with pytest.raises(
        ModelError, match=r"lacks bert.embeddings.position_embeddings.weight, from which its size is read"
    ):
        encoder_config(state)
    torch.save(encoder().state_dict(), paths["report_encoder"] / "pytorch_model.bin")
    for file in paths["report_encoder"].glob("*.json"):
        file.unlink()
    with pytest.raises(ModelError, match=r"pretrained_lm/ holds no vocab.txt.*Give --tokenizer"):
        convert(paths, tmp_path / "model")
    build.tokenizer().save_pretrained(tmp_path / "words")
    convert(paths, tmp_path / "model", tokenizer=tmp_path / "words")


class Trap:
    """What a malicious pickle would hold."""

    def __reduce__(self):
        return (print, ("opened",))


def test_files_that_are_no_state_dict_are_refused(tmp_path, capsys):
    torch.save({"denoise_fn.init_conv.weight": Trap()}, tmp_path / "trap.bin")
    with pytest.raises(ModelError, match="Pickles that hold more than tensors are refused"):
        read_state(tmp_path / "trap.bin")
    assert "opened" not in capsys.readouterr().out
    torch.save({"step": 3}, tmp_path / "numbers.bin")
    with pytest.raises(ModelError, match=r"numbers.bin holds no tensors by name"):
        read_state(tmp_path / "numbers.bin")
    with pytest.raises(ModelError, match="no weight called init_conv0"):
        without_prefix({"other.weight": torch.ones(1)}, r"init_conv0\.weight")
    with pytest.raises(ModelError, match="base model: there is no nowhere"):
        find_file(tmp_path / "nowhere", ("a.bin",), "base model")
    with pytest.raises(ModelError, match=r"holds none of a.bin"):
        find_file(tmp_path, ("a.bin",), "base model")


def test_of_several_states_the_average_is_taken(tmp_path):
    states = {"model.init_conv.weight": torch.zeros(1), "ema_model.denoise_fn.init_conv.weight": torch.ones(1)}
    assert float(without_prefix(states, r"init_conv0?\.weight")["init_conv.weight"]) == 1
    torch.save({"step": 4, "model": {"a": torch.zeros(1)}, "ema": {"a": torch.ones(1)}}, tmp_path / "both.pt")
    assert float(read_state(tmp_path / "both.pt")["a"]) == 1
