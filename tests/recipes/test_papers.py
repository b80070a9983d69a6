"""The published tables: every figure as in the paper's text, known slips, and ours beside them."""

import itertools
import json
import re
import shlex

import pytest
import typer

from medisyn import runs
from medisyn.cli import COMMANDS, load_command
from medisyn.errors import InputError
from medisyn.evaluation.page import Page, Table, Value
from medisyn.evaluation.report import write_report
from medisyn.recipes import PRESETS
from medisyn.recipes.papers.beside import OTHER_IMAGES, aligned, not_available, paper_report
from medisyn.recipes.papers.tables import PAPERS, load_paper

TEXTS = {
    "medisyn-v1": "medisyn-v1.txt",
    "medisyn-v2": "medisyn-v2.txt",
    "textual-inversion": "textual-inversion-on-a-budget.txt",
    "medsyn": "medsyn-ct.txt",
}
PROSE = {"readers", "utility", "training", "radiologists"}  # numbers of figures, printed in running text
TABLES = [(name, table.id) for name in PAPERS for table in load_paper(name).tables]


def table_of(name, table_id):
    return next(table for table in load_paper(name).tables if table.id == table_id)


def plain(text):
    """Without white space and markup, and with what a web page repeats of a formula taken out."""
    for markup, sign in (("\\pm", "±"), ("\\times", "×"), ("\\alpha", "α"), ("“", '"'), ("”", '"')):
        text = text.replace(markup, sign)
    text = re.sub(r"[\s$\\*]", "", text)
    return re.sub(r"(\d+\.\d+±\d+\.\d+%?)plus-or-minus.*?\1\1", r"\1", text)


@pytest.fixture(scope="module")
def texts(shared_data):
    folder = shared_data.parent / "papers"
    if not folder.is_dir():
        pytest.skip("the papers are not beside the data")
    return {name: plain((folder / file).read_text(encoding="utf-8")) for name, file in TEXTS.items()}


@pytest.mark.parametrize(("name", "table_id"), TABLES)
def test_every_figure_stands_in_the_paper(texts, name, table_id):
    table = table_of(name, table_id)
    for row in table.rows:
        if table_id in PROSE:
            for cell in row[1:]:
                assert plain(cell) in texts[name], (row[0], cell)
        else:
            cells = [re.escape(plain(cell)) for cell in row if cell != "-"]
            assert re.search("-*".join(cells), texts[name]), row
    for slip in table.slips:
        assert plain(slip.printed) in texts[name]


def test_a_figure_that_is_not_in_the_paper_is_found(texts):
    assert re.search("Radiology-*" + re.escape(plain("0.373±0.105")), texts["medisyn-v2"])
    assert not re.search("Radiology-*" + re.escape(plain("0.374±0.105")), texts["medisyn-v2"])


@pytest.mark.parametrize("name", PAPERS)
def test_the_data_are_whole(name):
    paper = load_paper(name)
    assert paper.name == name
    assert len({table.id for table in paper.tables}) == len(paper.tables)
    for table in paper.tables:
        assert all(len(row) == len(table.columns) for row in table.rows), table.id
        assert all(isinstance(cell, str) for row in table.rows for cell in row), table.id
        for slip in table.slips:
            assert slip.row == "" or table.cell(slip.row, slip.column) == slip.printed
        for ours in table.ours:
            assert ours.column in table.columns, (table.id, ours)
            if ours.row:
                table.cell(ours.row, ours.column)
            if isinstance(ours.n, str):
                assert ours.n in table.columns


def number(text):
    return int(text.replace(",", ""))


@pytest.mark.parametrize("table_id", ["extended-1", "extended-2"])
def test_the_data_tables_of_v2_add_up(table_id):
    rows = [[number(cell) for cell in row[1:]] for row in table_of("medisyn-v2", table_id).rows]
    assert all(sum(row[:3]) == row[3] for row in rows)
    assert [sum(column) for column in zip(*rows[:-1], strict=True)] == rows[-1]


