"""A generated clip as one DICOM file: Ultrasound Multi-frame Image Storage, marked as synthetic wherever DICOM can.

The patient who does not exist, dates, UIDs and descriptions follow the rules of `volume_files.dicom`.
Shapes here: T frames, H rows, W columns, C channels (1 or 3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn import runs
from medisyn.generation.clip_files.video import frames_THWC, rate_of
from medisyn.generation.volume_files.dicom import DATE, NOT_FOR_USE, TIME, equipment, patient_and_study
from medisyn.generation.volume_files.record import derivation, full_record, record_json, uid
from medisyn.types import Clip

if TYPE_CHECKING:
    from pydicom import Dataset

FRAME_TIME_TAG = 0x00181063


def write_dicom_clip(path: Path, clip: Clip, record: Mapping[str, Any]) -> None:
    """Write the clip to one .dcm file, uncompressed; equal clip and record give equal bytes. Whole or absent."""
    dataset = clip_dataset(clip, record)
    with runs.atomic_file(path) as stream:
        dataset.save_as(stream, enforce_file_format=True)


def clip_dataset(clip: Clip, record: Mapping[str, Any]) -> Dataset:
    """The clip as a pydicom dataset. Raises InputError for a clip that is not uint8 and for an incomplete record."""
    from pydicom import Dataset
    from pydicom import uid as uids
    from pydicom.dataset import FileMetaDataset

    frames, content = frames_THWC(clip), full_record(record)
    pixels = hashlib.sha256(f"{frames.shape} {rate_of(clip)}".encode() + frames.tobytes()).hexdigest()
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uids.ExplicitVRLittleEndian
    dataset.SOPClassUID = uids.UltrasoundMultiFrameImageStorage
    dataset.SOPInstanceUID = uid("clip", record_json(content), pixels)
    dataset.SeriesInstanceUID = uid("ultrasound", record_json(content), pixels)
    study = {name: value for name, value in patient_and_study(content).items() if name != "FrameOfReferenceUID"}
    for keyword, value in {**study, **equipment(content), **_series(content), **_pixels(frames, clip)}.items():
        setattr(dataset, keyword, value)
    return dataset


def _series(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "ImageType": ["DERIVED", "SECONDARY"],
        "Modality": "US",
        "SeriesNumber": 1,
        "InstanceNumber": 1,
        "PatientOrientation": "",
        "Laterality": "",
        "SeriesDescription": NOT_FOR_USE,
        "SeriesDate": DATE,
        "SeriesTime": TIME,
        "ContentDate": DATE,
        "ContentTime": TIME,
        "ImageComments": f"{NOT_FOR_USE}. {record['notice']}",
        "DerivationDescription": derivation(record, limit=1024),
        "ContentQualification": "RESEARCH",
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
    }


def _pixels(frames: np.ndarray, clip: Clip) -> dict[str, Any]:
    num_frames, height, width, channels = frames.shape
    content = frames.tobytes()
    colour = {"PlanarConfiguration": 0} if channels == 3 else {}
    return {
        "NumberOfFrames": num_frames,
        "FrameTime": round(1000 / rate_of(clip), 6),  # milliseconds
        "FrameIncrementPointer": FRAME_TIME_TAG,
        "CineRate": max(1, round(rate_of(clip))),
        "SamplesPerPixel": channels,
        "PhotometricInterpretation": "RGB" if channels == 3 else "MONOCHROME2",
        **colour,
        "Rows": height,
        "Columns": width,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "PixelData": content + b"\0" * (len(content) % 2),
    }
