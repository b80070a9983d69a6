"""NIfTI files of a generated CT: geometry by hand and through two readers, the record inside, equal bytes, errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from generation.volumes import AFFINES, RECORD, assert_same_patient, ct, masks
from medisyn.corpus.readers import read_item
from medisyn.errors import InputError
from medisyn.generation.volume_files import write_nifti


def test_the_header_by_hand(tmp_path: Path):
    write_nifti(tmp_path / "a.nii.gz", ct(), RECORD)
    image = nibabel.load(tmp_path / "a.nii.gz")
    raw = np.frombuffer(gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[:348], nibabel.nifti1.header_dtype)[0]
    assert image.shape == (6, 5, 4)  # w, h, d
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
    # LPS (-10, -20, -30) is RAS (10, 20, -30); w runs to the left and h to the back, against R and A.
    wanted = [[-1.25, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 3, -30], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.affine, wanted)
    np.testing.assert_allclose(image.get_qform(), wanted, atol=1e-6)  # float32 quaternion
    assert (raw["sform_code"], raw["qform_code"], raw["xyzt_units"]) == (1, 1, 2)
    assert (raw["datatype"], raw["scl_slope"], raw["scl_inter"]) == (4, 1, 0)  # int16
    assert raw["descrip"] == b"Synthetic. Not for diagnostic use."
    assert np.asarray(image.dataobj)[5, 0, 0] == -1000 + 5 * 7
    assert np.asarray(image.dataobj)[0, 0, 3] == -1000 + 3 * 30 * 7


@pytest.mark.parametrize("name", AFFINES)
def test_every_voxel_is_where_it_was_for_an_independent_reader(tmp_path: Path, name: str):
    volume = ct(affine=AFFINES[name])
    write_nifti(tmp_path / "a.nii.gz", volume, RECORD, masks())
    read = read_item(tmp_path / "a.nii.gz", modality="CT")
    assert_same_patient(volume.array_CDHW[0], volume.affine, read.array_CDHW[0], read.affine)
    image = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-5)  # float32 at up to 30 mm


def test_ct_and_masks_agree_in_shape_and_affine(tmp_path: Path):
    paths = write_nifti(tmp_path / "a.nii.gz", ct(affine=AFFINES["oblique"]), RECORD, masks())
    assert [path.name for path in paths] == [
        "a-lobe.nii.gz", "a-airway.nii.gz", "a-vessel.nii.gz", "a.json", "a.nii.gz",
    ]  # fmt: skip
    first = nibabel.load(paths[-1])
    for name in ("lobe", "airway", "vessel"):
        mask = nibabel.load(tmp_path / f"a-{name}.nii.gz")
        np.testing.assert_array_equal(mask.affine, first.affine)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), masks()[name].transpose(2, 1, 0))
        assert mask.header.get_intent()[0] == "label"
        assert mask.header.get_intent()[2] == name
        assert mask.get_data_dtype() == np.uint8


def test_the_record_is_in_the_file_and_survives_nibabel(tmp_path: Path):
    write_nifti(tmp_path / "a.nii.gz", ct(), {**RECORD, "prompt": "Épanchement pleural"}, masks())
    nibabel.save(nibabel.load(tmp_path / "a-lobe.nii.gz"), tmp_path / "again.nii.gz")
    told = json.loads(nibabel.load(tmp_path / "again.nii.gz").header.extensions[0].get_content())
    assert told["medisyn"]["prompt"] == "Épanchement pleural"
    assert told["medisyn"]["notice"] == "Synthetic image. Not for diagnostic use."
    assert told["labels"]["4"] == "right middle lobe"
    sidecar = json.loads((tmp_path / "a.json").read_text())
    assert sidecar["medisyn"] == told["medisyn"]
    assert sidecar["spacing_mm_DHW"] == [3.0, 1.5, 1.25]
    assert sidecar["masks"]["airway"] == {"file": "a-airway.nii.gz", "labels": {"0": "background", "1": "airway"}}


def test_equal_input_gives_equal_bytes_and_other_input_does_not(tmp_path: Path):
    for folder, record in (("a", RECORD), ("b", dict(reversed(RECORD.items()))), ("c", {**RECORD, "seed": 18})):
        write_nifti(tmp_path / folder / "x.nii.gz", ct(), record, masks())
    for name in ("x.nii.gz", "x-lobe.nii.gz"):
        first = (tmp_path / "a" / name).read_bytes()
        assert first[4:8] == bytes(4)  # gzip's time
        assert (tmp_path / "b" / name).read_bytes() == first
        assert (tmp_path / "c" / name).read_bytes() != first


def test_nothing_is_written_when_a_mask_does_not_fit(tmp_path: Path):
    with pytest.raises(InputError, match=r"shape \(2, 5, 6\), its CT \(4, 5, 6\)"):
        write_nifti(tmp_path / "a.nii.gz", ct(), RECORD, {**masks(), "vessel": np.zeros((2, 5, 6))})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.nii", "a.dcm", ".nii.gz"])
def test_another_file_name_is_refused(tmp_path: Path, name: str):
    with pytest.raises(InputError, match=r"ends with \.nii\.gz"):
        write_nifti(tmp_path / name, ct(), RECORD)
