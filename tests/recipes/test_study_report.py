"""A reader study from its table to its report: published figures, what is left out, and what other commands read."""

import csv
import itertools
import json

import numpy as np
import pytest
from scipy.stats import friedmanchisquare

from medisyn.cli import COMMANDS
from medisyn.errors import InputError
from medisyn.recipes import PRESETS
from medisyn.recipes.combined_report import combined_report
from medisyn.recipes.papers.beside import paper_report
from medisyn.recipes.results import collect
from medisyn.recipes.study_report import PSEUDO_REPLICATION, study_report

CLASSES = ("Normal", "Drusen", "Edema")


def answer_rows(**counts):
    """51 items of each group; each reader has `counts` of them right, and the wrong ones are spread."""
    for group, right in counts.items():
        for reader, count in enumerate(right):
            for item in range(51):
                is_right = (item * 5 + 11 * reader) % 51 < count  # 5 and 51 share no factor: each place once
                truth = item % 3
                yield {
                    "reader": f"reader-{reader}",
                    "item": f"{group}-{item}",
                    "source": group,
                    "truth": CLASSES[truth],
                    "answer": CLASSES[truth if is_right else (truth + 1) % 3],
                    "confidence": 3 + (item + reader) % 3,
                }


def rank_rows(readers=10, blocks=4, systems=("real", "ours", "gan", "vae"), groups=("lobes", "airways"), seed=0):
    rng = np.random.default_rng(seed)
    for group, reader, block in itertools.product(groups, range(readers), range(blocks)):
        order = (np.arange(len(systems)) + rng.standard_normal(len(systems))).argsort().argsort() + 1
        for system, rank in zip(systems, order, strict=True):
            yield {"reader": f"reader-{reader}", "group": group, "block": block, "system": system, "rank": rank}


def write(path, rows):
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0], restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def report(path, rows, **options):
    return study_report(write(path, rows), **{"resamples": 100, **options})


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    """Drawing takes most of a report's time; the two shared reports below have theirs."""
    for page in ("study_page", "study_ranks_page"):
        monkeypatch.setattr(f"medisyn.recipes.{page}.interval_plot", lambda *_, **__: "")


@pytest.fixture(scope="module")
def surgery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "surgery"
    return report(folder / "answers.csv", answer_rows(real=(41, 43, 44), synthetic=(50, 50, 50)))


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    return report(tmp_path_factory.mktemp("study") / "ranks" / "answers.csv", rank_rows())


# ---- classification


@pytest.mark.parametrize(
    ("real", "synthetic", "lines"),
    [
        ((41, 43, 44), (50, 50, 50), ("real: accuracy 83.66 ± 3.00 %", "synthetic: accuracy 98.04 ± 0.00 %")),
        ((45, 48, 48), (50, 50, 51), ("real: accuracy 92.16 ± 3.40 %", "synthetic: accuracy 98.69 ± 1.13 %")),
        ((46, 46, 49), (50, 50, 51), ("real: accuracy 92.16 ± 3.40 %", "synthetic: accuracy 98.69 ± 1.13 %")),
    ],
)
def test_the_figures_of_medisyn_v2_as_printed(tmp_path, real, synthetic, lines):
    """Two decimals, as in the paper: from counts of right answers, three readers and 51 items of each kind."""
    text = report(tmp_path / "a.csv", answer_rows(real=real, synthetic=synthetic), resamples=20).summary()
    for line in lines:
        assert line in text


def test_what_a_classification_holds(surgery):
    study = surgery.study
    assert surgery.layout == "classification"
    assert study.answers == 306
    assert study.accuracy.reference == "real"
    assert study.accuracy.differences["synthetic"].value == pytest.approx(22 / 153)
    assert {name: found.sum() for name, found in study.confusion.items()} == {"real": 153, "synthetic": 153}
    assert np.trace(study.confusion["real"]) == 41 + 43 + 44
    assert len(study.pairs) == 3
    assert study.pairs[0].n == 102
    assert study.confidence["real"].mean == pytest.approx(4.0, abs=0.02)
    assert study.confidence_p == {"synthetic": 1.0}  # the readers were as sure of both
    assert study.repeats == {}


def test_the_kappa_of_a_group_is_the_one_of_its_counts(surgery):
    """Counted here from the rows by another way: pairs of readers with one answer, against the shares of answers."""
    rows = list(answer_rows(real=(41, 43, 44)))
    by_item = {}
    for row in rows:
        by_item.setdefault(row["item"], []).append(row["answer"])
    observed = np.mean([a == b for answers in by_item.values() for a, b in itertools.combinations(answers, 2)])
    shares = [np.mean([row["answer"] == name for row in rows]) for name in CLASSES]
    chance = sum(share**2 for share in shares)
    assert surgery.study.kappas["real"].value == pytest.approx((observed - chance) / (1 - chance), rel=1e-12)


