"""Formats by content, zip members in memory, and what is refused."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medisyn.corpus.readers import archive, read_item, sources
from medisyn.corpus.readers.archive import Entry, entries
from medisyn.corpus.readers.formats import format_of
from medisyn.errors import ReadError


def png_bytes(value: int = 7) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.array([[value, 1], [2, 3]], np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(8), "png"),
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (b"II*\0" + bytes(8), "tiff"),
        (b"MM\0+" + bytes(8), "tiff"),
        (b"BM" + bytes(12) + b"\x28" + bytes(9), "bmp"),
        (b"PK\x03\x04", "zip"),
        (b"\0\0\0\x20ftypisom", "mp4"),
        (b"\0\0\x01\0moov", "mp4"),  # an old QuickTime file
        (b"\x1a\x45\xdf\xa3\x01", "mkv"),
        (b"RIFF\0\0\0\0AVI LIST", "avi"),
        (b"GIF87a", "gif"),
        (b"GIF89a", "gif"),
        (b"NRRD0004\n", "nrrd"),
        (bytes(128) + b"DICM", "dicom"),
        (b"II*\0" + bytes(124) + b"DICM", "dicom"),  # a TIFF header in the free bytes
        (b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100", "dicom"),  # no preamble, explicit VR
        (b"\x08\x00\x05\x00\x0a\x00\x00\x00ISO_IR 100", "dicom"),  # no preamble, implicit VR
        (struct.pack("<i", 348) + bytes(340) + b"n+1\0", "nifti"),
        (struct.pack("<i", 540) + b"n+2\0" + bytes(8), "nifti"),
        (gzip.compress(struct.pack("<i", 348) + bytes(340) + b"n+1\0", mtime=0), "nifti.gz"),
        (gzip.compress(bytes(128) + b"DICM", mtime=0), "dicom.gz"),
    ],
)
def test_the_content_decides_the_format(head, name):
    assert format_of(head) == name


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (b"", "empty"),
        (b"patient;age\n1;50\n", "holds text"),
        (b"FLV\x01\x05\0\0", "unknown kind .it begins with the bytes 46 4c 56 01"),
        (b"\x09\x00\x05\x00\xff\xff\xff\xff\0", "unknown kind"),
        (gzip.compress(b"a table", mtime=0), "gzip file that holds neither"),
        (b"\x1f\x8b\x08\x00broken", "gzip file that holds neither"),
    ],
)
def test_what_is_no_image_says_what_it_looks_like(head, text):
    with pytest.raises(ReadError, match=text):
        format_of(head)


def test_a_png_named_dcm_is_read_as_the_png_it_is(tmp_path):
    (tmp_path / "a.dcm").write_bytes(png_bytes())
    assert read_item(tmp_path / "a.dcm").array_CHW.tolist() == [[[7, 1], [2, 3]]]


def test_one_member_of_a_zip_is_read_without_extracting_anything(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"x/one.png": png_bytes(11), "x/two.png": png_bytes(22)})
    assert read_item(path, "x/two.png").array_CHW[0, 0, 0] == 22
    assert list(tmp_path.iterdir()) == [path]


def test_a_zip_of_one_file_needs_no_member(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"__MACOSX/._one.png": b"junk", ".hidden": b"", "x/one.png": png_bytes(11)})
    assert read_item(path).array_CHW[0, 0, 0] == 11


def test_a_folder_member_names_the_files_below_it(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"x/one.png": png_bytes(11), "xy/two.png": png_bytes(22)})
    assert read_item(path, "xy").array_CHW[0, 0, 0] == 22
    found = entries(path, "x/")
    assert [entry.member for entry in found] == ["x/one.png"]


@pytest.mark.parametrize("name", ["../up.png", "/etc/up.png", "a/../../up.png", "..\\up.png", "C:/up.png"])
def test_a_name_that_leaves_the_archive_is_refused(tmp_path, name):
    path = write_zip(tmp_path / "a.zip", {name: png_bytes(), "good.png": png_bytes()})
    with pytest.raises(ReadError, match="points outside the archive"):
        read_item(path, "good.png")


def test_missing_and_wrong_members(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"Jane_Roe/one.png": png_bytes(), "Jane_Roe/two.png": png_bytes()})
    with pytest.raises(ReadError, match="holds no such file") as caught:
        read_item(path, "three.png")
    assert "Roe" not in str(caught.value)
    with pytest.raises(ReadError, match="no such member among its 2"):
        Entry(path, "three.png").open()
    (tmp_path / "a.png").write_bytes(png_bytes())
    with pytest.raises(ReadError, match="not a zip"):
        read_item(tmp_path / "a.png", "one.png")
    with pytest.raises(ReadError, match="holds no such file"):
        sources(write_zip(tmp_path / "empty.zip", {}))


def test_missing_files_and_folders_in_place_of_files(tmp_path):
    for call in (lambda: read_item(tmp_path / "Jane_Roe.png"), lambda: entries(tmp_path / "Jane_Roe.zip")):
        with pytest.raises(ReadError, match="file is missing") as caught:
            call()
        assert "Roe" not in str(caught.value)
    with pytest.raises(ReadError, match=r"cannot be opened .Is a directory"):
        Entry(tmp_path).open()


def test_damaged_zips(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"one.png": png_bytes()}, zipfile.ZIP_STORED)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ReadError, match="zip file is damaged or cut short"):
        read_item(path)
    at = whole.index(b"IDAT") + 6
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    with pytest.raises(ReadError, match=r"cannot be unpacked .BadZipFile"):
        read_item(path)


def test_encrypted_members_and_bombs(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a.zip", {"one.png": png_bytes()})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x03\x04") + 6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ReadError, match="encrypted"):
        read_item(path)
    bomb = write_zip(tmp_path / "b.zip", {"one.png": bytes(100_000)})
    monkeypatch.setattr(archive, "MAX_MEMBER_BYTES", 99_999)
    with pytest.raises(ReadError, match="claims 100,000 bytes"):
        read_item(bomb)


def test_a_zip_inside_a_zip_is_not_opened(tmp_path):
    inner = write_zip(tmp_path / "inner.zip", {"one.png": png_bytes()})
    outer = write_zip(tmp_path / "outer.zip", {"inner.zip": inner.read_bytes()})
    with pytest.raises(ReadError, match="zip inside a zip"):
        read_item(outer)