def test_the_gap_in_table_1_of_v1_is_as_noted():
    specialties, modalities = (table_of("medisyn-v1", name) for name in ("table-1a", "table-1b"))
    by_specialty, by_modality = (sum(number(row[1]) for row in table.rows) for table in (specialties, modalities))
    assert by_specialty == 5_785_333 + 1000 + 107_216 == 5_893_549
    assert by_specialty - by_modality == 86_857
    assert "5,893,549" in specialties.notes[0]
    assert "86,857" in modalities.notes[0]


def test_the_share_of_gastroenterology_is_a_slip():
    slip = table_of("medisyn-v2", "table-1").slips[0]
    assert f"6 ({6 / 2000:.2%})" == slip.right != slip.printed


def test_kendalls_w_needs_forty_blocks_as_noted():
    from scipy.stats import chi2

    assert chi2.sf(10 * 3 * 0.528, df=3) == pytest.approx(0.0012, abs=5e-5)
    assert chi2.sf(40 * 3 * 0.413, df=3) < 0.001 < chi2.sf(10 * 3 * 0.413, df=3)


# ---- what follows from the printed figures alone


def printed(name, table_id, row, column):
    """Mean and SD of a cell like "0.48 ± .06", or one number."""
    found = [float(part) for part in re.findall(r"\d*\.\d+|\d+", table_of(name, table_id).cell(row, column))]
    return found if len(found) > 1 else found[0]


def v1_column(table_id, column):
    table = table_of("medisyn-v1", table_id)
    names = [row[0] for row in table.rows if table.cell(row[0], column) != "-"]
    return [printed("medisyn-v1", table_id, name, column) for name in names]


def test_the_falls_of_fid_in_v1_are_those_of_its_text():
    """One decimal is printed, so half of it is the tolerance."""
    before = printed("medisyn-v1", "table-2-fid", "Pretrained Würstchen v2", "FID (EMA)")
    ema, plain_weights = (v1_column("table-2-fid", f"FID ({kind})") for kind in ("EMA", "Non-EMA"))
    assert 100 * (1 - ema[1] / before) == pytest.approx(55.6, abs=0.05)  # ema[0] is the pretrained model
    assert 100 * (1 - plain_weights[0] / before) == pytest.approx(54.4, abs=0.05)


def test_the_largest_gap_between_the_two_kinds_of_weights_in_v1():
    """Epoch 3: the gap over the mean of the two is 8.7 %, and no other epoch's is larger."""
    gaps = [
        100 * 2 * abs(a - b) / (a + b)
        for a, b in zip(
            v1_column("table-2-fid", "FID (EMA)")[1:], v1_column("table-2-fid", "FID (Non-EMA)"), strict=True
        )
    ]
    assert max(gaps) == gaps[2] == pytest.approx(8.7, abs=0.05)


def test_the_falls_of_fvd_in_v1_are_those_of_its_text():
    """The text has 87.2 % at first and 14.4 % on average later; more exactly 14.36, the mean of 11.2 and 17.5 %."""
    before, *after = v1_column("table-2-fvd", "FVD")
    assert 100 * (1 - after[0] / before) == pytest.approx(87.2, abs=0.05)
    later = [100 * (1 - new / old) for old, new in itertools.pairwise(after)]
    assert sum(later) / len(later) == pytest.approx(14.36, abs=0.005)


@pytest.mark.parametrize(
    "words", ["decreases of 55.6% and 54.4%", "no more than 8.7%", "decreased by 87.2%", "an average decrease of 14.4%"]
)
def test_these_percentages_stand_in_the_text_of_v1(texts, words):
    assert plain(words) in texts["medisyn-v1"]


