"""CT corpora as users have them, read for MedSyn: layouts, masks, resampling, reports, and what is refused."""

import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

import build_dicom
import build_medsyn as build
from medisyn.errors import ConfigError, CorpusError, InputError, RangeError, ReadError
from medisyn.phantoms.folder import nifti_bytes
from medisyn.recipes.medsyn_corpus import MASKS, CtData, CtReader, find_cts, find_reports, fingerprint
from medisyn.recipes.medsyn_grid import fits, mask_like, place
from medisyn.types import HU, Volume

CHEST = build.chest(0)


def write(path: Path, array_DHW, affine=CHEST.item.affine) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(nifti_bytes(array_DHW, affine))


def folder_of(corpus: Path, sample=CHEST, name="a") -> Path:
    """One CT with its masks and report, in a folder of its own."""
    write(corpus / name / "ct.nii.gz", sample.item.array_CDHW[0], sample.item.affine)
    for mask in MASKS:
        write(corpus / name / f"{mask}.nii.gz", sample.masks[mask], sample.item.affine)
    (corpus / name / "report.txt").write_text(sample.caption)
    return corpus


def reader(corpus: Path, **data) -> CtReader:
    return CtReader(corpus, find_cts(corpus), CtData(**{"finer": 2, **data}), build.GRID)


def assert_is_the_chest(sample) -> None:
    np.testing.assert_array_equal(sample.item.array_CDHW, CHEST.item.array_CDHW)
    np.testing.assert_allclose(sample.item.affine, CHEST.item.affine, atol=1e-4)
    for mask in MASKS:
        np.testing.assert_array_equal(sample.masks[mask], CHEST.masks[mask])
    assert sample.caption == CHEST.caption


# ---- layouts


def test_a_folder_of_nifti_folders(tmp_path):
    folder_of(tmp_path, name="b")
    folder_of(tmp_path, build.chest(1), name="a")
    read = reader(tmp_path)
    assert [files.key for files in read.found] == ["ct-0001", "ct-0002"]
    assert_is_the_chest(read(1))
    assert read(1).metadata["num_masks"] == 3
    assert read(1).metadata["resampled"] is False


def test_nifti_files_side_by_side(tmp_path):
    write(tmp_path / "x.nii.gz", CHEST.item.array_CDHW[0])
    for mask, mark in zip(MASKS, "__-", strict=True):
        write(tmp_path / f"x{mark}{mask}.nii.gz", CHEST.masks[mask])
    (tmp_path / "x.txt").write_text(CHEST.caption)
    read = reader(tmp_path)
    assert len(read.found) == 1
    assert_is_the_chest(read(0))


def test_a_zip(tmp_path):
    folder_of(tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "corpus.zip", "w") as archive:
        for file in sorted((tmp_path / "plain").rglob("*.*")):
            archive.write(file, file.relative_to(tmp_path / "plain"))
    assert_is_the_chest(reader(tmp_path / "corpus.zip")(0))


def test_phantoms_keep_their_keys_and_other_masks_are_left_alone(tmp_path):
    folder_of(tmp_path, name="thorax-000003")
    write(tmp_path / "thorax-000003" / "heart.nii.gz", CHEST.masks["vessel"])
    assert [files.key for files in find_cts(tmp_path)] == ["thorax-000003"]


def test_a_dicom_series_with_masks_beside_it(tmp_path):
    build_dicom.series(tmp_path, [[0, 0, 3.0 * number] for number in range(5)])
    sample = reader(tmp_path, masks="empty", report="Lungs are clear.")(0)
    assert sample.item.array_CDHW.shape == (1, 16, 16, 16)
    assert sample.caption == "Lungs are clear."
    assert sample.metadata["spacing_mm"] == pytest.approx((3.0, 0.5, 0.25))
    assert sample.metadata["resampled"] is True
    assert not any(mask.any() for mask in sample.masks.values())
    with pytest.raises(CorpusError, match=r"ct-0001: there is no mask of lobe, airway, vessel.*masks=empty"):
        reader(tmp_path, report="Clear.")(0)
    for mask in MASKS:
        write(tmp_path / f"{mask}.nii.gz", np.ones((5, 4, 6), np.uint8), np.diag([1.0, 1, 1, 1]))
    with pytest.raises(InputError, match=r"ct-0001: mask 'lobe' has shape .* its CT \(5, 4, 6\)"):
        reader(tmp_path, report="Clear.")(0)


