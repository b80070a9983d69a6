"""`medisyn corpus show|verify|schema|sources` as a user runs them."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

import build_source
from medisyn.cli import main
from medisyn.corpus.curate import curate
from medisyn.corpus.loader import Corpus
from medisyn.corpus.shards import INDEX, write_index
from medisyn.corpus.source import parse_source, shipped


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    base = tmp_path_factory.mktemp("corpus")
    build_source.files(base / "files", 24)
    curate(build_source.source(base / "files"), base / "corpus", test_per_specialty=4)
    return base / "corpus"


@pytest.fixture
def corpus(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "corpus")
    return Corpus(tmp_path / "corpus")


def refused(capsys, *arguments):
    """The one line of a command that leaves with exit code 2, and what it printed before."""
    assert main([str(argument) for argument in arguments]) == 2
    written = capsys.readouterr()
    assert written.err.startswith("medisyn: ")
    assert written.err.count("\n") == 1
    return written.err, written.out


def test_show_counts_and_lists_captions(whole, capsys):
    assert main(["corpus", "show", str(whole), "--captions", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"24 samples, fingerprint {Corpus(whole).fingerprint}"
    assert any(line.startswith("radiology ") and line.endswith(" 24") for line in lines)
    assert lines[-1].split(maxsplit=1)[0] == "8"
    assert "frequent captions" in lines[-2]
    assert main(["corpus", "show", str(whole), "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["samples"] == sum(counted["image_type"]["chest X-ray"].values()) == 24
    assert sum(counted["captions"].values()) == 24


def test_verify_says_that_all_is_well(whole, capsys):
    assert main(["corpus", "verify", str(whole)]) == 0
    assert capsys.readouterr().out == "24 samples in 2 shards: all readable, hashes and splits right\n"
    assert main(["corpus", "verify", str(whole), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shards": 2, "samples": 24, "problems": []}


def test_verify_names_an_unreadable_shard_and_how_to_mend_it(corpus, capsys):
    row = corpus.rows("train")[0]
    shard = corpus.path / row.shard
    content = bytearray(shard.read_bytes())
    content[row.offset + 30] ^= 4
    shard.write_bytes(content)
    line, out = refused(capsys, "corpus", "verify", corpus.path)
    assert out == ""
    assert "1 problems: shard train-00000.tar is damaged in 1 of " in line
    assert "delete it, then repeat the curate command" in line
    shard.write_bytes(b"no tar" * 2000)
    line, out = refused(capsys, "corpus", "verify", corpus.path, "--json")
    (problem,) = json.loads(out)["problems"]
    assert "shard train-00000.tar is not readable (ReadError)" in problem
    assert problem in line


def test_verify_finds_a_patient_in_two_splits(corpus, capsys):
    rows, other = corpus.rows(), corpus.rows("test")[0]
    number = rows.index(corpus.rows("train")[0])
    rows[number] = dataclasses.replace(rows[number], patient=other.patient)
    write_index(corpus.path / INDEX, rows)
    line, _ = refused(capsys, "corpus", "verify", corpus.path)
    assert f"{other.patient} is in more than one split: test, train" in line


@pytest.mark.parametrize("command", ["show", "verify"])
def test_what_is_no_corpus_is_said(tmp_path, capsys, command):
    line, _ = refused(capsys, "corpus", command, tmp_path)
    assert f"has no {INDEX} (not a corpus)" in line
    (tmp_path / INDEX).write_bytes(b"PAR1 but not really")
    line, _ = refused(capsys, "corpus", command, tmp_path)
    assert f"{INDEX} is not readable Parquet" in line


def test_the_schema_knows_every_kind_of_sample(capsys):
    assert main(["corpus", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    kinds = {
        model["properties"]["kind"]["const"] for model in schema["$defs"].values() if "kind" in model["properties"]
    }
    assert kinds == {"whole", "slices", "series", "boxes", "tiles", "arrays", "clip", "modalities"}
    assert set(schema["required"]) <= set(build_source.description())
    assert parse_source(build_source.description()).name == "shapes"


def test_every_shipped_source_is_listed_with_its_licence(capsys):
    assert main(["corpus", "sources"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == shipped()
    assert any(line.startswith("cxr_hannover ") and "CC BY 3.0" in line for line in lines)
