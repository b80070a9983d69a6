import dataclasses

import numpy as np
import pytest
import torch

import build
import build_corpus
import build_training
from medisyn.corpus.loader import Corpus
from medisyn.errors import ConfigError, CorpusError, InputError, ModelError
from medisyn.evaluation.frechet import frechet_distance
from medisyn.recipes.finetune import _read_index, caption_digest, encoder_digest, picture_digest
from medisyn.recipes.medisyn_v2 import MEDISYN_V2_TINY, SD_FINETUNE_TINY
from medisyn.recipes.selection import CheckpointJudge, JudgeConfig
from medisyn.recipes.stable_diffusion import size_note


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_corpus.tiny_corpus(tmp_path_factory.mktemp("corpus"), size=64)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return build_training.tiny_encoder(tmp_path_factory.mktemp("encoder"))


class Painter:
    """A family whose pictures are flat, of the level it is told."""

    def __init__(self, level):
        self.level, self.batches = level, []

    def sample(self, requests):
        self.batches.append([(request.prompt, request.seed) for request in requests])
        return torch.zeros(len(requests), 1)

    def decode(self, latents):
        from medisyn.types import Picture

        rng = np.random.default_rng(0)
        return [Picture(rng.integers(0, self.level, (3, 64, 64)).astype(np.uint8)) for _ in latents]


def test_the_judge_measures_generated_against_held_out(corpus, encoder):
    opened = Corpus(corpus)
    config = JudgeConfig(images=6, extractor_path=str(encoder), batch_size=4)
    family = Painter(200)
    judge = CheckpointJudge(family, opened, config)
    record = judge(step=40)
    assert (record["n_generated"], record["n_real"], record["against"], record["step"]) == (6, 6, "validation", 40)
    assert record["extractor"].startswith("medical-encoder:")
    assert [len(batch) for batch in family.batches] == [4, 2]
    captions = {row.caption for row in opened.rows("validation")}
    assert {prompt for batch in family.batches for prompt, _ in batch} <= captions
    rgb = [opened.read(row).item.array_CHW.transpose(1, 2, 0) for row in judge.rows]
    real = judge.extractor([np.ascontiguousarray(image) for image in rgb])
    made = [np.ascontiguousarray(item.array_CHW.transpose(1, 2, 0)) for n in (4, 2) for item in family.decode(range(n))]
    assert record["score"] == record["frechet_distance"] == pytest.approx(frechet_distance(judge.extractor(made), real))
    assert record["kernel_distance"] != record["score"]
    again = CheckpointJudge(Painter(200), opened, config)
    assert again(step=40) == record


def test_a_worse_generator_scores_worse(corpus, encoder):
    """Real pictures are mostly black: noise up to level 30 is nearer to them than noise up to 250."""
    config = JudgeConfig(images=6, extractor_path=str(encoder))
    near, far = (CheckpointJudge(Painter(level), Corpus(corpus), config)(1)["score"] for level in (30, 250))
    assert near < far


def test_a_judge_needs_held_out_images(tmp_path, encoder):
    small = Corpus(build_corpus.tiny_corpus(tmp_path, count=7, size=64))  # six train, one validation
    with pytest.raises(InputError, match=r"has 1 image\(s\). Set judge.against=train"):
        CheckpointJudge(Painter(1), small, JudgeConfig(extractor_path=str(encoder)))
    assert len(CheckpointJudge(Painter(1), small, JudgeConfig(extractor_path=str(encoder), against="train")).rows) == 6


def test_a_corpus_of_another_size_is_refused_before_training(tmp_path):
    small = build_corpus.tiny_corpus(tmp_path / "corpus", size=32)
    run = dataclasses.replace(MEDISYN_V2_TINY, judge=JudgeConfig(images=0))
    with pytest.raises(ConfigError, match="holds pictures of 32x32 pixels, the model makes 64x64"):
        run.prepare(small, tmp_path / "run", silent, processes=1)


def test_a_model_trained_at_another_size_is_judged_and_exported_at_that_size(tmp_path, corpus):
    base = build.tiny_folder(tmp_path / "base")  # makes 32 pixels; the corpus holds 64
    run = dataclasses.replace(SD_FINETUNE_TINY, base=str(base), network=None)
    opened = Corpus(corpus)
    family = run.family(tmp_path, opened)
    run.check_size(family, opened, silent)
    [request] = run._preview_requests(opened)[:1]
    assert family.decode(family.sample([request]))[0].array_CHW.shape == (3, 64, 64)
    family.save(tmp_path / "model")
    again = type(family).from_folder(tmp_path / "model")
    assert (again.resolve(request).height, again.resolve(request).width) == (64, 64)


def test_a_split_without_samples(tmp_path, corpus):
    only_train = build_corpus.tiny_corpus(tmp_path / "corpus", count=6, size=64)
    run = dataclasses.replace(MEDISYN_V2_TINY, split="test")
    with pytest.raises(CorpusError, match="no samples in split 'test'"):
        run.prepare(only_train, tmp_path / "run", silent, processes=1)


