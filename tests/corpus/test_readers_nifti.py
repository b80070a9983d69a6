"""NIfTI and NRRD volumes, and slices hung as radiologists expect them."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medisyn.corpus.readers import nifti, read_item, read_series_slices
from medisyn.corpus.readers.nifti import slices
from medisyn.errors import InputError, RangeError, ReadError
from medisyn.types import HU, ValueRange, Volume

NIBABEL = Path(nibabel.__file__).parent / "tests" / "data"
RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_nifti(path, array_IJK, affine_RAS=None, *, second=False, slope=None, code=1):
    affine = np.diag([2.0, 3, 4, 1]) if affine_RAS is None else affine_RAS
    made = (nibabel.Nifti2Image if second else nibabel.Nifti1Image)(array_IJK, affine)
    made.set_sform(affine, code)
    made.set_qform(None, 0)
    if slope is not None:
        made.header.set_slope_inter(*slope)
    nibabel.save(made, path)
    return path


def counting(*shape, dtype=np.int16):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_axes_and_affine_keep_every_voxel_at_its_place(tmp_path, second, suffix):
    array_IJK = counting(2, 3, 4)
    affine_RAS = np.array([[0.0, 2, 0, 5], [-3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
    volume = read_item(write_nifti(tmp_path / f"a{suffix}", array_IJK, affine_RAS, second=second))
    assert volume.array_CDHW.shape == (1, 4, 3, 2)
    assert volume.array_CDHW.dtype == np.int16
    assert volume.value_range == ValueRange(0, 23, "raw")
    for i, j, k in ((0, 0, 0), (1, 2, 3), (1, 0, 2)):
        assert volume.array_CDHW[0, k, j, i] == array_IJK[i, j, k]
        np.testing.assert_allclose(volume.affine @ [k, j, i, 1], RAS_FROM_LPS @ affine_RAS @ [i, j, k, 1])


def test_channels_and_colour_voxels(tmp_path):
    series = read_item(write_nifti(tmp_path / "a.nii", counting(2, 3, 4, 5)))
    assert series.array_CDHW.shape == (5, 4, 3, 2)
    assert series.array_CDHW[3, 2, 1, 0] == counting(2, 3, 4, 5)[0, 1, 2, 3]
    rgb = np.zeros((2, 3, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["G"][1, 2, 3] = 77
    colour = read_item(write_nifti(tmp_path / "b.nii", rgb))
    assert colour.array_CDHW.shape == (3, 4, 3, 2)
    assert colour.array_CDHW[:, 3, 2, 1].tolist() == [0, 77, 0]


@pytest.mark.parametrize(
    ("dtype", "slope", "expected"),
    [
        (np.int16, None, np.int16),
        (np.uint8, None, np.uint8),
        (np.dtype(">i2"), None, np.int16),
        (np.float32, None, np.float32),
        (np.float64, None, np.float32),
        (np.int16, (0.5, 10.0), np.float32),
    ],
)
def test_no_needless_float64(tmp_path, dtype, slope, expected):
    array = counting(2, 3, 4).astype(dtype)
    volume = read_item(write_nifti(tmp_path / "a.nii", array, slope=slope))
    assert volume.array_CDHW.dtype == expected
    assert volume.array_CDHW.dtype.isnative
    factor, offset = slope or (1, 0)
    stored = nibabel.load(tmp_path / "a.nii").dataobj.get_unscaled()
    np.testing.assert_allclose(volume.array_CDHW[0].T, stored * factor + offset)


def test_the_values_equal_nibabel_for_its_own_files():
    for name in ("anatomical.nii", "functional.nii", "example4d.nii.gz", "example_nifti2.nii.gz"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = np.asanyarray(nibabel.load(NIBABEL / name).dataobj)
        got = read_item(NIBABEL / name).array_CDHW
        np.testing.assert_allclose(got.T if expected.ndim == 4 else got[0].T, expected, rtol=1e-6)


def test_hounsfield_units_only_when_the_caller_says_ct(tmp_path):
    array = np.full((4, 4, 4), -1000, np.int16)
    array[1:3, 1:3, 1:3] = 40
    array[0, 0, 0] = -3024
    path = write_nifti(tmp_path / "a.nii", array)
    assert read_item(path).value_range == ValueRange(-3024, 40, "raw")
    assert read_item(path, modality="MR").value_range.unit == "raw"
    ct = read_item(path, modality="CT")
    assert ct.value_range == HU
    assert ct.array_CDHW.dtype == np.float32
    assert (ct.array_CDHW.min(), ct.array_CDHW.max()) == (-1024, 40)
    normalised = write_nifti(tmp_path / "b.nii", (array + 3024).astype(np.float32) / 4000)
    with pytest.raises(RangeError, match=r"looks like .0, 1."):
        read_item(normalised, modality="CT")


def test_a_mask_without_any_label_is_a_volume(tmp_path):
    volume = read_item(write_nifti(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8)))
    assert volume.value_range == ValueRange(0, 1, "raw")


def test_nifti_that_cannot_be_used(tmp_path, monkeypatch):
    with pytest.raises(ReadError, match="neither sform nor qform: left and right are unknown"):
        read_item(write_nifti(tmp_path / "a.nii", counting(2, 3, 4), code=0))
    with pytest.raises(ReadError, match="has 2 axes"):
        read_item(write_nifti(tmp_path / "a.nii", counting(2, 3)))
    with pytest.raises(RangeError, match="1 voxels are NaN"):
        read_item(write_nifti(tmp_path / "a.nii", np.where(counting(2, 3, 4) == 5, np.nan, 1).astype(np.float32)))
    path = write_nifti(tmp_path / "a.nii", counting(2, 3, 4))
    content = bytearray(path.read_bytes())
    content[296:312] = content[280:296]  # the second row of the sform repeats the first
    path.write_bytes(bytes(content))
    with pytest.raises(ReadError, match="places the voxels nowhere"):
        read_item(path)
    path = write_nifti(tmp_path / "Roe.nii", counting(2, 3, 4))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ReadError, match="NIfTI file is damaged or cut short") as caught:
        read_item(path)
    assert "Roe" not in str(caught.value)
    path = write_nifti(tmp_path / "a.nii.gz", counting(20, 30, 40))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ReadError, match=r"NIfTI file is damaged or cut short .EOFError"):
        read_item(path)
    monkeypatch.setattr(nifti, "MAX_VOXELS", 23)
    with pytest.raises(ReadError, match="claims 24 voxels, allowed are 1 to 23"):
        read_item(write_nifti(tmp_path / "a.nii", counting(2, 3, 4)))


def write_nrrd(path, array, **header):
    full = {"space": "left-posterior-superior", "space directions": np.diag([2.0, 3, 4]), "space origin": [5, 6, 7]}
    nrrd.write(str(path), array, {name: value for name, value in {**full, **header}.items() if value is not None})
    return path


@pytest.mark.parametrize(
    ("space", "signs"),
    [("left-posterior-superior", (1, 1, 1)), ("right-anterior-superior", (-1, -1, 1)), ("LAS", (1, -1, 1))],
)
def test_nrrd_spaces_become_lps(tmp_path, space, signs):
    volume = read_item(write_nrrd(tmp_path / "a.nrrd", counting(2, 3, 4), space=space))
    assert volume.array_CDHW.shape == (1, 4, 3, 2)
    assert volume.array_CDHW[0, 3, 2, 1] == counting(2, 3, 4)[1, 2, 3]
    expected = np.array(signs) * [5 + 2 * 1, 6 + 3 * 2, 7 + 4 * 3]
    np.testing.assert_allclose((volume.affine @ [3, 2, 1, 1])[:3], expected)


@pytest.mark.parametrize("axis", [0, 3])
def test_the_axis_without_a_direction_is_channels(tmp_path, axis):
    array = counting(2, 3, 4, 5)
    rows = np.diag([2.0, 3, 4]).tolist()
    rows.insert(axis, [np.nan] * 3)
    volume = read_item(write_nrrd(tmp_path / "a.nrrd", array, **{"space directions": np.array(rows)}))
    moved = np.moveaxis(array, axis, -1)
    assert volume.array_CDHW.shape == moved.T.shape
    np.testing.assert_array_equal(volume.array_CDHW, moved.transpose(3, 2, 1, 0))


def test_nrrd_that_cannot_be_used(tmp_path, monkeypatch):
    path = tmp_path / "a.nrrd"
    nrrd.write(str(path), counting(2, 3, 4), {"space": "left-posterior-superior"})
    with pytest.raises(ReadError, match="lacks space directions, space origin: where the voxels sit"):
        read_item(path)
    with pytest.raises(ReadError, match="space 'scanner-xyz' is not understood"):
        read_item(write_nrrd(path, counting(2, 3, 4), space="scanner-xyz"))
    with pytest.raises(ReadError, match="2 space axes among 2"):
        read_item(write_nrrd(path, counting(2, 3), **{"space directions": np.eye(3)[:2]}))
    write_nrrd(path, counting(20, 30, 40))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ReadError, match="NRRD data is damaged or cut short"):
        read_item(path)
    path.write_bytes(b"NRRD0004\ntype short\n\n")
    with pytest.raises(ReadError, match="NRRD header is damaged"):
        read_item(path)
    path.write_bytes(b"NRRD0004\ntype: short\ndimension: 3\n\n")
    with pytest.raises(ReadError, match="lacks sizes"):
        read_item(path)
    secret = write_nrrd(tmp_path / "detached.nrrd", counting(2, 3, 4)).read_bytes()
    path.write_bytes(secret.replace(b"encoding: ", b"data file: /etc/hostname\nencoding: "))
    with pytest.raises(ReadError, match="points to another file"):
        read_item(path)
    monkeypatch.setattr(nifti, "MAX_VOXELS", 23)
    with pytest.raises(ReadError, match="claims 24 voxels"):
        read_item(write_nrrd(path, counting(2, 3, 4)))


def body():
    """(S, P, L) voxels of a person: each side marked by its own value; feet, front and right are index 0."""
    person = np.zeros((5, 6, 7), np.int16)
    person[-1] = 100  # head
    person[2, 0, 3] = 20  # nose, in front
    person[2, 3, 0] = 30  # right hand
    person[0, 3, 3] = 10  # feet
    return person


def placed(array_DHW, axes, flips, spacing=(1.0, 1.0, 1.0)):
    """The body stored with its axes in another order and direction, at the same place in the patient."""
    shape = np.array(array_DHW.shape)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing  # S to z, P to y, L to x
    affine[3, 3] = 1
    for axis in range(3):
        if flips[axis]:
            affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
            affine[:3, axis] *= -1
    flipped = np.flip(array_DHW, [axis for axis in range(3) if flips[axis]])
    return Volume(flipped.transpose(axes)[None], affine[:, [*axes, 3]], ValueRange(0, 100, "raw"))


@settings(max_examples=48, deadline=None)
@given(st.permutations([0, 1, 2]), st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_however_a_volume_is_stored_it_hangs_the_same_way(axes, flips):
    volume = placed(body(), axes, flips)
    axial, coronal, sagittal = (slices(volume, plane) for plane in ("axial", "coronal", "sagittal"))
    assert [len(axial), len(coronal), len(sagittal)] == [5, 6, 7]
    assert axial[0].array_CHW[0, 3, 3] == 10  # feet first
    assert axial[2].array_CHW[0, 0, 3] == 20  # anterior at the top
    assert axial[2].array_CHW[0, 3, 0] == 30  # the patient's right on the image's left
    assert (coronal[3].array_CHW[0, 0] == 100).all()  # head at the top
    assert coronal[3].array_CHW[0, 2, 0] == 30  # right on the left
    assert coronal[0].array_CHW[0, 2, 3] == 20  # anterior first
    assert (sagittal[3].array_CHW[0, 0] == 100).all()
    assert sagittal[3].array_CHW[0, 2, 0] == 20  # anterior on the left
    assert sagittal[0].array_CHW[0, 2, 3] == 30  # right first
    assert [picture.provenance["position_mm"] for picture in axial] == [0, 1, 2, 3, 4]
    assert sagittal[6].provenance["position_mm"] == 6
    assert coronal[2].provenance["oblique_degrees"] == 0


def test_pixels_are_made_square_at_the_finer_spacing():
    volume = placed(body(), (0, 1, 2), (False,) * 3, spacing=(5.0, 1.0, 1.0))
    coronal = slices(volume, "coronal")[3]
    assert coronal.array_CHW.shape == (1, 25, 7)
    assert coronal.spacing_mm == (1, 1)
    assert coronal.array_CHW.dtype == np.int16
    assert coronal.array_CHW.max() <= 100  # bicubic may not leave the values of the slice
    assert coronal.array_CHW.min() >= 0
    axial = slices(volume, "axial")
    assert axial[1].array_CHW.shape == (1, 6, 7)
    assert [picture.provenance["position_mm"] for picture in axial] == [0, 5, 10, 15, 20]


def test_masks_are_enlarged_by_repeating_voxels():
    volume = placed(body(), (0, 1, 2), (False,) * 3, spacing=(3.0, 1.0, 1.0))
    cut = slices(volume, "coronal", nearest=True)[3].array_CHW[0]
    assert cut.shape == (15, 7)
    assert (cut[:3] == 100).all()
    assert cut[6:9, 0].tolist() == [30, 30, 30]
    assert set(np.unique(cut)) == {0, 10, 30, 100}


def test_an_oblique_volume_says_by_how_much():
    turn = np.radians(20)
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, 1], [np.sin(turn), np.cos(turn), 0], [np.cos(turn), -np.sin(turn), 0]]
    volume = Volume(body()[None], affine, ValueRange(0, 100, "raw"))
    assert slices(volume, "axial")[0].provenance["oblique_degrees"] == 20
    assert slices(volume, "sagittal")[0].provenance["oblique_degrees"] == 0


def test_channels_and_planes_that_do_not_exist():
    volume = placed(body(), (0, 1, 2), (False,) * 3)
    with pytest.raises(InputError, match="plane 'frontal' is unknown, allowed: axial, coronal, sagittal"):
        slices(volume, "frontal")
    with pytest.raises(InputError, match="channel 1 does not exist; the volume has 1"):
        slices(volume, channel=1)


def test_slices_of_a_file_are_axial(tmp_path):
    affine_RAS = np.diag([-1.0, -1, 1, 1])  # stored as LPS
    path = write_nifti(tmp_path / "a.nii", body().transpose(2, 1, 0), affine_RAS)
    pictures = read_series_slices(path)
    np.testing.assert_array_equal(np.stack([picture.array_CHW[0] for picture in pictures]), body())
    assert read_series_slices(write_gz_copy(path))[4].array_CHW.min() == 100


def write_gz_copy(path):
    copy = path.with_suffix(".nii.gz")
    copy.write_bytes(gzip.compress(path.read_bytes()))
    return copy


def test_brain_tumours_lie_in_their_own_slices(shared_data):
    folder = shared_data / "open" / "mri_pyradiomics_cases"
    image, label = read_item(folder / "brain1_image.nrrd"), read_item(folder / "brain1_label.nrrd")
    assert image.array_CDHW.shape == label.array_CDHW.shape == (1, 25, 256, 256)
    assert image.spacing_mm == pytest.approx((6.5, 0.78125, 0.78125))
    np.testing.assert_allclose(image.affine, label.affine, atol=1e-6)


def test_liver_on_the_left_of_the_abdominal_ct(shared_data):
    """The patient's right half holds the liver: in the mediastinal range it is fuller than the left."""
    folder = shared_data / "open" / "ct_totalsegmentator_tests" / "example_ct_dicom"
    volume = read_item(folder)
    assert volume.array_CDHW.shape == (1, 20, 512, 512)
    middle = slices(volume)[10].array_CHW[0]
    liver = (middle > 50) & (middle < 150)
    assert liver[:, :256].sum() > 1.3 * liver[:, 256:].sum()
