"""Würstchen as a family: rows, loss, seeds, folders, sizes, and diffusers' pipelines and classes as oracles."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from diffusers import DDPMWuerstchenScheduler

import build
from medisyn.errors import InputError, ModelError
from medisyn.families.stable_diffusion.text import train_tokenizer
from medisyn.families.wuerstchen import layouts
from medisyn.families.wuerstchen.config import DECODER_TINY, IMAGE_ENCODER_TINY, PRIOR_TINY, VQGAN_TINY
from medisyn.families.wuerstchen.latents import decode_pictures, encoder_view, pixels_from_samples
from medisyn.families.wuerstchen.model import Wuerstchen
from medisyn.families.wuerstchen.networks import settle
from medisyn.families.wuerstchen.settings import GenerationDefaults, LatentGrid, Sizes, WuerstchenConfig
from medisyn.seeding import generator_for
from medisyn.types import UNIT, Picture, Request, Sample

SIZES = Sizes(
    prior=PRIOR_TINY, decoder=DECODER_TINY, vqgan=VQGAN_TINY, image_encoder=IMAGE_ENCODER_TINY, cell_pixels=16.0
)
DEFAULTS = GenerationDefaults(steps=3, guidance=2.0, decoder_steps=2, height=32, width=48)
SAMPLES = build.samples(6, 32)


def wake(network, seed):
    """Random values where networks start at zero, so that every condition has an effect."""
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            if not parameter.any():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + number))
                parameter.copy_(0.05 * noise)


@pytest.fixture(scope="module")
def family():
    tokenizer = train_tokenizer([sample.caption for sample in SAMPLES])
    model = Wuerstchen.from_sizes(SIZES, tokenizer, defaults=DEFAULTS)
    settle(model.networks.encoder(), encoder_view(pixels_from_samples(SAMPLES), model.grid))
    for number, network in enumerate((model.networks.prior, model.networks.decoder, model.networks.vqgan)):
        wake(network, 1000 * number)
    return model


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    place = tmp_path_factory.mktemp("model") / "model"
    family.save(place)
    return place


def requests(count=2, **changes):
    return [Request(f"r{n}", ("red disc", "a blue square on black")[n % 2], n, **changes) for n in range(count)]


def changed(family, **changes):
    return family.with_defaults(dataclasses.replace(family.defaults, **changes))


# ---- what is trained


def test_rows_are_normalised_latents_and_last_hidden_states(family):
    rows = family.encode(SAMPLES)
    assert {name: tuple(row.shape) for name, row in rows.items()} == {"latents": (6, 4, 2, 2), "text": (6, 77, 32)}
    views = encoder_view(pixels_from_samples(SAMPLES), family.grid)
    assert views.shape == (6, 3, 64, 64)  # 2 cells of 32 pixels for 32 pixels of the picture
    expected = (family.networks.image_encoder(views) + 1) / 42
    torch.testing.assert_close(rows["latents"], expected, rtol=1e-5, atol=1e-6)
    spread = rows["latents"].transpose(0, 1).flatten(1)
    torch.testing.assert_close(spread.std(dim=1), torch.ones(4), rtol=0.01, atol=0)
    torch.testing.assert_close(spread.mean(dim=1), torch.zeros(4), rtol=0, atol=1e-4)
    tokens = family.networks.tokenizer(
        [SAMPLES[0].caption], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    text = family.networks.text_encoder(**tokens).last_hidden_state
    torch.testing.assert_close(rows["text"][:1], text, rtol=1e-4, atol=1e-5)


def test_a_caption_is_encoded_alike_whatever_stands_beside_it(family):
    together = family.encode_captions(SAMPLES)["text"]
    assert torch.equal(together[3:4], family.encode_captions(SAMPLES[3:4])["text"])


def test_every_weight_of_stage_c_learns_and_no_other(family):
    rows, draws = family.encode(SAMPLES), [generator_for(0, str(number)) for number in range(6)]
    (group,) = family.trainable()
    loss = family.loss(rows, draws)
    assert loss.shape == (6,)
    loss.mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in group.parameters)
    assert sum(p.numel() for p in group.parameters) == sum(p.numel() for p in family.networks.prior.parameters())
    frozen = [module for module in family.networks.modules() if module is not family.networks.prior]
    assert not any(parameter.requires_grad for module in frozen for parameter in module.parameters())
    family.networks.prior.zero_grad()


def test_the_loss_by_hand(family):
    """A network that answers 0: the loss is the mean square of the noise, times 1 - alpha_bar for p2."""
    rows = family.encode(SAMPLES[:2])
    losses = {}
    for weight in ("none", "p2"):
        one = Wuerstchen(family.networks, WuerstchenConfig(loss_weight=weight), grid=family.grid, defaults=DEFAULTS)
        one._predict_noise = lambda noisy, times, text: torch.zeros_like(noisy)
        losses[weight] = one.loss(rows, [generator_for(0, str(number)) for number in range(2)])
    for number in range(2):
        generator = generator_for(0, str(number))
        time = min((1 - float(torch.rand(1, generator=generator))) * 1.08 + 0.001, 1.0)
        noise = torch.randn(4, 2, 2, generator=generator)
        bar = DDPMWuerstchenScheduler()._alpha_cumprod(torch.tensor([time]), torch.device("cpu"))
        torch.testing.assert_close(losses["none"][number], noise.square().mean(), rtol=1e-5, atol=0)
        torch.testing.assert_close(
            losses["p2"][number : number + 1], noise.square().mean() * (1 - bar), rtol=1e-4, atol=0
        )


def test_a_dropped_caption_is_that_of_the_empty_string(family):
    dropping = Wuerstchen(family.networks, WuerstchenConfig(caption_dropout=1.0), grid=family.grid, defaults=DEFAULTS)
    never = Wuerstchen(family.networks, WuerstchenConfig(caption_dropout=0.0), grid=family.grid, defaults=DEFAULTS)
    family.networks.prior.eval()

    def loss(model, rows):
        return model.loss(rows, [generator_for(0, str(number)) for number in range(6)])

    rows = family.encode(SAMPLES)
    blank = family.encode([dataclasses.replace(sample, caption="") for sample in SAMPLES])
    torch.testing.assert_close(loss(dropping, rows), loss(never, blank), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(loss(never, rows), loss(never, blank), rtol=1e-5)


def test_gradient_checkpointing_changes_no_loss(family, folder):
    rows = family.encode(SAMPLES)
    light = Wuerstchen.from_folder(folder, WuerstchenConfig(gradient_checkpointing=True))
    light.trainable()
    draws = [[generator_for(0, str(number)) for number in range(6)] for _ in range(2)]
    torch.testing.assert_close(light.loss(rows, draws[0]), family.loss(rows, draws[1]), rtol=1e-5, atol=1e-7)
    assert light.networks.prior.gradient_checkpointing


# ---- what is sampled


def test_pictures_have_the_size_that_was_asked_for(family):
    pictures = family.decode(family.sample(requests()))
    assert [picture.array_CHW.shape for picture in pictures] == [(3, 32, 48)] * 2
    assert pictures[0].array_CHW.dtype == np.uint8
    wide = family.decode(family.sample(requests(1, height=64, width=16)))
    assert wide[0].array_CHW.shape == (3, 64, 16)


def test_stage_c_makes_the_latents_of_the_published_pipelines_loop(family):
    """Its order of operations: text, then the empty string; lerp at the scale; a step of diffusers' scheduler."""
    (request,) = requests(1)
    networks, scheduler, generator = family.networks, DDPMWuerstchenScheduler(), generator_for(request.seed, "noise")
    networks.prior.eval()

    def text(prompt):
        tokens = networks.tokenizer([prompt], padding="max_length", max_length=77, return_tensors="pt")
        return networks.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state

    with torch.no_grad():
        both = torch.cat([text(request.prompt), text("")])
        latents = torch.randn((1, 4, 2, 3), generator=generator)
        scheduler.set_timesteps(3)
        for time in scheduler.timesteps[:-1]:
            answers = networks.prior(torch.cat([latents] * 2), time.expand(2), both)
            asked, blank = answers.chunk(2)
            noise = torch.lerp(blank, asked, 2.0)
            latents = scheduler.step(noise, time.expand(1), latents, generator=generator).prev_sample
    torch.testing.assert_close(family.sample_latents([request]), latents, rtol=1e-3, atol=1e-4)


