import dataclasses
import json

import pytest
import torch

import build
from medisyn.errors import ConfigError, InputError
from medisyn.families.stable_diffusion.config import InversionConfig
from medisyn.families.stable_diffusion.embedding_files import read_embeddings
from medisyn.families.stable_diffusion.inversion import TextualInversion
from medisyn.seeding import generator_for
from medisyn.training.loop import train
from medisyn.training.settings import TrainSettings
from medisyn.types import Request

TOKENS = ("<red-thing>", "<blue-thing>")
SETTINGS = TrainSettings(
    num_steps=4, batch_size=2, learning_rate=0.005, precision="fp32", checkpoint_every=2, max_grad_norm=0.0
)


def family(network=build.TINY_SD1, source="tiny", **changes):
    model = build.tiny_model(network)
    model.source = source
    return TextualInversion(model, InversionConfig(**{"tokens": TOKENS, "num_vectors": 3, **changes}))


def samples(count=4):
    return [
        dataclasses.replace(sample, caption=TOKENS[number % 2]) for number, sample in enumerate(build.samples(count))
    ]


class Rows:
    """Encoded samples as a store."""

    def __init__(self, found, count=4):
        self.keys = [sample.key for sample in samples(count)]
        self.encoded = found.encode(samples(count))

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, row):
        return {name: tensor[row] for name, tensor in self.encoded.items()}


@pytest.mark.parametrize("network", [build.TINY_SD1, build.TINY_SD2, build.TINY_SDXL])
def test_every_new_vector_learns_and_nothing_else(network):
    found = family(network)
    [group] = found.trainable()
    encoders = 2 if network.xl else 1
    assert [tuple(rows.shape) for rows in group.parameters] == [(6, network.text_width)] * encoders
    losses = found.loss(found.encode(samples(2)), [generator_for(0, str(n)) for n in range(2)])
    assert losses.shape == (2,)
    losses.sum().backward()
    for rows in group.parameters:
        assert (rows.grad.abs().sum(dim=1) > 0).all()
    own = {id(rows) for rows in group.parameters}
    for module in found.networks.modules():
        assert all(parameter.grad is None for parameter in module.parameters() if id(parameter) not in own)


def test_a_picture_trains_the_token_that_it_shows():
    found = family()
    first = {name: rows[:1] for name, rows in found.encode(samples(1)).items()}
    assert first["concept"].tolist() == [0]
    found.loss(first, [generator_for(0, "x")]).sum().backward()
    [rows] = found.rows
    assert (rows.grad[:3].abs().sum(dim=1) > 0).all()
    assert rows.grad[3:].abs().max() == 0


def test_the_loss_is_that_of_the_base_on_the_same_text():
    """The base reads the token as ordinary words of its vocabulary that have the same vectors."""
    from medisyn.families.stable_diffusion.config import StableDiffusionConfig
    from medisyn.families.stable_diffusion.model import StableDiffusion

    found = family(tokens=("<x>",), num_vectors=1, init=("red",))
    base = build.tiny_model(config=StableDiffusionConfig(train_text_encoder=True, caption_dropout=0.0))
    plain = [dataclasses.replace(sample, caption="red") for sample in build.samples(1)]
    told = [dataclasses.replace(sample, caption="<x>") for sample in build.samples(1)]
    one, other = generator_for(0, "x"), generator_for(0, "x")
    torch.randint(1, (1,), generator=other)  # the template
    assert isinstance(base, StableDiffusion)
    assert torch.equal(found.loss(found.encode(told), [one]), base.loss(base.encode(plain), [other]))


def test_templates_are_drawn_by_each_sample(monkeypatch):
    found = family(templates=("{}", "a photo of {}"))
    assert found.token_ids["token_ids"].shape == (2, 2, 77)
    read = []
    monkeypatch.setattr(found._text, "drop", lambda rows, dropped: read.append(rows["token_ids"]) or _stop())
    encoded = found.encode(samples(1))
    for number in range(20):
        with pytest.raises(StopIteration):
            found.loss(encoded, [generator_for(number, "x")])
    chosen = [int((ids[0] == found.token_ids["token_ids"][0, 1]).all()) for ids in read]
    assert 3 < sum(chosen) < 17  # of 20 fair draws all but 0.3 percent lie between


def _stop():
    raise StopIteration


@pytest.mark.parametrize("network", [build.TINY_SD1, build.TINY_SDXL])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, network):
    whole, first = family(network), family(network)
    store = Rows(whole)
    train(whole, store, SETTINGS, tmp_path / "whole", save_model=whole.save)
    train(first, store, dataclasses.replace(SETTINGS, num_steps=2), tmp_path / "halves", save_model=first.save)
    second = family(network)
    report = train(second, store, SETTINGS, tmp_path / "halves", save_model=second.save)
    assert report.resumed_from == 2
    for one, other, start in zip(whole.rows, second.rows, family(network).rows, strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, start)


