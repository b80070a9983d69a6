"""`medisyn evaluate --anatomy` from the command line; the other forms are tested where their recipes are."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from medisyn.generation.volume_files.nifti import nifti_bytes


@pytest.fixture
def run():
    from medisyn.cli import app

    return lambda *words: CliRunner().invoke(app, ["evaluate", *map(str, words)])


def test_anatomy_of_a_folder(run, tmp_path):
    lobe = np.zeros((8, 8, 8), np.uint8)
    lobe[2:6, 2:6, 2:6] = 2
    (tmp_path / "v").mkdir()
    affine = np.diag([10.0, 10.0, 10.0, 1.0])[[2, 1, 0, 3]]
    (tmp_path / "v" / "a.nii.gz").write_bytes(nifti_bytes(np.where(lobe, -850, 40).astype(np.int16), affine, {}))
    (tmp_path / "v" / "a-lobe.nii.gz").write_bytes(nifti_bytes(lobe, affine, {}))
    done = run(tmp_path / "v", "--anatomy", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["volumes"][0]["values"]["lobe_ml_left_lower"] == 64
    assert (tmp_path / "v-anatomy" / "report.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--against is missing"),
        (("--masks", "classical"), "no use without --anatomy"),
        (("--anatomy", "--stages"), "no use with --anatomy"),
    ],
)
def test_options_that_do_not_go_together(run, tmp_path, words, message):
    done = run(tmp_path, *words)
    assert done.exit_code == 2
    assert message in done.output
