"""Files of stacked pictures and labels, .npz or HDF5, as pieces.

Shapes here: C channels, H, W height and width, N pictures.
"""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medisyn.corpus.opened import OpenFile, Piece
from medisyn.corpus.splits import position
from medisyn.corpus.takes import Arrays
from medisyn.errors import MissingDependency, ReadError
from medisyn.types import Picture

NPZ_ERRORS = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)  # of damaged files and of pickles
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def array_pieces(take: Arrays, file: OpenFile) -> Iterator[Piece]:
    """A piece for each row of each array of pictures, or for `take.per_class` rows of each label."""
    labels_path = file.path if take.labels_file is None else file.beside(take.labels_file)
    with open_arrays(file.path) as arrays, open_arrays(labels_path) as label_arrays:
        for name, labels_name in take.pairs.items():
            pictures_N, labels_N = _pictures(arrays, name), _rows(_member(label_arrays, labels_name), labels_name)
            labels_N = labels_N.reshape(-1)
            if len(pictures_N) != len(labels_N):
                raise ReadError(
                    f"array {name!r} has {len(pictures_N)} pictures, {labels_name!r} {len(labels_N)} labels"
                )
            for number in _drawn(take, file, name, labels_N):
                label = int(labels_N[number])
                if label not in take.classes:
                    raise ReadError(f"array {labels_name!r}: label {label} has no word; named: {sorted(take.classes)}")
                pixels = _rows(pictures_N, name, number)
                array_CHW = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
                words = {"label": take.classes[label]}
                yield Piece(f"{name}-{number:06d}", Picture(array_CHW), words, given=take.splits.get(name))


def _drawn(take: Arrays, file: OpenFile, name: str, labels_N: np.ndarray) -> list[int]:
    """The numbers of the rows to take, rising; which ones is fixed by the file, the array and the number."""
    if take.per_class is None:
        return list(range(len(labels_N)))
    chosen: list[int] = []
    for label in np.unique(labels_N):
        rows = sorted(np.flatnonzero(labels_N == label).tolist(), key=lambda row: position(f"{file.key}/{name}/{row}"))
        chosen += rows[: take.per_class]
    return sorted(chosen)


def _pictures(arrays: Mapping[str, Any], name: str) -> Any:
    """An array of pictures, not read yet where the file is HDF5."""
    pictures_N = _member(arrays, name)
    if pictures_N.dtype != np.uint8:
        raise ReadError(f"array {name!r} is {pictures_N.dtype}, expected uint8")
    if pictures_N.ndim != 3 and (pictures_N.ndim != 4 or pictures_N.shape[-1] not in (1, 3)):
        raise ReadError(f"array {name!r} is {pictures_N.shape}, expected (N, H, W) or (N, H, W, 3)")
    return pictures_N


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator[Mapping[str, Any]]:
    """Named arrays of an .npz or HDF5 file. Raises ReadError, and MissingDependency for HDF5 without h5py."""
    try:
        with path.open("rb") as stream:
            is_hdf5 = stream.read(len(HDF5_MAGIC)) == HDF5_MAGIC
    except FileNotFoundError:
        raise ReadError("the file is missing") from None
    with _open_hdf5(path) if is_hdf5 else _open_npz(path) as arrays:
        yield arrays


def _open_npz(path: Path) -> Any:
    try:
        arrays = np.load(path, allow_pickle=False)
    except NPZ_ERRORS as error:
        raise ReadError(f"not an .npz file of plain arrays ({type(error).__name__})") from None
    if isinstance(arrays, np.ndarray):
        raise ReadError("not an .npz file but a single .npy array; save pictures and labels with numpy.savez")
    return arrays


def _open_hdf5(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise MissingDependency("HDF5 files are read with h5py, which is not installed: pip install h5py") from None
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ReadError(f"the HDF5 file is damaged or cut short ({type(error).__name__})") from None


def _member(arrays: Mapping[str, Any], name: str) -> Any:
    if name not in arrays:
        raise ReadError(f"the file has no array {name!r}; it holds {', '.join(arrays)}")
    try:
        array = arrays[name]
    except NPZ_ERRORS as error:
        raise ReadError(f"array {name!r} is damaged or no plain array ({type(error).__name__})") from None
    if not hasattr(array, "dtype"):
        raise ReadError(f"{name!r} is a group of arrays and no array")
    return array


def _rows(array_N: Any, name: str, number: int | tuple[()] = ()) -> np.ndarray:
    """One row of an array, or all of it; of HDF5 the disk is read here."""
    try:
        return np.asarray(array_N[number])
    except OSError as error:
        raise ReadError(f"array {name!r} is damaged or cut short ({type(error).__name__})") from None
