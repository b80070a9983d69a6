"""`medisyn curate` as a user runs it: what it prints, its exit codes, and one line for everything that is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pydicom.data
import pytest
import yaml
from PIL import Image

import build_source
import build_video
from medisyn import runs
from medisyn.cli import main
from medisyn.corpus.loader import Corpus

NAME = "Doe_Jane"  # stands in file names and in a header, and may stand in nothing that is printed


@pytest.fixture
def files(tmp_path):
    build_source.files(tmp_path / "files", 20)
    return tmp_path / "files"


def described(folder: Path, **changes) -> str:
    """A description beside the folder; returns its path."""
    path = folder.parent / "shapes.yaml"
    path.write_text(yaml.safe_dump({**build_source.description(root=folder.name), **changes}))
    return str(path)


def refused(capsys, *arguments) -> str:
    """The one line on stderr of a command that leaves with exit code 2 and prints nothing else."""
    assert main([str(argument) for argument in arguments]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("medisyn: ")
    assert written.err.count("\n") == 1
    assert "Traceback" not in written.err
    assert NAME not in written.err
    assert "Jane" not in written.err
    return written.err


def test_counts_and_where_the_card_is(files, tmp_path, capsys):
    (files / "3.png").write_bytes(b"")
    assert main(["curate", described(files), "--out", str(tmp_path / "corpus"), "--engine", "inline"]) == 0
    out = capsys.readouterr().out
    assert "files read 20, samples kept 19 (train " in out
    assert "quarantined 1: reasons in quarantine.jsonl" in out
    corpus = Corpus(tmp_path / "corpus")
    assert f"Corpus {corpus.fingerprint} in " in out
    assert "README.md" in out
    assert len(corpus) == 19


def test_json_holds_the_same_numbers(files, tmp_path, capsys):
    command = ["curate", described(files), "--out", str(tmp_path / "corpus"), "--shares", "50:25:25", "--json"]
    assert main([*command, "--engine", "inline", "--size", "8"]) == 0
    report = json.loads(capsys.readouterr().out)
    corpus = Corpus(tmp_path / "corpus")
    assert (report["read"], report["kept"], report["quarantined"]) == (20, 20, 0)
    assert report["splits"] == {name: len(corpus.rows(name)) for name in ("train", "validation", "test")}
    assert report["fingerprint"] == corpus.fingerprint
    assert corpus.read(corpus.rows()[0]).item.array_CHW.shape == (1, 8, 8)


def test_the_key_file_and_the_reserved_test_set(files, tmp_path, capsys):
    (tmp_path / "secret").write_text("ab" * 16)
    source = described(files, public_ids=False)
    command = ["curate", source, "--key-file", str(tmp_path / "secret"), "--test-per-specialty", "3", "--json"]
    assert main([*command, "--out", str(tmp_path / "a"), "--engine", "inline"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["test"] >= 3
    assert not (tmp_path / "a.key").exists()
    (tmp_path / "secret").write_text("not hex")
    assert "key file secret must hold 32 to 128 hex digits" in refused(capsys, *command, "--out", tmp_path / "b")


# ---- bad files: each is all there is, so that its reason is what the command ends with


def text_named_dcm(folder: Path) -> None:
    (folder / f"{NAME}.dcm").write_text("Patient: Doe, Jane\n" * 40)


def ct_small() -> Path:
    return Path(pydicom.data.get_testdata_file("CT_small.dcm", download=False))


def cut_dicom(folder: Path) -> None:
    (folder / f"{NAME}.dcm").write_bytes(ct_small().read_bytes()[:20_000])


def corrupt_dicom(folder: Path) -> None:
    content = bytearray(ct_small().read_bytes())
    content[132:600] = bytes(range(234)) * 2
    (folder / f"{NAME}.dcm").write_bytes(content)


def hu_as_unit(folder: Path) -> None:
    dataset = pydicom.dcmread(ct_small())
    dataset.PatientName = NAME
    dataset.PixelData = np.tile(np.array([0, 1], dtype=np.int16), 128 * 64).tobytes()
    dataset.RescaleIntercept = 0
    dataset.save_as(folder / f"{NAME}.dcm")


def cut_png(folder: Path) -> None:
    Image.fromarray(build_source.picture(1, 80)).save(folder / f"{NAME}.png")
    path = folder / f"{NAME}.png"
    path.write_bytes(path.read_bytes()[:300])


def corrupt_png(folder: Path) -> None:
    Image.fromarray(build_source.picture(1, 80)).save(folder / f"{NAME}.png")
    path = folder / f"{NAME}.png"
    content = bytearray(path.read_bytes())
    content[60:120] = bytes(60)
    path.write_bytes(content)


def all_zero(folder: Path) -> None:
    Image.fromarray(np.zeros((20, 20), dtype=np.uint8)).save(folder / f"{NAME}.png")


def not_a_number(folder: Path) -> None:
    array = np.full((16, 16, 4), np.nan, dtype=np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f"{NAME}.nii.gz")


CT = {"kind": "whole", "captions": ["CT, {window} window"], "windows": {"lung": "lung"}}
PICTURE = {"kind": "whole", "captions": ["picture"]}
VOLUME = {"kind": "slices", "captions": ["CT"], "modality": "CT", "windows": {"lung": "lung"}}


@pytest.mark.parametrize(
    ("make", "take", "reason"),
    [
        (text_named_dcm, CT, "the file holds text, not an image"),
        (cut_dicom, CT, "cut short"),
        (corrupt_dicom, CT, "DICOM"),
        (hu_as_unit, CT, "values run from 0 to 1, which looks like [0, 1] or [-1, 1] and not Hounsfield units"),
        (cut_png, PICTURE, "the PNG file is damaged or cut short"),
        (corrupt_png, PICTURE, "the PNG file is damaged or cut short"),
        (all_zero, PICTURE, "every pixel is 0: the image is empty"),
        (not_a_number, VOLUME, "voxels are NaN or infinite"),
    ],
)
def test_a_bad_file_is_named_by_its_reason_alone(tmp_path, capsys, make, take, reason):
    folder = tmp_path / "files"
    folder.mkdir()
    make(folder)
    options = {"table": None, "files": {"glob": f"{NAME}*"}, "fields": {}, "split": {"unit": "file"}}
    source = described(folder, samples=[take], **options)
    line = refused(capsys, "curate", source, "--out", tmp_path / "corpus", "--engine", "inline")
    assert "nothing was kept: all 1 were quarantined" in line
    assert reason in line
    assert not (tmp_path / "corpus" / "index.parquet").exists()


def test_bad_files_beside_good_ones_do_not_stop_the_command(files, tmp_path, capsys):
    rows = [{"file": f"{n}.png", "patient": f"{NAME}{n}", "finding": ""} for n in range(20)]
    (files / "0.png").unlink()
    rows += [rows[1], {**rows[2], "finding": "contradiction"}]  # a key twice, equal and contradicting
    build_source.write_table(files / "table.csv", rows)
    assert main(["curate", described(files), "--out", str(tmp_path / "corpus"), "--engine", "inline", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kept"], report["quarantined"]) == (18, 3)
    reasons = {entry["reason"] for entry in runs.read_jsonl(tmp_path / "corpus" / "quarantine.jsonl")}
    assert reasons == {
        "the file that the table names is missing",
        "the table names this file again in an equal row; it was used once",
        "2 rows of the table name this file and contradict each other",
    }


# ---- wrong descriptions, tables and options


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"licens": "MIT"}, "key 'licens' is unknown. Did you mean 'licence'?"),
        ({"fields": {"findng": {}}}, "field 'finding' is not defined; known: findng"),
        ({"split": {"unit": "patient", "column": "patent"}}, "column 'patent' is not in the table; it has file, "
         "patient, finding. Did you mean 'patient'?"),
        ({"geometry": "short-side"}, "geometry 'short-side' is unknown, allowed: long-side-pad-crop"),
        ({"samples": [CT | {"windows": {"lung": "lungs"}}]}, "CT window 'lungs' is unknown, allowed: angiography"),
        ({"specialty": "radiologie"}, "Did you mean 'radiology'?"),
        ({"samples": [PICTURE | {"captions": ["{dicom.BodyPart}"]}]}, "Did you mean 'dicom.BodyPartExamined'?"),
        ({"table": {"path": "tabel.csv"}}, "table tabel.csv does not exist in the source's folder"),
        ({"root": "nowhere"}, "its folder 'nowhere' is not in the given root"),
    ],
)  # fmt: skip
def test_a_wrong_description_is_one_line_with_the_nearest_right_word(files, tmp_path, capsys, changes, line):
    assert line in refused(capsys, "curate", described(files, **changes), "--out", tmp_path / "corpus")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--engine", "threads"], "engine 'threads' is unknown"),
        (["--shares", "80:20"], "write three numbers train:validation:test"),
        (
            ["--test-per-specialty", "400", "--engine", "inline"],
            "test_per_specialty=400: specialty 'radiology' has 20 samples",
        ),
        (["--siz", "4"], "No such option: --siz"),
        (["--root", "none"], "its folder 'files' is not in the given root"),
    ],
)
def test_a_wrong_option_is_one_line(files, tmp_path, capsys, options, line):
    if options[0] == "--root":
        options = ["--root", str(tmp_path / "none")]
    assert line in refused(capsys, "curate", described(files), "--out", tmp_path / "corpus", *options)


def test_an_unknown_source_and_an_empty_table(files, tmp_path, capsys):
    line = refused(capsys, "curate", "cxr_hanover", "--out", tmp_path / "corpus")
    assert "neither a YAML file nor one of ours" in line
    assert "Did you mean 'cxr_hannover'?" in line
    (files / "table.csv").write_text("file,patient,finding\n")
    line = refused(capsys, "curate", described(files), "--out", tmp_path / "corpus")
    assert "table table.csv is empty: it has no row below its header" in line


def test_a_folder_with_other_files_is_refused(files, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    line = refused(capsys, "curate", described(files), "--out", tmp_path / "mine")
    assert "mine/ holds files that are not of a corpus" in line
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    shutil.rmtree(tmp_path / "mine")


def test_clips_with_their_counts_and_quarantine(tmp_path, capsys):
    folder = tmp_path / "files"
    folder.mkdir()
    rows = []
    for number in range(3):
        build_video.write(folder / f"{NAME}-{number}.mp4", build_video.moving(5 + number, seed=number))
        rows.append({"file": f"{NAME}-{number}.mp4", "patient": f"p{number}", "finding": "effusion"})
    cut = folder / f"{NAME}-2.mp4"
    cut.write_bytes(cut.read_bytes()[:400])
    build_source.write_table(folder / "table.csv", [*rows, {"file": "", "patient": "p3", "finding": "text alone"}])
    clips = [{"kind": "clip", "captions": ["Ultrasound clip showing {finding}"]}]
    description = described(folder, samples=clips, image_type="ultrasound")
    out = str(tmp_path / "corpus")
    assert main(["curate", description, "--out", out, "--size", "32", "--engine", "inline"]) == 0
    assert "files read 4, samples kept 2" in capsys.readouterr().out
    found = [entry["reason"] for entry in runs.read_jsonl(tmp_path / "corpus" / "quarantine.jsonl")]
    assert len(found) == 2
    assert not any("Jane" in reason for reason in found)
    assert main(["corpus", "verify", out]) == 0
    assert "2 samples in" in capsys.readouterr().out
    assert main(["corpus", "show", out]) == 0
    assert "clips of 5 to 6 frames, 11 in all" in capsys.readouterr().out
    corpus = Corpus(out)
    assert corpus.read(corpus.rows()[0]).item.array_CTHW.shape[2:] == (32, 56)


def test_pictures_and_clips_in_one_corpus_are_refused_in_one_line(tmp_path, capsys, files):
    clips = [{"kind": "clip", "captions": ["x"]}, {"kind": "whole", "captions": ["x"]}]
    line = refused(capsys, "curate", described(files, samples=clips), "--out", tmp_path / "corpus")
    assert "Curate them into two corpora" in line