@pytest.mark.parametrize(
    ("table_id", "column", "absent", "present", "t", "p", "half_digit"),
    [
        ("table-4", "CTR", "No cardiomegaly", "With cardiomegaly", 6.17, 2e-7, 0.5e-7),
        ("table-3", "%LAA-950", "No bullae", "With bullae", 2.23, 0.016, 0.0005),
    ],
)
def test_welch_s_test_of_medsyn_s_prompts(table_id, column, absent, present, t, p, half_digit):
    """32 volumes per prompt, unequal variances, one-sided. The paper prints no p: these follow from its means and SDs,
    t to two decimals and p to its last digit."""
    from scipy.stats import ttest_ind_from_stats

    high, low = (printed("medsyn", table_id, row, column) for row in (present, absent))
    found = ttest_ind_from_stats(*high, 32, *low, 32, equal_var=False, alternative="greater")
    assert found.statistic == pytest.approx(t, abs=0.005)
    assert found.pvalue == pytest.approx(p, abs=half_digit)


def test_unknown_paper_and_cell():
    with pytest.raises(InputError, match=r"paper 'medisyn-v3' is unknown.*Did you mean 'medisyn-v"):
        load_paper("medisyn-v3")
    with pytest.raises(InputError, match="table-1 has no row 'Oncology' with a column 'Distance'"):
        table_of("medisyn-v2", "table-1").cell("Oncology", "Distance")


# ---- which commands there are


def test_what_is_missing_is_named_once():
    lines = ["medisyn train x --out a", "medisyn study report s/", "medisyn study serve s/", "medisyn train y"]
    assert not_available(lines, {"train"}, {"y"}) == ["medisyn train x", "medisyn study"]
    assert not_available(lines, {"train", "study"}, {"x", "y"}) == []


def test_a_table_becomes_available_with_its_command_and_preset():
    before = paper_report("textual-inversion", commands={"train", "generate", "evaluate", "sweep"}, presets=set())
    table = before.paper.tables[0]
    assert before.state(table) == "not available in this version: medisyn train textual-inversion"
    after = paper_report(
        "textual-inversion", commands={"train", "generate", "evaluate", "sweep"}, presets={"textual-inversion"}
    )  # fmt: skip
    assert after.state(table) == "not run"


LINES = sorted({line for name in PAPERS for table in load_paper(name).tables for line in table.commands})


@pytest.mark.parametrize("line", LINES)
def test_commands_of_this_version_can_be_called_as_printed(line):
    if not_available([line], COMMANDS, PRESETS):
        pytest.skip("not in this version")
    words = shlex.split(line)[1:]
    command = load_command(words.pop(0))
    if words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    context = typer.Context(command)
    given, left_over, _ = command.make_parser(context).parse_args(words)
    assert left_over == []
    assert given


# ---- ours beside them


def result(folder, kind, values=(), content=None, **run):
    table = Table("t", "T", "", ("a",), (("b",),), values=tuple(values))
    write_report(folder, Page("t", (), (table,), ()), content or {})
    runs.write_run(folder, kind=kind, **run)


def report(name, folder):
    return paper_report(
        name, [folder], commands={"evaluate", "audit", "utility", "train", "generate", "curate"},
        presets={"medisyn-v1-image", "medisyn-v2", "textual-inversion"},
    )  # fmt: skip


def test_ours_say_why_they_do_not_compare(tmp_path):
    result(tmp_path / "a", "evaluate", [Value("frechet", 60.0, n=400, low=50.0, high=70.0, extractor="other:1")])
    result(tmp_path / "b", "evaluate", [Value("frechet", 61.0, n=1000, extractor="inception-2015:1")])
    result(tmp_path / "c", "audit", [Value("frechet", 62.0, n=1000, extractor="inception-2015:1")])
    found = report("medisyn-v1", tmp_path)
    rows = {row.result: row for row in found.beside if row.table == "table-2-fid"}
    assert set(rows) == {"a", "b"}  # the name alone is no match
    assert rows["a"].differs == ("n 400, paper 1,000", "extractor other:1, paper inception")
    assert rows["b"].differs == ()
    text = found.text()
    assert "no: n 400, paper 1,000; extractor other:1, paper inception" in text
    assert text.count(OTHER_IMAGES) == 1
    assert "50 to 70" in text


