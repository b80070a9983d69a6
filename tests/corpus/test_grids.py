"""Volumes with different voxels sampled at the same places of the patient."""

import nibabel
import nibabel.processing
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medisyn.corpus.grids import Grid, centred_grid, sample_slice
from medisyn.corpus.readers.nifti import slices
from medisyn.geometry import flip_lps_ras
from medisyn.types import ValueRange, Volume

RAMP = np.array([2.0, 3.0, -5.0])  # per mm to the left, back and head


def volume_of(array_DHW, affine):
    return Volume(array_DHW[None], affine, ValueRange(float(array_DHW.min()) - 1, float(array_DHW.max()) + 1, "raw"))


def placed(spacing_mm, corner_mm, turn_degrees=0.0, signs=(1, 1, 1)):
    """An affine from (d, h, w) to LPS mm: d along z, h along y, w along x, turned about z."""
    c, s = np.cos(np.radians(turn_degrees)), np.sin(np.radians(turn_degrees))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, 1.0], [0, 1, 0], [1, 0, 0]]) * np.array(spacing_mm) * np.array(signs)
    affine[:3, 3] = corner_mm
    return affine


def ramp_volume(shape, affine):
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).reshape(3, -1)
    at_mm = affine[:3, :3] @ places + affine[:3, 3:]
    return volume_of((RAMP @ at_mm + 40).reshape(shape), affine)


def ramp_at(grid, d):
    h, w = np.mgrid[: grid.shape[1], : grid.shape[2]]
    at_mm = grid.affine[:3, :3] @ np.stack([np.full(h.shape, d), h, w]).reshape(3, -1) + grid.affine[:3, 3:]
    return (RAMP @ at_mm + 40).reshape(h.shape)


@pytest.mark.parametrize(
    "affine",
    [
        placed((3.0, 0.7, 0.7), (-20, -20, -20)),
        placed((2.0, 1.9, 1.7), (-15, -30, -12), turn_degrees=17),
        placed((3.5, 1.0, 1.0), (25, 25, 25), signs=(-1, -1, -1)),  # stored upside down, back to front, left to right
    ],
)
def test_a_ramp_in_the_patient_is_the_same_ramp_in_every_scan(affine):
    grid = Grid((5, 20, 24), placed((3.0, 0.5, 0.5), (-5, -5, -6)))
    scan = ramp_volume((16, 60, 60), affine)
    for d in range(5):
        values_HW, inside_HW = sample_slice(scan, grid, d)
        assert inside_HW.all()
        np.testing.assert_allclose(values_HW, ramp_at(grid, d), atol=1e-9)


def test_the_middle_voxels_where_the_spacing_is_right_already():
    affine = placed((3.0, 0.5, 0.5), (10, 20, 30))
    grid = centred_grid(ramp_volume((5, 8, 8), affine), (3.0, 0.5, 0.5), (3, 4, 6))
    assert grid.shape == (3, 4, 6)
    np.testing.assert_allclose(grid.affine @ [0, 0, 0, 1], affine @ [1, 2, 1, 1])  # (5-3)/2, (8-4)/2, (8-6)/2
    np.testing.assert_allclose(grid.affine[:3, :3], affine[:3, :3])
    larger = centred_grid(ramp_volume((5, 8, 8), affine), (3.0, 0.5, 0.5), (7, 8, 9))
    np.testing.assert_allclose(larger.affine @ [0, 0, 0, 1], affine @ [-1, 0, -1, 1])


def test_the_count_of_resampled_voxels_by_hand():
    """4 slices of 6 mm are 8 of 3 mm; the first begins where the scan begins: 6/2 - 3/2 mm before the old centre."""
    affine = placed((6.0, 1.0, 1.0), (0, 0, 0))
    grid = centred_grid(ramp_volume((4, 4, 4), affine), (3.0, 0.5, 0.5), (8, 8, 8))
    np.testing.assert_allclose(grid.affine @ [0, 0, 0, 1], [-0.25, -0.25, -1.5, 1])
    np.testing.assert_allclose(grid.affine @ [7, 7, 7, 1], [3.25, 3.25, 19.5, 1])


@settings(deadline=None, max_examples=25)
@given(
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.floats(0.2, 6)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.floats(-40, 40),
)
def test_the_grid_stays_within_half_a_voxel_of_the_centre_of_the_scan(counts, spacing_mm, shape, turn):
    affine = placed(spacing_mm, (3, -7, 11), turn)
    grid = centred_grid(volume_of(np.zeros(counts), affine), (3.0, 0.5, 0.5), shape)
    centre = affine @ [*(np.array(counts) - 1) / 2, 1]
    got = np.linalg.inv(grid.affine) @ centre
    assert np.abs(got[:3] - (np.array(shape) - 1) / 2).max() <= 0.5 + 1e-6
    np.testing.assert_allclose(np.linalg.norm(grid.affine[:3, :3], axis=0), [3.0, 0.5, 0.5])


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_slices_hang_as_the_reader_hangs_them(signs):
    array = np.random.default_rng(0).integers(0, 900, (4, 6, 6)).astype(np.int16)
    scan = volume_of(array, placed((3.0, 0.5, 0.5), (0, 0, 0), signs=signs))
    grid = centred_grid(scan, (3.0, 0.5, 0.5), (4, 6, 6))
    for d, picture in enumerate(slices(scan)):
        np.testing.assert_allclose(sample_slice(scan, grid, d)[0], picture.array_CHW[0], atol=1e-6)


def test_trilinear_values_are_those_of_nibabel():
    array = np.random.default_rng(1).normal(size=(7, 20, 18))
    scan = volume_of(array, placed((2.3, 0.9, 1.1), (-9, -9, -7), turn_degrees=11))
    grid = Grid((4, 9, 11), placed((3.0, 0.5, 0.5), (-2, -1, -4)))
    # nibabel keeps the order of the axes, so (d, h, w) may stand for (i, j, k)
    theirs = nibabel.processing.resample_from_to(
        nibabel.Nifti1Image(array, flip_lps_ras(scan.affine)), (grid.shape, flip_lps_ras(grid.affine)), order=1
    ).get_fdata()
    for d in range(4):
        values_HW, inside_HW = sample_slice(scan, grid, d)
        assert inside_HW.all()
        np.testing.assert_allclose(values_HW, theirs[d], atol=1e-6)


def test_a_voxel_reaches_to_its_edge_and_no_further():
    scan = volume_of(np.array([[[10.0, 20.0]]]), placed((1.0, 1.0, 1.0), (0, 0, 0)))
    grid = Grid((1, 1, 8), placed((1.0, 1.0, 0.5), (-1.0, 0, 0)))  # w at -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5
    values_HW, inside_HW = sample_slice(scan, grid, 0)
    assert inside_HW[0].tolist() == [False, True, True, True, True, True, False, False]
    np.testing.assert_allclose(values_HW[0, 1:6], [10, 10, 15, 20, 20])
    nearest_HW, _ = sample_slice(scan, Grid((1, 1, 2), placed((1.0, 1.0, 0.5), (0.3, 0, 0))), 0, nearest=True)
    assert nearest_HW[0].tolist() == [10, 20]  # 0.3 is nearer to 0, 0.8 to 1
