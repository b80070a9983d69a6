"""DreamBooth and LoRA on a few pictures: the prior, the weights of the two parts, resuming; and their benchmark."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.end_to_end.test_evaluate import corpus as slides  # noqa: F401  fixtures
from tests.end_to_end.test_evaluate import encoder  # noqa: F401

import build
import build_corpus
from medisyn.cli import main
from medisyn.errors import ConfigError, CorpusError
from medisyn.recipes import get_preset, with_overrides
from medisyn.recipes.dreambooth import DREAMBOOTH, DREAMBOOTH_TINY, SD_LORA, SD_LORA_TINY, DreamBoothRun
from medisyn.recipes.models import find_model, open_model
from medisyn.recipes.sources import sources_of
from medisyn.runs import read_jsonl
from medisyn.types import Request

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "budget_alternatives.py"
PROMPTS = {"prompt": "sks disc", "class_prompt": "disc"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build.tiny_folder(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_corpus.tiny_corpus(tmp_path_factory.mktemp("corpus"), size=32)


def tiny(base, preset=DREAMBOOTH_TINY, **changes):
    train = dataclasses.replace(preset.train, num_steps=4, checkpoint_every=2, preview_every=4, **changes.pop("t", {}))
    prompts = PROMPTS if preset is DREAMBOOTH_TINY else {}
    return dataclasses.replace(
        preset, **{"base": str(base), "train": train, "classes": ("disc",), **prompts, **changes}
    )


def trained(run, corpus, out, said=None):
    announce = said.append if said is not None else lambda line: None
    run.prepare(corpus, out, announce, processes=1)
    return run.run(corpus, out, announce)


def unet(out):
    return load_file(out / "model" / "unet" / "diffusion_pytorch_model.safetensors")


# The presets


def test_the_published_numbers():
    """Ruiz et al. 2023; the number of prior pictures and the batch are those of diffusers' example."""
    train = DREAMBOOTH.train
    assert (train.num_steps, train.learning_rate, DREAMBOOTH.prior_weight) == (1000, 5e-6, 1.0)
    assert 3 <= DREAMBOOTH.images <= 5
    assert (DREAMBOOTH.prior_images, train.batch_size, DREAMBOOTH.model.train_text_encoder) == (200, 1, False)
    assert (SD_LORA.model.lora_rank, SD_LORA.train.learning_rate, SD_LORA.prior_images) == (4, 1e-4, 0)


@pytest.mark.parametrize("name", ["dreambooth", "sd-lora"])
def test_every_value_that_a_preset_chooses_has_a_source(name):
    preset, defaults = get_preset(name), {f.name: f.default for f in dataclasses.fields(DreamBoothRun)}
    sources = sources_of(preset)
    for key in ("base", "prompt", "class_prompt", "images", "prior_images", "prior_weight", "prior_dtype"):
        assert key in sources or getattr(preset, key) == defaults[key], f"{key} has no source"
    for part in ("model", "train", "preview"):
        value = getattr(preset, part)
        for field in dataclasses.fields(value):
            if getattr(value, field.name) != field.default:
                assert f"{part}.{field.name}" in sources, f"{part}.{field.name} has no source"


