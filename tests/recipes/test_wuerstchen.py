"""The wiring of MediSyn v1's image model: presets, the built base, resuming, two processes, generation, stage check."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import build_corpus
from medisyn import ffv1, runs
from medisyn.cli import main
from medisyn.corpus.loader import Corpus
from medisyn.corpus.shards import Entry, write_index, write_shard
from medisyn.errors import ConfigError, InputError, ModelError
from medisyn.families.wuerstchen.model import Wuerstchen
from medisyn.recipes import PRESETS, with_overrides
from medisyn.recipes.evaluate_stages import _drawn, by_frame, evaluate_stages, open_stages
from medisyn.recipes.models import open_model
from medisyn.recipes.train_preset import train_preset
from medisyn.recipes.wuerstchen import MEDISYN_V1_IMAGE, MEDISYN_V1_IMAGE_TINY

PRIOR = "model/prior/diffusion_pytorch_model.safetensors"
NAME = "medisyn-v1-image-tiny"
QUICK = ("judge.images=0", "preview.pictures=0", "precision=fp32", "checkpoint_every=4", "micro_batch_size=3")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_corpus.tiny_corpus(tmp_path_factory.mktemp("corpus"), count=20, size=64)


@pytest.fixture(scope="module")
def straight(corpus, tmp_path_factory):
    """Eight steps without a stop."""
    out = tmp_path_factory.mktemp("straight") / "run"
    train_preset(NAME, corpus, out, assignments=QUICK, num_steps=8)
    return out


def test_the_papers_numbers():
    run = MEDISYN_V1_IMAGE
    assert (run.train.learning_rate, run.train.batch_size, run.train.epochs) == (1e-4, 256, 3)
    assert (run.train.ema_start, run.train.ema_interval) == (1500, 100)
    assert (run.model.caption_dropout, run.model.drop_unit, run.model.loss_weight) == (0.05, "sample", "p2")
    assert (run.defaults.guidance, run.defaults.steps, run.defaults.decoder_steps) == (6.0, 60, 12)
    assert (run.defaults.height, run.defaults.decoder_guidance) == (1024, 0.0)
    assert PRESETS["medisyn-v1-image"] is run
    plain = with_overrides(run, ["loss_weight=none", "time_sampling=uniform", "drop_unit=batch"])
    assert (plain.model.loss_weight, plain.model.time_sampling, plain.model.drop_unit) == ("none", "uniform", "batch")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"balance": "what"}, "balance must be one of"),
        ({"base": "somewhere"}, "give either base, a model to start from, or sizes"),
        ({"decoder": "somewhere"}, "has its own decoder and image_encoder"),
        ({"encode_batch_size": 0}, "encode_batch_size must be at least 1, got 0"),
    ],
)
def test_refused_settings(changes, text):
    with pytest.raises(ConfigError, match=text):
        dataclasses.replace(MEDISYN_V1_IMAGE_TINY, **changes)


def test_a_stopped_run_goes_on_bit_for_bit(corpus, straight, tmp_path):
    """Four steps, then the rest: weights, average, draws and the order of samples are those of one run."""
    for steps in (4, 8):
        train_preset(NAME, corpus, tmp_path / "run", assignments=QUICK, num_steps=steps)
    assert (tmp_path / "run" / PRIOR).read_bytes() == (straight / PRIOR).read_bytes()
    state = [load_file(out / "checkpoints/step-00000008/state.safetensors") for out in (tmp_path / "run", straight)]
    assert all(torch.equal(state[0][key], state[1][key]) for key in state[0])


def test_two_processes_train_as_one(corpus, straight, tmp_path):
    out = tmp_path / "run"
    train_preset(NAME, corpus, out, assignments=QUICK, num_steps=2, processes=2)
    assert runs.read_run(out)["processes"] == 2
    one, two = (runs.read_jsonl(folder / "metrics.jsonl") for folder in (straight, out))
    for a, b in zip(one[:2], two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def test_only_stage_c_is_trained_and_everything_is_exported(straight):
    base, trained = Wuerstchen.from_folder(straight / "base"), Wuerstchen.from_folder(straight / "model")
    for name in ("decoder", "vqgan", "image_encoder", "text_encoder", "decoder_text_encoder"):
        before, after = getattr(base.networks, name).state_dict(), getattr(trained.networks, name).state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before), name
    before, after = base.networks.prior.state_dict(), trained.networks.prior.state_dict()
    assert not torch.equal(before["projection.weight"], after["projection.weight"])
    assert trained.native_size == (64, 64)


def test_the_rows_are_those_of_encode_and_each_caption_is_kept_once(corpus, straight):
    opened = Corpus(corpus)
    family = MEDISYN_V1_IMAGE_TINY.family(straight, opened)
    store = MEDISYN_V1_IMAGE_TINY.store(family, corpus, straight, opened, processes=1)
    rows = opened.rows("train")
    assert (len(store), len(store.shared)) == (12, len({row.caption for row in rows}))
    expected = family.encode([opened.read(row) for row in rows[:8]])
    assert torch.equal(store[3]["text"], expected["text"][3])
    torch.testing.assert_close(store[3]["latents"], expected["latents"][3])
    assert len(list((straight / "encoded").iterdir())) == 2  # nothing was encoded again


def test_a_base_from_a_folder(corpus, straight, tmp_path):
    """A trained model is fine-tuned again; the corpus's size is that of the run, whatever the folder says."""
    run = dataclasses.replace(MEDISYN_V1_IMAGE_TINY, base=str(straight), sizes=None)
    family = run.family(tmp_path, Corpus(corpus))
    assert family.native_size == (64, 64)
    odd = build_corpus.tiny_corpus(tmp_path / "odd", count=10, size=40)
    with pytest.raises(InputError, match="size 40x40 must be a multiple of 16 pixels"):
        run.family(tmp_path, Corpus(odd))
    bare = dataclasses.replace(family.networks, image_encoder=None)
    Wuerstchen(bare, grid=family.grid, defaults=family.defaults).save(tmp_path / "bare")
    with pytest.raises(ModelError, match="no image encoder"):
        dataclasses.replace(run, base=str(tmp_path / "bare")).family(tmp_path, Corpus(corpus))


