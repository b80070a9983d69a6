"""Captions in other words: what is said stays true of the picture, and is said in many ways."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisyn.recipes.augment import vary
from medisyn.recipes.reword import reword
from medisyn.types import Picture, Sample


def wordings(caption: str, count: int = 400) -> set[str]:
    rng = np.random.default_rng(0)
    return {reword(caption, rng) for _ in range(count)}


@pytest.mark.parametrize(
    ("caption", "other"),
    [
        ("Frontal (PA) chest X-ray image showing COVID-19", "Frontal chest X-ray"),
        ("Frontal (PA) chest X-ray image", "PA chest X-ray"),
        ("Axial chest CT image, lung window", "CT of the chest in the lung window"),
        ("Axial brain MRI image", "MRI of the brain"),
        ("Axial abdominal CT image, soft tissue window, showing liver", "liver on CT of the abdomen"),
        ("Blood smear microscopy image of a white blood cell", "white blood cell"),
        ("Blood smear microscopy image showing burr red blood cell", "Blood film with burr cell"),
        ("Histopathology image, H&E stain, at 40x magnification", "H&E stained tissue"),
        ("Nerve ultrasound image showing nerve", "Ultrasound of a nerve"),
    ],
)
def test_a_caption_becomes_other_words_and_may_stay(caption, other):
    found = wordings(caption, 3000)
    assert {caption, other} <= found
    assert len(found) > 8


@pytest.mark.parametrize(
    ("caption", "one_of"),
    [
        ("Blood smear microscopy image of a platelet", ("platelet", "thrombocyte")),
        ("Histopathology image, Ki67 immunohistochemistry stain, at 20x magnification", ("Ki67",)),
        ("Axial pelvic CT image, soft tissue window", ("pelvi",)),
        (
            "Frontal (AP) chest X-ray image",
            ("chest X-ray", "Chest X-ray", "radiograph", "of the chest", "chest film", "CXR"),
        ),
    ],
)
def test_what_the_picture_is_of_is_always_said(caption, one_of):
    assert all(any(word in wording for word in one_of) for wording in wordings(caption))


def test_a_view_or_a_patient_is_never_another():
    assert not any("PA" in wording for wording in wordings("Frontal (AP) chest X-ray image"))
    told = wordings("Axial chest CT image of a male patient, slices of 5 mm, lung window")
    assert not any("female" in wording or "mediastinal" in wording for wording in told)


@given(st.text(alphabet="abcdefhij klmnop,.", max_size=60))  # without g: any caption's "image" may become "picture"
def test_captions_of_other_templates_stay_as_they_are(caption):
    assert reword(caption, np.random.default_rng(0)) == caption


def test_half_of_the_variants_have_the_template():
    picture = Picture(np.zeros((1, 8, 8), np.uint8))
    caption = "Nerve ultrasound image showing nerve and blood vessel"
    samples = [Sample(f"key-{n}", picture, caption, {"image_type": "ultrasound"}) for n in range(50)]
    captions = [[vary(sample, variant).caption for sample in samples] for variant in range(4)]
    assert set(captions[0]) == set(captions[1]) == {caption}
    assert len(set(captions[2])) > 10
    assert not any("vessel" in short for short in captions[3])
    assert captions[2] == [vary(sample, 2).caption for sample in samples]