def test_the_command_line_sets_the_keys_of_textual_inversion(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(DreamBoothRun, "plan", lambda self, corpus, out, announce: seen.append(self))
    line = f"train dreambooth --base models/x --corpus {tmp_path} --out {tmp_path}/o --set images=9 --set split=test"
    assert main([*line.split(), "--set", "classes=No Finding", "--set", "prompt=", "--dry-run"]) == 0
    [run] = seen
    assert (run.base, run.classes, run.images, run.split) == ("models/x", ("No Finding",), 9, "test")
    lora = with_overrides(get_preset("sd-lora"), ["prior_images=3", "prompt=a b", "class_prompt=b"])
    assert (lora.prior_images, lora.model.lora_rank) == (3, 4)


# A run


def test_a_run_makes_its_prior_once_resumes_and_opens_as_a_model(tmp_path, base, corpus):
    run, said = tiny(base), []
    half = dataclasses.replace(run, train=dataclasses.replace(run.train, num_steps=2))
    trained(half, corpus, tmp_path / "a", said)
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "a" / "prior").glob("*.png")}
    trained(run, corpus, tmp_path / "a", said)
    trained(run, corpus, tmp_path / "b")
    assert said[0].startswith("6 pictures; corpus ")
    assert "prior pictures of 'disc': 4 made, 0 there before" in said
    assert "prior pictures of 'disc': 0 made, 4 there before" in said
    assert any("2 instance and 2 prior" in line for line in said)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "a" / "prior").glob("*.png")} == made
    assert len({record["seed"] for record in read_jsonl(tmp_path / "a" / "prior" / "metadata.jsonl")}) == 4
    resumed, whole = unet(tmp_path / "a"), unet(tmp_path / "b")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    steps = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_instance", "loss_prior"} <= set(steps[0])
    assert (tmp_path / "a" / "previews" / "step-00000004.png").exists()
    assert (tmp_path / "a" / "model" / "model_index.json").is_file()

    opened = open_model(str(tmp_path / "a"))
    request = opened.resolve(Request(key="x", prompt="sks disc", seed=1, steps=2, guidance=2.0))
    first = open_model(str(base)).family.sample([request])
    assert not torch.equal(opened.family.sample([request]), first)
    with pytest.raises(ConfigError, match="other values of: prior_weight"):
        trained(dataclasses.replace(run, prior_weight=2.0), corpus, tmp_path / "a")


def test_prior_pictures_are_those_of_the_base(tmp_path, base, corpus):
    """The same call of the generation code by hand gives the same files."""
    from medisyn.recipes.generate_images import generate_images

    run = tiny(base)
    run.prepare(corpus, tmp_path / "run", lambda line: None, processes=1)
    options = {"seed": run.train.seed, "steps": 2, "height": 32, "width": 32, "dtype": "float32"}
    generate_images("disc", model=str(base), out=tmp_path / "alone", n=4, **options)
    names = sorted(file.name for file in (tmp_path / "alone").glob("*.png"))
    digests = [
        {record["file_name"]: record["seed"] for record in read_jsonl(folder / "metadata.jsonl")}
        for folder in (tmp_path / "alone", tmp_path / "run" / "prior")
    ]
    assert len(names) == 4
    assert digests[0] == digests[1]
    assert all((tmp_path / "run" / "prior" / n).read_bytes() == (tmp_path / "alone" / n).read_bytes() for n in names)


def test_the_loss_is_the_pictures_plus_the_weighted_prior(tmp_path, base, corpus):
    """The first step's gradient norm by hand: gradients of both parts, summed with the weight."""
    from medisyn.recipes.dreambooth import PRIOR
    from medisyn.seeding import generator_for
    from medisyn.training.batches import collate, kinds_of, orders_of
    from medisyn.training.order import Order, draw_keys

    run = tiny(base, prior_weight=0.25, t={"precision": "fp32", "log_every": 1})
    trained(run, corpus, tmp_path / "run")
    opened, rows = run._choose(corpus, lambda line: None)
    family = run._family(opened, rows, lambda line: None)
    joint = run._examples(family, opened, rows, tmp_path / "run")
    kinds = kinds_of(joint, 2, 2)
    assert [(kind.name, kind.weight, len(kind.examples)) for kind in kinds] == [("instance", 1.0, 6), (PRIOR, 0.25, 4)]
    assert all(key.startswith("prior/") for key in kinds[1].examples.keys)
    [group] = family.trainable()
    total = torch.zeros(())
    for kind, order in zip(kinds, orders_of(kinds, Order(6, 2, run.train.seed)), strict=True):
        keys = draw_keys(0, [kind.examples.keys[row] for row in order.batch(0)])
        encoded = collate([kind.examples[row] for row in order.batch(0)])
        losses = family.loss(encoded, [generator_for(run.train.seed, key) for key in keys])
        total = total + kind.weight * losses.mean()
    total.backward()
    norm = torch.cat([p.grad.flatten() for p in group.parameters]).norm()
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["grad_norm"] == pytest.approx(float(norm), rel=1e-3)


