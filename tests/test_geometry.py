"""Affines, slice order and gaps, against cases that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisyn.errors import SeriesError
from medisyn.geometry import affine_from_dicom, flip_lps_ras, slice_gap, slice_normal, slice_positions

AXIAL = (1, 0, 0, 0, 1, 0)  # rows run to the patient's left, columns to the back
CORONAL = (1, 0, 0, 0, 0, -1)
SAGITTAL = (0, 1, 0, 0, 0, -1)


@pytest.mark.parametrize(
    ("orientation", "normal"),
    [
        (AXIAL, (0, 0, 1)),  # to the head
        (CORONAL, (0, 1, 0)),  # x cross -z is +y: to the back
        (SAGITTAL, (-1, 0, 0)),  # y cross -z is -x: to the patient's right
    ],
)
def test_the_normal_is_row_cross_column(orientation, normal):
    np.testing.assert_array_equal(slice_normal(orientation), normal)


@given(st.floats(0, 2 * np.pi), st.floats(0, np.pi))
def test_the_normal_of_any_plane_is_a_unit_vector_at_right_angles(turn, tilt):
    row = np.array([np.cos(turn), np.sin(turn), 0.0])
    column = np.array([-np.sin(turn) * np.cos(tilt), np.cos(turn) * np.cos(tilt), np.sin(tilt)])
    normal = slice_normal([*row, *column])
    np.testing.assert_allclose([normal @ row, normal @ column, normal @ normal], [0, 0, 1], atol=1e-12)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 1, 0, 0), (0,) * 6, (2, 0, 0, 0, 2, 0), (np.nan,) * 6])
def test_directions_that_span_no_plane_are_refused(orientation):
    with pytest.raises(SeriesError, match="not two perpendicular unit vectors"):
        slice_normal(orientation)


def test_a_short_orientation_is_refused():
    with pytest.raises(SeriesError, match="must hold 6 numbers, got 3"):
        slice_normal((1, 0, 0))


def test_slices_are_ordered_along_the_normal():
    # A sagittal series: the position along -x counts, whatever y and z are.
    positions = [(10, 5, 5), (-20, 5, 5), (0, 5, 5)]
    np.testing.assert_array_equal(slice_positions(positions, SAGITTAL), [-10, 20, 0])


def test_the_gap_is_the_median_distance():
    assert slice_gap(np.array([0.0, 5.0, 10.04, 15.0])) == pytest.approx(5.0)


def test_a_gap_of_three_hundredths_is_rounding_and_of_one_slice_is_not():
    assert slice_gap(np.array([0.0, 1.23, 2.46, 3.7])) == pytest.approx(1.23)
    with pytest.raises(SeriesError, match=r"slice gaps run from 5\.00 to 10\.00 mm, tolerance 0\.1 mm"):
        slice_gap(np.array([0.0, 5.0, 15.0, 20.0]))


def test_two_slices_at_one_place_are_refused():
    with pytest.raises(SeriesError, match=r"same position \(2 duplicates\)"):
        slice_gap(np.array([0.0, 0.0, 5.0, 5.0]))


@pytest.mark.parametrize("positions", [[], [3.0]])
def test_one_slice_is_no_volume(positions):
    with pytest.raises(SeriesError, match=f"at least 2 slices, got {len(positions)}"):
        slice_gap(np.array(positions))


def test_a_slice_without_a_position_is_refused():
    with pytest.raises(SeriesError, match="no valid ImagePositionPatient"):
        slice_gap(np.array([0.0, np.nan, 10.0]))


def test_an_axial_affine_by_hand():
    # 5 mm slices, 0.8 mm between rows, 0.7 mm between columns, first pixel at (-100, -120, 30).
    affine = affine_from_dicom(AXIAL, (-100, -120, 30), (0.8, 0.7), 5.0)
    np.testing.assert_allclose(affine @ (0, 0, 0, 1), (-100, -120, 30, 1))
    # 2 slices to the head, 10 rows to the back, 100 columns to the left.
    np.testing.assert_allclose(affine @ (2, 10, 100, 1), (-100 + 70, -120 + 8, 30 + 10, 1))


def test_a_coronal_affine_by_hand():
    affine = affine_from_dicom(CORONAL, (0, 0, 0), (2.0, 3.0), 7.0)
    np.testing.assert_allclose(affine @ (1, 1, 1, 1), (3, 7, -2, 1))


@pytest.mark.parametrize("spacing", [(0.0, 1.0), (1.0, -1.0), (np.nan, 1.0)])
def test_pixel_spacing_is_positive(spacing):
    with pytest.raises(SeriesError, match="PixelSpacing must be above 0 mm"):
        affine_from_dicom(AXIAL, (0, 0, 0), spacing, 5.0)


def test_lps_to_ras_turns_the_signs_of_x_and_y():
    lps = affine_from_dicom(AXIAL, (-100, -120, 30), (0.8, 0.7), 5.0)
    ras = flip_lps_ras(lps)
    np.testing.assert_allclose(ras @ (2, 10, 100, 1), (30, 112, 40, 1))
    np.testing.assert_array_equal(flip_lps_ras(ras), lps)
