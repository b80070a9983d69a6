"""DICOM of a generated CT: tags by hand, voxels through three readers, marks of a synthetic object, two validators."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from generation.volumes import AFFINES, RECORD, assert_same_patient, ct, masks
from medisyn.corpus.readers import read_item
from medisyn.errors import InputError
from medisyn.generation.volume_files import resample, write_dicom_ct, write_dicom_seg
from medisyn.generation.volume_files.dicom import ct_slices
from medisyn.generation.volume_files.segmentation import dicom_seg

# ---- the CT series


def test_a_slice_by_hand(tmp_path: Path):
    paths = write_dicom_ct(tmp_path / "ct", ct(), RECORD)
    assert [path.name for path in paths] == ["0001.dcm", "0002.dcm", "0003.dcm", "0004.dcm"]
    third = pydicom.dcmread(paths[2])
    assert third.SOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
    assert third.ImagePositionPatient == [-10, -20, -24]  # two gaps of 3 mm above -30
    assert third.ImageOrientationPatient == [1, 0, 0, 0, 1, 0]  # rows run to the left, columns to the back
    assert third.PixelSpacing == [1.5, 1.25]  # between rows, between columns
    assert (third.SliceThickness, third.SpacingBetweenSlices, third.InstanceNumber) == (3, 3, 3)
    assert (third.Rows, third.Columns, third.PixelRepresentation, third.BitsStored) == (5, 6, 1, 16)
    assert (third.RescaleSlope, third.RescaleIntercept, third.RescaleType) == (1, 0, "HU")
    assert third.WindowCenter == [-600, 40]
    assert third.WindowWidth == [1500, 400]
    assert third.pixel_array[4, 5] == -1000 + 7 * (2 * 30 + 4 * 6 + 5)


def test_every_slice_says_that_it_is_synthetic():
    for dataset in ct_slices(ct(), RECORD):
        assert dataset["SyntheticData"].tag == (0x0008, 0x001C)
        assert dataset.SyntheticData == "YES"
        assert dataset.ImageType == ["DERIVED", "SECONDARY", "AXIAL"]
        assert dataset.ContentQualification == "RESEARCH"
        assert dataset.BurnedInAnnotation == "NO"
        assert dataset.PatientIdentityRemoved == "YES"
        assert "not for diagnostic use" in dataset.SeriesDescription
        assert "not for diagnostic use" in dataset.ImageComments
        assert str(dataset.PatientName).startswith("SYNTHETIC^")
        assert dataset.PatientID.startswith("SYN-")
        assert {dataset.StudyDate, dataset.SeriesDate, dataset.ContentDate} == {"19000101"}
        assert (dataset.PatientBirthDate, dataset.PatientSex, dataset.ReferringPhysicianName) == ("", "", "")
        assert dataset.Manufacturer == "MediSyn"
        assert dataset.SoftwareVersions.startswith("medisyn ")
        for told in (RECORD["model_digest"], RECORD["prompt"], "starter-ct", "seed 17"):
            assert str(told) in dataset.DerivationDescription


@pytest.mark.parametrize("name", AFFINES)
def test_every_voxel_is_where_it_was_for_independent_readers(tmp_path: Path, name: str):
    volume = ct(affine=AFFINES[name])
    write_dicom_ct(tmp_path / "ct", volume, RECORD)
    read = read_item(tmp_path / "ct")
    assert_same_patient(volume.array_CDHW[0], volume.affine, read.array_CDHW[0], read.affine)
    slices = [pydicom.dcmread(path) for path in sorted((tmp_path / "ct").iterdir())]
    other = highdicom.get_volume_from_series(slices)
    assert_same_patient(volume.array_CDHW[0], volume.affine, other.array, other.affine)


def test_uids_follow_from_the_record_and_the_voxels():
    def uids(volume, record):
        slices = ct_slices(volume, record)
        assert len({one.SOPInstanceUID for one in slices}) == len(slices)
        return slices[0].StudyInstanceUID, slices[0].SeriesInstanceUID, slices[0].SOPInstanceUID

    first = uids(ct(), RECORD)
    assert uids(ct(), dict(RECORD)) == first
    assert all(uid.is_valid and uid.startswith("2.25.") and len(uid) <= 64 for uid in map(pydicom.uid.UID, first))
    other_seed = uids(ct(), {**RECORD, "seed": 18})
    assert not set(other_seed) & set(first)
    finer = uids(resample(ct(), spacing_mm=1.0)[0], RECORD)
    assert finer[0] == first[0]  # one study
    assert not set(finer[1:]) & set(first[1:])


def test_equal_input_gives_equal_bytes(tmp_path: Path):
    for folder in "ab":
        write_dicom_ct(tmp_path / folder, ct(), RECORD)
        write_dicom_seg(tmp_path / folder / "seg.dcm", ct(), masks(), RECORD)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_series_is_replaced_as_a_whole(tmp_path: Path):
    write_dicom_ct(tmp_path / "ct", ct((9, 5, 6)), RECORD)
    write_dicom_ct(tmp_path / "ct", ct((2, 5, 6)), RECORD)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["ct"]
    assert [path.name for path in sorted((tmp_path / "ct").iterdir())] == ["0001.dcm", "0002.dcm"]


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match=r"holds 1 files that are no \.dcm"):
        write_dicom_ct(tmp_path, ct(), RECORD)
    assert (tmp_path / "thesis.txt").read_text() == "all of it"


def test_an_unknown_body_part_is_refused():
    with pytest.raises(InputError, match="body part 'LUNGS' is unknown, allowed: CHEST"):
        ct_slices(ct(), RECORD, body_part="LUNGS")


def test_decimal_strings_of_an_oblique_volume_fit_and_are_exact(tmp_path: Path):
    write_dicom_ct(tmp_path / "ct", ct(affine=AFFINES["oblique"]), RECORD)
    read = pydicom.dcmread(tmp_path / "ct" / "0002.dcm")
    wanted = AFFINES["oblique"]
    np.testing.assert_allclose(read.ImagePositionPatient, wanted[:3, 0] + wanted[:3, 3], atol=1e-11)
    np.testing.assert_allclose(read.ImageOrientationPatient[:3], wanted[:3, 2] / 1.25, atol=1e-12)


# ---- the segmentation


def test_masks_come_back_from_the_segmentation(tmp_path: Path):
    volume = ct(affine=AFFINES["oblique"])
    paths = write_dicom_ct(tmp_path / "ct", volume, RECORD)
    write_dicom_seg(tmp_path / "seg.dcm", volume, masks(), RECORD)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert seg.number_of_segments == 7
    slices = [pydicom.dcmread(path) for path in paths]
    instances = [one.SOPInstanceUID for one in slices]
    frames = seg.get_pixels_by_source_instance(
        instances, ignore_spatial_locations=False, assert_missing_frames_are_empty=True
    )
    for number in range(1, 6):
        np.testing.assert_array_equal(frames[..., number - 1], masks()["lobe"] == number)
    np.testing.assert_array_equal(frames[..., 5], masks()["airway"])
    np.testing.assert_array_equal(frames[..., 6], masks()["vessel"])
    placed = seg.get_volume(combine_segments=False)
    read_lobe = (placed.array[..., :5] * np.arange(1, 6)).sum(axis=-1)
    assert_same_patient(masks()["lobe"][:3], volume.affine, read_lobe, placed.affine)  # the fourth slice has no mask


def test_segments_are_coded_and_belong_to_the_same_patient_and_frame():
    slices, seg = ct_slices(ct(), RECORD), dicom_seg(ct(), masks(), RECORD)
    kept = ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate", "BodyPartExamined")
    assert all(seg[keyword].value == slices[0][keyword].value for keyword in kept)
    assert (seg.SyntheticData, seg.ContentQualification, seg.ContentDate) == ("YES", "RESEARCH", "19000101")
    codes = {one.SegmentLabel: one.SegmentedPropertyTypeCodeSequence[0] for one in seg.SegmentSequence}
    assert codes["right upper lobe"].CodeValue == "42400003"
    assert codes["airway"].CodeMeaning == "Trachea and bronchus"
    assert {code.CodingSchemeDesignator for code in codes.values()} == {"SCT"}


def test_a_label_without_a_voxel_is_left_out_and_an_effusion_is_no_anatomy():
    effusion = np.zeros((4, 5, 6), np.uint8)
    effusion[0, 0, 0] = 1
    seg = dicom_seg(ct(), {"airway": np.zeros((4, 5, 6)), "effusion": effusion}, RECORD)
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["pleural effusion"]
    category = seg.SegmentSequence[0].SegmentedPropertyCategoryCodeSequence[0]
    assert category.CodeMeaning == "Morphologically Abnormal Structure"


@pytest.mark.parametrize("empty", [{}, {"airway": np.zeros((4, 5, 6))}])
def test_a_segmentation_of_nothing_is_refused(empty):
    with pytest.raises(InputError, match=r"no voxel of the masks \((none given|airway)\) is set"):
        dicom_seg(ct(), empty, RECORD)


def test_masks_of_another_shape_are_refused():
    with pytest.raises(InputError, match="both must lie on one grid"):
        dicom_seg(ct(), masks((4, 6, 5)), RECORD)


# ---- validators


def missing_attributes(dataset: pydicom.Dataset) -> list[str]:
    """What highdicom's tables of the standard find wrong in the mandatory modules; skips when its API has changed."""
    try:
        from highdicom import _standard_utils as standard

        iod = standard.get_sop_class_iod_map()[dataset.SOPClassUID]
        modules = [one["key"] for one in standard.get_iod_module_map()[iod] if one["usage"] == "M"]
        check = standard.check_required_attributes
    except (ImportError, AttributeError, KeyError) as error:
        pytest.skip(f"highdicom's tables have changed ({error})")
    found = []
    for module in modules:
        try:
            check(dataset, module)
        except AttributeError as error:
            found.append(f"{module}: {error}")
    return found


