"""A folder of phantoms: files that other readers open, one table, and the same files after a kill."""

from __future__ import annotations

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest

from medisyn import runs
from medisyn.corpus.curate import curate
from medisyn.corpus.readers.archive import Entry
from medisyn.corpus.readers.nifti import read_nifti
from medisyn.errors import BusyError, InputError
from medisyn.phantoms import make_thorax
from medisyn.phantoms.findings import KINDS, draw_findings
from medisyn.phantoms.folder import MASKS, label_columns, nifti_bytes, write_phantoms
from medisyn.seeding import seed_for

SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms") / "out"
    report = write_phantoms(out, 3, size=SIZE, seed=5)
    assert (report.count, report.there_before) == (3, 0)
    return out


def test_the_files_hold_the_phantom(folder):
    seed = seed_for(5, "thorax-000001")
    phantom = make_thorax(seed, SIZE, draw_findings(seed))
    volume = read_nifti(Entry(folder / "thorax-000001" / "ct.nii.gz"), "CT")
    np.testing.assert_array_equal(volume.array_CDHW, np.rint(phantom.volume.array_CDHW))
    np.testing.assert_allclose(volume.affine, phantom.volume.affine, atol=1e-4)
    for name in MASKS:
        image = nibabel.load(folder / "thorax-000001" / f"{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), phantom.masks[name])
    assert (folder / "thorax-000001" / "report.txt").read_text() == phantom.report + "\n"
    record = json.loads((folder / "thorax-000001" / "truth.json").read_text())
    assert record["truth"] == phantom.truth
    assert record["seed"] == seed


def test_nifti_is_ras_with_true_spacing(folder):
    image = nibabel.load(folder / "thorax-000000" / "ct.nii.gz")
    np.testing.assert_allclose(image.header.get_zooms(), (11, 11, 10))
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")  # +i runs to the left, as in the array
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
    assert image.get_data_dtype() == np.int16
    left_upper = np.argwhere(np.asarray(nibabel.load(folder / "thorax-000000" / "lobe.nii.gz").dataobj) == 1).mean(0)
    assert (image.affine @ [*left_upper, 1])[0] < 0  # RAS: the patient's left is below 0


def test_the_same_array_gives_the_same_bytes():
    array = np.zeros((2, 3, 4), dtype=np.int16)
    assert nifti_bytes(array, np.eye(4)) == nifti_bytes(array, np.eye(4))


def test_the_table_has_a_row_for_each(folder):
    with (folder / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    records = runs.read_jsonl(folder / "phantoms.jsonl")
    assert [row["key"] for row in rows] == [record["key"] for record in records]
    for row, record in zip(rows, records, strict=True):
        assert (folder / row["ct"]).is_file()
        assert (folder / row["mask_lobe"]).is_file()
        assert float(row["cardiothoracic_ratio"]) == record["truth"]["cardiothoracic_ratio"]
        kinds = [finding["kind"].replace("_", "-") for finding in record["findings"]]
        assert row["findings"] == "|".join(kinds)
        grades = {name: float(row[name]) for name in label_columns()}
        assert {name.split("_", 2)[-1] if "cardiomegaly" not in name else "cardiomegaly" for name in grades} == {*KINDS}
        for finding in record["findings"]:
            grade = (1 + int(3 * finding["severity"])) / 3
            named = [name for name in grades if name.endswith(finding["kind"])]
            there = [name for name in named if len(named) == 1 or finding["side"] in ("both", name.split("_")[1])]
            assert [grades.pop(name) for name in there] == [pytest.approx(grade, abs=1e-4)] * len(there)
        assert not any(grades.values())


def test_what_is_missing_is_made_again_and_more_may_be_added(folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    before = (out / "thorax-000002" / "ct.nii.gz").read_bytes()
    kept = (out / "thorax-000000" / "ct.nii.gz").stat().st_mtime_ns
    (out / "thorax-000001" / "lobe.nii.gz").unlink()
    (out / "thorax-000002" / "truth.json").write_text("{")
    (out / ".thorax-000002.abcdefgh.tmp").mkdir()
    seen = []
    report = write_phantoms(out, 4, size=SIZE, seed=5, progress=lambda done, total: seen.append((done, total)))
    assert (report.count, report.there_before) == (4, 1)
    assert seen == [(4, 4)]
    assert (out / "thorax-000002" / "ct.nii.gz").read_bytes() == before
    assert (out / "thorax-000000" / "ct.nii.gz").stat().st_mtime_ns == kept
    assert not list(out.glob(".*.tmp"))
    assert runs.read_run(out)["phantoms"] == 4
    assert "4 phantoms in" in report.text()


def test_two_processes_make_the_same_files(folder, tmp_path):
    write_phantoms(tmp_path / "out", 3, size=SIZE, seed=5, engine="processes:1")
    for path in sorted(folder.rglob("*.*")):
        if path.name != "run.json":
            assert (tmp_path / "out" / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name


def test_curate_reads_the_folder(folder, tmp_path):
    report = curate(folder / "source.yaml", tmp_path / "corpus")
    assert report.read == 3
    assert report.quarantined == 0
    assert report.kept > 60  # two windows of more than ten slices each


def test_what_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="count must be at least 1, got 0"):
        write_phantoms(tmp_path / "none", 0)
    with pytest.raises(InputError, match="'lump' is not allowed"):
        write_phantoms(tmp_path / "none", 1, findings=("lump",))
    assert not (tmp_path / "none").exists()
    with pytest.raises(InputError, match="holds phantoms with size 32, now it is 48"):
        write_phantoms(folder, 3, size=48, seed=5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(InputError, match="holds files that are not of `medisyn phantom`"):
        write_phantoms(tmp_path / "mine", 1)
    runs.write_run(tmp_path / "other", kind="generate")
    with pytest.raises(InputError, match="holds a generate run"):
        write_phantoms(tmp_path / "other", 1)
    with runs.lock(tmp_path / "busy"), pytest.raises(BusyError, match="another process"):
        write_phantoms(tmp_path / "busy", 1)
