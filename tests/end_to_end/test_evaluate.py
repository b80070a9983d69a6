"""`medisyn evaluate` on a tiny corpus and a tiny encoder with random weights; and the training of encoder and judge."""

import hashlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from medisyn.cli import main
from medisyn.corpus.loader import Corpus
from medisyn.corpus.shards import Entry, Row, write_index, write_shard
from medisyn.errors import InputError, ReadError
from medisyn.evaluation.classify import JudgeNetwork, load_judge, save_judge
from medisyn.evaluation.evaluate import result_from_dict
from medisyn.evaluation.features.encoder import MedicalEncoder, load_encoder, save_network
from medisyn.recipes import alignment, medical_encoder
from medisyn.recipes.alignment import ClipPair
from medisyn.recipes.corpus_images import (
    LabelledImage,
    at_size,
    corpus_images,
    generated_images,
    labels_of,
    read_rgb,
    rgb,
)
from medisyn.recipes.evaluate_images import (
    EvaluateSettings,
    at_shape,
    class_mix_difference,
    evaluate_images,
    user_cache,
)
from medisyn.types import UINT8, UNIT, Clip, Picture

CLASSES = {"red": (200, 40, 40), "blue": (40, 40, 200)}


def pixels(colour, seed, size=32):
    noise = np.random.default_rng(seed).integers(-40, 40, (size, size, 3))
    return np.clip(np.array(CLASSES[colour]) + noise, 0, 255).astype(np.uint8)


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def build_corpus(folder, counts):
    """`counts`: split -> images per colour; the last two of a split share a patient."""
    entries, rows, seed = [], [], 0
    for split, count in counts.items():
        for colour in CLASSES:
            for number in range(count):
                seed += 1
                content = png(pixels(colour, seed))
                key = f"{split}-{colour}-{number:02d}"
                row = Row(
                    key=key,
                    shard="all-000000.tar",
                    offset=0,
                    size=len(content),
                    split=split,
                    specialty="pathology",
                    image_type="histopathology",
                    caption=f"A {colour} slide",
                    labels=(colour,),
                    patient=f"p-{split}-{colour}-{min(number, count - 2)}",
                    source="test",
                    licence="CC0",
                    sha256=hashlib.sha256(content).hexdigest(),
                    phash="0" * 16,
                    low=0,
                    high=255,
                    unit="uint8",
                    spacing=None,
                )
                entries.append(Entry(key, content, row.caption, {}))
                rows.append(row)
    offsets = write_shard(folder / "all-000000.tar", entries)
    write_index(folder / "index.parquet", [replace(r, offset=o) for r, o in zip(rows, offsets, strict=True)])
    return folder


def build_generated(folder, images, **columns):
    folder.mkdir()
    lines = []
    for number, (colour, array) in enumerate(images):
        Image.fromarray(array).save(folder / f"{number:02d}.png")
        record = {"file_name": f"{number:02d}.png", "text": f"A {colour} slide", "key": f"g-{number:02d}", **columns}
        lines.append(json.dumps(record))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_corpus(tmp_path_factory.mktemp("real") / "corpus", {"train": 10, "test": 6})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MedicalEncoder(["a", "b"], widths=(8, 16), size=32)
    folder = tmp_path_factory.mktemp("encoder")
    save_network(network, folder, network.config)
    return folder


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """Ten images: nine new ones, and the first training image, mirrored."""
    images = [(colour, pixels(colour, 1000 + n)) for n, colour in enumerate(["red", "blue"] * 5)]
    images[0] = ("red", np.ascontiguousarray(pixels("red", 1)[:, ::-1]))
    return build_generated(tmp_path_factory.mktemp("synthetic") / "a", images, model="m", model_digest="d" * 64)


def write_judge(corpus, folder):
    """A judge that needs no training: it compares the means of red and blue."""
    network = JudgeNetwork(["histopathology/blue", "histopathology/red"], widths=(2,), size=8)
    convolution = network.layers[0]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        convolution.weight[0, 2, 1, 1] = convolution.weight[1, 0, 1, 1] = 1.0
        network.layers[1].weight.fill_(1.0)
        network.head.weight[0, 0] = network.head.weight[1, 1] = 1.0
    save_judge(network, folder, {"trained_on": Corpus(corpus).fingerprint})
    return folder