def test_the_margin_decides_equivalence(tmp_path):
    rows = list(answer_rows(real=(48, 48, 48), synthetic=(48, 49, 48)))
    wide = report(tmp_path / "a.csv", rows, margin=0.3)
    narrow = report(tmp_path / "a.csv", rows, margin=0.02)
    assert wide.study.accuracy.differences["synthetic"].equivalence.verdict == "equivalent within the margin"
    assert narrow.study.accuracy.differences["synthetic"].equivalence.verdict == "equivalence not shown"
    assert "margin 30 points: equivalent within the margin" in wide.summary()


def test_repeats_count_for_agreement_alone(tmp_path, surgery):
    rows = list(answer_rows(real=(41, 43, 44), synthetic=(50, 50, 50)))
    again = [{**row, "repeat": 1} for row in rows if row["reader"] == "reader-0" and row["source"] == "real"]
    again[0]["answer"] = CLASSES[(CLASSES.index(again[0]["answer"]) + 1) % 3]
    found = report(tmp_path / "a.csv", [{**row, "repeat": 0} for row in rows] + again)
    assert found.study.accuracy == surgery.study.accuracy
    assert list(found.study.repeats) == ["reader-0"]
    assert found.study.repeats["reader-0"].observed == pytest.approx(50 / 51)
    assert found.study.repeats["reader-0"].items == 51
    assert (found.page.parent / "repeats.csv").exists()


def test_one_reader_is_told_what_is_left_out(tmp_path):
    found = report(tmp_path / "a.csv", answer_rows(real=(40,), synthetic=(50,)))
    assert found.study.accuracy.groups["real"].sd is None
    assert found.study.pairs == ()
    assert any(note.startswith("One reader: intervals are over items") for note in found.notes)
    assert {path.name for path in found.page.parent.glob("*.csv")} == {
        "accuracy.csv", "readers.csv", "differences.csv", "confidence.csv", "confusion.csv",
    }  # fmt: skip
    assert "±" not in found.summary()


def test_notes_say_what_to_beware_of(tmp_path):
    rows = list(answer_rows(real=(50, 51), synthetic=(51, 51)))[:-1]
    for row in rows[:4]:
        row["answer"] = "glare"
    rows[7]["confidence"] = ""
    notes = "\n".join(report(tmp_path / "a.csv", [{**row, "minutes": 1} for row in rows]).notes)
    assert "2 readers: a bootstrap of so few understates their spread (its variance is 1/2" in notes
    assert "synthetic: the answers do not vary" in notes
    assert "1 of 204 pairs of reader and item have no answer" in notes
    assert "the truth of no item, counted as wrong: glare (4)" in notes
    assert "1 of 203 answers have no confidence" in notes
    assert "Columns not used: minutes." in notes


def test_one_group_and_no_confidence(tmp_path):
    rows = [{key: row[key] for key in ("reader", "item", "truth", "answer")} for row in answer_rows(real=(40, 45))]
    found = report(tmp_path / "a.csv", rows)
    assert found.study.accuracy.reference == "all"
    assert found.study.accuracy.differences == {}
    assert any(note.startswith("One group of items") for note in found.notes)
    assert not (found.page.parent / "confidence.csv").exists()


def test_the_reference_is_a_group_by_any_case(tmp_path):
    rows = list(answer_rows(Synthetic=(40, 45), phantom=(50, 50)))
    assert report(tmp_path / "a.csv", rows).study.accuracy.reference == "Synthetic"  # by name: S before p
    assert report(tmp_path / "a.csv", rows, reference="PHANTOM").study.accuracy.reference == "phantom"
    with pytest.raises(
        InputError, match=r"--reference phantoms is no group.*Synthetic, phantom. Did you mean 'phantom'"
    ):
        report(tmp_path / "a.csv", rows, reference="phantoms")


# ---- ranking