def test_seed_prompt_guidance_and_negative_prompt_count(family):
    plain = family.sample_latents(requests(1))
    for change in ({"seed": 9}, {"prompt": "a blue square on black"}, {"guidance": 1.0}, {"negative_prompt": "blue"}):
        other = family.sample_latents([dataclasses.replace(requests(1)[0], **change)])
        assert not torch.allclose(plain, other, rtol=1e-4, atol=1e-5), change


def test_a_request_does_not_depend_on_those_beside_it(family):
    together, alone = family.sample(requests(3)), family.sample(requests(3)[2:])
    torch.testing.assert_close(together[2:], alone, rtol=1e-3, atol=1e-3)
    pictures = [family.decode(rows)[-1].array_CHW.astype(int) for rows in (together, alone)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_stage_b_reads_the_prompt_and_its_own_seed(family):
    latents = family.sample_latents(requests(1))

    def upscale(model=family, prompt="red disc", seed=0):
        return model.upscale(latents, [prompt], [seed], height=32, width=48)

    plain = upscale()
    assert torch.equal(plain, upscale())
    guided = changed(family, decoder_guidance=3.0)
    for other in (upscale(prompt="blue"), upscale(seed=1), upscale(model=guided)):
        assert not torch.allclose(plain, other, rtol=1e-4, atol=1e-4)
    off = changed(family, decoder_guidance=1.0)  # up to 1 it is off, as in the published pipeline
    assert torch.equal(plain, upscale(model=off))


def test_the_short_list_of_times(family):
    short = changed(family, solver="ancestral-short")
    assert short.resolve(requests(1)[0]).steps == 29
    assert short.sample_latents(requests(1)).shape == (1, 4, 2, 3)
    with pytest.raises(InputError, match=r"solver ancestral-short makes 29 steps, got 5\. Leave steps out"):
        short.resolve(Request("a", "x", 0, steps=5))


def test_stage_a_alone_and_stages_b_and_a(family):
    through_a = family.rebuild(SAMPLES[:2])
    vqgan = family.networks.vqgan
    pixels = pixels_from_samples(SAMPLES[:2])
    expected = (vqgan(pixels).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    for picture, array in zip(through_a, expected, strict=True):
        assert np.abs(picture.array_CHW.astype(int) - array).max() <= 1
    through_b = family.rebuild_from_features(SAMPLES[:2], [0, 1])
    again = family.rebuild_from_features(SAMPLES[1:2], [1])
    assert np.abs(through_b[1].array_CHW.astype(int) - again[0].array_CHW).max() <= 1


def test_defaults_and_refused_requests(family):
    got = family.resolve(Request("a", "x", 0))
    assert (got.height, got.width, got.steps, got.guidance) == (32, 48, 3, 2.0)
    assert (family.factor, family.native_size) == (16, (32, 48))
    with pytest.raises(InputError, match=r"size 40x48 must be a multiple of 16 pixels\. Nearest: 32x48"):
        family.resolve(Request("a", "x", 0, height=40))
    with pytest.raises(InputError, match="reads one prompt; it neither combines prompts"):
        family.resolve(Request("a", "x", 0, terms=(("x", 1.0), ("y", 1.0))))
    with pytest.raises(InputError, match="must share height, width, steps and guidance, got 2 kinds"):
        family.sample([*requests(1), Request("b", "x", 0, steps=2)])
    with pytest.raises(InputError, match="request the default: size 30x48 must be a multiple"):
        changed(family, height=30)


def test_words_beyond_the_window(family):
    assert family.lost_words("red disc") == ""
    prompt = " ".join(["disc"] * 90) + " tail"
    assert family.lost_words(prompt).endswith("disc tail")


def test_refused_pictures_and_latents(family):
    small, large = SAMPLES[0], build.samples(1, 64)[0]
    with pytest.raises(InputError, match=r"must have one size, got \[\(32, 32\), \(64, 64\)\]"):
        family.encode([small, large])
    unit = Sample("f", Picture(np.zeros((3, 32, 32), dtype=np.float32), UNIT), "x")
    with pytest.raises(InputError, match="sample f: this model learns from uint8 pictures, got a picture of float32"):
        family.encode([unit])
    with pytest.raises(ModelError, match="latents that are NaN or infinite"):
        decode_pictures(family.networks.vqgan, torch.full((1, 4, 4, 4), float("nan")))


def test_grey_pictures_fill_three_channels(family):
    grey = Sample("g", Picture(SAMPLES[0].item.array_CHW[:1]), "x")
    assert pixels_from_samples([grey]).shape == (1, 3, 32, 32)


# ---- folders


def test_a_saved_folder_opens_again(family, folder):
    again = Wuerstchen.from_folder(folder)
    assert (again.defaults, again.grid) == (DEFAULTS, LatentGrid(cell_pixels=16.0))
    # Weights lie elsewhere in memory, where the matrix library may add in another order.
    torch.testing.assert_close(again.sample(requests()), family.sample(requests()), rtol=1e-3, atol=1e-3)
    ours, theirs = again.encode(SAMPLES)["latents"], family.encode(SAMPLES)["latents"]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_stage_c_opens_in_diffusers_with_equal_output(family, folder):
    from diffusers.pipelines.deprecated.wuerstchen import WuerstchenPrior as Theirs

    theirs = Theirs.from_pretrained(folder / "prior").eval()
    noisy, times, text = torch.randn(2, 4, 2, 3), torch.tensor([0.2, 0.9]), torch.randn(2, 7, 32)
    family.networks.prior.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(noisy, times, text), family.networks.prior(noisy, times, text), rtol=1e-4, atol=1e-4
        )


def test_half_precision_is_stored_and_sampled(family, folder, tmp_path):
    family.save(tmp_path / "half", dtype="bfloat16")
    size = [sum(file.stat().st_size for file in place.rglob("*.safetensors")) for place in (folder, tmp_path / "half")]
    assert size[1] < 0.6 * size[0]
    picture = Wuerstchen.from_folder(tmp_path / "half", dtype="bfloat16").sample(requests(1))
    assert torch.isfinite(picture).all()


def test_a_model_without_its_image_encoder_generates_and_cannot_be_trained(family, folder, tmp_path):
    networks = dataclasses.replace(family.networks, image_encoder=None)
    Wuerstchen(networks, grid=family.grid, defaults=DEFAULTS).save(tmp_path / "bare")
    bare = Wuerstchen.from_folder(tmp_path / "bare")
    torch.testing.assert_close(bare.sample(requests(1)), family.sample(requests(1)), rtol=1e-3, atol=1e-3)
    with pytest.raises(ModelError, match=r"has no image encoder .*but not be trained"):
        bare.encode(SAMPLES)


def test_an_unknown_setting_in_the_folder(family, tmp_path):
    family.save(tmp_path / "model")
    path = tmp_path / "model" / layouts.SETTINGS_FILE
    settings = json.loads(path.read_text())
    settings["defaults"]["stesp"] = 3
    path.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"'stesp' is no setting of GenerationDefaults.*Did you mean 'steps'"):
        Wuerstchen.from_folder(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"decoder": dataclasses.replace(DECODER_TINY, effnet_embd=3)},
            "are the channels of one latent, got 4, 3 and 4",
        ),
        ({"decoder": dataclasses.replace(DECODER_TINY, c_in=5)}, "decoder.c_in must be vqgan.latent_channels, got 5"),
        ({"text_heads": 5}, "text_heads must divide prior.c_cond and decoder.clip_embd, got 5"),
        ({"cell_pixels": 0.0}, "cell_pixels must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit(changes, text):
    with pytest.raises(InputError, match=text):
        dataclasses.replace(SIZES, **changes)
