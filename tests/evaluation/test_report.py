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
from medisyn.evaluation.page import Value, page_as_dict, page_from_dict
from medisyn.evaluation.plots import STYLES, copies_plot, cumulative, interval_plot
from medisyn.evaluation.report import (
    Grid,
    Page,
    Pair,
    Table,
    between,
    classes_table,
    copies_table,
    groups_table,
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
    assert len(table.rows) == len(result.measures) > 5
    frechet = table.rows[0]
    assert frechet[1] == number(result.measures[0].value)
    assert frechet[3] == number(result.baseline[0].value)
    assert frechet[5:7] == (20, 20)
    assert "e:1" in table.text


def test_values_keep_full_precision_beside_the_text(result):
    table = measures_table(result)
    ours, real = table.values[:2]
    assert (ours.name, ours.of, real.of) == ("frechet", "generated", "real")
    assert ours.value == result.measures[0].value
    assert (ours.low, ours.high) == (result.measures[0].interval.low, result.measures[0].interval.high)
    assert (ours.n, ours.n_real, ours.extractor, ours.preprocessing) == (20, 20, "e:1", "p")
    assert len(table.values) == 2 * len(result.measures)


def test_groups_name_what_was_merged():
    generated = accuracy_by_class(["a", "b and 1 alike"], ["a", "a"])
    real = accuracy_by_class(["a"], ["a"])
    of_class = {"a": "a", "b": "b and 1 alike", "c": "b and 1 alike"}
    table = groups_table(generated, real, "judge:1", of_class, n=70)
    assert "Merged: b, c." in table.text
    assert "on 70 real validation images" in table.text
    assert (table.name, table.columns[0], table.rows[0][:2]) == ("class_groups", "group", ("a", "100.0%"))
    assert {value.name for value in table.values} == {"class_group_accuracy"}


def test_notes_stand_once_below_the_table(result):
    table = measures_table(result)
    assert len(table.footnotes) < len(table.rows)
    html = render(Page("t", (), (table,), ()))
    for text in table.footnotes:
        assert html.count(text) == 1
    precision = next(row for row in table.rows if row[0].startswith("Precision"))
    assert f"Precision (generated inside real)<sup>{table.footnotes.index(precision[7]) + 1}</sup>" in html
    assert '<th scope="col">note</th>' not in html


def test_classes_stand_beside_real():
    generated = accuracy_by_class(["a", "a", "b"], ["a", "b", "b"])
    real = accuracy_by_class(["a", "a"], ["a", "a"])
    rows = classes_table(generated, real, "judge:1").rows
    assert [row[0] for row in rows] == ["a", "b", "all"]
    assert (rows[0][1], rows[0][4], rows[0][7]) == ("50.0%", "100.0%", "b")
    assert (rows[1][4], rows[1][6]) == ("none held out", 0)


def test_classes_have_a_plot_a_total_and_values():
    generated = accuracy_by_class(["a"] * 20 + ["b"], ["b"] * 20 + ["b"])
    real = accuracy_by_class(["a"] * 20, ["a"] * 20)
    table = classes_table(generated, real, "judge:1")
    assert table.totals == 1
    assert "with intervals apart: a, all." in table.plot_text
    assert table.plot_rows[0][:3] == ("a", "generated", 0.0)
    assert [(v.of, v.group, v.value, v.n) for v in table.values[:3]] == [
        ("generated", "a", 0.0, 20),
        ("generated", "b", 1.0, 1),
        ("generated", "", 1 / 21, 21),
    ]
    many = [f"class {number:02}" for number in range(60)]
    assert classes_table(accuracy_by_class(many, many), real, "judge:1").plot == ""


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
    assert "generated: 33.3% of 3 at or below 0.15" in table.plot_text
    assert table.plot_rows[0] == ("generated", 0.1, 1 / 3)
    assert len(table.plot_rows) == 9
    mean = table.values[0]
    assert (mean.name, mean.of, mean.n) == ("patch_distance_mean", "generated", 3)
    assert mean.value == pytest.approx(0.8 / 3)


def page():
    return Page(
        title="A <title>",
        facts=(("n", "3"),),
        tables=(
            Table("one", "One", "Text.", ("name", "value"), (("x & y", 1.5), ("z,", 2)), frozenset({1}), totals=1),
        ),
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


def test_the_page_can_be_read_by_a_screen_reader():
    html = render(page())
    assert '<html lang="en">' in html
    assert [int(level) for level in re.findall(r"<h(\d)", html)] == [1, 2, 2, 2, 3, 2]  # no level is left out
    assert html.count("<caption>") == html.count("<table>") == 1
    assert html.count('scope="col"') == 2
    assert html.count('<th scope="row">') == 2
    assert '<th scope="col" class="number">value</th>' in html
    assert '<td class="number">1.5</td>' in html
    assert 'role="region" aria-labelledby="table-one"' in html
    assert '<tr class="total">' in html
    assert "@media print" in html


def test_the_page_loads_nothing():
    html = render(page())
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]+)"', html))


