"""From files and a table to a corpus: quarantine, privacy, resume, one and two processes, refusals."""

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from PIL import Image

import build_source
from medisyn import runs
from medisyn.corpus import curate as curate_module
from medisyn.corpus import parts
from medisyn.corpus.checks import verify
from medisyn.corpus.curate import curate
from medisyn.corpus.loader import Corpus
from medisyn.corpus.splits import Shares
from medisyn.errors import BusyError, ConfigError, CorpusError, MedisynError


def reasons(folder):
    return [entry["reason"] for entry in runs.read_jsonl(folder / "quarantine.jsonl")]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but the lock and run.json, which holds the time."""
    names = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "run.json")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}


def test_a_corpus_from_a_table(tmp_path):
    build_source.files(tmp_path / "files", 20)
    report = curate(build_source.source(tmp_path / "files"), tmp_path / "corpus")
    assert (report.read, report.kept, report.quarantined) == (20, 20, 0)
    assert not verify(tmp_path / "corpus").problems
    assert {path.name for path in (tmp_path / "corpus").iterdir() if not path.name.startswith(".")} == {
        "README.md",
        "croissant.json",
        "data",
        "index.parquet",
        "quarantine.jsonl",
        "run.json",
    }
    rows = Corpus(tmp_path / "corpus").rows()
    captions = Counter(row.caption for row in rows)
    assert captions["Frontal chest X-ray image"] == 7
    assert captions["Frontal chest X-ray image showing effusion"] == 7
    assert Counter(row.patient for row in rows).most_common(1)[0][1] == 2
    assert len({row.patient for row in rows}) == 10


def test_pixels_are_the_papers_resize_and_crop(tmp_path):
    build_source.files(tmp_path / "files", 1)
    wide = np.asarray(Image.fromarray(build_source.picture(5, 60)).resize((90, 60)))
    Image.fromarray(wide).save(tmp_path / "files" / "0.png")
    curate(build_source.source(tmp_path / "files"), tmp_path / "corpus")
    corpus = Corpus(tmp_path / "corpus")
    expected = Image.fromarray(wide).resize((24, 16), Image.Resampling.LANCZOS).crop((4, 0, 20, 16))
    np.testing.assert_array_equal(corpus.read(corpus.rows()[0]).item.array_CHW[0], np.asarray(expected))


def test_bad_files_are_set_aside_with_their_reasons_and_the_rest_goes_on(tmp_path):
    folder = tmp_path / "files"
    rows = build_source.files(folder, 12)
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:60])
    (folder / "1.png").write_text("this is text")
    (folder / "2.png").unlink()
    Image.fromarray(np.zeros((20, 20), dtype=np.uint8)).save(folder / "3.png")
    rows[4]["patient"] = ""
    rows[7]["file"] = "too long for a file name" * 50
    rows.append(dict(rows[5]))  # an equal row twice
    rows.append({**rows[6], "finding": "contradiction"})
    build_source.write_table(folder / "table.csv", rows)
    report = curate(build_source.source(folder), tmp_path / "corpus")
    found = " | ".join(reasons(tmp_path / "corpus"))
    assert "the PNG file is damaged or cut short" in found
    assert "the file holds text, not an image" in found
    assert "the file that the table names is missing" in found
    assert "every pixel is 0: the image is empty" in found
    assert "column 'patient' is empty: the patient of this file is unknown" in found
    assert "names this file again in an equal row; it was used once" in found
    assert "2 rows of the table name this file and contradict each other" in found
    assert (report.kept, report.quarantined) == (5, 8)
    assert not verify(tmp_path / "corpus").problems


def test_bad_dicom_is_set_aside(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    ct = Path(pydicom.data.get_testdata_file("CT_small.dcm", download=False))
    shutil.copy(ct, folder / "good.dcm")
    (folder / "cut.dcm").write_bytes(ct.read_bytes()[:20_000])
    (folder / "text.dcm").write_text("Patient: Jane Doe\n" * 50)
    unit = pydicom.dcmread(ct)
    unit.PixelData = np.tile(np.array([0, 1], dtype=np.int16), 128 * 64).tobytes()
    unit.RescaleIntercept = 0
    unit.save_as(folder / "unit.dcm")
    take = {
        "kind": "whole",
        "captions": ["CT image, {window} window"],
        "windows": {"soft tissue": [400, 40], "lung": "lung"},
    }
    options = {"table": None, "files": {"glob": "*.dcm"}, "fields": {}, "split": {"unit": "file"}}
    report = curate(build_source.source(folder, samples=[take], **options), tmp_path / "corpus")
    assert (report.read, report.kept, report.quarantined) == (4, 2, 3)
    found = " | ".join(reasons(tmp_path / "corpus"))
    assert "looks like [0, 1]" in found
    assert "the file holds text" in found
    assert "Jane" not in found
    assert {row.caption for row in Corpus(tmp_path / "corpus").rows()} == {
        "CT image, soft tissue window",
        "CT image, lung window",
    }


def test_no_name_of_a_patient_or_file_reaches_the_corpus(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    rows = []
    for number in range(6):
        Image.fromarray(build_source.picture(number)).save(folder / f"Doe_Jane_{number}.png")
        rows.append({"file": f"Doe_Jane_{number}.png", "patient": "MRN-XYZZY", "finding": ""})
    (folder / "Doe_Jane_5.png").write_bytes(b"")
    build_source.write_table(folder / "table.csv", rows)
    curate(build_source.source(folder, public_ids=False, root="files"), tmp_path / "corpus", root=tmp_path)
    for name, content in {**tree(tmp_path / "corpus"), "run": (tmp_path / "corpus" / "run.json").read_bytes()}.items():
        assert b"Jane" not in content, name
        assert b"XYZZY" not in content, name  # no hex digits, which a hash may hold by chance
        assert b"Jane" not in name.encode()


def test_the_key_lies_beside_the_corpus_and_decides_the_names(tmp_path):
    folder = tmp_path / "files"
    build_source.files(folder, 6)
    secret = build_source.source(folder, public_ids=False)
    curate(secret, tmp_path / "a")
    key = tmp_path / "a.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(bytes.fromhex(key.read_text())) == 32
    curate(secret, tmp_path / "b")
    curate(secret, tmp_path / "c", key_file=key)
    patients = {name: {row.patient for row in Corpus(tmp_path / name).rows()} for name in "abc"}
    assert patients["a"] == patients["c"]
    assert not patients["a"] & patients["b"]
    key.unlink()
    with pytest.raises(CorpusError, match=r"the key of a/ \(a.key\) is missing"):
        curate(secret, tmp_path / "a")
    key.write_text("secret")
    with pytest.raises(CorpusError, match=r"a.key must hold 32 to 128 hex digits"):
        curate(secret, tmp_path / "a")


def test_two_processes_give_the_same_bytes_as_one(tmp_path):
    build_source.files(tmp_path / "files", 40)
    source = build_source.source(tmp_path / "files")
    one = curate(source, tmp_path / "one" / "corpus", shard_bytes=3_000)
    two = curate(source, tmp_path / "two" / "corpus", shard_bytes=3_000, engine="processes:2")
    assert len(list((tmp_path / "one" / "corpus" / "data").iterdir())) > 4
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert one.fingerprint == two.fingerprint


def test_a_finished_corpus_is_left_alone_and_new_files_are_added(tmp_path, monkeypatch):
    folder = tmp_path / "files"
    build_source.files(folder, 20)
    source = build_source.source(folder)
    first = curate(source, tmp_path / "corpus")
    before = {row.key: row.split for row in Corpus(tmp_path / "corpus").rows()}
    with monkeypatch.context() as patch:
        patch.setattr(curate_module, "map_shards", None)  # nothing may be done again
        assert curate(source, tmp_path / "corpus") == first
    build_source.files(folder, 60)
    assert curate(source, tmp_path / "corpus").kept == 60
    after = {row.key: row.split for row in Corpus(tmp_path / "corpus").rows()}
    assert {key: after[key] for key in before} == before
    assert not verify(tmp_path / "corpus").problems


def test_repeating_the_command_mends_a_lost_and_a_cut_shard(tmp_path):
    build_source.files(tmp_path / "files", 20)
    source = build_source.source(tmp_path / "files")
    curate(source, tmp_path / "corpus")
    rows = Corpus(tmp_path / "corpus").rows()
    shard = tmp_path / "corpus" / "data" / "train-00000.tar"
    for damage in (shard.unlink, lambda: os.truncate(shard, 2000)):
        damage()
        assert verify(tmp_path / "corpus").problems
        assert curate(source, tmp_path / "corpus").kept == 20
        assert verify(tmp_path / "corpus").problems == ()
        assert Corpus(tmp_path / "corpus").rows() == rows


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    build_source.files(tmp_path / "files", 3)
    source = build_source.source(tmp_path / "files")
    other = tmp_path / "other"
    (other / "data").mkdir(parents=True)
    (other / "data" / "mine.tar").write_bytes(b"precious")
    for run in (None, '{"kind": "generate"}'):
        if run is not None:
            (other / "run.json").write_text(run)
        with pytest.raises(CorpusError, match=r"other/ holds files that are not of a corpus"):
            curate(source, other)
    assert (other / "data" / "mine.tar").read_bytes() == b"precious"
    (tmp_path / "file").write_text("")
    with pytest.raises(CorpusError, match="file is a file; --out names the folder of the corpus"):
        curate(source, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden").touch()
    assert curate(source, tmp_path / "empty").kept == 3


def test_the_corpus_may_be_the_folder_one_is_in(tmp_path, monkeypatch):
    build_source.files(tmp_path / "files", 3)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert curate(build_source.source(tmp_path / "files", public_ids=False), ".").kept == 3
    assert (tmp_path / "here.key").exists()


def test_an_interrupted_run_keeps_its_parts_and_goes_on(tmp_path, monkeypatch):
    build_source.files(tmp_path / "files", 40)
    source = build_source.source(tmp_path / "files")
    done = []

    def stop_in_the_fourth(task):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(task.name)
        return parts.write_part(task)

    monkeypatch.setattr(curate_module, "write_part", stop_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        curate(source, tmp_path / "corpus")
    monkeypatch.undo()
    with pytest.raises(CorpusError, match="has not finished: repeat the command"):
        Corpus(tmp_path / "corpus")
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "corpus" / ".build").glob("*.json")}
    assert len(times) == 3
    opened = []
    original = parts.prepare
    monkeypatch.setattr(parts, "prepare", lambda *args: opened.append(args) or original(*args))
    curate(source, tmp_path / "corpus")
    assert len(opened) == 2  # five parts in all, three were there
    curate(source, tmp_path / "whole" / "corpus")
    assert tree(tmp_path / "corpus") == tree(tmp_path / "whole" / "corpus")


def test_repeating_the_command_mends_a_rotten_shard_once_it_is_deleted(tmp_path):
    build_source.files(tmp_path / "files", 20)
    source = build_source.source(tmp_path / "files")
    curate(source, tmp_path / "corpus")
    before = tree(tmp_path / "corpus")
    row = Corpus(tmp_path / "corpus").rows("train")[0]
    shard = tmp_path / "corpus" / row.shard
    content = bytearray(shard.read_bytes())
    content[row.offset + 40] ^= 8
    shard.write_bytes(content)
    curate(source, tmp_path / "corpus")  # it does not read every shard again
    (problem,) = verify(tmp_path / "corpus").problems
    assert "delete it, then repeat the curate command" in problem
    shard.unlink()
    curate(source, tmp_path / "corpus")
    assert tree(tmp_path / "corpus") == before


def test_an_edited_annotation_makes_the_samples_again(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    Image.fromarray(build_source.picture(1, 60)).save(folder / "0.png")
    build_source.write_table(folder / "table.csv", [{"file": "0.png", "cells": "0.txt"}])
    take = {"kind": "boxes", "file": "{cells}", "format": "points", "side": 8, "classes": {"0": "a", "1": "b"}}
    options = {"fields": {}, "split": {"unit": "file"}, "samples": [{**take, "min_side": 4, "captions": ["{class}"]}]}
    for text, caption in (("30 30 0\n", "a"), ("30 30 1 \n", "b")):
        (folder / "0.txt").write_text(text)
        curate(build_source.source(folder, **options), tmp_path / "corpus")
        assert [row.caption for row in Corpus(tmp_path / "corpus").rows()] == [caption]


def test_a_full_disk_leaves_no_empty_key(tmp_path, monkeypatch):
    build_source.files(tmp_path / "files", 3)
    source = build_source.source(tmp_path / "files", public_ids=False)

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(MedisynError, match=r"the disk of corpus/ is full"):
            curate(source, tmp_path / "corpus")
    assert not (tmp_path / "corpus.key").exists()
    assert curate(source, tmp_path / "corpus").kept == 3


def test_another_error_of_the_disk_is_not_called_full(tmp_path, monkeypatch):
    def denied(image):
        raise OSError(errno.EACCES, "Permission denied")

    build_source.files(tmp_path / "files", 2)
    monkeypatch.setattr(parts, "encode_png", denied)
    with pytest.raises(OSError, match="Permission denied"):
        curate(build_source.source(tmp_path / "files"), tmp_path / "corpus")


def test_two_curations_of_one_folder_do_not_mix(tmp_path):
    build_source.files(tmp_path / "files", 4)
    with runs.lock(tmp_path / "corpus"), pytest.raises(BusyError, match="another process is writing to corpus/"):
        curate(build_source.source(tmp_path / "files"), tmp_path / "corpus")


def test_duplicate_pictures_of_two_patients_share_a_split(tmp_path):
    folder = tmp_path / "files"
    rows = build_source.files(folder, 60, per_patient=1)
    for number in range(30):  # patients 30 to 59 have the pictures of patients 0 to 29
        shutil.copy(folder / f"{number}.png", folder / f"{number + 30}.png")
    assert len(rows) == 60
    report = curate(build_source.source(folder), tmp_path / "corpus", shares=Shares(50, 25, 25))
    by_picture: dict[str, set[str]] = {}
    for row in Corpus(tmp_path / "corpus").rows():
        by_picture.setdefault(row.sha256, set()).add(row.split)
    assert len(by_picture) == 30
    assert all(len(found) == 1 for found in by_picture.values())
    assert min(report.splits.values()) > 0


def test_a_reserved_test_set(tmp_path):
    build_source.files(tmp_path / "files", 40)
    report = curate(build_source.source(tmp_path / "files"), tmp_path / "corpus", test_per_specialty=5)
    assert report.splits["test"] == 6  # three patients with two pictures each
    assert "At least 5 samples of each specialty" in (tmp_path / "corpus" / "README.md").read_text()


def test_the_publishers_split_is_kept(tmp_path):
    folder = tmp_path / "files"
    rows = build_source.files(folder, 9)
    names = ("Train", "Val", "Test")
    build_source.write_table(folder / "table.csv", [{**row, "set": names[n % 3]} for n, row in enumerate(rows)])
    values = {"Train": "train", "Val": "validation"}
    split = {"unit": "file", "given": {"column": "set", "values": values}}
    report = curate(build_source.source(folder, split=split), tmp_path / "corpus")
    assert report.splits == {"train": 3, "validation": 3, "test": 0}
    assert reasons(tmp_path / "corpus") == ["column 'set' names a split that the description does not list"] * 3


def test_the_cap_of_a_class(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(build_source.picture(number, 100)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("".join(f"{10 + 9 * n} {20 + 9 * n} {n % 2}\n" for n in range(8)))
    build_source.write_table(folder / "table.csv", [{"file": f"{n}.png", "cells": f"{n}.txt"} for n in range(4)])
    take = {"kind": "boxes", "file": "{cells}", "format": "points", "side": 8, "min_side": 4, "cap": {"0": 5}}
    take |= {"classes": {"0": "round", "1": "flat"}, "captions": ["A {class} cell"], "labels": ["{class}"]}
    options = {"fields": {}, "split": {"unit": "file"}, "samples": [take]}
    report = curate(build_source.source(folder, **options), tmp_path / "corpus")
    labels = Counter(row.labels[0] for row in Corpus(tmp_path / "corpus").rows())
    assert labels == {"round": 5, "flat": 16}
    assert report.left_out == 11
    assert len({row.patient for row in Corpus(tmp_path / "corpus").rows()}) <= 4


def test_what_cannot_be_curated_is_refused(tmp_path):
    folder = tmp_path / "files"
    build_source.files(folder, 3)
    source = build_source.source(folder)
    with pytest.raises(CorpusError, match="two source descriptions have the same name: shapes, shapes"):
        curate([source, source], tmp_path / "corpus")
    with pytest.raises(CorpusError, match="its folder 'nowhere' is not in the given root"):
        curate(build_source.source(folder, root="nowhere"), tmp_path / "c", root=tmp_path)
    with pytest.raises(ConfigError, match=r"make pictures of 16 and 32 pixels, .* Give it with --size"):
        curate([source, build_source.source(folder, name="large", size=32)], tmp_path / "c")
    region = {"unit": "region", "regions": 4}
    with pytest.raises(CorpusError, match=r"nothing was kept: all 3 were quarantined. split unit region needs slices"):
        curate(build_source.source(folder, split=region), tmp_path / "c")
    with pytest.raises(ConfigError, match="geometry 'short-side' is unknown"):
        curate(build_source.source(folder, geometry="short-side"), tmp_path / "c")
    window = [{"kind": "whole", "captions": ["a"], "windows": {"lung": "lungs"}}]
    with pytest.raises(ConfigError, match=r"CT window 'lungs' is unknown.*Did you mean 'lung'\?"):
        curate(build_source.source(folder, samples=window), tmp_path / "c")
    with pytest.raises(ConfigError, match="engine 'threads' is unknown"):
        curate(source, tmp_path / "c", engine="threads")


def test_the_root_may_be_the_folder_itself(tmp_path):
    build_source.files(tmp_path / "files", 3)
    source = build_source.source(tmp_path / "files", root="elsewhere")
    assert curate(source, tmp_path / "corpus", root=tmp_path / "files").kept == 3


def test_shards_hold_the_metadata_and_the_hash_of_the_picture(tmp_path):
    build_source.files(tmp_path / "files", 3)
    curate(build_source.source(tmp_path / "files"), tmp_path / "corpus")
    corpus = Corpus(tmp_path / "corpus")
    for row in corpus.rows():
        content = (corpus.path / row.shard).read_bytes()
        assert hashlib.sha256(content[row.offset : row.offset + row.size]).hexdigest() == row.sha256
    metadata = json.loads(content[content.index(b'{"crop_left"') :].split(b"\0")[0])
    assert (metadata["original_height"], metadata["original_width"]) == (24, 24)
    assert (metadata["crop_top"], metadata["crop_left"]) == (0, 0)
    assert metadata["licence"] == "CC BY 4.0"
    assert metadata["unit"] == "uint8"
    assert metadata["spacing"] == ""


def test_an_empty_field_of_the_caption_sets_the_file_aside(tmp_path):
    build_source.files(tmp_path / "files", 3)
    take = [{"kind": "whole", "captions": ["Image of {finding}"]}]
    report = curate(build_source.source(tmp_path / "files", samples=take), tmp_path / "corpus")
    assert (report.kept, report.quarantined) == (2, 1)  # the first has no finding
    assert reasons(tmp_path / "corpus")[0].startswith("caption: field 'finding' is empty")
