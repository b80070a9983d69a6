"""Folders and corpora of clips as the evaluation reads them: which file of a name, which prompt, no padding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import build_source
import build_video
from generation import fake_clips
from generation.fake_clips import FakeClips
from medisyn.cli import main
from medisyn.corpus.curate import curate
from medisyn.corpus.loader import Corpus
from medisyn.corpus.splits import Shares
from medisyn.errors import InputError, ReadError
from medisyn.evaluation.features.encoder import MedicalEncoder, save_network
from medisyn.generation.clip_files import write_ffv1, write_gif, write_mp4
from medisyn.recipes.evaluate_clips import (
    clips_of,
    evaluate_clips,
    find_clips,
    read_clip,
    real_clips,
    rgb_frames,
    without_padding,
)
from medisyn.recipes.evaluate_folder import kind_of
from medisyn.recipes.evaluate_sets import IN_HALVES, IN_SPLITS, SetSettings
from medisyn.recipes.generate_clips import generate_clips
from medisyn.types import Clip

RECORD = {"prompt": "p", "seed": 1, "model": "m", "model_digest": "d"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MedicalEncoder(["a", "b"], widths=(8, 16), size=16)
    folder = tmp_path_factory.mktemp("encoder")
    save_network(network, folder, network.config)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twelve clips of 24 x 24 pixels, framed as 16 x 28: six black columns on each side; all in the test split."""
    base = tmp_path_factory.mktemp("clips")
    files = base / "files"
    files.mkdir()
    rows = []
    for n in range(12):
        build_video.write(files / f"{n}.mkv", build_video.moving(9, 24, 24, seed=n), "ffv1", "bgr0")
        rows.append({"file": f"{n}.mkv", "patient": f"p{n}", "finding": "effusion"})
    build_source.write_table(files / "table.csv", rows)
    take = {"kind": "clip", "captions": ["Ultrasound clip"], "labels": ["{finding}"]}
    described = build_source.source(files, samples=[take], image_type="ultrasound")
    curate(described, base / "corpus", shares=Shares(1e-9, 0.0, 1.0))
    return base / "corpus"


def clip(seed: int = 0) -> Clip:
    return Clip(np.random.default_rng(seed).integers(0, 256, (3, 5, 16, 24), dtype=np.uint8), frames_per_second=8)


def generated(folder: Path, count: int, **settings) -> Path:
    asked = fake_clips.requests(count, **settings)
    generate_clips(asked, FakeClips(), folder, model=fake_clips.MODEL, formats=["mkv", "mp4", "gif"])
    return folder


def test_of_one_name_the_lossless_file_is_read(tmp_path):
    generated(tmp_path / "g", 2)
    found = find_clips(tmp_path / "g")
    assert [file.path.name for file in found] == ["000.mkv", "001.mkv"]
    items = clips_of(tmp_path / "g")
    for file, item, request in zip(found, items, fake_clips.requests(2), strict=True):
        assert (item.key, item.caption) == (file.key, file.prompt) == (request.key, request.prompt)
        np.testing.assert_array_equal(item.read(), fake_clips.pixels(request).transpose(1, 2, 3, 0))
    assert kind_of(tmp_path / "g") == "clips"


def test_order_of_kinds_and_names_in_folders(tmp_path):
    write_mp4(tmp_path / "a" / "x.mp4", clip(), RECORD)
    write_gif(tmp_path / "a" / "x.gif", clip(), RECORD)
    write_gif(tmp_path / "b" / "x.gif", clip(), RECORD)
    np.savez(tmp_path / "b" / "y.npz", array_CTHW=clip().array_CTHW)
    write_mp4(tmp_path / "b" / "y.mp4", clip(), RECORD)
    places = [str(file.path.relative_to(tmp_path)) for file in find_clips(tmp_path)]
    assert places == ["a/x.mp4", "b/x.gif", "b/y.npz"]


def test_prompts_of_phantoms_and_sidecars(tmp_path):
    write_ffv1(tmp_path / "h" / "clip.mkv", clip(), RECORD)
    (tmp_path / "h" / "caption.txt").write_text("A4C view.\n")
    np.savez(tmp_path / "h" / "masks.npz", labels_THW=np.zeros((5, 16, 24), np.uint8))
    write_mp4(tmp_path / "one.mp4", clip(), RECORD)
    (tmp_path / "one.json").write_text(json.dumps({"medisyn": {"prompt": "A2C view.", "key": "k", "motion": 3}}))
    first, second = find_clips(tmp_path)
    assert (first.path.name, first.prompt, first.record) == ("clip.mkv", "A4C view.", {})
    assert (second.key, second.prompt, second.record["motion"]) == ("k", "A2C view.", 3)
    (tmp_path / "one.json").write_text("{")
    with pytest.raises(ReadError, match=r"one.json: not readable JSON"):
        find_clips(tmp_path)


