"""The report: numbers as they were found, one page that loads nothing, CSV beside it."""

import base64
import csv
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from medisyn.evaluation.bootstrap import Interval
from medisyn.evaluation.classify import accuracy_by_class
from medisyn.evaluation.evaluate import FeatureSet, Settings, evaluate
from medisyn.evaluation.memorisation import copy_statistics
from medisyn.evaluation.report import (
    Grid,
    Page,
    Pair,
    Table,
    between,
    classes_table,
    copies_table,
    measures_table,
    number,
    png_base64,
    render,
    summary,
    write_report,
)


@pytest.fixture(scope="module")
def result():
    sets = [FeatureSet(np.random.default_rng(s).standard_normal((20, 4)) + s, "e:1", "p") for s in range(3)]
    return evaluate(*sets, Settings(resamples=5))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12.34567, "12.35"),
        (0.000123456, "0.0001235"),
        (0.00000123456, "1.23e-06"),
        (-3, "-3"),
        (2e7, "2.00e+07"),
    ],
)
def test_numbers_are_readable(value, text):
    assert number(value) == text


def test_intervals_are_readable():
    assert between(Interval(0.12345, 2, 0.95, "")) == "0.1235 to 2"


def test_measures_stand_beside_real(result):
    table = measures_table(result)
    assert len(table.rows) == 6
    frechet = table.rows[0]
    assert frechet[1] == number(result.measures[0].value)
    assert frechet[3] == number(result.baseline[0].value)
    assert frechet[5:7] == (20, 20)
    assert "e:1" in table.text


def test_classes_stand_beside_real():
    generated = accuracy_by_class(["a", "a", "b"], ["a", "b", "b"])
    real = accuracy_by_class(["a", "a"], ["a", "a"])
    rows = classes_table(generated, real, "judge:1").rows
    assert [row[0] for row in rows] == ["a", "b", "all"]
    assert (rows[0][1], rows[0][4], rows[0][7]) == ("50.0%", "100.0%", "b")
    assert (rows[1][4], rows[1][6]) == ("none held out", 0)


def test_copies_carry_the_tail_and_a_plot():
    distances = {"generated": [0.1, 0.3, 0.4], "held-out real": [0.2, 0.3, 0.5, 0.6, 0.7, 0.8]}
    table = copies_table({name: (copy_statistics(values), values) for name, values in distances.items()})
    assert table.rows[0][:6] == (
        "generated",
        3,
        1,
        "33.33%",
        "86.46%",
        "0.1",
    )  # 1 - 0.05^(1/3) of 2 left
    assert table.rows[0][8] == "too few images"
    assert table.rows[1][8] == "0.016"  # 1 / 2^6
    image = Image.open(io.BytesIO(base64.b64decode(table.plot)))
    assert image.width > 500


def page():
    return Page(
        title="A <title>",
        facts=(("n", "3"),),
        tables=(Table("one", "One", "Text.", ("name", "value"), (("x & y", 1.5), ("z,", 2)), frozenset({1})),),
        methods=("How <it> was done.",),
        warnings=("Mind this.",),
        grids=(Grid("class", (png_base64(np.zeros((4, 4, 3), np.uint8)),), (), 1, 0),),
        pairs=(Pair("AAAA", "BBBB", "left", "right", "0.5"),),
    )


def test_the_page_is_whole_and_escaped():
    html = render(page())
    assert "A &lt;title&gt;" in html
    assert "x &amp; y" in html
    assert "How &lt;it&gt; was done." in html
    assert "Mind this." in html
    assert html.count("<img") == 3
    assert html.count("alt=") == 3


def test_the_page_loads_nothing():
    html = render(page())
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]+)"', html))


def test_files(tmp_path):
    path = write_report(tmp_path, page(), {"value": 1.5})
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert json.loads((tmp_path / "result.json").read_text()) == {"value": 1.5}
    with (tmp_path / "one.csv").open() as stream:
        assert list(csv.reader(stream)) == [["name", "value"], ["x & y", "1.5"], ["z,", "2"]]


def test_thumbnails_shrink_but_never_grow():
    sizes = []
    for side in (600, 40):
        content = base64.b64decode(png_base64(np.zeros((side, side, 3), np.uint8)))
        sizes.append(Image.open(io.BytesIO(content)).size)
    assert sizes == [(256, 256), (40, 40)]


def test_the_terminal_sees_every_measure(result):
    text = summary(result.measures, result.baseline)
    assert len(text.splitlines()) == 7
    assert number(result.measures[1].value) in text
