"""Segmentation by keeping the CT: masks on the scan's own grid, Dice by hand, both arms, resuming, what is refused."""

import json

import nibabel
import numpy as np
import pytest
import torch

import build_medsyn as build
from medisyn.corpus.readers import read_item
from medisyn.errors import InputError
from medisyn.families.medsyn.cascade import MedSyn
from medisyn.families.medsyn.channels import channels_from_sample, masks_from_channels
from medisyn.families.medsyn.config import Grid, MedSynConfig
from medisyn.families.medsyn.segmentation import masks_of_draws
from medisyn.generation.provenance import read
from medisyn.generation.volume_files.nifti import nifti_bytes
from medisyn.recipes.fixed_channels import NO_REPORT
from medisyn.recipes.medsyn_corpus import CtFiles
from medisyn.recipes.papers.beside import paper_report
from medisyn.recipes.segment_table import ARMS
from medisyn.recipes.segment_volumes import (
    NOTICE,
    dice_of,
    grid_affine,
    onto_scan,
    read_scan,
    segment_volumes,
)
from medisyn.seeding import seed_for
from medisyn.types import HU, Request, Sample, Volume
from recipes.test_medsyn_corpus import folder_of


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "base"
    MedSyn(build.base()).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def cts(tmp_path_factory):
    """Two chests with reports and masks."""
    folder = tmp_path_factory.mktemp("cts")
    for number in range(2):
        folder_of(folder, build.chest(number), name=f"chest{number}")
    return folder


@pytest.fixture(scope="module")
def done(model, cts, tmp_path_factory):
    out = tmp_path_factory.mktemp("segmented") / "out"
    return out, segment_volumes(cts, model=model, out=out, dtype="float32")


def records(out):
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


# ---- the way back to the scan


@pytest.mark.parametrize("axes", ["SPL", "IAR"])
@pytest.mark.parametrize("turn", ["as it is", "turned"])
def test_masks_of_the_grid_lie_where_the_scan_has_them(axes, turn):
    """Every second voxel of a scan becomes the grid; back on the scan it is the same mask, in blocks of two."""
    chest = build.chest(size=16)
    grid = Grid(shape=(8, 8, 8), spacing_mm=(40.0, 44.0, 44.0), axes=axes)
    array, affine = chest.item.array_CDHW[0], chest.item.affine
    lobe = chest.masks["lobe"].repeat(1, 0)
    if turn == "turned":
        array, lobe = np.flip(array.transpose(2, 0, 1), 1), np.flip(lobe.transpose(2, 0, 1), 1)
        affine = affine[:, [2, 0, 1, 3]].copy()
        affine[:3, 3] += 15 * affine[:3, 1]
        affine[:3, 1] *= -1
    scan = Volume(np.ascontiguousarray(array)[None], affine, HU)
    sample = Sample("a", scan, "", masks={**{name: np.zeros_like(lobe) for name in ("airway", "vessel")}, "lobe": lobe})
    channels = channels_from_sample(sample, grid)
    back = onto_scan(masks_from_channels(channels, grid), scan, grid, "a")["lobe"]
    assert back.shape == lobe.shape
    picked = grid_affine(scan, grid, "a")
    index = np.linalg.inv(scan.affine) @ picked @ [0, 0, 0, 1]  # a voxel of the grid is a voxel of the scan
    np.testing.assert_allclose(index, np.rint(index), atol=1e-9)
    for d in np.ndindex(8, 8, 8):
        there = np.rint(np.linalg.inv(scan.affine) @ picked @ [*d, 1])[:3].astype(int)
        assert back[tuple(there)] == lobe[tuple(there)]


