"""A CT Image Storage series of a generated volume: one file per slice, marked as synthetic wherever DICOM has a place.

Shapes here: D slices, H rows, W columns, in the order of the volume; nothing is flipped.

Fixed rules, so that no file can pass for a patient's:
    PatientName, PatientID     SYNTHETIC^<hash> and SYN-<hash>, from the record; birth date and sex are empty
    dates and times            1 January 1900, 00:00:00, in every place that wants one
    SyntheticData (0008,001C)  YES; ImageType DERIVED\\SECONDARY\\AXIAL; ContentQualification RESEARCH
    UIDs                       2.25 and a number from the record; those of the series also from the voxels and the grid
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError
from medisyn.generation.volume_files.grid import WINDOWS, directions, hu_int16
from medisyn.generation.volume_files.record import derivation, full_record, long_string, record_json, uid, voxel_digest
from medisyn.types import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

DATE, TIME = "19000101", "000000"
NOT_FOR_USE = "SYNTHETIC - not for diagnostic use"
BODY_PARTS = ("CHEST", "ABDOMEN", "HEAD", "NECK", "PELVIS", "HEART", "WHOLEBODY")


def write_dicom_ct(folder: Path, volume: Volume, record: Mapping[str, Any], *, body_part: str = "CHEST") -> list[Path]:
    """Write the series as `folder`/0001.dcm, ... in the order of d; returns the paths. The folder is whole or absent.

    A series that stood there is replaced. Raises InputError when the folder holds anything that is no .dcm file, and
    InputError or RangeError for a volume or record that DICOM cannot hold (see `ct_slices`).
    """
    datasets = ct_slices(volume, record, body_part=body_part)
    foreign = [path.name for path in folder.glob("*") if path.suffix != ".dcm"]
    if foreign:
        raise InputError(f"{folder.name}/ holds {len(foreign)} files that are no .dcm; write the series somewhere else")
    names = [f"{number:04d}.dcm" for number in range(1, len(datasets) + 1)]
    with runs.atomic_folder(folder) as target:
        for name, dataset in zip(names, datasets, strict=True):
            dataset.save_as(target / name, enforce_file_format=True)
    return [folder / name for name in names]


def ct_slices(volume: Volume, record: Mapping[str, Any], *, body_part: str = "CHEST") -> list[Dataset]:
    """The series as pydicom datasets; equal volume and record give equal datasets, UIDs included.

    Pixels are int16 HU (rescale slope 1, intercept 0). The geometry is the affine's own: oblique, flipped and
    left-handed axes are written as they are, each slice with its position. Raises InputError for axes that are not at
    right angles, for an incomplete record and an unknown body part, RangeError for values that are no HU or exceed
    16 bits.
    """
    if body_part not in BODY_PARTS:
        raise InputError(f"body part {body_part!r} is unknown, allowed: {', '.join(BODY_PARTS)}")
    hu_DHW, content = hu_int16(volume), full_record(record)
    voxels = voxel_digest(volume, hu_DHW)
    return [_slice(hu_DHW[d], d, volume, content, voxels, body_part) for d in range(len(hu_DHW))]


def _slice(
    hu_HW: np.ndarray, d: int, volume: Volume, record: Mapping[str, Any], voxels: str, body_part: str
) -> Dataset:
    from pydicom import Dataset
    from pydicom import uid as uids
    from pydicom.dataset import FileMetaDataset

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uids.ExplicitVRLittleEndian
    dataset.SOPClassUID = uids.CTImageStorage
    dataset.SOPInstanceUID = uid("slice", record_json(record), voxels, str(d))
    dataset.SeriesInstanceUID = uid("ct", record_json(record), voxels)
    _fill(dataset, patient_and_study(record))
    _fill(dataset, equipment(record))
    _fill(dataset, _series(record, body_part))
    _fill(dataset, _plane(volume, d))
    _fill(dataset, _pixels(hu_HW))
    dataset.InstanceNumber = d + 1
    return dataset


def _fill(dataset: Dataset, attributes: Mapping[str, Any]) -> None:
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)


def patient_and_study(record: Mapping[str, Any]) -> dict[str, Any]:
    """The patient who does not exist and his study: the same in every object of one record."""
    pseudonym = hashlib.sha256(record_json(record).encode()).hexdigest()[:12].upper()
    return {
        "SpecificCharacterSet": "ISO_IR 192",
        "SyntheticData": "YES",
        "PatientName": f"SYNTHETIC^{pseudonym}",
        "PatientID": f"SYN-{pseudonym}",
        "PatientBirthDate": "",
        "PatientSex": "",
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": "No patient: the image was made by a generative model",
        "StudyInstanceUID": uid("study", record_json(record)),
        "FrameOfReferenceUID": uid("frame of reference", record_json(record)),
        "StudyID": "SYNTHETIC",
        "StudyDescription": NOT_FOR_USE,
        "StudyDate": DATE,
        "StudyTime": TIME,
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
    }


def equipment(record: Mapping[str, Any]) -> dict[str, str]:
    """What made the image, in place of a scanner."""
    return {
        "Manufacturer": "MediSyn",
        "ManufacturerModelName": "MediSyn generative model",
        "DeviceSerialNumber": long_string(record["model_digest"]),
        "SoftwareVersions": long_string(record["software"]),
    }


def _series(record: Mapping[str, Any], body_part: str) -> dict[str, Any]:
    return {
        "ImageType": ["DERIVED", "SECONDARY", "AXIAL"],
        "Modality": "CT",
        "SeriesNumber": 1,
        "SeriesDescription": NOT_FOR_USE,
        "SeriesDate": DATE,
        "SeriesTime": TIME,
        "ContentDate": DATE,
        "ContentTime": TIME,
        "AcquisitionNumber": None,
        "BodyPartExamined": body_part,
        "PatientPosition": "HFS",
        "PositionReferenceIndicator": "",
        "KVP": None,
        "ImageComments": f"{NOT_FOR_USE}. {record['notice']}",
        "DerivationDescription": derivation(record, limit=1024),
        "ContentQualification": "RESEARCH",
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
    }


def _plane(volume: Volume, d: int) -> dict[str, Any]:
    """Image Plane (PS3.3 C.7.6.2): the first direction is along a row (w grows), the second down a column (h grows)."""
    gap_mm, row_mm, column_mm = volume.spacing_mm
    axes = directions(volume.affine)
    position = volume.affine @ [d, 0, 0, 1]
    return {
        "ImagePositionPatient": _decimals(position[:3]),
        "ImageOrientationPatient": _decimals([*axes[:, 2], *axes[:, 1]]),
        "PixelSpacing": _decimals([row_mm, column_mm]),
        "SliceThickness": _decimals([gap_mm])[0],
        "SpacingBetweenSlices": _decimals([gap_mm])[0],
        "SliceLocation": _decimals([position[:3] @ axes[:, 0]])[0],
    }


def _decimals(numbers: Any) -> list[Any]:
    """Decimal strings of at most 16 characters, as exact as that allows; minus zero is zero."""
    from pydicom.valuerep import DSfloat

    return [DSfloat(float(number) + 0.0, auto_format=True) for number in numbers]


def _pixels(hu_HW: np.ndarray) -> dict[str, Any]:
    return {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": hu_HW.shape[0],
        "Columns": hu_HW.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleIntercept": 0,
        "RescaleSlope": 1,
        "RescaleType": "HU",
        "WindowCenter": [level for level, _ in WINDOWS.values()],
        "WindowWidth": [width for _, width in WINDOWS.values()],
        "WindowCenterWidthExplanation": [name.upper() for name in WINDOWS],
        "PixelData": np.ascontiguousarray(hu_HW, dtype="<i2").tobytes(),
    }
