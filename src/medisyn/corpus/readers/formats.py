"""What a file is, by its first bytes: the name and extension are not trusted."""

from __future__ import annotations

import gzip
import zlib

from medisyn.errors import ReadError

HEAD_BYTES = 1024
PICTURE_FORMATS = ("png", "jpeg", "tiff", "bmp")
VIDEO_FORMATS = ("mp4", "mkv", "avi", "gif")  # MOV counts as mp4 and WebM as mkv: each pair is one container
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"skip", b"free")  # what an MP4 or an old QuickTime file begins with
METAIMAGE_KEYS = (b"ObjectType =", b"NDims =", b"Comment =")  # a MetaImage begins with one of them
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, little and big endian
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")


def format_of(head: bytes) -> str:
    """png, jpeg, tiff, bmp, mp4, mkv, avi, gif, dicom, nifti, nrrd, metaimage or zip from the first `HEAD_BYTES` bytes.

    gzip is looked into. Raises ReadError for anything else, saying whether it is empty, text or unknown binary.
    """
    name = _plain_format(head)
    if name is not None:
        return name
    if head[:2] == b"\x1f\x8b":
        inner = _plain_format(_gunzip_head(head))
        if inner in ("nifti", "dicom"):
            return f"{inner}.gz"
        raise ReadError("a gzip file that holds neither NIfTI nor DICOM")
    if not head:
        raise ReadError("the file is empty (0 bytes)")
    if _is_text(head):
        raise ReadError("the file holds text, not an image")
    allowed = "PNG, JPEG, TIFF, BMP, MP4, MOV, MKV, WebM, AVI, GIF, DICOM, NIfTI, NRRD, MetaImage, zip"
    raise ReadError(
        f"the file is of an unknown kind (it begins with the bytes {head[:4].hex(' ')}). Readable: {allowed}"
    )


def _plain_format(head: bytes) -> str | None:
    if head[128:132] == b"DICM":  # first: the 128 bytes before it are free, and some writers put a TIFF header there
        return "dicom"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(TIFF_MAGIC):
        return "tiff"
    if head.startswith(b"BM") and head[14:15] in (b"\x0c", b"\x28", b"\x34", b"\x38", b"\x40", b"\x6c", b"\x7c"):
        return "bmp"  # the size of its second header is one of seven
    if head[4:8] in MP4_BOXES:
        return "mp4"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "mkv"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith(ZIP_MAGIC):
        return "zip"
    if head.startswith(b"NRRD00"):
        return "nrrd"
    if head.startswith(METAIMAGE_KEYS):
        return "metaimage"
    if head[344:347] == b"n+1" or head[4:7] == b"n+2":
        return "nifti"
    if _starts_with_dicom_tag(head):
        return "dicom"
    return None


def _starts_with_dicom_tag(head: bytes) -> bool:
    """DICOM without its preamble: a first tag of group 0002 or 0008 and, where it is written, a two-letter VR."""
    if len(head) < 8 or head[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08"):
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    length = int.from_bytes(head[4:8], "little")
    return explicit or length < HEAD_BYTES


def _gunzip_head(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(head, HEAD_BYTES)
    except (zlib.error, gzip.BadGzipFile):
        return b""


def _is_text(head: bytes) -> bool:
    return b"\0" not in head and all(byte >= 32 or byte in b"\t\r\n\f" for byte in head)
