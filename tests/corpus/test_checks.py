"""Verify finds every kind of damage and names it."""

import dataclasses
import os
import re
import shutil

import pytest

import build_source
from medisyn.corpus.checks import VerifyReport, summary, summary_text, verify
from medisyn.corpus.curate import curate
from medisyn.corpus.loader import Corpus
from medisyn.corpus.shards import INDEX, write_index
from medisyn.errors import CorpusError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    base = tmp_path_factory.mktemp("checks")
    build_source.files(base / "files", 24)
    curate(build_source.source(base / "files"), base / "corpus", test_per_specialty=4)
    return base / "corpus"


@pytest.fixture
def corpus(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "corpus")
    return Corpus(tmp_path / "corpus")


def problems(corpus):
    return " | ".join(verify(corpus.path).problems)


def rewrite(corpus, number, **changes):
    rows = corpus.rows()
    rows[number] = dataclasses.replace(rows[number], **changes)
    write_index(corpus.path / INDEX, rows)


def test_a_whole_corpus_has_no_problem(corpus):
    report = verify(corpus.path)
    assert (report.samples, report.problems) == (24, ())
    report.raise_if_broken()


def test_a_cut_shard_and_a_missing_one_are_named(corpus):
    shard = corpus.path / corpus.rows("train")[0].shard
    os.truncate(shard, shard.stat().st_size // 2 + 100)
    assert "shard train-00000.tar is not readable" in problems(corpus) or "not in its shard" in problems(corpus)
    shard.write_bytes(b"x" * 5000)
    assert "shard train-00000.tar is not readable (ReadError)" in problems(corpus)
    shard.unlink()
    assert "shard train-00000.tar is missing" in problems(corpus)
    with pytest.raises(CorpusError, match=r"1 problems: shard train-00000.tar is missing"):
        verify(corpus.path).raise_if_broken()


def test_bit_rot_is_one_line_for_its_shard_and_says_how_to_mend_it(corpus):
    rows = corpus.rows("train")
    shard = corpus.path / rows[0].shard
    content = bytearray(shard.read_bytes())
    for row in rows[:3]:
        content[row.offset + row.size // 2] ^= 1
    shard.write_bytes(content)
    (problem,) = verify(corpus.path).problems
    assert problem.startswith(f"shard train-00000.tar is damaged in 3 of {len(rows)} samples ({rows[0].key}: its pict")
    assert "delete it, then repeat the curate command, which makes it again, or copy it again" in problem


def test_a_damaged_header_inside_a_shard_is_one_line_too(corpus):
    rows = corpus.rows("train")
    shard = corpus.path / rows[0].shard
    content = bytearray(shard.read_bytes())
    content[rows[1].offset - 400] ^= 1  # in the tar header of the second picture: what follows is not found
    shard.write_bytes(content)
    (problem,) = verify(corpus.path).problems
    assert f"damaged in {len(rows) - 1} of {len(rows)} samples" in problem


def test_an_index_that_curate_did_not_write_is_noticed(corpus):
    rewrite(corpus, 0, source="another")
    assert verify(corpus.path).problems == ()  # not in the fingerprint
    rewrite(corpus, 0, caption="another")
    assert "index.parquet is not the one that run.json tells of" in problems(corpus)


def test_a_patient_in_two_splits_is_an_error(corpus):
    row, other = corpus.rows("train")[0], corpus.rows("test")[0]
    rewrite(corpus, corpus.rows().index(row), patient=other.patient)
    assert f"{other.patient} is in more than one split: test, train" in problems(corpus)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption": " "}, "the caption is empty"),
        ({"caption": "other"}, "its caption differs from the index"),
        ({"sha256": "0" * 64}, r"its picture was changed \(sha256 differs\)"),
        ({"offset": 17}, "the index points to byte 17, its picture begins at 512"),
        ({"split": "test"}, "split 'test' does not fit its shard data/train-00000.tar"),
        ({"key": "nobody"}, "nobody: its png, txt or json is not in its shard"),
    ],
)
def test_an_index_that_does_not_fit_its_shards(corpus, changes, message):
    assert corpus.rows()[0].split == "train"
    rewrite(corpus, 0, **changes)
    assert re.search(message, problems(corpus))


def test_an_incomplete_index(corpus):
    rows = corpus.rows()
    write_index(corpus.path / INDEX, rows[1:])
    assert f"{rows[0].key} is in shard train-00000.tar and not in the index" in problems(corpus)
    write_index(corpus.path / INDEX, [*rows, rows[0]])
    assert "the index repeats 1 keys" in problems(corpus)
    shutil.copy(corpus.path / rows[0].shard, corpus.path / "data" / "train-00009.tar")
    assert "shard train-00009.tar is not in the index" in problems(corpus)
    write_index(corpus.path / INDEX, [])
    assert "the index is empty" in problems(corpus)


def test_changed_metadata_is_noticed(corpus):
    row = corpus.rows("train")[0]
    shard = corpus.path / row.shard
    shard.write_bytes(shard.read_bytes().replace(b'"split": "train"', b'"split": "other"'))
    assert f"{row.key}: its metadata differs from the index" in problems(corpus)


def test_many_problems_are_counted():
    report = VerifyReport(1, 1, tuple(f"problem {n}" for n in range(25)))
    with pytest.raises(CorpusError, match=r"25 problems: problem 0; .*problem 19; and 5 more"):
        report.raise_if_broken()


def test_the_summary_counts_what_is_there(whole):
    counted = summary(whole, captions=1)
    assert counted["samples"] == 24
    assert sum(counted["specialty"]["radiology"].values()) == 24
    assert list(counted["captions"].values()) == [8]
    text = summary_text(counted)
    assert "24 samples" in text
    assert f"{'radiology':32}" in text
