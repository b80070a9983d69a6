"""`medisyn generate --reject-copies-of`: a copy is drawn again, whatever the batch, and a folder keeps to one rule."""

import json

import numpy as np
import pytest
from PIL import Image

import build
from build_audit import corpus_of
from generation.fake_family import MODEL, FakeFamily, contents, reject_dark, requests
from medisyn import runs
from medisyn.cli import main
from medisyn.errors import InputError
from medisyn.generation.generate import generate
from medisyn.recipes.generate_images import copies_of, generate_images


def pictures(folder):
    return [
        np.asarray(Image.open(folder / record["file_name"])) for record in runs.read_jsonl(folder / "metadata.jsonl")
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, and a corpus whose training images are the first two pictures that the model makes."""
    folder = tmp_path_factory.mktemp("reject")
    build.tiny_folder(folder / "model")
    prompt = "red disc on black"
    options = {"model": str(folder / "model"), "steps": 2, "dtype": "float32"}
    generate_images(prompt, n=24, out=folder / "first", **options)
    made = pictures(folder / "first")
    corpus_of(folder / "corpus", {"train": made[:2], "test": made[2:]})
    return folder, prompt, options


def test_copies_are_drawn_again_whatever_the_batch(place, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, prompt, options = place
    for size in (1, 4):
        out = tmp_path / str(size)
        generate_images(prompt, n=4, out=out, reject_copies_of=folder / "corpus", tries=5, batch_size=size, **options)
    records = runs.read_jsonl(tmp_path / "4" / "metadata.jsonl")
    assert all(record["tries"] > 1 for record in records[:2])
    assert all("patch distance 0.000 to a training image" in record["rejected_reasons"] for record in records[:2])
    before = runs.read_jsonl(folder / "first" / "metadata.jsonl")
    assert all(new["seed"] != old["seed"] for new, old in zip(records[:2], before, strict=False))
    assert [(r["tries"], r["seed"]) for r in records] == [
        (r["tries"], r["seed"]) for r in runs.read_jsonl(tmp_path / "1" / "metadata.jsonl")
    ]
    run = json.loads((tmp_path / "4" / "run.json").read_text())
    assert run["rejections"] == {"draws": sum(record["tries"] - 1 for record in records), "lost": 0}
    assert (run["rejecting"]["tries"], run["rejecting"]["policy"]["alpha"]) == (5, 0.01)
    again = generate_images(prompt, n=4, out=tmp_path / "4", reject_copies_of=folder / "corpus", tries=5, **options)
    assert (again.made, again.skipped, again.redrawn) == (0, 4, run["rejections"]["draws"])


def test_one_try_leaves_the_copies_out(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder, prompt, options = place
    arguments = ["generate", prompt, "-n", "2", "--model", options["model"], "--steps", "2", "--dtype", "float32"]
    assert main([*arguments, "--reject-copies-of", str(folder / "corpus"), "--tries", "1"]) == 0
    assert "0 pictures" in (text := capsys.readouterr().out)
    assert "2 draws thrown away, 2 rejected" in text
    assert main(arguments) == 0  # without the rule: a folder of its own
    assert len(list((tmp_path / "synthetic").iterdir())) == 2


def test_a_folder_keeps_to_one_rule(tmp_path):
    def make(**options):
        return generate(requests(4), FakeFamily(), tmp_path, model=MODEL, **options)

    make(reject=reject_dark, rejecting={"corpus": "a"})
    before = contents(tmp_path)
    with pytest.raises(
        InputError, match=r"was made rejecting some, now .* without rejecting any \(different: corpus, tr"
    ):
        make()
    with pytest.raises(InputError, match=r"rejecting some \(different: corpus\)\. A folder keeps to one rule"):
        make(reject=reject_dark, rejecting={"corpus": "b"})
    with pytest.raises(InputError, match=r"\(different: tries\)"):
        make(reject=reject_dark, rejecting={"corpus": "a"}, tries=2)
    assert contents(tmp_path) == before
    assert make(reject=reject_dark, rejecting={"corpus": "a"}).made == 0


def test_an_unchecked_folder_does_not_become_a_checked_one(tmp_path):
    generate(requests(2), FakeFamily(), tmp_path, model=MODEL)
    with pytest.raises(InputError, match="was made without rejecting any, now pictures would be made rejecting some"):
        generate(requests(3), FakeFamily(), tmp_path, model=MODEL, reject=reject_dark)


def test_one_rule_at_a_time(tmp_path):
    with pytest.raises(InputError, match="either `reject` or `reject_copies_of`, not both"):
        generate_images("red", reject=reject_dark, reject_copies_of=tmp_path, out=tmp_path / "out")
    with pytest.raises(InputError, match="a policy says which copies are rejected; name the corpus too"):
        generate_images("red", policy=tmp_path / "policy.yaml", out=tmp_path / "out")


def test_the_policy_of_a_file_is_the_rule(place, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, _, _ = place
    (tmp_path / "policy.yaml").write_text("alpha: 0.05\nbits: 2\n")
    rule, described = copies_of(folder / "corpus", policy=tmp_path / "policy.yaml")
    assert (rule.policy.alpha, rule.policy.bits) == (0.05, 2)
    assert described["policy"]["bits"] == 2
