"""`medisyn evaluate --motion`: prompts and numbers that are known, and the measures of the heart phantoms."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, spearmanr

from generation import fake_clips
from generation.fake_clips import FakeClips
from medisyn.cli import main
from medisyn.errors import InputError
from medisyn.generation.clip_files import write_ffv1
from medisyn.recipes import evaluate_motion as recipe
from medisyn.recipes.evaluate_motion import (
    EJECTION,
    MeasuredClip,
    Pair,
    ejection_fraction,
    evaluate_motion,
    factor_result,
    mean_motion,
    names_severe_reduction,
    ratio_of,
)
from medisyn.recipes.generate_clips import generate_clips
from medisyn.types import Clip, Request

RECORD = {"prompt": "p", "seed": 1, "model": "m", "model_digest": "d"}
SEVERE = "Apical four-chamber view. Severely reduced left ventricular ejection fraction."
NORMAL = "Normal LVEF. No pericardial effusion."


def brightness(frames_THW: np.ndarray) -> float:
    """A measure that a test can set: the grey level of a flat clip."""
    return float(frames_THW.mean())


MEASURES = {"ejection_fraction": brightness, "motion": mean_motion}


def flat_folder(folder: Path, greys: dict[str, int], prompts: dict[str, str]) -> Path:
    """Clips of one grey, as phantoms are written: <key>/clip.mkv with caption.txt beside it."""
    for key, grey in greys.items():
        write_ffv1(folder / key / "clip.mkv", Clip(np.full((1, 4, 8, 8), grey, np.uint8)), RECORD)
        (folder / key / "caption.txt").write_text(prompts[key])
        np.savez(folder / key / "masks.npz", labels_THW=np.zeros((4, 8, 8), np.uint8))
    return folder


def measured(motion: float, factor: float | None, prompt: str = "p", seed: int = 0) -> MeasuredClip:
    return MeasuredClip("k", prompt, {"motion": motion}, seed, factor)


# ---- words


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (SEVERE, True),
        ("Severely impaired LV systolic function. EF is 21 %.", True),
        ("Left ventricular systolic function is severely reduced. Normal heart rate.", True),
        (NORMAL, False),
        ("A2C view. Preserved LV systolic function. HR 80 bpm.", False),
        ("Left ventricular systolic function is normal. LVEF 62 %.", False),
        ("Mildly reduced LVEF.", None),
        ("Normal heart rate. No pericardial effusion.", None),
        ("LVEF 20 %.", None),
        ("Normal LVEF; severely reduced LVEF.", None),
        ("", None),
    ],
)
def test_what_a_prompt_says_of_the_function(prompt, said):
    assert names_severe_reduction(prompt) is said


def test_every_caption_of_the_phantoms_is_read_as_it_is_meant():
    from medisyn.phantoms.heart.caption import FUNCTION
    from medisyn.phantoms.heart.case import GRADES

    expected = {"normal": False, "severely reduced": True}
    for grade in GRADES:
        for text in FUNCTION[grade]:
            assert names_severe_reduction(f"A4C view. {text} HR 70 bpm.") is expected.get(grade), text


# ---- numbers by hand and against scipy


def test_motion_against_factor():
    rng = np.random.default_rng(0)
    factors = np.repeat([100.0, 300.0, 500.0], 6)
    motion = factors / 100 + rng.normal(0, 1.5, 18)
    clips = [measured(m, f, seed=i % 6) for i, (m, f) in enumerate(zip(motion, factors, strict=True))]
    found = factor_result([*clips, measured(9, None), measured(float("nan"), 100)])
    assert found.spearman == pytest.approx(spearmanr(factors, motion).statistic, rel=1e-12)
    assert (found.n, found.levels, found.counts) == (18, (100.0, 300.0, 500.0), (6, 6, 6))
    assert found.means == pytest.approx([motion[i : i + 6].mean() for i in (0, 6, 12)])
    assert found.rises == bool((np.diff(found.means) > 0).all())
    assert found.spearman_interval.low < found.spearman <= found.spearman_interval.high
    steps = np.stack([motion[i : i + 6] for i in (0, 6, 12)], axis=1)
    assert found.series.n == 6
    assert found.series.monotone == int((np.diff(steps, axis=1) > 0).all(axis=1).sum())


def test_means_that_do_not_rise_and_series_that_are_not_whole():
    clips = [measured(3, 100, "a"), measured(2, 200, "a"), measured(5, 100, "b"), measured(9, 300, "b")]
    found = factor_result(clips)
    assert found.means == (4.0, 2.0, 9.0)
    assert not found.rises
    assert found.intervals[1:] == (None, None)  # one clip has no interval
    assert found.series is None
    still = factor_result([measured(1, 100), measured(1, 200)])
    assert (still.spearman, still.rises) == (0.0, False)
    assert factor_result([measured(1, 100), measured(2, 100)]) is None
    assert factor_result([measured(1, None)]) is None


def test_ratio_by_hand():
    clips, real = ([measured(value, None) for value in values] for values in ((2.0, 4.0), (1.0, 3.0, 2.0)))
    found = ratio_of("motion", clips, real)
    assert (found.value, found.n_generated, found.n_held_out) == (1.5, 2, 3)
    assert 2 / 3 <= found.interval.low < 1.5 < found.interval.high <= 4
    exact = ratio_of("motion", [measured(3.0, None)] * 4, [measured(2.0, None)] * 4)
    assert (exact.interval.low, exact.interval.high) == (1.5, 1.5)
    assert ratio_of("flicker", clips, real) is None
    assert ratio_of("motion", clips, [measured(0, None)] * 2) is None


def test_mean_motion_by_hand():
    frames = np.zeros((3, 8, 8), np.uint8)
    frames[1], frames[2] = 4, 1  # steps of 4 and 3 grey levels: 400 and 300
    assert mean_motion(frames) == 350.0


# ---- folders


def test_a_folder_of_known_clips(tmp_path):
    greys = {f"s{i}": 20 + i for i in range(6)} | {f"n{i}": 60 + 2 * i for i in range(5)} | {"other": 99}
    prompts = {key: SEVERE if key[0] == "s" else NORMAL if key[0] == "n" else "A2C view." for key in greys}
    folder = flat_folder(tmp_path / "g", greys, prompts)
    found = evaluate_motion(folder, measures=MEASURES)
    ((pair, result),) = found.pairs
    severe, normal = ([greys[key] for key in greys if key[0] == kind] for kind in "sn")
    assert (pair, result.n_present, result.n_absent) == (EJECTION, 6, 5)
    assert (result.mean_present, result.mean_absent) == (np.mean(severe), np.mean(normal))
    assert result.p == pytest.approx(mannwhitneyu(severe, normal, alternative="less").pvalue)
    assert result.superiority == 1.0
    assert found.held_out_pairs == ()
    text = found.summary()
    assert "22.5 ± 1.9 (n = 6) against 64 ± 3.2 (n = 5)" in text
    assert "No held-out clips" in text
    assert "A pair has fewer than 32 clips in an arm" in text
    written = json.loads((tmp_path / "g-motion" / "result.json").read_text())
    assert written["pairs"][0]["found"]["p"] == pytest.approx(result.p)
    assert len(written["clips"]) == 12
    assert json.loads((tmp_path / "g-motion" / "run.json").read_text())["kind"] == "evaluate motion"
    with next((tmp_path / "g-motion").rglob("pairs.csv")).open() as stream:
        assert next(iter(csv.DictReader(stream)))["pair"] == EJECTION.name


def test_the_other_way_round_is_no_success(tmp_path):
    greys = {f"s{i}": 80 + i for i in range(6)} | {f"n{i}": 20 + i for i in range(6)}
    folder = flat_folder(tmp_path / "g", greys, {key: SEVERE if key[0] == "s" else NORMAL for key in greys})
    found = evaluate_motion(folder, measures=MEASURES)
    assert found.pairs[0][1].p > 0.99
    assert found.pairs[0][1].superiority == 0.0


def test_generated_clips_against_held_out_ones(tmp_path):
    """The fake family moves its square as far as the factor says, so motion must rise with it."""
    asked = [
        Request(f"{name}-{motion}", prompt, seed=seed, motion=float(motion))
        for name, prompt, seed in (("a", SEVERE, 1), ("b", NORMAL, 2))
        for motion in (0, 20, 40, 60)
    ]
    family = FakeClips()
    generate_clips([family.resolve(one) for one in asked], family, tmp_path / "g", model=fake_clips.MODEL)
    generate_clips(fake_clips.requests(4, motion=100.0), family, tmp_path / "r", model=fake_clips.MODEL)
    found = evaluate_motion(tmp_path / "g", tmp_path / "r", measures={**MEASURES, "flicker": mean_motion})
    assert found.factor.levels == (0.0, 20.0, 40.0, 60.0)
    assert found.factor.means[0] == 0.0
    assert found.factor.rises
    assert (found.factor.series.n, found.factor.series.monotone) == (2, 2)
    assert found.factor.spearman > 0.9
    assert {ratio.measure for ratio in found.ratios} == {"flicker", "motion"}
    assert all(ratio.n_held_out == 4 for ratio in found.ratios)
    page = (tmp_path / "g-motion" / "report.html").read_text()
    assert "The means rise at every step" in page
    assert "2 of 2 series rise at every step" in page
    assert "Spearman" in found.summary()


def test_what_cannot_be_measured_is_said_clip_by_clip(tmp_path):
    def half(frames_THW: np.ndarray) -> float:
        if frames_THW.mean() > 50:
            raise InputError("too bright")
        return 1.0

    greys = {f"s{i}": 40 + i * 4 for i in range(4)}
    folder = flat_folder(tmp_path / "g", greys, dict.fromkeys(greys, SEVERE))
    found = evaluate_motion(folder, measures={"ejection_fraction": half})
    assert [one.notes for one in found.clips] == [(), (), (), ("ejection_fraction: too bright",)]
    assert found.as_dict()["clips"][3]["values"] == {"ejection_fraction": None}
    assert "Of 1 of 4 generated clips something could not be measured" in found.summary()
    assert "No pair of prompts" in found.summary()
    assert found.factor is None


def test_pairs_of_ones_own(tmp_path):
    greys = {"a": 10, "b": 12, "c": 30, "d": 31}
    folder = flat_folder(tmp_path / "g", greys, {"a": "dark", "b": "dark", "c": "light", "d": "light"})
    pair = Pair("light", "ejection_fraction", {"light": True, "dark": False}.get)
    found = evaluate_motion(folder, measures=MEASURES, pairs=[pair])
    assert found.pairs[0][1].direction == "higher"
    assert found.pairs[0][1].superiority == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "there is no folder g/ to evaluate"),
        (lambda folder: folder.mkdir(), "g/ holds no file that ends in .mkv"),
    ],
)
def test_folders_without_clips(tmp_path, make, message):
    make(tmp_path / "g")
    with pytest.raises(InputError, match=message):
        evaluate_motion(tmp_path / "g", measures=MEASURES)


# ---- the heart phantoms' measures, and the command


def test_a_clip_without_a_ventricle_has_no_ejection_fraction():
    with pytest.raises(InputError, match="no ejection fraction: the frames have no contrast"):
        ejection_fraction(np.full((16, 64, 112), 90, np.uint8))


def test_the_standard_measures_are_those_of_the_phantoms():
    assert set(recipe.standard_measures()) == {"ejection_fraction", "motion", "flicker"}


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipe, "standard_measures", lambda: MEASURES)
    greys = {"s0": 20, "s1": 22, "n0": 60, "n1": 61}
    folder = flat_folder(tmp_path / "g", greys, {key: SEVERE if key[0] == "s" else NORMAL for key in greys})
    assert main(["evaluate", str(folder), "--motion", "--against", str(folder), "--out", str(tmp_path / "o")]) == 0
    assert "held out: 21 ± 1.4 (n = 2) against 60.5" in capsys.readouterr().out
    assert main(["evaluate", str(folder), "--motion", "--extractor", "i3d"]) == 2
    assert "have no use with --motion" in capsys.readouterr().err
    assert main(["evaluate", str(folder), "--motion", "--anatomy"]) == 2
    assert "have no use with --anatomy" in capsys.readouterr().err
