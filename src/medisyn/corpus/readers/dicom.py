"""One DICOM file into a Picture, Clip or Volume, and the few tags that may leave it.

Shapes here: F frames, C channels, H, W height and width.
"""

from __future__ import annotations

import gzip
import io
import re
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn.corpus.readers import sources
from medisyn.corpus.readers.archive import MAX_MEMBER_BYTES, Entry
from medisyn.corpus.readers.dicom_pixels import frame_value, header, number, numbers, pixels
from medisyn.corpus.readers.video import constant_rate
from medisyn.errors import ReadError
from medisyn.geometry import affine_from_dicom, slice_gap, slice_normal, slice_positions
from medisyn.intensity import guard_hu
from medisyn.types import Clip, Item, Picture, ValueRange, Volume

if TYPE_CHECKING:
    from pydicom import Dataset

TEXT_TAGS = (
    "Modality", "PatientSex", "ViewPosition", "BodyPartExamined", "Laterality", "ImageLaterality", "PatientPosition",
    "PatientOrientation", "ConvolutionKernel", "ScanningSequence", "SequenceVariant", "MRAcquisitionType", "ImageType",
    "PhotometricInterpretation", "Manufacturer", "BurnedInAnnotation", "LossyImageCompression",
)  # fmt: skip
NUMBER_TAGS = (
    "Rows", "Columns", "NumberOfFrames", "SliceThickness", "SpacingBetweenSlices", "KVP", "MagneticFieldStrength",
    "EchoTime", "RepetitionTime", "FlipAngle",
)  # fmt: skip
DERIVED = ("PatientAge", "AgeDecade", "Contrast")  # computed from a tag, not copied
IDENTITY_TAGS = (
    "PatientName", "PatientID", "PatientBirthDate", "OtherPatientIDs", "OtherPatientNames", "AccessionNumber",
    "StudyID", "StudyDate", "SeriesDate", "AcquisitionDate", "ReferringPhysicianName", "PerformingPhysicianName",
    "PhysiciansOfRecord", "OperatorsName", "PatientAddress", "PatientTelephoneNumbers", "StationName",
)  # fmt: skip
INSTITUTION_TAGS = ("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName")
PLAIN_TEXT = re.compile(r"[A-Za-z0-9 ._+/-]{1,32}")


class NoImageError(ReadError):
    """A DICOM object without pixels: a report, a plan, a directory. In a folder of slices it is left out."""


def read_dicom(entry: Entry) -> Item:
    """A DICOM file: one frame is a Picture; several are a Volume where each has its place in the patient, else a Clip.

    Raises ReadError for a file without image or with damaged pixels, SeriesError for frames at unequal gaps,
    RangeError for CT volumes that are not HU, MissingDependency for a codec that is not installed.
    """
    dataset = open_dataset(entry)
    array_FCHW, value_range = pixels(dataset)
    provenance = provenance_of(dataset)
    if len(array_FCHW) == 1:
        return Picture(array_FCHW[0], value_range, pixel_spacing(dataset), provenance)
    positions, spacing_mm = _frame_positions(dataset, len(array_FCHW)), pixel_spacing(dataset)
    if positions is None or spacing_mm is None:
        return _clip(dataset, array_FCHW, value_range, provenance)
    orientation = frame_value(dataset, 0, "PlaneOrientationSequence", "ImageOrientationPatient")
    along_mm = slice_positions(positions, orientation)
    order = np.argsort(along_mm, kind="stable")
    gap_mm = slice_gap(along_mm[order])
    affine = affine_from_dicom(orientation, positions[order[0]], spacing_mm, gap_mm)
    if value_range.unit == "hu":
        guard_hu(array_FCHW)
    return Volume(array_FCHW[order].transpose(1, 0, 2, 3), affine, value_range, provenance)


