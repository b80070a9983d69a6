import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import build
import build_corpus
from medisyn.cli import main
from medisyn.corpus.loader import Corpus
from medisyn.errors import ConfigError, CorpusError, InputError, ModelError
from medisyn.families.stable_diffusion.config import InversionConfig
from medisyn.families.stable_diffusion.embedding_files import Embedding, read_embeddings, write_embedding
from medisyn.recipes import get_preset, with_overrides
from medisyn.recipes.embedding_convert import convert_embeddings
from medisyn.recipes.models import find_model, open_model, weights_digest
from medisyn.recipes.selection import JudgeConfig
from medisyn.recipes.sources import sources_of
from medisyn.recipes.textual_inversion import TEXTUAL_INVERSION, TEXTUAL_INVERSION_TINY, TextualInversionRun, choose
from medisyn.types import Request


def row(key, *labels, image_type="CT"):
    return SimpleNamespace(key=key, labels=labels, image_type=image_type)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build.tiny_folder(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_corpus.tiny_corpus(tmp_path_factory.mktemp("corpus"), size=32)


def tiny(base, **changes):
    train = dataclasses.replace(TEXTUAL_INVERSION_TINY.train, num_steps=4, checkpoint_every=2, preview_every=4)
    model = InversionConfig(num_vectors=2)
    return dataclasses.replace(TEXTUAL_INVERSION_TINY, base=str(base), **{"train": train, "model": model, **changes})


def test_the_numbers_of_the_paper():
    """De Wilde et al. 2023, sections 3.1 and 4.1."""
    train, model = TEXTUAL_INVERSION.train, TEXTUAL_INVERSION.model
    assert (train.num_steps, train.learning_rate, train.schedule, train.batch_size) == (50_000, 0.005, "constant", 1)
    assert (model.num_vectors, model.templates, TEXTUAL_INVERSION.images) == (64, ("{}",), 100)
    assert (TEXTUAL_INVERSION.preview.guidance, train.ema_decay, train.warmup_steps) == (2.0, 0, 0)


def test_every_value_that_the_preset_chooses_has_a_source():
    sources = sources_of(get_preset("textual-inversion"))
    assert {"base", "images"} <= set(sources)
    for part in ("model", "train", "preview"):
        value = getattr(TEXTUAL_INVERSION, part)
        for field in dataclasses.fields(value):
            if getattr(value, field.name) != field.default:
                assert f"{part}.{field.name}" in sources, f"{part}.{field.name} has no source"


def test_a_run_resumes_and_opens_as_a_model(tmp_path, base, corpus):
    run = tiny(base, classes=("disc", "cross"), model=InversionConfig(tokens=("<disc>", "<cross>"), num_vectors=2))
    said: list[str] = []
    half = dataclasses.replace(run, train=dataclasses.replace(run.train, num_steps=2))
    for part, out in ((half, "a"), (run, "a"), (run, "b")):
        part.prepare(corpus, tmp_path / out, said.append, processes=1)
        report = part.run(corpus, tmp_path / out, said.append)
    assert report.summary().startswith(str(tmp_path / "b" / "model"))
    resumed, whole = (load_file(tmp_path / out / "model" / "disc.safetensors")["<disc>"] for out in "ab")
    assert torch.equal(resumed, whole)
    assert said[0].startswith("pictures per token: <disc> 6, <cross> 6; corpus ")
    assert any(line.startswith("activations") for line in said)
    assert (tmp_path / "a" / "previews" / "step-00000004.png").exists()

    opened = open_model(str(tmp_path / "a"))
    assert {"<disc>", "<cross>"} <= set(opened.known_tokens())
    request = opened.resolve(Request(key="x", prompt="<disc>", seed=1, steps=2, guidance=2.0))
    assert (request.height, request.width) == (32, 32)
    one, other = (opened.family.sample([dataclasses.replace(request, prompt=p)]) for p in ("<disc>", "<cross>"))
    assert not torch.equal(one, other)
    assert weights_digest(find_model(str(tmp_path / "a"))) != weights_digest(find_model(str(base)))


def test_the_checkpoint_whose_pictures_are_nearest_is_kept(tmp_path, base, corpus):
    judge = JudgeConfig(images=4, steps=1, guidance=2.0)
    tokens = InversionConfig(tokens=("<disc>", "<cross>"), num_vectors=2)
    run = tiny(base, classes=("disc", "cross"), model=tokens, judge=judge)
    run.prepare(corpus, tmp_path, lambda line: None, processes=1)
    run.run(corpus, tmp_path, lambda line: None)
    judged = [json.loads(file.read_text()) for file in sorted((tmp_path / "checkpoints").glob("*/judgement.json"))]
    assert [(one["step"], one["n_generated"], one["n_real"], one["against"]) for one in judged] == [
        (2, 4, 4, "validation"),
        (4, 4, 4, "validation"),
    ]
    best = min(judged, key=lambda one: one["score"])
    [checkpoint] = (tmp_path / "checkpoints").glob(f"step-*{best['step']}")
    kept, nearest = (load_file(place / "model" / "disc.safetensors")["<disc>"] for place in (tmp_path, checkpoint))
    assert torch.equal(kept, nearest)

    [family] = [run._family(opened := Corpus(corpus), run._choose(corpus, print)[1], print)]
    shown = run._judge(family, opened).rows
    assert {(row.caption, row.labels) for row in shown} <= {("<disc>", ("disc",)), ("<cross>", ("cross",))}


def test_a_judge_without_pictures_to_judge_by_is_refused(tmp_path, base):
    small = build_corpus.tiny_corpus(tmp_path / "corpus", count=6, size=32)  # all of them train
    run = tiny(base, judge=JudgeConfig(images=4))
    run.prepare(small, tmp_path / "run", lambda line: None, processes=1)
    with pytest.raises(InputError, match=r"split 'validation', which has 0 image\(s\). Set judge.against=train"):
        run.run(small, tmp_path / "run", lambda line: None)
    more = build_corpus.tiny_corpus(tmp_path / "more", count=7, size=32)  # one validation picture
    [row] = Corpus(more).rows("validation")
    other = min({"disc", "cross"} - set(row.labels))
    run = dataclasses.replace(run, classes=(other,))
    run.prepare(more, tmp_path / "other", lambda line: None, processes=1)
    with pytest.raises(CorpusError, match=f"judged against the split 'validation': .* none shows '{other}' alone"):
        run.run(more, tmp_path / "other", lambda line: None)


def test_a_token_can_be_learnt_on_top_of_others(tmp_path, base, corpus):
    write_embedding(Embedding("<first>", (torch.ones(2, 16),)), tmp_path / "first.safetensors")
    convert_embeddings([tmp_path / "first.safetensors"], tmp_path / "first", base=str(base))
    run = tiny(tmp_path / "first", preview=dataclasses.replace(TEXTUAL_INVERSION_TINY.preview, pictures=0))
    run.prepare(corpus, tmp_path / "run", lambda line: None, processes=1)
    run.run(corpus, tmp_path / "run", lambda line: None)
    assert {"<first>", "<concept>"} <= set(open_model(str(tmp_path / "run")).known_tokens())
    assert [place.name for place in find_model(str(tmp_path / "run")).embeddings] == ["first", "model"]
    taken = dataclasses.replace(run, model=InversionConfig(tokens=("<first>",)))
    with pytest.raises(InputError, match="token <first> is in the vocabulary already"):
        taken.prepare(corpus, tmp_path / "other", lambda line: None, processes=1)


def test_the_plan_writes_nothing_and_tells_the_size(tmp_path, base, corpus):
    said: list[str] = []
    run = tiny(base)
    dataclasses.replace(run, train=dataclasses.replace(run.train, precision="bf16")).plan(
        corpus, tmp_path / "run", said.append
    )
    assert "32 numbers are trained (0.00 MB), in bf16" in said
    assert any(line.startswith("peak") for line in said)
    assert not (tmp_path / "run").exists()


def test_a_corpus_of_another_size_is_learnt_at_its_size(tmp_path, base):
    said: list[str] = []
    large = build_corpus.tiny_corpus(tmp_path / "corpus", count=7, size=64)
    tiny(base).prepare(large, tmp_path / "run", said.append, processes=1)
    assert any("pictures of 64x64 pixels, the model makes 32x32" in line for line in said)


def test_pictures_of_two_classes_are_left_out_and_some_are_drawn():
    rows = [row("a", "mass"), row("b", "mass", "edema"), row("c", "edema"), row("d", "none"), row("e", "mass")]
    chosen, left_out = choose(rows, ("<m>", "<e>"), ("mass", "edema"), 0, seed=0)
    assert [(one.row.key, one.concept) for one in chosen] == [("a", 0), ("c", 1), ("e", 0)]
    assert left_out == 1
    drawn = [[one.row.key for one in choose(rows, ("<m>",), ("mass",), 1, seed=seed)[0]] for seed in range(12)]
    assert {tuple(keys) for keys in drawn} == {("a",), ("b",), ("e",)}
    by_type, _ = choose([row("a"), row("b", image_type="MRI")], ("<m>",), ("MRI",), 0, seed=0)
    assert [one.row.key for one in by_type] == ["b"]
    everything, _ = choose(rows, ("<m>",), (), 0, seed=0)
    assert len(everything) == 5


def test_more_pictures_keep_those_drawn_before():
    rows = [row(str(number)) for number in range(30)]
    few, many = ({one.row.key for one in choose(rows, ("<m>",), (), count, seed=1)[0]} for count in (5, 10))
    assert len(few) == 5
    assert few < many


def test_what_cannot_be_chosen():
    rows = [row("a", "mass"), row("b", "edema")]
    with pytest.raises(ConfigError, match=r"2 tokens and 1 classes: give a label"):
        choose(rows, ("<m>", "<e>"), ("mass",), 0, 0)
    with pytest.raises(ConfigError, match=r"2 tokens and 0 classes"):
        choose(rows, ("<m>", "<e>"), (), 0, 0)
    with pytest.raises(
        CorpusError, match=r"<m> has no pictures: none shows 'mas' alone. Did you mean 'mass'.*CT, edema"
    ):
        choose(rows, ("<m>",), ("mas",), 0, 0)
    with pytest.raises(CorpusError, match=r"<m>: 3 images are asked for, the corpus has 1"):
        choose(rows, ("<m>",), ("mass",), 3, 0)
    with pytest.raises(ConfigError, match=r"images must be 0 \(all\) or more.*got -1 and 8"):
        dataclasses.replace(TEXTUAL_INVERSION_TINY, images=-1)


def test_no_pictures_at_all(tmp_path, base):
    only_train = build_corpus.tiny_corpus(tmp_path / "corpus", count=6, size=32)
    with pytest.raises(CorpusError, match="no samples in split 'test'"):
        tiny(base, split="test").prepare(only_train, tmp_path / "run", lambda line: None, processes=1)


def test_the_command_line_names_base_and_tokens(tmp_path, monkeypatch):
    seen: list[TextualInversionRun] = []
    monkeypatch.setattr(TextualInversionRun, "plan", lambda self, corpus, out, announce: seen.append(self))
    line = f"train textual-inversion --base models/x --token <a> --token <b> --corpus {tmp_path} --out {tmp_path}/o"
    assert main([*line.split(), "--set", "classes=No Finding,Mass", "--dry-run"]) == 0
    [run] = seen
    assert (run.base, run.model.tokens, run.classes) == ("models/x", ("<a>", "<b>"), ("No Finding", "Mass"))
    assert with_overrides(run, ["num_vectors=8"]).model.num_vectors == 8


def test_a_lora_on_top_of_learnt_tokens_keeps_them(tmp_path, base):
    from medisyn.families.stable_diffusion.config import StableDiffusionConfig
    from medisyn.recipes.medisyn_v2 import SD_FINETUNE_TINY

    write_embedding(Embedding("<first>", (torch.ones(2, 16),)), tmp_path / "first.safetensors")
    convert_embeddings([tmp_path / "first.safetensors"], tmp_path / "first", base=str(base))
    run = dataclasses.replace(
        SD_FINETUNE_TINY, base=str(tmp_path / "first"), network=None, model=StableDiffusionConfig(lora_rank=2)
    )
    family = run.family(tmp_path / "run", None)
    assert "<first>" in family.known_tokens()
    family.save(tmp_path / "lora")
    opened = open_model(str(tmp_path / "lora"))
    assert "<first>" in opened.known_tokens()
    assert opened.id == "lora"


# Files of other programs


def test_files_become_a_model_and_a_file_again(tmp_path, base, capsys):
    for name, level in (("one", 1.0), ("two", 2.0)):
        write_embedding(Embedding(f"<{name}>", (torch.full((2, 16), level),), 7), tmp_path / f"{name}.pt", "a1111")
    line = f"convert embedding {tmp_path}/one.pt {tmp_path}/two.pt --base {base} --out {tmp_path}/both"
    assert main(line.split()) == 0
    assert capsys.readouterr().out == (
        "one.pt: <one>, 2 vectors of 16, 7 steps\ntwo.pt: <two>, 2 vectors of 16, 7 steps\n"
        "both/ is ready: give it to --model, and write the tokens in the prompt\n"
    )
    assert {"<one>", "<two>"} <= set(open_model(str(tmp_path / "both")).known_tokens())
    [one, _] = read_embeddings(tmp_path / "both")
    assert one.vectors[0].tolist() == [[1.0] * 16] * 2
    report = convert_embeddings([tmp_path / "both" / "one.safetensors"], tmp_path / "back.pt", layout="a1111")
    assert report.lines[1].startswith("back.pt: layout a1111")
    assert torch.load(tmp_path / "back.pt", weights_only=True)["step"] == 7


def test_conversions_that_are_refused(tmp_path, base):
    wide = write_embedding(Embedding("<w>", (torch.ones(1, 1024),)), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"<w> was made for another text encoder.*1024 \(Stable Diffusion 2\)"):
        convert_embeddings([wide], tmp_path / "out", base=str(base))
    with pytest.raises(InputError, match="give either --base MODEL"):
        convert_embeddings([wide], tmp_path / "out")
    with pytest.raises(InputError, match="are for one file, got 2"):
        convert_embeddings([wide, wide], tmp_path / "out", base=str(base), token="<x>")
    fits = write_embedding(Embedding("<f>", (torch.ones(1, 16),)), tmp_path / "f.safetensors")
    with pytest.raises(InputError, match="two files hold the token <f>"):
        convert_embeddings([fits, fits], tmp_path / "out", base=str(base))
    (tmp_path / "report-less").mkdir()
    with pytest.raises(ModelError, match="report-less has no text encoder"):
        convert_embeddings([fits], tmp_path / "out", base=str(tmp_path / "report-less"))
    assert not (tmp_path / "out").exists()


def test_an_embedding_folder_without_its_base(tmp_path):
    write_embedding(Embedding("<f>", (torch.ones(1, 16),)), tmp_path / "learned_embeds.safetensors")
    with pytest.raises(ModelError, match=r"without its base model on record.*medisyn convert embedding FILE --base"):
        find_model(str(tmp_path))
