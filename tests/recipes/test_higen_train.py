"""The video presets: their numbers, runs on heart phantoms and on a curated corpus, resumed exactly, and refused."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import build_higen as build
from medisyn import runs
from medisyn.errors import ConfigError, CorpusError, ModelError
from medisyn.families.higen.config import ClipGrid
from medisyn.families.higen.model import HiGen
from medisyn.families.higen.networks import count_parameters
from medisyn.phantoms.heart import write_heart_phantoms
from medisyn.recipes import get_preset, with_overrides
from medisyn.recipes.higen_corpus import ClipData, ClipReader, fingerprint
from medisyn.recipes.higen_starter import STARTER_VIDEO, FrameReader, _is_new
from medisyn.recipes.higen_train import JointFrames, KeyFrames
from medisyn.recipes.sources import sources_of
from medisyn.training.launch import launch
from medisyn.training.precompute import EncodedStore
from medisyn.types import Clip, Picture

TINY = get_preset("medisyn-v1-video-tiny")
STEPS = "checkpoints/step-00000006/state.safetensors"


@pytest.fixture(scope="module")
def hearts(tmp_path_factory):
    out = tmp_path_factory.mktemp("hearts")
    write_heart_phantoms(out, 3, size=(48, 64), frames=6)
    return out


@pytest.fixture(scope="module")
def trained(hearts, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    report, said = train(TINY, hearts, out)
    return out, report, said


def train(preset, corpus, out, *assignments):
    """What `medisyn train` does, on one process; returns the report and what was said."""
    said = []
    preset = with_overrides(preset, assignments)
    preset.prepare(corpus, out, said.append, processes=1)
    return preset.run(corpus, out, said.append), "\n".join(said)


def keep_vocabulary(run, other):
    """Equal counts may give equal captions another vocabulary; within a run it is made once and kept."""
    shutil.copytree(run / "tokenizer", other / "tokenizer")


# ---- presets


def test_the_numbers_of_the_paper():
    """MediSyn v1 sections 3.2, 3.4 and 3.5."""
    preset = get_preset("medisyn-v1-video")
    assert (preset.train.num_steps, preset.train.learning_rate, preset.train.batch_size) == (10_053, 5e-5, 32)
    assert (preset.frames.batch_size, preset.frames.weight, preset.model.caption_dropout) == (512, 0.5, 0.1)
    assert preset.grid == ClipGrid(frames=32, height=256, width=448, frames_per_second=8.0)
    assert (preset.defaults.guidance, preset.defaults.motion, preset.defaults.appearance) == (12.0, 300.0, 0.7)
    assert preset.frame_encoder.startswith("dinov2:")
    assert preset.train.num_steps == 3 * preset.train.checkpoint_every  # table 2 judges three checkpoints


def test_every_value_has_a_source():
    preset = get_preset("medisyn-v1-video")
    sources = sources_of(preset)
    for part in ("train", "model", "defaults", "frames"):
        values = getattr(preset, part)
        for field in dataclasses.fields(values):
            if getattr(values, field.name) != field.default:
                assert f"{part}.{field.name}" in sources, f"{part}.{field.name} has no source"


# ---- a run


def test_a_run_on_heart_phantoms(hearts, trained):
    out, report, said = trained
    assert (report.steps_done, report.interrupted) == (6, False)
    assert "3 clips of 48 x 64 pixels, 1 windows of 4 frames each" in said
    assert "frames are compared by medical-encoder:" in said  # named, never silent
    record = runs.read_run(out)
    assert record["config"]["frame_encoder"] == "medical-encoder"
    assert any("medical-encoder:" in line for line in record["notes"]["clips"])
    assert str(hearts) not in json.dumps(record)
    first = runs.read_jsonl(out / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx((first["loss_clips"] + first["loss_frames"]) / 2)
    model = HiGen.from_folder(out / "model")
    assert (model.grid.height, model.grid.width, model.grid.frames_per_second) == (48, 64, 12.5)  # the corpus's
    (clip,) = model.decode(model.sample([build.request(0)]))
    assert clip.array_CTHW.shape == (3, 4, 48, 64)


def test_it_goes_on_exactly(hearts, trained, tmp_path):
    keep_vocabulary(trained[0], tmp_path)
    first, _ = train(TINY, hearts, tmp_path, "num_steps=2")
    again, _ = train(TINY, hearts, tmp_path)
    assert (first.steps_done, again.steps_done, again.resumed_from) == (2, 6, 2)
    whole, parts = load_file(trained[0] / STEPS), load_file(tmp_path / STEPS)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


RANK = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from medisyn.recipes import get_preset, with_overrides
from medisyn.training.launch import leave_together
preset = with_overrides(get_preset("medisyn-v1-video-tiny"), ["network.dropout=0"])
preset.run(Path(sys.argv[1]), Path(sys.argv[2]), print)
leave_together()
"""