def test_a_scan_that_was_resampled_gets_its_masks_around_its_middle():
    scan = Volume(np.full((1, 40, 50, 60), -1000, np.float32), np.diag([5.0, 6, 5, 1])[[2, 1, 0, 3]], HU)
    grid = build.GRID
    affine = grid_affine(scan, grid, "a")
    np.testing.assert_allclose(affine @ [3.5, 3.5, 3.5, 1], scan.affine @ [19.5, 24.5, 29.5, 1])
    full = {"airway": np.ones(grid.shape, np.uint8)}
    assert onto_scan(full, scan, grid, "a")["airway"].all()  # 200 x 300 x 300 mm lie inside 320 x 352 x 352 mm
    assert not onto_scan({"airway": np.zeros(grid.shape, np.uint8)}, scan, grid, "a")["airway"].any()


def test_dice_by_hand():
    lobe = np.zeros((2, 2, 2), np.uint8)
    lobe[0, 0], lobe[1, 1] = 1, 3
    found = lobe.copy()
    found[0, 0, 0] = 0  # lobe 1: 1 of 2 voxels, Dice 2/3; lobe 3 whole
    airway = np.zeros_like(lobe)
    scores = dice_of({"lobe": found, "airway": airway, "vessel": found}, {"lobe": lobe, "airway": airway})
    assert scores["lobe"] == pytest.approx((2 / 3 + 1) / 2)
    assert np.isnan(scores["airway"])
    assert "vessel" not in scores
    assert np.isnan(dice_of({"lobe": airway}, {"lobe": airway})["lobe"])


# ---- files


def test_both_arms_masks_on_the_scans_grid_and_what_the_records_say(done, cts):
    out, report = done
    assert (report.made, report.skipped) == (4, 0)
    with_report, alone = records(out)[:2]
    assert (with_report["arm"], alone["arm"]) == ("report", "alone")
    assert (with_report["prompt"], alone["prompt"]) == (build.REPORTS[0], NO_REPORT)
    assert with_report["seed"] == alone["seed"]  # the same noise
    assert with_report["notice"] == NOTICE
    assert with_report["fixed"] == "ct"
    ct = nibabel.load(next((cts / "chest0").glob("ct.nii.gz")))
    for name in ("lobe", "airway", "vessel"):
        mask = nibabel.load(out / f"ct-0001-report-{name}.nii.gz")
        assert mask.shape == ct.shape
        np.testing.assert_allclose(mask.affine, ct.affine)
    lobe = np.asarray(nibabel.load(out / "ct-0001-report-lobe.nii.gz").dataobj).transpose(2, 1, 0)
    assert with_report["dice_lobe"] == pytest.approx(
        dice_of({"lobe": lobe}, {"lobe": build.chest(0).masks["lobe"]})["lobe"], abs=1e-6
    )
    assert read(out / "planes" / "ct-0001-report.png")["notice"] == NOTICE
    assert [len(values) for by in report.dice.values() for values in by.values()] == [2] * 6
    for arm in ARMS.values():
        assert f"Dice {arm}: lobe" in report.summary()


def test_the_same_call_makes_what_is_missing(done, model, cts):
    out, first = done
    (out / "ct-0002-alone.json").unlink()
    again = segment_volumes(cts, model=model, out=out, dtype="float32")
    assert (again.made, again.skipped) == (1, 3)
    assert again.dice == first.dice
    assert again.as_dict()["out"] == str(out)


def test_draws_and_steps_are_the_models_own_unless_given(cts, tmp_path):
    """Masks are put together from draws of different noise; the first has the seed that a single one has."""
    family = MedSyn(build.base(config=MedSynConfig(given_share=0.4))).with_defaults(segment_steps=3, segment_draws=2)
    family.save(tmp_path / "model")

    def run(name, **options):
        segment_volumes(cts, model=str(tmp_path / "model"), out=tmp_path / name, dtype="float32", **options)
        return records(tmp_path / name)[1]

    usual, asked = run("usual"), run("asked", steps=2, draws=1)
    assert (usual["steps"], usual["draws"]) == (3, 2)
    assert (asked["steps"], asked["draws"], asked["seed"]) == (2, 1, usual["seed"])
    with pytest.raises(InputError, match=r"'draws': 1.* Choose another --out"):
        run("usual", draws=1)
    known = family.base.known_from(build.chest(0), ["ct"])
    seeds = (usual["seed"], seed_for(usual["seed"], "draw-1"))
    once = family.with_defaults(solver="renoise")
    draws, means = (
        torch.stack([model.base.sample([Request("a", "", seed=seed, steps=steps)], [known])[0] for seed in seeds])
        for model, steps in ((family, 3), (once, 1))
    )
    scan = build.chest(0).item
    for name, mask in onto_scan(masks_of_draws(draws, means, build.GRID), scan, build.GRID, "a").items():
        written = np.asarray(nibabel.load(tmp_path / "usual" / f"ct-0001-alone-{name}.nii.gz").dataobj)
        np.testing.assert_array_equal(written.transpose(2, 1, 0), mask)


