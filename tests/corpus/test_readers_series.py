"""A folder or zip of slices: order, geometry, and every reason why slices form no volume."""

from __future__ import annotations

import zipfile
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

import build_dicom
from build_dicom import AXIAL, image, save, series, slice_pixels
from medisyn.corpus.readers import dicom, read_item, read_series_slices
from medisyn.corpus.readers.dicom_series import list_series
from medisyn.errors import InputError, RangeError, ReadError, SeriesError

TESTS = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"


def at(*heights: float) -> list[list[float]]:
    return [[-30, -40, height] for height in heights]


def test_slices_are_sorted_by_position_and_placed_in_the_patient(tmp_path):
    volume = read_item(series(tmp_path, at(10, 0, 5)))
    assert volume.array_CDHW.shape == (1, 3, 4, 6)
    assert volume.array_CDHW[0, :, 1, 2].tolist() == [10, 20, 0]  # heights 0, 5, 10
    assert volume.spacing_mm == (5, 0.5, 0.25)
    assert (volume.affine @ [0, 0, 0, 1])[:3].tolist() == [-30, -40, 0]
    assert (volume.affine @ [2, 1, 4, 1])[:3].tolist() == [-29, -39.5, 10]
    assert dict(volume.provenance) == {
        "format": "dicom", "modality": "CT", "localisers_dropped": 0, "others_dropped": 0, "duplicates_dropped": 0,
    }  # fmt: skip


def test_the_affine_equals_that_of_highdicom(tmp_path):
    tilted = [0.8, 0.6, 0, 0, 0, -1]  # oblique coronal
    normal = np.cross(tilted[:3], tilted[3:])
    positions = [list(np.array([5.0, 6, 7]) + 3 * n * normal) for n in (2, 0, 1)]
    series(tmp_path, positions, ImageOrientationPatient=tilted, FrameOfReferenceUID="1.2", StudyInstanceUID="1.3")
    volume = read_item(tmp_path)
    other = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in sorted(tmp_path.glob("*.dcm"))])
    same_order = other if np.allclose(other.affine[:, 3], volume.affine[:, 3]) else other.flip_spatial(axes=0)
    np.testing.assert_allclose(volume.affine, same_order.affine, atol=1e-9)
    np.testing.assert_array_equal(volume.array_CDHW[0], same_order.array)


def test_a_zip_of_slices_equals_the_folder(tmp_path):
    folder = series(tmp_path / "ROE_JANET", at(0, 5, 10))
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for file in folder.iterdir():
            made.write(file, f"ROE_JANET/{file.name}")
        made.writestr("readme.txt", "see the portal")
    from_folder, from_zip = read_item(folder), read_item(path)
    np.testing.assert_array_equal(from_zip.array_CDHW, from_folder.array_CDHW)
    np.testing.assert_array_equal(from_zip.affine, from_folder.affine)
    assert from_zip.provenance["others_dropped"] == 1
    assert len(read_series_slices(path, "ROE_JANET")) == 3
    assert dicom.patient_id_to_hash(path) == build_dicom.PATIENT
    assert dicom.attributes(path)["Modality"] == "CT"


