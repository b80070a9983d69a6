"""The grid of a volume file: what is refused, and resampling by hand, against scipy and by its properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from generation.volumes import RECORD, ct, masks, oblique_affine, of, upright_affine
from medisyn.errors import InputError, RangeError
from medisyn.generation.volume_files import resample
from medisyn.generation.volume_files.grid import hu_int16
from medisyn.generation.volume_files.record import derivation, full_record, long_string, uid
from medisyn.generation.volume_files.structures import STRUCTURES, checked_masks
from medisyn.types import HU, UNIT, Picture, ValueRange, Volume

# ---- what a file can hold


def test_hu_are_rounded_half_to_even():
    got = hu_int16(of([[[-1000.5, 0.5, 1.5, 40.4]]]))
    assert got.dtype == np.int16
    np.testing.assert_array_equal(got, [[[-1000, 0, 2, 40]]])


def test_a_picture_has_no_place_in_the_patient():
    with pytest.raises(InputError, match="knows its spacing and place in the patient; got Picture"):
        hu_int16(Picture(np.zeros((1, 2, 2), np.uint8)))  # type: ignore[arg-type]


def test_two_channels_are_no_ct():
    with pytest.raises(InputError, match="one channel, the volume has 2"):
        hu_int16(Volume(np.zeros((2, 2, 2, 2)), np.eye(4)))


def test_a_volume_in_another_unit_is_refused():
    with pytest.raises(RangeError, match="the volume is in 'unit'"):
        hu_int16(Volume(np.zeros((1, 2, 2, 2)), np.eye(4), UNIT))


def test_values_of_0_to_1_called_hu_are_refused():
    with pytest.raises(RangeError, match="not Hounsfield units"):
        hu_int16(of(np.linspace(0, 1, 8).reshape(2, 2, 2)))


def test_hu_beyond_16_bits_are_refused_and_the_last_that_fit_are_not():
    wide = ValueRange(-1024, 40000, "hu")
    assert hu_int16(of([[[-1000, 32767]]], value_range=wide)).max() == 32767
    with pytest.raises(RangeError, match="-1000 to 32768 HU, the file holds -32768 to 32767"):
        hu_int16(of([[[-1000, 32768]]], value_range=wide))


def test_nan_never_becomes_a_volume():
    with pytest.raises(RangeError, match="1 values are NaN"):
        of([[[0, np.nan]]])


def test_sheared_axes_are_refused_and_oblique_ones_are_not():
    hu_int16(ct(affine=oblique_affine()))
    sheared = upright_affine()
    sheared[1, 0] = 3 * np.tan(np.radians(10))  # slices shifted to the back as they rise: a gantry tilted by 10 degrees
    with pytest.raises(InputError, match=r"two axes meet at 80\.00 degrees"):
        hu_int16(ct(affine=sheared))


# ---- masks


def test_masks_come_back_as_bytes_in_a_fixed_order():
    given_masks = {name: mask.astype(np.int64) for name, mask in reversed(masks().items())}
    got = checked_masks(ct(), given_masks)
    assert list(got) == ["lobe", "airway", "vessel"]
    assert all(mask.dtype == np.uint8 for mask in got.values())
    np.testing.assert_array_equal(got["lobe"], masks()["lobe"])


@pytest.mark.parametrize(
    ("name", "mask", "text"),
    [
        ("lobes", np.zeros((4, 5, 6)), "'lobes' is unknown, allowed: lobe, airway.*Did you mean 'lobe'"),
        ("lobe", np.zeros((4, 5, 5)), r"shape \(4, 5, 5\), its CT \(4, 5, 6\)"),
        ("lobe", np.full((4, 5, 6), 6), "'lobe' holds 6; allowed are whole numbers from 0 to 5"),
        ("airway", np.full((4, 5, 6), 0.5), "'airway' holds 0.5; allowed are whole numbers from 0 to 1"),
    ],
)
def test_masks_that_do_not_belong_to_the_ct_are_refused(name, mask, text):
    with pytest.raises(InputError, match=text):
        checked_masks(ct(), {name: mask})


def test_every_structure_has_a_code_and_a_colour_of_its_own():
    every = [one for labels in STRUCTURES.values() for one in labels]
    for values in ([one.name for one in every], [one.code for one in every], [one.colour for one in every]):
        assert len(set(values)) == len(values)


def test_codes_are_those_that_pydicom_knows():
    from pydicom.sr.codedict import codes

    known = {
        "left upper lobe": codes.SCT.StructureOfUpperLobeOfLeftLung,
        "right middle lobe": codes.SCT.StructureOfMiddleLobeOfRightLung,
        "airway": codes.SCT.TracheaAndBronchus,
        "vessel": codes.SCT.BloodVessel,
        "heart": codes.SCT.Heart,
        "aorta": codes.SCT.Aorta,
        "pleural effusion": codes.SCT.PleuralEffusion,
    }
    every = {one.name: one for labels in STRUCTURES.values() for one in labels}
    for name, code in known.items():
        assert every[name].code == code.value
        assert every[name].meaning.lower() in code.meaning.lower()


# ---- the record


def test_a_record_that_does_not_say_what_made_the_volume_is_refused():
    with pytest.raises(InputError, match="lacks seed, model_digest; needed are prompt, seed, model, model_digest"):
        full_record({"prompt": "x", "model": "y", "model_digest": ""})


def test_seed_zero_is_a_seed():
    assert full_record({**RECORD, "seed": 0})["seed"] == 0


def test_a_long_prompt_is_cut_and_known_by_its_hash():
    prompt = "No pleural effusion. " * 500
    text = derivation(full_record({**RECORD, "prompt": prompt}), 1024)
    assert len(text) == 1024
    assert text.endswith("[cut; 10499 characters in all]")  # 500 * 21 less the last space
    other = derivation(full_record({**RECORD, "prompt": prompt + "Large mass."}), 1024)
    assert other.split("SHA-256 ")[1][:64] != text.split("SHA-256 ")[1][:64]


def test_texts_for_dicom_hold_no_control_characters_and_no_backslash():
    assert long_string("runs\\a\x1bb\n c") == "runs/a b c"
    assert len(long_string("x" * 80)) == 64
    assert long_string("é" * 80) == "é" * 32  # two bytes each


def test_uids_follow_from_their_parts_and_from_how_they_are_parted():
    assert uid("a", "b") == uid("a", "b")
    assert len({uid("a", "b"), uid("ab"), uid("b", "a"), uid("a", "b", "")}) == 4
    assert uid("a").startswith("2.25.")


# ---- resampling


def test_twice_the_slices_by_hand():
    # New centres lie at old places -0.25, 0.25, 0.75, ..., 3.25; the outer two repeat the border.
    volume = of(np.array([0, 10, 20, 30]).reshape(4, 1, 1) * np.ones((1, 2, 2)), upright_affine((1.0, 1.5, 1.25)))
    got, _ = resample(volume, shape=(8, 2, 2))
    np.testing.assert_allclose(got.array_CDHW[0, :, 0, 0], [0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30])
    assert got.spacing_mm == (0.5, 1.5, 1.25)
    np.testing.assert_allclose(got.affine[:3, 3], [-10, -20, -30.25])  # a quarter voxel towards the feet


def test_half_the_slices_by_hand_with_a_mask():
    # New centres lie at old places 0.5 and 2.5: means of two; the mask takes the later of two voxels equally near.
    volume = of(np.array([0, 10, 20, 40]).reshape(4, 1, 1))
    got, labels = resample(volume, {"lobe": np.array([1, 2, 3, 4]).reshape(4, 1, 1)}, shape=(2, 1, 1))
    np.testing.assert_allclose(got.array_CDHW[0].ravel(), [5, 30])
    assert labels["lobe"].ravel().tolist() == [2, 4]


def test_linear_interpolation_equals_scipy():
    rng = np.random.default_rng(0)
    volume = of(rng.normal(0, 300, (6, 5, 7)).clip(-1000, 1000), oblique_affine())
    got, labels = resample(volume, {"lobe": (volume.array_CDHW[0] > 0).astype(np.uint8)}, spacing_mm=(2.0, 2.0, 0.9))
    D, H, W = got.array_CDHW.shape[1:]
    places = np.indices((D, H, W)).reshape(3, -1)
    old = np.linalg.solve(volume.affine, got.affine @ np.vstack([places, np.ones(places.shape[1])]))[:3]
    wanted = ndimage.map_coordinates(volume.array_CDHW[0].astype(float), old, order=1, mode="nearest")
    np.testing.assert_allclose(got.array_CDHW[0].ravel(), wanted, atol=1e-3)  # float32 of values up to 1000
    wanted = ndimage.map_coordinates((volume.array_CDHW[0] > 0).astype(float), old + 1e-9, order=0, mode="nearest")
    np.testing.assert_array_equal(labels["lobe"].ravel(), wanted)


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(*[st.integers(1, 7)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.one_of(st.none(), st.tuples(*[st.floats(0.5, 6)] * 3)),
)
def test_the_centre_stays_and_a_ramp_stays_a_ramp(shape, wanted_shape, spacing):
    affine = oblique_affine()
    slope = np.array([1.0, -2.0, 0.5])

    def ramp(grid_shape, grid_affine):
        return (
            np.einsum("i,idhw->dhw", slope @ grid_affine[:3, :3], np.indices(grid_shape)) + slope @ grid_affine[:3, 3]
        )

    volume = of(ramp(shape, affine), affine)
    asked = {"shape": wanted_shape} if spacing is None else {"spacing_mm": spacing}
    got, labels = resample(volume, {"airway": np.ones(shape, np.uint8)}, **asked)
    new_shape = got.array_CDHW.shape[1:]
    if spacing is None:
        assert new_shape == wanted_shape
        np.testing.assert_allclose(np.multiply(got.spacing_mm, new_shape), np.multiply(volume.spacing_mm, shape))
    else:
        np.testing.assert_allclose(got.spacing_mm, spacing)
        extent_change = np.abs(np.multiply(got.spacing_mm, new_shape) - np.multiply(volume.spacing_mm, shape))
        one_voxel = np.where(np.equal(new_shape, 1), np.inf, np.divide(got.spacing_mm, 2) + 1e-9)
        assert (extent_change <= one_voxel).all()
    middle, new_middle = (np.subtract(shape, 1) / 2), (np.subtract(new_shape, 1) / 2)
    np.testing.assert_allclose(got.affine @ [*new_middle, 1], affine @ [*middle, 1], atol=1e-9)
    old = np.linalg.solve(
        affine, got.affine @ np.vstack([np.indices(new_shape).reshape(3, -1), np.ones(got.array_CDHW.size)])
    )
    inside = ((old[:3].T >= 0) & (np.subtract(shape, 1) >= old[:3].T)).all(axis=1)
    np.testing.assert_allclose(got.array_CDHW.ravel()[inside], ramp(new_shape, got.affine).ravel()[inside], atol=1e-3)
    assert labels["airway"].shape == new_shape
    assert labels["airway"].all()


def test_one_number_is_the_spacing_of_all_three_axes():
    got, _ = resample(ct((4, 6, 8)), spacing_mm=1.5)
    assert got.spacing_mm == pytest.approx((1.5, 1.5, 1.5))
    assert got.array_CDHW.shape == (1, 8, 6, 7)  # 12, 9 and 10 mm
    assert got.value_range == HU


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({}, "either spacing_mm or shape"),
        ({"spacing_mm": 1.0, "shape": (2, 2, 2)}, "either spacing_mm or shape"),
        ({"shape": (2, 2)}, r"three whole numbers of at least 1 \(D, H, W\), got \(2, 2\)"),
        ({"shape": (2, 2, 0)}, "three whole numbers of at least 1"),
        ({"shape": (2, 2, 1.5)}, "three whole numbers of at least 1"),
        ({"spacing_mm": 0}, "one or three numbers above 0"),
        ({"spacing_mm": (1, 2)}, "one or three numbers above 0"),
        ({"spacing_mm": float("nan")}, "one or three numbers above 0"),
        ({"spacing_mm": 0.001}, "at most 2048 a side"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(asked, text):
    with pytest.raises(InputError, match=text):
        resample(ct(), **asked)


def test_masks_of_another_shape_are_not_resampled():
    with pytest.raises(InputError, match=r"mask 'lobe' has shape \(4, 5, 5\), its CT \(4, 5, 6\)"):
        resample(ct(), {"lobe": np.zeros((4, 5, 5))}, shape=(2, 2, 2))
