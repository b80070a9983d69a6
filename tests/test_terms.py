"""The words by which a corpus is counted."""

from __future__ import annotations

from medisyn.terms import IMAGE_TYPE_OF_MODALITY, IMAGE_TYPES, SPECIALTIES


def test_the_terms_are_those_of_the_papers():
    assert len(set(SPECIALTIES)) == len(SPECIALTIES) == 11
    assert len(set(IMAGE_TYPES)) == len(IMAGE_TYPES)


def test_a_modality_leads_to_an_image_type_that_exists():
    assert set(IMAGE_TYPE_OF_MODALITY.values()) <= set(IMAGE_TYPES)
    assert IMAGE_TYPE_OF_MODALITY["CT"] == "computed tomography"
    assert "CR" not in IMAGE_TYPE_OF_MODALITY  # a computed radiograph may show any part of the body
