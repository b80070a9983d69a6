"""The prompt grammar: both spellings, what stays plain text, there and back, and what is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from medisyn.errors import InputError
from medisyn.generation import grammar
from medisyn.generation.grammar import Term, format_prompt, parse_prompt
from medisyn.types import Request


def pairs(prompt: str) -> list[tuple[str, float]]:
    return [(term.text, term.weight) for term in parse_prompt(prompt)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<cardiomegaly> :0.75 AND <healthy> :0.25", [("<cardiomegaly>", 0.75), ("<healthy>", 0.25)]),
        ("0.75*<a> AND 0.25*<b>", [("<a>", 0.75), ("<b>", 0.25)]),
        ("<a>:0.75 AND <b>:.25", [("<a>", 0.75), ("<b>", 0.25)]),
        ("a cat :1.2 AND a dog AND a penguin :2.2", [("a cat", 1.2), ("a dog", 1.0), ("a penguin", 2.2)]),
        ("pleural effusion :0.5 AND\nhealthy lungs :-0.1", [("pleural effusion", 0.5), ("healthy lungs", -0.1)]),
        ("2 * large heart AND 1e-1*small heart", [("large heart", 2.0), ("small heart", 0.1)]),
        ("0.5*<a>", [("<a>", 0.5)]),
        ("chest X-ray :2", [("chest X-ray", 2.0)]),
        ("Findings: effusion AND healthy", [("Findings: effusion", 1.0), ("healthy", 1.0)]),
        (r"lungs \AND heart", [("lungs AND heart", 1.0)]),
        (r"ratio \:2", [("ratio :2", 1.0)]),
        (r"x \:abc :0.5 AND 2\*3 mm", [("x :abc", 0.5), ("2*3 mm", 1.0)]),
        (r"back\\slash AND a\b", [(r"back\slash", 1.0), (r"a\b", 1.0)]),
        ("a :0 AND b", [("a", 0.0), ("b", 1.0)]),
    ],
)
def test_terms_and_weights(prompt, expected):
    assert pairs(prompt) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        "Frontal (PA) chest X-ray image",
        "lungs and heart, and bones",
        "1:1 ratio",
        "ratio 1:1",
        "Slice thickness : 5",
        "Findings: cardiomegaly",
        "time 12:30",
        "2*3 mm nodule",
        "BRAND AND-gate SANDY",
        "HU < 10 and > 5",
        r"C:\folder",
        "a :abc",
    ],
)
def test_plain_prompts_stay_plain(prompt):
    assert parse_prompt(prompt) == (Term(prompt),)
    assert grammar.terms_for_request(prompt) == ()


WORDS = st.sampled_from(
    ["lung", "and", "1:1", "ratio", "x-ray,", "(PA)", "<5", ">", "*", "and/or", "a:b", "Heart.", "3"]
)


@given(st.lists(WORDS, min_size=1, max_size=6))
def test_ordinary_words_make_no_terms(words):
    prompt = " ".join(words)
    assume(not grammar.WEIGHT_BEHIND.fullmatch(prompt) and not prompt.startswith("3 *"))
    assert parse_prompt(prompt) == (Term(prompt),)


PIECES = st.sampled_from(["AND", " ", ":", "*", "\\", "<a>", ">", "0.5", "2", "x", "and", "-", "e", ".", "\n", "é"])
TEXTS = (st.lists(PIECES, min_size=1, max_size=8).map("".join) | st.text(st.characters(exclude_categories=["Cs"]))).map(
    str.strip
)
WEIGHTS = st.just(1.0) | st.floats(-100, 100) | st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.builds(Term, TEXTS.filter(bool), WEIGHTS), min_size=1, max_size=5))
@example([Term("a :1", 1.0), Term("2*b", 0.5)])
@example([Term("\\"), Term("AND AND", -0.25)])
def test_what_is_written_is_read_back(terms):
    weights = [term.weight for term in terms]
    try:
        total, size = math.fsum(weights), math.fsum(map(abs, weights))
    except OverflowError:
        assume(False)
    assume(abs(total) > 1e-9 * size)
    assert parse_prompt(format_prompt(terms)) == tuple(terms)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ("AND", "term 1 of 2 is empty: AND needs a prompt on each side"),
        ("<a> AND", "term 2 of 2 is empty"),
        ("<a> AND AND <b>", "term 2 of 3 is empty"),
        ("<a> :1 AND <b> :-1", r"weights of the prompt sum to zero \(\+1 -1\)"),
        ("a :0.1 AND b :0.2 AND c :-0.3", "sum to zero"),
        ("a :0", "sum to zero"),
        ("x :abc AND y", "term 1: weight 'abc' is no number"),
        ("y AND x :1,5", "term 2: weight '1,5' is no number"),
        ("x:0.5 AND y", "weight '0.5' is no number in its place.*a space before the colon"),
        ("x : 0.5 AND y", "weight '0.5' is no number in its place"),
        ("x : AND y", "weight '' is no number"),
        ("half*<a> AND y", "weight 'half' is no number. Write 0.75"),
        ("0.5*x :3 AND y", "term 1 has two weights"),
        ("x :2 :3", "term 1 has two weights"),
        ("0.5* AND y", "term 1 has a weight and no text"),
        ("x :1e999 AND y", "weight 1e999 is too large"),
    ],
)
def test_what_is_refused(prompt, message):
    with pytest.raises(InputError, match=message):
        parse_prompt(prompt)


def test_the_effective_guidance_is_the_sum_of_absolute_weights_times_guidance():
    # A1111: three prompts at 0.5 with guidance 3 push with 4.5 in all
    thirds = Request("a", "x", 0, guidance=3.0, terms=(("p", 0.5), ("q", 0.5), ("r", -0.5)))
    assert grammar.effective_guidance(thirds) == pytest.approx(4.5, rel=1e-15)
    assert grammar.effective_guidance(Request("a", "x", 0, guidance=7.0)) == 7.0
    assert grammar.effective_guidance(Request("a", "x", 0)) is None


def test_each_term_has_a_window_of_its_own():
    request = Request("a", "x", 0, terms=(("short", 1.0), ("long text cut", 0.5)), toward_share=0.5)
    assert grammar.lost_words(request, lambda text: "cut" if "cut" in text else "") == "cut"
    assert grammar.lost_words(Request("a", "fits", 0), lambda text: "") == ""


def test_an_unknown_token_names_the_nearest():
    def known():
        return ["<healthy>", "<cardiomegaly>", "<|endoftext|>"]

    grammar.check_tokens([Request("k", "<Healthy> lungs", 0, negative_prompt="<cardiomegaly>")], known)
    with pytest.raises(InputError, match=r"request k: the model knows no token <cardiomegally>.*mean '<cardiomegaly>'"):
        grammar.check_tokens([Request("k", "x", 0, terms=(("a", 1), ("<cardiomegally>", 1)))], known)
    with pytest.raises(InputError, match=r"no token <b>. It has learnt none"):
        grammar.check_tokens([Request("k", "x", 0, negative_prompt="<b>")], list)


def test_the_model_is_not_asked_for_tokens_when_there_are_none():
    def never():
        raise AssertionError("asked")

    grammar.check_tokens([Request("k", "HU <5 and >3, 2 < 3 > 1", 0)], never)
