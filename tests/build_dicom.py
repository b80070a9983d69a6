"""DICOM files for tests, written with pydicom: one image, a series, an enhanced multi-frame object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

AXIAL = [1, 0, 0, 0, 1, 0]
NAME, PATIENT, BIRTH = "ROE^JANET", "HOSP-778899", "19310203"


def image(pixels: np.ndarray, **tags: Any) -> Dataset:
    """A CT slice of integer pixels (H, W) with every tag a scanner writes; `tags` replace, None removes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    bits = 8 * pixels.dtype.itemsize
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": generate_uid(), "SeriesInstanceUID": "1.2.3",
        "SeriesNumber": 1, "InstanceNumber": 1, "Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PatientName": NAME, "PatientID": PATIENT, "PatientBirthDate": BIRTH, "StudyDate": "20200102",
        "ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": AXIAL, "PixelSpacing": [0.5, 0.25],
        "Rows": pixels.shape[-2], "Columns": pixels.shape[-1], "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"), "RescaleSlope": 1, "RescaleIntercept": 0,
        "PixelData": pixels.tobytes(),
    }  # fmt: skip
    for keyword, value in {**values, **tags}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
    return path


def slice_pixels(number: int) -> np.ndarray:
    """(4, 6) int16: air at -1000 HU around tissue whose HU tells the slice."""
    pixels = np.full((4, 6), -1000, np.int16)
    pixels[1:3, 2:4] = 10 * number
    return pixels


def series(folder: Path, positions: list[list[float]], **tags: Any) -> Path:
    """One CT slice per position, in files whose names and instance numbers run against the positions."""
    for number, position in enumerate(positions):
        last = len(positions) - number
        dataset = image(slice_pixels(number), ImagePositionPatient=position, InstanceNumber=last, **tags)
        save(dataset, folder / f"{last:03d}.dcm")
    return folder


def enhanced(positions: list[list[float]], slopes: list[float]) -> Dataset:
    """A multi-frame CT whose geometry and rescale stand in functional groups."""
    frames = np.stack([slice_pixels(number) for number in range(len(positions))])
    dataset = image(
        frames, SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=len(positions), ImagePositionPatient=None,
        ImageOrientationPatient=None, PixelSpacing=None, RescaleSlope=None, RescaleIntercept=None,
    )  # fmt: skip
    dataset.SharedFunctionalGroupsSequence = [group("PlaneOrientationSequence", ImageOrientationPatient=AXIAL)]
    measures = group("PixelMeasuresSequence", PixelSpacing=[0.5, 0.25])
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = measures.PixelMeasuresSequence
    dataset.PerFrameFunctionalGroupsSequence = []
    for position, slope in zip(positions, slopes, strict=True):
        frame = group("PlanePositionSequence", ImagePositionPatient=position)
        rescale = group("PixelValueTransformationSequence", RescaleSlope=slope, RescaleIntercept=0)
        frame.PixelValueTransformationSequence = rescale.PixelValueTransformationSequence
        dataset.PerFrameFunctionalGroupsSequence.append(frame)
    return dataset


def group(name: str, **tags: Any) -> Dataset:
    inner, outer = Dataset(), Dataset()
    for keyword, value in tags.items():
        setattr(inner, keyword, value)
    setattr(outer, name, [inner])
    return outer
