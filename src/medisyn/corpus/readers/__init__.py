"""Files into pixels: one call for every format, chosen by the content of the file.

Messages of these readers never hold a name, path, date or UID, since file names often are patients' names.
"""

from __future__ import annotations

from pathlib import Path

from medisyn.corpus.readers.archive import Entry, entries
from medisyn.corpus.readers.formats import PICTURE_FORMATS, VIDEO_FORMATS
from medisyn.errors import ReadError
from medisyn.types import Item, Picture, Volume

__all__ = ["read_item", "read_series_slices", "sources"]


def read_item(path: Path, member: str | None = None, *, modality: str | None = None, series: int | None = None) -> Item:
    """Read a file, a zip member, or a folder or zip of one DICOM series as Picture, Clip or Volume.

    path      a file or a folder; `member` names a file, or a folder of DICOM slices, inside a zip
    modality  for NIfTI, NRRD and MetaImage, which do not record it: "CT" makes the voxels HU (checked), others stay raw
    series    which DICOM series of a folder or zip, counted from 1 as `dicom_series.list_series` lists them

    PNG, JPEG, TIFF, BMP: uint8 Picture, or 16-bit grey with range 0..65535 "raw"; a TIFF stack is a Clip.
    MP4, MOV, MKV, WebM, AVI, GIF: uint8 Clip.
    DICOM: CT in float32 HU, other modalities "raw" or uint8; a series is a Volume (LPS affine).
    Raises ReadError (SeriesError when slices form no volume), RangeError or MissingDependency, nothing else.
    """
    from medisyn.corpus.readers import dicom, dicom_series, image, metaimage, nifti, video

    source = sources(Path(path), member)
    if isinstance(source, list):
        return dicom_series.read_volume(source, series)
    kind = source.format()
    if kind in PICTURE_FORMATS:
        return image.read_image(source, kind)
    if kind in VIDEO_FORMATS:
        return video.read_video(source, kind)
    if kind in ("dicom", "dicom.gz"):
        return dicom.read_dicom(source)
    if kind in ("nifti", "nifti.gz"):
        return nifti.read_nifti(source, modality)
    if kind == "nrrd":
        return nifti.read_nrrd(source, modality)
    if kind == "metaimage":
        return metaimage.read_metaimage(source, modality)
    raise ReadError("a zip inside a zip is not opened; unpack the outer one first")


def read_series_slices(
    path: Path, member: str | None = None, *, modality: str | None = None, series: int | None = None
) -> list[Picture]:
    """The slices of a series as pictures, also where they form no volume (unequal gaps, no geometry, gantry tilt).

    DICOM: as stored, sorted along the slice normal, or by InstanceNumber when a position is missing.
    NIfTI, NRRD, MetaImage: axial slices, feet to head. A clip: its frames. Each picture's provenance holds "slice"
    (0, 1, ...) and, where the geometry is known, "position_mm".
    """
    from medisyn.corpus.readers import dicom_series, nifti

    source = sources(Path(path), member)
    if isinstance(source, list):
        return dicom_series.read_slices(source, series)
    item = read_item(path, member, modality=modality)
    if isinstance(item, Volume):
        return nifti.slices(item)
    if isinstance(item, Picture):
        return [item]
    return [
        Picture(item.array_CTHW[:, t], item.value_range, provenance={**item.provenance, "slice": t})
        for t in range(item.array_CTHW.shape[1])
    ]


def sources(path: Path, member: str | None = None) -> Entry | list[Entry]:
    """The one file that is meant, or the several files of a folder or zip (then they must be DICOM slices)."""
    if not path.is_dir() and Entry(path).format() != "zip":
        if member is not None:
            raise ReadError("a member was named, but the file is not a zip")
        return Entry(path)
    found = entries(path)
    if member is not None:
        exact = [entry for entry in found if entry.member == member]
        found = exact or entries(path, member)
    if not found:
        raise ReadError("the folder or zip holds no such file")
    return found[0] if len(found) == 1 else found