def open_dataset(entry: Entry, *, with_pixels: bool = True) -> Dataset:
    """The parsed file. Raises ReadError when it is no DICOM, is damaged, or holds no image."""
    import pydicom

    kind = entry.format()
    if kind not in ("dicom", "dicom.gz"):
        raise ReadError(f"expected DICOM, but the content of the file is {kind}")
    with entry.open() as stream:
        source = _gunzip(stream.read()) if kind == "dicom.gz" else stream
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom's warnings quote values, which may be a patient's name
                dataset = pydicom.dcmread(source, force=True, stop_before_pixels=not with_pixels)
        except Exception as error:  # a damaged file makes pydicom raise almost anything, and may be quoted
            raise ReadError(f"the DICOM file is damaged or cut short ({type(error).__name__})") from None
    if header(dataset, "Rows") is None or header(dataset, "BitsAllocated") is None:
        raise NoImageError(f"the DICOM file holds no image ({_kind_of_object(dataset)})")
    if with_pixels and not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ReadError("the DICOM file has an image header but no pixel data; it is cut short")
    return dataset


def pixel_spacing(dataset: Dataset) -> tuple[float, float] | None:
    """(row, column) spacing in mm: of the patient, else of the detector (projection X-ray)."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = frame_value(dataset, 0, "PixelMeasuresSequence", keyword)
        if len(spacing) == 2 and min(spacing) > 0:
            return spacing[0], spacing[1]
    return None


def provenance_of(dataset: Dataset) -> dict[str, Any]:
    return {"format": "dicom", "modality": str(header(dataset, "Modality") or "")}


def attributes(path: Path, member: str | None = None, *, series: int | None = None) -> dict[str, Any]:
    """The tags that may be written down for captions, by DICOM keyword: an allow-list, nothing else ever leaves.

    Text tags are kept only when they are short and plain and hold no part of a name, id, date or institution of the
    same header; numbers as float. "PatientAge" is in whole years ("58") and "AgeDecade" is "50-59", with everybody
    above 89 as "90+"; "Contrast" is True when an agent was given. Absent tags are left out. Of a series the first image
    counts. Raises ReadError as `read_item` does.
    """
    return attributes_of(_header_of(path, member, series))


def attributes_of(dataset: Dataset) -> dict[str, Any]:
    """`attributes` of a parsed header."""
    identity = _identity(dataset)
    found: dict[str, Any] = {}
    for keyword in TEXT_TAGS:
        value = header(dataset, keyword)
        values = [value] if isinstance(value, str) or value is None else list(value)
        texts = [str(one).strip() for one in values if one is not None]
        if texts and all(_is_harmless(text, identity) for text in texts):
            found[keyword] = "\\".join(texts)
    for keyword in NUMBER_TAGS:
        value = number(dataset, keyword)
        if value is not None:
            found[keyword] = value
    years = age_years(str(header(dataset, "PatientAge") or ""))
    if years is not None:
        found["PatientAge"] = "90+" if years > 89 else str(years)
        found["AgeDecade"] = "90+" if years > 89 else f"{years // 10 * 10}-{years // 10 * 10 + 9}"
    if header(dataset, "ContrastBolusAgent") is not None:
        found["Contrast"] = True
    return found


def patient_id_to_hash(path: Path, member: str | None = None, *, series: int | None = None) -> str:
    """The raw PatientID. It identifies a person: hash it with the corpus key at once, never log or store it.

    Raises ReadError when it is absent: then a patient-level split needs a patient column.
    """
    return patient_id_of(_header_of(path, member, series))


def patient_id_of(dataset: Dataset) -> str:
    """`patient_id_to_hash` of a parsed header."""
    patient = str(header(dataset, "PatientID") or "").strip()
    if not patient:
        raise ReadError("the DICOM file has no PatientID; give the patient column of the table instead")
    return patient


def age_years(age: str) -> int | None:
    """A DICOM age string (058Y, 011M, 003W, 020D) in completed years; None for anything else."""
    match = re.fullmatch(r"(\d{1,3})([YMWD])", age.strip())
    return None if match is None else int(match.group(1)) // {"Y": 1, "M": 12, "W": 52, "D": 365}[match.group(2)]


def _header_of(path: Path, member: str | None, series: int | None) -> Dataset:
    from medisyn.corpus.readers.dicom_series import chosen_series

    source = sources(Path(path), member)
    if isinstance(source, Entry):
        return open_dataset(source, with_pixels=False)
    return chosen_series(source, series).slices[0].header


def _frame_positions(dataset: Dataset, num_frames: int) -> list[list[float]] | None:
    """The (x, y, z) of each frame in LPS mm; None where the frames have no place in the patient."""
    orientation = frame_value(dataset, 0, "PlaneOrientationSequence", "ImageOrientationPatient")
    if len(orientation) != 6:
        return None
    offsets = numbers(dataset, "GridFrameOffsetVector")  # RT dose
    first = numbers(dataset, "ImagePositionPatient")
    if len(offsets) == num_frames and len(first) == 3:
        return [list(first + (offset - offsets[0]) * slice_normal(orientation)) for offset in offsets]
    if header(dataset, "PerFrameFunctionalGroupsSequence") is None:
        return None
    positions = [frame_value(dataset, f, "PlanePositionSequence", "ImagePositionPatient") for f in range(num_frames)]
    return positions if all(len(position) == 3 for position in positions) else None


def _clip(dataset: Dataset, array_FCHW: np.ndarray, value_range: ValueRange, provenance: dict[str, Any]) -> Clip:
    """Frames at a constant rate; where the header times each frame on its own, the rate of their median gap."""
    steps_ms = numbers(dataset, "FrameTimeVector")
    if not steps_ms:
        return Clip(array_FCHW.transpose(1, 0, 2, 3), value_range, _frames_per_second(dataset), provenance)
    if len(steps_ms) != len(array_FCHW):
        raise ReadError(f"FrameTimeVector holds {len(steps_ms)} times for {len(array_FCHW)} frames")
    microseconds = np.rint(np.cumsum(steps_ms) * 1000).astype(np.int64)
    picks, gap = constant_rate(microseconds)
    resampled = not np.array_equal(picks, np.arange(len(array_FCHW)))
    array_CTHW = (array_FCHW[picks] if resampled else array_FCHW).transpose(1, 0, 2, 3)
    return Clip(array_CTHW, value_range, float(1e6 / gap), {**provenance, "resampled": resampled})


def _frames_per_second(dataset: Dataset) -> float | None:
    for keyword in ("RecommendedDisplayFrameRate", "CineRate"):
        rate = number(dataset, keyword)
        if rate and rate > 0:
            return rate
    frame_ms = number(dataset, "FrameTime")
    return 1000 / frame_ms if frame_ms and frame_ms > 0 else None


def _kind_of_object(dataset: Dataset) -> str:
    """The standard's name of the object, such as "RT Plan Storage"; private kinds are not named."""
    from pydicom.uid import UID_dictionary

    uid = str(header(dataset, "SOPClassUID") or header(dataset.file_meta, "MediaStorageSOPClassUID"))
    return UID_dictionary[uid][0] if uid in UID_dictionary else "of an unknown kind"