def test_two_processes_train_what_one_does(hearts, tmp_path, monkeypatch):
    """One process on clips and one on frames, without dropout, whose draws are each process's."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    two, one = tmp_path / "two", tmp_path / "one"
    with_overrides(TINY, ["network.dropout=0"]).prepare(hearts, two, print, processes=2)
    assert launch([sys.executable, "-c", RANK, str(hearts), str(two)], 2) == 0
    keep_vocabulary(two, one)
    train(TINY, hearts, one, "network.dropout=0")
    for a, b in zip(*(runs.read_jsonl(out / "metrics.jsonl") for out in (one, two)), strict=True):
        for name in ("loss_clips", "loss_frames", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=2e-3)  # float32 sums in another order, then Adam's division
    mine, theirs = load_file(one / STEPS), load_file(two / STEPS)
    for name, weight in mine.items():
        if name.startswith("weight"):
            torch.testing.assert_close(theirs[name], weight, rtol=1e-2, atol=5e-4)


def test_the_plan_writes_nothing(hearts, tmp_path):
    said = []
    TINY.plan(hearts, tmp_path / "out", said.append)
    assert "3 clips, 1 windows of each" in said[0]
    assert "6 steps of 2 clips and 4 frames" in said[1]
    assert not (tmp_path / "out").exists()


def test_a_trained_model_is_a_base(hearts, trained, tmp_path):
    base = dataclasses.replace(TINY, base=str(trained[0]), network=None, image=None)
    family = base.family(tmp_path, base.reader(hearts), encodes=False)
    stored = load_file(trained[0] / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(weight, stored[name]) for name, weight in family.unet.state_dict().items())
    assert base.record()["base"] == trained[0].name


def test_an_image_model_is_a_base(hearts, tmp_path):
    from medisyn.families.stable_diffusion.model import StableDiffusion
    from medisyn.families.stable_diffusion.text import train_tokenizer

    image = dataclasses.replace(TINY.image, unet_widths=(16, 16), unet_attention=(True, False), unet_heads=2)
    StableDiffusion.from_config(image, train_tokenizer(["a heart"], window=32)).save(tmp_path / "sd")
    base = dataclasses.replace(TINY, base=str(tmp_path / "sd"), network=None, image=None)
    family = base.family(tmp_path, base.reader(hearts), encodes=False)
    stored = load_file(tmp_path / "sd" / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(family.unet.stem.weight, stored["conv_in.weight"])
    again = base.family(tmp_path, base.reader(hearts), encodes=False)  # new parts too: the same each time
    assert all(torch.equal(a, b) for a, b in zip(family.unet.parameters(), again.unet.parameters(), strict=True))
    xl = dataclasses.replace(image, xl=True)
    StableDiffusion.from_config(xl, train_tokenizer(["a heart"], window=32)).save(tmp_path / "xl")
    with pytest.raises(ModelError, match="not on SDXL or inpainting"):
        dataclasses.replace(base, base=str(tmp_path / "xl")).family(tmp_path, base.reader(hearts), encodes=False)


def test_clips_alone(hearts, tmp_path):
    train(TINY, hearts, tmp_path, "frames.batch_size=0", "num_steps=1", "train.checkpoint_every=1")
    assert "loss_frames" not in runs.read_jsonl(tmp_path / "metrics.jsonl")[0]


def test_settings_that_are_refused(hearts, trained):
    with pytest.raises(ConfigError, match="give either base, a model to start from, or network and image"):
        dataclasses.replace(TINY, base="x")
    with pytest.raises(ConfigError, match="weight between 0 and 1"):
        JointFrames(batch_size=1, micro_batch_size=1, weight=1.0)
    with pytest.raises(ConfigError, match="other values of: frames"):
        train(TINY, hearts, trained[0], "frames.weight=0.25")
    with pytest.raises(ConfigError, match="windows must be at least 1"):
        ClipData(windows=0)


# ---- corpora


def test_key_frames_are_read_from_the_clips_rows(trained):
    (folder,) = [path.parent for path in trained[0].glob("encoded/*/manifest.json") if b"motion" in _names(path)]
    clips = EncodedStore.open(folder)
    frames = KeyFrames(clips)
    assert (len(frames), frames.variants, frames.keys[0]) == (3, 1, "heart-000000/key-frame")
    assert torch.equal(frames[1]["mean"], clips[1]["mean"][:, int(clips[1]["key"])][:, None])


def _names(manifest):
    return (manifest.parent / "rows-00000.safetensors").read_bytes()[:2000]


def test_windows_are_drawn_by_key_and_visit(hearts):
    reader = ClipReader(hearts, ClipData(windows=8), 4)
    starts = [reader.window(reader(0), visit).metadata["first_frame"] for visit in range(8)]
    assert set(starts) <= {0, 1, 2}  # 6 frames in windows of 4
    assert len(set(starts)) > 1
    assert starts == [reader.window(reader(0), visit).metadata["first_frame"] for visit in range(8)]
    long = ClipReader(hearts, ClipData(), 9).window(reader(0), 0)
    assert long.masks["valid"].any(axis=(1, 2)).tolist() == [True] * 6 + [False] * 3


def test_a_folder_s_fingerprint_follows_its_clips(hearts, tmp_path):
    write_heart_phantoms(tmp_path, 3, size=(48, 64), frames=6)
    assert fingerprint(tmp_path) == fingerprint(hearts)
    (tmp_path / "heart-000001" / "caption.txt").write_text("another")
    assert fingerprint(tmp_path) != fingerprint(hearts)


def test_corpora_that_are_refused(hearts, tmp_path):
    with pytest.raises(CorpusError, match=r"no clip with a caption in the corpus: give a folder of `medisyn curate`"):
        TINY.reader(tmp_path).keys  # noqa: B018
    write_heart_phantoms(tmp_path / "hearts", 1, size=(48, 64), frames=4)
    (tmp_path / "hearts" / "heart-000000" / "caption.txt").write_text(" ")
    with pytest.raises(CorpusError, match=r"heart-000000: its clip has no caption"):
        TINY.reader(tmp_path / "hearts").keys  # noqa: B018


# ---- starter-video


def tiny_starter():
    tiny = STARTER_VIDEO
    settings = dataclasses.replace(TINY.train, num_steps=2, checkpoint_every=2)
    stage = dataclasses.replace(tiny.autoencoder, train=settings, crop=16)
    return dataclasses.replace(
        tiny,
        phantoms=dataclasses.replace(tiny.phantoms, count=2),
        network=dataclasses.replace(TINY.network, latent_channels=8, pooled_text=True),
        image=dataclasses.replace(TINY.image, latent_channels=8),
        grid=ClipGrid(frames=4, height=48, width=64),
        defaults=TINY.defaults,
        autoencoder=stage,
        text=settings,
        diffusion=settings,
        decoder=dataclasses.replace(stage, adversarial_weight=0.05, feature_weight=0.5),
        preview_prompts=("a heart",),
    )


def test_starter_video_from_nothing(tmp_path):
    run, corpus, out, said = tiny_starter(), tmp_path / "corpus", tmp_path / "out", []
    run.plan(corpus, out, said.append)
    assert "2 heart phantoms are made" in said[0]
    assert not corpus.exists()
    run.prepare(corpus, out, said.append, processes=1)
    report = run.run(corpus, out, said.append)
    assert report.model == out / "model"
    assert not _is_new(corpus)
    assert [line for line in said if line.startswith("stage")] == [
        "stage 1 of 5: autoencoder",
        "stage 2 of 5: text",
        "stage 3 of 5: diffusion",
        "stage 4 of 5: decoder",
        "stage 5 of 5: model folder",
    ]
    model = HiGen.from_folder(out / "model")
    trained, start = HiGen.from_folder(out / "diffusion" / "model"), HiGen.from_folder(out / "start")
    assert model.vae.config.scaling_factor == trained.vae.config.scaling_factor != 0.18215
    assert torch.equal(trained.vae.encoder.conv_in.weight, start.vae.encoder.conv_in.weight)  # frozen
    assert not torch.equal(model.vae.decoder.conv_in.weight.float(), start.vae.decoder.conv_in.weight)  # sharpened
    assert not torch.equal(
        trained.reader.encoder.state_dict()["text_model.embeddings.token_embedding.weight"]
        if "text_model.embeddings.token_embedding.weight" in trained.reader.encoder.state_dict()
        else trained.reader.encoder.get_input_embeddings().weight,
        start.reader.encoder.get_input_embeddings().weight,
    )
    (clip,) = model.decode(model.sample([build.request(0)]))
    assert clip.array_CTHW.shape == (3, 4, 48, 64)
    assert run.run(corpus, out, said.append).loss is None  # a second call only opens what is there
    with pytest.raises(ModelError, match=r"at most 0.001 MB ship"):
        dataclasses.replace(run, max_megabytes=0.001).run(corpus, out, said.append)
    with pytest.raises(ConfigError, match="one process"):
        run.prepare(corpus, out, said.append, processes=2)
    previews = list((out / "diffusion" / "previews").glob("*.png"))
    assert previews == []  # preview_every is 0 here
    (corpus / "table.csv").unlink()
    with pytest.raises(CorpusError, match=r"the corpus has no table\.csv, from which labels are read"):
        run.run(corpus, tmp_path / "another", said.append)
    assert not (tmp_path / "another").exists()  # before any stage


def test_starter_video_is_small_enough_to_ship():
    assert count_parameters(STARTER_VIDEO.network) < 6e6
    assert (STARTER_VIDEO.grid.frames, STARTER_VIDEO.grid.height, STARTER_VIDEO.grid.width) == (16, 64, 112)


def test_the_autoencoder_sees_evenly_spaced_frames(hearts):
    clips = ClipReader(hearts, ClipData(), 6)
    whole = clips.window(clips(1), 0).item
    for number, frame in ((0, 0), (1, 2), (2, 4)):
        picture = FrameReader(clips, 3).frame(clips(1), number).item
        assert isinstance(picture, Picture)
        np.testing.assert_array_equal(picture.array_CHW, whole.array_CTHW[:, frame])


def test_previews_show_eight_frames_of_each_clip(tmp_path):
    from PIL import Image

    from medisyn.recipes.higen_preview import ClipPreview

    ClipPreview(build.model(), ["a heart", "another"])(tmp_path / "preview.png")
    assert Image.open(tmp_path / "preview.png").size == (8 * build.WIDTH, 2 * build.HEIGHT)
    assert isinstance(build.sample().item, Clip)
