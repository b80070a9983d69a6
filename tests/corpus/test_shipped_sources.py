"""Data sets of Medical diffusion on a budget, in the layouts in which their publishers give them out, curated whole."""

import sys
import types

import nibabel
import numpy as np
import pytest
from PIL import Image

import build_hdf5
import build_metaimage
import build_source
from medisyn.corpus.checks import verify
from medisyn.corpus.curate import curate
from medisyn.corpus.loader import Corpus
from medisyn.corpus.source import Draw, load_source
from medisyn.runs import read_jsonl


def samples(folder):
    corpus = Corpus(folder)
    return [corpus.read(row) for row in corpus.rows()]


# ---- PI-CAI

T2W = np.diag([0.6, 0.6, 3.0, 1])  # (i, j, k) to LPS mm; 40 x 40 voxels are 48 of 0.5 mm
COARSE = np.diag([2.0, 2.0, 3.0, 1])
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
HEADER = [
    "patient_id",
    "study_id",
    "mri_date",
    "patient_age",
    "psa",
    "psad",
    "prostate_volume",
    "histopath_type",
    "lesion_GS",
    "lesion_ISUP",
    "case_ISUP",
    "case_csPCa",
    "center",
]


def disc(shape, affine, centre_mm, radius_mm):
    """Voxels (k, j, i) within a ball of the patient."""
    k, j, i = np.indices(shape)
    x, y, z = (np.diag(affine)[axis] * index + affine[axis, 3] for axis, index in enumerate((i, j, k)))
    return (x - centre_mm[0]) ** 2 + (y - centre_mm[1]) ** 2 + (z - centre_mm[2]) ** 2 < radius_mm**2


def save_case(folder, name, lesion_mm):
    """Noise with a lesion: dark on ADC, bright on DWI; ADC and DWI are coarse and begin 2 mm beyond the T2W scan."""
    rng = np.random.default_rng(int(name[-3:]))
    coarse = COARSE.copy()
    coarse[:2, 3] = -2
    for kind, affine, shape, level in (
        ("t2w", T2W, (6, 40, 40), 150),
        ("adc", coarse, (6, 14, 14), 0),
        ("hbv", coarse, (6, 14, 14), 400),
    ):
        scan = rng.integers(180, 220, shape).astype(np.int16)
        if lesion_mm is not None:
            scan[disc(shape, affine, lesion_mm, 5)] = level
        scan[0, 0, :2] = (0, 400)  # one range for all
        build_metaimage.save(folder / name.split("_")[0] / f"{name}_{kind}.mha", scan, affine, compressed=True)


def save_mask(path, mask_KJI):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(mask_KJI.transpose(2, 1, 0).astype(np.uint8), LPS_RAS @ T2W), path)


@pytest.fixture
def picai(tmp_path):
    """Five studies of four patients: expert and model masks, an empty one, a case without lesion."""
    labels = tmp_path / "picai_labels"
    lesion_mm, shape = (12.0, 9.0, 9.0), (6, 40, 40)
    lesion = disc(shape, T2W, lesion_mm, 5) * 3
    human, machine = (labels / "csPCa_lesion_delineations" / part for part in ("human_expert/resampled", "AI/Bosma22a"))
    gland = np.zeros(shape)
    gland[1:5, 10:30, 10:30] = 1
    rows = []
    for name, positive, folder, masks in (
        ("10000_1000000", "YES", "picai_public_images_fold0", {human: lesion, machine: lesion * 0}),
        ("10001_1000001", "YES", "images", {machine: lesion > 0}),
        ("10002_1000002", "YES", "images/picai_public_images_fold4", {human: lesion * 0}),
        ("10003_1000003", "NO", "images", {human: lesion * 0}),
        ("10003_1000004", "NO", "picai_public_images_fold1", {}),
    ):
        save_case(tmp_path / folder, name, lesion_mm if positive == "YES" else None)
        for kind, mask in masks.items():
            save_mask(kind / f"{name}.nii.gz", np.asarray(mask))
        save_mask(labels / "anatomical_delineations/whole_gland/AI/Bosma22b" / f"{name}.nii.gz", gland)
        patient, study = name.split("_")
        rows.append({**dict.fromkeys(HEADER, ""), "patient_id": patient, "study_id": study, "case_csPCa": positive})
    (labels / "clinical_information").mkdir()
    build_source.write_table(labels / "clinical_information" / "marksheet.csv", rows)
    return tmp_path


