"""Caption templates: fields, optional parts, the draw."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisyn.corpus import captions
from medisyn.errors import ConfigError, ReadError

TEMPLATE = captions.parse("Frontal[ ({projection})] chest X-ray image[ showing {finding}[ on the {side}]]")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"projection": "AP", "finding": "effusion"}, "Frontal (AP) chest X-ray image showing effusion"),
        ({"projection": "", "finding": "effusion"}, "Frontal chest X-ray image showing effusion"),
        ({}, "Frontal chest X-ray image"),
        ({"side": "left"}, "Frontal chest X-ray image"),  # the inner part falls with the outer one
        ({"finding": "nodule", "side": "left"}, "Frontal chest X-ray image showing nodule on the left"),
    ],
)
def test_optional_parts_fall_when_their_field_is_empty(values, expected):
    assert captions.render(TEMPLATE, values) == expected


def test_a_field_outside_brackets_must_be_filled():
    template = captions.parse("Axial CT image, {window} window")
    assert captions.render(template, {"window": "lung"}) == "Axial CT image, lung window"
    with pytest.raises(ReadError, match="field 'window' is empty"):
        captions.render(template, {"window": ""})
    assert captions.render_optional(template, {}) == ""


def test_runs_of_spaces_become_one():
    assert captions.render(captions.parse("A  [{x} ] b"), {"x": "1"}) == "A 1 b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" ", "is empty"),
        ("a ] b", "']' at character 3 closes nothing"),
        ("a [b", "'\\[' is never closed"),
        ("a {b", "must be followed by a field name"),
        ("a {} b", "must be followed by a field name"),
        ("a } b", "'}' at character 3 closes nothing"),
    ],
)
def test_a_broken_template_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        captions.parse(text)


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(ConfigError, match=r"'findng' is not defined; known: finding, side. Did you mean 'finding'\?"):
        captions.check_fields(captions.parse("x[ {findng}]"), ["finding", "side"], "x[ {findng}]")


def test_the_fields_of_a_template():
    assert TEMPLATE.fields == {"projection", "finding", "side"}


def test_the_draw_is_fixed_by_the_key_and_even_over_keys():
    templates = [captions.parse(text) for text in ("one", "two", "three")]
    drawn = Counter(captions.render(captions.draw(templates, f"key-{n}"), {}) for n in range(3000))
    assert all(900 < drawn[name] < 1100 for name in ("one", "two", "three"))  # 1000 +- 4 standard deviations
    assert captions.draw(templates, "a") is captions.draw(templates, "a")


@given(st.text(alphabet=st.characters(exclude_characters="[]{}"), min_size=1).filter(str.strip))
def test_plain_text_is_kept(text):
    assert captions.render(captions.parse(text), {}) == " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "expected"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (list("abc"), "a, b and c")]
)
def test_words_are_joined_as_running_text(words, expected):
    assert captions.join_words(words) == expected
