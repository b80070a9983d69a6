"""The table of a reader study: what is read, and every mistake with its row and column and without a reader's name."""

import json
import re

import numpy as np
import pytest

from medisyn.errors import InputError
from medisyn.recipes.study_table import read_study

HEAD = "reader,item,truth,answer"
RANKS = "reader,block,system,rank"


def read(folder, *lines, name="answers.csv"):
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return read_study(folder / name)


def test_a_classification_by_hand(tmp_path):
    found = read(
        tmp_path,
        " Reader ,ITEM,Source,truth,answer,confidence,repeat,notes",
        "ann,a,real,Drusen,drusen,5,,x",
        "ann,b,synthetic,Normal,Drusen,,0,",
        "Ann,a,real,drusen,Normal,1,1,",
        "bob,b,synthetic,normal,glare,3.0,no,",
    )
    assert (found.readers, found.classes) == (("ann", "bob"), ("Drusen", "Normal", "glare"))
    assert found.groups == ("real", "synthetic")
    assert found.truth_N.tolist() == [0, 1]
    assert found.answers_RN.tolist() == [[0, 0], [-1, 2]]
    assert found.repeats_RN.tolist() == [[1, -1], [-1, -1]]  # a repeat counts among the repeats alone
    np.testing.assert_array_equal(found.correct_RN, [[1, 0], [np.nan, 0]])
    np.testing.assert_array_equal(found.confidence_RN, [[5, np.nan], [np.nan, 3]])
    assert found.unused == ("notes",)


def test_a_table_without_groups_has_one(tmp_path):
    assert read(tmp_path, HEAD, "r,i,a,a").groups == ("all",)


def test_a_folder_and_json_lines(tmp_path):
    read(tmp_path, HEAD, "r,i,a,b")
    assert read_study(tmp_path).classes == ("a", "b")
    row = {"reader": 1, "item": 2, "truth": "a", "answer": "a", "confidence": None}
    assert read(tmp_path, json.dumps(row), name="x.jsonl").readers == ("1",)


def test_rankings_by_hand(tmp_path):
    found = read(
        tmp_path, f"{RANKS},group",
        "r,1,GAN,2,lobes", "r,1,real,1,lobes", "r,2,real,2.0,lobes", "r,2,gan,1,lobes", "s,1,real,1,airways",
        "s,1,GAN,2,airways",
    )  # fmt: skip
    assert list(found.groups) == ["lobes", "airways"]
    lobes = found.groups["lobes"]
    assert lobes.systems == ("GAN", "real")
    assert lobes.ranks_NK.tolist() == [[2, 1], [1, 2]]
    assert (lobes.reader_N.tolist(), lobes.block_N.tolist()) == ([0, 0], [0, 1])
    assert found.groups["airways"].reader_N.tolist() == [1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEAD], "is empty: it has no row"),
        (["reader,item,truth,anwser", "r,i,a,a"], r"missing: answer Did you mean 'anwser'\?.*a ranking needs reader"),
        (["a,b", "1,2"], "has the columns a, b; a classification needs reader, item, truth, answer"),
        (["reader;item;truth;answer", "r;i;a;a"], "by semicolons. Save it with commas"),
        (
            ["reader,item,truth,answer,block,system,rank", "r,i,a,a,b,s,1"],
            "columns of a classification and of a ranking",
        ),
        ([f"{HEAD},confidance", "r,i,a,a,3"], "column 'confidance' is unknown. Did you mean 'confidence'"),
        ([HEAD, "r,i,a,a", "r,j,a,"], "row 2: column 'answer' is empty"),
        ([HEAD, "r,i,nan,a"], "row 1: column 'truth' is empty"),
        ([f"{HEAD},source", "r,i,a,a,"], "row 1: column 'source' is empty"),
        ([HEAD, "r,i,a,a", "q,i,a,a", "R,i,a,b"], "rows 1 and 3 hold two answers of one reader to one item"),
        ([f"{HEAD},repeat", "r,i,a,a,0", "r,i,a,a,1", "r,i,a,a,1"], "rows 2 and 3 hold two answers"),
        ([f"{HEAD},repeat", "r,i,a,a,1"], "row 1 is marked in 'repeat', but the reader gave no first answer"),
        ([f"{HEAD},repeat", "r,i,a,a,twice"], "row 1: column 'repeat' holds 'twice'"),
        ([HEAD, "r,i,a,a", "q,i,b,a"], "rows 1 and 2 give one item two values in column 'truth'"),
        ([f"{HEAD},source", "r,i,a,a,x", "q,i,a,a,y"], "rows 1 and 2 give one item two values in column 'source'"),
        ([f"{HEAD},confidence", "r,i,a,a,6"], "row 1: column 'confidence' holds '6'. Allowed: whole numbers from 1"),
        ([f"{HEAD},confidence", "r,i,a,a,0"], "column 'confidence' holds '0'"),
        ([f"{HEAD},confidence", "r,i,a,a,2.5"], "column 'confidence' holds '2.5'"),
        ([f"{HEAD},confidence", "r,i,a,a,sure"], "column 'confidence' holds 'sure'"),
        ([RANKS, "r,1,x,1"], "row 1: a ranking needs at least 2 systems in column 'system', got 1"),
        ([RANKS, "r,1,x,1", "r,1,y,1"], "rows 1 and 2 both hold rank 1, for one reader and block. Ties"),
        ([RANKS, "r,1,x,1", "r,1,y,3"], r"row 2: column 'rank' holds '3'. Allowed: whole numbers from 1 \(best\) to 2"),
        ([RANKS, "r,1,x,0", "r,1,y,1"], "row 1: column 'rank' holds '0'"),
        ([RANKS, "r,1,x,1.5", "r,1,y,2"], "row 1: column 'rank' holds '1.5'"),
        ([RANKS, "r,1,x,1", "r,1,y,2", "r,2,x,1"], "row 3: this ranking .* lacks the system y"),
        ([RANKS, "r,1,x,1", "r,1,y,2", "r,1,X,2"], "rows 1 and 3 rank one system twice"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_row_and_column(tmp_path, lines, message):
    lines = [re.sub("^r,", "Dr Secret,", re.sub("^R,", "DR SECRET,", line)) for line in lines]
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, *lines)
    assert "secret" not in str(caught.value).casefold()


def test_a_table_that_is_not_there(tmp_path):
    for path in (tmp_path / "answers.csv", tmp_path):
        with pytest.raises(InputError, match=r"there is no table answers.csv.*folder with answers.csv"):
            read_study(path)
