"""Tables and folders as rows, and cells as words."""

import gzip
import json
from collections import Counter

import pytest

import build_source
from medisyn.corpus import table
from medisyn.corpus.takes import Words
from medisyn.errors import ConfigError, CorpusError, ReadError


def test_csv_gz_jsonl_and_parquet_give_the_same_rows(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    expected = [{"file": "a.png", "age": "3"}, {"file": "b.png", "age": ""}]
    text = "\ufefffile,age\na.png,3\nb.png,\n"
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "t.jsonl").write_text('{"file": "a.png", "age": 3}\n{"file": "b.png"}\n')
    pq.write_table(pa.table({"file": ["a.png", "b.png"], "age": pa.array([3, None])}), tmp_path / "t.parquet")
    for name in ("t.csv", "t.csv.gz", "t.jsonl", "t.parquet"):
        assert table.read_table(tmp_path / name) == expected, name


def test_tables_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(
        CorpusError, match=r"table none.csv does not exist in the source's folder. Give the folder with --root"
    ):
        table.read_table(tmp_path / "none.csv")
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(CorpusError, match=r"bad.parquet cannot be read"):
        table.read_table(tmp_path / "bad.parquet")
    (tmp_path / "empty.csv").write_text("file,patient\n")
    with pytest.raises(CorpusError, match=r"empty.csv is empty: it has no row below its header"):
        table.read_table(tmp_path / "empty.csv")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"file,patient\n" * 50)[:-9])
    with pytest.raises(CorpusError, match=r"cut.csv.gz cannot be read"):
        table.read_table(tmp_path / "cut.csv.gz")
    (tmp_path / "list.jsonl").write_text('{"file": "a"}\n["b"]\n')
    with pytest.raises(CorpusError, match=r"list.jsonl row 2: expected an object of columns"):
        table.read_table(tmp_path / "list.jsonl")
    (tmp_path / "comma.csv").write_text("file,finding\na.png,x\nb.png,large, right\n")
    with pytest.raises(CorpusError, match=r"comma.csv row 2 has more fields than the header .*double quotes"):
        table.read_table(tmp_path / "comma.csv")


def test_rows_are_joined_and_filtered(tmp_path):
    build_source.files(tmp_path, 4)
    (tmp_path / "labels.csv").write_text("patient,sex\np0,f\n")
    where = {
        "path": "table.csv",
        "where": {"finding": ["effusion", "nodule"]},
        "join": {"path": "labels.csv", "on": "patient"},
    }
    rows = table.source_rows(build_source.source(tmp_path, table=where, fields={"finding": {}, "sex": {}}), tmp_path)
    assert [(row["file"], row["sex"]) for row in rows] == [("1.png", "f"), ("2.png", "")]


def test_so_many_rows_of_each_value_the_same_in_every_run(tmp_path):
    build_source.files(tmp_path, 24)  # 8 without finding, 8 effusions, 8 nodules

    def drawn(most, **more):
        described = {"path": "table.csv", "draw": {"column": "finding", "most": most}, **more}
        return table.source_rows(build_source.source(tmp_path, table=described), tmp_path)

    three = drawn(3)
    assert Counter(row["finding"] for row in three) == {"": 3, "effusion": 3, "nodule": 3}
    assert drawn(3) == three
    assert [row["file"] for row in three] == sorted((row["file"] for row in three), key=lambda name: int(name[:-4]))
    assert [row["file"] for row in three] != [f"{n}.png" for n in range(9)]  # not the first of the table
    assert all(row in three for row in drawn(2))
    assert len(drawn(100)) == 24
    assert Counter(row["finding"] for row in drawn(5, where={"finding": "nodule"})) == {"nodule": 5}


def test_join_and_filter_refuse(tmp_path):
    build_source.files(tmp_path, 4)
    (tmp_path / "labels.csv").write_text("patient,sex\np0,f\np0,m\n")
    join = {"path": "table.csv", "join": {"path": "labels.csv", "on": "patient"}}
    with pytest.raises(CorpusError, match="1 rows repeat a value of 'patient', the join key"):
        table.source_rows(build_source.source(tmp_path, table=join), tmp_path)
    none = {"path": "table.csv", "where": {"finding": "cyst"}}
    with pytest.raises(CorpusError, match="none of 4 rows passes `where`"):
        table.source_rows(build_source.source(tmp_path, table=none), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fields": {"finding": {"column": "findng"}}},
            r"fields.finding: column 'findng' is not in.*Did you mean 'finding'",
        ),
        (
            {"split": {"unit": "patient", "column": "pat"}},
            "split: column 'pat' is not in the table; it has file, patient",
        ),
        ({"file": "{name}.png"}, "file: column 'name' is not in the table"),
        ({"table": {"path": "table.csv", "where": {"sex": "f"}}}, "where: column 'sex'"),
        ({"table": {"path": "table.csv", "draw": {"column": "sex", "most": 1}}}, "draw: column 'sex'"),
    ],
)
def test_a_missing_column_is_named_with_the_nearest(tmp_path, changes, message):
    build_source.files(tmp_path, 2)
    with pytest.raises(CorpusError, match=message):
        table.source_rows(build_source.source(tmp_path, **changes), tmp_path)