def test_the_optimiser_holds_two_numbers_per_new_number(tmp_path):
    from safetensors.torch import load_file

    found = family()
    train(found, Rows(found), SETTINGS, tmp_path / "run", save_model=found.save)
    state = load_file(tmp_path / "run" / "checkpoints" / "step-00000004" / "state.safetensors")
    moments = sum(tensor.numel() for name, tensor in state.items() if "exp_avg" in name)
    assert moments == 2 * 6 * build.TINY_SD1.text_width


def test_bf16_and_checkpointing_learn_too(tmp_path):
    found = family(frozen_dtype="bfloat16", gradient_checkpointing=True)
    assert found.networks.unet.dtype == torch.bfloat16
    assert found.networks.vae.dtype == found.rows[0].dtype == torch.float32
    start = found.rows[0].detach().clone()
    settings = dataclasses.replace(SETTINGS, precision="bf16", num_steps=2)
    train(found, Rows(found), settings, tmp_path / "run", save_model=found.save)
    assert torch.isfinite(found.rows[0]).all()
    assert (found.rows[0] - start).abs().max() > 0.001  # two AdamW steps of 0.005


def test_checkpointing_changes_no_gradient():
    grads = []
    for checkpointing in (False, True):
        found = family(gradient_checkpointing=checkpointing)
        found.loss(found.encode(samples(1)), [generator_for(0, "x")]).sum().backward()
        grads.append(found.rows[0].grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("network", [build.TINY_SD1, build.TINY_SDXL])
def test_saved_tokens_sample_as_in_the_run(tmp_path, network):
    """One file per token, under 1 MB, and a record of the base; opened on the base they paint the same picture."""
    base = build.tiny_folder(tmp_path / "base", network)
    from medisyn.families.stable_diffusion.model import StableDiffusion

    found = TextualInversion(
        StableDiffusion.from_folder(base, source="some/base"), InversionConfig(tokens=TOKENS, num_vectors=3)
    )
    found.save(tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "medisyn.json").read_text())
    assert settings["base"] == "some/base"
    assert settings["embeddings"] == ["red-thing.safetensors", "blue-thing.safetensors"]
    assert [e.token for e in read_embeddings(tmp_path / "run")] == list(TOKENS)
    assert all(file.stat().st_size < 1_000_000 for file in (tmp_path / "run").iterdir())
    opened = StableDiffusion.from_folder(base, embeddings=[tmp_path / "run"])
    request = Request(key="x", prompt="<blue-thing>", seed=3, steps=2)
    assert torch.equal(opened.sample([request]), found.sample([request]))
    other = dataclasses.replace(request, prompt="<red-thing>")
    assert not torch.equal(opened.sample([request]), opened.sample([other]))


def test_a_single_token_is_what_diffusers_looks_for(tmp_path):
    found = family(tokens=("<x>",), source=str(tmp_path / "models" / "base"))
    found.save(tmp_path / "run")
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["learned_embeds.safetensors", "medisyn.json"]
    [embedding] = read_embeddings(tmp_path / "run")
    assert embedding.base == "base"  # no path of this machine in a file that is shared


def test_what_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"<x> has 76 vectors.*room for 1 to 75"):
        family(tokens=("<x>",), num_vectors=76)
    with pytest.raises(InputError, match=r"'a photo of <x>' with 75 vectors is longer.*'<x>' is lost"):
        family(tokens=("<x>",), num_vectors=75, templates=("a photo of {}",))
    with pytest.raises(InputError, match="caption 'red square on black' is none of the new tokens"):
        family().encode(build.samples(1))
    with pytest.raises(ConfigError, match="records its base model: save the base first"):
        family(source=None).save(tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tokens": ()}, "got none"),
        ({"tokens": ("<a>", "<a>")}, "each once, got <a>, <a>"),
        ({"num_vectors": 0}, "at least 1, got 0"),
        ({"init": ("a", "b")}, "init holds 2 texts for 1 tokens"),
        ({"templates": ("a photo",)}, "templates must hold {} once each"),
        ({"templates": ()}, "templates must hold {} once each"),
        ({"frozen_dtype": "float16"}, "frozen_dtype 'float16' is unknown"),
    ],
)
def test_configurations_that_are_refused(change, text):
    with pytest.raises(ConfigError, match=text):
        InversionConfig(**change)
