"""Reading a corpus by index, with `datasets`, and in worker processes."""

import concurrent.futures
import dataclasses
import io
import multiprocessing
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

import build_source
from medisyn.corpus.curate import curate
from medisyn.corpus.loader import Corpus
from medisyn.corpus.shards import LATER_COLUMNS, Entry, Row, sidecar, write_shard
from medisyn.errors import CorpusError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("loader")
    build_source.files(base / "files", 30)
    curate(build_source.source(base / "files"), base / "corpus")
    return base / "corpus"


def test_rows_of_a_split_and_all(folder):
    corpus = Corpus(folder)
    parts = [corpus.rows(split) for split in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(corpus) == len(corpus.rows()) == 30
    assert all(row.split == "train" for row in parts[0])
    with pytest.raises(CorpusError, match=r"split 'valid' is unknown, allowed: train, validation, test"):
        corpus.rows("valid")


def test_a_sample_carries_its_row(folder):
    corpus = Corpus(folder)
    for row in corpus.rows():
        sample = corpus.read(row)
        assert sample.key == row.key
        assert sample.caption == row.caption
        assert sample.item.array_CHW.shape == (1, 16, 16)
        assert sample.item.array_CHW.dtype == np.uint8
        assert dict(sample.metadata) == {
            "specialty": "radiology",
            "image_type": "chest X-ray",
            "labels": row.labels,
            "patient": row.patient,
            "source": "shapes",
            "split": row.split,
            "original_size": (24, 24),
            "crop_top_left": (0, 0),
        }


def test_a_corpus_of_before_the_sizes_were_recorded(folder, tmp_path):
    import pyarrow.parquet as pq

    shutil.copytree(folder, tmp_path / "corpus")
    table = pq.read_table(tmp_path / "corpus" / "index.parquet").drop_columns(list(LATER_COLUMNS))
    pq.write_table(table, tmp_path / "corpus" / "index.parquet")
    corpus = Corpus(tmp_path / "corpus")
    row = corpus.rows()[0]
    assert (row.original_size, row.crop_top_left) == (None, None)
    assert {"original_size", "crop_top_left"}.isdisjoint(corpus.read(row).metadata)


def test_a_changed_picture_is_noticed_when_it_is_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "corpus")
    corpus = Corpus(tmp_path / "corpus")
    first, second = corpus.rows()[:2]
    shard = corpus.path / first.shard
    content = bytearray(shard.read_bytes())
    content[first.offset + first.size // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorpusError, match=rf"{first.key}: its picture .*was changed"):
        corpus.read(first)
    assert corpus.read(second).key == second.key


def read_first(corpus):
    return corpus.read(corpus.rows()[0]).key


def test_a_corpus_goes_to_a_worker_process(folder):
    corpus = Corpus(folder)
    assert pickle.loads(pickle.dumps(corpus)).fingerprint == corpus.fingerprint
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        assert pool.submit(read_first, corpus).result() == corpus.rows()[0].key


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_the_shards(folder, tmp_path, streaming):
    datasets = pytest.importorskip("datasets")
    files = {split: str(folder / "data" / f"{split}-*.tar") for split in ("train", "validation", "test")}
    files = {split: pattern for split, pattern in files.items() if Corpus(folder).rows(split)}
    loaded = datasets.load_dataset("webdataset", data_files=files, streaming=streaming, cache_dir=str(tmp_path))
    corpus = Corpus(folder)
    for split in files:
        rows = {row.key: row for row in corpus.rows(split)}
        found = list(loaded[split])
        assert {example["__key__"] for example in found} == set(rows)
        for example in found:
            row = rows[example["__key__"]]
            assert example["txt"] == row.caption
            assert example["json"]["patient"] == row.patient
            np.testing.assert_array_equal(np.asarray(example["png"]), corpus.read(row).item.array_CHW[0])


def test_datasets_reads_a_mixture_of_sources(tmp_path):
    """The first samples have neither labels nor spacing, the last one has both."""
    datasets = pytest.importorskip("datasets")
    stream = io.BytesIO()
    Image.fromarray(build_source.picture(1)).save(stream, "PNG")
    base = Row("", "s", 0, 0, "train", "a", "b", "c", (), "p", "s", "MIT", "0", "0", 0.0, 255.0, "uint8", None)
    rows = [dataclasses.replace(base, key=f"k{number}") for number in range(10)]
    rows.append(dataclasses.replace(base, key="k10", labels=("x", "y"), spacing=(1.0, 0.5)))
    entries = [Entry(row.key, stream.getvalue(), row.caption, sidecar(row)) for row in rows]
    write_shard(tmp_path / "data" / "train-00000.tar", entries)
    files = str(tmp_path / "data" / "*.tar")
    loaded = datasets.load_dataset("webdataset", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded[10]["json"]["labels"] == "x|y"
    assert loaded[10]["json"]["spacing"] == "1 0.5"
