"""Stacked pictures in .npz and HDF5: which rows are taken, labels in another file, files that are refused.

h5py is optional: a stand-in reads stand-in files, and one test reads a real one where h5py is there.
"""

import sys
import types

import numpy as np
import pytest

import build_hdf5
import build_source
from medisyn.corpus.array_pieces import HDF5_MAGIC
from medisyn.corpus.opened import OpenFile
from medisyn.corpus.pieces import pieces
from medisyn.errors import ConfigError, MissingDependency, ReadError

ARRAYS = {"kind": "arrays", "pairs": {"x": "y"}, "classes": {0: "normal", 1: "ill"}, "captions": ["{label}"]}
APART = {**ARRAYS, "labels_file": "{split}_y.h5"}
ROW = {"file": "train_x.h5", "split": "train"}


@pytest.fixture
def h5py(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", types.SimpleNamespace(File=build_hdf5.File))


def taken(folder, take=APART, row=ROW):
    source = build_source.source(folder, fields={}, samples=[take])
    return list(pieces(source.samples[0], OpenFile(source, folder, folder / row["file"], row, "key")))


PICTURES = np.stack([np.stack([build_source.picture(n)] * 3, axis=-1) for n in range(10)])
LABELS = np.array([0, 1, 1, 0, 1, 0, 1, 1, 0, 1], np.uint8).reshape(10, 1, 1, 1)  # PatchCamelyon's shape


def test_hdf5_with_its_labels_in_another_file(tmp_path, h5py):
    build_hdf5.save(tmp_path / "train_x.h5", x=PICTURES)
    build_hdf5.save(tmp_path / "train_y.h5", y=LABELS)
    made = taken(tmp_path)
    assert [piece.words["label"] for piece in made] == [("normal", "ill")[label] for label in LABELS.reshape(-1)]
    for piece, pixels in zip(made, PICTURES, strict=True):
        np.testing.assert_array_equal(piece.picture.array_CHW, pixels.transpose(2, 0, 1))


def test_so_many_of_each_label_the_same_in_every_run(tmp_path):
    np.savez(tmp_path / "a.npz", x=PICTURES, y=LABELS)
    row = {"file": "a.npz"}
    three = taken(tmp_path, {**ARRAYS, "per_class": 3}, row)
    assert [piece.words["label"] for piece in three].count("ill") == 3
    assert len(three) == 6
    assert [piece.suffix for piece in three] == sorted(piece.suffix for piece in three)
    for piece in three:
        number = int(piece.suffix[-6:])
        np.testing.assert_array_equal(piece.picture.array_CHW, PICTURES[number].transpose(2, 0, 1))
    again = taken(tmp_path, {**ARRAYS, "per_class": 3}, row)
    assert [piece.suffix for piece in again] == [piece.suffix for piece in three]
    two = {piece.suffix for piece in taken(tmp_path, {**ARRAYS, "per_class": 2}, row)}
    assert two < {piece.suffix for piece in three}
    five = taken(tmp_path, {**ARRAYS, "per_class": 5}, row)
    assert len(five) == 4 + 5  # there are four normal ones
    with pytest.raises(ConfigError, match="per_class: Input should be greater than or equal to 1"):
        taken(tmp_path, {**ARRAYS, "per_class": 0}, row)


def test_hdf5_files_that_are_refused(tmp_path, h5py):
    build_hdf5.save(tmp_path / "train_x.h5", x=PICTURES, group=np.array(0))
    with pytest.raises(ReadError, match="the file is missing"):
        taken(tmp_path)
    build_hdf5.save(tmp_path / "train_y.h5", damaged=True, y=LABELS)
    with pytest.raises(ReadError, match=r"array 'y' is damaged or cut short \(OSError\)"):
        taken(tmp_path)
    build_hdf5.save(tmp_path / "train_y.h5", z=LABELS)
    with pytest.raises(ReadError, match="the file has no array 'y'; it holds z"):
        taken(tmp_path)
    with pytest.raises(ReadError, match="'group' is a group of arrays and no array"):
        taken(tmp_path, {**APART, "pairs": {"group": "z"}})
    (tmp_path / "train_y.h5").write_bytes(HDF5_MAGIC)
    with pytest.raises(ReadError, match=r"the HDF5 file is damaged or cut short \(OSError\)"):
        taken(tmp_path)


def test_hdf5_without_h5py_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    build_hdf5.save(tmp_path / "train_x.h5", x=PICTURES)
    with pytest.raises(MissingDependency, match=r"HDF5 files are read with h5py.*: pip install h5py"):
        taken(tmp_path)


def test_hdf5_that_h5py_wrote(tmp_path):
    h5py = pytest.importorskip("h5py")
    for name, arrays in (("train_x.h5", {"x": PICTURES}), ("train_y.h5", {"y": LABELS})):
        with h5py.File(tmp_path / name, "w") as file:
            for key, array in arrays.items():
                file.create_dataset(key, data=array, chunks=(1, *array.shape[1:]), compression="gzip")
    made = taken(tmp_path)
    assert len(made) == 10
    np.testing.assert_array_equal(made[7].picture.array_CHW, PICTURES[7].transpose(2, 0, 1))
    assert made[7].words == {"label": "ill"}