def test_files(tmp_path):
    path = write_report(tmp_path, page(), {"value": 1.5})
    assert path.read_text().startswith("<!DOCTYPE html>")
    content = json.loads((tmp_path / "result.json").read_text())
    assert content == {"value": 1.5, "page": page_as_dict(page())}
    with (tmp_path / "one.csv").open() as stream:
        assert list(csv.reader(stream)) == [["name", "value"], ["x & y", "1.5"], ["z,", "2"]]


def test_the_page_comes_back_from_json_with_its_plots(tmp_path, result):
    table = measures_table(result)
    page = Page("t", (("n", "3"),), (table,), ("How.",), ("Mind.",))
    write_report(tmp_path, page, {})
    again = page_from_dict(json.loads((tmp_path / "result.json").read_text())["page"], tmp_path)
    assert (again.title, again.facts, again.methods, again.warnings) == ("t", (("n", "3"),), ("How.",), ("Mind.",))
    ours = again.tables[0]
    assert (ours.columns, ours.rows, ours.numeric, ours.values) == (
        table.columns,
        table.rows,
        table.numeric,
        table.values,
    )
    assert (ours.notes, ours.totals, ours.plot, ours.plot_text) == (7, 0, table.plot, table.plot_text)
    assert (tmp_path / "plots" / "measures.png").read_bytes() == base64.b64decode(table.plot)
    with (tmp_path / "plots" / "measures.csv").open() as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["measure", "set", "value", "low", "high"]
    assert rows[1][:2] == ["precision", "generated"]
    assert float(rows[1][2]) == result.measure("precision").value


def test_numpy_numbers_and_infinities_become_json(tmp_path):
    table = Table("t", "T", "", ("a", "b"), ((np.int64(3), float("inf")),), values=(Value("x", np.float32(0.5)),))
    write_report(tmp_path, Page("t", (), (table,), ()), {})
    found = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)["page"]["tables"][0]
    assert found["rows"] == [[3, "inf"]]
    assert found["values"][0]["value"] == 0.5


def test_the_key_page_is_taken(tmp_path):
    with pytest.raises(AssertionError, match="keeps the key 'page'"):
        write_report(tmp_path, page(), {"page": 1})


def test_shares_by_hand():
    values, share = cumulative([0.3, 0.1, 0.2, 0.2])
    assert values.tolist() == [0.1, 0.2, 0.2, 0.3]
    assert share.tolist() == [0.25, 0.5, 0.75, 1.0]


def test_plots_differ_without_colour_and_take_three_series_at_most():
    assert len({dash for _, dash, _ in STYLES}) == len({marker for _, _, marker in STYLES}) == len(STYLES) == 3
    with pytest.raises(ValueError, match="zip"):
        copies_plot({name: [0.1] for name in "abcd"}, 0.15)


def test_a_gap_in_a_series_moves_no_other_dot():
    point = (0.5, Interval(0.4, 0.6, 0.95, ""))
    whole = interval_plot(["a", "b"], {"x": [point, point]}, "share", high=1)
    gap = interval_plot(["a", "b"], {"x": [point, None]}, "share", high=1)
    a, b = (np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("L")) for png in (whole, gap))
    assert a.shape == b.shape
    half = a.shape[0] // 2
    assert np.array_equal(a[: half - 20], b[: half - 20])
    assert not np.array_equal(a[half:], b[half:])


def test_thumbnails_shrink_but_never_grow():
    sizes = []
    for side in (600, 40):
        content = base64.b64decode(png_base64(np.zeros((side, side, 3), np.uint8)))
        sizes.append(Image.open(io.BytesIO(content)).size)
    assert sizes == [(256, 256), (40, 40)]


def test_the_terminal_sees_every_measure(result):
    text = summary(result.measures, result.baseline)
    assert len(text.splitlines()) == 1 + len(result.measures)
    assert number(result.measures[1].value) in text
