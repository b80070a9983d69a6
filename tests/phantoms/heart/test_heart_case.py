"""What a heart phantom shows, how it is drawn, and what its caption says of it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from medisyn.errors import InputError
from medisyn.phantoms.heart import GRADES, VIEWS, Case, draw_case
from medisyn.phantoms.heart.caption import write_caption


@pytest.mark.parametrize(
    ("percent", "grade"),
    [
        (75, "normal"), (55, "normal"), (54.9, "mildly reduced"), (45, "mildly reduced"), (44, "moderately reduced"),
        (30, "moderately reduced"), (29, "severely reduced"), (10, "severely reduced"),
    ],
)  # fmt: skip
def test_grades_by_their_limits(percent, grade):
    assert Case(ejection_fraction=percent).grade == grade


@pytest.mark.parametrize(
    ("ml", "word"), [(0, "no"), (60, "small"), (99, "small"), (100, "moderate"), (500, "moderate"), (501, "large")]
)
def test_effusions_by_their_limits(ml, word):
    assert Case(effusion_ml=ml).effusion_word == word


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"view": "apical four chamber"}, "Did you mean 'apical four-chamber'"),
        ({"ejection_fraction": 80}, "ejection fraction must lie in 10 to 75 percent, got 80"),
        ({"heart_rate": 30}, "heart rate must lie in 45 to 140"),
        ({"effusion_ml": 20}, "effusion must lie in 60 to 700"),
    ],
)
def test_what_no_heart_may_be(wrong, text):
    with pytest.raises(InputError, match=text):
        Case(**wrong)


def test_draws_keep_to_what_is_given_and_cover_it():
    cases = [draw_case(seed) for seed in range(800)]
    for grade in GRADES:
        assert 150 < sum(case.grade == grade for case in cases) < 250
    for view in VIEWS:
        assert 340 < sum(case.view == view for case in cases) < 460
    words = [case.effusion_word for case in cases]
    assert 420 < words.count("no") < 540
    assert min(words.count(word) for word in ("small", "moderate", "large")) > 60
    assert all(case.ejection_fraction == int(case.ejection_fraction) for case in cases)
    few = [draw_case(seed, ["severely reduced"], [VIEWS[1]]) for seed in range(30)]
    assert {(case.grade, case.view) for case in few} == {("severely reduced", VIEWS[1])}
    assert draw_case(3) == draw_case(3)


def test_vigorous_hearts_are_of_normal_function_and_fast_and_the_others_stay():
    plain, half = ([draw_case(seed, vigorous=share) for seed in range(400)] for share in (0.0, 0.5))
    changed = [now for before, now in zip(plain, half, strict=True) if now != before]
    assert 160 < len(changed) < 240
    assert {case.grade for case in changed} == {"normal"}
    assert min(case.heart_rate for case in changed) < 85
    assert max(case.heart_rate for case in changed) > 135
    assert all(80 <= case.heart_rate <= 140 for case in changed)
    assert {draw_case(seed, vigorous=1.0).grade for seed in range(40)} == {"normal"}


def test_draws_from_unknown_words_are_refused():
    with pytest.raises(InputError, match="grades to draw from: 'bad' is not allowed"):
        draw_case(0, ["bad"])
    with pytest.raises(InputError, match="views to draw from: an empty list"):
        draw_case(0, views=[])
    with pytest.raises(InputError, match="vigorous must lie in 0 to 1"):
        draw_case(0, vigorous=2.0)
    with pytest.raises(InputError, match="vigorous hearts have normal function, which the given grades leave out"):
        draw_case(0, ["severely reduced"], vigorous=0.1)


# ---- captions


def captions(case: Case, count: int = 60) -> list[str]:
    return [write_caption(case, np.random.default_rng(seed)) for seed in range(count)]


@pytest.mark.parametrize("grade", GRADES)
def test_a_caption_never_names_another_grade_or_view(grade):
    percent = {"normal": 62.0, "mildly reduced": 50.0, "moderately reduced": 37.0, "severely reduced": 20.0}[grade]
    texts = captions(Case(VIEWS[1], percent))
    for text in texts:
        assert not any(other.split()[0] in text.lower() for other in GRADES[1:] if other != grade), text
        assert "four" not in text
        assert "A4C" not in text
        assert all(number == f"{percent:.0f}" for number in re.findall(r"(\d+) %", text)), text
    told = np.mean([any(word in text for word in ("ejection", "LVEF", "systolic")) for text in texts])
    assert 0.75 < told < 1
    assert len(set(texts)) > 30


def test_an_effusion_is_always_told_and_its_absence_often():
    for ml, word in ((70.0, "small"), (300.0, "moderate"), (600.0, "large")):
        for text in captions(Case(effusion_ml=ml)):
            assert re.search(rf"{word} pericardial effusion|Pericardial effusion, {word}", text, re.IGNORECASE), text
    without = captions(Case())
    denied = [bool(re.search(r"no pericardial|effusion is absent", text, re.IGNORECASE)) for text in without]
    assert all(said == ("pericardial" in text.lower()) for said, text in zip(denied, without, strict=True))
    assert 0.5 < np.mean(denied) < 0.9


def test_the_rate_and_its_name():
    for rate, name in (
        (50, "Bradycardia"),
        (60, "Normal heart rate"),
        (100, "Normal heart rate"),
        (120, "Tachycardia"),
    ):
        texts = " ".join(captions(Case(heart_rate=rate)))
        assert {word for word in ("Bradycardia", "Normal heart rate", "Tachycardia") if word in texts} == {name}
        assert set(re.findall(r"(\d+) bpm", texts)) == {str(rate)}


def test_a_caption_is_never_empty():
    assert all(text for text in captions(Case(), 1500))
