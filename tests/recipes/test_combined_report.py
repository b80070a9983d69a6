"""One page of many results: what is found, what stands side by side, and what is kept apart and why."""

import base64
import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest

import build_corpus
from medisyn import runs
from medisyn.errors import InputError
from medisyn.evaluation.page import Page, Table, Value
from medisyn.evaluation.report import png_base64, write_report
from medisyn.recipes.combined_report import Basis, combined_report, contradictions, corpus_tables, flat
from medisyn.recipes.results import collect, made_by

FRECHET = Value("frechet", 9.5, low=8.0, high=11.0, n=400, n_real=400, extractor="e:1", preprocessing="p")


def result(folder, *values, kind="evaluate", content=None, **run):
    table = Table("measures", "Measures", "Text.", ("a", "b"), (("x & y", "1"),), values=values)
    page = Page(f"Title of {folder.name}", (("n", "400"),), (table,), ("How it was done.",), ("Mind this.",))
    write_report(folder, page, content or {})
    runs.write_run(folder, kind=kind, **{"corpus": "c1", **run})
    return folder


def generated(folder, digest="d" * 64, name="starter"):
    folder.mkdir(parents=True)
    runs.write_run(folder, kind="generate", model={"id": name, "digest": digest, "solver": "ddim"}, requests=4)


def apart(folder):
    return contradictions(collect([folder]))


# ---- what is found


def test_everything_below_the_folder_is_found_by_what_wrote_it(tmp_path):
    generated(tmp_path / "images")
    result(tmp_path / "images-evaluation", FRECHET)
    result(tmp_path / "deep" / "er", kind="utility", corpus="", content={"corpus": "c9", "auroc": None})
    runs.write_run(tmp_path / "run", command="train", corpus="c1", config={"a": {"b": 1}}, seed=3)
    runs.write_run(tmp_path / "corpus", command="curate", report={"fingerprint": "c1", "kept": 5316})
    result(tmp_path / ".images-evaluation.x.tmp", FRECHET)
    found = collect([tmp_path])
    assert [(r.name, r.kind, r.corpus, r.model) for r in found.results] == [
        ("deep/er", "utility", "c9", ""),
        ("images-evaluation", "evaluate", "c1", "starter dddddddddddd"),
    ]
    assert [entry.name for entry in found.training] == ["run"]
    assert [entry.name for entry in found.generated] == ["images"]
    assert [(entry.name, entry.corpus) for entry in found.corpora] == [("corpus", "c1")]
    assert found.left_out == []


def test_the_model_comes_from_the_result_s_own_record_first(tmp_path):
    generated(tmp_path / "a")
    generated(tmp_path / "a-b", digest="e" * 64)
    result(tmp_path / "a-evaluation", FRECHET, model={"id": "other", "digest": "f" * 64})
    result(tmp_path / "a-b-utility-tstr", FRECHET)
    result(tmp_path / "elsewhere", FRECHET)
    models = {r.name: r.model for r in collect([tmp_path]).results}
    assert models == {
        "a-evaluation": "other ffffffffffff",
        "a-b-utility-tstr": "starter eeeeeeeeeeee",  # the longest name that fits
        "elsewhere": "",
    }


@pytest.mark.parametrize(
    ("lines", "model"),
    [
        ([{"model": "m", "model_digest": "d"}] * 2, {"id": "m", "digest": "d"}),
        ([{"model": "m", "model_digest": "d"}, {"model": "n", "model_digest": "e"}], None),  # two models
        ([{"model": "m", "model_digest": "d"}, {}], None),  # of one image nothing is known
        ([{"model": "m"}], None),  # a name is no proof of the weights
        ([], None),
    ],
)
def test_a_set_without_its_run_says_the_model_in_every_line(tmp_path, lines, model):
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert made_by(tmp_path) == model
    generated(tmp_path / "a")
    assert made_by(tmp_path / "a") == {"id": "starter", "digest": "d" * 64}


def test_two_folders_keep_their_names(tmp_path):
    for name in ("one", "two"):
        result(tmp_path / name / "r", FRECHET)
    assert [r.name for r in collect([tmp_path / "one", tmp_path / "two"]).results] == ["one/r", "two/r"]
    assert collect([tmp_path / "one" / "r"]).results[0].name == "r"