def test_localisers_reports_and_repeats_are_dropped_and_counted(tmp_path):
    series(tmp_path, at(0, 5, 10))
    save(image(np.zeros((8, 8), np.int16), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), tmp_path / "scout.dcm")
    report = image(slice_pixels(0), Rows=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")
    save(report, tmp_path / "report.dcm")
    save(pydicom.dcmread(tmp_path / "001.dcm"), tmp_path / "again.dcm")
    volume = read_item(tmp_path)
    assert volume.array_CDHW.shape[1] == 3
    dropped = {name: volume.provenance[name] for name in volume.provenance if name.endswith("dropped")}
    assert dropped == {"localisers_dropped": 1, "others_dropped": 1, "duplicates_dropped": 1}


def test_several_series_are_never_chosen_silently(tmp_path):
    series(tmp_path / "a", at(0, 5, 10), SeriesInstanceUID="1.9", SeriesNumber=2)
    series(tmp_path / "b", at(0, 2), SeriesInstanceUID="1.5", SeriesNumber=1, Modality="PT")
    with pytest.raises(SeriesError, match=r"2 series lie here \(1: PT, 2 images of 6 x 4; 2: CT, 3 images of 6 x 4\)"):
        read_item(tmp_path)
    assert read_item(tmp_path, series=1).array_CDHW.shape[1] == 2
    assert read_item(tmp_path, series=2).array_CDHW.shape[1] == 3
    assert [found.number for found in list_series(tmp_path)] == [1, 2]
    assert len(read_series_slices(tmp_path, series=2)) == 3
    for wrong in (0, 3):
        with pytest.raises(InputError, match=f"series {wrong} does not exist, allowed: 1 to 2"):
            read_item(tmp_path, series=wrong)


def test_unequal_gaps_are_an_error_but_readable_as_pictures(tmp_path):
    series(tmp_path, at(0, 5, 15))
    with pytest.raises(SeriesError, match=r"gaps run from 5.00 to 10.00 mm"):
        read_item(tmp_path)
    pictures = read_series_slices(tmp_path)
    assert [picture.provenance["position_mm"] for picture in pictures] == [0, 5, 15]
    assert [picture.array_CHW[0, 1, 2] for picture in pictures] == [0, 10, 20]
    assert [picture.provenance["slice"] for picture in pictures] == [0, 1, 2]
    assert pictures[0].spacing_mm == (0.5, 0.25)


def test_two_different_slices_at_one_place(tmp_path):
    with pytest.raises(SeriesError, match=r"same position .1 duplicates"):
        read_item(series(tmp_path, at(0, 5, 5, 10)))


def test_a_tilted_gantry_is_detected(tmp_path):
    positions = [[0, 2 * n, 5 * n] for n in range(3)]  # each slice shifted by 2 mm in its plane: atan(2/5)
    with pytest.raises(SeriesError, match=r"tilted by 21.8 degrees"):
        read_item(series(tmp_path, positions))
    assert len(read_series_slices(tmp_path)) == 3


def test_slices_without_geometry_are_pictures_in_the_order_of_instance_numbers(tmp_path):
    series(tmp_path, at(0, 5, 10), ImageOrientationPatient=None)
    with pytest.raises(SeriesError, match="3 of 3 slices have no ImagePositionPatient"):
        read_item(tmp_path)
    pictures = read_series_slices(tmp_path)
    assert [picture.array_CHW[0, 1, 2] for picture in pictures] == [20, 10, 0]  # InstanceNumber runs backwards
    assert "position_mm" not in pictures[0].provenance


def test_slices_that_do_not_fit_together(tmp_path):
    series(tmp_path, at(0, 5))
    odd = image(np.full((5, 7), -1000, np.int16), ImagePositionPatient=[-30, -40, 10])
    save(odd, tmp_path / "odd.dcm")
    with pytest.raises(SeriesError, match="2 sizes: 6 x 4, 7 x 5"):
        read_item(tmp_path)
    turned = image(slice_pixels(0), ImagePositionPatient=[-30, -40, 10], ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    save(turned, tmp_path / "odd.dcm")
    with pytest.raises(SeriesError, match="different directions"):
        read_item(tmp_path)
    save(image(slice_pixels(0), ImagePositionPatient=[-30, -40, 10], RescaleSlope=None), tmp_path / "odd.dcm")
    with pytest.raises(SeriesError, match="mix the units hu, raw"):
        read_item(tmp_path)
    frames = image(np.stack([slice_pixels(0)] * 2), ImagePositionPatient=[-30, -40, 10], NumberOfFrames=2)
    save(frames, tmp_path / "odd.dcm")
    with pytest.raises(SeriesError, match="holds 2 frames"):
        read_item(tmp_path)


def test_a_series_that_is_not_hounsfield_is_refused(tmp_path):
    for number, height in enumerate((0, 5)):
        pixels = np.full((4, 6), number, np.int16)
        save(image(pixels, ImagePositionPatient=[0, 0, height]), tmp_path / f"{number}.dcm")
    with pytest.raises(RangeError, match="looks like"):
        read_item(tmp_path)


def test_folders_without_an_image(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    with pytest.raises(ReadError, match=r"no DICOM image among 2 files .0 localisers"):
        read_item(tmp_path)
    (tmp_path / "c.dcm").write_text("a text that claims to be a slice")
    with pytest.raises(ReadError, match="holds text"):
        read_item(tmp_path)
    (tmp_path / "c.dcm").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ReadError, match="expected DICOM, but the content of the file is png"):
        read_item(tmp_path)


def test_messages_name_nobody(tmp_path):
    folder = series(tmp_path / "ROE_JANET", at(0, 5, 15))
    with pytest.raises(SeriesError) as caught:
        read_item(folder)
    assert not any(word in str(caught.value) for word in ("ROE", "HOSP", "1.2.3", "2020", "dcm", "/ROE"))


def test_a_real_series_is_a_volume():
    volume = read_item(TESTS / "98892001" / "CT5N")
    assert volume.array_CDHW.shape == (1, 5, 16, 16)
    assert volume.spacing_mm[0] == 2.5
    pictures = read_series_slices(TESTS / "98892001" / "CT5N")
    assert [picture.provenance["position_mm"] for picture in pictures] == [-1.2375, 1.2625, 3.7625, 6.2625, 8.7625]
    np.testing.assert_array_equal(volume.array_CDHW[:, 0], pictures[0].array_CHW)


def test_real_series_that_form_no_volume():
    with pytest.raises(SeriesError, match=r"gaps run from 1.25 to 202.50 mm"):
        read_item(TESTS / "77654033" / "CT2")  # a selection of slices
    assert len(read_series_slices(TESTS / "77654033" / "CT2")) == 4
    with pytest.raises(SeriesError, match="different directions"):
        read_item(TESTS / "98892003" / "MR700")  # projections of an angiogram that turn around the head
    turning = read_series_slices(TESTS / "98892003" / "MR700")
    assert len(turning) == 7
    assert "position_mm" not in turning[0].provenance
    with pytest.raises(ReadError, match=r"no DICOM image among 2 files .2 localisers"):
        read_item(TESTS / "98892001" / "CT2N")


def test_the_chest_ct_of_the_archive(shared_data):
    path = shared_data / "open" / "ct_chest_lungpetctdx" / "Lung_Dx-A0001.zip"
    volume = read_item(path)
    assert volume.array_CDHW.shape == (1, 64, 512, 512)
    assert volume.value_range.unit == "hu"
    assert volume.spacing_mm == pytest.approx((5, 0.841796875, 0.841796875))
    assert (volume.affine @ [0, 0, 0, 1])[2] == -439  # as the archive's manifest says of slice 0
    assert AXIAL == [1, 0, 0, 0, 1, 0]
