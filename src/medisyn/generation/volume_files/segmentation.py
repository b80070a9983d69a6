"""The masks of a generated CT as one DICOM segmentation (SEG) that references the slices of its CT series.

Shapes here: D slices, H rows, W columns, S segments.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError
from medisyn.generation.volume_files.dicom import DATE, NOT_FOR_USE, TIME, ct_slices, equipment
from medisyn.generation.volume_files.record import full_record, long_string, record_json, uid
from medisyn.generation.volume_files.structures import STRUCTURES, Structure, checked_masks
from medisyn.types import Volume

# What highdicom does not take over from the CT, though it holds for both.
COPIED = (
    "SyntheticData", "PatientIdentityRemoved", "DeidentificationMethod", "BodyPartExamined", "ContentQualification",
    "ImageComments",
)  # fmt: skip

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom import Dataset


def write_dicom_seg(
    path: Path,
    volume: Volume,
    masks: Mapping[str, np.ndarray],
    record: Mapping[str, Any],
    *,
    body_part: str = "CHEST",
) -> None:
    """Write the masks as a binary SEG. It belongs to the series that `write_dicom_ct` writes of this volume and record.

    One segment per label, coded in SNOMED CT; a label without a voxel is left out. Equal input gives equal bytes.
    Raises InputError when no mask has a voxel, for masks that do not fit the volume (see `checked_masks`), and what
    `ct_slices` raises.
    """
    with runs.atomic_file(path) as stream:
        dicom_seg(volume, masks, record, body_part=body_part).save_as(stream, enforce_file_format=True)


def dicom_seg(
    volume: Volume, masks: Mapping[str, np.ndarray], record: Mapping[str, Any], *, body_part: str = "CHEST"
) -> Segmentation:
    """The SEG object of `write_dicom_seg`."""
    from highdicom.seg import Segmentation as Seg
    from highdicom.seg import SegmentationTypeValues

    slices, content = ct_slices(volume, record, body_part=body_part), full_record(record)
    segments, present_DHWS = _segments(volume, masks)
    where = [slices[0].SeriesInstanceUID, record_json(content)]
    made = equipment(content)
    seg = Seg(
        source_images=slices,
        pixel_array=present_DHWS,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _description(number, one, content, uid("segment", one.name, *where))
            for number, one in enumerate(segments, start=1)
        ],
        series_instance_uid=uid("seg series", *where),
        series_number=2,
        sop_instance_uid=uid("seg", *where, *(one.name for one in segments)),
        instance_number=1,
        manufacturer=made["Manufacturer"],
        manufacturer_model_name=made["ManufacturerModelName"],
        software_versions=made["SoftwareVersions"],
        device_serial_number=made["DeviceSerialNumber"],
        content_label="SYNTHETIC",
        content_description=NOT_FOR_USE,
        series_description=NOT_FOR_USE,
    )
    _mark(seg, slices[0], uid("dimensions", *where))
    return seg


def _segments(volume: Volume, masks: Mapping[str, np.ndarray]) -> tuple[list[Structure], np.ndarray]:
    """The structures that have a voxel, and where they are, uint8 (D, H, W, S)."""
    found = {
        one: mask_DHW == label
        for name, mask_DHW in checked_masks(volume, masks).items()
        for label, one in enumerate(STRUCTURES[name], start=1)
    }
    present = {one: where_DHW for one, where_DHW in found.items() if where_DHW.any()}
    if not present:
        raise InputError(
            f"no voxel of the masks ({', '.join(masks) or 'none given'}) is set; a DICOM segmentation needs one"
        )
    return list(present), np.stack(list(present.values()), axis=-1).astype(np.uint8)


def _description(number: int, one: Structure, record: Mapping[str, Any], tracking_uid: str) -> SegmentDescription:
    from highdicom import UID, AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    abnormal = Code("49755003", "SCT", "Morphologically Abnormal Structure")
    anatomical = Code("91723000", "SCT", "Anatomical Structure")
    description = SegmentDescription(
        segment_number=number,
        segment_label=one.name,
        segmented_property_category=abnormal if one.is_abnormal else anatomical,
        segmented_property_type=Code(one.code, "SCT", one.meaning),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=long_string(record["model"]),
            family=codes.cid7162.ArtificialIntelligence,
            version=long_string(record["model_digest"]),
        ),
        tracking_id=one.name,
        tracking_uid=UID(tracking_uid),
    )
    description.SegmentDescription = NOT_FOR_USE
    return description


def _mark(seg: Segmentation, ct: Dataset, dimensions_uid: str) -> None:
    """What highdicom leaves out or fills from the clock: the marks of a synthetic object, fixed dates and UIDs."""
    from pydicom.valuerep import DT

    for keyword in COPIED:
        setattr(seg, keyword, ct[keyword].value)
    for keyword in ("SeriesDate", "ContentDate", "InstanceCreationDate"):
        setattr(seg, keyword, DATE)
    for keyword in ("SeriesTime", "ContentTime", "InstanceCreationTime"):
        setattr(seg, keyword, TIME)
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions_uid
    for item in seg.ContributingEquipmentSequence:  # highdicom names itself there, with the time
        item.ContributionDateTime = DT(DATE + TIME)
