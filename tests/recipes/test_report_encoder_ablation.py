"""One base model per report encoder: what differs and what does not, the table, resuming, and what is refused."""

import json
import shutil

import pytest
from safetensors.torch import load_file

import build_medsyn as build
from medisyn import runs
from medisyn.cli import COMMANDS
from medisyn.errors import ConfigError, InputError
from medisyn.recipes import PRESETS
from medisyn.recipes import report_encoder_ablation as ablation
from medisyn.recipes.papers.beside import paper_report
from medisyn.recipes.report_encoder_ablation import ARMS, Asked, report_encoder_ablation
from recipes.test_medsyn_corpus import folder_of

TINY = {"base": "medsyn-base-tiny", "encoder": "medsyn-report-encoder-tiny", "dtype": "float32"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(4):
        folder_of(folder, build.chest(number), name=f"chest{number}")
    return folder


@pytest.fixture(scope="module")
def done(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("ablation") / "out"
    return out, report_encoder_ablation(corpus, out, asked=Asked(volumes=2), **TINY)


def test_only_the_encoder_differs(done):
    out, _ = done
    configs = [runs.read_run(out / arm)["config"] for arm in ARMS]
    encoders = [config.pop("report_encoder") for config in configs]
    assert configs[0] == configs[1]
    assert encoders[0] != encoders[1]
    weights = [load_file(next((out / arm / "model" / "report_encoder").glob("*.safetensors"))) for arm in ARMS]
    start = load_file(next((out / "encoder" / "start").glob("*.safetensors")))
    name = next(name for name in weights[0] if name.endswith("word_embeddings.weight") and name in start)
    assert (weights[0][name] == start[name]).all()  # generic: the encoder before it read a report
    assert not (weights[1][name] == start[name]).all()


def test_the_table_and_the_record(done):
    out, found = done
    assert set(found.pairs) == set(ARMS)
    assert all((pair.n_present, pair.n_absent) == (2, 2) for pair in found.pairs.values())
    assert found.distances == {"generic": {}, "reports": {}}  # 2 volumes are too few for distances
    content = json.loads((out / "result.json").read_text())
    assert content["pairs"]["generic"]["p"] == found.pairs["generic"].p
    assert runs.read_run(out)["asked"]["measure"] == "effusion_ml"
    text = found.summary()
    assert all(name in text for name in ARMS.values())
    beside = paper_report("medsyn", [out], commands=COMMANDS, presets=PRESETS).beside
    rows = {(row.row, row.column): row.value for row in beside if row.table == "table-7"}
    assert len(rows) == 4
    mean = found.pairs["reports"].mean_present
    assert rows["Prompting w/ effusion", "Biomedical pre-trained LM"] == pytest.approx(mean)
    prompts = {json.loads(line)["prompt"] for line in (out / "volumes/generic/present/metadata.jsonl").open()}
    assert prompts == {"Large pleural effusion."}


def test_the_same_call_trains_nothing_again(done, corpus):
    out, first = done
    before = (out / "reports" / "model" / "base").stat().st_mtime_ns
    (out / "result.json").unlink()
    again = report_encoder_ablation(corpus, out, asked=Asked(volumes=2), **TINY)
    assert again.pairs == first.pairs
    assert (out / "reports" / "model" / "base").stat().st_mtime_ns == before
    assert (out / "result.json").is_file()


def test_distances_to_the_corpus(done, corpus, tmp_path, monkeypatch):
    """12 chests, 6 volumes: Fréchet and MMD of each arm, and of real to real. Training is the one that is there."""
    out, _ = done
    many = tmp_path / "corpus"
    for number in range(12):
        folder_of(many, build.chest(number), name=f"chest{number:02d}")
    shutil.copytree(out / "generic", tmp_path / "out" / "generic")
    found = ablation._distances(many, tmp_path / "out", "generic", Asked(volumes=6), "float32")
    assert set(found) == {"frechet", "mmd", "frechet, real", "mmd, real"}
    assert found["frechet"] > found["frechet, real"]  # noise against chests


def test_what_is_refused(corpus, tmp_path):
    with pytest.raises(ConfigError, match="encoder must be a preset of a report encoder and base one of a base model"):
        report_encoder_ablation(corpus, tmp_path, base="medsyn-superres-tiny", encoder=TINY["encoder"])
    with pytest.raises(ConfigError, match="report_encoder is what the two arms differ in"):
        report_encoder_ablation(
            corpus, tmp_path, base=TINY["base"], encoder=TINY["encoder"], assignments={"base": ["report_encoder=x"]}
        )
    with pytest.raises(ConfigError, match=r"measure 'effusion' is unknown"):
        Asked(measure="effusion")
    with pytest.raises(ConfigError, match="volumes must be at least 2 per prompt, got 1"):
        Asked(volumes=1)
    nothing = {arm: {"present": [float("nan")] * 2, "absent": [1.0, 2.0]} for arm in ARMS}
    with pytest.raises(InputError, match="generic encoder: effusion_ml could be measured in 0 and 2 volumes"):
        ablation._compared(nothing, {}, Asked(), tmp_path, {})


def test_an_interrupted_training_ends_the_call(corpus, tmp_path, monkeypatch):
    from types import SimpleNamespace

    preset = SimpleNamespace(prepare=lambda *_, **__: None, run=lambda *_: SimpleNamespace(interrupted=True))
    with pytest.raises(KeyboardInterrupt):
        ablation._train(preset, corpus, tmp_path, print)
