"""`evaluate --anatomy`: numbers by hand from own masks, prompt pairs, masks of programs through fakes on PATH."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from medisyn.errors import ConfigError, InputError, MedisynError, MissingDependency
from medisyn.evaluation.anatomy_table import MEASURES, Measured, PairAsked, pair_results, pairs_from_prompts, says
from medisyn.generation.volume_files.nifti import nifti_bytes
from medisyn.recipes.anatomy_masks import check_source, masks_of
from medisyn.recipes.evaluate_anatomy import evaluate_anatomy, find_volumes, read_pairs
from medisyn.types import HU, Volume

SIDE = 16
AFFINE = np.array([[0, 0, 10.0, 0], [0, 10.0, 0, 0], [10.0, 0, 0, 0], [0, 0, 0, 1]])  # 1 voxel is 1 mL


def ct_and_masks(effusion_voxels=0, dark=0):
    """Lungs w 2:7 and 9:14 of -850 HU, heart w 6:10 (4 of 12 columns), and `dark` lung voxels of -1000 HU."""
    hu = np.full((SIDE, SIDE, SIDE), 40, np.int16)
    lobe = np.zeros(hu.shape, np.uint8)
    lobe[4:12, 4:12, 2:7], lobe[4:12, 4:12, 9:14] = 3, 1
    heart = np.zeros(hu.shape, np.uint8)
    heart[6:8, 6:8, 6:10] = 1
    hu[lobe > 0] = -850
    hu[tuple(np.argwhere(lobe > 0)[:dark].T)] = -1000
    effusion = np.zeros(hu.shape, np.uint8)
    effusion[3, 4:12, 2:14].flat[:effusion_voxels] = 1
    return hu, {"lobe": lobe, "heart": heart, "effusion": effusion}


def write(folder: Path, key: str, prompt: str = "", affine=AFFINE, **which) -> Path:
    hu, masks = ct_and_masks(**which)
    place = folder / key
    place.mkdir(parents=True)
    (place / "ct.nii.gz").write_bytes(nifti_bytes(hu, affine, {}))
    for name, mask in masks.items():
        (place / f"{name}.nii.gz").write_bytes(nifti_bytes(mask, affine, {}, intent=name))
    if prompt:
        (place / "report.txt").write_text(prompt)
    return place / "ct.nii.gz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("anatomy") / "volumes"
    for number in range(3):
        write(out, f"with-{number}", "Large pleural effusion.", effusion_voxels=20 + number)
        write(out, f"none-{number}", "There is no pleural effusion.", dark=64)
    return out


def test_own_masks_give_the_numbers_counted_by_hand_and_the_pair(folder, tmp_path):
    found = evaluate_anatomy(folder, out=tmp_path / "out")
    one = {volume.key: volume for volume in found.volumes}
    assert [one[f"with-{n}"].values["effusion_ml"] for n in range(3)] == [20, 21, 22]
    assert one["none-0"].values["lung_ml"] == 2 * 8 * 8 * 5  # two blocks, 1 mL a voxel
    assert one["none-0"].values["lobe_ml_right_upper"] == 320
    assert one["none-0"].values["lobe_ml_left_lower"] == 0
    assert one["none-0"].values["laa950_percent"] == 10.0  # 64 of 640
    assert one["none-0"].values["cardiothoracic_ratio"] == pytest.approx(4 / 12)
    assert np.isnan(one["none-0"].values["airway_ml"])  # there is no airway mask
    assert one["none-0"].source.startswith("own (")
    ((pair, test),) = found.pairs
    assert (pair.name, test.n_present, test.n_absent, test.mean_present, test.mean_absent) == (
        "pleural effusion", 3, 3, 21.0, 0.0
    )  # fmt: skip
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    values = [value for table in result["page"]["tables"] for value in table["values"]]
    arms = {
        value["of"]: value["value"]
        for value in values
        if (value["name"], value["group"]) == ("effusion_ml", "pleural effusion")
    }
    assert arms == {"present": 21.0, "absent": 0.0}
    for name in ("volumes", "anatomy", "pairs"):  # the source stands in every row
        table = next(table for table in result["page"]["tables"] if table["name"] == name)
        place = table["columns"].index("masks")
        assert all(row[place].startswith("own") for row in table["rows"])
    assert result["volumes"][0]["values"]["airway_ml"] is None
    assert "model's own" in found.summary()
    assert "present 21" in found.summary()


def test_a_scan_stored_sideways_measures_the_same(folder, tmp_path):
    turned = AFFINE[:, [2, 0, 1, 3]].copy()  # d along the patient's left, h to the head, w to the back
    hu, masks = ct_and_masks(effusion_voxels=20)
    place = tmp_path / "v" / "a"
    place.mkdir(parents=True)
    (place / "ct.nii.gz").write_bytes(nifti_bytes(hu.transpose(2, 0, 1), turned, {}))
    for name, mask in masks.items():
        (place / f"{name}.nii.gz").write_bytes(nifti_bytes(mask.transpose(2, 0, 1), turned, {}))
    (volume,) = evaluate_anatomy(tmp_path / "v", out=tmp_path / "o").volumes
    assert volume.values["cardiothoracic_ratio"] == pytest.approx(4 / 12)
    assert volume.values["effusion_ml"] == 20


@pytest.mark.parametrize(
    ("prompt", "finding", "said"),
    [
        ("Large right pleural effusion. No cardiomegaly.", "pleural effusion", True),
        ("Large right pleural effusion. No cardiomegaly.", "cardiomegaly", False),
        ("Heart size is normal.", "cardiomegaly", False),
        ("The heart is markedly enlarged.", "cardiomegaly", True),
        ("Lungs without bullae.", "bullae", False),
        ("Clear lungs.", "bullae", None),
        ("Pleural effusion. No pleural effusion.", "pleural effusion", None),
        ("Pleural effusion with no pneumothorax.", "pleural effusion", True),
    ],
)
def test_what_a_prompt_says(prompt, finding, said):
    assert says(prompt, finding) is said


def measured(key, prompt="", **values):
    return Measured(key, prompt, {**dict.fromkeys(MEASURES, float("nan")), **values}, "own")


def test_one_volume_in_an_arm_makes_no_pair():
    volumes = [measured("a", "Effusion."), measured("b", "Effusion."), measured("c", "No effusion.")]
    assert pairs_from_prompts(volumes) == []


def test_a_pair_whose_quantity_was_not_measured_is_refused():
    volumes = [measured(key) for key in "abcd"]
    with pytest.raises(InputError, match="measured in 0 and 0 volumes; each arm needs 2"):
        pair_results(volumes, [PairAsked("x", "effusion_ml", ("a", "b"), ("c", "d"))])


def test_pairs_of_a_table(tmp_path):
    volumes = [measured("a", "Big  heart.", cardiothoracic_ratio=0.6), measured("b", "Small heart.")]
    table = tmp_path / "pairs.csv"
    table.write_text(
        "name,measure,present,absent,normal_low,normal_high\nh,cardiothoracic_ratio,Big heart.,Small heart.,0.4,0.5\n"
    )
    assert read_pairs(table, volumes) == [PairAsked("h", "cardiothoracic_ratio", ("a",), ("b",), "higher", (0.4, 0.5))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("measure,present\nx,y\n", "columns absent are missing"),
        ("measure,present,absent\neffusion_m,Big heart.,Big heart.\n", "Did you mean 'effusion_ml'"),
        ("measure,present,absent\neffusion_ml,Nobody.,Big heart.\n", "no volume has the present prompt 'Nobody.'"),
        ("measure,present,absent,normal_low\neffusion_ml,Big heart.,Big heart.,low\n", "must be two numbers"),
    ],
)
def test_bad_pairs(tmp_path, text, message):
    table = tmp_path / "pairs.csv"
    table.write_text(text)
    with pytest.raises(InputError, match=message):
        read_pairs(table, [measured("a", "Big heart.")])


def test_no_such_pairs(tmp_path):
    with pytest.raises(InputError, match=re.escape("there is no such file; give a CSV or auto")):
        read_pairs(tmp_path / "none.csv", [])


def test_flat_files_with_their_prompt_in_json(tmp_path):
    hu, masks = ct_and_masks()
    (tmp_path / "a-b.nii.gz").write_bytes(nifti_bytes(hu, AFFINE, {}))
    (tmp_path / "a-b-lobe.nii.gz").write_bytes(nifti_bytes(masks["lobe"], AFFINE, {}))
    (tmp_path / "a-b.json").write_text(json.dumps({"medisyn": {"prompt": "No effusion."}}))
    (file,) = find_volumes(tmp_path)
    assert (file.key, file.prompt, sorted(file.masks)) == ("a-b", "No effusion.", ["lobe"])
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a-b.nii.gz", "text": "Effusion."}\n')
    assert find_volumes(tmp_path)[0].prompt == "Effusion."


def test_folders_without_a_ct(tmp_path):
    with pytest.raises(InputError, match="holds no CT"):
        find_volumes(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        find_volumes(tmp_path / "none")


def test_more_than_one_channel_is_no_ct(tmp_path):
    hu, _ = ct_and_masks()
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.stack([hu, hu], axis=-1), AFFINE), tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="no CT volume with one channel"):
        evaluate_anatomy(tmp_path, masks="classical", out=tmp_path / "o")


def test_own_masks_need_a_lobe_mask(tmp_path):
    (write(tmp_path, "a").parent / "lobe.nii.gz").unlink()
    with pytest.raises(InputError, match="no lobe mask lies beside the CT"):
        evaluate_anatomy(tmp_path, out=tmp_path / "o")


def test_unknown_and_absent_sources(monkeypatch):
    with pytest.raises(ConfigError, match="Did you mean 'lungmask'"):
        check_source("lungmaks")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependency, match="pip install lungmask"):
        check_source("lungmask")


def fake(folder: Path, name: str, body: str, monkeypatch) -> None:
    """A program of that name first on PATH."""
    program = folder / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def scan(tmp_path):
    ct = write(tmp_path / "scans", "a", effusion_voxels=7)
    hu, masks = ct_and_masks(effusion_voxels=7)
    return ct, Volume(hu[None].astype(np.float32), AFFINE, HU), masks


def test_lungmask_is_called_and_its_file_read(scan, tmp_path, monkeypatch):
    ct, volume, masks = scan
    fake(
        tmp_path,
        "lungmask",
        f'test "$1 $2" = "--modelname LTRCLobes_R231" && cp "{ct.parent}/lobe.nii.gz" "$4"',
        monkeypatch,
    )
    check_source("lungmask")
    found = masks_of("lungmask", ct, volume, {}, "a")
    np.testing.assert_array_equal(found.masks["lobe"], masks["lobe"])
    assert found.commands == ("lungmask --modelname LTRCLobes_R231 ct.nii.gz OUT/lobe.nii.gz",)


def test_totalsegmentators_files_get_our_numbers(scan, tmp_path, monkeypatch):
    ct, volume, masks = scan
    ready = tmp_path / "ready"
    ready.mkdir()
    lobes = ("lung_upper_lobe_left", "lung_lower_lobe_left", "lung_upper_lobe_right", "lung_middle_lobe_right",
             "lung_lower_lobe_right")  # fmt: skip
    for number, name in enumerate(lobes, start=1):
        (ready / f"{name}.nii.gz").write_bytes(nifti_bytes((masks["lobe"] == number).astype(np.uint8), AFFINE, {}))
    for name, mask in (("heart", "heart"), ("lung_airways", "heart"), ("lung_arteries", "heart"),
                       ("lung_veins", "effusion"), ("pleural_effusion", "effusion")):  # fmt: skip
        (ready / f"{name}.nii.gz").write_bytes(nifti_bytes(masks[mask], AFFINE, {}))
    fake(tmp_path, "TotalSegmentator", f'mkdir -p "$4" && cp {ready}/*.nii.gz "$4"', monkeypatch)
    found = masks_of("totalsegmentator", ct, volume, {}, "a")
    np.testing.assert_array_equal(found.masks["lobe"], masks["lobe"])
    np.testing.assert_array_equal(found.masks["vessel"] > 0, (masks["heart"] > 0) | (masks["effusion"] > 0))
    assert found.masks["effusion"].sum() == 7
    assert len(found.commands) == 3
    assert (
        found.commands[2]
        == "TotalSegmentator -i ct.nii.gz -o OUT/pleural_pericard_effusion -ta pleural_pericard_effusion"
    )


def test_a_program_that_fails_or_writes_nothing(scan, tmp_path, monkeypatch):
    ct, volume, _ = scan
    fake(tmp_path, "lungmask", "echo out of memory >&2; exit 3", monkeypatch)
    with pytest.raises(MedisynError, match="failed with exit code 3: out of memory"):
        masks_of("lungmask", ct, volume, {}, "a")
    fake(tmp_path, "lungmask", "exit 0", monkeypatch)
    with pytest.raises(InputError, match=re.escape("the mask lobe.nii.gz is missing")):
        masks_of("lungmask", ct, volume, {}, "a")