def test_picai_becomes_one_colour_slice_per_case(picai):
    out = picai / "corpus"
    report = curate("picai_prostate_mri", out, root=picai, size=150)
    assert (report.read, report.kept, report.quarantined) == (5, 4, 1)
    verify(out).raise_if_broken()
    (entry,) = read_jsonl(out / "quarantine.jsonl")
    assert entry["reason"] == "slice rule lesion: the lesion mask is empty, so it chooses no slice"
    rows = Corpus(out).rows()
    assert sorted(row.labels[0] for row in rows) == [
        "clinically significant prostate cancer",
        "clinically significant prostate cancer",
        "no clinically significant prostate cancer",
        "no clinically significant prostate cancer",
    ]
    assert len({row.patient for row in rows}) == 3  # two studies of one patient
    # The slices: 6 of 3 mm in the middle of 30 are 12 to 17. The lesion is largest on 3, the gland's median 2.5 is 2.
    assert sorted(row.key[-5:] for row in rows) == ["d0014", "d0014", "d0015", "d0015"]
    text = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    card = (out / "README.md").read_text()
    assert "modalities (3 x 0.5 x 0.5 mm, centre 30 x 300 x 300 voxels, slice by lesion mask; short-side-crop;" in card
    assert b"1000000" not in text
    assert b"10003" not in text
    for sample in samples(out):
        pixels = sample.item.array_CHW.astype(int)
        assert pixels.shape == (3, 150, 150)  # half of 300
        if "showing" in sample.caption:
            # 40 voxels of 0.6 mm are 48 of 0.5 mm, at 126 of 300; the lesion at 12 and 9 mm is at voxel 149.7 and 143.7
            red, green, blue = pixels[:, 143 // 2, 149 // 2]
            assert abs(red - 150 / 400 * 255) < 6
            assert green < 60
            assert blue > 200
        assert (pixels[0, :59] == 0).all()  # beyond the T2W scan; Lanczos reaches over its edge by 3 pixels
        assert pixels[:, 66:80, 66:80].min() > 0 or "showing" in sample.caption


def test_picai_without_a_scan_or_a_mask_says_which(picai):
    (picai / "images/10001/10001_1000001_adc.mha").unlink()
    (picai / "picai_labels/anatomical_delineations/whole_gland/AI/Bosma22b/10003_1000004.nii.gz").unlink()
    curate("picai_prostate_mri", picai / "corpus", root=picai, size=32)
    reasons = {entry["reason"] for entry in read_jsonl(picai / "corpus" / "quarantine.jsonl")}
    assert "channel 1: the file is missing" in reasons
    assert "slice rule gland: the gland mask of this file is missing (1 places were looked at)" in reasons


def test_an_edited_mask_or_channel_makes_the_case_again(picai):
    curate("picai_prostate_mri", picai / "corpus", root=picai, size=32)
    before = {row.key: row.sha256 for row in Corpus(picai / "corpus").rows()}
    save_case(picai / "images", "10001_1000001", (6.0, 16.0, 9.0))
    mask = disc((6, 40, 40), T2W, (12.0, 9.0, 3.0), 3)
    save_mask(picai / "picai_labels/csPCa_lesion_delineations/human_expert/resampled/10000_1000000.nii.gz", mask)
    curate("picai_prostate_mri", picai / "corpus", root=picai, size=32)
    after = {row.key: row.sha256 for row in Corpus(picai / "corpus").rows()}
    assert len(before.keys() & after.keys()) == 3  # another slice of the first case, so another key
    assert sum(before[key] != after[key] for key in before.keys() & after.keys()) == 1


# ---- CheXpert

NAMES = [
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
]


def test_chexpert_keeps_ap_views_with_one_finding_of_four(tmp_path):
    cases = [
        ("AP", {"No Finding": "1.0"}, "Frontal (AP) chest X-ray image without findings"),
        ("AP", {"Cardiomegaly": "1.0", "Edema": "0.0"}, "Frontal (AP) chest X-ray image showing cardiomegaly"),
        ("AP", {"Pleural Effusion": "1.0"}, "Frontal (AP) chest X-ray image showing pleural effusion"),
        ("AP", {"Pneumonia": "1.0"}, "Frontal (AP) chest X-ray image showing pneumonia"),
        ("AP", {"Pneumonia": "1.0", "Edema": "-1.0"}, None),  # an uncertain second finding
        ("AP", {"Cardiomegaly": "-1.0"}, None),
        ("AP", {"Cardiomegaly": "1.0", "Pneumonia": "1.0"}, None),
        ("AP", {"No Finding": "1.0", "Support Devices": "1.0"}, None),
        ("AP", {"Edema": "1.0"}, None),
        ("PA", {"Pneumonia": "1.0"}, None),
        ("", {"Pneumonia": "1.0"}, None),  # lateral
    ]
    rows = []
    for number, (view, flags, _) in enumerate(cases):
        path = f"CheXpert-v1.0-small/train/patient{number // 2:05d}/study{number % 2 + 1}/view1_frontal.jpg"
        (tmp_path / path).parent.mkdir(parents=True)
        framed = np.zeros((48, 32), np.uint8)
        framed[8:40, 8:24] = np.maximum(build_source.picture(number, 32)[:, :16], 120)  # whole blocks of the JPEG
        Image.fromarray(framed).save(tmp_path / path, quality=100)
        first = {"Path": path, "Sex": "Female", "Age": "68"}
        side = "Frontal" if view else "Lateral"
        rows.append({**first, "Frontal/Lateral": side, "AP/PA": view, **dict.fromkeys(NAMES, ""), **flags})
    build_source.write_table(tmp_path / "CheXpert-v1.0-small" / "train.csv", rows)
    report = curate("chexpert_single_finding", tmp_path / "corpus", root=tmp_path, size=64)
    assert (report.kept, report.quarantined) == (4, 0)
    verify(tmp_path / "corpus").raise_if_broken()
    made = Corpus(tmp_path / "corpus").rows()
    assert {row.caption for row in made} == {caption for _, _, caption in cases if caption}
    assert {label for row in made for label in row.labels} == {
        "no finding", "cardiomegaly", "pleural effusion", "pneumonia",
    }  # fmt: skip
    assert len({row.patient for row in made}) == 2  # patient00000 and patient00001 have two studies each
    for sample in samples(tmp_path / "corpus"):
        # 32 x 16 pixels are not black: 64 x 32 between 16 black columns on either side
        assert (sample.item.array_CHW[0].max(axis=0) > 60).tolist() == [False] * 16 + [True] * 32 + [False] * 16


def test_the_four_takes_of_chexpert_differ_in_their_finding_alone():
    source, _ = load_source("chexpert_single_finding")
    present = ["No Finding", "Cardiomegaly", "Pleural Effusion", "Pneumonia"]
    for take, one in zip(source.samples, present, strict=True):
        assert list(take.where) == NAMES
        assert {name for name, wanted in take.where.items() if "1.0" in wanted} == {one}
        assert all("-1.0" not in wanted for wanted in take.where.values())


# ---- PatchCamelyon


def patch(number):
    return np.stack([build_source.picture(3 * number + channel, 96) for channel in range(3)], axis=-1)


def test_patchcamelyon_as_published(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", types.SimpleNamespace(File=build_hdf5.File))
    for start, split in enumerate(("train", "valid", "test")):
        patches = np.stack([patch(4 * start + number) for number in range(4)])
        build_hdf5.save(tmp_path / f"camelyonpatch_level_2_split_{split}_x.h5", x=patches)
        labels = np.array([0, 1, 1, 0], np.uint8).reshape(4, 1, 1, 1)
        build_hdf5.save(tmp_path / f"camelyonpatch_level_2_split_{split}_y.h5", y=labels)
    report = curate("patchcamelyon", tmp_path / "corpus", root=tmp_path)
    assert (report.kept, report.quarantined) == (12, 0)
    verify(tmp_path / "corpus").raise_if_broken()
    assert "- drawn: at most 1,000 pictures of each label and array" in (tmp_path / "corpus/README.md").read_text()
    assert [row.split for row in Corpus(tmp_path / "corpus").rows()].count("validation") == 4
    for sample in samples(tmp_path / "corpus"):
        number = int(sample.key[-6:]) + 4 * ("train", "validation", "test").index(sample.metadata["split"])
        lanczos = Image.fromarray(patch(number)).resize((512, 512), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(sample.item.array_CHW, np.asarray(lanczos).transpose(2, 0, 1))
        found = "lymph node metastasis" if number % 4 in (1, 2) else "no metastasis"
        assert sample.caption == f"Histopathology image of a lymph node, H&E stain, showing {found}"


def test_patchcamelyon_as_tiff_draws_the_same_number_of_both_labels(tmp_path):
    (tmp_path / "train").mkdir()
    for number in range(6):
        Image.fromarray(patch(number)).save(tmp_path / "train" / f"{number:040x}.tif")
    rows = [{"id": f"{number:040x}", "label": str(int(number < 2))} for number in range(6)]
    build_source.write_table(tmp_path / "train_labels.csv", rows)
    source, _ = load_source("patchcamelyon_tiff")
    assert source.table.draw == Draw(column="label", most=3000)
    table = source.table.model_copy(update={"draw": Draw(column="label", most=2)})
    report = curate(source.model_copy(update={"table": table}), tmp_path / "corpus", root=tmp_path, size=96)
    assert (report.kept, report.quarantined) == (4, 0)
    verify(tmp_path / "corpus").raise_if_broken()
    assert "- drawn: at most 2 rows of each value of `label`" in (tmp_path / "corpus/README.md").read_text()
    assert sorted(row.labels[0] for row in Corpus(tmp_path / "corpus").rows()) == [
        "lymph node metastasis", "lymph node metastasis", "no metastasis", "no metastasis",
    ]  # fmt: skip


def test_patchcamelyon_without_h5py_says_what_to_do(tmp_path, monkeypatch):
    from medisyn.errors import CorpusError

    monkeypatch.setitem(sys.modules, "h5py", None)
    build_hdf5.save(tmp_path / "camelyonpatch_level_2_split_test_x.h5", x=np.zeros((1, 96, 96, 3), np.uint8))
    with pytest.raises(CorpusError, match=r"nothing was kept.*HDF5 files are read with h5py.*pip install h5py"):
        curate("patchcamelyon", tmp_path / "corpus", root=tmp_path)