def test_weights_by_class(corpus):
    opened = Corpus(corpus)
    assert MEDISYN_V1_IMAGE_TINY._weights(opened) is None
    for balance in ("class", "image_type"):
        weights = dataclasses.replace(MEDISYN_V1_IMAGE_TINY, balance=balance)._weights(opened)
        assert len(weights) == 12
        assert weights.sum() == pytest.approx(1)


def test_trained_previewed_planned_generated(corpus, tmp_path, capsys):
    out, command = tmp_path / "run", ["train", NAME, "--corpus", str(corpus), "--set", "judge.images=0"]
    assert main([*command, "--out", str(tmp_path / "plan"), "--dry-run"]) == 0
    assert "20 steps of 8, a checkpoint every 10" in capsys.readouterr().out
    assert not (tmp_path / "plan").exists()
    assert main([*command, "--out", str(out), "--steps", "2", "--set", "preview_every=2"]) == 0
    assert len(list((out / "previews").iterdir())) == 1
    made = tmp_path / "made"
    assert main(["generate", "red disc on black", "--model", str(out), "--out", str(made), "-n", "2"]) == 0
    (record, _) = runs.read_jsonl(made / "metadata.jsonl")
    assert (record["steps"], record["guidance"], record["height"]) == (2, 2.0, 64)
    assert open_model(str(out)).solver == "ancestral"
    short = open_model(str(out), solver="ancestral-short")
    assert short.family.defaults.solver == "ancestral-short"
    with pytest.raises(ConfigError, match="solver 'ddim' is unknown"):
        open_model(str(out), solver="ddim")