def test_the_two_prompts_are_what_is_read(tmp_path, base, corpus):
    run = tiny(base)
    run.prepare(corpus, tmp_path / "run", lambda line: None, processes=1)
    opened, rows = run._choose(corpus, lambda line: None)
    family = run._family(opened, rows, lambda line: None)
    joint = run._examples(family, opened, rows, tmp_path / "run")
    samples = [dataclasses.replace(build.samples(1)[0], caption=text) for text in ("sks disc", "disc")]
    expected = family.encode_captions(samples)["text"]
    for kind, text in zip(joint.kinds, expected, strict=True):
        assert all(torch.equal(kind.examples[row]["text"], text) for row in range(len(kind.examples)))
    assert not torch.equal(*expected)


def test_a_lora_learns_from_captions_or_from_a_prompt(tmp_path, base, corpus):
    own = tiny(base, SD_LORA_TINY)
    trained(own, corpus, tmp_path / "own")
    place = find_model(str(tmp_path / "own"))
    assert (place.adapter, place.folder) == (tmp_path / "own" / "model", Path(base))
    assert not (tmp_path / "own" / "prior").exists()
    size = sum(file.stat().st_size for file in (tmp_path / "own" / "model").rglob("*.safetensors"))
    assert size < 100_000
    _, rows = own._choose(corpus, lambda line: None)
    assert own._captions(rows) == [row.caption for row in rows]
    assert [request.prompt for request in own._preview_requests(rows)] == [rows[0].caption, rows[1].caption]
    with_prior = tiny(base, SD_LORA_TINY, prior_images=2, **PROMPTS)
    trained(with_prior, corpus, tmp_path / "prior")
    assert find_model(str(tmp_path / "prior")).adapter is not None
    assert [request.prompt for request in with_prior._preview_requests(rows)] == ["sks disc", "disc"]


def test_the_plan_writes_nothing_and_tells_the_cost(tmp_path, base, corpus):
    said = []
    tiny(base, t={"precision": "bf16"}).plan(corpus, tmp_path / "run", said.append)
    assert "the base makes 4 pictures of 'disc' before training" in said
    assert "4 steps of 2, learning rate 1e-05" in said
    assert any(line.endswith("million weights are trained, in bf16") for line in said)
    assert any(line.startswith("peak") for line in said)
    assert not (tmp_path / "run").exists()


def test_a_corpus_of_another_size_is_learnt_at_its_size(tmp_path, base):
    said = []
    large = build_corpus.tiny_corpus(tmp_path / "corpus", count=7, size=64)
    run = tiny(base)
    run.prepare(large, tmp_path / "run", said.append, processes=1)
    assert any("pictures of 64x64 pixels, the model makes 32x32" in line for line in said)
    [record, *_] = read_jsonl(tmp_path / "run" / "prior" / "metadata.jsonl")
    assert (record["height"], record["width"]) == (64, 64)


def test_what_is_refused(tmp_path, base, corpus):
    def refused(**changes):
        tiny(base, **changes).prepare(corpus, tmp_path / "x", lambda line: None, processes=1)

    with pytest.raises(ConfigError, match=r"two different prompts, .*got 'disc' and 'disc'. prior_images=0 goes"):
        refused(prompt="disc")
    with pytest.raises(ConfigError, match="got '' and 'disc'"):
        refused(prompt="")
    with pytest.raises(CorpusError, match=r"sks disc has no pictures: none shows 'dics' alone. Did you mean 'disc'"):
        refused(classes=("dics",))
    with pytest.raises(CorpusError, match="sks disc: 9 images are asked for, the corpus has 6"):
        refused(images=9)
    with pytest.raises(ConfigError, match="one prompt stands for one class, got disc, cross"):
        refused(classes=("disc", "cross"))
    with pytest.raises(ConfigError, match="prior_weight must be above 0, got 0"):
        refused(prior_weight=0)
    with pytest.raises(ConfigError, match=r"must be 0 or more and encode_batch_size at least 1, got 0, -1 and 8"):
        refused(prior_images=-1)
    assert not (tmp_path / "x").exists()