def test_real_baselines_are_not_ours(tmp_path):
    result(tmp_path, "evaluate", [Value("frechet", 60.0, "real", n=1000, extractor="inception-2015:1")])
    assert report("medisyn-v1", tmp_path).beside == ()


def test_a_result_of_a_missing_command_is_not_shown(tmp_path):
    result(tmp_path, "evaluate", [Value("frechet", 60.0, n=100, extractor="inception-2015:1")])
    found = paper_report(
        "textual-inversion", [tmp_path], commands={"evaluate", "generate", "train", "sweep"}, presets=()
    )
    assert found.beside == ()
    assert "Ours: not available in this version: medisyn train textual-inversion" in found.text()


def test_the_cells_of_a_sweep_stand_beside_their_rows(tmp_path):
    cells = [Value("frechet", 3.0 + k, "generated", f"images {k}", extractor="other:1", n=100) for k in (5, 7, 100)]
    result(tmp_path, "sweep", cells)
    found = paper_report(
        "textual-inversion", [tmp_path], commands={"evaluate", "generate", "train", "sweep", "utility"},
        presets={"textual-inversion"},
    )  # fmt: skip
    assert [(row.table, row.row, row.published, row.value) for row in found.beside] == [
        ("table-3", "5", "203", 8.0), ("table-3", "100", "171", 103.0),
    ]  # fmt: skip
    assert found.beside[0].differs == ("extractor other:1, paper inception",)


def audit_row(stratum, n, at_or_below):
    statistics = {
        "n": n, "at_or_below": at_or_below, "share": at_or_below / n, "minimum": 0.1, "median": 0.3, "mean": 0.25,
        "share_interval": {"low": 0.0, "high": 0.5, "level": 0.95, "method": ""},
    }  # fmt: skip
    return {"stratum": stratum, "generated": statistics, "held_out": None}


def test_an_audit_stands_beside_table_1_by_specialty(tmp_path):
    strata = [audit_row("dermatology / dermoscopy", 2000, 7), audit_row("radiology / X-ray", 90, 3)]
    result(
        tmp_path, "audit",
        content={"extractor": "biomedclip:1", "strata": [*strata, audit_row("all", 2090, 10)], "membership": None},
    )  # fmt: skip
    found = report("medisyn-v2", tmp_path)
    means = {row.row: row for row in found.beside if row.table == "table-1" and row.column == "Distance"}
    assert (means["Dermatology"].published, means["Dermatology"].value) == ("0.264±0.114", 0.25)
    assert means["Dermatology"].differs == ()
    rows = {row.row: row for row in found.beside if row.table == "table-1" and row.column != "Distance"}
    assert set(rows) == set(means) == {"Dermatology", "Radiology"}
    assert (rows["Dermatology"].published, rows["Dermatology"].value) == ("283 (14.15%)", 7)
    assert rows["Dermatology"].differs == ()
    assert rows["Radiology"].differs == ("n 90, paper 1,000",)
    assert rows["Radiology"].group == "radiology / X-ray"
    assert "radiology / X-ray" in found.text()


def test_distances_of_volumes_stand_beside_no_table_of_images(tmp_path):
    strata = [audit_row("radiology / CT", 1000, 7)]
    content = {"extractor": "biomedclip:1", "strata": strata, "membership": None, "kind": "volumes"}
    result(tmp_path, "audit", content=content)
    assert report("medisyn-v2", tmp_path).beside == ()


def utility_content(*arms):
    ends = {"low": -0.1, "high": 0.1, "level": 0.95, "method": ""}
    return {
        "n_test": 2872,
        "corpus": "c",
        "auroc": {"arms": {}, "differences": {arm: {"value": 0.02, "interval": ends} for arm in arms}},
    }