def _gunzip(content: bytes) -> io.BytesIO:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            unpacked = stream.read(MAX_MEMBER_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ReadError(f"the gzip file is damaged or cut short ({type(error).__name__})") from None
    if len(unpacked) > MAX_MEMBER_BYTES:
        raise ReadError(f"the gzip file unpacks to more than {MAX_MEMBER_BYTES:,} bytes")
    return io.BytesIO(unpacked)


def _identity(dataset: Dataset) -> set[str]:
    """Lower-case parts of three and more letters of what names people, and the institution's names as a whole."""
    named = [part for text in _texts(dataset, IDENTITY_TAGS) for part in re.split(r"[\^=\s,\\]+", text)]
    return {part.lower() for part in (*named, *_texts(dataset, INSTITUTION_TAGS)) if len(part) >= 3}


def _texts(dataset: Dataset, keywords: tuple[str, ...]) -> list[str]:
    values = [header(dataset, keyword) for keyword in keywords]
    # A PersonName is iterable, letter by letter, and no Sequence; several values are one.
    listed = [list(v) if isinstance(v, Sequence) and not isinstance(v, str) else [v] for v in values]
    return [str(one).strip() for value in listed for one in value if one is not None]


def _is_harmless(text: str, identity: set[str]) -> bool:
    return PLAIN_TEXT.fullmatch(text) is not None and not any(part in text.lower() for part in identity)