def test_a_folder_with_masks_alone_holds_no_clip(tmp_path):
    np.savez(tmp_path / "masks.npz", labels_THW=np.zeros((5, 16, 24), np.uint8))
    with pytest.raises(InputError, match=r"holds no clip: no file that ends in .mkv"):
        find_clips(tmp_path)


@pytest.mark.parametrize("name", ["x.mkv", "x.mp4", "x.gif"])
def test_a_damaged_video_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"x" * 64)
    with pytest.raises(ReadError, match=rf"{name}: "):
        read_clip(tmp_path / name)


def test_grey_and_colour_come_as_rgb(tmp_path):
    grey = Clip(clip().array_CTHW[:1])
    write_ffv1(tmp_path / "g.mkv", grey, RECORD)
    frames = rgb_frames(tmp_path / "g.mkv")
    assert frames.shape == (5, 16, 24, 3)
    np.testing.assert_array_equal(frames[..., 2], grey.array_CTHW[0])


# ---- padding


def test_padding_is_cut_off_by_hand():
    array = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(1, 2, 4, 5)
    valid = np.zeros((2, 4, 5), np.uint8)
    valid[:1, 1:3, 2:5] = 1
    np.testing.assert_array_equal(without_padding(array, valid), array[:, :1, 1:3, 2:5])
    assert without_padding(array, None) is array
    with pytest.raises(InputError, match="is all padding"):
        without_padding(array, np.zeros_like(valid))


def test_clips_of_a_corpus_come_without_their_padding(corpus):
    real, opened = real_clips(corpus, 0), Corpus(corpus)
    assert (real.fingerprint, real.parted) == (opened.fingerprint, IN_HALVES)  # there is no training split
    items = sorted([*real.held_out, *real.other], key=lambda item: item.key)
    assert (len(real.held_out), len(items)) == (6, 12)
    for row, item in zip(sorted(opened.rows("test"), key=lambda row: row.key), items, strict=True):
        assert item.read().shape == (9, 16, 16, 3)
        whole = opened.read(row).item.array_CTHW
        np.testing.assert_array_equal(item.read(), whole[:, :, :, 6:22].transpose(1, 2, 3, 0))
    assert len({item.patient for item in items}) == 12


def test_clips_against_a_corpus(corpus, encoder, tmp_path, capsys):
    folder = generated(tmp_path / "g", 6)
    command = ["evaluate", str(folder), "--against", str(corpus), "--weights", str(encoder), "--resamples", "3"]
    assert main([*command, "--cache", str(tmp_path / "c"), "--out", str(tmp_path / "o")]) == 0
    result = json.loads((tmp_path / "o" / "result.json").read_text())
    assert {measure["n_first"] for measure in result["measures"]} == {6}
    assert result["corpus"] == Corpus(corpus).fingerprint
    assert result["model"]["id"] == "fake-clips"
    page = (tmp_path / "o" / "report.html").read_text()
    assert "These distances are no Fréchet video distance" in page
    assert "medical-encoder-frames" in page


def test_the_baseline_of_a_corpus_is_of_its_training_split_and_no_larger(corpus, monkeypatch):
    """So few clips of few patients need not be parted."""
    rows = Corpus(corpus).rows("test")
    monkeypatch.setattr(Corpus, "rows", lambda self, split=None: rows[:4] if split == "test" else rows[4:])
    real = real_clips(corpus, 0)
    assert [item.key for item in real.held_out] == [row.key for row in rows[:4]]
    assert len(real.other) == 4
    assert {item.key for item in real.other} < {row.key for row in rows[4:]}
    assert real.parted == IN_SPLITS
    assert real_clips(corpus, 1).other != real.other


def test_a_corpus_without_clips(encoder, tmp_path):
    from build_corpus import tiny_corpus

    folder = generated(tmp_path / "g", 2)
    pictures = tiny_corpus(tmp_path / "pictures")
    settings = SetSettings(extractor="medical-encoder-frames", resamples=2)
    with pytest.raises(InputError, match=r"of the corpus is a Picture, not a clip"):
        evaluate_clips(folder, pictures, settings, weights=encoder, cache=tmp_path / "c")


def test_a_corpus_without_a_test_split(encoder, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(Corpus, "rows", lambda self, split=None: [])
    with pytest.raises(InputError, match="the corpus has no clips in the split 'test'"):
        real_clips(corpus, 0)