# The benchmark


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("budget_alternatives", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_comparison_at_tiny_size(figures, base, slides, encoder, tmp_path, monkeypatch, capsys):  # noqa: F811
    """All four methods, in this process so that the test is short; then again, where nothing is left to do."""
    monkeypatch.setattr(figures, "in_own_process", lambda task: figures.measure(**task))
    line = f"--corpus {slides} --class red --real-class histopathology/red --base {base} --weights {encoder} --images 4"
    line += f" --seen 2 --vectors 1 --prior-images 2 --steps 1 -n 6 --resamples 20 --work {tmp_path}/w"
    command = [*line.split(), "--result", str(tmp_path / "found.json"), "--prompt", "sks slide"]
    command += ["--class-prompt", "slide", "--plain", "A red slide", "--plain", "slide", "--set", "lora:lora_rank=2"]
    figures.main(command)
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert [found["trained"][name]["steps"] for name in figures.METHODS] == [2, 1, 1, 1]
    learnt = {name: one["megabytes"] for name, one in found["trained"].items()}
    assert learnt["inversion"] < learnt["lora"] < learnt["dreambooth"] == pytest.approx(learnt["finetune"], rel=0.01)
    assert found["trained"]["finetune"]["peak_mb"] >= found["trained"]["finetune"]["libraries_mb"] > 100
    assert (tmp_path / "w" / "runs" / "dreambooth" / "prior").is_dir()
    assert not (tmp_path / "w" / "runs" / "finetune" / "prior").exists()
    assert (found["n"], found["n_real"], found["n_real_training"]) == (6, 6, 6)
    assert set(found["distances"]["kid"]) == {*figures.METHODS, "base-0", "base-1", "real"}
    assert text.count("(best plain prompt)") == 1
    assert "| LoRA, 1 steps |" in text
    seeds = [
        [record["seed"] for record in read_jsonl(folder / "metadata.jsonl")]
        for folder in (tmp_path / "w" / "images").iterdir()
    ]
    assert len(seeds) == 6
    assert all(one == seeds[0] for one in seeds)
    monkeypatch.setattr(figures, "in_own_process", None)
    figures.main(command)
    assert capsys.readouterr().out == text
    assert str(tmp_path) not in (tmp_path / "found.json").read_text()
    with pytest.raises(SystemExit, match="runs/inversion was trained with other values: choose another --work"):
        figures.main([*command, "--seed", "1"])


def test_the_table_by_hand(figures):
    def at(value, rank=1):
        return {"value": value, "interval": {"low": value - 1, "high": value + 1}, "rank": rank}

    cost = {"megabytes": 0.0492, "peak_mb": 812.4, "prepare_seconds": 3.2, "train_seconds": 60.7, "libraries_mb": 400.2}
    distances = {"inversion": at(5.0), "base-0": at(30.0, 2), "base-1": at(20.0, 2), "real": at(2.0)}
    result = {
        "trained": {"inversion": {**cost, "steps": 2000}},
        "prompts": {"inversion": "<subject>", "base-0": "one", "base-1": "other"},
        "distances": {"frechet": distances, "kid": distances},
        "n": 200,
        "n_real": 90,
        "n_real_training": 100,
    }
    lines = figures.table(result).splitlines()
    assert lines[2] == ("| textual inversion, 2000 steps | 0.0492 | 812 | 3 | 61 | 5 (4 to 6) | 1 | 5 (4 to 6) | 1 |")
    assert lines[3] == "| base, 'one' | 0 | | | | 30 (29 to 31) | 2 | 30 (29 to 31) | 2 |"
    assert lines[4].startswith("| base, 'other' (best plain prompt) | 0 |")
    assert lines[5] == "| real training images | | | | | 2 (1 to 3) |  | 2 (1 to 3) |  |"
    assert lines[7].startswith("n = 200 generated and 90 held-out real images (100 real training images)")
    assert "400 MB are the libraries" in lines[7]


def test_the_command_of_the_comparison_says_what_is_missing(figures, capsys):
    with pytest.raises(SystemExit):
        figures.main(["--corpus", "c"])
    assert "--class is needed" in capsys.readouterr().err
    whole = "--corpus c --class a --real-class b --prompt p --class-prompt q --plain r --set"
    with pytest.raises(SystemExit):
        figures.main([*whole.split(), "learning_rate=1"])
    assert "write METHOD:key=value, where METHOD is one of inversion, lora" in capsys.readouterr().err
