"""What descriptions take from a DICOM header, and what never leaves it."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import build_dicom
import build_source
from medisyn import runs
from medisyn.corpus import headers
from medisyn.corpus.curate import curate
from medisyn.corpus.loader import Corpus
from medisyn.corpus.source import parse_source
from medisyn.corpus.splits import pseudonym
from medisyn.errors import ConfigError, CorpusError, MedisynError, ReadError

SECRETS = (
    "ROE", "JANET", "Janet", "HOSP-778899", "778899", "19310203", "ACC-5533", "Elsewhere", "Kildare", "SECRETDESC",
    "20200102", "Sunset",
)  # fmt: skip
TAGS = {
    "PatientSex": "F", "PatientAge": "067Y", "BodyPartExamined": "CHEST", "ViewPosition": "PA", "SliceThickness": 2.5,
    "AccessionNumber": "ACC-5533", "InstitutionName": "St Elsewhere", "ReferringPhysicianName": "Kildare^James",
    "SeriesDescription": "SECRETDESC for Janet", "StudyDescription": "of ROE", "PatientAddress": "Sunset Road",
    "PatientComments": "Janet lives there", "ConvolutionKernel": "JANET 30f",
}  # fmt: skip
CAPTION = "{dicom.BodyPartExamined} of a {dicom.PatientAge}-year-old {sex}[, {dicom.ConvolutionKernel}]"
TAKE = {"kind": "whole", "windows": {"lung": "lung"}, "captions": [CAPTION]}


def ct(number: int, **tags):
    """A CT image with tissue of its own, and everything in its header that may not leave it."""
    pixels = build_source.picture(number).astype(np.int16) * 4 - 900
    return build_dicom.image(pixels, **{**TAGS, **tags})


def dicom_source(folder: Path, **changes):
    fields = {"sex": {"column": "dicom.PatientSex", "values": {"F": "woman", "M": "man"}}}
    options = {"table": None, "files": {"glob": "*.dcm"}, "fields": fields, "split": {"unit": "file"}}
    return build_source.source(folder, **{**options, "image_type": None, "samples": [TAKE], **changes})


def test_captions_and_labels_come_from_the_header(tmp_path):
    build_dicom.save(ct(1), tmp_path / "files" / "a.dcm")
    take = {**TAKE, "labels": ["{dicom.ViewPosition}", "{dicom.SliceThickness} mm", "{dicom.AgeDecade}"]}
    curate(dicom_source(tmp_path / "files", samples=[take]), tmp_path / "corpus")
    (row,) = Corpus(tmp_path / "corpus").rows()
    assert row.caption == "CHEST of a 67-year-old woman"  # and no kernel, which holds her name
    assert row.labels == ("PA", "2.5 mm", "60-69")
    assert row.image_type == "computed tomography"


def test_identifiers_reach_nothing_that_is_written_or_shown(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / "ROE_JANET"
    for number in range(6):
        build_dicom.save(ct(number), folder / f"{number}-ROE-778899.dcm")
    build_dicom.save(ct(7, PatientID=None), folder / "no-id-ROE.dcm")
    build_dicom.save(ct(8, PatientSex="JANET"), folder / "odd-ROE.dcm")
    build_dicom.save(ct(9, Modality="ROE"), folder / "modality-ROE.dcm")
    content = build_dicom.save(ct(10), folder / "cut-ROE.dcm").read_bytes()
    (folder / "cut-ROE.dcm").write_bytes(content[:-200])
    source = dicom_source(
        folder, split={"unit": "patient", "column": "dicom.PatientID"}, public_ids=False, root="files"
    )
    messages = []
    report = curate(source, tmp_path / "corpus", root=folder)
    with contextlib.suppress(MedisynError):
        curate(dicom_source(folder, fields={"sex": {"column": "dicom.PatientName"}}), tmp_path / "other")
    messages += [entry["reason"] for entry in runs.read_jsonl(tmp_path / "corpus" / "quarantine.jsonl")]
    assert (report.kept, report.quarantined) == (6, 4)
    written = {path.name: path.read_bytes() for path in (tmp_path / "corpus").rglob("*") if path.is_file()}
    shown = "\n".join([*messages, caplog.text, *capfd.readouterr()])
    for secret in SECRETS:
        assert secret not in shown, secret
        for name, content in written.items():
            assert secret.encode() not in content, (secret, name)
            assert secret not in name
    assert any("has no PatientID" in message for message in messages)
    assert any("Modality (missing) does not decide" in message for message in messages)


def test_the_patient_of_the_header_is_hashed_with_the_key_of_the_corpus(tmp_path):
    for number in range(6):
        build_dicom.save(ct(number, PatientID=f"clinic-{number // 2}/x"), tmp_path / "files" / f"{number}.dcm")
    split = {"unit": "patient", "column": "dicom.PatientID", "pattern": r"-(\d+)/"}
    (tmp_path / "secret").write_text("ab" * 16)
    curate(
        dicom_source(tmp_path / "files", split=split, public_ids=False),
        tmp_path / "corpus",
        key_file=tmp_path / "secret",
    )
    found = {row.patient for row in Corpus(tmp_path / "corpus").rows()}
    assert found == {pseudonym(b"\xab" * 16, "shapes", "patient", str(n), prefix="p") for n in range(3)}


def test_a_folder_with_images_of_two_patients_is_set_aside(tmp_path):
    for number in range(4):
        tags = {"PatientID": f"P{number // 2}", "ImagePositionPatient": [0, 0, number]}
        build_dicom.save(ct(number, **tags), tmp_path / "study" / f"{number}.dcm")
    split = {"unit": "patient", "column": "dicom.PatientID"}
    options = {"files": None, "table": {"rows": [{"file": "study"}]}, "split": split}
    take = {"kind": "series", "windows": {"lung": "lung"}, "captions": ["CT"]}
    with pytest.raises(CorpusError, match=r"the images come from 2 patients; give each patient a folder or zip"):
        curate(dicom_source(tmp_path, samples=[take], **options), tmp_path / "corpus")
    for path in (tmp_path / "study").glob("[23].dcm"):
        path.unlink()
    assert curate(dicom_source(tmp_path, samples=[take], **options), tmp_path / "corpus").kept == 2


def test_the_header_speaks_where_the_table_is_silent(tmp_path):
    rows = []
    for number, age in enumerate(("30", "", "")):
        build_dicom.save(ct(number, PatientAge=None if number == 2 else "067Y"), tmp_path / f"{number}.dcm")
        rows.append({"file": f"{number}.dcm", "age": age})
    build_source.write_table(tmp_path / "table.csv", rows)
    take = {**TAKE, "captions": ["CT image[ at {age} years]"]}
    fields = {"age": {"otherwise": "dicom.PatientAge"}}
    source = dicom_source(tmp_path, files=None, table={"path": "table.csv"}, fields=fields, samples=[take])
    curate(source, tmp_path / "corpus")
    captions = sorted(row.caption for row in Corpus(tmp_path / "corpus").rows())
    assert captions == ["CT image", "CT image at 30 years", "CT image at 67 years"]


def test_where_chooses_by_header_and_other_files_are_left_out_unread(tmp_path):
    build_dicom.save(ct(1), tmp_path / "a.dcm")
    build_dicom.save(ct(2, ViewPosition="AP"), tmp_path / "b.dcm")
    Image.fromarray(build_source.picture(3)).save(tmp_path / "c.png")
    rows = [{"file": name, "kind": name[-3:]} for name in ("a.dcm", "b.dcm", "c.png")]
    build_source.write_table(tmp_path / "table.csv", rows)
    takes = [
        {**TAKE, "captions": ["frontal CT"], "where": {"kind": "dcm", "dicom.ViewPosition": ["PA", "LL"]}},
        {"kind": "whole", "captions": ["photograph"], "where": {"kind": "png"}, "image_type": "clinical photography"},
    ]
    source = dicom_source(tmp_path, files=None, table={"path": "table.csv"}, fields={}, samples=takes)
    assert curate(source, tmp_path / "corpus").quarantined == 0
    rows = Corpus(tmp_path / "corpus").rows()
    assert sorted(row.caption for row in rows) == ["frontal CT", "photograph"]
    takes[1] |= {"captions": ["{dicom.Modality}"]}
    with pytest.raises(CorpusError, match="expected DICOM, but the content of the file is png"):
        curate(dicom_source(tmp_path, files={"glob": "*.png"}, fields={}, samples=[TAKE | takes[1] | {"where": {}}]),
               tmp_path / "other")  # fmt: skip


def test_the_image_type_is_asked_for_where_the_modality_does_not_decide():
    none = dict.fromkeys(headers.COLUMNS, "")
    assert headers.image_type({**none, "dicom.Modality": "MG"}) == "mammography"
    with pytest.raises(ReadError, match=r"the Modality \(CR\) does not decide it \(these do: CT, MR, US"):
        headers.image_type({**none, "dicom.Modality": "CR"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": [{**TAKE, "captions": ["{dicom.BodyPart}"]}]}, r"'dicom.BodyPart' is not among the DICOM "
         r"attributes that may enter a corpus. Did you mean 'dicom.BodyPartExamined'"),
        ({"samples": [{**TAKE, "captions": ["{dicom.PatientName}"]}]}, "'dicom.PatientName' is not among"),
        ({"samples": [{**TAKE, "captions": ["{dicom.PatientID}"]}]}, "'dicom.PatientID' is not among"),
        ({"samples": [{**TAKE, "where": {"dicom.StudyDate": "1"}}]}, "'dicom.StudyDate' is not among"),
        ({"fields": {"sex": {"column": "dicom.PatientBirthDate"}}}, "'dicom.PatientBirthDate' is not among"),
        ({"fields": {"sex": {"otherwise": "dicom.Sex"}}}, "Did you mean 'dicom.PatientSex'"),
        ({"split": {"unit": "patient", "column": "dicom.PatientName"}}, "of a header only dicom.PatientID can say"),
        ({"samples": [{"kind": "series", "captions": ["a"], "where": {"dicom.Modality": "CT"}}]},
         "a series is chosen by `series`, not by its header"),
    ],
)  # fmt: skip
def test_what_may_not_leave_the_header_is_refused_before_a_file_is_read(changes, message):
    content = build_source.description(image_type=None, samples=[TAKE], fields={"sex": {"column": "dicom.PatientSex"}})
    with pytest.raises(ConfigError, match=message):
        parse_source({**content, **changes})