def test_the_command(corpus, encoder, synthetic, tmp_path, capsys):
    arguments = ["evaluate", str(synthetic), "--against", str(corpus), "--weights", str(encoder), "--resamples", "10"]
    arguments += ["--judge", str(write_judge(corpus, tmp_path / "judge")), "--cache", str(tmp_path / "cache")]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)

    # distances: ten of each, brought to the smallest set
    assert {measure["n_first"] for measure in result["measures"]} == {10}
    assert result["measures"][0]["extractor"] == load_encoder(encoder).id
    assert result_from_dict(result).measure("frechet").value == result["measures"][0]["value"]

    # likeness within a class: 2 pairs of each on both sides, as five generated images allow; noise is unlike noise
    assert [(row["name"], row["num_pairs"]) for row in result["diversity"]["real"]] == [("", 4)]
    assert result["diversity"]["generated"][-1]["value"] < 0.9

    # classes: from the captions, as the prompts were the corpus's own
    assert [(row["name"], row["n"]) for row in result["classes"]["generated"]] == [
        ("histopathology/blue", 5),
        ("histopathology/red", 5),
        ("all", 10),
        ("all, image type alone", 10),
    ]
    assert result["classes"]["generated"][2]["correct"] == 10
    assert result["classes"]["held-out real"][-1]["n"] == 12

    # the planted mirror image is found, the others are not near
    assert result["copies"]["generated"]["minimum"] == 0.0
    assert result["copies"]["generated"]["at_or_below"] >= 1
    assert result["copies"]["held-out real"]["n"] == 12

    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    tables = {"classes.csv", "copies.csv", "counts.csv", "diversity.csv", "measures.csv"}
    assert names >= tables | {"report.html", "result.json", "run.json"}
    html = (out / "report.html").read_text()
    assert "mirrored (horizontal)" in html
    assert "Fewer than 100 images" in html
    run = json.loads((out / "run.json").read_text())
    assert (run["kind"], run["corpus"]) == ("evaluate", result["corpus"])
    assert run["model"] == result["model"] == {"id": "m", "digest": "d" * 64}

    # again: same numbers, features from the cache
    assert main([*arguments, "--out", str(tmp_path / "again")]) == 0
    text = capsys.readouterr().out
    assert "class named right, generated: 10 of 10 = 100.0%" in text
    assert "Report: " in text
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    assert again["measures"] == result["measures"]


def test_without_judge_and_neighbours_against_a_corpus_of_generated_images(corpus, encoder, tmp_path):
    settings = EvaluateSettings(judge="none", neighbours=0, resamples=5, split="train")
    found = evaluate_images(corpus, corpus, settings, weights=encoder, cache=tmp_path / "cache", out=tmp_path / "out")
    assert found.result.measures[0].n_first == 20
    assert (found.generated_classes, found.copies, found.judge) == ((), {}, "none")
    assert any("a model that copies them looks good" in warning for warning in found.warnings)
    assert found.result.measure("precision").value == 1.0
    assert not (tmp_path / "out" / "copies.csv").exists()
    for measure in found.result.measures:
        assert measure.name != "frechet_extrapolated"  # 20 images are too few for a line


def test_retrieval_among_class_prompts(corpus, encoder, synthetic, tmp_path, monkeypatch):
    """A pair that sees the colour: every image is closest to the prompt of its own class, on both sides."""
    red_or_blue = np.array([[1.0, 0.0], [0.0, 1.0]])

    def open_pair(folder):
        assert folder == tmp_path / "clip"
        return ClipPair(
            lambda images: np.stack(
                [red_or_blue[int(image[..., 2].mean() > image[..., 0].mean())] for image in images]
            ),
            lambda texts: np.stack([red_or_blue[int("blue" in text)] for text in texts]),
            "clip:test",
        )

    monkeypatch.setattr(alignment, "open_clip_folder", open_pair)
    settings = EvaluateSettings(judge="none", neighbours=0, resamples=2, diversity_pairs=0)
    options = {"weights": encoder, "cache": tmp_path / "c", "out": tmp_path / "o"}
    found = evaluate_images(synthetic, corpus, settings, clip=tmp_path / "clip", **options)
    assert "own class prompt closest (R@1, clip:test), generated: 100.0%, real: 100.0%, chance 50.0%" in found.summary()
    result = json.loads((tmp_path / "o" / "result.json").read_text())
    assert (result["alignment"]["generated"]["correct"], result["alignment"]["generated"]["n"]) == (10, 10)
    table = next(table for table in result["page"]["tables"] if table["name"] == "alignment")
    assert {(v["name"], v["of"], v["value"], v["n"]) for v in table["values"]} == {
        ("retrieval_r_at_1", "generated", 1.0, 10),
        ("retrieval_r_at_1", "real", 1.0, 12),
    }
    assert (tmp_path / "o" / "alignment.csv").read_text().splitlines()[-1] == "all,10 of 10,100.0%,12 of 12,100.0%"