@pytest.mark.parametrize(
    ("template", "message"),
    [("{file", "path template '{file': expected '}'"), ("{file:>9}", r"write \{column\} and nothing behind the name")],
)
def test_a_broken_path_template_is_named(template, message):
    with pytest.raises(ConfigError, match=message):
        table.template_columns(template)


def test_a_pattern_needs_a_group():
    with pytest.raises(ConfigError, match=r"pattern 'patient\\\\d\+' needs a group in \( \)"):
        table.cell(ROW, "path", r"patient\d+")


def test_a_folder_gives_columns_from_its_names(tmp_path):
    (tmp_path / "mel").mkdir()
    for name in ("mel/ISIC_1-p7.jpg", "mel/ISIC_2.jpg"):
        (tmp_path / name).touch()
    files = {"glob": "*/*.jpg", "pattern": r"(?P<diagnosis>\w+)/ISIC_\d+(-(?P<patient>p\d+))?\.jpg"}
    options = {"table": None, "files": files, "fields": {"finding": {"column": "diagnosis"}}}
    rows = table.source_rows(build_source.source(tmp_path, **options), tmp_path)
    assert rows == [
        {"file": "mel/ISIC_1-p7.jpg", "diagnosis": "mel", "patient": "p7"},
        {"file": "mel/ISIC_2.jpg", "diagnosis": "mel", "patient": ""},
    ]
    options["files"] = {"glob": "*.tif"}
    with pytest.raises(CorpusError, match=r"no file matches '\*.tif'"):
        table.source_rows(build_source.source(tmp_path, **options), tmp_path)
    options["files"] = {"glob": "*/*.jpg", "pattern": "("}
    with pytest.raises(ConfigError, match=r"pattern '\(' is not a regular expression"):
        table.source_rows(build_source.source(tmp_path, **options), tmp_path)


ROW = {
    "view": "AP",
    "findings": "Mass|Nodule|",
    "boxes": "A,1,2",
    "effusion": "1.0",
    "oedema": "-1.0",
    "fracture": "",
    "counts": json.dumps({"a": 1, "b": 5, "c": 0, "d": 5}),
    "path": "CheXpert/patient00042/view1.jpg",
}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"column": "view"}, "AP"),
        ({"column": "view", "values": {"AP": "anteroposterior"}}, "anteroposterior"),
        ({"column": "findings", "separator": "|"}, "Mass and Nodule"),
        ({"column": "findings", "separator": "|", "values": {"Mass": "mass", "Nodule": ""}}, "mass"),
        ({"column": "boxes", "filled": "tumour"}, "tumour"),
        ({"column": "fracture", "filled": "tumour"}, ""),
        ({"flags": {"effusion": "effusion", "oedema": "oedema", "fracture": "fracture"}}, "effusion"),
        ({"flags": {"effusion": "effusion", "oedema": "oedema"}, "positive": ["1.0", "-1.0"]}, "effusion and oedema"),
        ({"column": "counts", "counts": True, "most": 2}, "b and d"),
        ({"column": "path", "pattern": r"patient(\d+)"}, "00042"),
    ],
)
def test_cells_become_words(words, expected):
    assert table.words_of("x", Words(**words), ROW) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"column": "view", "values": {"PA": "x"}}, "a value of the table is not listed under `values`; listed: PA"),
        ({"column": "view", "counts": True}, "expected a JSON object of counts"),
        ({"column": "path", "pattern": r"study(\d+)"}, "the cell does not match the pattern"),
    ],
)
def test_cells_that_say_nothing_known_are_refused_without_being_shown(words, message):
    with pytest.raises(ReadError, match=message) as caught:
        table.words_of("x", Words(**words), ROW)
    assert "00042" not in str(caught.value)