def test_what_a_ranking_holds(ranked):
    assert ranked.layout == "ranking"
    lobes = ranked.study.groups["lobes"]
    assert (lobes.rankings, lobes.readers, lobes.blocks) == (40, 10, 4)
    rows = [row for row in rank_rows() if row["group"] == "lobes"]
    columns = [[row["rank"] for row in rows if row["system"] == system] for system in lobes.systems]
    expected = friedmanchisquare(*columns)
    assert lobes.all_rankings.friedman.chi2 == pytest.approx(expected.statistic)
    assert lobes.all_rankings.friedman.n == 40
    means = [np.reshape(column, (10, 4)).mean(axis=1) for column in columns]
    assert lobes.by_reader.friedman.chi2 == pytest.approx(friedmanchisquare(*means).statistic)
    assert lobes.by_reader.friedman.n == 10
    assert [mean.value for mean in lobes.means] == pytest.approx([np.mean(column) for column in columns])
    assert PSEUDO_REPLICATION in ranked.notes
    assert "one ranking per reader (n = 10): Kendall's W" in ranked.summary()


def test_one_ranking_per_reader_needs_no_second_analysis(tmp_path):
    found = report(tmp_path / "a.csv", rank_rows(readers=5, blocks=1, groups=("lobes",)))
    assert found.study.groups["lobes"].all_rankings is None
    assert PSEUDO_REPLICATION not in found.notes
    assert any(note.startswith("Below about 10 blocks") for note in found.notes)


def test_one_reader_s_rankings(tmp_path):
    found = report(tmp_path / "a.csv", rank_rows(readers=1, blocks=6, groups=("lobes",)))
    assert found.study.groups["lobes"].by_reader is None
    assert found.study.groups["lobes"].all_rankings.friedman.n == 6
    assert any(note.startswith("One reader: nothing is said") for note in found.notes)


def test_a_single_ranking_has_means_alone(tmp_path):
    found = report(tmp_path / "a.csv", rank_rows(readers=1, blocks=1, groups=("lobes",)))
    assert {path.name for path in found.page.parent.glob("*.csv")} == {"mean_ranks.csv"}
    assert "A single ranking has no test and no interval." in found.notes


# ---- files, and other commands


def test_the_files_of_a_report(surgery, ranked):
    for found, title in ((surgery, "Reader study: classification"), (ranked, "Reader study: ranking")):
        folder = found.page.parent
        assert folder.name == "answers-report"
        assert title in found.page.read_text(encoding="utf-8")
        content = json.loads((folder / "result.json").read_text())
        assert content["layout"] == found.layout
        assert json.loads((folder / "run.json").read_text())["kind"] == "study report"
        assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["notes"] == list(found.notes)
    assert [path.name for path in (surgery.page.parent / "plots").glob("*.png")] == ["readers.png"]


def test_a_folder_with_answers_is_a_study(tmp_path):
    write(tmp_path / "study" / "answers.csv", answer_rows(real=(40, 41), synthetic=(50, 50)))
    found = study_report(tmp_path / "study", resamples=20)
    assert found.page == tmp_path / "study-report" / "report.html"


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    rows = list(answer_rows(real=(40, 41), synthetic=(50, 50)))
    first, second, other = (report(tmp_path / "a.csv", rows, seed=seed) for seed in (0, 0, 1))
    assert first.as_dict() == second.as_dict()
    assert first.study.accuracy.groups["real"].interval != other.study.accuracy.groups["real"].interval


def test_other_programs_find_the_numbers(surgery, ranked):
    values = {(v.name, v.of): v for v in collect([surgery.page.parent]).results[0].values}
    accuracy = values["reader_accuracy", "real"]
    assert (accuracy.value, accuracy.n, accuracy.level) == (pytest.approx(128 / 153), 51, 0.95)
    assert accuracy.task == "Drusen, Edema, Normal"
    assert values["reader_accuracy_sd", "synthetic"].value == pytest.approx(0)
    assert values["reader_accuracy_difference", "synthetic minus real"].value == pytest.approx(22 / 153)
    assert ("reader_kappa", "real") in values
    assert ("reader_confidence", "synthetic") in values
    ranks = {(v.name, v.of, v.group): v for v in collect([ranked.page.parent]).results[0].values}
    lobes = ranked.study.groups["lobes"]
    w = ranks["kendalls_w", "one ranking per reader", "lobes"]
    assert (w.value, w.n) == (lobes.by_reader.friedman.w, 10)
    assert ranks["mean_rank", "ours", "airways"].n == 10


def test_combined_report_and_papers_read_it(surgery, tmp_path):
    page = combined_report(surgery.page.parent, tmp_path / "all.html").page.read_text(encoding="utf-8")
    assert "reader accuracy" in page
    found = paper_report("medisyn-v2", [surgery.page.parent], commands=COMMANDS, presets=PRESETS)
    table = next(table for table in found.paper.tables if table.id == "readers")
    assert found.missing["readers"] == ()
    assert found.state(table) in ("run", "no result found")