@pytest.mark.parametrize("content", ["missing", "text", "empty", "only reports"])
def test_no_ct(tmp_path, content):
    corpus = tmp_path / "corpus"
    if content == "text":
        corpus.write_text("a")
    elif content != "missing":
        corpus.mkdir()
        if content == "only reports":
            (corpus / "a.txt").write_text("Lungs are clear.")
    message = {"missing": "there is no corpus 'corpus'", "text": "a CT corpus is a folder or a zip file"}
    with pytest.raises(CorpusError, match=message.get(content, "the corpus holds no CT")):
        find_cts(corpus)


def test_data_settings_are_checked():
    with pytest.raises(ConfigError, match="masks must be one of required, empty, got 'none'"):
        CtData(masks="none")
    with pytest.raises(ConfigError, match="finer must be at least 1, got 0"):
        CtData(finer=0)


# ---- what is refused, each with its key and without a file's name


def test_reports(tmp_path):
    folder_of(tmp_path, name="DOE_JANE")
    report = tmp_path / "DOE_JANE" / "report.txt"
    report.write_text("  ")
    with pytest.raises(CorpusError, match=r"ct-0001: it has no report, or an empty one") as caught:
        reader(tmp_path)(0)
    assert "DOE" not in str(caught.value)
    report.unlink()
    assert reader(tmp_path, report="Clear.")(0).caption == "Clear."
    assert replace(reader(tmp_path), needs_report=False)(0).caption == ""
    report.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(CorpusError, match=r"ct-0001: a report is not UTF-8"):
        reader(tmp_path)(0)


def test_numbers_that_are_no_hu(tmp_path):
    folder_of(tmp_path)
    hu = CHEST.item.array_CDHW[0]
    write(tmp_path / "a" / "ct.nii.gz", (hu + 1024) / 4096)
    with pytest.raises(RangeError, match=r"ct-0001: CT: values run from .* looks like \[0, 1\]"):
        reader(tmp_path)(0)
    write(tmp_path / "a" / "ct.nii.gz", hu * 100)
    with pytest.raises(RangeError, match=r"ct-0001: CT: .*the rescale slope was applied twice"):
        reader(tmp_path)(0)


def test_no_spacing(tmp_path):
    folder_of(tmp_path)
    image = nibabel.Nifti1Image(CHEST.item.array_CDHW[0], np.eye(4))
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nibabel.save(image, tmp_path / "a" / "ct.nii.gz")
    with pytest.raises(ReadError, match=r"ct-0001: the NIfTI file has neither sform nor qform"):
        reader(tmp_path)(0)


def test_several_channels_are_no_ct(tmp_path):
    image = nibabel.Nifti1Image(np.random.default_rng(0).normal(0, 300, (4, 4, 4, 2)).astype(np.float32), np.eye(4))
    nibabel.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(CorpusError, match=r"ct-0001: this is no CT volume of one channel"):
        reader(tmp_path)(0)


# ---- masks and the grid


def test_a_mask_stored_in_another_order_and_direction(tmp_path):
    volume = CHEST.item
    turned = np.flip(CHEST.masks["lobe"].transpose(2, 0, 1), axis=0)
    step = np.zeros((4, 4))  # index in the turned mask -> index in the CT
    step[[2, 0, 1, 3], [0, 1, 2, 3]] = [-1, 1, 1, 1]
    step[2, 3] = volume.array_CDHW.shape[3] - 1
    mask = Volume(turned[None].copy(), volume.affine @ step, HU)
    np.testing.assert_array_equal(mask_like(mask, volume, "lobe", "ct-1"), CHEST.masks["lobe"])


def test_a_mask_beside_its_ct(tmp_path):
    shifted = CHEST.item.affine.copy()
    shifted[2, 3] += 5.0  # a quarter of a voxel of 20 mm
    mask = Volume(CHEST.masks["lobe"][None], shifted, HU)
    with pytest.raises(InputError, match=r"ct-1: mask 'lobe' lies 0\.2 voxels beside its CT"):
        mask_like(mask, CHEST.item, "lobe", "ct-1")


def test_resampling_keeps_places():
    """HU that rise by 1 per mm towards the head and by 2 per mm to the left do so on the model's grid, too."""
    affine = np.diag([15.0, 14.0, 13.0, 1.0])[[2, 1, 0, 3]]  # d, h, w -> z, y, x
    affine[:3, 3] = (-200, 30, 400)
    places = np.einsum("ij,jdhw->idhw", affine, np.stack([*np.indices((24, 26, 28)), np.ones((24, 26, 28))]))
    hu = (places[2] - 400 + 2 * (places[0] + 200))[None].astype(np.float32)
    volume = Volume(hu - 300, affine, HU)
    assert not fits(volume, build.GRID, "a")
    got = place(volume, {"lobe": (hu[0] > 100).astype(np.uint8)}, build.GRID, 2, "a")
    assert got.resampled
    assert got.volume.array_CDHW.shape == (1, 16, 16, 16)
    assert got.volume.spacing_mm == pytest.approx((20, 22, 22))
    assert got.covered == 1
    index = np.stack([*np.indices((16, 16, 16)), np.ones((16, 16, 16))])
    there = np.einsum("ij,jdhw->idhw", got.volume.affine, index)
    expected = there[2] - 400 + 2 * (there[0] + 200) - 300
    middle = (slice(3, -3),) * 3  # the box at the border and the air outside it are not linear
    np.testing.assert_allclose(got.volume.array_CDHW[0][middle], expected[middle], atol=1e-2)
    assert set(np.unique(got.masks["lobe"])) == {0, 1}
    np.testing.assert_array_equal(fits(got.volume, build.GRID, "a"), True)