def test_utility_arms_match_by_name_or_by_kind(tmp_path):
    result(tmp_path / "whole", "utility", content=utility_content("1000 real", "1000 real + 1000 synthetic"))
    result(tmp_path / "small", "utility", content=utility_content("50 real", "50 real + 50 synthetic"))
    found = report("medisyn-v2", tmp_path)
    rows = {(row.row, row.result): row for row in found.beside if row.table == "utility"}
    assert len(rows) == 12
    assert rows["Chest X-ray, 1,000 real", "small"].differs == ("trained on 50 real, paper 1000 real",)
    assert rows["Chest X-ray, 1,000 real", "whole"].differs == ()
    assert rows["Dermoscopy, 1,000 real", "whole"].differs == ("n 2,872, paper 2,460",)

    found = report("medisyn-v2", tmp_path / "small")
    rows = [row for row in found.beside if row.row == "Chest X-ray, 1,000 real + 1,000 synthetic"]
    assert rows[0].differs == ("trained on 50 real + 50 synthetic, paper 1000 real + 1000 synthetic",)


@pytest.mark.parametrize(
    ("classes", "task"),
    [(["blood smear/platelet", "blood smear/field"], "2 classes of blood smear"), (["effusion"], "effusion")],
)
def test_a_classifier_of_ours_says_what_it_told_apart(tmp_path, classes, task):
    result(tmp_path, "utility", content={**utility_content("1000 real"), "classes": classes})
    row = next(row for row in report("medisyn-v2", tmp_path).beside if row.row == "Chest X-ray, 1,000 real")
    assert row.differs == (f"task: {task}",)


def test_cross_validation_gives_means_over_folds(tmp_path):
    scores = [{"accuracy": 0.5, "f1": None}, {"accuracy": 1.0, "f1": 0.25}]
    content = {"n_test": 9, "folds": {"real": {"overall": scores, "per_label": {"lung opacity": scores}}}}
    result(tmp_path, "utility", content=content)
    found = paper_report(
        "medsyn", [tmp_path], commands={"train", "utility"}, presets={"medsyn-base"}
    )  # fmt: skip
    rows = {row.column: row for row in found.beside}
    assert rows["Opacity, accuracy% ↑"].value == 75.0  # the paper's column is in percent
    assert rows["Opacity, F1 ↑"].value == 0.25
    assert "Effusion, F1 ↑" not in rows


def test_a_stage_check_stands_beside_table_3(tmp_path):
    result(tmp_path, "evaluate stages", [Value("ssim", 0.9, "autoencoder of x", n=1000, low=0.8, high=0.95)])
    row = report("medisyn-v1", tmp_path).beside[0]
    assert (row.table, row.row, row.column, row.value) == ("table-3", "", "Average", 0.9)
    assert (row.published, row.interval, row.differs) == ("", (0.8, 0.95), ())


def test_energy_stands_beside_and_is_of_other_data(tmp_path):
    runs.write_run(tmp_path, command="train", corpus="c", energy={"kwh": 0.5})
    row = report("medisyn-v2", tmp_path).beside[0]
    assert (row.published, row.value, row.differs) == ("101 kWh", 0.5, ("of other data",))


def test_columns_are_aligned():
    assert aligned([("a", "bb"), ("ccc", "d")], indent=1) == [" a    bb", " ccc  d"]


def test_the_report_is_json(tmp_path):
    result(tmp_path, "evaluate", [Value("frechet", 60.0, n=400, low=50.0, high=70.0, extractor="other:1")])
    content = json.loads(json.dumps(report("medisyn-v1", tmp_path).as_dict()))
    table = next(table for table in content["tables"] if table["id"] == "table-2-fid")
    assert (table["state"], table["beside"][0]["value"], table["rows"][1][2]) == ("run", 60.0, "74.4487")
    assert next(t for t in content["tables"] if t["id"] == "table-2-fvd")["state"].startswith("not available")
