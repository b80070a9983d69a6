"""Series of a folder or zip: which are chosen, and which of their images become samples."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

import build_dicom
import build_source
from medisyn.corpus.curate import curate
from medisyn.corpus.loader import Corpus
from medisyn.corpus.opened import OpenFile, Piece, Unusable
from medisyn.corpus.pieces import pieces
from medisyn.corpus.source import parse_source
from medisyn.errors import ConfigError, CorpusError, ReadError, SeriesError

SERIES = {"kind": "series", "captions": ["CT, {dicom.SliceThickness} mm"], "windows": {"lung": "lung"}}
ROW = {"file": "study", "case": "A"}


def save_series(folder, uid, count, gap=2.0, first=0.0, **tags):
    """`count` CT images of 24 x 24, their values telling the place, instances numbered against it."""
    for number in range(count):
        pixels = build_source.picture(number).astype(np.int16) - 600
        pixels[:2] = number
        place = [0, 0, first + gap * number]
        known = {"SeriesInstanceUID": uid, "ImagePositionPatient": place, "InstanceNumber": count - number}
        dataset = build_dicom.image(pixels, **{**known, "SOPInstanceUID": f"{uid}.{number}", **tags})
        build_dicom.save(dataset, folder / f"{uid}-{number}.dcm")


@pytest.fixture
def study(tmp_path):
    """A scout of 1, a CT of 5 mm with 4 images, a CT of 1 mm with 10 (at unequal gaps), and an MR of 3."""
    folder = tmp_path / "study"
    save_series(folder, "1.1", 1, SeriesNumber=1, SeriesDescription="Topogram ROE")
    save_series(folder, "1.2", 4, SeriesNumber=2, SeriesDescription="Thorax 5.0", SliceThickness=5)
    save_series(folder, "1.3", 9, SeriesNumber=3, SeriesDescription="Thorax 1.0 thin", SliceThickness=1)
    save_series(folder, "1.3", 1, first=40.0, SeriesNumber=3, SeriesDescription="Thorax 1.0 thin", SliceThickness=1,
                SOPInstanceUID="1.3.40", InstanceNumber=0)  # fmt: skip
    last = folder / "1.3-0.dcm"
    last.rename(folder / "1.3-far.dcm")
    save_series(folder, "1.3", 1, SeriesNumber=3, SeriesDescription="Thorax 1.0 thin", SliceThickness=1,
                InstanceNumber=9)  # fmt: skip
    save_series(folder, "1.4", 3, SeriesNumber=4, Modality="MR", SeriesDescription="T2", RescaleSlope=None,
                RescaleIntercept=None)  # fmt: skip
    return tmp_path


def taken(folder, take, row=ROW, **changes):
    source = build_source.source(folder, fields={}, samples=[take], **changes)
    return list(pieces(source.samples[0], OpenFile(source, folder, folder / row["file"], row, "key")))


def test_all_series_that_meet_the_conditions_are_taken(study):
    made = taken(study, {**SERIES, "series": {"modality": "CT", "min_slices": 2}})
    assert [piece.suffix[:3] for piece in made] == ["s02"] * 4 + ["s03"] * 10
    assert {piece.columns["dicom.SliceThickness"] for piece in made} == {"5", "1"}
    assert [float(piece.picture.array_CHW[0, 0, 0]) for piece in made[:4]] == [0, 1, 2, 3]  # by position


@pytest.mark.parametrize(
    ("choice", "count"),
    [
        ({"number": 2, "modality": "CT", "min_slices": 2}, 10),
        ({"number": 1, "min_slices": 2}, 4),
        ({"description": "(?i)^thorax 1"}, 10),
        ({"description": "5\\.0"}, 4),
        ({"modality": "MR"}, 3),
    ],
)
def test_one_series_is_chosen(study, choice, count):
    take = {**SERIES, "series": choice}
    if choice.get("modality") == "MR":
        take |= {"windows": {}, "intensity": "percentile"}
    assert len(taken(study, take)) == count


def test_what_there_is_stands_in_the_message_without_descriptions(study):
    with pytest.raises(SeriesError, match=r"0 of 4 series meet the conditions of `series`, 1 needed; there are: 1: CT, "
                       r"1 images of 24 x 24; 2: CT, 4 images") as caught:  # fmt: skip
        taken(study, {**SERIES, "series": {"description": "Abdomen"}})
    assert "ROE" not in str(caught.value)
    with pytest.raises(SeriesError, match="2 of 4 series meet the conditions of `series`, 3 needed"):
        taken(study, {**SERIES, "series": {"modality": "CT", "min_slices": 2, "number": 3}})
    with pytest.raises(ConfigError, match=r"series.description: pattern '\(' is not a regular expression"):
        taken(study, {**SERIES, "series": {"description": "("}})
    with pytest.raises(ReadError, match="split unit region cuts one series into slabs, and 2 meet"):
        taken(study, {**SERIES, "series": {"modality": "CT", "min_slices": 2}}, split={"unit": "region"})


def test_every_third_image_between_two_fractions(study):
    take = {**SERIES, "series": {"description": "thin"}, "every": 3, "between": [0.2, 1.0]}
    made = taken(study, take, split={"unit": "region", "regions": 5})
    assert [piece.suffix for piece in made] == ["s03-0002", "s03-0005", "s03-0008"]
    assert [piece.region for piece in made] == [1, 2, 4]


@pytest.mark.parametrize(
    ("way", "cells", "numbers"),
    [("position", ("4.0", "40"), (2, 9)), ("instance", ("9", "1"), (0, 8)), ("uid", ("1.3.3", "9.9"), (3,))],
)
def test_the_images_that_a_table_lists(study, way, cells, numbers):
    rows = [{"key": text, "case": "A", "finding": f"f{n}"} for n, text in enumerate(cells)]
    build_source.write_table(study / "slices.csv", [*rows, {"key": "2", "case": "B", "finding": "of another case"}])
    table = {"path": "slices.csv", way: "key", "columns": ["finding"], "on": "case", "listed_only": True}
    take = {**SERIES, "series": {"description": "thin"}, "table": table}
    made = taken(study, take)
    assert [int(piece.suffix[-4:]) for piece in made] == list(numbers)
    assert {piece.columns["finding"] for piece in made} <= {"f0", "f1"}
    del table["listed_only"]
    reasons = [piece.reason for piece in taken(study, take) if isinstance(piece, Unusable)]
    assert len(reasons) == 10 - len(numbers)
    assert all("the slice table has no row" in reason for reason in reasons)


def test_a_table_without_a_row_for_the_file(study):
    build_source.write_table(study / "slices.csv", [{"z": "1", "case": "B"}])
    take = {**SERIES, "series": {"description": "thin"}, "table": {"path": "slices.csv", "position": "z", "on": "case"}}
    with pytest.raises(ReadError, match="slice table: column 'z' is empty in every row of this file"):
        taken(study, take)
    take["table"]["listed_only"] = True
    assert taken(study, take) == []


def test_images_without_position_cannot_be_found_by_it(tmp_path):
    save_series(tmp_path / "study", "1.1", 2, ImagePositionPatient=None)
    build_source.write_table(tmp_path / "slices.csv", [{"z": "1"}])
    made = taken(tmp_path, {**SERIES, "table": {"path": "slices.csv", "position": "z", "listed_only": True}})
    assert {piece.reason for piece in made} == {
        "the slices have no position, so the table must name them by instance or uid"
    }


def test_one_damaged_image_does_not_cost_the_series(study):
    path = study / "study" / "1.3-4.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    options = {"table": {"rows": [ROW]}, "split": {"unit": "file"}, "fields": {}}
    source = build_source.source(study, samples=[{**SERIES, "series": {"description": "thin"}}], **options)
    report = curate(source, study / "corpus")
    assert (report.kept, report.quarantined) == (9, 1)
    (line,) = (study / "corpus" / "quarantine.jsonl").read_text().splitlines()
    assert "s03-0004" in line
    assert "the pixel data is cut short" in line
    assert {row.caption for row in Corpus(study / "corpus").rows()} == {"CT, 1 mm"}


def test_images_without_body_are_left_out(tmp_path):
    save_series(tmp_path / "study", "1.1", 3)
    for number, value in ((3, -1000), (4, 0)):
        pixels = np.full((24, 24), value, np.int16)
        dataset = build_dicom.image(pixels, SeriesInstanceUID="1.1", ImagePositionPatient=[0, 0, 9 + number])
        build_dicom.save(dataset, tmp_path / "study" / f"{number}x.dcm")
    assert [piece.suffix for piece in taken(tmp_path, SERIES)] == ["s01-0000", "s01-0001", "s01-0002", "s01-0004"]


def test_a_zip_equals_its_folder(study):
    with zipfile.ZipFile(study / "study.zip", "w") as made:
        for path in sorted((study / "study").iterdir()):
            made.write(path, f"ROE_JANET/{path.name}")
    take = {**SERIES, "series": {"modality": "CT", "min_slices": 2}}
    folder, packed = taken(study, take), taken(study, take, {"file": "study.zip", "case": "A"})
    assert [piece.suffix for piece in packed] == [piece.suffix for piece in folder]
    assert all(np.array_equal(a.picture.array_CHW, b.picture.array_CHW) for a, b in zip(folder, packed, strict=True))


def test_a_volume_is_made_of_one_chosen_series(study):
    take = {"kind": "slices", "captions": ["{dicom.SliceThickness}"], "windows": {"lung": "lung"}}
    made = taken(study, {**take, "series": {"description": "5.0"}})
    assert [type(piece) for piece in made] == [Piece] * 4
    with pytest.raises(SeriesError, match=r"3 series meet the conditions of `series` .* and one is needed here"):
        taken(study, {**take, "series": {"modality": "CT"}})
    with pytest.raises(SeriesError, match=r"slice gaps run from 2.00 to 24.00 mm"):
        taken(study, {**take, "series": {"description": "thin"}})
    options = {"table": {"rows": [ROW]}, "split": {"unit": "file"}, "fields": {}, "image_type": None}
    source = build_source.source(study, samples=[{**take, "series": {"description": "5.0"}}], **options)
    curate(source, study / "corpus")
    assert {row.caption for row in Corpus(study / "corpus").rows()} == {"5"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"path": "t.csv"}, "finds its slices by one of position, instance and uid"),
        ({"path": "t.csv", "position": "z", "uid": "u"}, "finds its slices by one of position, instance and uid"),
    ],
)
def test_a_slice_table_needs_one_way(table, message):
    with pytest.raises(ConfigError, match=message):
        parse_source(build_source.description(samples=[{**SERIES, "table": table}]))
    volume = {"kind": "slices", "captions": ["a"], "table": {"path": "t.csv", "uid": "u"}}
    with pytest.raises(ConfigError, match="slices of a volume are found by position"):
        parse_source(build_source.description(samples=[volume]))


def test_the_column_that_both_tables_have_is_checked(study):
    table = {"path": "slices.csv", "position": "z", "on": "patent"}
    options = {"table": {"rows": [ROW]}, "split": {"unit": "file"}, "fields": {}}
    source = build_source.source(study, samples=[{**SERIES, "table": table}], **options)
    with pytest.raises(CorpusError, match=r"samples.0.table.on: column 'patent' is not in the table; it has file"):
        curate(source, study / "corpus")
