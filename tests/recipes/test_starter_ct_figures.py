"""`benchmarks/starter_ct.py`: verdicts from values by hand, one stage on a random model, and the table."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import build_medsyn as build
from medisyn.families.medsyn.cascade import MedSyn
from medisyn.phantoms.folder import write_phantoms

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "starter_ct.py"


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("starter_ct_figures", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(SCRIPT.parent))  # as when the script is run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


class Known:
    """A bench whose volumes measure what the test says."""

    def __init__(self, arms, normals=(), denied=()):
        self.arms, self.normals, self.denied = arms, normals, denied

    def made(self, name, prompt):
        return self.arms[name]

    def normal(self, measure):
        return np.array([row[measure] for row in self.normals], dtype=float)

    def denying(self, finding, measure):
        assert finding == "effusion"
        return np.array([row[measure] for row in self.denied], dtype=float)


def rows(*values):
    return [{"effusion_ml": value} for value in values]


def test_a_pair_is_judged_by_normal_phantoms(figures):
    normals = rows(*range(41), None)
    arms = {"effusion-present": rows(*range(500, 508)), "effusion-absent": rows(0, *range(2, 9), float("nan"))}
    found = figures.pair(Known(arms, normals, rows(0, 2, 30, None)), "effusion")
    assert found["normal_range"] == pytest.approx((1, 39))
    assert found["n_normal"] == 41
    assert found["medians"] == {"present": 503.5, "absent": 4.5}
    assert (found["n_present"], found["n_absent"], found["not_measured"]["absent"]) == (8, 8, 1)
    assert found["p"] == pytest.approx(1 / 12870, rel=0.05)  # exact Mann-Whitney: 1 of 16 over 8
    assert found["absent_in_range"] == 7 / 9  # what could not be measured is not normal
    assert found["reached"] == {"p < 0.001": True, "absent inside the normal range": False}
    assert (found["phantoms_denying"]["inside"], found["phantoms_denying"]["n"]) == (2, 4)
    measured = figures.pair(Known({**arms, "effusion-absent": rows(0, *range(2, 9))}, normals), "effusion")
    assert measured["reached"]["absent inside the normal range"] is True  # 7 of 8 is not told from 95 %
    text = figures.markdown({"stages": {"effusion": json.loads(json.dumps(found))}})
    assert "| effusion | superiority, p = " in text
    assert "| effusion | the same of held-out phantoms whose report denies it | 50.0% | " in text
    assert measured["phantoms_denying"] is None
    assert "held-out" not in figures.markdown({"stages": {"effusion": measured}})


def test_phantoms_that_deny_a_finding_are_told_by_their_reports(figures, tmp_path):
    write_phantoms(tmp_path / "phantoms", 6, size=32, findings=("none", "bullae"))
    bench = figures.Bench("", tmp_path / "phantoms", 6, tmp_path / "out", normals=tmp_path / "phantoms")
    reports = [f"{one['findings_text']} {one['impression_text']}".lower() for one in bench.truths()]
    deny = ["no bullae" in text or "no emphysema" in text for text in reports]
    assert 0 < sum(deny) < 6
    np.testing.assert_array_equal(bench.denying("bullae", "laa950_percent"), bench.normal("laa950_percent")[deny])
    assert (tmp_path / "out" / "held-out.json").is_file()
    for asked in figures.PAIRS.values():
        assert len(bench.denying(asked.finding, asked.measure)) <= 6


def test_a_side_without_fluid_is_wrong(figures):
    def chest(fluid_left, fluid_right, air_left=2.0, air_right=2.5):
        air = dict.fromkeys(figures.LEFT_LUNG, air_left / 2) | dict.fromkeys(figures.RIGHT_LUNG, air_right / 3)
        return {"effusion_left_ml": fluid_left, "effusion_right_ml": fluid_right, **air}

    arms = {
        "side-left": [chest(3.0, 1.0, air_left=1.0)] * 9 + [chest(0.0, 0.0)],
        "side-right": [chest(3.0, 10.0, air_right=1.0)] * 8 + [chest(float("nan"), float("nan"))] * 2,
    }
    found = figures.side(Known(arms, [chest(0.0, 0.0, air_left=1.9 + 0.01 * number) for number in range(40)]))
    assert (found["share"], found["n"]) == (0.85, 20)
    assert found["right"] == {"left": {"n": 10, "right": 9}, "right": {"n": 10, "right": 8}}
    assert found["reached"] == {"right in at least 90 %": False}
    assert found["interval"]["low"] < 0.85 < found["interval"]["high"]
    assert found["lungs"]["right"] == {"left": {"n": 10, "right": 9}, "right": {"n": 10, "right": 8}}
    low, high = found["lungs"]["usual_left_share"]
    assert 1.9 / 4.4 < low < high < 2.3 / 4.8
    text = figures.markdown({"stages": {"side": json.loads(json.dumps(found))}})
    assert "| side | side of the fluid right | 85.0% |" in text
    assert "| side | side of the small lung right | 85.0% |" in text


def test_one_stage_of_a_random_model_is_kept_and_put_into_the_table(figures, tmp_path, capsys):
    MedSyn(build.base()).save(tmp_path / "model")
    write_phantoms(tmp_path / "phantoms", 2, size=32)
    arguments = [str(tmp_path / "model"), "--phantoms", str(tmp_path / "phantoms"), "--out", str(tmp_path / "out")]
    figures.main([*arguments, "--count", "2", "--only", "segmentation", "--dtype", "float32"])
    found = json.loads((tmp_path / "out" / "figures.json").read_text())
    stage = found["stages"]["segmentation"]
    assert stage["dice"]["report, lobe"]["n"] == 2
    gap = stage["dice"]["report, lobe"]["mean"] - stage["dice"]["classical, lobe"]["mean"]
    assert stage["differences"]["report against classical, lobe"]["mean"] == pytest.approx(gap)
    assert "| segmentation | Dice: report, lobe |" in (tmp_path / "out" / "figures.md").read_text()
    stamp = (tmp_path / "out" / "segmentation.json").stat().st_mtime_ns
    figures.main([*arguments, "--count", "2", "--only", "segmentation", "--dtype", "float32"])
    assert (tmp_path / "out" / "segmentation.json").stat().st_mtime_ns == stamp
    figures.main([*arguments, "--only", "speed", "--dtype", "float32"])
    found = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert 0 < found["stages"]["speed"]["median_s"] <= found["stages"]["speed"]["worst_s"] < 60
    with pytest.raises(SystemExit):
        figures.main([*arguments, "--only", "lobe"])
    assert "--only 'lobe' is unknown" in capsys.readouterr().err


def test_vessels_are_compared_inside_the_lungs(figures):
    lobes, vessel = np.zeros((2, 2, 2), np.uint8), np.ones((2, 2, 2), np.uint8)
    lobes[0] = 3
    assert figures._in_lungs({"vessel": vessel, "airway": vessel}, lobes)["vessel"].sum() == 4
    assert figures._in_lungs({"vessel": vessel, "airway": vessel}, lobes)["airway"].sum() == 8