def test_what_cannot_be_read_is_named(tmp_path):
    result(tmp_path / "good", FRECHET)
    for name, text in (("old", '{"measures": []}'), ("torn", '{"page": {'), ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    result(tmp_path / "strange", kind="audit", content={"strata": [{"stratum": "all"}]})
    left_out = collect([tmp_path]).left_out
    assert sorted(left_out) == [
        "list/result.json is not a readable JSON object",
        "old/result.json holds no page; run its command again to have it here",
        "strange/result.json is not as `medisyn audit` writes it; run the command again",
        "torn/result.json is not a readable JSON object",
    ]
    html = combined_report(tmp_path).page.read_text()
    assert "Left out: old/result.json holds no page" in html


def test_nothing_to_combine(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder gone/"):
        collect([tmp_path / "gone"])
    with pytest.raises(InputError, match=r"no result\.json and no run\.json .* below"):
        collect([tmp_path])
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds no page; run its command again"):
        collect([tmp_path])


# ---- side by side or apart


def test_equal_results_stand_in_one_table(tmp_path):
    for name in ("a", "b"):
        generated(tmp_path / name)
        result(tmp_path / f"{name}-evaluation", FRECHET, replace(FRECHET, of="real", value=6.5))
    assert apart(tmp_path) == []
    html = combined_report(tmp_path).page.read_text()
    measures = html[html.index(">All measures</h2>") : html.index(">Title of a-evaluation (a-evaluation)</h2>")]
    assert measures.count("<table>") == 1
    assert measures.count('<td class="number">9.5</td>') == 2
    assert measures.count('<td class="number">6.5</td>') == 2  # the baseline, beside each
    assert "e:1, n = 400" in measures


@pytest.mark.parametrize(
    ("value", "run", "content", "why"),
    [
        (replace(FRECHET, n=200), {}, {}, "number of images 400 and 200 (frechet)"),
        (replace(FRECHET, n_real=200), {}, {}, "number of real images 400 and 200 (frechet)"),
        (replace(FRECHET, extractor="f:1"), {}, {}, "extractor e:1 and f:1 (frechet)"),
        (replace(FRECHET, preprocessing="q"), {}, {}, "preprocessing p and q (frechet)"),
        (FRECHET, {"corpus": "c2"}, {}, "corpus c1 and c2"),
        (FRECHET, {"model": {"id": "m", "digest": "2" * 64}}, {}, "model m 111111111111 and m 222222222222"),
        (FRECHET, {}, {"asked": {"neighbours": 1, "seed": 5}}, "setting neighbours 10 and 1"),
    ],
)
def test_what_differs_keeps_two_results_apart(tmp_path, value, run, content, why):
    model = {"id": "m", "digest": "1" * 64}
    result(tmp_path / "a", FRECHET, model=model, content={"asked": {"neighbours": 10, "seed": 0}})
    result(tmp_path / "b", value, **{"model": model, **run}, content=content or {"asked": {"neighbours": 10}})
    assert apart(tmp_path) == [f"a and b are not put side by side: {why}."]
    html = combined_report(tmp_path).page.read_text()
    assert why in html
    measures = html[html.index(">All measures</h2>") : html.index(">Title of a (a)</h2>")]
    assert measures.count("<table>") == 2


def test_numbers_of_different_commands_stand_apart(tmp_path):
    result(tmp_path / "a", replace(FRECHET, name="share"), content={"asked": {"neighbours": 10}})
    result(tmp_path / "b", replace(FRECHET, name="share"), kind="audit", content={"asked": {"neighbours": 1}})
    assert apart(tmp_path) == []  # no contradiction, but
    html = combined_report(tmp_path).page.read_text()
    assert "medisyn evaluate: e:1, n = 400" in html
    assert "medisyn audit: e:1, n = 400" in html


def test_what_is_not_recorded_is_no_difference():
    one = Basis("evaluate", "{}", "c", "", "e", "p", 4, None)
    assert one.differences(replace(one, model="m", n_real=3)) == []
    assert one.differences(replace(one, n=5)) == ["number of images 4 and 5"]


def test_many_measures_are_summed_up(tmp_path):
    names = ["a", "b", "c", "d", "e"]
    result(tmp_path / "x", *(replace(FRECHET, name=name) for name in names))
    result(tmp_path / "y", *(replace(FRECHET, name=name, n=7) for name in names))
    assert apart(tmp_path)[0].endswith("number of images 400 and 7 (a, b, c and 2 more).")


def test_a_run_on_another_corpus_is_named(tmp_path):
    runs.write_run(tmp_path / "run", command="train", corpus="c2")
    result(tmp_path / "a", FRECHET)
    assert apart(tmp_path)[0].startswith("run was trained on corpus c2, and there are results against c1")


# ---- the page


def test_the_page_holds_everything_and_loads_nothing(tmp_path):
    generated(tmp_path / "a b")
    folder = result(tmp_path / "a b-evaluation", FRECHET)
    content = json.loads((folder / "result.json").read_text())
    content["page"]["tables"][0].update(plot="plots/measures.png", plot_text="What is seen.")
    (folder / "result.json").write_text(json.dumps(content))
    (folder / "plots").mkdir()
    (folder / "plots" / "measures.png").write_bytes(base64.b64decode(png_base64(np.zeros((2, 2, 3), np.uint8))))
    runs.write_run(
        tmp_path / "run", command="train", corpus="c1", config={"train": {"seed": 7, "widths": [1, 2]}},
        steps_done=12, energy={"kwh": 0.25}, memory={"peak_mib": 99},
    )  # fmt: skip
    found = combined_report(tmp_path)
    html = found.page.read_text()
    assert found.page == tmp_path / "report.html"
    assert "x &amp; y" in html
    assert 'alt="What is seen."' in html
    assert '<a href="a%20b-evaluation/report.html">' in html
    assert "<code>a b-evaluation/measures.csv</code>" in html
    for text in ("train.seed", "train.widths", "0.25", "How it was done.", "Mind this.", "starter", "dddddddddddd"):
        assert text in html
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)
    for anchor in re.findall(r'href="#([^"]+)"', html):
        assert html.count(f'id="{anchor}"') == 1
    ids = re.findall(r'id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    levels = [int(level) for level in re.findall(r"<h(\d)", html)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_another_place_for_the_page_has_no_link_out_of_its_folder(tmp_path):
    result(tmp_path / "study" / "a", FRECHET)
    page = combined_report(tmp_path / "study", tmp_path / "elsewhere" / "all.html").page
    assert "The whole report" not in page.read_text()
    assert str(tmp_path) not in page.read_text()


def test_the_report_of_a_result_is_not_overwritten(tmp_path):
    result(tmp_path / "a", FRECHET)
    with pytest.raises(InputError, match=r"a/report\.html is the report of one result; name another file with --out"):
        combined_report(tmp_path / "a")
    before = (tmp_path / "a" / "report.html").read_text()
    combined_report(tmp_path / "a", tmp_path / "a" / "all.html")
    assert (tmp_path / "a" / "report.html").read_text() == before
    with pytest.raises(InputError, match=r"a browser opens it by its name: --out all\.html"):
        combined_report(tmp_path / "a", tmp_path / "all")


def test_the_page_may_be_made_again(tmp_path):
    result(tmp_path / "a", FRECHET)
    first = combined_report(tmp_path).page.read_text()
    assert combined_report(tmp_path).page.read_text() == first


def test_the_corpus_is_counted_from_its_index(tmp_path):
    build_corpus.tiny_corpus(tmp_path / "corpus")
    runs.write_run(
        tmp_path / "corpus", command="curate",
        report={"fingerprint": "c1", "kept": 5316, "splits": {"train": 1}},
        config={"sources": [{"title": "Source A", "licence": "CC0", "attribution": "A. Author"}]},
    )  # fmt: skip
    tables = {table.name: table for table in corpus_tables(collect([tmp_path]).corpora[0])}
    assert tables["specialty"].columns == ("specialty", "train", "validation", "test", "total")
    assert tables["specialty"].rows == (("radiology", "18", "9", "3", "30"), ("total", "18", "9", "3", "30"))
    values = {(value.group, value.of): value.value for value in tables["image_type"].values}
    assert values["chest X-ray", "total"] + values["ultrasound", "total"] == values["total", "total"] == 30
    html = combined_report(tmp_path).page.read_text()
    assert "Samples by image type" in html
    assert "5,316" in html
    assert "A. Author" in html


def test_settings_become_dotted_keys():
    assert flat({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}) == [("a.b", "1"), ("a.c.d", "[1, 2]"), ("e", "None")]