def test_an_oblique_scan_is_set_upright():
    angle = np.radians(20)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = Volume(CHEST.item.array_CDHW, turn @ CHEST.item.affine, HU)
    got = place(volume, {}, build.GRID, 2, "a")
    np.testing.assert_allclose(np.abs(got.volume.affine[[2, 1, 0], [0, 1, 2]]), (20, 22, 22))
    assert got.covered < 1
    assert got.volume.array_CDHW[0, 0, 0, 0] == -1024  # a corner that the turned scan does not reach


def test_the_fingerprint_follows_the_content(tmp_path):
    folder_of(tmp_path)
    before = fingerprint(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    assert fingerprint(tmp_path) == before
    (tmp_path / "a" / "report.txt").write_text("Other.")
    assert fingerprint(tmp_path) != before


# ---- reports alone


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "report\nFindings: One. Impression: Two.\n"),
        ("b.csv", "id,Findings_EN,Impressions_EN\n7,One.,Two.\n"),
        ("c.jsonl", json.dumps({"findings": "no", "findings_text": "One.", "impression_text": "Two."})),
    ],
)
def test_tables_of_reports(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    (report,) = find_reports(tmp_path / name)
    assert report.key == "report-000001"
    assert report.caption.replace("\n", " ") == "Findings: One. Impression: Two."


def test_a_folder_of_reports(tmp_path):
    folder_of(tmp_path)
    assert [report.caption for report in find_reports(tmp_path)] == [CHEST.caption]


def test_labels_of_a_table_and_of_a_folder(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("report,effusion,nodule\nOne.,1,\nTwo.,0.25,0\n")
    first, second = find_reports(tmp_path / "a.csv", ("nodule", "effusion"))
    assert math.isnan(first.metadata["labels"][0])
    assert (first.metadata["labels"][1], second.metadata["labels"]) == (1.0, (0.0, 0.25))
    assert find_reports(table)[0].metadata == {}

    corpus = tmp_path / "corpus"
    for name in ("b", "a"):
        (corpus / name).mkdir(parents=True)
        (corpus / name / "report.txt").write_text(f"This is {name}.")
    (corpus / "table.csv").write_text("key,effusion\nb,1\na,0\n")
    found = [(one.caption, one.metadata["labels"]) for one in find_reports(corpus, ("effusion",))]
    assert found == [("This is a.", (0.0,)), ("This is b.", (1.0,))]


def test_labels_that_are_none(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("report,effusion\nOne.,2\n")
    with pytest.raises(CorpusError, match="row 1: label 'effusion' must be a number from 0 to 1, or empty; got '2'"):
        find_reports(table, ("effusion",))
    table.write_text("report,effusion\nOne.,yes\n")
    with pytest.raises(CorpusError, match="got 'yes'"):
        find_reports(table, ("effusion",))
    with pytest.raises(CorpusError, match=r"a.csv: there is no column 'efusion' of labels..*effusion"):
        find_reports(table, ("efusion",))
    folder_of(tmp_path / "corpus")
    with pytest.raises(CorpusError, match=r"has no table\.csv, from which labels are read.* and effusion"):
        find_reports(tmp_path / "corpus", ("effusion",))
    (tmp_path / "corpus" / "table.csv").write_text("key,effusion\nanother,1\n")
    with pytest.raises(CorpusError, match="1 of 1 texts have no row with their folder's name as key, first number 1"):
        find_reports(tmp_path / "corpus", ("effusion",))


def test_reports_that_are_none(tmp_path):
    (tmp_path / "a.csv").write_text("reprot\nOne.\n")
    with pytest.raises(CorpusError, match=r"neither a column 'report' nor .*Columns there: reprot"):
        find_reports(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text('report,x\nOne.,1\n"",2\n')
    with pytest.raises(CorpusError, match="report 2 of 2 is empty"):
        find_reports(tmp_path / "b.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="the corpus holds no report"):
        find_reports(tmp_path / "empty")
