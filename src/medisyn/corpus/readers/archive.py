"""Files on disk and inside zips, opened one at a time in memory; nothing is ever extracted to disk."""

from __future__ import annotations

import io
import lzma
import posixpath
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from medisyn.corpus.readers.formats import HEAD_BYTES, format_of
from medisyn.errors import ReadError

MAX_MEMBER_BYTES = 4 * 1024**3  # a larger member is refused before it is unpacked
MAX_RATIO = 1100  # deflate cannot exceed 1032 to 1; a header that claims more lies


@dataclass(frozen=True)
class Entry:
    """A file, or a member of a zip file. Neither name stands in a message: both may hold a patient's name.

    Entries of one zip share its open `archive`, so that its directory is read once.
    """

    path: Path
    member: str | None = None
    archive: zipfile.ZipFile | None = field(default=None, repr=False, compare=False)

    def open(self) -> BinaryIO:
        """A seekable stream at its start; a member is unpacked into memory and checked against its CRC."""
        if self.member is not None:
            return io.BytesIO(self._read_member(None))
        try:
            return self.path.open("rb")
        except FileNotFoundError:
            raise ReadError("the file is missing") from None
        except OSError as error:
            raise ReadError(f"the file cannot be opened ({error.strerror})") from None

    def head(self) -> bytes:
        """The first bytes, enough to tell the format."""
        if self.member is not None:
            return self._read_member(HEAD_BYTES)
        with self.open() as stream:
            return stream.read(HEAD_BYTES)

    def format(self) -> str:
        return format_of(self.head())

    @property
    def name(self) -> str:
        """For sorting and for the suffix only, never for a message."""
        return self.member if self.member is not None else self.path.as_posix()

    def _read_member(self, limit: int | None) -> bytes:
        archive = self.archive if self.archive is not None else _open_zip(self.path)
        assert self.member is not None
        return _read(archive, _info(archive, self.member), limit)


def entries(path: Path, member: str | None = None) -> list[Entry]:
    """Every file in a folder (recursively), or every member of a zip (below the folder `member`), sorted by name.

    Hidden files, `__MACOSX` and folders are left out. Raises ReadError for a damaged zip or a name that leaves it.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return [Entry(file) for file in files if not _is_hidden(file.relative_to(path).as_posix())]
    archive = _open_zip(path)
    names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    for name in names:
        _refuse_unsafe(name)
    prefix = "" if member is None else member.rstrip("/") + "/"
    return [Entry(path, name, archive) for name in names if name.startswith(prefix) and not _is_hidden(name)]


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise ReadError("the file is missing") from None
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ReadError(f"the zip file is damaged or cut short ({type(error).__name__}); download it again") from None


def _info(archive: zipfile.ZipFile, member: str) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(member)
    except KeyError:
        raise ReadError(f"the zip file has no such member among its {len(archive.namelist())} entries") from None


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int | None = None) -> bytes:
    if info.flag_bits & 0x1:
        raise ReadError("the zip member is encrypted; unpack it with its password first")
    if info.file_size > MAX_MEMBER_BYTES or info.file_size > MAX_RATIO * max(info.compress_size, 1):
        raise ReadError(
            f"the zip member claims {info.file_size:,} bytes from {info.compress_size:,} packed; "
            f"allowed are {MAX_MEMBER_BYTES:,} bytes and a ratio of {MAX_RATIO}"
        )
    try:
        with archive.open(info) as stream:
            return stream.read() if limit is None else stream.read(limit)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError) as error:
        raise ReadError(f"the zip member cannot be unpacked ({type(error).__name__}); download it again") from None


def _refuse_unsafe(name: str) -> None:
    plain = name.replace("\\", "/")
    if plain.startswith("/") or plain[1:2] == ":" or ".." in plain.split("/"):
        raise ReadError("the zip holds a name that points outside the archive; it was refused as unsafe")


def _is_hidden(name: str) -> bool:
    parts = posixpath.normpath(name).split("/")
    return parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts)
