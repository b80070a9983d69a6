"""The judge on one process and on two: the same images, the same score."""

import json
import sys
from pathlib import Path

import pytest
import torch

import build
import build_corpus
import build_training
from medisyn.corpus.loader import Corpus
from medisyn.recipes.selection import CheckpointJudge, JudgeConfig
from medisyn.training.launch import accelerator_for, launch

RANK = """
import sys
from medisyn.training.launch import leave_together
from recipes.test_selection import judged
judged(*sys.argv[1:])
leave_together()
"""


def judged(corpus, encoder, out):
    """Judge a tiny model in bf16 as one of the processes there are, and write what it sampled and found."""
    torch.set_num_threads(1)
    accelerator = accelerator_for("bf16")
    config = JudgeConfig(images=7, batch_size=2, extractor_path=str(encoder), steps=2, guidance=2.0)
    family, sampled = build.tiny_model(), []
    sample = family.sample
    family.sample = lambda requests: sampled.append([request.seed for request in requests]) or sample(requests)
    judge = CheckpointJudge(family, Corpus(Path(corpus)), config)
    with accelerator.autocast():
        record = judge(5)
    name = f"{accelerator.num_processes}-{accelerator.process_index}.json"
    Path(out, name).write_text(json.dumps({"record": record, "sampled": sampled}))


def test_two_processes_share_the_images_and_find_the_score_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    corpus = build_corpus.tiny_corpus(tmp_path / "corpus", size=32)
    encoder = build_training.tiny_encoder(tmp_path / "encoder")
    threads = torch.get_num_threads()
    try:
        judged(corpus, encoder, tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert launch([sys.executable, "-c", RANK, str(corpus), str(encoder), str(tmp_path)], 2) == 0
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert [len(batch) for batch in one["sampled"]] == [2, 2, 2, 1]
    assert [first["sampled"], second["sampled"]] == [one["sampled"][0::2], one["sampled"][1::2]]
    assert one["record"]["n_generated"] == one["record"]["n_real"] == 7
    assert first["record"] == second["record"]  # told by the main process
    # The batches are the same ones, so only sums in another order (threads, other kernels) could round differently.
    assert first["record"]["score"] == pytest.approx(one["record"]["score"], rel=1e-6)
    assert first["record"]["kernel_distance"] == pytest.approx(one["record"]["kernel_distance"], rel=1e-6)