def test_classes_that_the_judge_confuses_are_grouped(encoder, synthetic, tmp_path):
    """A judge that always answers blue: on the validation split it tells nothing apart, so one group is left."""
    corpus = build_corpus(tmp_path / "corpus", {"train": 10, "validation": 2, "test": 6})
    network = JudgeNetwork(["histopathology/blue", "histopathology/red"], widths=(2,), size=8)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    save_judge(network, tmp_path / "judge", {"trained_on": Corpus(corpus).fingerprint})
    settings = EvaluateSettings(judge=str(tmp_path / "judge"), resamples=2, neighbours=0, diversity_pairs=0)
    found = evaluate_images(synthetic, corpus, settings, weights=encoder, cache=tmp_path / "cache", out=tmp_path / "r")
    assert found.generated_classes[-2].correct == 5
    assert found.groups.n == 4
    assert set(found.groups.of_class.values()) == {"histopathology/blue and 1 alike"}
    assert [found.groups.generated[-1].correct, found.groups.real[-1].correct] == [10, 12]
    assert "tell apart named right, generated: 10 of 10" in found.summary()
    assert "Does it, where the classes can be told apart?" in (tmp_path / "r" / "report.html").read_text()
    told = evaluate_images(
        synthetic,
        corpus,
        replace(settings, judge=str(write_judge(corpus, tmp_path / "seeing"))),
        weights=encoder,
        cache=tmp_path / "cache",
        out=tmp_path / "r2",
    )
    assert told.groups is None


def test_without_diversity(corpus, encoder, synthetic, tmp_path):
    settings = EvaluateSettings(judge="none", neighbours=0, resamples=2, diversity_pairs=0, mmd_alpha=0.125)
    found = evaluate_images(synthetic, corpus, settings, weights=encoder, cache=tmp_path / "c", out=tmp_path / "o")
    assert found.diversity is None
    assert not (tmp_path / "o" / "diversity.csv").exists()
    assert found.result.measure("mmd").kernel_alpha == 0.125
    assert "alpha = 0.125 as given" in (tmp_path / "o" / "report.html").read_text()


def test_the_judge_is_trained_once_per_corpus(corpus, encoder, synthetic, tmp_path, monkeypatch):
    settings = EvaluateSettings(judge_steps=2, neighbours=1, resamples=2)
    places = {"weights": encoder, "cache": tmp_path / "cache", "out": tmp_path / "out"}
    first = evaluate_images(synthetic, corpus, settings, **places)
    monkeypatch.setattr("medisyn.recipes.evaluate_images.train_judge", None)  # a second training would fail
    second = evaluate_images(synthetic, corpus, settings, **places)
    assert first.judge == second.judge
    assert first.judge.startswith("judge:")
    assert "trained for 2 steps" in (tmp_path / "out" / "report.html").read_text()


def test_warnings_name_what_does_not_fit(corpus, encoder, tmp_path):
    images = [("red", pixels("red", 50 + n)) for n in range(8)]
    folder = build_generated(tmp_path / "g", images, specialty="radiology", image_type="ultrasound", labels="x; y")
    write_judge(corpus, tmp_path / "judge")
    config = json.loads((tmp_path / "judge" / "config.json").read_text())
    (tmp_path / "judge" / "config.json").write_text(json.dumps({**config, "trained_on": "other"}))
    settings = EvaluateSettings(judge=str(tmp_path / "judge"), resamples=2, neighbours=1)
    found = evaluate_images(folder, corpus, settings, weights=encoder, cache=tmp_path / "c", out=tmp_path / "o")
    text = " ".join(found.warnings)
    assert "100% of the images would have to change class" in text
    assert "trained on another corpus" in text
    assert "8 generated images are of classes unknown to the judge" in text
    assert "8 generated images have no training image" in text
    assert found.copies["generated"].statistics is None


def test_images_without_class_are_counted(corpus, encoder, tmp_path):
    folder = build_generated(tmp_path / "g", [("green", pixels("red", n)) for n in range(7)])
    settings = EvaluateSettings(judge="none", resamples=2, neighbours=0)
    found = evaluate_images(folder, corpus, settings, weights=encoder, cache=tmp_path / "c", out=tmp_path / "o")
    assert any("7 generated images have no known class" in warning for warning in found.warnings)