def test_highdicom_finds_no_attribute_missing():
    assert missing_attributes(ct_slices(ct(), RECORD)[0]) == []
    broken = ct_slices(ct(), RECORD)[0]
    del broken.ImagePositionPatient
    assert any("ImagePositionPatient" in text for text in missing_attributes(broken))


@pytest.mark.parametrize("name", AFFINES)
def test_dciodvfy_complains_of_nothing_but_the_tag_it_does_not_know(tmp_path: Path, name: str):
    if shutil.which("dciodvfy") is None:
        pytest.skip("the program dciodvfy (Debian package dicom3tools) is not installed")
    volume = ct((4, 8, 8), AFFINES[name])
    paths = write_dicom_ct(tmp_path / "ct", volume, {**RECORD, "prompt": "Épanchement \\ pleural. " * 200})
    write_dicom_seg(tmp_path / "seg.dcm", volume, masks((4, 8, 8)), RECORD)
    for path in (paths[0], paths[-1], tmp_path / "seg.dcm"):
        told = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
        lines = [line for line in (told.stdout + told.stderr).splitlines() if "(0008,001c)" not in line]
        assert lines in (["CTImage"], ["Segmentation"])
    every = [str(path) for path in (*paths, tmp_path / "seg.dcm")]
    told = subprocess.run(["dcentvfy", *every], capture_output=True, text=True, check=True)  # one patient, one study
    assert told.stdout + told.stderr == ""