# ---- the stage check


def test_both_stages_are_checked_beside_table_3(corpus, straight, tmp_path, capsys):
    arguments = ["evaluate", str(straight), "--stages", "--against", str(corpus), "--split", "train", "--count", "3"]
    assert main([*arguments, "--out", str(tmp_path / "o"), "--resamples", "10", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["stages"]
    assert first["name"].startswith("Stage A of ")
    assert second["name"].startswith("Stages B and A of ")
    assert {first["verdict"], second["verdict"]} == {"fine-tune"}  # random weights
    assert (first["n"], len(second["ssim_N"])) == (3, 3)
    page = (tmp_path / "o" / "report.html").read_text()
    assert "Stage B (MediSyn v1)" in page
    assert "Stages B and A of run: from the lowest to the highest" in page


def test_stage_b_is_told_the_caption_and_a_picture_gives_the_same_whatever_the_batch(corpus, straight, monkeypatch):
    told = []
    rebuild = Wuerstchen.rebuild_from_features

    def listen(self, samples, seeds):
        told.extend((sample.caption, seed) for sample, seed in zip(samples, seeds, strict=True))
        return rebuild(self, samples, seeds)

    monkeypatch.setattr(Wuerstchen, "rebuild_from_features", listen)
    evaluate_stages(str(straight), corpus, split="test", count=2, resamples=2, out=straight.parent / "stages")
    captions = [row.caption for row in Corpus(corpus).rows("test")]
    assert [caption for caption, _ in told[:2]] == captions
    assert {told[0], told[1]} == set(told)  # the examples are rebuilt with the same captions and seeds


def test_odd_sides_and_clips_come_back_as_they_were(straight):
    clip = np.random.default_rng(0).integers(0, 256, (2, 33, 47, 3), dtype=np.uint8)
    for _, rebuild in open_stages(str(straight), {}):
        (rebuilt,) = by_frame(rebuild)([clip])
        assert (rebuilt.shape, rebuilt.dtype) == (clip.shape, np.uint8)
        np.testing.assert_array_equal(rebuilt[1], rebuild([clip[1]])[0])


def test_clips_of_a_corpus_are_checked_by_frame_without_padding(straight, tmp_path):
    rows, entries = [], []
    for number in range(2):
        frames = np.random.default_rng(number).integers(0, 256, (3, 3, 32, 48), dtype=np.uint8)
        content, key = ffv1.encode(frames), f"clip-{number}"
        entries.append(Entry(key, content, "A4C view.", {}, "mkv"))
        row = build_corpus._row(key, "A4C view.", content, "test-000000.tar", 0, "test")
        rows.append(dataclasses.replace(row, frames=3, fps=8.0, valid=(0, 8, 32, 40)))
    offsets = write_shard(tmp_path / "test-000000.tar", entries)
    rows = [dataclasses.replace(row, offset=offset) for row, offset in zip(rows, offsets, strict=True)]
    write_index(tmp_path / "index.parquet", rows)
    check = evaluate_stages(str(straight), tmp_path, count=2, resamples=2, out=tmp_path / "o")
    assert [one.name.endswith("by frame") for one in check.checks] == [True, True]
    assert [one.n for one in check.checks] == [2, 2]
    assert "2 clips: fine-tune" in check.summary()
    items = _drawn(Corpus(tmp_path), "test", 2, 0, {}, clips=True)
    assert [item.read().shape for item in items] == [(3, 32, 32, 3)] * 2  # columns 8 to 40 are real
    run = dataclasses.replace(MEDISYN_V1_IMAGE_TINY, base=str(straight), sizes=None, split="test")
    with pytest.raises(InputError, match="this model learns from uint8 pictures, got Clip"):
        run.family(tmp_path, Corpus(tmp_path))
    with pytest.raises(InputError, match="no images or clips in the split 'train'"):
        evaluate_stages(str(straight), tmp_path, split="train", count=2, out=tmp_path / "p")
