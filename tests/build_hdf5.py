"""Stand-ins for HDF5 files and h5py, with the part of its interface that is used: h5py is optional."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medisyn.corpus.array_pieces import HDF5_MAGIC


class Dataset:
    """Like h5py.Dataset: the rows are read when they are asked for."""

    def __init__(self, array, damaged):
        self.array, self.damaged = array, damaged
        self.dtype, self.shape, self.ndim = array.dtype, array.shape, array.ndim

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        if self.damaged:
            raise OSError("truncated file")
        return self.array[rows]


class File(dict):
    def __init__(self, path, mode):
        assert mode == "r"
        with open(path, "rb") as stream:
            assert stream.read(8) == HDF5_MAGIC
            if stream.read(1) != b"+":
                raise OSError("unable to open file")
            damaged = stream.read(1) == b"!"
            arrays = dict(np.load(stream))
        super().__init__({name: Dataset(array, damaged) for name, array in arrays.items() if array.ndim})
        self.update({name: {} for name, array in arrays.items() if not array.ndim})  # groups

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.clear()


def save(path: Path, damaged: bool = False, **arrays: Any) -> None:
    """A file that `File` reads; an array without axes becomes a group, and of a damaged file no row can be read."""
    with path.open("wb") as stream:
        stream.write(HDF5_MAGIC + (b"+!" if damaged else b"+."))
        np.savez(stream, **arrays)