def test_a_caption_is_stored_once_and_read_back_as_encode_gives_it(tmp_path):
    """30 samples of 12 captions, of which 18 train: each row, joined from the two stores, is `encode`'s bit for bit."""
    folder = build_corpus.tiny_corpus(tmp_path / "corpus", size=64)
    opened = Corpus(folder)
    family = MEDISYN_V2_TINY.family(tmp_path, opened)
    store = MEDISYN_V2_TINY.store(family, folder, tmp_path, opened, processes=1)
    rows = opened.rows("train")
    assert (len(store), len(rows), len(store.shared)) == (18, 18, len({row.caption for row in rows}))
    assert len(store.shared) < 18
    expected = family.encode([opened.read(row) for row in rows])
    for number in range(18):
        assert store[number].keys() == expected.keys()
        for name in ("text", "pooled", "time_ids"):
            assert torch.equal(store[number][name], expected[name][number])
    eights = [family.encode([opened.read(row) for row in rows[start : start + 8]]) for start in (0, 8, 16)]
    assert torch.equal(torch.cat([part["mean"] for part in eights]), torch.stack([store[n]["mean"] for n in range(18)]))
    assert len(list((tmp_path / "encoded").iterdir())) == 2
    assert size_note(store.own).startswith("size conditioning: 0 of 18 samples tell another")


def test_sizes_that_the_corpus_tells_are_counted_and_give_other_rows(tmp_path, monkeypatch):
    folder = build_corpus.tiny_corpus(tmp_path / "corpus", size=64)
    opened = Corpus(folder)
    family = MEDISYN_V2_TINY.family(tmp_path, opened)
    MEDISYN_V2_TINY.store(family, folder, tmp_path, opened, processes=1)
    rows = Corpus.rows
    facts = {"original_height": 600, "original_width": 400, "crop_top": 0, "crop_left": 100}
    monkeypatch.setattr(Corpus, "rows", lambda *asked: [dataclasses.replace(row, **facts) for row in rows(*asked)])
    _read_index.cache_clear()
    store = MEDISYN_V2_TINY.store(family, folder, tmp_path, opened, processes=1)
    assert store[0]["time_ids"].tolist() == [600, 400, 0, 100, 64, 64]
    assert size_note(store.own).startswith("size conditioning: 18 of 18 samples")
    assert len(list((tmp_path / "encoded").iterdir())) == 3  # pictures twice, captions once


def test_balanced_weights_by_hand(corpus):
    opened = Corpus(corpus)
    rows = opened.rows("train")
    run = dataclasses.replace(MEDISYN_V2_TINY, balance="image_type")
    weights = run._weights(opened)
    red = np.array([row.image_type == "chest X-ray" for row in rows])
    assert weights[red].sum() == pytest.approx(0.5)
    assert weights[~red].sum() == pytest.approx(0.5)
    by_class = dataclasses.replace(MEDISYN_V2_TINY, balance="class")._weights(opened)
    assert len(set(by_class.round(9))) > 2
    assert MEDISYN_V2_TINY._weights(opened) is None


def test_the_base_is_built_once_and_deterministic(tmp_path, corpus):
    opened = Corpus(corpus)
    families = [SD_FINETUNE_TINY.family(tmp_path / name, opened) for name in ("a", "a", "b")]
    digests = {encoder_digest(family) for family in families}
    assert len(digests) == 1
    weights = [next(family.networks.unet.parameters()) for family in families]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_the_address_of_encoded_rows_follows_the_encoder():
    family = build.tiny_model()
    before = encoder_digest(family)
    with torch.no_grad():
        next(family.networks.vae.parameters()).add_(1e-3)
    assert encoder_digest(family) != before
    trained = build.tiny_model(config=dataclasses.replace(family.config, train_text_encoder=True))
    address = encoder_digest(trained)
    assert address not in (before, encoder_digest(family))
    with torch.no_grad():
        next(trained.networks.text_encoders[0].parameters()).add_(1e-3)
    assert encoder_digest(trained) == address  # the rows hold token ids, not text


def test_pictures_and_captions_are_encoded_again_when_their_own_encoder_changes():
    family = build.tiny_model(build.TINY_SDXL)
    sizes = [((64, 48), (0, 0)), (None, None)]

    def digests():
        return picture_digest(family, sizes), caption_digest(family)

    before = digests()
    with torch.no_grad():
        next(family.networks.vae.parameters()).add_(1e-3)
    after_vae = digests()
    assert (after_vae[0] != before[0], after_vae[1]) == (True, before[1])
    with torch.no_grad():
        next(family.networks.text_encoders[1].parameters()).add_(1e-3)
    assert (digests()[0], digests()[1] != before[1]) == (after_vae[0], True)
    assert picture_digest(family, [sizes[0], ((32, 32), (0, 8))]) != after_vae[0]  # the last picture's size, too


def test_another_autoencoder_takes_the_place_of_the_base_model_s(tmp_path, corpus):
    folder = build.tiny_folder(tmp_path / "base")
    other = build.tiny_model(seed=5)
    other.networks.vae.save_pretrained(tmp_path / "vae")
    run = dataclasses.replace(SD_FINETUNE_TINY, base=str(folder), network=None, vae=str(tmp_path / "vae"))
    family = run.family(tmp_path, Corpus(corpus))
    assert torch.equal(next(family.networks.vae.parameters()), next(other.networks.vae.parameters()))
    assert not torch.equal(next(build.tiny_model().networks.vae.parameters()), next(family.networks.vae.parameters()))


def test_models_that_are_not_there(tmp_path, corpus):
    missing = dataclasses.replace(SD_FINETUNE_TINY, base="nowhere", network=None)
    with pytest.raises(ModelError, match="model 'nowhere' is neither a shipped model"):
        missing.family(tmp_path, Corpus(corpus))
    base = str(build.tiny_folder(tmp_path / "base"))
    with pytest.raises(ModelError, match="nothing"):
        dataclasses.replace(missing, base=base, vae=str(tmp_path / "nothing")).family(tmp_path, Corpus(corpus))