def test_encoder_and_judge_are_trained_from_a_corpus(corpus, tmp_path):
    record = medical_encoder.run(corpus, tmp_path / "encoder", steps=2, judge_steps=3, seed=0)
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert config["classes"] == ["histopathology/blue", "histopathology/red"]
    assert config["trained_on"] == Corpus(corpus).fingerprint
    assert config["train_images"] == {"histopathology/blue": 10, "histopathology/red": 10}
    assert record["encoder"]["held_out_accuracy"][-1]["n"] == 12
    assert record["encoder"]["settings"]["seed"] != record["judge"]["settings"]["seed"]
    assert [record[name]["settings"]["steps"] for name in ("encoder", "judge")] == [2, 3]
    assert record["judge"]["settings"]["augmentation"]["zoom"] == (0.95, 1.05)  # size tells cells apart
    assert load_encoder(tmp_path / "encoder").dim == 256
    assert load_judge(tmp_path / "encoder" / "judge").classes == config["classes"]


def test_training_needs_two_classes(tmp_path):
    build_corpus(tmp_path / "small", {"train": 3})
    with pytest.raises(InputError, match=r"0 class\(es\) of at least 8 images"):
        medical_encoder.run(tmp_path / "small", tmp_path / "out", steps=1, judge_steps=1)


def test_training_without_held_out_images(tmp_path):
    build_corpus(tmp_path / "c", {"train": 8})
    record = medical_encoder.run(tmp_path / "c", tmp_path / "out", steps=1, judge_steps=1)
    assert record["judge"]["held_out_accuracy"] == []


def test_an_empty_split_is_named(tmp_path):
    corpus = Corpus(build_corpus(tmp_path / "c", {"train": 3}))
    with pytest.raises(InputError, match="no images in the split 'test'"):
        corpus_images(corpus, "test")


def test_a_folder_without_metadata(corpus, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["evaluate", str(tmp_path / "empty"), "--against", str(corpus)]) == 2
    assert "empty/ holds no images to evaluate" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gone.png", "../outside.png", None])
def test_metadata_that_names_no_file_inside(tmp_path, name):
    folder = build_generated(tmp_path / "g", [("red", pixels("red", 0))])
    Image.fromarray(pixels("red", 0)).save(tmp_path / "outside.png")
    record = {"text": "x"} if name is None else {"file_name": name}
    (folder / "metadata.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(InputError, match=r"metadata\.jsonl line 1: its file_name is missing or names no file in there"):
        generated_images(folder, [])


def test_captions_with_two_classes_give_none(tmp_path):
    def image(name, stratum):
        return LabelledImage("k", "s", "A red slide", name, stratum, "p", lambda: pixels("red", 0))

    folder = build_generated(tmp_path / "g", [("red", pixels("red", 0))])
    assert generated_images(folder, [image("a", "s"), image("b", "s")])[0].name == ""
    assert generated_images(folder, [image("a", "s"), image("b", "s")])[0].stratum == "s"
    assert generated_images(folder, [image("a", "s")])[0].name == "a"


def test_files_that_are_no_8_bit_pictures(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ReadError, match=r"deep\.png: mode I;16 is not 8-bit"):
        read_rgb(tmp_path / "deep.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ReadError, match=r"text\.png: not a readable image"):
        read_rgb(tmp_path / "text.png")


def test_pictures_become_rgb():
    grey = Picture(np.arange(6, dtype=np.uint8).reshape(1, 2, 3))
    assert rgb(grey).shape == (2, 3, 3)
    assert rgb(grey)[1, 2].tolist() == [5, 5, 5]
    with pytest.raises(InputError, match="uint8 pictures, got a picture in unit"):
        rgb(Picture(np.zeros((1, 2, 2), np.float32), UNIT))
    with pytest.raises(InputError, match="got a clip in uint8"):
        rgb(Clip(np.zeros((1, 2, 2, 2), np.uint8), UINT8))


def test_labels_in_every_spelling():
    assert labels_of(["b", "a"]) == ["b", "a"]
    assert labels_of("b; a|c") == ["b", "a", "c"]
    assert labels_of(None) == labels_of("") == []


def test_sizes(corpus):
    images = corpus_images(Corpus(corpus), "test")
    assert at_size(images[:2], 16).shape == (2, 16, 16, 3)
    assert at_shape(images[0].read(), (8, 12)).shape == (8, 12, 3)
    assert at_shape(images[0].read(), (32, 32)) is not None


def test_class_mix_by_hand():
    def of(*names):
        return [LabelledImage("k", "s", "", name, "", "p", lambda: pixels("red", 0)) for name in names]

    assert class_mix_difference(of("a", "b"), of("b", "a", "a", "b")) == 0
    assert class_mix_difference(of("a", "a"), of("b")) == 1
    assert class_mix_difference(of("a", "b", "b", "b"), of("a", "b")) == 0.25


def test_settings_are_checked():
    with pytest.raises(InputError, match="neighbours and diversity pairs must be 0 or more"):
        EvaluateSettings(neighbours=-1)


def test_the_cache_s_place(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "medisyn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache" / "medisyn"
