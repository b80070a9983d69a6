"""starter-ct from phantoms to a float16 cascade, at tiny size."""

import dataclasses
import json
import shutil

import pytest
import torch

from medisyn.errors import ConfigError, ModelError
from medisyn.families.medsyn.folders import open_unet
from medisyn.families.medsyn.networks import count_parameters
from medisyn.families.medsyn.report_encoder import open_encoder
from medisyn.phantoms.folder import write_phantoms
from medisyn.recipes import PRESETS
from medisyn.recipes.medsyn_starter import STARTER_CT, PhantomSet
from medisyn.recipes.medsyn_train import started_unet
from medisyn.recipes.models import open_model
from medisyn.types import Request

ENCODER, BASE, SUPERRES = (PRESETS[f"medsyn-{name}-tiny"] for name in ("report-encoder", "base", "superres"))
TINY = dataclasses.replace(
    STARTER_CT,
    phantoms=PhantomSet(count=3, size=32, findings=("effusion", "bullae")),
    bert=ENCODER.network,
    positions=ENCODER.positions,
    objective=ENCODER.objective,
    grid=BASE.grid,
    base=BASE.network,
    superres=SUPERRES.network,
    refine=SUPERRES.superres,
    defaults=BASE.defaults,
    encoder_train=dataclasses.replace(ENCODER.train, num_steps=2),
    base_train=dataclasses.replace(BASE.train, num_steps=2),
    superres_train=dataclasses.replace(SUPERRES.train, num_steps=2),
    preview_prompts=(),
)


def run(preset, corpus, out):
    said = []
    preset.prepare(corpus, out, said.append, processes=1)
    return preset.run(corpus, out, said.append), said


def test_from_nothing_to_a_model_and_once_more(tmp_path):
    corpus, out = tmp_path / "phantoms", tmp_path / "run"
    report, said = run(TINY, corpus, out)
    assert "making 3 phantoms of 32 voxels a side" in said
    made = [json.loads(line)["drawn_from"] for line in (corpus / "phantoms.jsonl").read_text().splitlines()]
    assert made == [["effusion", "bullae"]] * 3
    assert [line for line in said if line.startswith("stage")] == [
        "stage 1 of 4: report-encoder",
        "stage 2 of 4: base",
        "stage 3 of 4: superres",
        "stage 4 of 4: model",
    ]
    assert report.model == out / "model"
    opened = open_model(str(out))
    assert opened.family.grid.shape == (16, 16, 16)
    assert opened.family.sample([Request("a", "No pleural effusion.", 1)]).shape == (1, 4, 16, 16, 16)
    assert "/" not in json.dumps(
        json.loads((out / "base" / "run.json").read_text())["config"]
    )  # no folder of this machine

    shutil.rmtree(out / "model")
    again, said = run(TINY, corpus, out)
    assert (again.resumed_from, again.loss) == (2, None)
    assert not any(line.startswith("making") for line in said)
    assert open_model(str(out)).digest == opened.digest


def encoders(first, second):
    """The report encoder of a finished model, and that of a run."""
    return first / "model" / "report_encoder", second / "report-encoder" / "model"


def test_a_run_goes_on_from_a_model(tmp_path):
    corpus, first = tmp_path / "phantoms", tmp_path / "first"
    run(TINY, corpus, first)
    onward = dataclasses.replace(TINY, start_from=str(first))
    run(onward, corpus, tmp_path / "second")
    presets = onward._presets(tmp_path / "second")
    for part in ("base", "superres"):
        begun, stored = presets[part].family().unet, open_unet(first / "model" / part)
        assert all(torch.equal(begun.state_dict()[name], weight) for name, weight in stored.state_dict().items())
    theirs, ours = (open_encoder(folder)[0].bert.state_dict() for folder in encoders(first, tmp_path / "second"))
    assert sum(float((theirs[name] - ours[name]).abs().max()) for name in theirs) > 0
    assert max(float((theirs[name] - ours[name]).abs().max()) for name in theirs) < 0.02  # two steps from it
    digests = {open_model(str(out)).digest for out in (first, tmp_path / "second")}
    assert len(digests) == 2
    config = json.loads((tmp_path / "second" / "base" / "run.json").read_text())["config"]
    assert len(config["start_from"]) == len(config["report_encoder"])
    assert presets["base"].reads_anew()  # another encoder: mean and spread of its vectors are taken anew
    same = dataclasses.replace(presets["base"], report_encoder=str(first / "model"))
    assert not same.reads_anew()
    wider = dataclasses.replace(onward, superres=dataclasses.replace(TINY.superres, width=16))
    with pytest.raises(ConfigError, match=r"its superres network has another width \(8\) than this run's"):
        wider._presets(tmp_path / "third")["superres"].family()
    stem = open_unet(first / "model" / "base").state_dict()["stem.weight"]
    finer = started_unet(str(first), "base", dataclasses.replace(TINY.base, patch=2))
    assert finer is not None
    assert (finer.factor, torch.equal(finer.state_dict()["stem.weight"], stem)) == (4, True)


def test_phantoms_that_were_interrupted_are_finished_and_others_are_left_alone(tmp_path):
    corpus = tmp_path / "phantoms"
    write_phantoms(corpus, 2, size=32, findings=TINY.phantoms.findings)
    TINY.prepare(corpus, tmp_path / "run", print, processes=1)
    assert len(list(corpus.glob("thorax-*"))) == 2  # a finished folder is read as it is
    record = json.loads((corpus / "run.json").read_text())
    (corpus / "run.json").write_text(json.dumps({k: v for k, v in record.items() if k != "phantoms"}))
    TINY.prepare(corpus, tmp_path / "run", print, processes=1)
    assert len(list(corpus.glob("thorax-*"))) == 3


def test_what_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="starter-ct trains its stages on one process"):
        TINY.prepare(tmp_path, tmp_path, print, processes=2)
    small = dataclasses.replace(TINY, max_megabytes=0.001)
    with pytest.raises(ModelError, match=r"take 0\.\d MB, at most 0\.001 MB ship"):
        run(small, tmp_path / "phantoms", tmp_path / "run")


def test_the_plan_of_the_real_one(tmp_path):
    said = []
    STARTER_CT.plan(tmp_path / "new", tmp_path / "run", said.append)
    assert said[0] == "3600 phantoms of 64 voxels are made"
    assert said[1:4] == [
        f"{stage}: {settings.num_steps} steps of {settings.batch_size}, rate {settings.learning_rate:g}"
        for stage, settings in STARTER_CT._stages().items()
    ]
    weights = count_parameters(STARTER_CT.base) + count_parameters(STARTER_CT.superres)
    assert 2 * weights / 1e6 < STARTER_CT.max_megabytes / 2  # float16, without the small report encoder
    assert not any(tmp_path.iterdir())
