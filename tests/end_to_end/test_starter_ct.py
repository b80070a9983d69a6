"""The shipped CT model, as a user meets it: a report in, a chest with its masks out."""

import json

import nibabel
import numpy as np
import pytest

from medisyn.cli import main
from medisyn.recipes.shipped_models import shipped_model

pytestmark = pytest.mark.skipif(not shipped_model("starter-ct").present, reason="starter-ct is not in this build")


def test_a_report_gives_a_chest_with_masks_and_dicom(tmp_path):
    out = tmp_path / "ct"
    command = ["generate", "Large right pleural effusion. No cardiomegaly.", "--model", "starter-ct", "--out", str(out)]
    assert main([*command, "--steps", "6", "--dicom"]) == 0
    (record,) = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    ct = nibabel.load(out / record["file_name"])
    assert ct.shape == (64, 64, 64)
    np.testing.assert_allclose(ct.header.get_zooms(), (5.5, 5.5, 5))
    hu = np.asarray(ct.dataobj)
    assert -1024 <= hu.min() < -900
    lobes = np.asarray(nibabel.load(out / f"{record['key']}-lobe.nii.gz").dataobj)
    litres = (lobes > 0).sum() * 5.5 * 5.5 * 5 / 1e6
    assert 0.5 < litres < 9
    assert hu[lobes > 0].mean() < -500  # air and blood
    assert len(list((out / "dicom" / record["key"] / "ct").glob("*.dcm"))) == 64
    assert (out / "planes" / f"{record['key']}.png").stat().st_size > 1000
