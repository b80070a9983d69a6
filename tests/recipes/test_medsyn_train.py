"""MedSyn's presets, and its runs on tiny chests: resumed exactly, joined, and refused."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

import build_medsyn as build
from medisyn import runs
from medisyn.errors import ConfigError, ModelError
from medisyn.families.medsyn.cascade import MedSyn
from medisyn.families.medsyn.networks import count_parameters
from medisyn.families.medsyn.report_encoder import open_encoder, train_wordpiece
from medisyn.recipes import get_preset, with_overrides
from medisyn.recipes.medsyn_corpus import MASKS
from medisyn.recipes.medsyn_train import join_medsyn, told_of, weights_digest
from medisyn.recipes.models import open_model
from medisyn.recipes.sources import sources_of
from medisyn.training.precompute import EncodedStore
from medisyn.types import Request
from recipes.test_medsyn_corpus import folder_of, write

TINY = {name: get_preset(f"medsyn-{name}-tiny") for name in ("report-encoder", "base", "superres")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(4):
        folder_of(folder, build.chest(number), name=f"chest{number}")
    return folder


@pytest.fixture(scope="module")
def encoder(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoder")
    train(TINY["report-encoder"], corpus, out)
    return out


@pytest.fixture(scope="module")
def base(corpus, encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("base")
    train(with_overrides(TINY["base"], [f"report_encoder={encoder}"]), corpus, out)
    return out


def train(preset, corpus, out, *assignments):
    """What `medisyn train` does, on one process; returns the report and what was said."""
    said = []
    preset = with_overrides(preset, assignments)
    preset.prepare(corpus, out, said.append, processes=1)
    return preset.run(corpus, out, said.append), "\n".join(said)


def state_of(out):
    return load_file(sorted((out / "checkpoints").glob("step-*"))[-1] / "state.safetensors")


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---- presets


def test_the_numbers_of_the_paper():
    """MedSyn sections IV-A and IV-F; networks as published."""
    base, superres, encoder = (get_preset(f"medsyn-{name}") for name in ("base", "superres", "report-encoder"))
    assert count_parameters(base.network) == 716_215_684
    assert count_parameters(superres.network) == 54_307_908
    assert (base.train.num_steps, base.train.batch_size, superres.train.batch_size) == (40_000, 64, 32)
    assert (base.train.learning_rate, base.train.beta1, base.train.beta2, base.train.max_grad_norm) == (
        1e-4,
        0.9,
        0.999,
        1,
    )
    assert (base.defaults.steps, base.defaults.superres_steps, base.defaults.solver) == (50, 20, "ddim")
    assert base.grid.finer(superres.superres.factor).shape == (256, 256, 256)
    assert (encoder.train.epochs, encoder.objective.masked_share, encoder.positions) == (5, 0.15, 2048)
    assert encoder.network.width == base.network.text_width


@pytest.mark.parametrize("name", ["base", "superres", "report-encoder"])
def test_every_training_value_has_a_source(name):
    preset = get_preset(f"medsyn-{name}")
    sources = sources_of(preset)
    for field in dataclasses.fields(preset.train):
        if getattr(preset.train, field.name) != field.default:
            assert f"train.{field.name}" in sources, f"train.{field.name} has no source"


# ---- the report encoder


def test_a_report_encoder_goes_on_exactly(corpus, encoder, tmp_path):
    first, said = train(TINY["report-encoder"], corpus, tmp_path, "num_steps=3")
    assert "random weights" in said
    again, _ = train(TINY["report-encoder"], corpus, tmp_path)
    assert (first.steps_done, again.steps_done, again.resumed_from) == (3, 6, 3)
    assert_same_state(state_of(tmp_path), state_of(encoder))
    network, tokenizer = open_encoder(tmp_path / "model")
    assert len(tokenizer) <= network.config.vocab_size


def test_the_vocabulary_is_the_same_each_time():
    vocabularies = [train_wordpiece([*build.REPORTS, "Ödem, 5 µm."], vocab_size=300).get_vocab() for _ in range(3)]
    assert vocabularies[0] == vocabularies[1] == vocabularies[2]
    assert not any(word.isspace() or word == "##" for word in vocabularies[0])


def test_another_encoder_is_a_start_and_its_positions_grow(corpus, encoder, tmp_path):
    report, _ = train(TINY["report-encoder"], corpus, tmp_path, f"start={encoder / 'model'}", "positions=160")
    assert open_encoder(report.model)[0].config.max_position_embeddings == 160
    assert str(encoder) not in (tmp_path / "run.json").read_text()


def test_a_window_wider_than_the_encoder():
    with pytest.raises(ConfigError, match=r"objective\.window is 96 tokens, the encoder reads 64 at once"):
        with_overrides(TINY["report-encoder"], ["positions=64"])


def test_plans_write_nothing(corpus, base, encoder, tmp_path):
    said = []
    presets = [TINY["report-encoder"], with_overrides(TINY["base"], [f"report_encoder={encoder}"]), TINY["superres"]]
    for preset in presets:
        preset.plan(corpus, tmp_path, said.append)
    assert not any(tmp_path.iterdir())
    assert "4 reports; 6 steps of 4" in said[0]
    assert any(line.startswith("4 CT volumes; encoded rows take 0.00 GB") for line in said)


# ---- base model and super-resolution


def test_a_base_model_goes_on_exactly_and_opens(corpus, encoder, base, tmp_path):
    settings = [f"report_encoder={encoder}", "num_steps=3"]
    train(TINY["base"], corpus, tmp_path, *settings)
    train(TINY["base"], corpus, tmp_path, settings[0])
    assert_same_state(state_of(tmp_path), state_of(base))
    opened = open_model(str(tmp_path), solver="dpmpp-2m")
    assert (opened.solver, opened.id) == ("dpmpp-2m", tmp_path.name)
    latents = opened.family.sample([opened.resolve(Request("a", "Findings: No effusion.", 1, steps=1))])
    assert latents.shape == (1, 4, 8, 8, 8)


def test_a_run_keeps_what_was_read(corpus, base):
    run = runs.read_run(base)
    assert run["notes"]["volumes"] == ["4 CT volumes with voxels of 20.00, 22.00, 22.00 mm"]
    assert run["config"]["report_encoder"] != ""
    assert "/" not in run["config"]["report_encoder"]  # a digest, not a path
    (folder,) = [path for path in (base / "encoded").iterdir() if path.is_dir()]
    assert EncodedStore.open(folder)[0]["spacing_mm"].tolist() == [20, 22, 22]


def test_another_encoder_or_corpus_is_another_run(corpus, encoder, base, tmp_path):
    folder_of(tmp_path, build.chest(1))
    with pytest.raises(ConfigError, match="other values of: corpus"):
        train(TINY["base"], tmp_path, base, f"report_encoder={encoder}")
    with pytest.raises(ConfigError, match=r"other values of: .*learning_rate"):
        train(TINY["base"], corpus, base, f"report_encoder={encoder}", "learning_rate=1e-4")


def test_a_base_model_needs_an_encoder(corpus, tmp_path):
    with pytest.raises(ConfigError, match="reads reports through a trained encoder: give --set report_encoder"):
        train(TINY["base"], corpus, tmp_path / "run")
    with pytest.raises(ModelError, match=r"holds no .safetensors weights"):
        weights_digest(tmp_path)


def test_super_resolution_is_joined_also_later(corpus, base, tmp_path):
    report, said = train(TINY["superres"], corpus, tmp_path / "sr")
    assert "not joined" in said
    weights = load_file(tmp_path / "sr" / "model" / "diffusion_pytorch_model.safetensors")
    report, said = train(TINY["superres"], corpus, tmp_path / "sr", f"base={base}")
    assert (report.resumed_from, report.steps_done) == (6, 6)
    assert "joined with its base model" in said
    family = open_model(str(tmp_path / "sr")).family
    assert isinstance(family, MedSyn)
    assert family.grid.shape == (16, 16, 16)
    assert all(torch.equal(family.superres.unet.state_dict()[name], weight) for name, weight in weights.items())
    latents = family.sample([Request("a", "Findings: No effusion.", 1)])
    assert latents.shape == (1, 4, 16, 16, 16)
    train(TINY["superres"], corpus, tmp_path / "sr", f"base={base}")  # a third call changes nothing
    assert torch.equal(
        open_model(str(tmp_path / "sr")).family.sample([Request("a", "Findings: No effusion.", 1)]), latents
    )


def test_models_that_do_not_belong_together(corpus, base, tmp_path):
    other = dataclasses.replace(TINY["superres"], grid=dataclasses.replace(build.GRID, axes="SAL"), base=str(base))
    with pytest.raises(ConfigError, match=r"base: its grid has axes SPL, this run refines SAL"):
        train(other, corpus, tmp_path / "run")
    bent = dataclasses.replace(other, grid=dataclasses.replace(build.GRID, hu_knots=(-1024.0, 0.0, 600.0)))
    with pytest.raises(ConfigError, match=r"base: its grid has hu_knots \(-1024.0, 600.0\), this run refines"):
        train(bent, corpus, tmp_path / "run")
    with pytest.raises(ModelError, match=r"is no super-resolution model: superres.json is missing"):
        join_medsyn(base, base, tmp_path / "joined")


def test_a_ct_without_masks_trains_the_ct_alone(encoder, tmp_path):
    write(tmp_path / "ct" / "ct.nii.gz", build.chest(0).item.array_CDHW[0])
    settings = (f"report_encoder={encoder}", "masks=empty", "data.report=Normal chest.", "num_steps=1")
    _, said = train(TINY["base"], tmp_path / "ct", tmp_path / "run", *settings)
    assert "1 of them lack masks: their channels are empty, and no anatomy is learnt" in said
    (folder,) = [path for path in (tmp_path / "run" / "encoded").iterdir() if path.is_dir()]
    channels = EncodedStore.open(folder)[0]["channels"]
    assert channels[1:].eq(-1).all()
    assert len(MASKS) == len(channels) - 1


def test_a_scan_that_reaches_little_of_the_grid_is_told():
    columns = {"spacing_mm": torch.tensor([[5.0, 1, 1], [2.5, 1, 1]]), "covered": torch.tensor([0.4, 1])}

    class Store:
        def __len__(self):
            return 2

        def column(self, name):
            return columns.get(name, torch.tensor([3, 3]))

    assert told_of(Store()) == [
        "2 CT volumes with voxels of 2.50 to 5.00, 1.00, 1.00 mm",
        "1 of them reach less than half of the model's field of view; the rest is air",
    ]


def test_a_preview_shows_planes(corpus, encoder, tmp_path):
    preset = dataclasses.replace(
        TINY["base"],
        train=dataclasses.replace(TINY["base"].train, num_steps=1, preview_every=1),
        preview_prompts=("A.",),
    )
    train(preset, corpus, tmp_path, f"report_encoder={encoder}")
    (picture,) = (tmp_path / "previews").glob("*.png")
    assert picture.stat().st_size > 1000
    assert "preview_prompts" not in json.loads((tmp_path / "run.json").read_text())["config"]
