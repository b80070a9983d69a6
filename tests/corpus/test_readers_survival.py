"""Whatever the file, a reader gives an item or one of our errors, warns nobody and names nobody."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
import skimage
from PIL import Image

from medisyn.corpus.readers import dicom, read_item
from medisyn.errors import MissingDependency, RangeError, ReadError
from medisyn.types import Clip, Picture, Volume

DICOM = Path(pydicom.__file__).parent / "data" / "test_files"
NIBABEL = Path(nibabel.__file__).parent / "tests" / "data"
SKIMAGE = Path(skimage.__file__).parent / "data"
EXPECTED = (ReadError, MissingDependency, RangeError)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))


def outcomes(paths: list[Path], call) -> dict[Path, object]:
    """What came of each file; any other exception, and any warning, ends the test."""
    found: dict[Path, object] = {}
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                found[path] = call(path)
            except EXPECTED as error:
                found[path] = error
    return found


def test_every_test_file_of_pydicom(capfd):
    found = outcomes(files_of(DICOM), read_item)
    assert len(found) > 150
    items = [path for path, item in found.items() if isinstance(item, Picture | Clip | Volume)]
    assert len(items) >= 75
    by_text = [str(error) for error in found.values() if isinstance(error, Exception)]
    assert sum("holds no image" in text for text in by_text) >= 60
    assert "the pixel data is cut short: 8,130 bytes of 8,192" in by_text  # MR_truncated.dcm
    for path, error in found.items():
        if isinstance(error, Exception):
            assert path.name not in str(error)
            assert str(DICOM) not in str(error)
    assert capfd.readouterr() == ("", "")


def test_the_attributes_of_every_test_file_of_pydicom_are_harmless():
    found = outcomes(files_of(DICOM), dicom.attributes)
    read = {path: value for path, value in found.items() if isinstance(value, dict)}
    assert len(read) >= 80
    for path, attributes in read.items():
        dataset = pydicom.dcmread(path, force=True) if path.suffix != ".gz" else None
        name = str(dataset.get("PatientName", "")) if dataset is not None else ""
        patient = str(dataset.get("PatientID", "")) if dataset is not None else ""
        for word in [*name.replace("^", " ").split(), patient]:
            if len(word) >= 3:
                assert word.lower() not in str(attributes).lower(), path.name


@pytest.mark.parametrize(("folder", "least"), [(NIBABEL, 6), (SKIMAGE, 25)])
def test_every_data_file_of_nibabel_and_scikit_image(folder, least):
    small = [path for path in files_of(folder) if path.stat().st_size < 300_000]
    found = outcomes(small, read_item)
    assert sum(isinstance(item, Picture | Clip | Volume) for item in found.values()) >= min(least, len(small) // 3)


def victims(folder: Path) -> list[Path]:
    """One small file of each kind of encoding."""
    coins = Image.open(SKIMAGE / "coins.png").resize((60, 40))
    coins.convert("RGB").save(folder / "a.jpg")
    coins.save(folder / "a.bmp")
    coins.save(folder / "a.tif", compression="tiff_lzw")
    coins.convert("RGB").save(folder / "b.tif", compression="jpeg")
    header = {"space": "left-posterior-superior", "space directions": np.eye(3), "space origin": [0, 0, 0]}
    nrrd.write(str(folder / "a.nrrd"), np.arange(60, dtype=np.int16).reshape(3, 4, 5), header)
    names = ("CT_small", "MR_small_RLE", "MR_small_jpeg_ls_lossless", "MR_small_jp2klossless", "SC_rgb_small_odd_jpeg")
    shipped = [DICOM / f"{name}.dcm" for name in names] + [DICOM / "zipMR.gz", SKIMAGE / "microaneurysms.png"]
    return [*sorted(folder.iterdir()), *shipped, NIBABEL / "standard.nii.gz", NIBABEL / "anatomical.nii"]


@pytest.mark.parametrize("seed", range(4))
def test_damaged_bytes_never_raise_anything_else(tmp_path, seed):
    """Cut short, or with bytes overwritten, mostly in the header: 60 damaged files per seed."""
    rng = random.Random(seed)
    (tmp_path / "good").mkdir()
    originals = [path.read_bytes() for path in victims(tmp_path / "good")]
    damaged = []
    for number in range(60):
        content = bytearray(originals[number % len(originals)])
        if rng.random() < 0.3:
            content = content[: rng.randrange(len(content))]
        else:
            for _ in range(rng.choice([1, 3, 10, 100])):
                content[rng.randrange(min(len(content), rng.choice([1200, 10**9])))] = rng.choice(
                    [0, 255, rng.randrange(256)]
                )
        damaged.append(tmp_path / f"{number}.bin")
        damaged[-1].write_bytes(bytes(content))
    found = outcomes(damaged, read_item)
    assert sum(isinstance(value, Exception) for value in found.values()) > 20
