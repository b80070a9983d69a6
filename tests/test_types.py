"""The travelling values: checked when made, immutable, and the same after a trip to another process."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisyn.errors import InputError, RangeError
from medisyn.types import HU, SYMMETRIC, UINT8, UNIT, Clip, Facts, Picture, Request, Sample, ValueRange, Volume

AFFINE = np.diag([5.0, 0.8, 0.7, 1.0])  # d, h, w to mm


def grey(value: float = 7, dtype: type = np.uint8) -> np.ndarray:
    return np.full((1, 2, 3), value, dtype)


def volume(affine: np.ndarray = AFFINE) -> Volume:
    return Volume(np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4), affine)


# ---- value ranges


def test_a_range_needs_a_known_unit():
    with pytest.raises(InputError, match="unit 'percent' is unknown, allowed: uint8, unit, symmetric, hu, raw"):
        ValueRange(0, 100, "percent")


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (float("nan"), 1), (0, float("nan"))])
def test_a_range_runs_upwards(low, high):
    with pytest.raises(InputError, match="must be below high"):
        ValueRange(low, high, "raw")


@pytest.mark.parametrize(
    ("value_range", "inside", "outside"),
    [(UINT8, 255, 256), (UNIT, 1.0, 1.1), (SYMMETRIC, -1.0, -1.1), (HU, 3071, 4096)],
)
def test_values_must_lie_in_their_range(value_range, inside, outside):
    assert Picture(grey(inside, np.float32), value_range).array_CHW.max() == pytest.approx(inside)
    with pytest.raises(RangeError, match=r"outside \[.*Rescale once"):
        Picture(grey(outside, np.float32), value_range)


def test_a_thousandth_of_the_range_is_forgiven_for_rounding():
    # HU spans 4095, so 4.095 beyond the end is the limit.
    Picture(grey(3075, np.float32), HU)
    with pytest.raises(RangeError, match="3076"):
        Picture(grey(3076, np.float32), HU)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_value_may_be_nan_or_infinite(bad):
    array = grey(0, np.float32)
    array[0, 1, 2] = bad
    with pytest.raises(RangeError, match="1 values are NaN or infinite"):
        Picture(array, UNIT)


# ---- shapes


def test_each_value_says_which_axes_it_expects():
    with pytest.raises(InputError, match=r"picture: expected axes C, H, W, got an array of shape \(2, 3\)"):
        Picture(np.zeros((2, 3)))
    with pytest.raises(InputError, match="clip: expected axes C, T, H, W"):
        Clip(np.zeros((1, 2, 3)))
    with pytest.raises(InputError, match="volume: expected axes C, D, H, W"):
        Volume(np.zeros((2, 2, 2)), AFFINE)


def test_an_empty_array_is_refused():
    with pytest.raises(InputError, match=r"the array is empty, shape \(1, 0, 3\)"):
        Picture(np.zeros((1, 0, 3)))


# ---- geometry


def test_spacing_is_the_length_of_the_columns():
    assert volume().spacing_mm == pytest.approx((5.0, 0.8, 0.7))
    tilted = np.eye(4)
    tilted[:3, 0] = (3, 0, 4)  # d runs obliquely, 5 mm a step
    assert volume(tilted).spacing_mm[0] == pytest.approx(5.0)


def test_micrometre_voxels_are_no_singular_matrix():
    assert volume(np.diag([1e-4, 1e-4, 1e-4, 1.0])).spacing_mm == pytest.approx((1e-4,) * 3)


@pytest.mark.parametrize(
    ("affine", "text"),
    [
        (np.eye(3), r"\(4, 4\) matrix, got shape \(3, 3\)"),
        (np.diag([1.0, 1.0, 0.0, 1.0]), "cannot be inverted"),
        (np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "cannot be inverted"),
        (np.diag([1.0, np.nan, 1.0, 1.0]), "must be finite"),
        (np.diag([1.0, 1.0, 1.0, 2.0]), "last row 0 0 0 1"),
    ],
)
def test_an_affine_must_place_voxels(affine, text):
    with pytest.raises(InputError, match=text):
        volume(affine)


@given(st.data())
def test_a_cropped_voxel_stays_where_it_was_in_the_patient(data):
    whole = volume(AFFINE @ np.array([[1, 0, 0, 3], [0, 1, 0, -7], [0, 0, 1, 11], [0, 0, 0, 1.0]]))
    start = [data.draw(st.integers(0, n - 1)) for n in (2, 3, 4)]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, (2, 3, 4), strict=True)]
    part = whole.crop(tuple(start), tuple(stop))
    assert part.array_CDHW[0, 0, 0, 0] == whole.array_CDHW[0, start[0], start[1], start[2]]
    np.testing.assert_allclose(part.affine @ (0, 0, 0, 1), whole.affine @ (*start, 1), rtol=1e-12)


@pytest.mark.parametrize(("start", "stop"), [((0, 0, 0), (3, 1, 1)), ((-1, 0, 0), (1, 1, 1)), ((1, 0, 0), (1, 1, 1))])
def test_a_crop_lies_inside(start, stop):
    with pytest.raises(InputError, match=r"does not lie inside the shape \(2, 3, 4\)"):
        volume().crop(start, stop)


# ---- immutability and travel


def test_pixels_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        Picture(grey()).array_CHW[0, 0, 0] = 1


def test_metadata_does_not_follow_the_dict_it_came_from():
    source = {"specialty": "radiology"}
    sample = Sample("a", Picture(grey()), "a caption", source)
    source["specialty"] = "surgery"
    assert sample.metadata["specialty"] == "radiology"


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.__setitem__("a", 2),
        lambda facts: facts.__delitem__("a"),
        lambda facts: facts.update(b=1),
        lambda facts: facts.pop("a"),
        lambda facts: facts.popitem(),
        lambda facts: facts.clear(),
        lambda facts: facts.setdefault("b", 1),
        lambda facts: facts.__ior__({"b": 1}),
    ],
)
def test_facts_cannot_be_changed(change):
    facts = Facts(a=1)
    with pytest.raises(TypeError, match=r"make a new value with dataclasses\.replace"):
        change(facts)
    assert facts == {"a": 1}


@pytest.mark.parametrize("trip", [lambda value: pickle.loads(pickle.dumps(value)), copy.deepcopy])
def test_values_survive_a_trip_to_another_process(trip):
    sample = Sample("a", Picture(grey(), provenance={"from": "x"}), "text", {"labels": ("one",)}, {"lung": grey()})
    back = trip(sample)
    np.testing.assert_array_equal(back.item.array_CHW, sample.item.array_CHW)
    assert back.item.provenance == {"from": "x"}
    assert back.metadata == {"labels": ("one",)}
    assert not back.item.array_CHW.flags.writeable
    request = Request("a", "a chest X-ray", 3, metadata={"row": 1})
    assert trip(request) == request
    np.testing.assert_array_equal(trip(volume()).affine, AFFINE)


def test_metadata_goes_into_json_as_an_object():
    request = Request("a", "text", 3, metadata={"row": 1})
    assert json.loads(json.dumps(dataclasses.asdict(request)))["metadata"] == {"row": 1}


def test_values_with_arrays_compare_by_identity():
    one, other = Picture(grey()), Picture(grey())
    assert one == one
    assert one != other
    assert len({one, other}) == 2


# ---- requests


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"steps": 0}, "request a: steps must be at least 1, got 0"),
        ({"guidance": -0.5}, r"guidance must be 0 or more, got -0\.5"),
        ({"guidance": float("nan")}, "guidance must be 0 or more, got nan"),
        ({"height": 0}, "height must be at least 1 pixel, got 0"),
        ({"width": -8}, "width must be at least 1 pixel, got -8"),
    ],
)
def test_a_request_refuses_what_no_model_can_do(wrong, text):
    with pytest.raises(InputError, match=text):
        Request("a", "a chest X-ray", 0, **wrong)


def test_a_request_on_the_way_to_another():
    request = Request("k", "a AND b", 1, terms=[["a", 1], ["b", 2]])
    assert request.terms == request.weighted_terms == (("a", 1.0), ("b", 2.0))
    assert Request("k", "a", 1).weighted_terms == (("a", 1.0),)
    with pytest.raises(InputError, match=r"request k: toward_share must lie in \[0, 1\], got 1.5"):
        Request("k", "a", 1, toward_share=1.5)
    with pytest.raises(InputError, match="a prompt of several terms cannot be mixed with another prompt"):
        Request("k", "x", 1, terms=(("a", 1), ("b", 1)), toward_prompt="c")


def test_a_request_for_a_clip():
    request = Request("k", "a", 1, frames=16, motion=300, appearance=0.7)
    assert (request.frames, request.motion, request.appearance) == (16, 300, 0.7)
    for wrong, message in (
        ({"frames": 0}, "request k: frames must be at least 1, got 0"),
        ({"motion": -1.0}, "request k: motion must be 0 or more, got -1.0"),
        ({"motion": float("inf")}, "request k: motion must be 0 or more, got inf"),
        ({"appearance": 1.5}, r"request k: appearance must lie in \[0, 1\], got 1.5"),
    ):
        with pytest.raises(InputError, match=message):
            Request("k", "a", 1, **wrong)
