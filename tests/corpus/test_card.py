"""The data card's counts and statements, its hub header, and the Croissant file."""

import json

import pytest
import yaml

import build_source
from medisyn.corpus import card
from medisyn.corpus.curate import curate
from medisyn.corpus.loader import Corpus
from medisyn.corpus.source import load_source, shipped


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("card")
    build_source.files(base / "files", 30)
    defects = ["Some images carry\n  burned-in text."]
    curate(build_source.source(base / "files", known_defects=defects), base / "corpus")
    return base / "corpus"


def test_the_counts_are_those_of_the_index(folder):
    rows = Corpus(folder).rows()
    counts = [sum(row.split == split for row in rows) for split in ("train", "validation", "test")]
    line = f"| radiology | {counts[0]} | {counts[1]} | {counts[2]} | 30 |"
    text = (folder / "README.md").read_text()
    assert line in text
    assert line.replace("radiology", "chest X-ray") in text
    assert line.replace("radiology", "**total**") in text


def test_the_table_by_hand():
    class Row:
        def __init__(self, specialty, split):
            self.specialty, self.split = specialty, split

    rows = [Row("a", "train")] * 1200 + [Row("a", "test")] + [Row("b", "validation")] * 3
    assert card.count_table(rows, "specialty", "specialty") == [
        "| specialty | train | validation | test | total |",
        "|---|---:|---:|---:|---:|",
        "| a | 1,200 | 0 | 1 | 1,201 |",
        "| b | 0 | 3 | 0 | 3 |",
        "| **total** | 1,200 | 3 | 1 | 1,204 |",
    ]


def test_the_card_states_licence_split_policy_preprocessing_and_defects(folder):
    text = (folder / "README.md").read_text()
    assert "licence: CC BY 4.0; attribution: nobody" in text
    assert "`shapes`: patient-disjoint: every patient is in one split (15 units)" in text
    assert "80 : 10 : 10" in text
    assert "whole (short-side-crop; intensity as-is), 16 x 16 pixels" in text
    assert "  - Some images carry burned-in text." in text


def test_the_header_is_what_the_hub_reads(folder):
    header = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert header["license"] == "cc-by-4.0"
    present = [row.split for row in Corpus(folder).rows()]
    files = header["configs"][0]["data_files"]
    assert files == [{"split": s, "path": f"data/{s}-*.tar"} for s in ("train", "validation", "test") if s in present]


@pytest.mark.parametrize("name", ["ct_chest_lungpetctdx", "histo_openslide_crops", "mri_pyradiomics_cases"])
def test_a_source_without_patients_says_so(name):
    source, _ = load_source(name)
    assert card.UNIT_TEXT[source.split.unit].startswith("not patient-disjoint")


def test_burned_in_text_is_stated_where_it_was_seen():
    for name in ("cxr_hannover", "endo_hyperkvasir_tiles"):
        assert name in shipped()
        assert "burned-in text" in " ".join(load_source(name)[0].known_defects).lower()


def test_croissant_names_the_files_and_columns(folder):
    content = json.loads((folder / "croissant.json").read_text())
    assert content["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert {item["@id"] for item in content["distribution"]} == {"index", "shards"}
    columns = {field["source"]["extract"]["column"] for field in content["recordSet"][0]["field"]}
    assert columns <= set(vars(Corpus).keys()) | set(Corpus(folder).rows()[0].__dataclass_fields__)
    assert "patient" not in columns
