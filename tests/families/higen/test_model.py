"""HiGen as a family: what is encoded, what enters the loss, both levels of sampling, and its folder."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import build_higen as build
from build_higen import CAPTIONS, FRAMES, GRID, HEIGHT, WIDTH, model, request, sample, unet
from medisyn.errors import ConfigError, InputError, ModelError
from medisyn.families.higen import folders
from medisyn.families.higen.appearance import appearance_matrix
from medisyn.families.higen.conditions import guided_velocity, motion_and_appearance
from medisyn.families.higen.config import ClipGrid
from medisyn.families.higen.model import HiGen, key_frame_row
from medisyn.families.higen.motion import motion_value
from medisyn.families.higen.settings import HiGenDefaults, HiGenSettings
from medisyn.seeding import generator_for
from medisyn.types import SYMMETRIC, Clip, Picture, Sample

LATENT = (HEIGHT // 4, WIDTH // 4)


def draws(*keys):
    return [generator_for(0, str(key)) for key in keys]


def padded(number=0, fill=0, real_frames=FRAMES, real_columns=WIDTH):
    """A clip whose last frames and columns are padding that holds `fill`."""
    valid = np.zeros((FRAMES, HEIGHT, WIDTH), np.uint8)
    valid[:real_frames, :, :real_columns] = 1
    pixels = np.where(valid > 0, build.beating(1.0 + number), fill).astype(np.uint8)
    return Sample(f"clip-{number}", Clip(pixels), CAPTIONS[0], masks={"valid": valid})


# ---- rows


def test_the_rows_of_clips():
    rows = model().encode([sample(0), sample(1)])
    assert {name: tuple(row.shape) for name, row in rows.items()} == {
        "mean": (2, 4, FRAMES, *LATENT),
        "logvar": (2, 4, FRAMES, *LATENT),
        "valid": (2, FRAMES, *LATENT),
        "key": (2,),
        "motion": (2, FRAMES - 1),
        "appearance": (2, FRAMES, FRAMES),
        "text": (2, 12, 16),
    }
    assert rows["mean"].dtype == torch.float16
    assert rows["key"].tolist() == [FRAMES // 2] * 2  # the middle
    np.testing.assert_array_equal(rows["motion"][1], motion_value(sample(1).item))
    assert rows["valid"].all()


def test_frames_are_encoded_a_few_at_a_time_and_alike():
    family = model()
    long = Sample("long", Clip(build.beating(2.0, frames=19)), CAPTIONS[0])
    sizes = []
    encode = family.vae.encode
    family.vae.encode = lambda pixels: sizes.append(len(pixels)) or encode(pixels)
    mean = family.encode_clips([long])["mean"]
    assert sizes == [8, 8, 3]
    alone = family.encode_clips([Sample("one", Picture(long.item.array_CTHW[:, 9]), CAPTIONS[0])])["mean"]
    torch.testing.assert_close(mean[:, :, 9:10], alone, rtol=1e-3, atol=1e-3)  # stored in float16


def test_the_rows_of_pictures_are_those_of_a_clip_of_one_frame():
    rows = model().encode([Sample("picture", Picture(build.beating()[:, 2]), CAPTIONS[0])])
    assert set(rows) == {"mean", "logvar", "valid", "key", "text"}
    assert rows["mean"].shape == (1, 4, 1, *LATENT)


def test_the_key_frame_s_row_is_the_picture_s():
    family = model()
    row = {name: tensor[0] for name, tensor in family.encode([sample(0)]).items()}
    key = key_frame_row(row)
    picture = family.encode([Sample("picture", Picture(sample(0).item.array_CTHW[:, 2]), CAPTIONS[0])])
    assert set(key) == set(picture)
    for name, tensor in picture.items():
        torch.testing.assert_close(key[name].float(), tensor[0].float(), rtol=1e-3, atol=1e-3)


def test_the_key_frame_is_the_middle_of_the_real_frames():
    rows = model().encode([padded(real_frames=2)])
    assert rows["key"].tolist() == [1]
    assert rows["motion"][0, 1:].tolist() == [0, 0]  # padding does not move
    assert rows["valid"][0].any(dim=-1).any(dim=-1).tolist() == [True, True, False, False]
    assert rows["appearance"][0, 1].tolist() == rows["appearance"][0, 3].tolist()  # as if it had stood still


@pytest.mark.parametrize(
    ("broken", "error", "text"),
    [
        (Sample("a", Clip(np.zeros((1, 4, 16, 24), np.float32), SYMMETRIC), "x"), InputError, "uint8 clips and pict"),
        (Sample("a", Clip(np.zeros((1, 4, 16, 28), np.uint8)), "x"), InputError, "16x28 pixels do not divide by 8"),
        (
            Sample("a", Clip(build.beating()), "x", masks={"valid": np.ones((4, 16, 23), np.uint8)}),
            InputError,
            "mask 'valid' has shape",
        ),
        (
            Sample("a", Clip(build.beating()), "x", masks={"valid": np.zeros((4, 16, 24), np.uint8)}),
            InputError,
            "without a single real pixel",
        ),
        (padded(real_columns=3), InputError, "key frame has not one latent"),
    ],
)
def test_samples_that_are_refused(broken, error, text):
    with pytest.raises(error, match=text):
        model().encode([broken])


def test_more_that_is_refused():
    with pytest.raises(ModelError, match="open the model with frame_features"):
        model(frame_features=None).encode([sample()])
    with pytest.raises(InputError, match="must have one shape"):
        model().encode([sample(0), Sample("b", Clip(build.beating(frames=5)), "x")])


# ---- loss


def test_padding_never_enters_the_loss():
    """Whatever the padded pixels hold, each loss is the same, bit for bit; real pixels do count."""
    family, keys = model(), ("a", "b")
    told = [
        family.loss(family.encode([padded(0, fill, real_frames=3), padded(1, fill, real_columns=16)]), draws(*keys))
        for fill in (0, 255, 77)
    ]
    assert torch.equal(told[0], told[1])
    assert torch.equal(told[0], told[2])
    other = family.loss(family.encode([padded(1, 0, real_frames=3), padded(1, 0, real_columns=16)]), draws(*keys))
    assert other[0] != told[0][0]
    assert other[1] == told[0][1]


def test_a_row_s_loss_does_not_depend_on_its_neighbours():
    family = model()
    rows = family.encode([sample(0), sample(1)])
    both = family.loss(rows, draws("a", "b"))
    alone = family.loss({name: row[1:] for name, row in rows.items()}, draws("b"))
    torch.testing.assert_close(both[1:], alone, rtol=1e-5, atol=1e-6)  # another batch rounds differently
    assert both.dtype == torch.float32


def test_the_loss_by_hand_for_a_network_that_says_zero():
    """v = 0: the loss is the mean of (alpha noise - sigma clean)**2, with the same draws."""
    from medisyn.families.higen.objective import alpha_bars, draw

    family = model(unet=unet())
    with torch.no_grad():
        for weight in family.unet.head[-1].parameters():
            weight.zero_()
    rows = family.encode([sample(0)])
    drawn = draw(draws("a"), (4, FRAMES, *LATENT), offset_noise=0.1, caption_dropout=0.1)
    clean = rows["mean"].float() + (0.5 * rows["logvar"].float()).exp() * drawn.posterior_BCThw
    clean = clean * family.vae.config.scaling_factor
    bar = alpha_bars()[drawn.timesteps_B]
    expected = (bar.sqrt() * drawn.noise_BCThw - (1 - bar).sqrt() * clean).square().mean()
    torch.testing.assert_close(family.loss(rows, draws("a"))[0], expected)


class Told:
    """Stands in for the network and keeps what it was told."""

    def __init__(self, network):
        self.network, self.calls = network, []
        self.config, self.dtype, self.parameters = network.config, network.dtype, network.parameters
        self.eval, self.train, self.to, self.training = network.eval, network.train, network.to, False

    def __call__(self, noisy, times, **told):
        self.calls.append({"noisy": noisy, "times": times, **told})
        return self.network(noisy, times, **told)


def test_what_the_network_is_told_of_clips_and_of_frames():
    family = model(unet=Told(unet()))
    rows = family.encode([sample(0)])
    family.loss(rows, draws("a"))
    family.loss(
        {name: row[None] for name, row in key_frame_row({n: r[0] for n, r in rows.items()}).items()}, draws("a")
    )
    clip, frame = family.unet.calls
    assert set(clip) - set(frame) == {"prior_BCHW", "motion_BT", "appearance_BTT"}
    assert frame["noisy"].shape[2] == 1
    assert torch.equal(clip["motion_BT"], rows["motion"])
    assert torch.equal(clip["appearance_BTT"], rows["appearance"])


def test_some_clips_are_not_told_their_motion_or_their_likeness():
    family = model(HiGenSettings(untold=0.5), unet=Told(unet()))
    rows = family.encode([sample(number % 2) for number in range(64)])
    assert torch.isfinite(family.loss(rows, draws(*range(64)))).all()
    told = family.unet.calls[0]
    motion_B, likeness_B = (told[name].flatten(1).isnan() for name in ("motion_BT", "appearance_BTT"))
    assert torch.equal(motion_B.any(dim=1), motion_B.all(dim=1))  # a whole row, or none of it
    open_B2 = torch.stack([motion_B.all(dim=1), likeness_B.all(dim=1)], dim=1)
    assert 20 <= int(open_B2[:, 0].sum()) <= 44  # 32 expected, 4 the deviation
    assert 6 <= int(open_B2.all(dim=1).sum()) <= 27  # by themselves: 16 expected


def test_what_is_not_told_does_not_count():
    family = model(HiGenSettings(untold=0.5))
    noisy, times = torch.ones(2, family.unet.config["latent_channels"], FRAMES, *LATENT), torch.tensor([5, 900])
    text = torch.zeros(2, 3, 16)
    gaps, likeness = torch.full((2, 3), 200.0), torch.full((2, 4, 4), 0.5)
    gaps[1], likeness[1] = torch.nan, torch.nan
    with family.inference():
        half = family.unet(noisy, times, text_BNE=text, motion_BT=gaps, appearance_BTT=likeness)
        gaps[0], likeness[0] = 700.0, 0.1
        other = family.unet(noisy, times, text_BNE=text, motion_BT=gaps, appearance_BTT=likeness)
        for module in (family.unet.motion_mlp, family.unet.appearance_mlp):
            for weight in module.parameters():
                weight.zero_()
        without = family.unet(noisy, times, text_BNE=text, motion_BT=gaps, appearance_BTT=likeness)
    assert torch.isfinite(half).all()
    assert not torch.allclose(half[0], other[0])
    torch.testing.assert_close(half[1], other[1])
    torch.testing.assert_close(half[1], without[1])


def test_a_request_may_leave_motion_open_where_training_did():
    open_defaults = replace(build.DEFAULTS, motion=None, appearance=None)
    family = model(HiGenSettings(untold=0.5), open_defaults)
    resolved = family.resolve(request())
    assert (resolved.motion, resolved.appearance) == (None, None)
    told = motion_and_appearance([resolved, request(motion=20.0, appearance=0.5)], FRAMES)
    assert told["motion_BT"][0].isnan().all()
    assert told["appearance_BTT"][0].isnan().all()
    assert not told["motion_BT"][1].isnan().any()
    clips = [family.sample([request(motion=motion)]) for motion in (None, 0.0)]
    assert all(torch.isfinite(clip).all() for clip in clips)
    assert not torch.equal(*clips)
    with pytest.raises(ModelError, match="always told motion and appearance; its defaults must name both"):
        model(HiGenSettings(), open_defaults)


def test_likeness_is_stretched_for_an_encoder_that_says_little():
    family = model(HiGenSettings(appearance_scale=50.0), unet=Told(unet()))
    rows = family.encode([sample(0)])
    family.loss(rows, draws("a"))
    expected = (1 - 50 * (1 - rows["appearance"])).clip(-1, 1)
    assert torch.equal(family.unet.calls[0]["appearance_BTT"], expected)
    assert not torch.allclose(expected, rows["appearance"], atol=1e-3)


def test_dropped_captions_are_the_empty_prompt():
    always = model(HiGenSettings(caption_dropout=1.0), unet=Told(unet()))
    always.loss(always.encode([sample(0)]), draws("a"))
    empty = always.encode_captions([Sample("e", sample(0).item, "")])["text"]
    torch.testing.assert_close(always.unet.calls[0]["text_BNE"], empty)
    trained = model(HiGenSettings(caption_dropout=1.0, train_text_encoder=True), unet=Told(unet()))
    rows = trained.encode([sample(0)])
    assert "token_ids" in rows
    trained.loss(rows, draws("a"))
    torch.testing.assert_close(trained.unet.calls[0]["text_BNE"], empty)


@pytest.mark.parametrize("layer", ["penultimate", "last"])
def test_every_trained_weight_gets_a_gradient(layer):
    family = model(HiGenSettings(train_text_encoder=True, text_layer=layer))
    groups = family.trainable()
    assert [group.name for group in groups] == ["unet", "text_encoder"]
    family.loss(family.encode([sample(0), sample(1)]), draws("a", "b")).sum().backward()
    for group in groups:
        assert all(weight.grad is not None for weight in group.parameters)
    assert all(weight.grad is None for weight in family.vae.parameters())
    last = family.reader._body.encoder.layers[-1]
    assert all(weight.requires_grad == (layer == "last") for weight in last.parameters())


def test_which_hidden_states_are_read():
    prompt = ["a heart"]
    penultimate, last = (model(HiGenSettings(text_layer=layer)).reader for layer in ("penultimate", "last"))
    ids = last.tokens(prompt)
    hidden = last.encoder(ids, output_hidden_states=True).hidden_states
    assert len(hidden) == 3  # the embeddings, and one of each layer
    torch.testing.assert_close(penultimate.embed(ids), last._body.final_layer_norm(hidden[1]))
    torch.testing.assert_close(last.embed(ids), last._body.final_layer_norm(hidden[2]))
    assert not torch.allclose(penultimate.embed(ids), last.embed(ids))


def test_gradient_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        family = model(HiGenSettings(gradient_checkpointing=checkpointing))
        family.trainable()
        family.loss(family.encode([sample(0)]), draws("a")).sum().backward()
        grads.append([weight.grad for weight in family.unet.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# ---- sampling


def test_both_levels_use_one_network():
    family = model(unet=Told(unet()))
    latents = family.sample([request(0, guidance=1.0)])
    assert latents.shape == (1, 4, FRAMES, *LATENT)
    key, clip = family.unet.calls[:2], family.unet.calls[2:]
    assert [call["noisy"].shape[2] for call in key + clip] == [1, 1, FRAMES, FRAMES]
    assert [call["times"].tolist() for call in clip] == [[501], [1]]
    assert set(key[0]) == {"noisy", "times", "text_BNE"}  # prior 0, motion 0, likeness 1
    assert torch.equal(clip[0]["prior_BCHW"], family.sample([request(0, guidance=1.0, frames=1)])[:, :, 0])
    assert clip[0]["motion_BT"].tolist() == [[300.0] * (FRAMES - 1)]
    np.testing.assert_array_equal(clip[0]["appearance_BTT"][0], appearance_matrix(0.7, FRAMES))


def test_offset_noise_is_the_content_level_s_alone():
    plain, offset = (model(HiGenSettings(offset_noise=strength), unet=Told(unet())) for strength in (0.0, 0.5))
    for family in (plain, offset):
        family.sample([request(0, guidance=1.0)])
    assert torch.equal(plain.unet.calls[0]["noisy"], offset.unet.calls[0]["noisy"])
    moved = offset.unet.calls[2]["noisy"] - plain.unet.calls[2]["noisy"]
    assert float(moved.abs().max()) > 0.1
    torch.testing.assert_close(moved, moved[..., :1, :1].expand_as(moved), atol=1e-5, rtol=0)


def test_a_row_is_the_same_alone_and_in_a_batch():
    family = model()
    both = family.sample([request(0), request(7, motion=10.0)])
    alone = family.sample([request(7, motion=10.0)])
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)  # another batch rounds differently
    assert not torch.allclose(both[0], both[1], atol=1e-2)


@pytest.mark.parametrize("changes", [{"motion": 900.0}, {"appearance": 0.0}, {"guidance": 5.0}, {"prompt": "other"}])
def test_every_wish_changes_the_clip(changes):
    family, wish = model(), request(0)
    assert not torch.allclose(family.sample([wish]), family.sample([replace(wish, **changes)]), atol=1e-4)


def test_guidance_by_hand():
    """One step: v = v(away) + s (v(text) - v(away)), where away is the negative prompt."""
    family = model(defaults=replace(build.DEFAULTS, steps=1))
    wish = request(0, negative_prompt="blur", frames=1)
    text, away = (
        family.sample([replace(wish, prompt=prompt, negative_prompt="", guidance=1.0)])
        for prompt in (wish.prompt, "blur")
    )
    guided = family.sample([replace(wish, guidance=4.0)])
    torch.testing.assert_close(guided, away + 4 * (text - away), rtol=1e-3, atol=1e-3)  # clean is linear in v


def test_rescaled_guidance_has_the_spread_of_the_conditional():
    family = model(defaults=replace(build.DEFAULTS, guidance_rescale=1.0))
    x, text = torch.randn(1, 4, 1, *LATENT), family.reader.embed(family.reader.tokens(["a", "b"]))
    with torch.no_grad():
        ask = [guided_velocity(family.unet, text[:1], text[1:], {}, guidance=g, rescale=1.0) for g in (9.0, 1.0)]
        guided, asked = (velocity(x, 500).std() for velocity in ask)
    torch.testing.assert_close(guided, asked, rtol=1e-4, atol=1e-5)


def test_a_clip_of_the_network_s_length_equals_the_unwindowed_one():
    wish = request(3, frames=FRAMES)
    one, other = (model(defaults=replace(build.DEFAULTS, overlap=overlap)).sample([wish]) for overlap in (0, 3))
    assert torch.equal(one, other)


def test_long_clips_come_in_windows():
    family = model(unet=Told(unet()))
    latents = family.sample([request(3, frames=9, guidance=1.0)])
    assert latents.shape[2] == 9
    assert {call["noisy"].shape[2] for call in family.unet.calls} == {1, FRAMES}
    assert len(family.unet.calls) == 2 + 2 * 3  # two steps: of one frame, then of windows from 0, 3 and 5
    clips = family.decode(latents)
    assert clips[0].array_CTHW.shape == (3, 9, HEIGHT, WIDTH)
    assert (clips[0].array_CTHW.dtype, clips[0].frames_per_second) == (np.uint8, 8.0)


def test_bfloat16_samples_too(tmp_path):
    model().save(tmp_path / "model")
    family = HiGen.from_folder(tmp_path / "model", dtype="bfloat16")
    assert torch.isfinite(family.sample([request(0)])).all()


def test_resolve_fills_in_what_is_open():
    resolved = model().resolve(request(0))
    assert (resolved.frames, resolved.height, resolved.width, resolved.steps) == (FRAMES, HEIGHT, WIDTH, 2)
    assert (resolved.guidance, resolved.motion, resolved.appearance) == (2.0, 300.0, 0.7)
    asked = model().resolve(request(0, frames=9, height=24, motion=0.0, appearance=0.0, guidance=0.0, steps=7))
    assert (asked.frames, asked.height, asked.motion, asked.appearance) == (9, 24, 0.0, 0.0)
    assert (asked.guidance, asked.steps) == (0.0, 7)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"frames": 3}, "3 frames are fewer than the 4 that this model was trained on"),
        ({"motion": 1001.0}, "motion 1001 lies above 1000"),
        ({"height": 20}, "height 20 must be a multiple of 8 pixels. Nearest: 16"),
        ({"width": 3}, "Nearest: 8"),
        ({"terms": (("a", 1.0), ("b", 1.0))}, "neither combines prompts"),
        ({"toward_prompt": "b"}, "neither combines prompts"),
        ({"toward_seed": 1}, "neither combines prompts"),
    ],
)
def test_requests_that_are_refused(changes, text):
    with pytest.raises(InputError, match=text):
        model().resolve(request(0, **changes))


def test_requests_of_one_call_go_together():
    with pytest.raises(InputError, match="must share frames, height, width, steps and guidance, got 2 kinds"):
        model().sample([request(0), request(1, frames=9)])


def test_latents_that_are_not_finite():
    with pytest.raises(ModelError, match="denoiser made latents that are NaN"):
        model().decode(torch.full((1, 4, FRAMES, *LATENT), float("nan")))
    broken = model()
    with torch.no_grad():
        broken.vae.decoder.conv_out.bias.fill_(float("inf"))
    with pytest.raises(ModelError, match="autoencoder made pixels that are NaN"):
        broken.decode(torch.zeros(1, 4, FRAMES, *LATENT))


def test_lost_words():
    family = model()
    assert family.lost_words("a heart") == ""
    long = "heart " * 20 + "xylophone"
    assert long.endswith(family.lost_words(long))
    assert family.lost_words(long).endswith("xylophone")


# ---- parts and folder


def test_parts_that_do_not_belong_together():
    with pytest.raises(ModelError, match="text width: the U-Net reads 24, the text encoder makes 16"):
        model(unet=unet(text_width=24))
    with pytest.raises(ModelError, match="latent channels: the U-Net reads 8, the autoencoder makes 4"):
        model(unet=unet(latent_channels=8))
    with pytest.raises(ModelError, match="know clips of 8 frames, the grid has 4"):
        model(unet=unet(frames=8))
    with pytest.raises(ModelError, match="must divide by 8, got 20 x 24"):
        model(grid=ClipGrid(frames=4, height=20, width=24))
    with pytest.raises(ModelError, match="overlap must be below the 4 frames"):
        model(defaults=HiGenDefaults(overlap=4))


def test_a_folder_opens_as_it_was_saved(tmp_path):
    first = model(HiGenSettings(caption_dropout=0.3))
    first.save(tmp_path / "model")
    again = HiGen.from_folder(tmp_path / "model")
    assert (again.settings, again.defaults, again.grid) == (first.settings, first.defaults, GRID)
    assert torch.equal(first.sample([request(0)]), again.sample([request(0)]))
    assert folders.FOLDER.holds(tmp_path / "model")
    assert not folders.FOLDER.holds(tmp_path)
    again.save(tmp_path / "model", dtype="float16")  # in its own place
    stored = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert str(tmp_path) not in "".join(file.read_text() for file in (tmp_path / "model").rglob("*.json"))
    assert HiGen.from_folder(tmp_path / "model", settings=HiGenSettings()).settings == HiGenSettings()


def break_part(folder, name):
    weights = next((folder / name).glob("*.safetensors"))
    weights.write_bytes(b"no weights")


def test_folders_that_are_refused(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(ModelError, match=r"holds no higen\.json"):
        HiGen.from_folder(tmp_path)
    model().save(folder)
    with pytest.raises(ModelError, match=r"dtype 'float61' is not offered.*Did you mean 'float16'"):
        model().save(tmp_path / "other", dtype="float61")
    with pytest.raises(ModelError, match="dtype 'float16' is not offered, allowed: float32, bfloat16"):
        HiGen.from_folder(folder, dtype="float16")
    settings = (folder / "higen.json").read_text()
    for content, text in (
        ("{", "not readable JSON"),
        ('{"family": "medsyn"}', "does not say family higen"),
        (settings.replace('"overlap"', '"overlapp"'), "'overlapp' is no setting of HiGenDefaults"),
    ):
        (folder / "higen.json").write_text(content)
        with pytest.raises(ModelError, match=text):
            HiGen.from_folder(folder)
    (folder / "higen.json").write_text(settings)
    break_part(folder, "vae")
    with pytest.raises(ModelError, match="the part vae cannot be opened"):
        HiGen.from_folder(folder)
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"lacks the part unet: unet/config\.json is missing"):
        HiGen.from_folder(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ModelError, match=r"mine/ holds files that are no HiGen model \(thesis.txt\)"):
        model().save(tmp_path / "mine")


def test_a_part_without_a_weight(tmp_path):
    from safetensors.torch import save_file

    model().save(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state.pop("stem.weight")
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"the part unet lacks 1 of its weights, the first is stem\.weight"):
        HiGen.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        (HiGenSettings, {"caption_dropout": 1.1}, "caption_dropout must lie"),
        (HiGenSettings, {"appearance_scale": 0}, "appearance_scale must be above 0"),
        (HiGenSettings, {"untold": 1}, r"untold must lie in \[0, 1\), got 1"),
        (HiGenSettings, {"offset_noise": -1}, "offset_noise must be 0 or more"),
        (HiGenSettings, {"text_layer": "lost"}, "text_layer 'lost' is unknown.*Did you mean 'last'"),
        (HiGenDefaults, {"spacing": "loading"}, "spacing 'loading' is unknown.*Did you mean 'leading'"),
        (HiGenDefaults, {"steps": 0}, "steps must be at least 1"),
        (HiGenDefaults, {"guidance": -1}, "guidance must be 0 or more"),
        (HiGenDefaults, {"guidance_rescale": 2}, "guidance_rescale lie in"),
        (HiGenDefaults, {"motion": 2000}, r"motion must lie in \[0, 1000\], got 2000"),
        (HiGenDefaults, {"appearance": 2}, "appearance must lie in"),
        (HiGenDefaults, {"overlap": -1}, "overlap must be 0 frames or more"),
    ],
)
def test_settings_that_are_refused(kind, changes, text):
    with pytest.raises(ConfigError, match=text):
        kind(**changes)


def test_a_text_encoder_of_one_layer_has_no_penultimate():
    from medisyn.families.higen.captions import CaptionReader

    reader = model(HiGenSettings(text_layer="last")).reader
    reader.encoder.config.num_hidden_layers = 1
    with pytest.raises(ConfigError, match="needs a text encoder of at least 2 layers"):
        CaptionReader(reader.encoder, reader.tokenizer, layer="penultimate", trained=False)