def test_the_table_stands_beside_the_papers(done):
    out, report = done
    content = json.loads((out / "report" / "result.json").read_text())
    assert content["dice"]["alone"]["lobe"] == list(report.dice["alone"]["lobe"])
    found = paper_report(
        "medsyn", [out], commands={"generate", "train", "evaluate"}, presets={"medsyn-base", "medsyn-superres"}
    )
    rows = {(row.row, row.column): row for row in found.beside if row.table == "table-5"}
    assert set(rows) == {(r, c) for r in ("No text prompt", "With text prompt") for c in ("Airway", "Lobe")}
    assert rows["No text prompt", "Lobe"].value == pytest.approx(np.mean(report.dice["alone"]["lobe"]))


def test_one_file_one_report_and_no_truth(model, tmp_path):
    chest = build.chest()
    (tmp_path / "scan.nii.gz").write_bytes(
        nifti_bytes(chest.item.array_CDHW[0].astype(np.int16), chest.item.affine, {})
    )
    report = segment_volumes(tmp_path / "scan.nii.gz", model=model, out=tmp_path / "out", dtype="float32")
    assert report.made == 1
    assert "no truth masks beside the CT" in report.summary()
    assert not (tmp_path / "out" / "report").exists()
    rows = "ct,report\nscan.nii.gz,Large effusion.\n"
    (tmp_path / "reports.csv").write_text(rows)
    both = segment_volumes(
        tmp_path / "scan.nii.gz", report=tmp_path / "reports.csv", model=model, out=tmp_path / "b", dtype="float32"
    )
    assert [record["prompt"] for record in records(tmp_path / "b")] == ["Large effusion.", NO_REPORT]
    assert both.made == 2
    for text, message in (
        ("ct,text\na,b\n", "there is no column 'report'"),
        ("ct,report\na.nii.gz,b\n", "row 1: no CT of --ct has this file name"),
    ):
        (tmp_path / "reports.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            segment_volumes(tmp_path / "scan.nii.gz", report=tmp_path / "reports.csv", model=model, dtype="float32")


def test_what_cannot_be_segmented(model, cts, tmp_path):
    def refused(ct, message, **options):
        with pytest.raises(InputError, match=message):
            segment_volumes(ct, model=model, out=tmp_path / "out", dtype="float32", **options)

    refused(tmp_path / "none.nii.gz", "there is no file or folder 'none.nii.gz'")
    refused(cts / "chest0" / "lobe.nii.gz", "is a mask beside a CT; give the CT itself")
    refused(cts, "batch size must be at least 1, got 0", batch_size=0)
    refused(cts, "draws must be at least 1, got 0", draws=0)
    four = tmp_path / "four.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.arange(1024, dtype=np.int16).reshape(8, 8, 8, 2) - 900, np.eye(4)), four)
    refused(four, "this is no volume of one channel")
    with pytest.raises(InputError, match="a: the volume is in 'raw'; a CT in HU is segmented"):
        read_scan_of(tmp_path / "mr.nii.gz")


def read_scan_of(path):
    """A volume that no modality makes a CT, as a series of MR slices would be."""
    nibabel.save(nibabel.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8), np.eye(4)), path)
    from unittest.mock import patch

    raw = read_item(path)
    with patch("medisyn.corpus.readers.read_item", return_value=raw):
        return read_scan(path.parent, CtFiles("a", path.name), {})
